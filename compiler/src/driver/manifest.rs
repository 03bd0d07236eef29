//! The parts of a manifest that do not depend on a target: dims, bindings, states, model facts, weights.

use super::CompileError;
use crate::frontend::{Checkpoint, TensorSource};
use indexmap::IndexMap;
use std::path::{Path, PathBuf};
use weldment_artifact::{InputRole, SymbolRole};
use weldment_ir::{DType, Dim, Graph, IrError, Op, OutputKind, TensorType};
use weldment_runtime::artifact::{
    Binding, Dim as ManifestDim, Model, SourceFile, State, Symbol, Tensor, TensorPlace, WeightMode, Weights,
};
use weldment_runtime::weights::content_id;

/// `dtype`, where a tensor of it can lie in a file or cross an entry.
///
/// # Errors
/// If it cannot (quantised activations never leave a step).
pub fn stored_dtype(dtype: DType, path: &str) -> Result<DType, CompileError> {
    let message = format!("dtype {dtype} cannot cross the entry; a plain or GGUF dtype is expected");
    let refused = || IrError::InvalidGraph { path: path.to_owned(), message };
    Some(dtype).filter(|dtype| dtype.is_stored()).ok_or_else(|| refused().into())
}

fn dims(shape: &[Dim]) -> Vec<ManifestDim> {
    let dim = |d: &Dim| match d {
        Dim::Const(n) => ManifestDim::Const(*n),
        Dim::Sym(s) => ManifestDim::Symbol(s.to_string()),
    };
    shape.iter().map(dim).collect()
}

/// Symbols with their ranges, in the order of the dims block.
pub fn symbols(graph: &Graph) -> Vec<Symbol> {
    let symbol = |(name, range): (&std::sync::Arc<str>, &weldment_ir::Range)| Symbol {
        name: name.to_string(),
        min: range.min,
        max: range.max,
        role: graph.role(name).clone(),
    };
    graph.symbols().iter().map(symbol).collect()
}

/// Inputs and results of the entry, in the plan's order: node order and output order. Which inputs are dense is for the plans to
/// say.
///
/// # Errors
/// If one has a dtype that cannot cross the entry.
pub fn bindings(graph: &Graph) -> Result<(Vec<Binding>, Vec<Binding>), CompileError> {
    let binding = |name: &str, ty: &TensorType, role: InputRole| -> Result<Binding, CompileError> {
        let dtype = stored_dtype(ty.dtype, name)?;
        Ok(Binding { name: name.to_owned(), dtype, shape: dims(&ty.shape), role, dense: false })
    };
    let mut inputs = Vec::new();
    for id in graph.ids() {
        if let (Op::Input { name, role, .. }, Some(ty)) = (&graph.node(id).op, graph.node(id).types.first()) {
            inputs.push(binding(name, ty, *role)?);
        }
    }
    let results = graph.outputs().iter().filter(|o| o.kind == OutputKind::Result);
    let outputs =
        results.map(|o| binding(&o.name, graph.type_of(o.value), InputRole::Plain)).collect::<Result<_, _>>()?;
    Ok((inputs, outputs))
}

/// States in node order.
///
/// # Errors
/// If a state's first dim is not a symbol that the session sizes, or the others are not constant.
pub fn states(graph: &Graph) -> Result<Vec<State>, CompileError> {
    let mut states: Vec<State> = Vec::new();
    for id in graph.ids() {
        let Op::State { name, dtype, shape } = &graph.node(id).op else { continue };
        if states.iter().any(|s| s.name == **name) {
            continue;
        }
        let unit: Option<Vec<u64>> = shape.get(1..).and_then(|rest| rest.iter().map(Dim::constant).collect());
        let pooled = |dim: &Dim| dim.symbol().is_some_and(|s| graph.role(s).is_like(&SymbolRole::POOL));
        let unit = unit.filter(|_| shape.first().is_some_and(pooled));
        let unit = unit.ok_or_else(|| IrError::InvalidGraph {
            path: name.to_string(),
            message: "a state's first dim must be a symbol of the role pool and the others constant".to_owned(),
        })?;
        let unit_bytes = dtype.byte_size(&unit).map_err(IrError::from)?;
        let dtype = stored_dtype(*dtype, name)?;
        states.push(State { name: name.to_string(), dtype, shape: dims(shape), unit_bytes });
    }
    Ok(states)
}

/// Facts about the model.
///
/// # Errors
/// If the vocabulary or the positions do not fit in 32 bits.
pub fn model_facts(checkpoint: &Checkpoint, max_seq: u64) -> Result<Model, CompileError> {
    let c = &checkpoint.config;
    let narrow = |what: &str, n: u64| {
        u32::try_from(n).map_err(|_| CompileError::option(what, format!("{n}; less than 2^32 is accepted")))
    };
    Ok(Model {
        architecture: c.architecture.name().to_owned(),
        name: None,
        vocab_size: narrow("vocab_size", c.vocab)?,
        bos_id: c.bos_id,
        eos_ids: c.eos_ids.clone(),
        max_seq: narrow("--max-seq", max_seq)?,
    })
}

/// The checkpoint's side of an artifact's weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelWeights {
    /// For the manifest.
    pub weights: Weights,
    /// Paths of `weights.files`, for the registry in the cache.
    pub paths: Vec<PathBuf>,
}

impl ModelWeights {
    /// Describes the tensors `names`, in that order, with content hashes computed in parallel.
    ///
    /// # Errors
    /// If the checkpoint lacks one.
    pub fn new(checkpoint: &Checkpoint, names: &[&str], embed: bool) -> Result<ModelWeights, CompileError> {
        let hashes = checkpoint.content_hashes(names);
        let mut files: IndexMap<PathBuf, Vec<String>> = IndexMap::new();
        let mut tensors = Vec::with_capacity(names.len());
        let mut mode = if embed { WeightMode::Embedded } else { WeightMode::External };
        for (name, hash) in names.iter().zip(hashes) {
            let missing = || IrError::InvalidGraph {
                path: (*name).to_owned(),
                message: "there is no tensor of this name".to_owned(),
            };
            let tensor = checkpoint.tensor(name).ok_or_else(missing)?;
            let hash = blake3::Hash::from_bytes(hash.ok_or_else(missing)?).to_hex().to_string();
            let (at, blake3) = match tensor.source {
                TensorSource::File { path, offset, .. } => {
                    let entry = files.entry(path.to_owned());
                    let file = entry.index() as u32;
                    entry.or_default().push(hash.clone());
                    (TensorPlace::File(file, offset as u64), hash)
                }
                TensorSource::Random { seed, .. } => {
                    mode = if embed { WeightMode::Embedded } else { WeightMode::Random(seed) };
                    (TensorPlace::Random, String::new())
                }
            };
            let dtype = stored_dtype(tensor.dtype, name)?;
            tensors.push(Tensor { name: (*name).to_owned(), dtype, shape: tensor.shape.to_vec(), at, blake3 });
        }
        let mut sources = Vec::with_capacity(files.len());
        for (path, hashes) in &files {
            let bytes =
                std::fs::metadata(path).map_err(|source| CompileError::Io { path: path.clone(), source })?.len();
            let id = content_id(bytes, hashes.iter().map(String::as_str));
            sources.push(SourceFile { name: base_name(path), bytes, id });
        }
        let weights = Weights { mode, files: sources, tensors };
        Ok(ModelWeights { weights, paths: files.into_keys().collect() })
    }
}

/// File name without folder: no path goes into an artifact.
fn base_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::{EntryOptions, model_graph, open};
    use super::*;
    use crate::frontend::WeightSource;

    #[test]
    fn a_manifest_describes_the_entry() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/llama");
        let checkpoint = open(&path, WeightSource::Files).unwrap();
        let graph = model_graph(&checkpoint, &EntryOptions::default()).unwrap();
        let symbols = symbols(&graph);
        let names: Vec<&str> = symbols.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["T", "B", "P", "R", "N", "C"]);
        let (inputs, outputs) = bindings(&graph).unwrap();
        let names: Vec<&str> = inputs.iter().map(|b| b.name.as_str()).collect();
        assert_eq!(names, ["tokens", "positions", "sequence_ids", "block_tables", "logit_rows"]);
        assert_eq!(outputs.len(), 1);
        let states = states(&graph).unwrap();
        assert_eq!(states.len() as u64, 2 * checkpoint.config.layers);
        assert_eq!(states[0].unit_bytes, 16 * checkpoint.config.kv_heads * checkpoint.config.head_dim * 4);
        let facts = model_facts(&checkpoint, 64).unwrap();
        assert_eq!(facts.max_seq, 64);
        let all: Vec<&str> = checkpoint.names().collect();
        let weights = ModelWeights::new(&checkpoint, &all, false).unwrap();
        assert_eq!(weights.weights.files.len(), 1);
        assert_eq!(weights.weights.files[0].name, "model.safetensors");
        assert!(ModelWeights::new(&checkpoint, &["nothing"], false).is_err());
    }
}
