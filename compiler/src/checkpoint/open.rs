//! Opening a model: its files' config, tensors and tokenizer as one checkpoint.

use super::{Checkpoint, Entry, EntryPlace, WeightSource, stacked};
use crate::frontend::gguf::{self, GgufFile};
use crate::frontend::{FrontendError, Mapping, Place, Quantization, TokenizerData, hf, shown};
use crate::models::ModelConfig;
use crate::models::family::Format;
use indexmap::IndexMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

const EMBEDDING: &str = "model.embed_tokens.weight";
const OUTPUT: &str = "lm_head.weight";

impl Checkpoint {
    /// Opens a GGUF file, or a Hugging Face directory (or its `config.json`).
    ///
    /// # Errors
    /// If the path is neither, or anything in it is not as its format asks; see [`FrontendError`].
    pub fn open(path: &Path, weights: WeightSource) -> Result<Checkpoint, FrontendError> {
        let about = std::fs::metadata(path).map_err(|e| FrontendError::io(path, e))?;
        if about.is_dir() {
            return of_directory(path, weights);
        }
        if path.file_name().is_some_and(|name| name == "config.json") {
            return of_directory(path.parent().unwrap_or(Path::new(".")), weights);
        }
        let file = GgufFile::open(path)?;
        if let WeightSource::Random { .. } = weights {
            let message = "random weights are made for a directory with a config.json, not for a GGUF file";
            return Err(FrontendError::unsupported(path, Place::File, message));
        }
        of_gguf(file)
    }

    /// A checkpoint of checked parts: every entry lies inside its file.
    pub(super) fn from_parts(
        config: ModelConfig,
        tokenizer: Option<TokenizerData>,
        path: &Path,
        files: Vec<Mapping>,
        tensors: IndexMap<String, Entry>,
    ) -> Checkpoint {
        Checkpoint {
            config,
            tokenizer,
            path: path.to_owned(),
            files: files.into_iter().map(Arc::new).collect(),
            tensors,
        }
    }

    /// Reads a config that ties the output projection to the embedding by what the files hold: one table under either name is both,
    /// and an output projection of its own is used, as transformers does.
    fn settle_output(&mut self) {
        if !self.config.decoder.as_ref().is_some_and(|d| d.tied_embeddings) {
            return;
        }
        match (self.tensor(EMBEDDING), self.tensor(OUTPUT)) {
            (None, Some(_)) => {
                if let Some(table) = self.tensors.get(OUTPUT).cloned() {
                    self.tensors.insert(EMBEDDING.to_owned(), table);
                }
            }
            (Some(table), Some(output)) if table.dtype != output.dtype || table.bytes() != output.bytes() => {
                tracing::warn!(
                    "{}: the config ties {OUTPUT} to {EMBEDDING}, but the files hold two that differ: {OUTPUT} is used as it is",
                    self.path.display()
                );
                if let Some(decoder) = &mut self.config.decoder {
                    decoder.tied_embeddings = false;
                }
            }
            _ => {}
        }
    }
}

fn of_directory(path: &Path, weights: WeightSource) -> Result<Checkpoint, FrontendError> {
    let hf::Directory { config, generation, quantization, tokenizer } = hf::read(path)?;
    let config = ModelConfig::read(config, Format::HuggingFace, generation.as_ref(), quantization)?;
    if let WeightSource::Random { seed } = weights {
        return random(config, tokenizer, path, seed);
    }
    let (files, found) = hf::weights(path)?;
    let found = found.into_iter().map(|(name, (file, info))| {
        let place = EntryPlace::File { file, offset: info.offset, size: info.size };
        (name, Entry { dtype: info.dtype, shape: info.shape, place })
    });
    let needed = crate::models::needed(&config, path)?;
    let tensors = stacked::named(found, &config, &needed, Format::HuggingFace, path)?;
    let mut checkpoint = Checkpoint::from_parts(config, tokenizer, path, files, tensors);
    checkpoint.settle_output();
    Ok(checkpoint)
}

fn of_gguf(file: GgufFile) -> Result<Checkpoint, FrontendError> {
    let mut config = ModelConfig::read(gguf::read_keys(&file)?, Format::Gguf, None, None)?;
    let interleaved = config.family.is_some_and(|family| family.gguf.interleaved);
    for layer in config.decoder.iter_mut().flat_map(|d| &mut d.layers) {
        layer.attention.rope.interleaved = interleaved;
    }
    let tokenizer = gguf::read_tokenizer(&file)?;
    let path = file.mapping().path().to_owned();
    let found = file.tensors().iter().map(|(name, info)| {
        let place = EntryPlace::File { file: 0, offset: info.offset, size: info.size };
        (name.clone(), Entry { dtype: info.dtype, shape: info.shape.clone(), place })
    });
    let needed = crate::models::needed(&config, &path)?;
    let tensors = stacked::named(found, &config, &needed, Format::Gguf, &path)?;
    // A GGUF file holds what its model computes with, so a tensor that nothing reads is a part that would be left out.
    let needed: BTreeSet<&str> = needed.iter().map(|(n, _)| n.name.as_str()).collect();
    if let Some(name) = tensors.keys().find(|name| name.starts_with("model.layers.") && !needed.contains(name.as_str()))
    {
        let message = format!("present; none is expected of {}", config.architecture());
        return Err(FrontendError::invalid(&path, Place::Tensor(shown(name)), message));
    }
    Ok(Checkpoint::from_parts(config, tokenizer, &path, vec![file.into_mapping()], tensors))
}

/// A checkpoint of generated tensors, in the config's dtype.
fn random(
    config: ModelConfig,
    tokenizer: Option<TokenizerData>,
    path: &Path,
    seed: u64,
) -> Result<Checkpoint, FrontendError> {
    let entry = |dtype, shape| Entry { dtype, shape, place: EntryPlace::Random { seed } };
    let needed = crate::models::needed(&config, path)?;
    let tensors = needed.into_iter().map(|(needed, dtype)| (needed.name, entry(dtype, needed.shape))).collect();
    Ok(Checkpoint::from_parts(config, tokenizer, path, Vec::new(), tensors))
}

/// The name under which `checkpoint` stores the scales of a module's weight: the first of those known where there are none.
pub(super) fn scales_of(checkpoint: &Checkpoint, module: &str) -> String {
    let names = Quantization::SCALES.map(|part| format!("{module}.{part}"));
    let [first, ..] = &names;
    names.iter().find(|name| checkpoint.tensor(name).is_some()).unwrap_or(first).clone()
}
