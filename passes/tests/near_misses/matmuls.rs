//! Matmuls, their epilogues and their casts.

use super::*;

pub fn cases() -> Vec<Case> {
    vec![
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
            &["between rms_norm and cast is reshape", "cast_past_reshape", "multiple of 32", "found 16"],
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
