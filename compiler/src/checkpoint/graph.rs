//! A text graph as a model of its own: its weights are made from a seed, its sizes are those it declares.

use super::{Checkpoint, Entry, EntryPlace};
use crate::frontend::{FrontendError, Place};
use crate::models::ModelConfig;
use indexmap::IndexMap;
use std::path::Path;
use weldment_artifact::{InputRole, SymbolRole};
use weldment_ir::{Graph, Op};

/// The checkpoint of graphs that were read from `path`: every weight they name, random from `seed`. Its config has the graphs'
/// vocabulary (rows of the table that token ids pick from, else the width of the first result, or 1 if that has none) and positions.
///
/// # Errors
/// If a weight has a symbolic shape, or two have one name and different types.
pub fn random(graphs: &[Graph], path: &Path, seed: u64) -> Result<Checkpoint, FrontendError> {
    let mut tensors: IndexMap<String, Entry> = IndexMap::new();
    for node in graphs.iter().flat_map(|graph| graph.ids().map(|id| graph.node(id))) {
        let (Op::Weight { name, dtype, .. }, Some(ty)) = (&node.op, node.types.first()) else { continue };
        let wrong = |message: String| FrontendError::invalid(path, Place::Tensor(name.to_string()), message);
        let shape = ty.constant_shape().ok_or_else(|| wrong(format!("{ty}; constant dims are expected")))?;
        let known = tensors.get(&**name).map(|e| (e.dtype, e.shape.clone()));
        if known.is_some_and(|known| known != (*dtype, shape.clone())) {
            return Err(wrong(format!("{ty}, and another type before; one type a name is expected")));
        }
        tensors.insert(name.to_string(), Entry { dtype: *dtype, shape, place: EntryPlace::Random { seed } });
    }
    let ids = graphs.iter().filter_map(rows_of_tokens).min();
    let first = graphs.iter().find_map(|graph| {
        let first = graph.outputs().iter().find(|o| o.kind == weldment_ir::OutputKind::Result)?;
        graph.type_of(first.value).last_constant()
    });
    // A graph without token ids has no vocabulary: one entry stands for it.
    let vocab = ids.or(first).filter(|n| (1..=i32::MAX as u64).contains(n)).unwrap_or(1);
    let positions = graphs.iter().find_map(|g| g.symbol_of(&SymbolRole::Context)).map_or(u64::MAX, |(_, r)| r.max);
    let config = ModelConfig::of_graph(vocab, positions);
    Ok(Checkpoint::from_parts(config, None, path, Vec::new(), tensors))
}

/// Rows of the smallest table that the graph's token ids pick from.
fn rows_of_tokens(graph: &Graph) -> Option<u64> {
    let tokens = |id: &weldment_ir::NodeId| matches!(&graph.node(*id).op, Op::Input { role: InputRole::Tokens, .. });
    let picks = graph.ids().filter(tokens).flat_map(|id| graph.users(id).collect::<Vec<_>>());
    let tables = picks.filter_map(|(user, using)| match (&graph.node(user).op, using.operand) {
        (Op::Gather { .. }, 1) => graph.type_of(graph.node(user).operands[0]).shape.first()?.constant(),
        _ => None,
    });
    tables.min()
}
