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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::{Kernel, LaunchCopy};

    /// The manifest of no model, with one kernel that computes and one that moves.
    fn program() -> (Manifest, Program, Variant) {
        let kernel = |name: &str, moves_only: bool| {
            serde_json::from_value::<Kernel>(serde_json::json!({
                "name": name, "entry": 0, "family": name, "moves_only": moves_only,
            }))
        };
        let launch = |k: u32, copy: Option<LaunchCopy>| serde_json::json!({ "k": k, "g": [], "a": [], "s": k, "c": [8, 0, 0], "copy": copy });
        let copy = LaunchCopy { source: "layers.0.x".into(), bytes: 256, reason: "a step input".into() };
        let variant = serde_json::json!({ "launches": [launch(0, None), launch(1, Some(copy)), launch(1, None)] });
        let manifest = serde_json::json!({
            "weldment_version": "", "symbols": [], "entries": [], "inputs": [], "outputs": [], "states": [], "programs": [],
            "model": { "architecture": "", "vocab_size": 1, "max_seq": 1 },
            "weights": { "mode": { "random": 0 }, "tensors": [] },
            "sources": [["a"], ["layers.0.y"]],
        });
        let program = serde_json::json!({
            "target": { "name": "", "arch": "" }, "code": "", "arena_bytes": 0, "entries": [],
            "pack": { "bytes": 0, "key": "", "items": [] },
            "kernels": [kernel("k0", false).unwrap(), kernel("k1", true).unwrap()],
        });
        let parsed =
            (serde_json::from_value(manifest), serde_json::from_value(program), serde_json::from_value(variant));
        (parsed.0.unwrap(), parsed.1.unwrap(), parsed.2.unwrap())
    }

    #[test]
    fn copies_are_nodes_that_only_move_data() {
        let (manifest, program, variant) = program();
        let nodes = [CapturedNode::Launch(0), CapturedNode::Copy, CapturedNode::Launch(1), CapturedNode::Fill];
        let found = copies(&manifest, &program, &variant, &nodes);
        let shown: Vec<_> = found.iter().map(|c| (c.source.as_str(), c.bytes, c.by.as_str())).collect();
        assert_eq!(shown, [("", 0, "copy node"), ("layers.0.x", 256, "k1")]);
        assert_eq!(found[1].reason, "a step input");
        // A kernel that moves is a copy whether or not the compiler meant it to be one.
        let launched = launched_copies(&manifest, &program, &variant);
        assert_eq!(
            launched.iter().map(|c| (c.source.as_str(), c.bytes)).collect::<Vec<_>>(),
            [("layers.0.x", 256), ("layers.0.y", 8)]
        );
    }
}
