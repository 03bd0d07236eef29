//! The text of a graph by what its outputs compute: the same for graphs that differ in the order of their nodes alone.

use std::fmt::Write;
use weldment_ir::{Graph, NodeId};

/// Nodes in the order in which a walk from the outputs finishes them, then the outputs. Inputs are told apart by name.
pub(super) fn canonical(graph: &Graph) -> String {
    let mut number: Vec<Option<usize>> = vec![None; graph.len()];
    let mut text = String::new();
    for (name, range) in graph.symbols() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{name}: {}..{} ", range.min, range.max);
    }
    let mut next = 0;
    for output in graph.outputs() {
        let mut stack: Vec<(NodeId, usize)> = vec![(output.value.node, 0)];
        while let Some((id, operand)) = stack.last_mut() {
            let node = graph.node(*id);
            if number[id.index()].is_some() {
                stack.pop();
            } else if let Some(v) = node.operands.get(*operand) {
                *operand += 1;
                stack.push((v.node, 0));
            } else {
                let _ = write!(text, "\n{next} {:?}", node.op);
                for v in &node.operands {
                    let _ = write!(text, " {}.{}", number[v.node.index()].unwrap_or(next), v.result);
                }
                number[id.index()] = Some(next);
                next += 1;
                stack.pop();
            }
        }
        let at = number[output.value.node.index()].unwrap_or(next);
        let _ = write!(text, "\n{} = {at}.{}", output.name, output.value.result);
    }
    text
}
