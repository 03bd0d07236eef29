//! The model config from GGUF metadata.

use super::GgufFile;
use crate::frontend::config::{Architecture, ModelConfig, RopeConfig, RopeKind};
use crate::frontend::error::{FrontendError, Place, shown};
use weldment_ir::DType;

/// Texts of control tokens that end a turn, whatever `eos_token_id` says; the same llama.cpp stops at.
const END_OF_TURN: [&str; 6] =
    ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>"];

/// Reads and checks the config.
///
/// # Errors
/// Names the key that is missing, of another type, or unsupported.
pub(crate) fn read_config(file: &GgufFile) -> Result<ModelConfig, FrontendError> {
    let path = file.mapping().path();
    let unsupported =
        |key: &str, message: String| FrontendError::unsupported(path, Place::Key(key.to_owned()), message);
    let name = file.text("general.architecture")?.ok_or_else(|| file.key_error("general.architecture", "missing"))?;
    let architecture = Architecture::from_name(name).ok_or_else(|| {
        unsupported(
            "general.architecture",
            format!("architecture `{}`; llama, qwen2 and qwen3 are accepted", shown(name)),
        )
    })?;
    let key = |suffix: &str| format!("{architecture}.{suffix}");
    let maybe = |suffix: &str| file.unsigned(&key(suffix));
    let needed =
        |suffix: &str| maybe(suffix)?.ok_or_else(|| file.key_error(&key(suffix), "missing; an integer is expected"));

    for suffix in ["expert_count", "attention.sliding_window"] {
        if let Some(n) = maybe(suffix)?.filter(|n| *n != 0) {
            return Err(unsupported(&key(suffix), format!("{n}; models without it are accepted")));
        }
    }
    let embedding = file.tensors().get("token_embd.weight").ok_or_else(|| {
        FrontendError::invalid(
            path,
            Place::Tensor("token_embd.weight".into()),
            "missing; [vocabulary, hidden] is expected",
        )
    })?;
    let has = |name: &str| file.tensors().contains_key(name);

    let (hidden, heads) = (needed("embedding_length")?, needed("attention.head_count")?);
    let head_dim = match maybe("attention.key_length")? {
        Some(n) => n,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    if let Some(value) = maybe("attention.value_length")?.filter(|v| *v != head_dim) {
        return Err(unsupported(
            &key("attention.value_length"),
            format!("{value} beside a key length of {head_dim}; equal ones are accepted"),
        ));
    }
    let epsilon = key("attention.layer_norm_rms_epsilon");
    let config = ModelConfig {
        architecture,
        hidden,
        layers: needed("block_count")?,
        heads,
        kv_heads: maybe("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        intermediate: needed("feed_forward_length")?,
        vocab: embedding.shape.first().copied().unwrap_or(0),
        rms_eps: file.real(&epsilon)?.ok_or_else(|| file.key_error(&epsilon, "missing; a float is expected"))?,
        rope: rope(file, architecture, head_dim)?,
        tied_embeddings: !has("output.weight"),
        qkv_bias: has("blk.0.attn_q.bias"),
        o_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_gate.bias"),
        qk_norm: has("blk.0.attn_q_norm.weight"),
        max_positions: needed("context_length")?,
        bos_id: token_id(file, "tokenizer.ggml.bos_token_id")?,
        eos_ids: eos_ids(file)?,
        dtype: if embedding.dtype.is_compute_float() { embedding.dtype } else { DType::F32 },
        quantization: None,
    };
    config.check(path)?;
    Ok(config)
}

fn rope(file: &GgufFile, architecture: Architecture, head_dim: u64) -> Result<RopeConfig, FrontendError> {
    let key = |suffix: &str| format!("{architecture}.rope.{suffix}");
    let unsupported =
        |key: String, message: String| FrontendError::unsupported(file.mapping().path(), Place::Key(key), message);
    let dimensions = key("dimension_count");
    if let Some(rotary) = file.unsigned(&dimensions)?.filter(|n| *n != head_dim) {
        let message = format!("partial rotary embedding, {rotary} of {head_dim} elements of a head; all are accepted");
        return Err(unsupported(dimensions, message));
    }
    let scaling = key("scaling.type");
    // As llama.cpp has it: a factor without a type scales linearly, and the older key is read where the newer one is missing.
    let factor = match file.real(&key("scaling.factor"))? {
        Some(factor) => Some(factor),
        None => file.real(&key("scale_linear"))?,
    };
    let factor = factor.filter(|f| *f != 0.0 && *f != 1.0);
    let has_divisors = file.tensors().contains_key("rope_freqs.weight");
    let kind = match (file.text(&scaling)?, factor) {
        (Some("none"), _) | (None | Some("linear"), None) if has_divisors => RopeKind::Factors,
        (Some("none"), _) | (None | Some("linear"), None) => RopeKind::Default,
        (None | Some("linear"), Some(factor)) if has_divisors => {
            let message =
                format!("linear rope scaling by {factor} beside a `rope_freqs.weight`; one of them is accepted");
            return Err(unsupported(scaling, message));
        }
        (None | Some("linear"), Some(factor)) => RopeKind::Linear { factor },
        (Some(other), _) => {
            let message =
                format!("rope scaling `{}`; none, linear, or a `rope_freqs.weight` tensor, is accepted", shown(other));
            return Err(unsupported(scaling, message));
        }
    };
    Ok(RopeConfig {
        theta: file.real(&key("freq_base"))?.unwrap_or(10000.0),
        kind,
        // llama.cpp rotates adjacent pairs for llama (its converter permutes q and k rows) and halves for the Qwen family.
        interleaved: architecture == Architecture::Llama,
        rotary_dim: head_dim,
    })
}

/// A token id, checked to be a u32.
pub(super) fn token_id(file: &GgufFile, key: &str) -> Result<Option<u32>, FrontendError> {
    let to_id =
        |n| u32::try_from(n).map_err(|_| file.key_error(key, format!("token id {n}; one below 2^32 is expected")));
    file.unsigned(key)?.map(to_id).transpose()
}

fn eos_ids(file: &GgufFile) -> Result<Vec<u32>, FrontendError> {
    let mut ids = Vec::new();
    for kind in ["eos", "eot", "eom"] {
        ids.extend(token_id(file, &format!("tokenizer.ggml.{kind}_token_id"))?);
    }
    let tokens = file.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
    ids.extend((0u32..).zip(tokens).filter(|(_, text)| END_OF_TURN.contains(text)).map(|(id, _)| id));
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
