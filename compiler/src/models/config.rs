//! What a model is, independent of the file format it came in: the decoder's specification, and what the text side and the
//! driver need.

use super::family::{self, Family, Format};
use super::spec::{Decoder, Layer};
use crate::frontend::{FrontendError, Object, Quantization, shown};
use std::collections::BTreeSet;
use weldment_ir::DType;

/// A model's config.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Its family, unless it is a text graph.
    pub family: Option<&'static Family>,
    /// What is computed; of a text graph nothing is known.
    pub decoder: Option<Decoder>,
    /// Rows of the embedding and of the output projection.
    pub vocab: u64,
    /// Positions the model was made for.
    pub positions: u64,
    /// Positions that its rope scaling reaches.
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
    /// Reads the config of a model whose files are in `format`; `generation` is `generation_config.json`, whose token ids go first.
    ///
    /// # Errors
    /// Names the key that is missing, of another type, or unsupported.
    pub fn read(
        mut keys: Object,
        format: Format,
        generation: Option<&Object>,
        quantization: Option<Quantization>,
    ) -> Result<ModelConfig, FrontendError> {
        let family = family::of(&keys, format)?;
        let keys = family.settled(&mut keys, format)?;
        let decoder = (family.decoder)(keys, format)?;
        check(&decoder, keys)?;
        let positions = keys.needed("max_position_embeddings")?;
        in_range(keys, "max_position_embeddings", positions, 1 << 32)?;
        let ids = |key: &str| match generation {
            Some(g) if g.get(key).is_some() => g.ids(key),
            _ => keys.ids(key),
        };
        let mut eos_ids = ids("eos_token_id")?;
        eos_ids.sort_unstable();
        eos_ids.dedup();
        Ok(ModelConfig {
            family: Some(family),
            vocab: decoder.vocab,
            positions,
            max_positions: decoder.layers.iter().map(|l| l.attention.rope.reach(positions)).max().unwrap_or(positions),
            decoder: Some(decoder),
            bos_id: ids("bos_token_id")?.first().copied(),
            eos_ids,
            dtype: dtype(keys)?,
            quantization,
        })
    }

    /// The config of a text graph, which is its own definition.
    pub fn of_graph(vocab: u64, positions: u64) -> ModelConfig {
        ModelConfig {
            family: None,
            decoder: None,
            vocab,
            positions,
            max_positions: positions,
            bos_id: None,
            eos_ids: Vec::new(),
            dtype: DType::F32,
            quantization: None,
        }
    }

    /// The family's name, or `graph`.
    pub fn architecture(&self) -> &'static str {
        self.family.map_or("graph", |family| family.name)
    }

    /// What a user should know of a compile for sequences of at most `max_seq` positions, a sentence each.
    pub fn notes(&self, max_seq: u64) -> BTreeSet<String> {
        self.layers().iter().filter_map(|layer| layer.attention.rope.note(max_seq)).collect()
    }

    /// The decoder's layers.
    pub fn layers(&self) -> &[Layer] {
        self.decoder.as_ref().map_or(&[], |d| &d.layers)
    }
}

fn in_range(keys: &Object, key: &str, value: u64, limit: u64) -> Result<(), FrontendError> {
    match (1..=limit).contains(&value) {
        true => Ok(()),
        false => Err(keys.invalid(key, format!("{value}; 1 to {limit} is accepted"))),
    }
}

/// Checks sizes against each other and against limits that no known model comes near.
fn check(decoder: &Decoder, keys: &Object) -> Result<(), FrontendError> {
    in_range(keys, "hidden_size", decoder.hidden, 1 << 20)?;
    in_range(keys, "vocab_size", decoder.vocab, 1 << 28)?;
    let reals = [("rms_norm_eps", decoder.norm.eps), ("embedding_multiplier", decoder.embedding_scale.factor)];
    if let Some((key, value)) = reals.into_iter().find(|(_, x)| !(x.is_finite() && *x >= 0.0)) {
        return Err(keys.invalid(key, format!("{value}; a finite number >= 0 is expected")));
    }
    if !(decoder.logit_divisor.is_finite() && decoder.logit_divisor > 0.0) {
        let message = format!("{}; a finite number > 0 is expected", decoder.logit_divisor);
        return Err(keys.invalid("logits_scaling", message));
    }
    for layer in &decoder.layers {
        let a = &layer.attention;
        in_range(keys, "num_attention_heads", a.heads, 1 << 16)?;
        in_range(keys, "num_key_value_heads", a.kv_heads, 1 << 16)?;
        in_range(keys, "head_dim", a.head_dim, 1 << 16)?;
        in_range(keys, "intermediate_size", layer.feed_forward.width, 1 << 24)?;
        if !a.heads.is_multiple_of(a.kv_heads) {
            let message = format!("{} heads over {} key/value heads; a divisor is expected", a.heads, a.kv_heads);
            return Err(keys.invalid("num_key_value_heads", message));
        }
        if let Some(window) = a.window {
            in_range(keys, "sliding_window", window, i32::MAX as u64)?;
        }
        if !(a.scale.is_finite() && a.scale > 0.0) {
            let message = format!("{}; a finite number > 0 is expected", a.scale);
            return Err(keys.invalid("attention_multiplier", message));
        }
        if !layer.residual_scale.is_finite() {
            let message = format!("{}; a finite number is expected", layer.residual_scale);
            return Err(keys.invalid("residual_multiplier", message));
        }
    }
    Ok(())
}

fn dtype(c: &Object) -> Result<DType, FrontendError> {
    let key = if c.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    match c.text(key)? {
        None | Some("float32") => Ok(DType::F32),
        Some("float16") => Ok(DType::F16),
        Some("bfloat16") => Ok(DType::BF16),
        Some(other) => {
            Err(c.unsupported(key, format!("`{}`; float32, float16 and bfloat16 are accepted", shown(other))))
        }
    }
}
