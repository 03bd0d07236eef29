//! The parts of a manifest that do not depend on a target: dims, bindings, states, model facts, weights.

use super::CompileError;
use crate::checkpoint::{Checkpoint, TensorSource};
use indexmap::IndexMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weldment_artifact::{InputRole, SymbolRole};
use weldment_codegen::Externals;
use weldment_ir::indices::bounds;
use weldment_ir::{DType, Dim, Graph, IrError, NodeId, Op, OutputKind, TensorType};
use weldment_runtime::artifact::{
    Binding, Dim as ManifestDim, EntryPoint, IndexBound, Indices, Model, SourceFile, State, Symbol, Tensor,
    TensorPlace, WeightMode, Weights,
};
use weldment_runtime::weights::content_id;

/// `dtype`, where a tensor of it can cross an entry.
///
/// # Errors
/// If it cannot (quantised activations never do).
fn external_dtype(dtype: DType, path: &str) -> Result<DType, CompileError> {
    let message = format!("dtype {dtype} cannot cross the entry; a plain or GGUF dtype is expected");
    let refused = || IrError::InvalidGraph { path: path.to_owned(), message };
    Some(dtype).filter(|dtype| dtype.is_external()).ok_or_else(|| refused().into())
}

fn dim(dim: &Dim) -> ManifestDim {
    match dim {
        Dim::Const(n) => ManifestDim::Const(*n),
        Dim::Sym(s) => ManifestDim::Symbol(s.to_string()),
    }
}

fn dims(shape: &[Dim]) -> Vec<ManifestDim> {
    shape.iter().map(dim).collect()
}

/// What an artifact's entries take, give and share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// Symbols of all entries, in the order of the dims block.
    pub symbols: Vec<Symbol>,
    /// Names, inputs and outputs.
    pub entries: Vec<EntryPoint>,
    /// Inputs of all entries. Which of them are dense is for the plans to say.
    pub inputs: Vec<Binding>,
    /// Outputs of all entries.
    pub outputs: Vec<Binding>,
    /// States of all entries.
    pub states: Vec<State>,
    /// For each entry: where its inputs, outputs and states are among these, in its plans' order.
    pub externals: Vec<Externals>,
}

impl Signature {
    /// That of `graphs`, one an entry.
    ///
    /// # Errors
    /// If entries declare a symbol or state of one name differently, a dtype cannot cross an entry, or a state's first dim is not a
    /// pool or its others are not constant.
    pub fn of(graphs: &[Graph]) -> Result<Signature, CompileError> {
        let mut out = Signature::default();
        for graph in graphs {
            out.symbols(graph)?;
            let mut externals = Externals::default();
            for id in graph.ids() {
                if let (Op::Input { name, role, .. }, Some(ty)) = (&graph.node(id).op, graph.node(id).types.first()) {
                    externals.inputs.push(out.inputs.len() as u32);
                    out.inputs.push(Binding { indices: indices(graph, id), ..binding(name, ty, *role)? });
                }
            }
            for output in graph.outputs().iter().filter(|o| o.kind == OutputKind::Result) {
                externals.outputs.push(out.outputs.len() as u32);
                out.outputs.push(binding(&output.name, graph.type_of(output.value), InputRole::Plain)?);
            }
            externals.states = out.states(graph)?;
            let (inputs, outputs) = (externals.inputs.clone(), externals.outputs.clone());
            let place = |name: &Arc<str>| out.symbols.iter().position(|s| *s.name == **name).map(|at| at as u32);
            let symbols = graph.symbols().keys().filter_map(place).collect();
            let writes_states = graph.outputs().iter().any(|o| o.kind == OutputKind::State);
            out.entries.push(EntryPoint { name: graph.name.clone(), symbols, inputs, outputs, writes_states });
            out.externals.push(externals);
        }
        Ok(out)
    }

    fn symbols(&mut self, graph: &Graph) -> Result<(), CompileError> {
        for (name, range) in graph.symbols() {
            let role = graph.role(name).clone();
            let symbol = Symbol { name: name.to_string(), min: range.min, max: range.max, role };
            match self.symbols.iter().find(|known| known.name == symbol.name) {
                None => self.symbols.push(symbol),
                Some(known) if *known == symbol => {}
                Some(known) => {
                    let shown = |s: &Symbol| format!("{}..{} {}", s.min, s.max, s.role);
                    let message = format!(
                        "symbol {name} is {} here and {} in an entry before; one declaration is accepted",
                        shown(&symbol),
                        shown(known)
                    );
                    return Err(IrError::InvalidGraph { path: graph.name.clone(), message }.into());
                }
            }
        }
        Ok(())
    }

    /// Adds the states of a graph; their places, in node order.
    fn states(&mut self, graph: &Graph) -> Result<Vec<u32>, CompileError> {
        let mut places: Vec<u32> = Vec::new();
        for id in graph.ids() {
            let Op::State { name, dtype, shape } = &graph.node(id).op else { continue };
            let broken = |message: &str| IrError::InvalidGraph { path: name.to_string(), message: message.to_owned() };
            let unit: Option<Vec<u64>> = shape.get(1..).and_then(|rest| rest.iter().map(Dim::constant).collect());
            let pooled = |dim: &Dim| dim.symbol().is_some_and(|s| graph.role(s).is_like(&SymbolRole::POOL));
            let unit = unit.filter(|_| shape.first().is_some_and(pooled));
            let unit = unit.ok_or_else(|| {
                broken("a state's first dim must be a symbol of the role pool and the others constant")
            })?;
            let unit_bytes = dtype.byte_size(&unit).map_err(IrError::from)?;
            let dtype = external_dtype(*dtype, name)?;
            let state = State { name: name.to_string(), dtype, shape: dims(shape), unit_bytes };
            let known = self.states.iter().position(|known| known.name == state.name);
            if known.is_some_and(|at| self.states[at] != state) {
                return Err(broken("an entry before has a state of this name and another type").into());
            }
            let at = known.unwrap_or(self.states.len());
            if known.is_none() {
                self.states.push(state);
            }
            if !places.contains(&(at as u32)) {
                places.push(at as u32);
            }
        }
        Ok(places)
    }
}

fn binding(name: &str, ty: &TensorType, role: InputRole) -> Result<Binding, CompileError> {
    let dtype = external_dtype(ty.dtype, name)?;
    Ok(Binding { name: name.to_owned(), dtype, shape: dims(&ty.shape), role, dense: false, indices: Indices::Free })
}

/// What an input's values may be.
fn indices(graph: &Graph, input: NodeId) -> Indices {
    match bounds(graph, input) {
        None => Indices::Computed,
        Some(bounds) if bounds.is_empty() => Indices::Free,
        Some(bounds) => {
            let bound =
                |b: &weldment_ir::indices::Bound| IndexBound { least: b.least, below: dim(&b.below), times: b.times };
            Indices::Bounded(bounds.iter().map(bound).collect())
        }
    }
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
        architecture: c.architecture().to_owned(),
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
            let dtype = tensor.dtype;
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
    use crate::checkpoint::WeightSource;

    #[test]
    fn a_manifest_describes_the_entry() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/llama");
        let checkpoint = open(&path, WeightSource::Files).unwrap();
        let graph = model_graph(&checkpoint, &EntryOptions::default()).unwrap();
        let signature = Signature::of(&[graph]).unwrap();
        let names: Vec<&str> = signature.symbols.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["T", "B", "P", "R", "N", "C"]);
        let names: Vec<&str> = signature.inputs.iter().map(|b| b.name.as_str()).collect();
        assert_eq!(names, ["tokens", "positions", "sequence_ids", "block_tables", "logit_rows"]);
        assert_eq!((signature.outputs.len(), signature.entries[0].name.as_str()), (1, "step"));
        let states = signature.states;
        assert_eq!(states.len() as u64, 2 * checkpoint.config.layers().len() as u64);
        let attention = &checkpoint.config.layers()[0].attention;
        assert_eq!(states[0].unit_bytes, 16 * attention.kv_heads * attention.head_dim * 4);
        let facts = model_facts(&checkpoint, 64).unwrap();
        assert_eq!(facts.max_seq, 64);
        let all: Vec<&str> = checkpoint.names().collect();
        let weights = ModelWeights::new(&checkpoint, &all, false).unwrap();
        assert_eq!(weights.weights.files.len(), 1);
        assert_eq!(weights.weights.files[0].name, "model.safetensors");
        assert!(ModelWeights::new(&checkpoint, &["nothing"], false).is_err());
    }
}
