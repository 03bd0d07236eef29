//! Model definitions: a checkpoint in, the graph of its one ragged entry `step` out.
//!
//! One file a family says what sets it apart; `decoder` builds what they share. A new family is a file and a row here.

mod decoder;
mod llama;
mod qwen2;
mod qwen3;

use crate::frontend::{Architecture, Checkpoint, FrontendError, ModelConfig, Place};
use weldment_ir::{DType, Graph};

/// Positions in one block of the KV cache.
pub const KV_BLOCK: u64 = 16;

/// What the caller fixes about the entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepOptions {
    /// Arithmetic and cache dtype: f32, f16 or bf16. [`ModelConfig::dtype`] is the default.
    pub dtype: DType,
    /// Most tokens in one step (symbol T, and R).
    pub max_tokens: u64,
    /// Most sequences in one step (symbol B).
    pub max_seqs: u64,
    /// Most positions of one sequence; whole KV blocks are provided for it (symbols P and N).
    pub max_seq_len: u64,
}

/// What sets a family apart from the plain decoder.
struct Family {
    architecture: Architecture,
    /// RMS norms on each head of q and k.
    qk_norm: bool,
    /// Biases on q, k and v: always, never, or as the checkpoint says.
    qkv_bias: Option<bool>,
}

/// Every family.
const FAMILIES: [&Family; 3] = [&llama::FAMILY, &qwen2::FAMILY, &qwen3::FAMILY];

impl Family {
    /// Switches that a config of this family must have; a GGUF file states them only by the tensors it holds.
    fn check(&self, checkpoint: &Checkpoint) -> Result<(), FrontendError> {
        let config: &ModelConfig = &checkpoint.config;
        let wrong = |part: &str, found: bool| {
            let (found, expected) = if found { ("present", "none is") } else { ("missing", "they are") };
            let name = format!("model.layers.0.self_attn.{part}");
            let message = format!("{found}; {expected} expected of {}", self.architecture);
            Err(FrontendError::invalid(checkpoint.path(), Place::Tensor(name), message))
        };
        if config.qk_norm != self.qk_norm {
            return wrong("q_norm.weight", config.qk_norm);
        }
        match self.qkv_bias {
            Some(expected) if config.qkv_bias != expected => wrong("q_proj.bias", config.qkv_bias),
            _ => Ok(()),
        }
    }
}

/// Builds the graph of `step` for `checkpoint`, one node per model op, after checking every tensor against the config.
///
/// Inputs (i32): `tokens` [T], `positions` [T], `sequence_ids` [T], `block_tables` [B, P], `logit_rows` [R]. Result: `logits`
/// [R, vocab], f32. States: `layers.{i}.k_cache` [N, Hkv, D, 16] and `layers.{i}.v_cache` [N, Hkv, 16, D].
///
/// # Errors
/// If a tensor is missing, misshapen or of a wrong dtype, or an option is out of range.
pub fn build_step(checkpoint: &Checkpoint, options: &StepOptions) -> Result<Graph, FrontendError> {
    let architecture = checkpoint.config.architecture;
    let family = FAMILIES.iter().find(|f| f.architecture == architecture).ok_or_else(|| {
        FrontendError::unsupported(checkpoint.path(), Place::File, format!("there is no definition of {architecture}"))
    })?;
    family.check(checkpoint)?;
    checkpoint.check_tensors()?;
    decoder::build(checkpoint, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_has_a_family() {
        for architecture in Architecture::ALL {
            assert!(FAMILIES.iter().any(|f| f.architecture == architecture), "{architecture}");
        }
    }
}
