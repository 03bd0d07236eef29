//! Hugging Face model directories.

mod added;
mod quantization;
mod safetensors;
mod tokenizer;

use super::error::{FrontendError, Place, shown};
use super::json::Object;
use super::mapped_file::Mapping;
use super::quantization::Quantization;
use super::tokenizer::TokenizerData;
use indexmap::{IndexMap, IndexSet};
use serde_json::Value;
use std::path::{Component, Path};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What a directory says of its model, and its tokenizer.
#[derive(Debug)]
pub struct Directory {
    /// `config.json`.
    pub config: Object,
    /// `generation_config.json`.
    pub generation: Option<Object>,
    /// `quantization_config` of the config.
    pub quantization: Option<Quantization>,
    /// Tokenizer and chat template.
    pub tokenizer: Option<TokenizerData>,
}

/// A tensor of one of several files.
pub(crate) type Stored = (usize, safetensors::TensorInfo);

/// Tensors by name, and the files that they are in.
pub(crate) type Weights = (Vec<Mapping>, IndexMap<String, Stored>);

/// Reads everything but the weights.
///
/// # Errors
/// Names the file and the key.
pub fn read(directory: &Path) -> Result<Directory, FrontendError> {
    let path = directory.join("config.json");
    let config = Object::read(&path)?.ok_or_else(|| {
        FrontendError::invalid(&path, Place::File, "missing; a GGUF file or a directory with a config.json is expected")
    })?;
    let generation = Object::read(&directory.join("generation_config.json"))?;
    let quantization = quantization::read(&config)?;
    let tokenizer = tokenizer::read_tokenizer(directory, config.text("model_type")?.unwrap_or_default())?;
    Ok(Directory { config, generation, quantization, tokenizer })
}

/// Maps the weights: one `model.safetensors` or the shards that its index lists.
///
/// # Errors
/// Names the file and the tensor or byte.
pub(crate) fn weights(directory: &Path) -> Result<Weights, FrontendError> {
    match Object::read(&directory.join(INDEX))? {
        Some(index) => read_shards(directory, &index),
        None => read_single(directory),
    }
}

fn read_single(directory: &Path) -> Result<Weights, FrontendError> {
    let path = directory.join(SINGLE);
    if !path.exists() {
        let message = format!(
            "no {SINGLE} and no {INDEX} in it; one of them is expected, or random weights (--weights random:SEED)"
        );
        return Err(FrontendError::invalid(directory, Place::File, message));
    }
    let mapping = Mapping::open(&path)?;
    let tensors =
        safetensors::read_header(&mapping)?.iter().map(|(name, info)| (name.clone(), (0, info.clone()))).collect();
    Ok((vec![mapping], tensors))
}

fn read_shards(directory: &Path, index: &Object) -> Result<Weights, FrontendError> {
    let map = index
        .object("weight_map")?
        .ok_or_else(|| index.invalid("weight_map", "missing; an object of tensor: file is expected"))?;
    let mut shards: IndexSet<&str> = IndexSet::new();
    let mut wanted = Vec::new();
    for (tensor, file) in map.entries() {
        let Value::String(file) = file else { return Err(map.invalid(tensor, "a file name is expected")) };
        // A shard lies beside its index: one plain component, so that no path leaves the directory.
        let plain = matches!(Path::new(file).components().collect::<Vec<_>>()[..], [Component::Normal(part)] if part == file.as_str());
        if !plain || file.contains(['/', '\\', '\0']) {
            return Err(map.invalid(
                tensor,
                format!("file `{}`; the name of a file in the model's directory is expected", shown(file)),
            ));
        }
        wanted.push((tensor, shards.insert_full(file).0));
    }
    let mut files = Vec::with_capacity(shards.len());
    let mut headers = Vec::with_capacity(shards.len());
    for shard in &shards {
        let mapping = Mapping::open(&directory.join(shard))?;
        headers.push(safetensors::read_header(&mapping)?);
        files.push(mapping);
    }
    let mut tensors = IndexMap::with_capacity(wanted.len());
    for (tensor, file) in wanted {
        let info = headers.get(file).and_then(|h| h.get(tensor)).ok_or_else(|| {
            map.invalid(tensor, format!("`{}` has no such tensor", shards.get_index(file).map_or("", |f| f)))
        })?;
        tensors.insert(tensor.clone(), (file, info.clone()));
    }
    Ok((files, tensors))
}
