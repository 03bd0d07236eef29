//! Cases of views and of ops that compute nothing.

use super::Equal::{F64, Ring};
use super::*;

pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "reshape_of_reshape",
            Ring,
            |b| {
                let x = x(b, 32);
                let y = reshape(b, x, &[4, 8]);
                reshape(b, y, &[2, 16])
            },
            |b| {
                let x = x(b, 32);
                let y = reshape(b, x, &[4, 8]);
                let z = op(b, Op::Neg {}, &[y]);
                reshape(b, z, &[2, 16])
            },
        ),
        case(
            "reshape_identity",
            Ring,
            |b| {
                let x = x(b, 32);
                let y = reshape(b, x, &[32]);
                op(b, Op::Neg {}, &[y])
            },
            |b| {
                let x = x(b, 32);
                reshape(b, x, &[1, 32])
            },
        ),
        case(
            "transpose_identity",
            Ring,
            |b| {
                let x = x(b, 32);
                let y = op(b, Op::Transpose { permutation: vec![0, 1] }, &[x]);
                op(b, Op::Neg {}, &[y])
            },
            |b| {
                let x = x(b, 32);
                op(b, Op::Transpose { permutation: vec![1, 0] }, &[x])
            },
        ),
        case(
            "transpose_of_transpose",
            Ring,
            |b| {
                let x = b.input("x", DType::F32, t(&[2, 4]));
                let y = op(b, Op::Transpose { permutation: vec![1, 2, 0] }, &[x]);
                op(b, Op::Transpose { permutation: vec![1, 0, 2] }, &[y])
            },
            |b| {
                let x = x(b, 32);
                op(b, Op::Transpose { permutation: vec![1, 0] }, &[x])
            },
        ),
        case(
            "slice_identity",
            Ring,
            |b| {
                let x = x(b, 32);
                let y = slice(b, x, 0, 32);
                op(b, Op::Neg {}, &[y])
            },
            |b| {
                let x = x(b, 32);
                slice(b, x, 0, 31)
            },
        ),
        case(
            "slice_of_slice",
            Ring,
            |b| {
                let x = x(b, 32);
                let y = slice(b, x, 4, 20);
                slice(b, y, 3, 9)
            },
            |b| {
                let x = b.input("x", DType::F32, t(&[8, 8]));
                let y = slice(b, x, 2, 5);
                op(b, Op::Slice { axis: 2, start: 1, end: 4 }, &[y])
            },
        ),
        case(
            "broadcast_identity",
            Ring,
            |b| {
                let x = x(b, 32);
                let y = op(b, Op::Broadcast { shape: t(&[32]) }, &[x]);
                op(b, Op::Neg {}, &[y])
            },
            |b| {
                let w = b.weight("w", DType::F32, &[32]);
                op(b, Op::Broadcast { shape: t(&[32]) }, &[w])
            },
        ),
        case(
            "broadcast_of_broadcast",
            Ring,
            |b| {
                let w = b.weight("w", DType::F32, &[32]);
                let y = op(b, Op::Broadcast { shape: vec![Dim::Const(1), Dim::Const(32)] }, &[w]);
                op(b, Op::Broadcast { shape: t(&[32]) }, &[y])
            },
            |b| {
                let w = b.weight("w", DType::F32, &[32]);
                op(b, Op::Broadcast { shape: t(&[32]) }, &[w])
            },
        ),
        case(
            "cast_identity",
            F64,
            |b| {
                let x = typed(b, "x", DType::BF16, 32);
                let y = cast(b, x, DType::BF16);
                op(b, Op::Neg {}, &[y])
            },
            |b| {
                let x = x(b, 32);
                cast(b, x, DType::BF16)
            },
        ),
        case(
            "cast_round_trip",
            F64,
            |b| {
                let x = typed(b, "x", DType::BF16, 32);
                let y = cast(b, x, DType::F32);
                let z = cast(b, y, DType::BF16);
                op(b, Op::Neg {}, &[z])
            },
            |b| {
                let x = x(b, 32);
                let y = cast(b, x, DType::BF16);
                cast(b, y, DType::F32)
            },
        ),
        case(
            "cast_of_widening",
            F64,
            |b| {
                let x = typed(b, "x", DType::BF16, 32);
                let y = cast(b, x, DType::F32);
                cast(b, y, DType::Q8A)
            },
            |b| {
                let x = typed(b, "x", DType::BF16, 32);
                let y = cast(b, x, DType::F16);
                cast(b, y, DType::Q8A)
            },
        ),
        case(
            "concat_of_one",
            Ring,
            |b| {
                let x = x(b, 32);
                let y = both(b, &[x]);
                op(b, Op::Neg {}, &[y])
            },
            |b| {
                let x = x(b, 32);
                both(b, &[x, x])
            },
        ),
        case(
            "add_commutes",
            Ring,
            |b| {
                let (g, u) = gate(b, DType::F32);
                op(b, Op::Add {}, &[g, u])
            },
            |b| {
                let (g, u) = gate(b, DType::F32);
                op(b, Op::Sub {}, &[g, u])
            },
        ),
        case(
            "mul_commutes",
            Ring,
            |b| {
                let (g, u) = gate(b, DType::F32);
                op(b, Op::Mul {}, &[g, u])
            },
            |b| {
                let (g, u) = gate(b, DType::F32);
                op(b, Op::Div {}, &[g, u])
            },
        ),
        case(
            "add_broadcasts",
            Ring,
            |b| {
                let x = x(b, 32);
                let w = b.weight("w", DType::F32, &[32]);
                let y = op(b, Op::Broadcast { shape: t(&[32]) }, &[w]);
                op(b, Op::Add {}, &[x, y])
            },
            |b| {
                let w = b.weight("w", DType::F32, &[32]);
                let v = b.weight("v", DType::F32, &[32]);
                let y = op(b, Op::Broadcast { shape: t(&[32]) }, &[w]);
                op(b, Op::Add {}, &[v, y])
            },
        ),
        case(
            "mul_broadcasts",
            Ring,
            |b| {
                let x = x(b, 32);
                let w = b.weight("w", DType::F32, &[32]);
                let y = op(b, Op::Broadcast { shape: t(&[32]) }, &[w]);
                op(b, Op::Mul {}, &[x, y])
            },
            |b| {
                let w = b.weight("w", DType::F32, &[32]);
                let v = b.weight("v", DType::F32, &[32]);
                let y = op(b, Op::Broadcast { shape: t(&[32]) }, &[w]);
                op(b, Op::Mul {}, &[v, y])
            },
        ),
        case(
            "add_past_reshape",
            Ring,
            |b| {
                let (g, u) = gate(b, DType::F32);
                let (g, u) = (reshape(b, g, &[4, 8]), reshape(b, u, &[4, 8]));
                op(b, Op::Add {}, &[g, u])
            },
            |b| {
                let g = typed(b, "g", DType::F32, 32);
                let u = b.input("u", DType::F32, t(&[2, 16]));
                let (g, u) = (reshape(b, g, &[4, 8]), reshape(b, u, &[4, 8]));
                op(b, Op::Add {}, &[g, u])
            },
        ),
        case(
            "mul_past_reshape",
            Ring,
            |b| {
                let (g, u) = gate(b, DType::F32);
                let (g, u) = (reshape(b, g, &[4, 8]), reshape(b, u, &[4, 8]));
                op(b, Op::Mul {}, &[g, u])
            },
            |b| {
                let g = typed(b, "g", DType::F32, 32);
                let u = b.input("u", DType::F32, t(&[2, 16]));
                let (g, u) = (reshape(b, g, &[4, 8]), reshape(b, u, &[4, 8]));
                op(b, Op::Mul {}, &[g, u])
            },
        ),
        case(
            "silu_past_reshape",
            Ring,
            |b| {
                let x = x(b, 32);
                let y = reshape(b, x, &[4, 8]);
                op(b, Op::Silu {}, &[y])
            },
            |b| {
                let x = x(b, 32);
                let y = op(b, Op::Transpose { permutation: vec![1, 0] }, &[x]);
                op(b, Op::Silu {}, &[y])
            },
        ),
        case(
            "sigmoid_past_reshape",
            Ring,
            |b| {
                let x = x(b, 32);
                let y = reshape(b, x, &[4, 8]);
                op(b, Op::Sigmoid {}, &[y])
            },
            |b| {
                let x = x(b, 32);
                let y = op(b, Op::Transpose { permutation: vec![1, 0] }, &[x]);
                op(b, Op::Sigmoid {}, &[y])
            },
        ),
        case(
            "cast_past_reshape",
            F64,
            |b| {
                let x = x(b, 32);
                let y = reshape(b, x, &[4, 8]);
                cast(b, y, DType::BF16)
            },
            |b| {
                let x = b.input("x", DType::F32, t(&[4, 8]));
                let y = reshape(b, x, &[32]);
                cast(b, y, DType::Q8A)
            },
        ),
        case(
            "rms_norm_past_reshape",
            Ring,
            |b| {
                let x = b.input("x", DType::F32, t(&[2, 32]));
                let shape = vec![Dim::Const(2), Dim::sym("T"), Dim::Const(32)];
                let y = op(b, Op::Reshape { shape }, &[x]);
                norm(b, y, 32, DType::F32)
            },
            |b| {
                let x = x(b, 32);
                let y = reshape(b, x, &[4, 8]);
                norm(b, y, 8, DType::F32)
            },
        ),
        case(
            "matmul_past_reshape",
            Ring,
            |b| {
                let x = b.input("x", DType::F32, t(&[2, 32]));
                let shape = vec![Dim::Const(2), Dim::sym("T"), Dim::Const(32)];
                let y = op(b, Op::Reshape { shape }, &[x]);
                matmul(b, y, "w", DType::F32, 8, 32, DType::F32)
            },
            |b| {
                let x = x(b, 32);
                let y = reshape(b, x, &[4, 8]);
                matmul(b, y, "w", DType::F32, 8, 8, DType::F32)
            },
        ),
        case(
            "slice_of_concat",
            Ring,
            |b| {
                let (g, u) = gate(b, DType::F32);
                let y = both(b, &[g, u]);
                slice(b, y, 36, 40)
            },
            |b| {
                let (g, u) = gate(b, DType::F32);
                let y = both(b, &[g, u]);
                slice(b, y, 30, 34)
            },
        ),
        case(
            "concat_of_slices",
            Ring,
            |b| {
                let x = x(b, 32);
                let (p, q) = (slice(b, x, 2, 8), slice(b, x, 8, 20));
                both(b, &[p, q])
            },
            |b| {
                let x = x(b, 32);
                let (p, q) = (slice(b, x, 2, 8), slice(b, x, 8, 20));
                both(b, &[q, p])
            },
        ),
    ]
}
