//! Tensors of a file under our names. One that holds the rows of several of ours becomes several: rows lie one after the other, so
//! each is a part of its bytes.

use super::{Entry, EntryPlace};
use crate::frontend::{FrontendError, Place, Quantization, WeightScales, shown};
use crate::models::ModelConfig;
use crate::models::family::Format;
use crate::models::tensors::Needed;
use indexmap::IndexMap;
use std::collections::BTreeMap;
use std::path::Path;
use weldment_ir::DType;

/// The tensors of a file by our names; `needed` are those that the model asks for.
///
/// # Errors
/// If two have one name, or a tensor that holds several has other rows than those.
pub(super) fn named(
    found: impl Iterator<Item = (String, Entry)>,
    config: &ModelConfig,
    needed: &[(Needed, DType)],
    format: Format,
    path: &Path,
) -> Result<IndexMap<String, Entry>, FrontendError> {
    let rows = needed.iter().filter_map(|(needed, _)| Some((needed.name.as_str(), *needed.shape.first()?)));
    let rows: BTreeMap<&str, u64> = rows.collect();
    let mut tensors = IndexMap::new();
    for (theirs, entry) in found {
        let wrong = |message: String| FrontendError::invalid(path, Place::Tensor(theirs.clone()), message);
        let ours = match config.family {
            Some(family) => crate::models::ours(&theirs, family.spelling(format), format),
            None => vec![theirs.clone()],
        };
        let parts = match ours.len() {
            1 => vec![entry],
            _ => parts(&entry, &ours, &rows, config.quantization.as_ref()).map_err(wrong)?,
        };
        for (name, part) in ours.into_iter().zip(parts) {
            let message = format!("a second tensor is named `{}`", shown(&name));
            if tensors.insert(name, part).is_some() {
                return Err(wrong(message));
            }
        }
    }
    Ok(tensors)
}

/// `entry` cut into the rows of `ours`.
fn parts(
    entry: &Entry,
    ours: &[String],
    rows: &BTreeMap<&str, u64>,
    quantization: Option<&Quantization>,
) -> Result<Vec<Entry>, String> {
    let suffix = ours.first().and_then(|name| name.rsplit('.').next()).unwrap_or_default();
    let scales = Quantization::SCALES.contains(&suffix);
    let whole = match quantization {
        // A scale of the whole is that of each part.
        Some(Quantization { weights: WeightScales::Tensor, .. }) if scales => {
            return Ok(vec![entry.clone(); ours.len()]);
        }
        Some(Quantization { weights: WeightScales::Block { rows, .. }, .. }) if scales => (*rows).max(1),
        _ => 1,
    };
    let mut sizes = Vec::with_capacity(ours.len());
    for name in ours {
        let weight = if scales { name.replace(suffix, "weight") } else { name.clone() };
        let size = rows
            .get(weight.as_str())
            .ok_or_else(|| format!("rows of `{}`, which the model does not have", shown(&weight)))?;
        if !size.is_multiple_of(whole) {
            return Err(format!("{size} rows of `{weight}` end within a block of {whole}; whole blocks are accepted"));
        }
        sizes.push(size / whole);
    }
    let (total, stored) = (sizes.iter().sum::<u64>(), entry.shape.first().copied().unwrap_or(0));
    if total != stored || total == 0 {
        return Err(format!("shape {:?}; {total} rows are expected from the config: {sizes:?}", entry.shape));
    }
    let mut passed = 0;
    let mut parts = Vec::with_capacity(ours.len());
    for size in sizes {
        let mut part = entry.clone();
        part.shape[0] = size;
        if let EntryPlace::File { offset, size: bytes, .. } = &mut part.place {
            let row = *bytes / total as usize;
            *offset += passed as usize * row;
            *bytes = size as usize * row;
        }
        passed += size;
        parts.push(part);
    }
    Ok(parts)
}
