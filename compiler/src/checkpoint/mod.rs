//! A model as the rest of the compiler sees it: config, tensors by canonical name, tokenizer.

pub mod graph;
mod open;
mod random;
mod stacked;
mod tensors;

use crate::frontend::{FrontendError, Mapping, TokenizerData};
use crate::models::{ModelConfig, StepOptions};
use indexmap::IndexMap;
use random::random_bytes;
use rayon::prelude::*;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weldment_ir::interpret::Bytes;
use weldment_ir::{DType, Graph};

/// Where weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightSource {
    /// The model's own files.
    Files,
    /// Made up from a seed; a directory with only `config.json` is then a model.
    Random {
        /// Equal seeds give equal weights.
        seed: u64,
    },
}

/// A tensor's entry: type, shape and where its bytes are.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub dtype: DType,
    pub shape: Vec<u64>,
    pub place: EntryPlace,
}

/// Where a tensor's bytes are.
#[derive(Debug, Clone)]
pub(super) enum EntryPlace {
    /// In the file of that index.
    File { file: usize, offset: usize, size: usize },
    /// Nowhere: generated.
    Random { seed: u64 },
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// Canonical name.
    pub name: &'a str,
    /// Element type as stored.
    pub dtype: DType,
    /// Dims, outermost first; projections are [out, in].
    pub shape: &'a [u64],
    /// Where the bytes are.
    pub source: TensorSource<'a>,
}

/// Where a tensor's bytes are.
#[derive(Debug, Clone)]
pub enum TensorSource<'a> {
    /// In a mapped file.
    File {
        /// The file.
        path: &'a Path,
        /// Byte offset in it.
        offset: usize,
        /// The tensor's bytes, little-endian, row-major.
        bytes: &'a [u8],
    },
    /// Generated from this seed.
    Random {
        /// The seed.
        seed: u64,
    },
}

impl<'a> TensorView<'a> {
    /// The tensor's bytes, little-endian, row-major: borrowed from the file, or generated now (and each time).
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        match self.source {
            TensorSource::File { bytes, .. } => Cow::Borrowed(bytes),
            TensorSource::Random { seed } => Cow::Owned(random_bytes(seed, self.name, self.dtype, self.shape)),
        }
    }

    /// BLAKE3 of the bytes; of a generated tensor, of everything that determines them.
    pub fn content_hash(&self) -> [u8; 32] {
        match self.source {
            TensorSource::File { bytes, .. } => *blake3::hash(bytes).as_bytes(),
            TensorSource::Random { seed } => {
                let recipe = format!("weldment-random-1\0{seed}\0{}\0{}\0{:?}", self.name, self.dtype, self.shape);
                *blake3::hash(recipe.as_bytes()).as_bytes()
            }
        }
    }
}

/// An opened model.
#[derive(Debug)]
pub struct Checkpoint {
    /// Sizes and switches.
    pub config: ModelConfig,
    /// Tokenizer, if the model brings one.
    pub tokenizer: Option<TokenizerData>,
    path: PathBuf,
    files: Vec<Arc<Mapping>>,
    tensors: IndexMap<String, Entry>,
}

impl Checkpoint {
    /// The GGUF file or directory it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Canonical tensor names, in file order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor of a canonical (Hugging Face) name such as `model.layers.0.self_attn.q_proj.weight`.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let (name, entry) = self.tensors.get_key_value(name)?;
        let source = match entry.place {
            EntryPlace::File { file, offset, size } => {
                let mapping = self.files.get(file)?;
                TensorSource::File {
                    path: mapping.path(),
                    offset,
                    bytes: mapping.bytes().get(offset..offset.checked_add(size)?)?,
                }
            }
            EntryPlace::Random { seed } => TensorSource::Random { seed },
        };
        Some(TensorView { name, dtype: entry.dtype, shape: &entry.shape, source })
    }

    /// The tensor's bytes with shared ownership, for the interpreter: those of a file without a copy.
    pub fn shared_bytes(&self, name: &str) -> Option<Bytes> {
        match self.tensors.get(name)?.place {
            EntryPlace::File { file, offset, size } => {
                Bytes::new(Arc::clone(self.files.get(file)?) as _, offset..offset.checked_add(size)?)
            }
            EntryPlace::Random { .. } => {
                let bytes = self.tensor(name)?.bytes().into_owned();
                let range = 0..bytes.len();
                Bytes::new(Arc::new(bytes), range)
            }
        }
    }

    /// [`TensorView::content_hash`] of each named tensor, in order, computed in parallel; `None` where there is no such tensor.
    pub fn content_hashes(&self, names: &[&str]) -> Vec<Option<[u8; 32]>> {
        names.par_iter().map(|name| self.tensor(name).map(|t| t.content_hash())).collect()
    }
}

/// Builds the graph of `step` for `checkpoint`, after checking every tensor that it needs; see [`crate::models::build`].
///
/// # Errors
/// If a tensor is missing, misshapen or of a wrong dtype, or an option is out of range.
pub fn build_step(checkpoint: &Checkpoint, options: &StepOptions) -> Result<Graph, FrontendError> {
    crate::models::build(&checkpoint.config, &mut tensors::Stored(checkpoint), options)
}
