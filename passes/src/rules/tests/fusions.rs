//! Cases of fusions.

use super::Equal::{F64, Ring, RingIdeal};
use super::*;

pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "rms_norm_from_parts",
            Ring,
            |b| {
                let x = x(b, 32);
                let w = b.weight("w", DType::F32, &[32]);
                let one = b.constant(1.0);
                let w = op(b, Op::Add {}, &[w, one]);
                let r = normed(b, x, 1);
                let y = op(b, Op::Mul {}, &[x, r]);
                op(b, Op::Mul {}, &[y, w])
            },
            |b| {
                let x = x(b, 32);
                let w = b.weight("w", DType::F32, &[32]);
                let r = normed(b, x, 0);
                let y = op(b, Op::Mul {}, &[x, r]);
                op(b, Op::Mul {}, &[y, w])
            },
        ),
        case(
            "rms_norm_weight_first",
            Ring,
            |b| {
                let x = x(b, 32);
                let w = b.weight("w", DType::F32, &[32]);
                let r = normed(b, x, 1);
                let y = op(b, Op::Mul {}, &[x, w]);
                op(b, Op::Mul {}, &[y, r])
            },
            |b| {
                let x = x(b, 32);
                let w = b.weight("w", DType::F32, &[1, 32]);
                let r = normed(b, x, 1);
                let y = op(b, Op::Mul {}, &[x, w]);
                op(b, Op::Mul {}, &[y, r])
            },
        ),
        case(
            "rms_norm_between_casts",
            RingIdeal,
            |b| {
                let x = typed(b, "x", DType::BF16, 32);
                let w = b.weight("w", DType::BF16, &[32]);
                let f = cast(b, x, DType::F32);
                let r = normed(b, f, 1);
                let y = op(b, Op::Mul {}, &[f, r]);
                let y = cast(b, y, DType::BF16);
                op(b, Op::Mul {}, &[y, w])
            },
            |b| {
                let x = typed(b, "x", DType::BF16, 32);
                let w = b.weight("w", DType::F16, &[32]);
                let f = cast(b, x, DType::F32);
                let r = normed(b, f, 1);
                let y = op(b, Op::Mul {}, &[f, r]);
                let y = cast(b, y, DType::F16);
                op(b, Op::Mul {}, &[y, w])
            },
        ),
        case(
            "add_rms_norm",
            Ring,
            |b| {
                let (g, u) = gate(b, DType::F32);
                let s = op(b, Op::Add {}, &[g, u]);
                let n = norm(b, s, 32, DType::F32);
                both(b, &[n, s])
            },
            |b| {
                let x = x(b, 32);
                let w = b.weight("w", DType::F32, &[32]);
                let s = op(b, Op::Add {}, &[x, w]);
                norm(b, s, 32, DType::F32)
            },
        ),
        case(
            "silu_from_sigmoid",
            F64,
            |b| {
                let x = x(b, 32);
                let s = op(b, Op::Sigmoid {}, &[x]);
                op(b, Op::Mul {}, &[x, s])
            },
            |b| {
                let (g, u) = gate(b, DType::F32);
                let s = op(b, Op::Sigmoid {}, &[g]);
                op(b, Op::Mul {}, &[u, s])
            },
        ),
        case(
            "silu_mul_from_sigmoid",
            F64,
            |b| {
                let (g, u) = gate(b, DType::F32);
                let s = op(b, Op::Sigmoid {}, &[g]);
                let y = op(b, Op::Mul {}, &[s, u]);
                op(b, Op::Mul {}, &[g, y])
            },
            |b| {
                let (g, u) = gate(b, DType::F32);
                let s = op(b, Op::Sigmoid {}, &[g]);
                let y = op(b, Op::Mul {}, &[s, u]);
                op(b, Op::Mul {}, &[u, y])
            },
        ),
        case(
            "silu_mul",
            Ring,
            |b| {
                let (g, u) = gate(b, DType::F32);
                let s = op(b, Op::Silu {}, &[g]);
                op(b, Op::Mul {}, &[s, u])
            },
            |b| {
                let (g, u) = gate(b, DType::BF16);
                let s = op(b, Op::Silu {}, &[g]);
                op(b, Op::Mul {}, &[s, u])
            },
        ),
        case(
            "silu_mul_half",
            RingIdeal,
            |b| {
                let (g, u) = gate(b, DType::BF16);
                let s = op(b, Op::Silu {}, &[g]);
                op(b, Op::Mul {}, &[s, u])
            },
            |b| {
                let (g, u) = gate(b, DType::F32);
                let s = op(b, Op::Silu {}, &[g]);
                op(b, Op::Mul {}, &[s, u])
            },
        ),
        case("rope_cache_write", Ring, |b| write(b, true, false), |b| write(b, true, true)),
        case(
            "matmul_add",
            Ring,
            |b| {
                let x = x(b, 32);
                let r = typed(b, "r", DType::F32, 8);
                let y = matmul(b, x, "w", DType::F32, 8, 32, DType::F32);
                op(b, Op::Add {}, &[y, r])
            },
            |b| {
                let x = b.input("x", DType::F32, vec![Dim::Const(1), Dim::Const(32)]);
                let r = typed(b, "r", DType::F32, 8);
                let y = matmul(b, x, "w", DType::F32, 8, 32, DType::F32);
                op(b, Op::Add {}, &[y, r])
            },
        ),
        case(
            "matmul_add_half",
            RingIdeal,
            |b| {
                let x = typed(b, "x", DType::BF16, 32);
                let r = b.weight("r", DType::BF16, &[8]);
                let y = matmul(b, x, "w", DType::BF16, 8, 32, DType::BF16);
                op(b, Op::Add {}, &[y, r])
            },
            |b| {
                let x = x(b, 32);
                let r = typed(b, "r", DType::F32, 8);
                let y = matmul(b, x, "w", DType::F32, 8, 32, DType::F32);
                op(b, Op::Add {}, &[y, r])
            },
        ),
        case(
            "matmul_silu_mul",
            Ring,
            |b| {
                let x = x(b, 32);
                let g = matmul(b, x, "g", DType::F32, 8, 32, DType::F32);
                let u = matmul(b, x, "u", DType::F32, 8, 32, DType::F32);
                op(b, Op::SiluMul { dtype: DType::F32 }, &[g, u])
            },
            |b| {
                let x = x(b, 32);
                let g = matmul(b, x, "g", DType::F32, 8, 32, DType::F32);
                let u = matmul(b, x, "u", DType::Q8_0, 8, 32, DType::F32);
                op(b, Op::SiluMul { dtype: DType::F32 }, &[g, u])
            },
        ),
        case(
            "matmul_silu_mul_half",
            RingIdeal,
            |b| {
                let x = typed(b, "x", DType::BF16, 32);
                let g = matmul(b, x, "g", DType::BF16, 8, 32, DType::BF16);
                let u = matmul(b, x, "u", DType::BF16, 8, 32, DType::BF16);
                op(b, Op::SiluMul { dtype: DType::BF16 }, &[g, u])
            },
            |b| {
                let x = typed(b, "x", DType::BF16, 32);
                let y = typed(b, "y", DType::BF16, 32);
                let g = matmul(b, x, "g", DType::BF16, 8, 32, DType::BF16);
                let u = matmul(b, y, "u", DType::BF16, 8, 32, DType::BF16);
                op(b, Op::SiluMul { dtype: DType::BF16 }, &[g, u])
            },
        ),
        case(
            "merge_qkv",
            Ring,
            |b| {
                let x = x(b, 32);
                let p: Vec<Value> = [("q", 8), ("k", 4), ("v", 4)]
                    .iter()
                    .map(|(n, rows)| {
                        let y = matmul(b, x, n, DType::F32, *rows, 32, DType::F32);
                        let bias = b.weight(&format!("{n}.bias"), DType::F32, &[*rows]);
                        let w = b.weight(n, DType::F32, &[*rows, 32]);
                        let fused = op(b, Op::MatmulAdd { dtype: DType::F32 }, &[x, w, bias]);
                        both(b, &[y, fused])
                    })
                    .collect();
                both(b, &p)
            },
            |b| {
                let x = x(b, 32);
                let q = matmul(b, x, "q", DType::F32, 8, 32, DType::F32);
                let k = matmul(b, x, "k", DType::Q4_1, 8, 32, DType::F32);
                both(b, &[q, k])
            },
        ),
        case(
            "merge_gate_up",
            Ring,
            |b| {
                let x = x(b, 32);
                let g = matmul(b, x, "g", DType::F32, 8, 32, DType::F32);
                let u = matmul(b, x, "u", DType::F32, 4, 32, DType::F32);
                let g = op(b, Op::Silu {}, &[g]);
                both(b, &[g, u])
            },
            |b| {
                let x = x(b, 32);
                let w = b.input("w", DType::F32, vec![Dim::Const(8), Dim::Const(32)]);
                let g = matmul(b, x, "g", DType::F32, 8, 32, DType::F32);
                let u = op(b, Op::Matmul { dtype: DType::F32 }, &[x, w]);
                let g = op(b, Op::Silu {}, &[g]);
                both(b, &[g, u])
            },
        ),
        case(
            "int8_activations",
            RingIdeal,
            |b| {
                let x = x(b, 32);
                matmul(b, x, "w", DType::Q4_1, 8, 32, DType::F32)
            },
            |b| {
                let x = x(b, 32);
                matmul(b, x, "w", DType::F32, 8, 32, DType::F32)
            },
        ),
        case(
            "cast_into_rms_norm",
            F64,
            |b| {
                let x = x(b, 32);
                let y = norm(b, x, 32, DType::F32);
                cast(b, y, DType::Q8A)
            },
            |b| {
                let x = x(b, 32);
                let y = norm(b, x, 32, DType::BF16);
                cast(b, y, DType::Q8A)
            },
        ),
        case(
            "cast_into_silu_mul",
            F64,
            |b| {
                let (g, u) = gate(b, DType::F32);
                let y = op(b, Op::SiluMul { dtype: DType::F32 }, &[g, u]);
                cast(b, y, DType::Q8A)
            },
            |b| {
                let (g, u) = gate(b, DType::F32);
                let y = op(b, Op::SiluMul { dtype: DType::F32 }, &[g, u]);
                cast(b, y, DType::I8)
            },
        ),
        case(
            "cast_into_matmul",
            F64,
            |b| {
                let x = x(b, 32);
                let y = matmul(b, x, "w", DType::F32, 8, 32, DType::F32);
                cast(b, y, DType::BF16)
            },
            |b| {
                let x = x(b, 32);
                let y = matmul(b, x, "w", DType::F32, 8, 32, DType::BF16);
                cast(b, y, DType::F16)
            },
        ),
        case(
            "cast_into_matmul_add",
            F64,
            |b| {
                let x = x(b, 32);
                let w = b.weight("w", DType::F32, &[8, 32]);
                let r = typed(b, "r", DType::F32, 8);
                let y = op(b, Op::MatmulAdd { dtype: DType::F32 }, &[x, w, r]);
                cast(b, y, DType::BF16)
            },
            |b| {
                let x = x(b, 32);
                let w = b.weight("w", DType::F32, &[8, 32]);
                let r = typed(b, "r", DType::F32, 8);
                let y = op(b, Op::MatmulAdd { dtype: DType::F16 }, &[x, w, r]);
                cast(b, y, DType::BF16)
            },
        ),
        case(
            "cast_into_matmul_silu_mul",
            F64,
            |b| {
                let x = x(b, 32);
                let g = b.weight("g", DType::F32, &[32, 32]);
                let u = b.weight("u", DType::F32, &[32, 32]);
                let y = op(b, Op::MatmulSiluMul { dtype: DType::F32 }, &[x, g, u]);
                cast(b, y, DType::Q8A)
            },
            |b| {
                let x = x(b, 32);
                let g = b.weight("g", DType::F32, &[32, 32]);
                let u = b.weight("u", DType::F32, &[32, 32]);
                let y = op(b, Op::MatmulSiluMul { dtype: DType::F16 }, &[x, g, u]);
                cast(b, y, DType::Q8A)
            },
        ),
        case(
            "cast_into_attention",
            F64,
            |b| {
                let y = attend(b, DType::F32);
                cast(b, y, DType::Q8A)
            },
            |b| {
                let y = attend(b, DType::F16);
                cast(b, y, DType::Q8A)
            },
        ),
    ]
}
