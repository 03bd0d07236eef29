//! What a model is, independent of the file format it came in.

use super::error::{FrontendError, Place};
use super::quantization::Quantization;
use std::fmt;
use std::path::Path;
use weldment_ir::DType;

/// A family of models with its own definition in `models/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama 1 to 3 and everything of that shape (SmolLM2, ...).
    Llama,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: RMS norms on each head of q and k.
    Qwen3,
    /// A text graph, which is its own definition.
    Graph,
}

impl Architecture {
    /// Every architecture that a checkpoint may name.
    pub const ALL: [Architecture; 3] = [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3];

    /// The name in `config.json` (`model_type`) and in GGUF (`general.architecture`); the two agree for these.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Graph => "graph",
        }
    }

    /// The architecture of that name.
    pub fn from_name(name: &str) -> Option<Architecture> {
        Architecture::ALL.into_iter().find(|a| a.name() == name)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How rotary frequencies depart from theta^(-2i/dim).
#[derive(Debug, Clone, PartialEq)]
pub enum RopeKind {
    /// They do not.
    Default,
    /// All are divided by one factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1's scaling by wavelength (see the `rope_table` op).
    Llama3 {
        /// Divides the frequency of long wavelengths.
        factor: f64,
        /// Wavelengths over original / low are long.
        low: f64,
        /// Wavelengths under original / high stay.
        high: f64,
        /// Positions the model was first trained on.
        original: u64,
    },
    /// Divided element by element by the f32 tensor `rope_freqs.weight` [rotary_dim / 2]: GGUF's way of storing Llama 3.1's.
    Factors,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Scaling.
    pub kind: RopeKind,
    /// True if pairs are (2i, 2i + 1), false if (i, i + rotary_dim / 2). GGUF's llama files store q and k rows permuted for the former.
    pub interleaved: bool,
    /// Elements of a head that are rotated, even and at most `head_dim`.
    pub rotary_dim: u64,
}

/// A decoder's sizes and switches.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Decoder layers.
    pub layers: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u64,
    /// Elements a head.
    pub head_dim: u64,
    /// Width inside the MLP.
    pub intermediate: u64,
    /// Rows of the embedding and of the output projection.
    pub vocab: u64,
    /// Epsilon of every RMS norm.
    pub rms_eps: f64,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// The output projection is the embedding table.
    pub tied_embeddings: bool,
    /// q, k and v projections have biases.
    pub qkv_bias: bool,
    /// The attention output projection has a bias.
    pub o_bias: bool,
    /// gate, up and down projections have biases.
    pub mlp_bias: bool,
    /// RMS norms on each head of q and k, before rope.
    pub qk_norm: bool,
    /// Positions the model was made for.
    pub max_positions: u64,
    /// Beginning-of-sequence token.
    pub bos_id: Option<u32>,
    /// Tokens that end generation, ascending.
    pub eos_ids: Vec<u32>,
    /// Arithmetic dtype by default (f32, f16 or bf16): what `config.json` states; for GGUF that of the embedding, f32 where it is
    /// block-quantised.
    pub dtype: DType,
    /// How projections are quantised, where they are to FP8.
    pub quantization: Option<Quantization>,
}

impl ModelConfig {
    /// Checks sizes against each other and against limits that no known model comes near; `path` and the key names of `keys` go
    /// into the error.
    pub(crate) fn check(&self, path: &Path) -> Result<(), FrontendError> {
        let wrong = |key: &str, message: String| Err(FrontendError::invalid(path, Place::Key(key.to_owned()), message));
        let limits = [
            ("hidden_size", self.hidden, 1 << 20),
            ("num_hidden_layers", self.layers, 4096),
            ("num_attention_heads", self.heads, 1 << 16),
            ("num_key_value_heads", self.kv_heads, 1 << 16),
            ("head_dim", self.head_dim, 1 << 16),
            ("intermediate_size", self.intermediate, 1 << 24),
            ("vocab_size", self.vocab, 1 << 28),
            ("max_position_embeddings", self.max_positions, 1 << 32),
        ];
        for (key, value, limit) in limits {
            if value == 0 || value > limit {
                return wrong(key, format!("{value}; 1 to {limit} is accepted"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return wrong(
                "num_key_value_heads",
                format!("{} heads over {} key/value heads; a divisor is expected", self.heads, self.kv_heads),
            );
        }
        if self.rope.rotary_dim == 0 || !self.rope.rotary_dim.is_multiple_of(2) || self.rope.rotary_dim > self.head_dim
        {
            return wrong(
                "rotary_dim",
                format!("{} of a head of {}; an even number up to it is expected", self.rope.rotary_dim, self.head_dim),
            );
        }
        if !(self.rms_eps.is_finite() && self.rms_eps >= 0.0) {
            return wrong("rms_norm_eps", format!("{}; a finite number >= 0 is expected", self.rms_eps));
        }
        if !(self.rope.theta.is_finite() && self.rope.theta > 0.0) {
            return wrong("rope_theta", format!("{}; a finite number > 0 is expected", self.rope.theta));
        }
        if let RopeKind::Linear { factor } = self.rope.kind
            && !(factor.is_finite() && factor > 0.0)
        {
            return wrong("rope_scaling", format!("factor {factor}; a finite number > 0 is expected"));
        }
        if let RopeKind::Llama3 { factor, low, high, original } = self.rope.kind {
            let sound = factor.is_finite()
                && factor > 0.0
                && low.is_finite()
                && low > 0.0
                && high.is_finite()
                && high > low
                && original > 0
                && original < 1 << 32;
            if !sound {
                return wrong(
                    "rope_scaling",
                    format!(
                        "factor {factor}, low {low}, high {high}, original {original}; factor > 0, 0 < low < high and original > 0 are expected"
                    ),
                );
            }
        }
        Ok(())
    }
}
