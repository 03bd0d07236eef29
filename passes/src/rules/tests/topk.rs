//! Cases of the top-k rules.

use super::{Build, Case, Equal::*, case, op, t};
use weldment_ir::{DType, Dim, Op, Real, Value};

/// The paged entry's inputs and an index cache.
struct Paged {
    positions: Value,
    ids: Value,
    tables: Value,
}

fn paged(b: &mut Build) -> Paged {
    Paged {
        positions: b.input("positions", DType::I32, t(&[])),
        ids: b.input("sequence_ids", DType::I32, t(&[])),
        tables: b.input("block_tables", DType::I32, vec![Dim::sym("B"), Dim::sym("P")]),
    }
}

fn topk(b: &mut Build, p: &Paged, columns: u64, k: i64) -> Value {
    let scores = b.input("scores", DType::F32, t(&[columns]));
    op(b, Op::Topk { k }, &[scores, p.positions])
}

/// topk of the scores of an indexer; `other` gives the scores positions of their own.
fn indexed(b: &mut Build, columns: u64, k: i64, other: bool) -> Value {
    let p = paged(b);
    let q = b.input("q", DType::F32, t(&[2, 8]));
    let weights = b.input("weights", DType::F32, t(&[2]));
    let keys = b.state("keys", DType::F32, vec![Dim::sym("N"), Dim::Const(1), Dim::Const(8), Dim::Const(16)]);
    let positions = if other { b.input("positions2", DType::I32, t(&[])) } else { p.positions };
    let scores = Op::IndexScores { columns: vec![Dim::Const(columns)], skip: 0 };
    let scores = op(b, scores, &[q, weights, keys, positions, p.ids, p.tables]);
    op(b, Op::Topk { k }, &[scores, p.positions])
}

fn attend(b: &mut Build, p: &Paged, indices: Value, positions: Value) -> Value {
    let q = b.input("q", DType::F32, t(&[2, 8]));
    let keys = b.state("k", DType::F32, vec![Dim::sym("N"), Dim::Const(1), Dim::Const(8), Dim::Const(16)]);
    let values = b.state("v", DType::F32, vec![Dim::sym("N"), Dim::Const(1), Dim::Const(16), Dim::Const(8)]);
    let attention = Op::SparseAttention { scale: Real(0.5), dtype: DType::F32 };
    op(b, attention, &[q, keys, values, indices, positions, p.ids, p.tables])
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "topk_of_short_windows",
            Ring,
            |b| {
                let p = paged(b);
                topk(b, &p, 8, 8)
            },
            |b| {
                let p = paged(b);
                topk(b, &p, 9, 8)
            },
        ),
        case(
            "window_of_sparse_attention",
            Ring,
            |b| {
                let p = paged(b);
                let window = op(b, Op::Window { k: 8 }, &[p.positions]);
                attend(b, &p, window, p.positions)
            },
            |b| {
                let p = paged(b);
                let other = b.input("positions2", DType::I32, t(&[]));
                let window = op(b, Op::Window { k: 8 }, &[other]);
                attend(b, &p, window, p.positions)
            },
        ),
        case("scores_of_short_rows", Ring, |b| indexed(b, 16, 2, false), |b| indexed(b, 16, 2, true)),
        case(
            "dense_attention_of_short_windows",
            Ring,
            |b| {
                let p = paged(b);
                let indices = topk(b, &p, 8, 8);
                attend(b, &p, indices, p.positions)
            },
            |b| {
                let p = paged(b);
                let indices = topk(b, &p, 9, 8);
                attend(b, &p, indices, p.positions)
            },
        ),
    ]
}
