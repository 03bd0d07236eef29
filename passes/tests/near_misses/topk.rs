//! Top-k whose window is not proven to fit, and scores that cannot be skipped by row.

use super::*;

fn positions(b: &mut Build, name: &str) -> Value {
    b.input(name, DType::I32, t(&[]))
}

/// topk of scores with `columns` columns.
fn topk(b: &mut Build, columns: Dim, k: i64) {
    let scores = b.input("scores", DType::F32, vec![Dim::sym("T"), columns]);
    let positions = positions(b, "positions");
    let out = op(b, Op::Topk { k }, &[scores, positions]);
    b.result("out", out);
}

/// topk of an indexer's scores at `scored` positions, `skip` rows of them left out already.
fn indexed(b: &mut Build, scored: &str, skip: i64) {
    let own = positions(b, "positions");
    let scored = if scored == "positions" { own } else { positions(b, scored) };
    let ids = positions(b, "sequence_ids");
    let tables = b.input("block_tables", DType::I32, vec![Dim::sym("B"), Dim::sym("P")]);
    let (q, weights) = (b.input("q", DType::F32, t(&[2, 8])), b.input("weights", DType::F32, t(&[2])));
    let keys = b.state("keys", DType::F32, vec![Dim::sym("N"), Dim::Const(1), Dim::Const(8), Dim::Const(16)]);
    let scores = Op::IndexScores { columns: vec![Dim::Const(32)], skip };
    let scores = op(b, scores, &[q, weights, keys, scored, ids, tables]);
    let out = op(b, Op::Topk { k: 4 }, &[scores, own]);
    b.result("out", out);
}

pub fn cases() -> Vec<Case> {
    vec![
        case(
            "a context that may outgrow k",
            "topk_window",
            approx,
            |b| {
                b.graph.declare_symbol("C", 1, 4096);
                topk(b, Dim::sym("C"), 2048);
            },
            &["window is up to 4096 positions", "at most 2048", "--dim context="],
        ),
        case(
            "one column too many",
            "topk_window",
            approx,
            |b| topk(b, Dim::Const(65), 64),
            &["window is up to 65 positions", "at most 64"],
        ),
        case(
            "the short cut switched off",
            "topk_window",
            || without(&["topk_window"]),
            |b| topk(b, Dim::Const(64), 64),
            &["switched off by --disable topk_window"],
        ),
        case(
            "scores at other positions",
            "topk_rows",
            approx,
            |b| indexed(b, "others", 0),
            &["scores_of_short_rows", "two values", "input others", "input positions"],
        ),
        case(
            "scores with rows left out",
            "topk_rows",
            approx,
            |b| indexed(b, "positions", 2),
            &["scores_of_short_rows", "2"],
        ),
    ]
}
