//! The ranks that a graph is for.

use crate::graph::{Graph, NodeId};
use crate::op::Op;

impl Op {
    /// Ranks of the job, if the op names them: every [`crate::Category::Collective`] op does.
    pub fn world(&self) -> Option<i64> {
        match self {
            Op::Shard { parts, replicas, .. } => Some(parts.saturating_mul(*replicas)),
            Op::GatherPart { world, .. }
            | Op::AllReduce { world }
            | Op::AllGather { world, .. }
            | Op::ReduceScatter { world, .. }
            | Op::AllReduceRmsNorm { world, .. }
            | Op::AllReduceAddRmsNorm { world, .. }
            | Op::AllReduceRmsNormQuantise { world, .. }
            | Op::AllReduceAddRmsNormQuantise { world, .. } => Some(*world),
            _ => None,
        }
    }

    /// True for an op that waits for what other ranks send; the others need only the rank's number.
    pub fn communicates(&self) -> bool {
        self.world().is_some() && !matches!(self, Op::Shard { .. } | Op::GatherPart { .. })
    }
}

impl Graph {
    /// Ranks that run the graph together: what its first op that names them says, 1 without such an op. The verifier holds
    /// all of them to one number.
    pub fn world(&self) -> u32 {
        self.named_world().map_or(1, |(_, world)| world)
    }

    /// The first node that names a number of ranks, and the number.
    pub(crate) fn named_world(&self) -> Option<(NodeId, u32)> {
        self.ids().find_map(|id| Some((id, u32::try_from(self.node(id).op.world()?).ok()?.max(1))))
    }
}
