//! Every rule alone: a graph where it fires, one where it must not, and equality of the rewritten graph.

use super::{GROUPS, Numerics, Rule, all};
use crate::egraph::Limits;
use crate::pipeline::{rebuild, solve_units};
use crate::probe::Probe;
use crate::solve::Solver;
use crate::target::ReferenceTarget;
use std::collections::BTreeSet;
use weldment_ir::interpret::Options as Interpret;
use weldment_ir::{DType, Dim, Graph, Op, Real, Value};

mod bounds;
mod customs;
mod draw;
mod equivalent;
mod fusions;
mod gate;
mod mutants;
mod mutate;
mod numbers;
#[path = "../../../tests/support/mod.rs"]
mod support;
mod topk;
mod views;

use support::{Build, Decoder, Random, TINY, assert_ring_equal, f64_error, listing};

/// How the two sides are compared.
#[derive(Clone, Copy, Debug)]
enum Equal {
    /// In the ring, casts hashed.
    Ring,
    /// In the ring, casts as identity.
    RingIdeal,
    /// In f64, every cast rounding: rules about casts, which the ring hashes, and about functions it does not relate.
    F64,
}

struct Case {
    rule: &'static str,
    equal: Equal,
    fires: fn(&mut Build) -> Value,
    refrains: fn(&mut Build) -> Value,
}

fn t(dims: &[u64]) -> Vec<Dim> {
    [Dim::sym("T")].into_iter().chain(dims.iter().map(|n| Dim::Const(*n))).collect()
}

fn x(b: &mut Build, n: u64) -> Value {
    b.input("x", DType::F32, t(&[n]))
}

fn typed(b: &mut Build, name: &str, dtype: DType, n: u64) -> Value {
    b.input(name, dtype, t(&[n]))
}

fn op(b: &mut Build, op: Op, operands: &[Value]) -> Value {
    let path = op.kind().info().name;
    b.push(path, op, operands)
}

fn reshape(b: &mut Build, v: Value, dims: &[u64]) -> Value {
    op(b, Op::Reshape { shape: t(dims) }, &[v])
}

fn cast(b: &mut Build, v: Value, dtype: DType) -> Value {
    op(b, Op::Cast { dtype }, &[v])
}

fn slice(b: &mut Build, v: Value, start: i64, end: i64) -> Value {
    op(b, Op::Slice { axis: 1, start, end }, &[v])
}

fn norm(b: &mut Build, v: Value, n: u64, dtype: DType) -> Value {
    let w = b.weight("norm", DType::F32, &[n]);
    op(b, Op::RmsNorm { eps: Real(0.0625), dtype }, &[v, w])
}

fn matmul(b: &mut Build, v: Value, name: &str, w: DType, n: u64, k: u64, dtype: DType) -> Value {
    let w = b.weight(name, w, &[n, k]);
    op(b, Op::Matmul { dtype }, &[v, w])
}

/// x * rsqrt(mean(x * x, axis) + eps)
fn normed(b: &mut Build, v: Value, axis: i64) -> Value {
    let s = op(b, Op::Mul {}, &[v, v]);
    let m = op(b, Op::ReduceMean { axis }, &[s]);
    let e = b.constant(0.0625);
    let a = op(b, Op::Add {}, &[m, e]);
    op(b, Op::Rsqrt {}, &[a])
}

fn gate(b: &mut Build, dtype: DType) -> (Value, Value) {
    (typed(b, "g", dtype, 32), typed(b, "u", dtype, 32))
}

fn write(b: &mut Build, rotate: bool, other_positions: bool) -> Value {
    let x = b.input("x", DType::F32, t(&[1, 8]));
    let positions = b.input("positions", DType::I32, t(&[]));
    let second = if other_positions { b.input("positions2", DType::I32, t(&[])) } else { positions };
    let ids = b.input("sequence_ids", DType::I32, t(&[]));
    let tables = b.input("block_tables", DType::I32, vec![Dim::sym("B"), Dim::sym("P")]);
    let cache = b.state("cache", DType::F32, vec![Dim::sym("N"), Dim::Const(1), Dim::Const(8), Dim::Const(16)]);
    let table = Op::RopeTable {
        positions: 32,
        dim: 8,
        theta: Real(100.0),
        factor: Real(1.0),
        low: Real(1.0),
        high: Real(1.0),
        original: 0,
    };
    let table = op(b, table, &[]);
    let x = if rotate { op(b, Op::Rope { interleaved: true }, &[x, positions, table]) } else { x };
    op(b, Op::CacheWrite { transposed: true }, &[cache, x, second, ids, tables])
}

fn attend(b: &mut Build, dtype: DType) -> Value {
    let q = b.input("q", DType::F32, t(&[2, 32]));
    let k = b.state("k", DType::F32, vec![Dim::sym("N"), Dim::Const(1), Dim::Const(32), Dim::Const(16)]);
    let v = b.state("v", DType::F32, vec![Dim::sym("N"), Dim::Const(1), Dim::Const(16), Dim::Const(32)]);
    let positions = b.input("positions", DType::I32, t(&[]));
    let ids = b.input("sequence_ids", DType::I32, t(&[]));
    let tables = b.input("block_tables", DType::I32, vec![Dim::sym("B"), Dim::sym("P")]);
    op(b, Op::Attention { scale: Real(0.5), dtype }, &[q, k, v, positions, ids, tables])
}

/// Joins values into one output.
fn both(b: &mut Build, values: &[Value]) -> Value {
    op(b, Op::Concat { axis: 1 }, values)
}

fn case(rule: &'static str, equal: Equal, fires: fn(&mut Build) -> Value, refrains: fn(&mut Build) -> Value) -> Case {
    Case { rule, equal, fires, refrains }
}

fn cases() -> Vec<Case> {
    views::cases().into_iter().chain(fusions::cases()).chain(topk::cases()).collect()
}

fn build(make: fn(&mut Build) -> Value) -> Graph {
    let mut b = Build::new("case");
    for (name, max) in [("T", 6), ("B", 2), ("P", 2), ("N", 4)] {
        b.graph.declare_symbol(name, 1, max);
    }
    let out = make(&mut b);
    match make_state(&b.graph, out) {
        Some(name) => b.graph.output(&name, weldment_ir::graph::OutputKind::State, out),
        // The interpreter hands back float values; q8a ones are read through a cast.
        None => {
            let out = if b.graph.type_of(out).dtype == DType::Q8A { cast(&mut b, out, DType::F32) } else { out };
            b.result("out", out);
        }
    }
    b.graph
}

fn make_state(graph: &Graph, out: Value) -> Option<String> {
    (graph.node(out.node).op.kind() == weldment_ir::OpKind::CacheWrite).then(|| "cache".to_owned())
}

/// The graph with one rule applied, or None if it did not fire.
fn apply(graph: &Graph, name: &str) -> Option<Graph> {
    let rules = all();
    let chosen: Vec<&Rule> = rules.iter().filter(|r| r.name == name).collect();
    let target = ReferenceTarget::default();
    let dims = |_: &str| 4u64;
    let solver = Solver {
        rules: chosen,
        barred: Vec::new(),
        target: &target,
        limits: Limits::default(),
        probe: &Probe::default(),
        dims: &dims,
        favour_made: true,
    };
    let units = solve_units(graph, &solver, false).unwrap_or_else(|e| panic!("{name}: {e}"));
    let fired = units.recipes.iter().any(|(_, r)| r.matches.contains_key(name));
    let (out, _) = rebuild(graph, &units).unwrap_or_else(|e| panic!("{name}: {e}"));
    fired.then_some(out)
}

#[test]
fn every_rule_parses_and_names_are_unique() {
    let rules = all();
    let names: BTreeSet<&str> = rules.iter().map(|r| r.name).collect();
    assert_eq!(names.len(), rules.len());
    for rule in &rules {
        assert!(!rule.doc.trim().is_empty(), "{} has a statement", rule.name);
        assert!(rule.group.is_none_or(|g| GROUPS.contains(&g)), "{}: group {:?}", rule.name, rule.group);
        assert!(rule.class != Numerics::Approx || rule.doc.contains("Bound:"), "{} states a bound", rule.name);
        let moved = rule.doc.contains("moved:");
        assert!((rule.class == Numerics::Rounding) == moved, "{} says which rounding moves", rule.name);
    }
}

#[test]
fn every_rule_has_a_case() {
    let covered: BTreeSet<&str> = cases().iter().map(|c| c.rule).collect();
    let missing: Vec<&str> = all().iter().map(|r| r.name).filter(|n| !covered.contains(n)).collect();
    assert!(missing.is_empty(), "rules without a case: {missing:?}");
}

#[test]
fn rules_fire_refrain_and_hold() {
    let failed: Vec<&str> =
        cases().iter().filter(|c| std::panic::catch_unwind(|| check(c)).is_err()).map(|c| c.rule).collect();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

fn check(case: &Case) {
    let graph = build(case.fires);
    let Some(out) = apply(&graph, case.rule) else { panic!("{} does not fire on\n{}", case.rule, listing(&graph)) };
    assert_ne!(listing(&graph), listing(&out), "{} changes nothing", case.rule);
    match case.equal {
        Equal::Ring => assert_ring_equal(&graph, &out, false, 20),
        Equal::RingIdeal => assert_ring_equal(&graph, &out, true, 20),
        Equal::F64 => {
            let error = f64_error(&graph, &out, &Interpret::default(), 20);
            assert!(error < 1e-12, "{}: {error}", case.rule);
        }
    }
    let graph = build(case.refrains);
    if let Some(out) = apply(&graph, case.rule) {
        panic!("{} fires on\n{}giving\n{}", case.rule, listing(&graph), listing(&out));
    }
}

#[test]
fn the_order_of_rules_does_not_matter() {
    let base = Decoder { weights: DType::Q4_1, v_weights: DType::Q4_1, hidden: 256, heads: 4, inner: 256, ..TINY };
    for config in [TINY, base, Decoder { qkv_bias: true, qk_norm: true, v_weights: DType::Q6K, ..base }] {
        let graph = config.build();
        let rules = all();
        let target = ReferenceTarget::default();
        let dims = |_: &str| 1u64;
        let mut random = Random(0x1234_5678_9ABC_DEF1);
        let mut first: Option<String> = None;
        for _ in 0..20 {
            let mut order: Vec<&Rule> = rules.iter().collect();
            for i in (1..order.len()).rev() {
                order.swap(i, random.below(i as u64 + 1) as usize);
            }
            let (limits, barred) = (Limits::default(), Vec::new());
            let probe = &Probe::default();
            let solver =
                Solver { rules: order, barred, target: &target, limits, probe, dims: &dims, favour_made: false };
            let units = solve_units(&graph, &solver, true).unwrap_or_else(|e| panic!("{e}"));
            let text = listing(&rebuild(&graph, &units).unwrap_or_else(|e| panic!("{e}")).0);
            assert_eq!(first.get_or_insert_with(|| text.clone()), &text);
        }
    }
}
