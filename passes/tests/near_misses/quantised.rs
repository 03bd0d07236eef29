//! Quantised norms, and products of codes.

use super::*;

const GROUP: &str = "norm_quantise";

/// Codes and scales, as results.
fn codes(b: &mut Build, v: Value, group: i64) {
    let codes = op(b, Op::Quantise { dtype: DType::F8E4M3, group }, &[v]);
    b.result("codes", codes);
    b.result("scales", Value { result: 1, ..codes });
}

fn product(b: &mut Build, codes: Value, name: &str, [n, k]: [u64; 2]) -> Value {
    let w = b.weight(name, DType::F8E4M3, &[n, k]);
    let scales = b.weight(&format!("{name}.scales"), DType::F32, &[n.div_ceil(16), k / 32]);
    let scaled = Op::ScaledMatmul { rows: 16, columns: 32, dtype: DType::F32 };
    op(b, scaled, &[codes, Value { result: 1, ..codes }, w, scales])
}

pub fn cases() -> Vec<Case> {
    vec![
        case(
            "an op between a norm and its codes",
            GROUP,
            approx,
            |b| {
                let x = x(b, "x", 64);
                let n = norm(b, x, 64);
                let n = op(b, Op::Neg {}, &[n]);
                codes(b, n, 32);
            },
            &["neg"],
        ),
        case(
            "a rounding that the policy keeps before codes",
            GROUP,
            || policy(Numerics::Bitwise),
            |b| {
                let x = b.input("x", DType::BF16, t(&[64]));
                let w = b.weight("norm.weight", DType::BF16, &[64]);
                let n = op(b, Op::RmsNorm { eps: Real(1e-5), dtype: DType::BF16 }, &[x, w]);
                codes(b, n, 32);
            },
            &["rms_norm_quantise_half", "rounding"],
        ),
        case(
            "groups that a kernel has no form for",
            GROUP,
            approx,
            |b| {
                let x = x(b, "x", 60);
                let n = norm(b, x, 60);
                codes(b, n, 20);
            },
            &["rms_norm_quantise kernel: row length is 60", "a multiple of 32"],
        ),
        case(
            "projections of codes whose rows end inside a block of scales",
            "merged_qkv",
            approx,
            |b| {
                let x = x(b, "x", 64);
                let codes = op(b, Op::Quantise { dtype: DType::F8E4M3, group: 32 }, &[x]);
                for (name, n) in [("q.weight", 24), ("k.weight", 16)] {
                    let y = product(b, codes, name, [n, 64]);
                    b.result(name, y);
                }
            },
            &["rows of the weight is 24 in blocks of 16", "a multiple of 16"],
        ),
    ]
}
