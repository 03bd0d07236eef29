//! A model as the rest of the compiler sees it: config, tensors by canonical name, tokenizer.

use super::config::ModelConfig;
use super::error::{FrontendError, Place, shown};
use super::gguf::{self, GgufFile};
use super::hf;
use super::layout::{Role, expected_tensors};
use super::mapping::Mapping;
use super::quantization::is_code;
use super::random::random_bytes;
use super::tokenizer::TokenizerData;
use indexmap::IndexMap;
use rayon::prelude::*;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weldment_ir::DType;
use weldment_ir::interpret::Bytes;

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
    /// Opens a GGUF file, or a Hugging Face directory (or its `config.json`).
    ///
    /// # Errors
    /// If the path is neither, or anything in it is not as its format asks; see [`FrontendError`].
    pub fn open(path: &Path, weights: WeightSource) -> Result<Checkpoint, FrontendError> {
        let about = std::fs::metadata(path).map_err(|e| FrontendError::io(path, e))?;
        if about.is_dir() {
            return hf::open(path, weights);
        }
        if path.file_name().is_some_and(|name| name == "config.json") {
            return hf::open(path.parent().unwrap_or(Path::new(".")), weights);
        }
        let file = GgufFile::open(path)?;
        if let WeightSource::Random { .. } = weights {
            let message = "random weights are made for a directory with a config.json, not for a GGUF file";
            return Err(FrontendError::unsupported(path, Place::File, message));
        }
        Checkpoint::from_gguf(file)
    }

    fn from_gguf(file: GgufFile) -> Result<Checkpoint, FrontendError> {
        let config = gguf::read_config(&file)?;
        let tokenizer = gguf::read_tokenizer(&file)?;
        let path = file.mapping().path().to_owned();
        let mut tensors = IndexMap::with_capacity(file.tensors().len());
        for (name, info) in file.tensors() {
            let place = EntryPlace::File { file: 0, offset: info.offset, size: info.size };
            let entry = Entry { dtype: info.dtype, shape: info.shape.clone(), place };
            if tensors.insert(gguf::canonical_name(name), entry).is_some() {
                let message = format!("a second tensor is named `{}`", shown(&gguf::canonical_name(name)));
                return Err(FrontendError::invalid(&path, Place::Tensor(name.clone()), message));
            }
        }
        Ok(Checkpoint { config, tokenizer, path, files: vec![Arc::new(file.into_mapping())], tensors })
    }

    /// A checkpoint of checked parts: every entry lies inside its file.
    pub(super) fn from_parts(
        config: ModelConfig,
        tokenizer: Option<TokenizerData>,
        path: &Path,
        files: Vec<Mapping>,
        tensors: IndexMap<String, Entry>,
    ) -> Checkpoint {
        let files = files.into_iter().map(Arc::new).collect();
        let mut checkpoint = Checkpoint { config, tokenizer, path: path.to_owned(), files, tensors };
        checkpoint.settle_output();
        checkpoint
    }

    /// Reads a config that ties the output projection to the embedding by what the files hold: one table under either name is both,
    /// and an output projection of its own is used, as transformers does.
    fn settle_output(&mut self) {
        const EMBEDDING: &str = "model.embed_tokens.weight";
        const OUTPUT: &str = "lm_head.weight";
        if !self.config.tied_embeddings {
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
                self.config.tied_embeddings = false;
            }
            _ => {}
        }
    }

    /// A checkpoint of generated tensors, in the config's dtype.
    pub(super) fn random(config: ModelConfig, tokenizer: Option<TokenizerData>, path: &Path, seed: u64) -> Checkpoint {
        let entry = |dtype, shape| Entry { dtype, shape, place: EntryPlace::Random { seed } };
        let mut tensors = IndexMap::new();
        for t in expected_tensors(&config) {
            let quantised = config.quantization.as_ref().zip(t.module()).filter(|(q, module)| q.converts(module));
            let (Some((q, module)), &[n, k]) = (quantised, t.shape.as_slice()) else {
                tensors.insert(t.name, entry(config.dtype, t.shape));
                continue;
            };
            tensors.insert(format!("{module}.weight_scale_inv"), entry(DType::F32, q.scale_shape([n, k]).to_vec()));
            tensors.insert(t.name, entry(DType::F8E4M3, t.shape));
        }
        Checkpoint { config, tokenizer, path: path.to_owned(), files: Vec::new(), tensors }
    }

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

    /// Checks that every tensor the config asks for is there, with its shape and a dtype that its role accepts.
    ///
    /// # Errors
    /// Names the first missing or misshapen tensor, with what was found.
    pub fn check_tensors(&self) -> Result<(), FrontendError> {
        for expected in expected_tensors(&self.config) {
            let wrong =
                |message| Err(FrontendError::invalid(&self.path, Place::Tensor(expected.name.clone()), message));
            match self.tensor(&expected.name) {
                None => return wrong(format!("missing; shape {:?} is expected", expected.shape)),
                Some(t) if t.shape != expected.shape => {
                    return wrong(format!("shape {:?}; {:?} is expected from the config", t.shape, expected.shape));
                }
                Some(t) => {
                    let quantised = self.config.quantization.as_ref().filter(|_| is_code(t.dtype));
                    if let Some((q, module)) = quantised.zip(expected.module()) {
                        q.scales(self, module, &t)?;
                        continue;
                    }
                    let (sound, accepted) = match expected.role {
                        Role::Embedding | Role::Projection if is_code(t.dtype) => {
                            (false, "f32, f16 or bf16, or a projection of a checkpoint with a quantization_config")
                        }
                        Role::Embedding | Role::Projection => (t.dtype.is_float(), "a float or block-quantised dtype"),
                        Role::Norm | Role::Bias => (t.dtype.is_compute_float(), "f32, f16 or bf16"),
                        Role::RopeFactors => (t.dtype == DType::F32, "f32"),
                    };
                    if !sound {
                        return wrong(format!("dtype {}; {accepted} is expected", t.dtype));
                    }
                }
            }
        }
        Ok(())
    }
}
