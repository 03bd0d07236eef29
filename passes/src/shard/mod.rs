//! Tensor parallelism: a graph of one rank becomes the graph that every rank of a job runs.
//!
//! Each value is held in one of three ways: the same on all ranks, split along an axis, or partial (its sum over ranks is
//! meant). [`spread`] decides, op by op, without knowing model families:
//! * a matmul by static weights whose operand is the same everywhere takes a part of the weight's rows (column parallel): its result is
//!   split along the last axis;
//! * a matmul whose operand is split along the last axis takes the same part of the weight's columns (row parallel): its result is partial,
//!   and an `all_reduce` follows, after a bias if one is added (rank 0 adds it, the others add zeros);
//! * FP8 products go as matmuls do; a row that is quantised as one group is, where it is split, one group a part: finer than before;
//! * rows gathered from a weight are gathered from a part of it and reduced (vocabulary parallel);
//! * attention goes by heads; caches hold the heads of their rank; where ranks outnumber heads of K and V, several hold the same;
//! * what works on each element, row or head alone goes on with the parts it is given; other ops need whole operands.
//!
//! A split that meets an op without a split form is not made at all: the matmuls that it began with are computed by every rank. The one
//! exception is a result of the step, which is gathered: the logits. So a graph of any ops is accepted.
//!
//! Leaves keep their full type, except states. A `shard` node stands on top of whatever static value is cut, so that everything
//! computed from weights alone is computed once, for all ranks.

mod emit;
mod shapes;
mod spread;

use crate::error::PassError;
use weldment_artifact::limits::MAX_WORLD;
use weldment_ir::{Category, Graph, OutputKind};

/// The graph that each of `world` ranks runs, with explicit collectives. Inputs and results are the same on all ranks and have the types of
/// `graph`'s; states have the type of a rank's part. `world` 1 gives the graph as it is.
///
/// # Errors
/// [`PassError::Shard`] names the source path of what does not divide by the number of ranks, with what was found and what is accepted.
pub fn shard(graph: &Graph, world: u32) -> Result<Graph, PassError> {
    let refuse = |message: String| PassError::Shard { path: graph.name.clone(), message };
    if world == 0 || world > MAX_WORLD {
        return Err(refuse(format!("{world} ranks; 1 to {MAX_WORLD} are accepted")));
    }
    if world == 1 {
        return Ok(graph.clone());
    }
    let collective = |id| graph.node(id).op.kind().info().category == Category::Collective;
    if let Some(id) = graph.ids().find(|id| collective(*id)) {
        let message = format!("{}; a graph of one rank, without collectives, is expected", graph.node(id).op.kind());
        return Err(PassError::Shard { path: path(graph, id), message });
    }
    let graph = graph.compact()?;
    let spread = spread::spread(&graph, u64::from(world))?;
    let out = emit::emit(&graph, &spread, world)?;
    weldment_ir::verify(&out)?;
    for (before, after) in graph.outputs().iter().zip(out.outputs()) {
        let (wanted, found) = (graph.type_of(before.value), out.type_of(after.value));
        if before.kind == OutputKind::Result && wanted != found {
            return Err(PassError::Unsound { message: format!("output {} became {found}", before.name) });
        }
    }
    Ok(out)
}

/// Where a node is.
fn path(graph: &Graph, id: weldment_ir::NodeId) -> String {
    let first = graph.node(id).sources.first();
    first.map_or_else(|| format!("%{}", id.index()), |s| s.to_string())
}
