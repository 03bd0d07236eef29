//! One obstacle planted in each graph: the report names it, with its values, and says what to change.

mod collectives;
mod gates;
mod matmuls;
mod norms;
mod quantised;
#[path = "../support/mod.rs"]
mod support;
mod topk;

use support::Build;
use weldment_ir::{DType, Dim, Op, OpKind, Real, TensorType, Value};
use weldment_passes::report::{Outcome, Reason};
use weldment_passes::{Numerics, Options, ReferenceTarget, Refusal, TargetModel, optimise};

/// A graph, how it is compiled, and words that the reason of the fusion's first place left must hold.
struct Case {
    name: &'static str,
    group: &'static str,
    options: fn() -> Options,
    build: fn(&mut Build),
    says: &'static [&'static str],
}

fn t(dims: &[u64]) -> Vec<Dim> {
    [Dim::sym("T")].into_iter().chain(dims.iter().map(|n| Dim::Const(*n))).collect()
}

fn op(b: &mut Build, op: Op, operands: &[Value]) -> Value {
    let path = op.kind().info().name;
    b.push(path, op, operands)
}

fn x(b: &mut Build, name: &str, n: u64) -> Value {
    b.input(name, DType::F32, t(&[n]))
}

fn cast(b: &mut Build, v: Value, dtype: DType) -> Value {
    op(b, Op::Cast { dtype }, &[v])
}

fn matmul(b: &mut Build, v: Value, name: &str, w: DType, [n, k]: [u64; 2]) -> Value {
    let w = b.weight(name, w, &[n, k]);
    op(b, Op::Matmul { dtype: DType::F32 }, &[v, w])
}

fn norm(b: &mut Build, v: Value, n: u64) -> Value {
    let w = b.weight("norm.weight", DType::F32, &[n]);
    op(b, Op::RmsNorm { eps: Real(1e-5), dtype: DType::F32 }, &[v, w])
}

/// A norm written out, with what may vary.
struct Parts {
    sum: bool,
    axis: i64,
    known_epsilon: bool,
    epsilon: bool,
    weight: &'static [u64],
    exponent: bool,
}

const PARTS: Parts = Parts { sum: false, axis: 1, known_epsilon: true, epsilon: true, weight: &[64], exponent: false };

fn parts(b: &mut Build, v: Value, p: &Parts) -> Value {
    let square = op(b, Op::Mul {}, &[v, v]);
    let mean = if p.sum { Op::ReduceSum { axis: p.axis } } else { Op::ReduceMean { axis: p.axis } };
    let mean = op(b, mean, &[square]);
    let epsilon = if p.known_epsilon { b.constant(1e-5) } else { b.input("epsilon", DType::F32, vec![Dim::Const(1)]) };
    let shifted = if p.epsilon { op(b, Op::Add {}, &[mean, epsilon]) } else { mean };
    let root = op(b, Op::Rsqrt {}, &[shifted]);
    let root = if p.exponent { op(b, Op::Exp {}, &[root]) } else { root };
    let normed = op(b, Op::Mul {}, &[v, root]);
    let w = b.weight("norm.weight", DType::F32, p.weight);
    op(b, Op::Mul {}, &[normed, w])
}

/// A rotated key written to a cache, with `between` done to it and positions of its own where asked for.
fn written(b: &mut Build, between: Option<Op>, other_positions: bool, read_again: bool) {
    let x = b.input("key", DType::F32, t(&[1, 8]));
    let positions = b.input("positions", DType::I32, t(&[]));
    let second = if other_positions { b.input("write_positions", DType::I32, t(&[])) } else { positions };
    let ids = b.input("sequence_ids", DType::I32, t(&[]));
    let tables = b.input("block_tables", DType::I32, vec![Dim::sym("B"), Dim::sym("P")]);
    let cache = b.state("cache", DType::F32, vec![Dim::sym("N"), Dim::Const(1), Dim::Const(8), Dim::Const(16)]);
    let (theta, one) = (Real(100.0), Real(1.0));
    let table = Op::RopeTable { positions: 32, dim: 8, theta, factor: one, low: one, high: one, original: 0 };
    let table = op(b, table, &[]);
    let rotated = op(b, Op::Rope { interleaved: true }, &[x, positions, table]);
    if read_again {
        let aside = b.push("aside", Op::Neg {}, &[rotated]);
        b.result("aside", aside);
    }
    let rotated = between.map_or(rotated, |between| op(b, between, &[rotated]));
    let out = op(b, Op::CacheWrite { transposed: true }, &[cache, rotated, second, ids, tables]);
    b.graph.output("cache", weldment_ir::graph::OutputKind::State, out);
}

fn approx() -> Options {
    Options { fp_policy: Some(Numerics::Approx), ..Options::default() }
}

fn policy(p: Numerics) -> Options {
    Options { fp_policy: Some(p), ..Options::default() }
}

fn without(names: &[&str]) -> Options {
    Options { disabled: names.iter().map(|n| (*n).to_owned()).collect(), ..approx() }
}

fn no_epilogue() -> Options {
    without(&["matmul_epilogue"])
}

/// The reference target, with kernels of limited sizes.
struct Picky(ReferenceTarget);

impl TargetModel for Picky {
    fn supports(&self, op: &Op, operands: &[TensorType], _: &[TensorType]) -> Result<(), Refusal> {
        let hidden = operands.first().and_then(TensorType::last_constant).unwrap_or(0);
        let refuse = |precondition, accepted: &str| {
            Err(Refusal { precondition, found: hidden.to_string(), accepted: accepted.into() })
        };
        let fused = matches!(op.kind(), OpKind::AllReduceRmsNorm | OpKind::AllReduceAddRmsNorm);
        let world = op.world().unwrap_or(1);
        match op.kind() {
            _ if fused && !matches!(world, 2 | 4 | 8) => {
                let (found, accepted) = (world.to_string(), "2, 4 or 8".to_owned());
                Err(Refusal { precondition: "world size", found, accepted })
            }
            _ if fused && !hidden.is_multiple_of(8) => refuse("hidden size", "a multiple of 8"),
            OpKind::AddRmsNorm if !hidden.is_multiple_of(8) => refuse("hidden size", "a multiple of 8"),
            OpKind::Cast if *op == (Op::Cast { dtype: DType::Q8A }) && hidden == 96 => {
                refuse("row length", "a multiple of 64")
            }
            OpKind::RmsNormQuantise if !hidden.is_multiple_of(32) => refuse("row length", "a multiple of 32"),
            OpKind::SiluMul if hidden > 4096 => refuse("inner size", "at most 4096"),
            _ => Ok(()),
        }
    }

    fn cost(&self, op: &Op, a: &[TensorType], r: &[TensorType], dims: &dyn Fn(&str) -> u64) -> f64 {
        self.0.cost(op, a, r, dims)
    }
}

fn case(
    name: &'static str,
    group: &'static str,
    options: fn() -> Options,
    build: fn(&mut Build),
    says: &'static [&'static str],
) -> Case {
    Case { name, group, options, build, says }
}

#[test]
fn the_planted_obstacle_is_named() {
    let mut wrong = Vec::new();
    let all =
        [norms::cases(), gates::cases(), matmuls::cases(), topk::cases(), collectives::cases(), quantised::cases()];
    for case in all.into_iter().flatten() {
        let mut b = Build::new(case.name);
        for (name, max) in [("T", 8), ("B", 2), ("P", 2), ("N", 4)] {
            b.graph.declare_symbol(name, 1, max);
        }
        (case.build)(&mut b);
        let out = optimise(&b.graph, &Picky(ReferenceTarget::default()), &(case.options)())
            .unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let group = out.report.group(case.group).unwrap_or_else(|| panic!("{}", case.group));
        let reasons: Vec<&Reason> = group
            .anchors
            .iter()
            .filter_map(|a| match &a.outcome {
                Outcome::Kept { reason } => Some(reason),
                _ => None,
            })
            .collect();
        let text = reasons.first().map_or_else(|| format!("nothing kept: {group}"), ToString::to_string);
        println!("{}: {text}", case.name);
        if !case.says.iter().all(|words| text.contains(words)) {
            wrong.push(format!("{}: {text}\n    expected {:?}", case.name, case.says));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
