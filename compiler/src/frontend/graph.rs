//! A text graph as a model of its own: its weights are made from a seed, its sizes are those it declares.

use super::checkpoint::{Checkpoint, Entry, EntryPlace};
use super::config::{Architecture, ModelConfig, RopeConfig, RopeKind};
use super::error::{FrontendError, Place};
use indexmap::IndexMap;
use std::path::Path;
use weldment_artifact::SymbolRole;
use weldment_ir::{DType, Graph, Op};

/// The checkpoint of a graph that was read from `path`: every weight it names, random from `seed`. Its config has the graph's
/// vocabulary (the width of its first result, or 1 if that has none), positions and dtype; what only a model definition would
/// read is 0.
///
/// # Errors
/// If a weight has a symbolic shape, or two have one name and different types.
pub fn random(graph: &Graph, path: &Path, seed: u64) -> Result<Checkpoint, FrontendError> {
    let mut tensors: IndexMap<String, Entry> = IndexMap::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let (Op::Weight { name, dtype, .. }, Some(ty)) = (&node.op, node.types.first()) else { continue };
        let wrong = |message: String| FrontendError::invalid(path, Place::Tensor(name.to_string()), message);
        let shape = ty.constant_shape().ok_or_else(|| wrong(format!("{ty}; constant dims are expected")))?;
        let known = tensors.get(&**name).map(|e| (e.dtype, e.shape.clone()));
        if known.is_some_and(|known| known != (*dtype, shape.clone())) {
            return Err(wrong(format!("{ty}, and another type before; one type a name is expected")));
        }
        tensors.insert(name.to_string(), Entry { dtype: *dtype, shape, place: EntryPlace::Random { seed } });
    }
    let first = graph.outputs().iter().find(|o| o.kind == weldment_ir::OutputKind::Result);
    let vocab = first.and_then(|o| graph.type_of(o.value).last_constant());
    // A graph whose result has no such width has no vocabulary: one entry stands for it.
    let vocab = vocab.filter(|n| (1..=i32::MAX as u64).contains(n)).unwrap_or(1);
    let config = ModelConfig {
        architecture: Architecture::Graph,
        hidden: 0,
        layers: 0,
        heads: 0,
        kv_heads: 0,
        head_dim: 0,
        intermediate: 0,
        vocab,
        rms_eps: 0.0,
        rope: RopeConfig { theta: 0.0, kind: RopeKind::Default, interleaved: false, rotary_dim: 0 },
        tied_embeddings: false,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        max_positions: graph.symbol_of(&SymbolRole::Context).map_or(u64::MAX, |(_, range)| range.max),
        bos_id: None,
        eos_ids: Vec::new(),
        dtype: DType::F32,
        quantization: None,
    };
    Ok(Checkpoint::from_parts(config, None, path, Vec::new(), tensors))
}
