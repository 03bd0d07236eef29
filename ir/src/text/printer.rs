//! Graph to text.

use super::is_word;
use crate::graph::{Graph, NodeId, OutputKind, Value};
use std::fmt::{self, Write};
use weldment_artifact::SymbolRole;

/// The text of a graph: deterministic, and read back by [`super::parse`] to a graph that prints the same.
pub fn print(graph: &Graph) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_graph(&mut text, graph);
    text
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_graph(f, self)
    }
}

fn write_graph(f: &mut impl Write, graph: &Graph) -> fmt::Result {
    f.write_str("graph @")?;
    if is_word(&graph.name) {
        f.write_str(&graph.name)?
    } else {
        write!(f, "{:?}", graph.name)?
    }
    for (i, (name, range)) in graph.symbols().iter().enumerate() {
        write!(f, "{}{name}: {}..{}", if i == 0 { " (" } else { ", " }, range.min, range.max)?;
        match graph.role(name) {
            SymbolRole::Plain => {}
            role => write!(f, " {role}")?,
        }
    }
    f.write_str(if graph.symbols().is_empty() { " {\n" } else { ") {\n" })?;
    for id in graph.ids() {
        write_node(f, graph, id)?;
    }
    for output in graph.outputs() {
        let kind = match output.kind {
            OutputKind::Result => "result",
            OutputKind::State => "state",
        };
        write!(f, "  output {kind} {:?} = ", output.name)?;
        write_value(f, graph, output.value)?;
        f.write_char('\n')?;
    }
    f.write_str("}\n")
}

/// `%7`, or `%7.1` of a node with several results.
fn write_value(f: &mut impl Write, graph: &Graph, value: Value) -> fmt::Result {
    write!(f, "%{}", value.node.index())?;
    if graph.node(value.node).types.len() > 1 { write!(f, ".{}", value.result) } else { Ok(()) }
}

fn write_node(f: &mut impl Write, graph: &Graph, id: NodeId) -> fmt::Result {
    let node = graph.node(id);
    let info = node.op.kind().info();
    write!(f, "  %{}", id.index())?;
    if node.types.len() > 1 {
        write!(f, ":{}", node.types.len())?;
    }
    write!(f, " = {}", info.name)?;
    for (i, value) in node.operands.iter().enumerate() {
        f.write_str(if i == 0 { "(" } else { ", " })?;
        write_value(f, graph, *value)?;
    }
    if !node.operands.is_empty() {
        f.write_char(')')?;
    }
    let attrs = node.op.attrs();
    let defaults = (info.defaults)();
    let shown =
        attrs.iter().zip(info.attrs).zip(&defaults).filter(|((attr, _), default)| Some(*attr) != default.as_ref());
    let mut any = false;
    for ((attr, (name, _)), _) in shown {
        write!(f, "{}{name}: {attr}", if any { ", " } else { " {" })?;
        any = true;
    }
    if any {
        f.write_char('}')?;
    }
    for (i, t) in node.types.iter().enumerate() {
        write!(f, "{}{t}", if i == 0 { " : " } else { ", " })?;
    }
    for (i, source) in node.sources.iter().enumerate() {
        write!(f, "{}{source:?}", if i == 0 { " @ " } else { ", " })?;
    }
    f.write_char('\n')
}
