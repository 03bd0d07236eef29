//! All-reduces, and the norms that they should end in.

use super::*;

const GROUP: &str = "allreduce_rms_norm";

fn partial(b: &mut Build, dtype: DType, dims: Vec<Dim>, world: i64) -> Value {
    let x = b.input("x", dtype, dims);
    op(b, Op::AllReduce { world }, &[x])
}

fn residual(b: &mut Build, sum: Value, dtype: DType, dims: Vec<Dim>) -> Value {
    let r = b.input("r", dtype, dims);
    op(b, Op::Add {}, &[sum, r])
}

/// norm(all_reduce(x) + r), in bf16.
fn halves(b: &mut Build) {
    let sum = partial(b, DType::BF16, t(&[64]), 2);
    let sum = residual(b, sum, DType::BF16, t(&[64]));
    let w = b.weight("norm.weight", DType::BF16, &[64]);
    let out = op(b, Op::RmsNorm { eps: Real(1e-6), dtype: DType::BF16 }, &[sum, w]);
    b.result("out", out);
}

pub fn cases() -> Vec<Case> {
    vec![
        case(
            "an all-reduce of hidden size 7172",
            GROUP,
            approx,
            |b| {
                let sum = partial(b, DType::F32, t(&[7172]), 2);
                let sum = residual(b, sum, DType::F32, t(&[7172]));
                let out = norm(b, sum, 7172);
                b.result("out", out);
            },
            &["all_reduce_add_rms_norm kernel: hidden size is 7172", "a multiple of 8 (7172 -> 7176)"],
        ),
        case(
            "three ranks",
            GROUP,
            approx,
            |b| {
                let sum = partial(b, DType::F32, t(&[64]), 3);
                let out = norm(b, sum, 64);
                b.result("out", out);
            },
            &["all_reduce_rms_norm kernel: world size is 3", "2, 4 or 8 is accepted"],
        ),
        case(
            "an all-reduced value that is read before the residual",
            GROUP,
            approx,
            |b| {
                let sum = partial(b, DType::F32, t(&[64]), 2);
                let aside = b.push("aside", Op::Neg {}, &[sum]);
                b.result("aside", aside);
                let sum = residual(b, sum, DType::F32, t(&[64]));
                let out = norm(b, sum, 64);
                b.result("out", out);
            },
            &["read by aside", "let nothing but the fusion read"],
        ),
        case(
            "a residual of another dtype",
            GROUP,
            approx,
            |b| {
                let sum = partial(b, DType::BF16, t(&[64]), 2);
                let sum = cast(b, sum, DType::F32);
                let sum = residual(b, sum, DType::F32, t(&[64]));
                let out = norm(b, sum, 64);
                b.result("out", out);
            },
            &["between all_reduce and add is cast from bf16[T, 64] to f32[T, 64]", "in one dtype"],
        ),
        case(
            "a bias in place of a residual",
            GROUP,
            approx,
            |b| {
                let sum = partial(b, DType::F32, t(&[64]), 2);
                let sum = residual(b, sum, DType::F32, vec![Dim::Const(64)]);
                let out = norm(b, sum, 64);
                b.result("out", out);
            },
            &["same type is f32[T, 64] and f32[64]", "equal types"],
        ),
        case(
            "an op between the all-reduce and the norm",
            GROUP,
            approx,
            |b| {
                let sum = partial(b, DType::F32, t(&[64]), 2);
                let sum = op(b, Op::Tanh {}, &[sum]);
                let out = norm(b, sum, 64);
                b.result("out", out);
            },
            &["between all_reduce and rms_norm is tanh"],
        ),
        case(
            "a part of an all-reduced value",
            GROUP,
            approx,
            |b| {
                let sum = partial(b, DType::F32, t(&[128]), 2);
                let sum = op(b, Op::Slice { axis: 1, start: 64, end: 128 }, &[sum]);
                let out = norm(b, sum, 64);
                b.result("out", out);
            },
            &["between all_reduce and rms_norm is slice from f32[T, 128] to f32[T, 64]"],
        ),
        case(
            "a matmul that reads an all-reduced value",
            GROUP,
            approx,
            |b| {
                let sum = partial(b, DType::F32, t(&[64]), 2);
                let out = matmul(b, sum, "w", DType::F32, [8, 64]);
                b.result("out", out);
            },
            &["readers of all_reduce f32[T, 64] is matmul", "let a rms_norm read all_reduce f32[T, 64]"],
        ),
        case(
            "a residual's rounding that the policy keeps",
            GROUP,
            || policy(Numerics::Reassoc),
            halves,
            &["all_reduce_add_rms_norm_half is rounding, the policy allows reassoc"],
        ),
        case(
            "an all-reduce that is kept apart",
            GROUP,
            || without(&["allreduce_rms_norm"]),
            halves,
            &["switched off by --disable allreduce_rms_norm"],
        ),
        case(
            "an all-reduced value that is a result",
            GROUP,
            approx,
            |b| {
                let sum = partial(b, DType::F32, t(&[64]), 2);
                b.result("sum", sum);
                let doubled = op(b, Op::Add {}, &[sum, sum]);
                let out = norm(b, doubled, 64);
                b.result("out", out);
            },
            &["read by output sum"],
        ),
        case(
            "a norm of columns",
            GROUP,
            approx,
            |b| {
                let sum = partial(b, DType::F32, vec![Dim::Const(8), Dim::Const(64)], 2);
                let out = parts(b, sum, &Parts { axis: 0, ..PARTS });
                b.result("out", out);
            },
            &["readers of all_reduce f32[8, 64] is mul", "rms_norm is accepted"],
        ),
    ]
}
