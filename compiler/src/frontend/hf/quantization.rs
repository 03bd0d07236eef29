//! `quantization_config`: FP8 as transformers writes it (`fp8`: DeepSeek, Qwen3-FP8) and as compressed-tensors does
//! (`float-quantized`).

use crate::frontend::error::{FrontendError, shown};
use crate::frontend::json::Object;
use crate::frontend::quantization::{ActivationScales, Quantization, WeightScales};
use serde_json::Value;

/// Reads the key, if it is there.
///
/// # Errors
/// Names the key that is missing, of another type, or unsupported.
pub(super) fn read(c: &Object) -> Result<Option<Quantization>, FrontendError> {
    let Some(q) = c.object("quantization_config")? else { return Ok(None) };
    match q.text("quant_method")? {
        Some("fp8") => fine_grained(&q).map(Some),
        Some("compressed-tensors") => compressed(&q).map(Some),
        Some(other) => {
            let message =
                format!("`{}`; fp8 and compressed-tensors are accepted (and block-quantised GGUF)", shown(other));
            Err(q.unsupported("quant_method", message))
        }
        None => Err(q.invalid("quant_method", "missing; fp8 or compressed-tensors is expected")),
    }
}

/// Refuses a text value other than those accepted; a missing one counts as accepted.
fn only(object: &Object, key: &str, accepted: &[&str]) -> Result<(), FrontendError> {
    match object.text(key)? {
        Some(found) if !accepted.contains(&found) => {
            Err(object.unsupported(key, format!("`{}`; {} is accepted", shown(found), accepted.join(" or "))))
        }
        _ => Ok(()),
    }
}

/// Refuses a key that is there and not null.
fn none(object: &Object, key: &str) -> Result<(), FrontendError> {
    match object.get(key) {
        Some(found) => Err(object.unsupported(key, format!("{}; null is accepted", shown(&found.to_string())))),
        None => Ok(()),
    }
}

fn names(object: &Object, key: &str) -> Result<Vec<String>, FrontendError> {
    let Some(found) = object.get(key) else { return Ok(Vec::new()) };
    let list = found.as_array().and_then(|list| list.iter().map(|v| v.as_str().map(str::to_owned)).collect());
    list.ok_or_else(|| {
        object.invalid(key, format!("{}; a list of module names is expected", shown(&found.to_string())))
    })
}

/// A list of two positive integers.
fn block(object: &Object, key: &str) -> Result<Option<[u64; 2]>, FrontendError> {
    let Some(found) = object.get(key) else { return Ok(None) };
    let sizes: Option<Vec<u64>> = found.as_array().and_then(|list| list.iter().map(Value::as_u64).collect());
    match sizes.as_deref() {
        Some(&[rows, columns]) if rows > 0 && columns > 0 => Ok(Some([rows, columns])),
        _ => {
            let message =
                format!("{}; two positive integers such as [128, 128] are expected", shown(&found.to_string()));
            Err(object.invalid(key, message))
        }
    }
}

fn fine_grained(q: &Object) -> Result<Quantization, FrontendError> {
    only(q, "activation_scheme", &["dynamic"])?;
    only(q, "fmt", &["e4m3", "float8_e4m3fn"])?;
    none(q, "scale_fmt")?;
    let (weights, activations) = match block(q, "weight_block_size")? {
        Some([rows, columns]) => (WeightScales::Block { rows, columns }, ActivationScales::Group(columns)),
        None => (WeightScales::Tensor, ActivationScales::Token),
    };
    let mut kept = names(q, "modules_to_not_convert")?;
    kept.extend(names(q, "ignored_layers")?);
    Ok(Quantization { weights, activations, kept })
}

fn compressed(q: &Object) -> Result<Quantization, FrontendError> {
    only(q, "format", &["float-quantized"])?;
    only(q, "quantization_status", &["compressed", "frozen"])?;
    none(q, "kv_cache_scheme")?;
    let groups = q
        .object("config_groups")?
        .ok_or_else(|| q.invalid("config_groups", "missing; an object with one group is expected"))?;
    let keys: Vec<&String> = groups.entries().map(|(key, _)| key).collect();
    let &[key] = keys.as_slice() else {
        return Err(q.unsupported("config_groups", format!("{} groups; one is accepted", keys.len())));
    };
    let group = groups.object(key)?.ok_or_else(|| groups.invalid(key, "null; an object is expected"))?;
    if names(&group, "targets")? != ["Linear"] {
        let found = group.get("targets").map_or("missing".to_owned(), |t| shown(&t.to_string()));
        return Err(group.unsupported("targets", format!("{found}; [\"Linear\"] is accepted")));
    }
    none(&group, "output_activations")?;
    let part = |key: &str| {
        let part = group.object(key)?.ok_or_else(|| group.unsupported(key, "missing; 8-bit floats are accepted"))?;
        if part.unsigned("num_bits")? != Some(8) {
            let found = part.get("num_bits").map_or("missing".to_owned(), Value::to_string);
            return Err(part.unsupported("num_bits", format!("{found}; 8 is accepted")));
        }
        if part.text("type")? != Some("float") {
            let found = part.get("type").map_or("missing".to_owned(), |t| shown(&t.to_string()));
            return Err(part.unsupported("type", format!("{found}; \"float\" is accepted")));
        }
        if part.flag("symmetric")? == Some(false) {
            return Err(part.unsupported("symmetric", "false; true is accepted"));
        }
        Ok(part)
    };
    let (weights, inputs) = (part("weights")?, part("input_activations")?);
    if weights.flag("dynamic")? == Some(true) {
        return Err(weights.unsupported("dynamic", "true; false is accepted"));
    }
    if inputs.flag("dynamic")? != Some(true) {
        return Err(inputs.unsupported("dynamic", "false: activation scales of the checkpoint; true is accepted"));
    }
    let scales = match weights.text("strategy")? {
        Some("tensor") => WeightScales::Tensor,
        Some("channel") => WeightScales::Channel,
        Some("block") => match block(&weights, "block_structure")? {
            Some([rows, columns]) => WeightScales::Block { rows, columns },
            None => return Err(weights.invalid("block_structure", "missing; [128, 128] or the like is expected")),
        },
        other => {
            let message = format!("`{}`; tensor, channel and block are accepted", shown(other.unwrap_or("none")));
            return Err(weights.unsupported("strategy", message));
        }
    };
    let activations = match inputs.text("strategy")? {
        Some("token") => ActivationScales::Token,
        Some("group") => ActivationScales::Group(inputs.needed("group_size")?),
        other => {
            let message = format!("`{}`; token and group are accepted", shown(other.unwrap_or("none")));
            return Err(inputs.unsupported("strategy", message));
        }
    };
    Ok(Quantization { weights: scales, activations, kept: names(q, "ignore")? })
}
