//! Gates and cache writes.

use super::*;

pub fn cases() -> Vec<Case> {
    vec![
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
            "a cast before a cache",
            "rope_cache_write",
            approx,
            |b| written(b, Some(Op::Cast { dtype: DType::BF16 }), false, false),
            &["between rope and cache_write is cast from f32[T, 1, 8] to bf16[T, 1, 8]"],
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
    ]
}
