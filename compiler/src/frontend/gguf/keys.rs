//! GGUF metadata spelled as a `config.json`, so that families read one spelling. Errors keep the file's own keys.

use super::GgufFile;
use crate::frontend::error::{FrontendError, Place};
use crate::frontend::json::Object;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use weldment_ir::DType;

/// Texts of control tokens that end a turn, whatever `eos_token_id` says; the same llama.cpp stops at.
const END_OF_TURN: [&str; 7] =
    ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>"];

/// (key after `architecture.`, ours) of integers.
const INTEGERS: [(&str, &str); 8] = [
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("attention.head_count", "num_attention_heads"),
    ("feed_forward_length", "intermediate_size"),
    ("context_length", "max_position_embeddings"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("rope.dimension_count", "rotary_dim"),
];
/// The same of floats.
const REALS: [(&str, &str); 7] = [
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.scale", "attention_multiplier"),
    ("embedding_scale", "embedding_multiplier"),
    ("residual_scale", "residual_multiplier"),
    ("logit_scale", "logits_scaling"),
    ("rope.freq_base", "rope_theta"),
    ("rope.freq_base_swa", "rope_local_base_freq"),
];
/// Keys of what there is no definition of, unless they are 0.
const REFUSED: [&str; 3] = ["expert_count", "attn_logit_softcapping", "final_logit_softcapping"];

struct Keys<'f> {
    file: &'f GgufFile,
    architecture: &'f str,
    map: Map<String, Value>,
    spelled: BTreeMap<String, String>,
}

impl Keys<'_> {
    fn theirs(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    fn set(&mut self, ours: &str, suffix: &str, value: impl Into<Value>) {
        self.spelled.insert(ours.to_owned(), self.theirs(suffix));
        self.map.insert(ours.to_owned(), value.into());
    }
}

/// The keys of a file, as `config.json` spells them.
///
/// # Errors
/// Names the key that is missing, of another type, or unsupported.
pub(crate) fn read_keys(file: &GgufFile) -> Result<Object, FrontendError> {
    const ARCHITECTURE: &str = "general.architecture";
    let path = file.mapping().path();
    let architecture = file.text(ARCHITECTURE)?.ok_or_else(|| file.key_error(ARCHITECTURE, "missing"))?;
    let mut keys = Keys { file, architecture, map: Map::new(), spelled: BTreeMap::new() };
    keys.map.insert("model_type".into(), architecture.into());
    keys.spelled.insert("model_type".into(), ARCHITECTURE.into());
    sizes(&mut keys)?;
    windows(&mut keys)?;
    rope_scaling(&mut keys)?;
    of_tensors(&mut keys)?;
    let bos = token_id(file, "tokenizer.ggml.bos_token_id")?;
    keys.map.insert("bos_token_id".into(), bos.into());
    keys.map.insert("eos_token_id".into(), eos_ids(file)?.into());
    Ok(Object::translated(path, keys.map, keys.spelled))
}

fn sizes(keys: &mut Keys<'_>) -> Result<(), FrontendError> {
    let file = keys.file;
    // A key that is missing is null, so that errors know what the file would call it.
    for (suffix, ours) in INTEGERS {
        let value = file.unsigned(&keys.theirs(suffix))?;
        keys.set(ours, suffix, value);
    }
    for (suffix, ours) in REALS {
        let value = file.real(&keys.theirs(suffix))?;
        keys.set(ours, suffix, value);
    }
    let unsupported =
        |key: String, message: String| Err(FrontendError::unsupported(file.mapping().path(), Place::Key(key), message));
    for suffix in REFUSED {
        let key = keys.theirs(suffix);
        let found = match file.metadata().get(&key) {
            Some(super::Value::Real(x)) => Some(*x),
            Some(_) => file.unsigned(&key)?.map(|n| n as f64),
            None => None,
        };
        if let Some(n) = found.filter(|n| *n != 0.0) {
            return unsupported(key, format!("{n}; models without it are accepted"));
        }
    }
    let stated = |ours: &str| keys.map.get(ours).and_then(Value::as_u64);
    let heads = stated("num_attention_heads").unwrap_or(0);
    let head_dim = stated("head_dim").or_else(|| stated("hidden_size")?.checked_div(heads)).unwrap_or(0);
    let key = keys.theirs("attention.value_length");
    match file.unsigned(&key)? {
        Some(n) if n != head_dim => {
            unsupported(key, format!("{n} beside a key length of {head_dim}; equal ones are accepted"))
        }
        _ => Ok(()),
    }
}

/// The window, and which layers have it.
fn windows(keys: &mut Keys<'_>) -> Result<(), FrontendError> {
    const WINDOW: &str = "attention.sliding_window";
    const PATTERN: &str = "attention.sliding_window_pattern";
    let file = keys.file;
    if let Some(n) = file.unsigned(&keys.theirs(WINDOW))?.filter(|n| *n != 0) {
        keys.set("sliding_window", WINDOW, n);
    }
    let pattern = keys.theirs(PATTERN);
    match file.metadata().get(&pattern) {
        None => {}
        // One flag a layer.
        Some(super::Value::Array(_)) => {
            let kind = |slides: &f64| if *slides != 0.0 { "sliding_attention" } else { "full_attention" };
            let flags = file.numbers(&pattern)?.unwrap_or_default();
            keys.set("layer_types", PATTERN, flags.iter().map(kind).collect::<Vec<_>>());
        }
        // The last of so many layers sees everything.
        Some(_) => {
            if let Some(every) = file.unsigned(&pattern)? {
                keys.set("sliding_window_pattern", PATTERN, every);
            }
        }
    }
    Ok(())
}

/// As llama.cpp has it: a factor without a type scales linearly, an older key is read where the newer one is missing, divisors are
/// tensors, and the attention factor of yarn multiplies the usual one.
fn rope_scaling(keys: &mut Keys<'_>) -> Result<(), FrontendError> {
    let file = keys.file;
    let at = |suffix: &str| keys.theirs(&format!("rope.scaling.{suffix}"));
    let factor = match file.real(&at("factor"))? {
        Some(factor) => Some(factor),
        None => file.real(&keys.theirs("rope.scale_linear"))?,
    };
    let factor = factor.filter(|f| *f != 0.0 && *f != 1.0);
    let kind = file.text(&at("type"))?;
    let attention_factor = file.real(&at("attn_factor"))?;
    let original = file.unsigned(&at("original_context_length"))?;
    let divisors = tensor_values(file, "rope_freqs.weight")?;
    let sets = [tensor_values(file, "rope_factors_short.weight")?, tensor_values(file, "rope_factors_long.weight")?];
    let mut scaling = Map::new();
    let mut set = |key: &str, value: Value| scaling.insert(key.into(), value);
    match (kind, factor, divisors, sets) {
        (None | Some("none" | "longrope"), _, None, [Some(short), Some(long)]) => {
            set("rope_type", "longrope".into());
            set("short_factor", short.into());
            set("long_factor", long.into());
            set("attention_factor", attention_factor.unwrap_or(1.0).into());
        }
        (Some("none"), _, divisors, _) | (None | Some("linear"), None, divisors, _) => {
            let Some(divisors) = divisors else { return Ok(()) };
            set("rope_type", "divided".into());
            set("divisors", divisors.into());
        }
        (None | Some("linear"), Some(factor), Some(_), _) => {
            let message =
                format!("linear rope scaling by {factor} beside a `rope_freqs.weight`; one of them is accepted");
            return Err(FrontendError::unsupported(file.mapping().path(), Place::Key(at("type")), message));
        }
        (None | Some("linear"), Some(factor), None, _) => {
            set("rope_type", "linear".into());
            set("factor", factor.into());
        }
        (Some("yarn"), factor, None, _) => {
            let factor = factor.unwrap_or(1.0);
            let usual = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
            set("rope_type", "yarn".into());
            set("factor", factor.into());
            set("attention_factor", (usual * attention_factor.unwrap_or(1.0)).into());
            for (suffix, ours) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
                set(ours, file.real(&at(suffix))?.into());
            }
        }
        // Refused by name where configs are read.
        (Some(other), _, _, _) => _ = set("rope_type", other.into()),
    }
    set("original_max_position_embeddings", original.into());
    for ours in ["factor", "rope_type", "original_max_position_embeddings"] {
        let suffix = match ours {
            "rope_type" => "type",
            "factor" => "factor",
            _ => "original_context_length",
        };
        keys.spelled.insert(format!("rope_scaling.{ours}"), keys.theirs(&format!("rope.scaling.{suffix}")));
    }
    keys.set("rope_scaling", "rope.scaling", scaling);
    Ok(())
}

/// The values of a small f32 tensor, if there is one of that name.
fn tensor_values(file: &GgufFile, name: &str) -> Result<Option<Vec<f64>>, FrontendError> {
    let Some(info) = file.tensors().get(name) else { return Ok(None) };
    let bytes = file.mapping().bytes().get(info.offset..info.offset.saturating_add(info.size));
    match bytes.filter(|bytes| info.dtype == DType::F32 && bytes.len() <= 1 << 20) {
        Some(bytes) => {
            let values = bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b)));
            Ok(Some(values.map(|x| if x.is_finite() { x } else { 0.0 }).collect()))
        }
        None => {
            let message = format!("{} of shape {:?}; a list of f32 is expected", info.dtype, info.shape);
            Err(FrontendError::invalid(file.mapping().path(), Place::Tensor(name.to_owned()), message))
        }
    }
}

/// What only the tensors tell: the vocabulary, biases, whether the output projection is the embedding, and the dtype.
fn of_tensors(keys: &mut Keys<'_>) -> Result<(), FrontendError> {
    const EMBEDDING: &str = "token_embd.weight";
    let file = keys.file;
    let embedding = file.tensors().get(EMBEDDING).ok_or_else(|| {
        let place = Place::Tensor(EMBEDDING.into());
        FrontendError::invalid(file.mapping().path(), place, "missing; [vocabulary, hidden] is expected")
    })?;
    let has = |name: &str| file.tensors().contains_key(name);
    let dtype = match embedding.dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    };
    let found = json!({
        "vocab_size": embedding.shape.first().copied().unwrap_or(0),
        "tie_word_embeddings": !has("output.weight"),
        "attention_bias": has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias"),
        "attention_output_bias": has("blk.0.attn_output.bias"),
        "mlp_bias": has("blk.0.ffn_gate.bias"),
        "torch_dtype": dtype,
    });
    if let Value::Object(found) = found {
        keys.map.extend(found);
    }
    Ok(())
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
    Ok(ids)
}
