//! Model definitions: a config in, the graph of its one ragged entry `step` out.
//!
//! [`spec`] says what a decoder may be made of, [`families`] which of it each family is, [`decoder`] builds the graph. A new dense
//! family is a file in `families/` and its line there.

mod config;
mod decoder;
mod families;
pub mod family;
mod plain;
pub mod rope;
pub mod spec;
mod tensor_names;
pub mod tensors;

pub use config::ModelConfig;
pub use tensor_names::ours;

use crate::frontend::FrontendError;
use std::path::Path;
use weldment_ir::{DType, Graph};

/// Positions in one block of the KV cache, where nothing else is asked for.
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
    /// Positions in one block of the KV cache.
    pub kv_block: u64,
}

/// Builds the graph of `step` over `tensors`, one node per model op.
///
/// Inputs (i32): `tokens` [T], `positions` [T], `sequence_ids` [T], `block_tables` [B, P], `logit_rows` [R]. Result: `logits`
/// [R, vocab], f32. States: `layers.{i}.k_cache` [N, Hkv, D, S] and `layers.{i}.v_cache` [N, Hkv, S, D],
/// S being `kv_block`.
///
/// # Errors
/// If a tensor is missing, misshapen or of a wrong dtype, or an option is out of range.
pub fn build(
    config: &ModelConfig,
    tensors: &mut dyn tensors::Tensors,
    options: &StepOptions,
) -> Result<Graph, FrontendError> {
    decoder::build(config, tensors, options)
}

/// The tensors that a model of `config`, whose files are at `path`, needs, in the order of use, with the dtypes of generated ones.
///
/// # Errors
/// As [`build`].
pub fn needed(config: &ModelConfig, path: &Path) -> Result<Vec<(tensors::Needed, DType)>, FrontendError> {
    let quantization = config.quantization.as_ref();
    let mut declared = tensors::Declared { path, dtype: config.dtype, quantization, list: Vec::new() };
    let options = StepOptions { dtype: config.dtype, max_tokens: 1, max_seqs: 1, max_seq_len: 1, kv_block: KV_BLOCK };
    build(config, &mut declared, &options)?;
    Ok(declared.list)
}
