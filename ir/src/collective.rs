//! The ranks that a graph is for.

use crate::attr::Attr;
use crate::graph::{Graph, NodeId};
use crate::op::{Category, Op};

impl Op {
    /// Ranks of the job, if the op names them: every [`crate::Category::Collective`] op does.
    pub fn world(&self) -> Option<i64> {
        if let Op::Shard { parts, replicas, .. } = self {
            return Some(parts.saturating_mul(*replicas));
        }
        let at = self.kind().info().attrs.iter().position(|(name, _)| *name == "world")?;
        match self.attrs().get(at) {
            Some(Attr::Int(world)) => Some(*world),
            _ => None,
        }
    }

    /// True for an op that waits for what other ranks send; the others need only the rank's number.
    pub fn communicates(&self) -> bool {
        self.kind().info().category == Category::Collective && !matches!(self, Op::Shard { .. } | Op::GatherPart { .. })
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
