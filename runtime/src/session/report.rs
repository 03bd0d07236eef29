//! What ran last, for reports and benchmarks.

use super::{Session, Stream};
use crate::artifact::Variant;
use crate::driver::{Graph, NodeCounts};
use crate::graph::{CapturedCopy, copies};

impl Session {
    /// The captured graph that the last step replayed and the stream it runs on.
    pub(crate) fn last_graph(&mut self) -> Option<(&mut (dyn Graph + 'static), &mut Stream)> {
        let (entry, variant) = self.last;
        Some((self.entries.get_mut(entry)?.variant(variant)?, &mut self.stream))
    }

    /// The variant that ran last.
    fn last_variant(&self) -> Option<&Variant> {
        let (entry, variant) = self.last;
        self.program().entries.get(entry)?.variants.get(variant)
    }

    /// Launches of the captured graph that the last step replayed, and its nodes by kind as the machine counts them.
    pub fn last_nodes(&mut self) -> (usize, NodeCounts) {
        self.last_graph().map(|(graph, _)| (graph.len(), graph.nodes())).unwrap_or_default()
    }

    /// Copies in the captured graph that the last step replayed, counted from the graph's nodes. The copy of the step's inputs
    /// to the device is no part of that graph.
    pub fn last_copies(&mut self) -> Vec<CapturedCopy> {
        let nodes = self.last_graph().map(|(graph, _)| graph.captured()).unwrap_or_default();
        self.last_variant().map(|v| copies(&self.manifest, self.program(), v, &nodes)).unwrap_or_default()
    }

    /// Bytes that the last step moved by the artifact's own estimate, with `tokens` tokens of sequences of `context` positions
    /// each (one token a sequence): weights, intermediates and KV blocks read.
    pub fn bytes_per_step(&self, tokens: usize, context: usize) -> u64 {
        let launches = self.last_variant().map_or(&[][..], |v| &v.launches);
        let tokens = tokens as u64;
        let launched: u64 = launches
            .iter()
            .map(|l| l.cost.bytes.saturating_add(l.cost.bytes_per_token.saturating_mul(tokens)))
            .fold(0, u64::saturating_add);
        let blocks = context.div_ceil(self.manifest.block_positions().max(1) as usize) as u64;
        let unit: u64 = self.manifest.states.iter().map(|s| s.unit_bytes).fold(0, u64::saturating_add);
        launched.saturating_add(unit.saturating_mul(blocks).saturating_mul(tokens))
    }
}
