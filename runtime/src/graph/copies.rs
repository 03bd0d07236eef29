//! Copies of a captured graph, counted from its nodes: what the machine copies or fills by itself, and kernels that only move data.

use crate::artifact::{Manifest, Program, Variant};
use crate::driver::CapturedNode;
use serde::Serialize;

/// One copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CapturedCopy {
    /// Source path of what caused it; empty for a node that no launch asked for.
    pub source: String,
    /// Bytes that it moves at the largest dims; 0 where the machine does not say.
    pub bytes: u64,
    /// Why the compiler left it.
    pub reason: String,
    /// The kernel that does it, or `copy node`.
    pub by: String,
}

/// Copies among `nodes`, which are those of a capture of `variant`.
pub fn copies(manifest: &Manifest, program: &Program, variant: &Variant, nodes: &[CapturedNode]) -> Vec<CapturedCopy> {
    let copy = |node: &CapturedNode| match node {
        CapturedNode::Launch(index) => {
            let launch = variant.launches.get(*index)?;
            let kernel = program.kernels.get(launch.kernel as usize)?;
            if !kernel.moves_only {
                return None;
            }
            let sources = manifest.sources.get(launch.source as usize).map(|s| s.join(" ")).unwrap_or_default();
            let (source, bytes, reason) = match &launch.copy {
                Some(copy) => (copy.source.clone(), copy.bytes, copy.reason.clone()),
                None => (sources, launch.cost.bytes, "a kernel that only moves data".to_owned()),
            };
            Some(CapturedCopy { source, bytes, reason, by: kernel.name.clone() })
        }
        CapturedNode::Copy => Some(CapturedCopy {
            source: String::new(),
            bytes: 0,
            reason: "recorded by a library".to_owned(),
            by: "copy node".to_owned(),
        }),
        CapturedNode::Library | CapturedNode::Fill | CapturedNode::Other => None,
    };
    nodes.iter().filter_map(copy).collect()
}

/// Copies among the launches of `variant`, before it is captured.
pub fn launched_copies(manifest: &Manifest, program: &Program, variant: &Variant) -> Vec<CapturedCopy> {
    let nodes: Vec<CapturedNode> = (0..variant.launches.len()).map(CapturedNode::Launch).collect();
    copies(manifest, program, variant, &nodes)
}
