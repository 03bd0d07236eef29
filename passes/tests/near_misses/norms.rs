//! Norms, written out and not, and the sums that feed them.

use super::*;

pub fn cases() -> Vec<Case> {
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
    ]
}
