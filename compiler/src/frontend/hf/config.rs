//! The model config from `config.json`, in today's spelling (`rope_parameters`, `dtype`) and older ones (`rope_theta`,
//! `rope_scaling` with `rope_type` or `type`, `torch_dtype`).

use super::json::Object;
use super::quantization;
use crate::frontend::config::{Architecture, ModelConfig, RopeConfig, RopeKind};
use crate::frontend::error::{FrontendError, shown};
use std::path::Path;
use weldment_ir::DType;

/// Reads and checks the config; `generation` is `generation_config.json`, whose end-of-sequence ids go first.
///
/// # Errors
/// Names the key that is missing, of another type, or unsupported.
pub(super) fn read_config(path: &Path, c: &Object, generation: Option<&Object>) -> Result<ModelConfig, FrontendError> {
    let name =
        c.text("model_type")?.ok_or_else(|| c.invalid("model_type", "missing; llama, qwen2 or qwen3 is expected"))?;
    let architecture = Architecture::from_name(name).ok_or_else(|| {
        c.unsupported("model_type", format!("architecture `{}`; llama, qwen2 and qwen3 are accepted", shown(name)))
    })?;
    refuse_variants(c)?;
    let (hidden, heads) = (c.needed("hidden_size")?, c.needed("num_attention_heads")?);
    let head_dim = match c.unsigned("head_dim")? {
        Some(n) => n,
        // Qwen3 alone does not derive it.
        None if architecture == Architecture::Qwen3 => 128,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    let attention_bias = c.flag("attention_bias")?.unwrap_or(false);
    let bos = match generation {
        Some(g) if g.get("bos_token_id").is_some() => g.ids("bos_token_id")?,
        _ => c.ids("bos_token_id")?,
    };
    let mut eos_ids = match generation {
        Some(g) => g.ids("eos_token_id")?,
        None => Vec::new(),
    };
    if eos_ids.is_empty() {
        eos_ids = c.ids("eos_token_id")?;
    }
    eos_ids.sort_unstable();
    eos_ids.dedup();
    let config = ModelConfig {
        architecture,
        hidden,
        layers: c.needed("num_hidden_layers")?,
        heads,
        kv_heads: c.unsigned("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        intermediate: c.needed("intermediate_size")?,
        vocab: c.needed("vocab_size")?,
        rms_eps: c.real("rms_norm_eps")?.unwrap_or(1e-6),
        rope: rope(c, head_dim)?,
        tied_embeddings: c.flag("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: architecture == Architecture::Qwen2 || attention_bias,
        o_bias: architecture != Architecture::Qwen2 && attention_bias,
        mlp_bias: c.flag("mlp_bias")?.unwrap_or(false),
        qk_norm: architecture == Architecture::Qwen3,
        max_positions: c.unsigned("max_position_embeddings")?.unwrap_or(2048),
        bos_id: bos.first().copied(),
        eos_ids,
        dtype: dtype(c)?,
        quantization: quantization::read(c)?,
    };
    config.check(path)?;
    Ok(config)
}

/// Refuses what would change the arithmetic and has no implementation.
fn refuse_variants(c: &Object) -> Result<(), FrontendError> {
    if let Some(act) = c.text("hidden_act")?.filter(|act| !matches!(*act, "silu" | "swish")) {
        return Err(c.unsupported("hidden_act", format!("activation `{}`; silu is accepted", shown(act))));
    }
    if c.flag("use_sliding_window")?.unwrap_or(false) {
        return Err(c.unsupported("use_sliding_window", "true; full attention is accepted"));
    }
    if let Some(kinds) = c.get("layer_types") {
        let full = |kind: &serde_json::Value| kind.as_str() == Some("full_attention");
        if !kinds.as_array().is_some_and(|kinds| kinds.iter().all(full)) {
            return Err(c.unsupported(
                "layer_types",
                format!("{}; a list of \"full_attention\" is accepted", shown(&kinds.to_string())),
            ));
        }
    }
    Ok(())
}

fn rope(c: &Object, head_dim: u64) -> Result<RopeConfig, FrontendError> {
    let today = c.object("rope_parameters")?;
    let scaling = match &today {
        Some(_) => None,
        None => c.object("rope_scaling")?,
    };
    let theta = match &today {
        Some(r) => r.real("rope_theta")?,
        None => None,
    };
    let theta = match theta {
        Some(theta) => theta,
        None => c.real("rope_theta")?.unwrap_or(10000.0),
    };
    let kind = match today.as_ref().or(scaling.as_ref()) {
        Some(r) => rope_kind(c, r)?,
        None => RopeKind::Default,
    };
    const PARTIAL: &str = "partial_rotary_factor";
    for object in [today.as_ref(), Some(c)].into_iter().flatten() {
        if let Some(part) = object.real(PARTIAL)?.filter(|part| *part != 1.0) {
            let message = format!("partial rotary embedding, {part} of a head; 1, the whole head, is accepted");
            return Err(object.unsupported(PARTIAL, message));
        }
    }
    Ok(RopeConfig { theta, kind, interleaved: false, rotary_dim: head_dim })
}

fn rope_kind(c: &Object, r: &Object) -> Result<RopeKind, FrontendError> {
    // `type` is the legacy spelling.
    let key = if r.get("rope_type").is_some() { "rope_type" } else { "type" };
    match r.text(key)?.unwrap_or("default") {
        "default" => Ok(RopeKind::Default),
        "linear" => {
            let factor = r.real("factor")?;
            let factor = factor.ok_or_else(|| r.invalid("factor", "missing; linear rope scaling needs it"))?;
            Ok(RopeKind::Linear { factor })
        }
        "llama3" => {
            let needed =
                |key: &str| r.real(key)?.ok_or_else(|| r.invalid(key, "missing; llama3 rope scaling needs it"));
            let original = match r.unsigned("original_max_position_embeddings")? {
                Some(n) => n,
                None => c.needed("max_position_embeddings")?,
            };
            Ok(RopeKind::Llama3 {
                factor: needed("factor")?,
                low: needed("low_freq_factor")?,
                high: needed("high_freq_factor")?,
                original,
            })
        }
        other => {
            Err(r.unsupported(key, format!("rope type `{}`; default, linear and llama3 are accepted", shown(other))))
        }
    }
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
