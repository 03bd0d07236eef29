//! Smaller graphs that still fail: outputs dropped, nodes replaced by leaves that hold what they computed.

use super::batch::{self, Outcome};
use super::case::{Case, expect};
use crate::execute::{Stored, Values};
use std::fmt::Write;
use weldment_codegen::setup::Setup;
use weldment_ir::interpret::{Bindings, F64, Options, interpret_all};
use weldment_ir::{Graph, IrError, NodeId, Op, Value, text};

/// Most elements of a leaf that is printed.
const PRINTED: usize = 600;

/// How `case` fails alone, if it does: what is wrong with its outputs, or the stage that refuses it. `sabotage` as in
/// [`batch::plan`].
pub fn failure(target: &Setup, case: &Case, sabotage: &dyn Fn(Graph) -> Graph) -> Option<String> {
    let planned = match batch::plan(target, case.clone(), sabotage) {
        Ok(planned) => planned,
        Err(invalid) => return Some(invalid.message),
    };
    match batch::run(target, vec![planned], 1) {
        Err(message) => Some(message),
        Ok((done, invalid)) => {
            let differs = done.into_iter().find_map(|(_, outcome)| match outcome {
                Outcome::Differs(message) => Some(message),
                Outcome::Agrees => None,
            });
            differs.or_else(|| invalid.into_iter().next().map(|i| i.message))
        }
    }
}

/// The smallest failing case found by greedy steps; `case` itself must fail.
pub fn minimise(target: &Setup, case: &Case, sabotage: &dyn Fn(Graph) -> Graph) -> Case {
    let kind = |message: &str| message.starts_with("output ");
    let Some(first) = failure(target, case, sabotage) else { return case.clone() };
    let fails =
        |candidate: &Case| failure(target, candidate, sabotage).is_some_and(|message| kind(&message) == kind(&first));
    let mut best = case.clone();
    loop {
        let size = best.graph.len() + best.graph.outputs().len();
        best = drop_outputs(best, &fails);
        best = cut_nodes(best, &fails);
        best = enable_rules(best, &fails);
        if best.graph.len() + best.graph.outputs().len() >= size {
            return best;
        }
    }
}

fn drop_outputs(mut best: Case, fails: &dyn Fn(&Case) -> bool) -> Case {
    let names: Vec<_> = best.graph.outputs().iter().map(|o| o.name.clone()).collect();
    for name in names {
        if best.graph.outputs().len() == 1 {
            break;
        }
        let Ok(graph) = rebuild(&best.graph, |_| None, |o| o != &*name) else { continue };
        if let Some(smaller) = with_graph(&best, graph, None)
            && fails(&smaller)
        {
            best = smaller;
        }
    }
    best
}

/// Replaces nodes by inputs, last ones first.
fn cut_nodes(mut best: Case, fails: &dyn Fn(&Case) -> bool) -> Case {
    let mut at = best.graph.len();
    while at > 0 {
        at = (at - 1).min(best.graph.len().saturating_sub(1));
        let id = NodeId::new(at);
        if let Some(smaller) = cut(&best, id)
            && smaller.graph.len() < best.graph.len()
            && fails(&smaller)
        {
            best = smaller;
        }
    }
    best
}

/// Rules that need not be off are on.
fn enable_rules(mut best: Case, fails: &dyn Fn(&Case) -> bool) -> Case {
    for name in best.options.disabled.clone() {
        let mut candidate = best.clone();
        candidate.options.disabled.remove(&name);
        if fails(&candidate) {
            best = candidate;
        }
    }
    best
}

fn cut(case: &Case, id: NodeId) -> Option<Case> {
    let node = case.graph.node(id);
    let ty = node.types.first()?;
    let leaf = node.operands.is_empty();
    if leaf || node.types.len() != 1 || node.op.kind().info().category == weldment_ir::Category::StateWrite {
        return None;
    }
    let mut bindings = Bindings::new();
    case.values.iter().for_each(|(name, stored)| bindings.insert(name, stored.binding()));
    let all = interpret_all::<F64>(&case.graph, &case.dims, &bindings, &Options::default()).ok()?;
    let tensor = all.get(id.index())?.first()?;
    let shape: Vec<u64> = tensor.shape.iter().map(|d| *d as u64).collect();
    let stored = match (tensor.as_values(), tensor.as_ints()) {
        (Some(reals), _) => Stored::floats(ty.dtype, &shape, &reals.iter().map(|v| *v as f32).collect::<Vec<_>>()),
        (_, Some(ints)) => Stored::integers(ty.dtype, &shape, ints),
        _ => return None,
    };
    let name = format!("cut{}", case.graph.len());
    let op = match case.graph.statics()[id.index()] {
        true => Op::Weight { name: name.as_str().into(), dtype: ty.dtype, shape: ty.shape.clone() },
        false => Op::input(&name, ty.dtype, ty.shape.clone()),
    };
    let graph = rebuild(&case.graph, |at| (at == id).then(|| op.clone()), |_| true).ok()?;
    with_graph(case, graph, Some((name, stored)))
}

/// The live part of a graph, nodes replaced by leaves and outputs left out; states that are written keep their outputs.
fn rebuild(
    graph: &Graph,
    replace: impl Fn(NodeId) -> Option<Op>,
    keep: impl Fn(&str) -> bool,
) -> Result<Graph, IrError> {
    let kept: Vec<_> = graph.outputs().iter().filter(|o| keep(&o.name)).collect();
    let mut live = vec![false; graph.len()];
    kept.iter().for_each(|o| live[o.value.node.index()] = true);
    for id in graph.ids().rev() {
        if live[id.index()] && replace(id).is_none() {
            graph.node(id).operands.iter().for_each(|v| live[v.node.index()] = true);
        }
    }
    let mut out = graph.emptied();
    let mut map: Vec<NodeId> = vec![NodeId::default(); graph.len()];
    for id in graph.ids().filter(|id| live[id.index()]) {
        let node = graph.node(id);
        let operands: Vec<Value> = node.operands.iter().map(|v| Value { node: map[v.node.index()], ..*v }).collect();
        map[id.index()] = match replace(id) {
            Some(leaf) => out.add(leaf, &[], node.sources.clone())?,
            None => out.add(node.op.clone(), &operands, node.sources.clone())?,
        };
    }
    for o in kept {
        out.output(&o.name, o.kind.clone(), Value { node: map[o.value.node.index()], ..o.value });
    }
    weldment_ir::verify(&out)?;
    Ok(out)
}

/// `case` with another graph and one more value; `None` if its outputs are then undecided.
fn with_graph(case: &Case, graph: Graph, value: Option<(String, Stored)>) -> Option<Case> {
    let mut values: Values = case.values.clone();
    values.extend(value);
    let names: Vec<&str> = graph.ids().filter_map(|id| leaf_name(&graph.node(id).op)).collect();
    values.retain(|name, _| names.contains(&name.as_str()));
    let expected = expect(&graph, &case.dims, &values, case.policy()).ok()??;
    Some(Case { graph, values, expected, ..case.clone() })
}

fn leaf_name(op: &Op) -> Option<&str> {
    match op {
        Op::Input { name, .. } | Op::Weight { name, .. } | Op::State { name, .. } => Some(name),
        _ => None,
    }
}

/// A case as a filetest of the `run` stage. Leaves that are too large to print, or of block formats, are random there.
pub fn filetest(case: &Case, message: &str) -> String {
    let mut out = String::from("; test: run fuse");
    let mut put = |text: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = out.write_fmt(text);
    };
    put(format_args!(" policy={}", case.policy()));
    if !case.options.disabled.is_empty() {
        put(format_args!(" disable={}", Vec::from_iter(case.options.disabled.iter().map(String::as_str)).join(",")));
    }
    for (name, size) in &case.dims {
        put(format_args!(" {name}={size}"));
    }
    put(format_args!("\n; {message}\n; seed {}, index {}\n", case.seed, case.index));
    for (name, stored) in &case.values {
        let elements = stored.shape.iter().product::<u64>() as usize;
        if stored.dtype.is_block() || elements > PRINTED {
            continue;
        }
        let words: Vec<String> = stored.decoded().iter().map(|v| format!("{v}")).collect();
        put(format_args!("; bind: {name} = {}\n", words.join(" ")));
    }
    put(format_args!("{}; CHECK\n; agrees within 1e-5\n", text::print(&case.graph)));
    out
}

/// Nodes besides leaves.
pub fn size(graph: &Graph) -> usize {
    graph.ids().filter(|id| !graph.node(*id).operands.is_empty()).count()
}
