//! One obstacle planted in each graph: the report names it, with its values, and says what to change.

mod support;

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
        match op.kind() {
            OpKind::AddRmsNorm if !hidden.is_multiple_of(8) => refuse("hidden size", "a multiple of 8"),
            OpKind::Cast if *op == (Op::Cast { dtype: DType::Q8A }) && hidden == 96 => {
                refuse("row length", "a multiple of 64")
            }
            OpKind::SiluMul if hidden > 4096 => refuse("inner size", "at most 4096"),
            _ => Ok(()),
        }
    }

    fn cost(&self, op: &Op, a: &[TensorType], r: &[TensorType], dims: &dyn Fn(&str) -> u64) -> f64 {
        self.0.cost(op, a, r, dims)
    }
}

fn cases() -> Vec<Case> {
    let case = |name, group, options, build, says| Case { name, group, options, build, says };
    vec![
        case(
            "hidden size 7172",
            "add_rms_norm",
            approx,
            |b| {
                let (x, r) = (x(b, "x", 7172), x(b, "r", 7172));
                let sum = op(b, Op::Add {}, &[x, r]);
                let out = norm(b, sum, 7172);
                b.result("out", out);
            },
            &["add_rms_norm kernel: hidden size is 7172", "a multiple of 8 (7172 -> 7176)"],
        ),
        case(
            "inner size over a limit",
            "silu_mul",
            approx,
            |b| {
                let (g, u) = (x(b, "g", 8192), x(b, "u", 8192));
                let g = op(b, Op::Silu {}, &[g]);
                let out = op(b, Op::Mul {}, &[g, u]);
                b.result("out", out);
            },
            &["silu_mul kernel: inner size is 8192", "at most 4096 (8192 -> 4096)"],
        ),
        case(
            "a sum of squares",
            "rms_norm",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let out = parts(b, x, &Parts { sum: true, ..PARTS });
                b.result("out", out);
            },
            &["reduce_sum", "reduce_mean is accepted"],
        ),
        case(
            "a mean along another axis",
            "rms_norm",
            approx,
            |b| {
                let x = b.input("x", DType::F32, vec![Dim::Const(8), Dim::Const(64)]);
                let out = parts(b, x, &Parts { axis: 0, ..PARTS });
                b.result("out", out);
            },
            &["axis is 0 of f32[8, 64]", "the last axis"],
        ),
        case(
            "an epsilon that is an input",
            "rms_norm",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let out = parts(b, x, &Parts { known_epsilon: false, ..PARTS });
                b.result("out", out);
            },
            &["epsilon is unknown", "a known number >= 0"],
        ),
        case(
            "no epsilon",
            "rms_norm",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let out = parts(b, x, &Parts { epsilon: false, ..PARTS });
                b.result("out", out);
            },
            &["a of rsqrt is reduce_mean", "no add"],
        ),
        case(
            "a norm weight of two dims",
            "rms_norm",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let out = parts(b, x, &Parts { weight: &[1, 64], ..PARTS });
                b.result("out", out);
            },
            &["rank is f32[1, 64]", "rank 1"],
        ),
        case(
            "an op between the root and the product",
            "rms_norm",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let out = parts(b, x, &Parts { exponent: true, ..PARTS });
                b.result("out", out);
            },
            &["between rsqrt and mul is exp"],
        ),
        case(
            "norms of groups",
            "rms_norm",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let x = op(b, Op::Reshape { shape: t(&[4, 16]) }, &[x]);
                let square = op(b, Op::Mul {}, &[x, x]);
                let mean = op(b, Op::ReduceMean { axis: 2 }, &[square]);
                let e = b.constant(1e-5);
                let shifted = op(b, Op::Add {}, &[mean, e]);
                let root = op(b, Op::Rsqrt {}, &[shifted]);
                let normed = op(b, Op::Mul {}, &[x, root]);
                let normed = op(b, Op::Reshape { shape: t(&[64]) }, &[normed]);
                let w = b.weight("norm.weight", DType::F32, &[64]);
                let out = op(b, Op::Mul {}, &[normed, w]);
                b.result("out", out);
            },
            &["between mul and mul is reshape from f32[T, 4, 16] to f32[T, 64]"],
        ),
        case(
            "a root that is read again",
            "rms_norm",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let out = parts(b, x, &PARTS);
                b.result("out", out);
                let square = op(b, Op::Mul {}, &[x, x]);
                let mean = op(b, Op::ReduceMean { axis: 1 }, &[square]);
                let e = b.constant(1e-5);
                let shifted = op(b, Op::Add {}, &[mean, e]);
                let root = op(b, Op::Rsqrt {}, &[shifted]);
                let aside = b.push("aside", Op::Neg {}, &[root]);
                b.result("aside", aside);
            },
            &["also read by aside"],
        ),
        case(
            "reassociation barred",
            "rms_norm",
            || policy(Numerics::Bitwise),
            |b| {
                let x = x(b, "x", 64);
                let out = parts(b, x, &PARTS);
                b.result("out", out);
            },
            &["is reassoc, the policy allows bitwise"],
        ),
        case(
            "switched off",
            "silu_mul",
            || without(&["silu_mul"]),
            |b| {
                let (g, u) = (x(b, "g", 64), x(b, "u", 64));
                let g = op(b, Op::Silu {}, &[g]);
                let out = op(b, Op::Mul {}, &[g, u]);
                b.result("out", out);
            },
            &["switched off by --disable silu_mul"],
        ),
        case(
            "an opaque op before a norm",
            "add_rms_norm",
            approx,
            |b| {
                let (x, r) = (x(b, "x", 64), x(b, "r", 64));
                let sum = op(b, Op::Add {}, &[x, r]);
                let sum = op(b, Op::Tanh {}, &[sum]);
                let out = norm(b, sum, 64);
                b.result("out", out);
            },
            &["between add and rms_norm is tanh"],
        ),
        case(
            "a sum that broadcasts",
            "add_rms_norm",
            approx,
            |b| {
                let (x, r) = (x(b, "x", 64), b.input("r", DType::F32, vec![Dim::Const(1), Dim::Const(64)]));
                let sum = op(b, Op::Add {}, &[x, r]);
                let out = norm(b, sum, 64);
                b.result("out", out);
            },
            &["same type is", "f32[T, 64]", "f32[1, 64]"],
        ),
        case(
            "a cast between a sum and a norm",
            "add_rms_norm",
            approx,
            |b| {
                let shape = t(&[64]);
                let (x, r) = (b.input("x", DType::BF16, shape.clone()), b.input("r", DType::BF16, shape));
                let sum = op(b, Op::Add {}, &[x, r]);
                let sum = cast(b, sum, DType::F32);
                let out = norm(b, sum, 64);
                b.result("out", out);
            },
            &["between add and rms_norm is cast from bf16[T, 64] to f32[T, 64]"],
        ),
        case(
            "an opaque op in a gate",
            "silu_mul",
            approx,
            |b| {
                let (g, u) = (x(b, "g", 64), x(b, "u", 64));
                let g = op(b, Op::Silu {}, &[g]);
                let g = op(b, Op::Neg {}, &[g]);
                let out = op(b, Op::Mul {}, &[g, u]);
                b.result("out", out);
            },
            &["between silu and mul is neg"],
        ),
        case(
            "a gate of another value",
            "silu_mul",
            approx,
            |b| {
                let (g, u) = (x(b, "g", 64), x(b, "u", 64));
                let s = op(b, Op::Sigmoid {}, &[u]);
                let out = op(b, Op::Mul {}, &[g, s]);
                b.result("out", out);
            },
            &["two values", "input g", "input u"],
        ),
        case(
            "a gate that broadcasts",
            "silu_mul",
            approx,
            |b| {
                let (g, u) = (x(b, "g", 64), x(b, "u", 1));
                let g = op(b, Op::Silu {}, &[g]);
                let out = op(b, Op::Mul {}, &[g, u]);
                b.result("out", out);
            },
            &["same type is f32[T, 64] and f32[T, 1]"],
        ),
        case(
            "a gate that is read again",
            "silu_mul",
            approx,
            |b| {
                let (g, u) = (x(b, "g", 64), x(b, "u", 64));
                let g = op(b, Op::Silu {}, &[g]);
                let out = op(b, Op::Mul {}, &[g, u]);
                let aside = b.push("aside", Op::Exp {}, &[g]);
                b.result("out", out);
                b.result("aside", aside);
            },
            &["also read by aside"],
        ),
        case(
            "half of a gate written out, and an op between",
            "silu_mul",
            approx,
            |b| {
                let (g, u) = (x(b, "g", 64), x(b, "u", 64));
                let s = op(b, Op::Sigmoid {}, &[g]);
                let g = op(b, Op::Mul {}, &[g, s]);
                let g = op(b, Op::Tanh {}, &[g]);
                let out = op(b, Op::Mul {}, &[g, u]);
                b.result("out", out);
            },
            &["between silu and mul is tanh"],
        ),
        case(
            "a gate in two dtypes",
            "silu_mul",
            approx,
            |b| {
                let (g, u) = (b.input("g", DType::BF16, t(&[64])), x(b, "u", 64));
                let g = op(b, Op::Silu {}, &[g]);
                let g = cast(b, g, DType::F32);
                let out = op(b, Op::Mul {}, &[g, u]);
                b.result("out", out);
            },
            &["between silu and mul is cast from bf16[T, 64] to f32[T, 64]", "one dtype"],
        ),
        case(
            "positions of two kinds",
            "rope_cache_write",
            approx,
            |b| written(b, None, true, false),
            &["positions", "two values, input positions i32[T] and input write_positions i32[T]"],
        ),
        case(
            "an opaque op before a cache",
            "rope_cache_write",
            approx,
            |b| written(b, Some(Op::Tanh {}), false, false),
            &["between rope and cache_write is tanh"],
        ),
        case(
            "a key that is read again",
            "rope_cache_write",
            approx,
            |b| written(b, None, false, true),
            &["also read by aside"],
        ),
        case(
            "a bias for more rows",
            "matmul_epilogue",
            approx,
            |b| {
                let x = b.input("x", DType::F32, vec![Dim::Const(1), Dim::Const(64)]);
                let p = matmul(b, x, "w", DType::F32, [32, 64]);
                let r = b.input("r", DType::F32, t(&[32]));
                let out = op(b, Op::Add {}, &[p, r]);
                b.result("out", out);
            },
            &["broadcast is f32[T, 32] into f32[1, 32]", "equal dims or 1"],
        ),
        case(
            "a bias of a higher rank",
            "matmul_epilogue",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let p = matmul(b, x, "w", DType::F32, [32, 64]);
                let r = b.input("r", DType::F32, vec![Dim::Const(2), Dim::sym("T"), Dim::Const(32)]);
                let out = op(b, Op::Add {}, &[p, r]);
                b.result("out", out);
            },
            &["broadcast is f32[2, T, 32] into f32[T, 32]"],
        ),
        case(
            "a scale between a matmul and its bias",
            "matmul_epilogue",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let p = matmul(b, x, "w", DType::F32, [32, 64]);
                let p = op(b, Op::Gelu {}, &[p]);
                let bias = b.weight("bias", DType::F32, &[32]);
                let out = op(b, Op::Add {}, &[p, bias]);
                b.result("out", out);
            },
            &["between matmul and add is gelu"],
        ),
        case(
            "a widened product",
            "matmul_epilogue",
            approx,
            |b| {
                let x = b.input("x", DType::BF16, t(&[64]));
                let w = b.weight("w", DType::BF16, &[32, 64]);
                let p = op(b, Op::Matmul { dtype: DType::BF16 }, &[x, w]);
                let p = cast(b, p, DType::F32);
                let bias = b.weight("bias", DType::F32, &[32]);
                let out = op(b, Op::Add {}, &[p, bias]);
                b.result("out", out);
            },
            &["between matmul and add is cast from bf16[T, 32] to f32[T, 32]"],
        ),
        case(
            "a product that is read again",
            "matmul_epilogue",
            approx,
            |b| {
                let x = x(b, "x", 1024);
                let p = matmul(b, x, "w", DType::F32, [1024, 1024]);
                let bias = b.weight("bias", DType::F32, &[1024]);
                let out = op(b, Op::Add {}, &[p, bias]);
                b.result("out", out);
                b.result("product", p);
            },
            &["also read by output product"],
        ),
        case(
            "weights of two formats",
            "merged_qkv",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let q = matmul(b, x, "q", DType::Q8_0, [64, 64]);
                let k = matmul(b, x, "k", DType::Q4_1, [64, 64]);
                b.result("q", q);
                b.result("k", k);
            },
            &["same weight dtype and depth", "q4_1", "q8_0"],
        ),
        case(
            "a weight that the step computes",
            "merged_qkv",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let q = matmul(b, x, "q", DType::F32, [64, 64]);
                let w = b.input("w", DType::F32, vec![Dim::Const(32), Dim::Const(64)]);
                let k = op(b, Op::Matmul { dtype: DType::F32 }, &[x, w]);
                b.result("q", q);
                b.result("k", k);
            },
            &["static weight is input w f32[32, 64], computed in the step"],
        ),
        case(
            "operands of two dtypes",
            "merged_qkv",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let q = matmul(b, x, "q", DType::F32, [64, 64]);
                let half = cast(b, x, DType::BF16);
                let k = matmul(b, half, "k", DType::F32, [64, 64]);
                b.result("q", q);
                b.result("k", k);
            },
            &["one operand", "cast bf16[T, 64]"],
        ),
        case(
            "results of two dtypes",
            "merged_gate_up",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let g = matmul(b, x, "g", DType::F32, [64, 64]);
                let w = b.weight("u", DType::F32, &[64, 64]);
                let u = op(b, Op::Matmul { dtype: DType::BF16 }, &[x, w]);
                let g = op(b, Op::Silu {}, &[g]);
                b.result("g", g);
                b.result("u", u);
            },
            &["one result dtype is f32 and bf16"],
        ),
        case(
            "approximation barred",
            "int8_activations",
            || policy(Numerics::Reassoc),
            |b| {
                let x = x(b, "x", 64);
                let out = matmul(b, x, "w", DType::Q8_0, [64, 64]);
                b.result("out", out);
            },
            &["int8_activations is approx, the policy allows reassoc"],
        ),
        case(
            "rows that are not whole blocks",
            "cast_into_producer",
            approx,
            |b| {
                let x = b.input("x", DType::F32, t(&[4, 16]));
                let y = norm(b, x, 16);
                let y = op(b, Op::Reshape { shape: t(&[64]) }, &[y]);
                let y = cast(b, y, DType::Q8A);
                let out = matmul(b, y, "w", DType::Q8_0, [64, 64]);
                b.result("out", out);
            },
            &["between rms_norm and cast is reshape", "cast_past_reshape", "whole blocks", "last dims 16 and 64"],
        ),
        case(
            "a producer without a rule",
            "cast_into_producer",
            approx,
            |b| {
                let table = b.weight("table", DType::F32, &[32, 64]);
                let tokens = b.input("tokens", DType::I32, t(&[]));
                let rows = op(b, Op::Gather { dtype: DType::F32 }, &[table, tokens]);
                let out = cast(b, rows, DType::BF16);
                b.result("out", out);
            },
            &["a of cast is gather", "attention or matmul or", "is accepted"],
        ),
        case(
            "a producer that rounded already",
            "cast_into_producer",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let w = b.weight("w", DType::F32, &[64, 64]);
                let y = op(b, Op::Matmul { dtype: DType::BF16 }, &[x, w]);
                let out = cast(b, y, DType::F16);
                b.result("out", out);
            },
            &["dtype of matmul is bf16, f32 is accepted"],
        ),
        case(
            "the epilogue took the sum",
            "add_rms_norm",
            no_epilogue,
            |b| {
                let (x, r) = (x(b, "x", 64), x(b, "r", 64));
                let p = matmul(b, x, "w", DType::F32, [64, 64]);
                let sum = op(b, Op::Add {}, &[p, r]);
                let sum = op(b, Op::Exp {}, &[sum]);
                let out = norm(b, sum, 64);
                b.result("out", out);
            },
            &["between add and rms_norm is exp"],
        ),
        case(
            "a gate without a product",
            "silu_mul",
            approx,
            |b| {
                let g = x(b, "g", 64);
                let g = op(b, Op::Silu {}, &[g]);
                let out = matmul(b, g, "w", DType::F32, [64, 64]);
                b.result("out", out);
            },
            &["readers of silu f32[T, 64] is matmul, mul is accepted"],
        ),
        case(
            "a norm of another value's mean",
            "rms_norm",
            approx,
            |b| {
                let (x, y) = (x(b, "x", 64), x(b, "y", 64));
                let square = op(b, Op::Mul {}, &[y, y]);
                let mean = op(b, Op::ReduceMean { axis: 1 }, &[square]);
                let e = b.constant(1e-5);
                let shifted = op(b, Op::Add {}, &[mean, e]);
                let root = op(b, Op::Rsqrt {}, &[shifted]);
                let normed = op(b, Op::Mul {}, &[x, root]);
                let w = b.weight("norm.weight", DType::F32, &[64]);
                let out = op(b, Op::Mul {}, &[normed, w]);
                b.result("out", out);
            },
            &["two values", "input x", "input y"],
        ),
        case(
            "a norm in 16 bits throughout",
            "rms_norm",
            approx,
            |b| {
                let x = b.input("x", DType::BF16, t(&[64]));
                let square = op(b, Op::Mul {}, &[x, x]);
                let mean = op(b, Op::ReduceMean { axis: 1 }, &[square]);
                let e = op(b, Op::Constant { value: Real(0.0625), dtype: DType::BF16 }, &[]);
                let shifted = op(b, Op::Add {}, &[mean, e]);
                let root = op(b, Op::Rsqrt {}, &[shifted]);
                let normed = op(b, Op::Mul {}, &[x, root]);
                let w = b.weight("norm.weight", DType::BF16, &[64]);
                let out = op(b, Op::Mul {}, &[normed, w]);
                b.result("out", out);
            },
            &["dtype is bf16[T, 64], f32 is accepted", "cast"],
        ),
        case(
            "a written-out norm of a sum, along another axis",
            "add_rms_norm",
            approx,
            |b| {
                let shape = vec![Dim::Const(8), Dim::Const(64)];
                let (x, r) = (b.input("x", DType::F32, shape.clone()), b.input("r", DType::F32, shape));
                let sum = op(b, Op::Add {}, &[x, r]);
                let out = parts(b, sum, &Parts { axis: 0, ..PARTS });
                b.result("out", out);
                b.result("sum", sum);
            },
            &["axis is 0 of f32[8, 64]"],
        ),
        case(
            "a cast before a cache",
            "rope_cache_write",
            approx,
            |b| written(b, Some(Op::Cast { dtype: DType::BF16 }), false, false),
            &["between rope and cache_write is cast from f32[T, 1, 8] to bf16[T, 1, 8]"],
        ),
        case(
            "a residual sum of the layer before, behind an op",
            "add_rms_norm",
            no_epilogue,
            |b| {
                let mut x = x(b, "x", 64);
                for layer in 0..3 {
                    let at = |part: &str| format!("layers.{layer}.{part}");
                    let odd = if layer == 2 { b.push(&at("scale"), Op::Tanh {}, &[x]) } else { x };
                    let w = b.weight(&at("norm.weight"), DType::F32, &[64]);
                    let normed = b.push(&at("norm"), Op::RmsNorm { eps: Real(1e-5), dtype: DType::F32 }, &[odd, w]);
                    let w = b.weight(&at("weight"), DType::F32, &[64, 64]);
                    let y = b.push(&at("linear"), Op::Matmul { dtype: DType::F32 }, &[normed, w]);
                    x = b.push(&at("residual"), Op::Add {}, &[y, x]);
                }
                b.result("out", x);
            },
            &["between add and rms_norm is tanh"],
        ),
        case(
            "a bias of two dims",
            "merged_qkv",
            no_epilogue,
            |b| {
                let x = x(b, "x", 64);
                let q = matmul(b, x, "q", DType::F32, [32, 64]);
                let k = matmul(b, x, "k", DType::F32, [32, 64]);
                let (s, t) = (b.weight("s", DType::F32, &[1, 32]), b.weight("t", DType::F32, &[32]));
                let q = op(b, Op::Add {}, &[q, s]);
                let k = op(b, Op::Add {}, &[k, t]);
                b.result("q", q);
                b.result("k", k);
            },
            &["bias is f32[1, 32], rank 1 and 32 numbers is accepted"],
        ),
        case(
            "a bias of two dims beside an epilogue",
            "merged_qkv",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let q = matmul(b, x, "q", DType::F32, [32, 64]);
                let k = matmul(b, x, "k", DType::F32, [32, 64]);
                let (s, t) = (b.weight("s", DType::F32, &[1, 32]), b.weight("t", DType::F32, &[32]));
                let q = op(b, Op::Add {}, &[q, s]);
                let k = op(b, Op::Add {}, &[k, t]);
                b.result("q", q);
                b.result("k", k);
            },
            &["bias is f32[1, 32], rank 1 and 32 numbers is accepted"],
        ),
        case(
            "half precision barred",
            "silu_mul",
            || policy(Numerics::Bitwise),
            |b| {
                let (g, u) = (b.input("g", DType::BF16, t(&[64])), b.input("u", DType::BF16, t(&[64])));
                let g = op(b, Op::Silu {}, &[g]);
                let out = op(b, Op::Mul {}, &[g, u]);
                b.result("out", out);
            },
            &["silu_mul_half is rounding, the policy allows bitwise"],
        ),
        case(
            "one rule switched off",
            "rms_norm",
            || without(&["rms_norm_from_parts"]),
            |b| {
                let x = x(b, "x", 64);
                let out = parts(b, x, &PARTS);
                b.result("out", out);
            },
            &["switched off by --disable rms_norm_from_parts"],
        ),
        case(
            "a view that may not move",
            "cast_into_producer",
            || without(&["cast_past_reshape"]),
            |b| {
                let x = x(b, "x", 64);
                let y = norm(b, x, 64);
                let y = op(b, Op::Reshape { shape: t(&[2, 32]) }, &[y]);
                let out = cast(b, y, DType::BF16);
                b.result("out", out);
            },
            &["switched off by --disable cast_past_reshape"],
        ),
        case(
            "a producer that is read again",
            "cast_into_producer",
            approx,
            |b| {
                let x = x(b, "x", 1024);
                let y = matmul(b, x, "w", DType::F32, [1024, 1024]);
                let half = cast(b, y, DType::BF16);
                b.result("half", half);
                let aside = b.push("aside", Op::Tanh {}, &[y]);
                b.result("aside", aside);
            },
            &["also read by aside"],
        ),
        case(
            "rows that no kernel quantises",
            "int8_activations",
            approx,
            |b| {
                let x = x(b, "x", 96);
                let out = matmul(b, x, "w", DType::Q8_0, [4096, 96]);
                b.result("out", out);
            },
            &["cast kernel: row length is 96", "a multiple of 64 (96 -> 128)"],
        ),
    ]
}

#[test]
fn the_planted_obstacle_is_named() {
    let mut wrong = Vec::new();
    for case in cases() {
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
