//! Ranges: an entry is split wherever a fusion or a kernel depends on a symbol's value, each part is optimised alone, and
//! neighbours that came out equal are joined again. A part's ranges are its guards: dispatch checks them on every launch.

use crate::rules;
use crate::target::TargetModel;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weldment_artifact::SymbolRole;
use weldment_ir::{Dim, Graph, NodeId, Op, Range, TensorType, text};

/// A value at which something changes: `symbol <= at` and `symbol > at` may want different code.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Threshold {
    /// The symbol.
    pub symbol: Arc<str>,
    /// Largest value of the lower side.
    pub at: u64,
    /// What changes, for people: `topk k = 2048`.
    pub why: String,
}

/// Ranges of the split symbols, in the order of the symbols.
type Cell = Vec<(Arc<str>, Range)>;

/// A specialisation of the entry: its graph, and the ranges it assumed.
#[derive(Clone, Debug)]
pub struct Variant {
    /// For file names and reports: `decode`, `prefill.context_over_2048`.
    pub name: String,
    /// The entry with narrowed symbols.
    pub graph: Graph,
    /// (symbol, smallest, largest) for each symbol that was narrowed: what a launch must satisfy.
    pub guards: Vec<(String, u64, u64)>,
    /// The split symbols and this variant's range of each.
    cell: Cell,
}

/// The graph with `symbol` in `min..=max`, and whatever it bounds narrowed too.
pub fn narrow(graph: &Graph, symbol: &str, min: u64, max: u64) -> Graph {
    let mut graph = graph.clone();
    graph.declare_symbol(symbol, min, max);
    // Rows whose results are asked for are tokens of the step.
    let rows = graph.symbol_of(&SymbolRole::LogitRows).map(|(name, range)| (Arc::clone(name), range));
    // Where they stride what the caller sees, all variants have the same.
    let rows = rows.filter(|(rows, _)| !external_strides(&graph).contains(rows));
    if let Some((rows, range)) = rows.filter(|_| *graph.role(symbol) == SymbolRole::Tokens) {
        graph.declare_symbol(&rows, range.min, range.max.min(max));
    }
    graph
}

fn operand_types(graph: &Graph, id: NodeId) -> Vec<TensorType> {
    graph.node(id).operands.iter().map(|v| graph.type_of(*v).clone()).collect()
}

/// Where the kernels of `target` for a node change.
fn kernel_thresholds(graph: &Graph, id: NodeId, target: &dyn TargetModel) -> Vec<Threshold> {
    target.thresholds(&graph.node(id).op, &operand_types(graph, id), &graph.node(id).types)
}

/// What of `id` depends on a symbol's value: the kernels of `target`, and the rules.
fn node_thresholds(graph: &Graph, id: NodeId, target: &dyn TargetModel) -> Vec<Threshold> {
    let mut found = kernel_thresholds(graph, id, target);
    found.extend(rules::thresholds(&graph.node(id).op, &operand_types(graph, id)));
    found
}

/// Symbols that stride a dim of what the caller sees: their largest value is part of its layout, which all variants share.
fn external_strides(graph: &Graph) -> BTreeSet<Arc<str>> {
    let leaves = graph.ids().filter(|id| matches!(graph.node(*id).op, Op::Input { .. } | Op::State { .. }));
    let leaves = leaves.flat_map(|id| graph.node(id).types.iter());
    let types = leaves.chain(graph.outputs().iter().map(|o| graph.type_of(o.value)));
    let inner = types.flat_map(|t| t.shape.iter().skip(1));
    inner.filter_map(|d| if let Dim::Sym(s) = d { Some(Arc::clone(s)) } else { None }).collect()
}

/// Every threshold of the live graph that lies inside its symbol's range and may split it.
pub fn thresholds(graph: &Graph, target: &dyn TargetModel) -> BTreeSet<Threshold> {
    let (live, shared) = (graph.live(), external_strides(graph));
    let inside = |t: &Threshold| {
        let within = graph.symbols().get(&t.symbol).is_some_and(|r| (r.min..r.max).contains(&t.at));
        within && !shared.contains(&t.symbol)
    };
    let nodes = graph.ids().filter(|id| live[id.index()]);
    nodes.flat_map(|id| node_thresholds(graph, id, target)).filter(inside).collect()
}

/// `range` cut at `cuts`, ascending.
fn pieces(range: Range, cuts: &BTreeSet<u64>) -> Vec<Range> {
    let mut out = Vec::with_capacity(cuts.len() + 1);
    let mut min = range.min;
    for at in cuts.iter().filter(|at| (range.min..range.max).contains(at)) {
        out.push(Range { min, max: *at });
        min = at + 1;
    }
    out.push(Range { min, max: range.max });
    out
}

/// The entry split at `thresholds`: together the variants cover the declared ranges, each value once; the first symbol's
/// ranges are outermost, ascending.
pub fn split(graph: &Graph, thresholds: &BTreeSet<Threshold>) -> Vec<Variant> {
    let mut cuts: BTreeMap<&Arc<str>, BTreeSet<u64>> = BTreeMap::new();
    for t in thresholds {
        cuts.entry(&t.symbol).or_default().insert(t.at);
    }
    let mut cells: Vec<Cell> = vec![Vec::new()];
    for (symbol, range) in graph.symbols() {
        let Some(cuts) = cuts.get(symbol) else { continue };
        let parts = pieces(*range, cuts);
        let with =
            |cell: &Cell, part: &Range| cell.iter().cloned().chain([(Arc::clone(symbol), *part)]).collect::<Cell>();
        cells = cells.iter().flat_map(|cell| parts.iter().map(move |part| with(cell, part))).collect();
    }
    cells.into_iter().map(|cell| variant(graph, cell)).collect()
}

fn variant(entry: &Graph, cell: Cell) -> Variant {
    let mut graph = entry.clone();
    for (symbol, range) in &cell {
        graph = narrow(&graph, symbol, range.min, range.max);
    }
    let narrowed = graph.symbols().iter().filter(|(name, range)| entry.symbols().get(*name) != Some(range));
    let guards = narrowed.map(|(name, range)| (name.to_string(), range.min, range.max)).collect();
    let parts: Vec<String> = cell.iter().filter_map(|(symbol, range)| part_name(entry, symbol, *range)).collect();
    let name = if parts.is_empty() { "all".to_owned() } else { parts.join(".") };
    graph.name = format!("{}.{name}", entry.name);
    Variant { name, graph, guards, cell }
}

/// What a variant is called for its range of one symbol; `None` for the whole range.
fn part_name(entry: &Graph, symbol: &str, range: Range) -> Option<String> {
    let whole = *entry.symbols().get(symbol)?;
    if range == whole {
        return None;
    }
    let word = match entry.role(symbol) {
        SymbolRole::Tokens if range.max == 1 => return Some("decode".to_owned()),
        SymbolRole::Tokens if range.max == whole.max => return Some("prefill".to_owned()),
        SymbolRole::Tokens => "tokens",
        SymbolRole::Sequences => "seqs",
        SymbolRole::Context => "context",
        _ => symbol,
    };
    Some(if range.max == whole.max {
        format!("{word}_over_{}", range.min - 1)
    } else {
        format!("{word}_{}", range.max)
    })
}

/// A variant with what became of it.
#[derive(Clone, Debug)]
pub struct Specialised<T> {
    /// Its ranges and the graph before any rule.
    pub variant: Variant,
    /// The graph after.
    pub fused: Graph,
    /// Whatever else belongs to it; of joined variants, that of the one with the largest sizes.
    pub rest: T,
}

/// Joins neighbours (ranges that touch in one symbol, the others equal) whose graphs came out equal and whose kernels do not
/// depend on the value between them.
pub fn merge<T>(entry: &Graph, variants: Vec<Specialised<T>>, target: &dyn TargetModel) -> Vec<Specialised<T>> {
    let mut out: Vec<Specialised<T>> = Vec::with_capacity(variants.len());
    for next in variants {
        out.push(next);
        // A joined variant may in turn equal its own neighbour along another symbol.
        while let Some((at, cell)) = joinable(&out, target) {
            let Some(upper) = out.pop() else { break };
            let joined = variant(entry, cell);
            let mut fused = upper.fused;
            for (symbol, range) in joined.graph.symbols() {
                fused.declare_symbol(symbol, range.min, range.max);
            }
            fused.name.clone_from(&joined.graph.name);
            out[at] = Specialised { variant: joined, fused, rest: upper.rest };
        }
    }
    out
}

/// The place of an earlier variant that the last one can be joined with, and the ranges of both together.
fn joinable<T>(variants: &[Specialised<T>], target: &dyn TargetModel) -> Option<(usize, Cell)> {
    let (last, earlier) = variants.split_last()?;
    earlier.iter().enumerate().find_map(|(i, lower)| {
        let (a, b) = (&lower.variant.cell, &last.variant.cell);
        let mut apart = a.iter().zip(b).enumerate().filter(|(_, (x, y))| x.1 != y.1);
        let (axis, (x, y)) = apart.next().filter(|_| a.len() == b.len())?;
        let touching = apart.next().is_none() && x.1.max + 1 == y.1.min;
        let same = touching && body(&lower.fused) == body(&last.fused);
        if !same || depends(&last.fused, &x.0, x.1.max, target) {
            return None;
        }
        let mut cell = a.clone();
        cell[axis].1.max = y.1.max;
        Some((i, cell))
    })
}

/// The text of a graph's nodes and outputs, without the line that names it and its ranges.
fn body(graph: &Graph) -> String {
    let text = text::print(graph);
    text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned())
}

/// True if a kernel of the graph depends on whether `symbol <= at`.
fn depends(graph: &Graph, symbol: &str, at: u64, target: &dyn TargetModel) -> bool {
    graph.ids().any(|id| {
        let found = kernel_thresholds(graph, id, target);
        found.iter().any(|t| &*t.symbol == symbol && t.at == at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{ReferenceTarget, Refusal};
    use weldment_ir::{DType, OutputKind};

    /// A target whose kernels for silu change at 16 tokens.
    struct Stepped;

    impl TargetModel for Stepped {
        fn supports(&self, _: &Op, _: &[TensorType], _: &[TensorType]) -> Result<(), Refusal> {
            Ok(())
        }

        fn cost(&self, op: &Op, a: &[TensorType], r: &[TensorType], dims: &dyn Fn(&str) -> u64) -> f64 {
            ReferenceTarget::default().cost(op, a, r, dims)
        }

        fn thresholds(&self, op: &Op, _: &[TensorType], _: &[TensorType]) -> Vec<Threshold> {
            match op {
                Op::Silu {} => vec![Threshold { symbol: "T".into(), at: 16, why: "silu tiles".into() }],
                _ => Vec::new(),
            }
        }
    }

    fn entry(op: Op) -> Graph {
        let mut graph = Graph::new("step");
        graph.declare("T", 1, 64, SymbolRole::Tokens);
        graph.declare("R", 1, 64, SymbolRole::LogitRows);
        graph.declare("C", 1, 100, SymbolRole::Context);
        let shape = vec![Dim::sym("T"), Dim::Const(8)];
        let x = graph.push("x", Op::input("x", DType::F32, shape), &[]).unwrap();
        let y = graph.push("y", op, &[x]).unwrap();
        graph.output("y", OutputKind::Result, y);
        graph
    }

    fn cuts(list: &[(&str, u64)]) -> BTreeSet<Threshold> {
        list.iter().map(|(s, at)| Threshold { symbol: (*s).into(), at: *at, why: String::new() }).collect()
    }

    /// A variant's name and guards.
    type Found = (String, Vec<(String, u64, u64)>);

    fn merged(graph: &Graph, cut: &[(&str, u64)]) -> Vec<Found> {
        let parts = split(graph, &cuts(cut));
        let parts = parts.into_iter().map(|variant| Specialised { fused: variant.graph.clone(), variant, rest: () });
        merge(graph, parts.collect(), &Stepped).into_iter().map(|s| (s.variant.name, s.variant.guards)).collect()
    }

    #[test]
    fn variants_cover_every_value_once() {
        let graph = entry(Op::Silu {});
        let parts = split(&graph, &cuts(&[("T", 1), ("T", 16), ("C", 40)]));
        let names: Vec<&str> = parts.iter().map(|v| v.name.as_str()).collect();
        let expected = [
            "decode.context_40",
            "decode.context_over_40",
            "tokens_16.context_40",
            "tokens_16.context_over_40",
            "prefill.context_40",
            "prefill.context_over_40",
        ];
        assert_eq!(names, expected);
        for (t, c) in [(1, 1), (1, 40), (1, 41), (2, 100), (16, 40), (17, 41), (64, 100)] {
            let accepts = |v: &&Variant| {
                v.guards.iter().all(|(s, min, max)| match s.as_str() {
                    "T" => (*min..=*max).contains(&t),
                    "C" => (*min..=*max).contains(&c),
                    _ => true,
                })
            };
            assert_eq!(parts.iter().filter(accepts).count(), 1, "T = {t}, C = {c}");
        }
        // Rows of logits are bounded by tokens.
        assert!(parts[0].guards.contains(&("R".to_owned(), 1, 1)), "{:?}", parts[0].guards);
    }

    #[test]
    fn only_thresholds_inside_a_range_split_it() {
        let graph = entry(Op::Silu {});
        let found = thresholds(&graph, &Stepped);
        assert_eq!(found.iter().map(|t| t.at).collect::<Vec<_>>(), [16]);
        assert!(thresholds(&narrow(&graph, "T", 1, 16), &Stepped).is_empty());
        assert!(thresholds(&narrow(&graph, "T", 17, 64), &Stepped).is_empty());
        assert_eq!(split(&graph, &BTreeSet::new()).len(), 1);
    }

    #[test]
    fn what_strides_an_output_is_not_split() {
        let mut graph = entry(Op::Silu {});
        let shape = vec![Dim::Const(8), Dim::sym("T")];
        let x = graph.push("z", Op::input("z", DType::F32, shape), &[]).unwrap();
        graph.output("z", OutputKind::Result, x);
        assert!(thresholds(&graph, &Stepped).is_empty());
    }

    #[test]
    fn equal_neighbours_are_one_variant() {
        let whole = vec![("all".to_owned(), Vec::new())];
        // Nothing in the graph depends on the cuts.
        assert_eq!(merged(&entry(Op::Neg {}), &[("T", 1), ("T", 16), ("C", 40)]), whole);
        // The kernel does at 16, and only there.
        let found = merged(&entry(Op::Silu {}), &[("T", 1), ("T", 16), ("C", 40)]);
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["tokens_16", "prefill"]);
        assert_eq!(found[0].1, [("T".to_owned(), 1, 16), ("R".to_owned(), 1, 16)]);
    }

    #[test]
    fn neighbours_that_differ_stay_apart() {
        let graph = entry(Op::Neg {});
        let parts = split(&graph, &cuts(&[("C", 40)]));
        let other = entry(Op::Tanh {});
        let parts = parts.into_iter().zip([graph.clone(), other]);
        let parts = parts.map(|(variant, fused)| Specialised { variant, fused, rest: () }).collect();
        let found = merge(&graph, parts, &Stepped);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].variant.guards, [("C".to_owned(), 41, 100)]);
    }
}
