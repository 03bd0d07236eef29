//! `weldment opt`: passes over a text graph, for tests and for people who edit graphs.

use super::args::OptArgs;
use super::{graphs, put_or_write};
use crate::driver::CompileError;
use std::fmt::Write;
use weldment_ir::{Graph, text};
use weldment_passes::buffer::{AnyStrides, BufferPlan, StepKind, bufferise_with};
use weldment_passes::pipeline::{Options, optimise};
use weldment_passes::specialise::narrow;

/// A pass by name: what it makes of a graph.
type Pass = fn(&Graph, &OptArgs) -> Result<Graph, CompileError>;

/// Every pass that `opt` knows, in the pipeline's order.
pub const PASSES: [(&str, Pass, &str); 4] = [
    ("decode", |g, _| tokens(g, "decode", |_| (1, 1)), "the range of one token"),
    ("prefill", |g, _| tokens(g, "prefill", |most| (2, most)), "the range of more than one token"),
    ("compact", |g, _| Ok(g.compact()?), "dead nodes dropped"),
    ("fuse", fuse, "canonical forms and fusions, by cost on the reference target"),
];

/// The pass that ends a list: the plan instead of the graph.
const PLAN: &str = "bufferise";

/// The graph for a part of its range of tokens.
fn tokens(graph: &Graph, pass: &str, part: fn(u64) -> (u64, u64)) -> Result<Graph, CompileError> {
    let rows = graph.row_symbol().map(|(name, range)| (name.clone(), range));
    let range = rows.as_ref().map(|(_, range)| *range);
    let part = range.map(|r| (r, part(r.max))).filter(|(r, (min, max))| *min >= r.min && max <= &r.max && min <= max);
    let missing = || CompileError::option("--passes", format!("{pass}: the graph's tokens do not reach there"));
    let ((name, _), (_, (min, max))) = rows.zip(part).ok_or_else(missing)?;
    Ok(narrow(graph, &name, min, max))
}

fn fuse(graph: &Graph, args: &OptArgs) -> Result<Graph, CompileError> {
    let (fp_policy, chaos, fuel) = (Some(args.fp_policy.numerics()), args.chaos, args.fuel);
    let options = Options { fp_policy, chaos, fuel, ..Options::default() };
    Ok(optimise(graph, &weldment_passes::ReferenceTarget::default(), &options)?.graph)
}

/// `weldment opt`.
pub fn opt(args: &OptArgs) -> Result<(), CompileError> {
    let [graph] = <[Graph; 1]>::try_from(graphs::read_wir(&args.input)?).map_err(|graphs| {
        let message = format!("{} graphs; one is accepted here", graphs.len());
        CompileError::option(args.input.display().to_string(), message)
    })?;
    let mut graph = graph;
    let mut plan = None;
    let default = ["compact".to_owned(), "fuse".to_owned()];
    let names = if args.passes.is_empty() { default.as_slice() } else { &args.passes };
    for name in names {
        if name == PLAN {
            plan = Some(bufferise_with(&graph, &AnyStrides, args.chaos)?);
            continue;
        }
        let known = PASSES.iter().find(|(n, _, _)| n == name).ok_or_else(|| {
            let accepted: Vec<&str> = PASSES.iter().map(|(n, _, _)| *n).chain([PLAN]).collect();
            CompileError::option("--passes", format!("`{name}`; {} is accepted", accepted.join(", ")))
        })?;
        graph = known.1(&graph, args)?;
    }
    let mut out = text::print(&graph);
    if let Some(plan) = plan {
        out += &show_plan(&graph, &plan);
    }
    put_or_write(args.output.as_deref(), &out)
}

/// The schedule as comments below the graph, so that the whole still parses.
fn show_plan(graph: &Graph, plan: &BufferPlan) -> String {
    let mut out = format!(
        "# {} steps in {} epochs, arena {} bytes (at least {})\n",
        plan.steps.len(),
        plan.epochs(),
        plan.arena_bytes,
        plan.arena_lower_bound
    );
    for (i, step) in plan.steps.iter().enumerate() {
        let what = match &step.kind {
            StepKind::Kernel(id) => format!("%{} {}", id.index(), graph.node(*id).op.kind()),
            StepKind::Copy { value, ty } => format!("copy of %{}.{} {ty}", value.node.index(), value.result),
        };
        let views = |list: &[weldment_passes::buffer::View]| {
            list.iter().map(|v| format!("{:?}+{} {:?}", v.region, v.offset, v.strides)).collect::<Vec<_>>().join(", ")
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "# {i}{} {what}: {} -> {}",
            if step.barrier { " barrier" } else { "" },
            views(&step.reads),
            views(&step.writes)
        );
    }
    for copy in &plan.copies {
        let _ =
            writeln!(out, "# copy at step {}: {} bytes for {}: {}", copy.step, copy.bytes, copy.source, copy.reason);
    }
    out
}
