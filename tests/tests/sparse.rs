//! Kernels of sparse attention against the interpreter: windows around k, ragged and hostile scores, mixed batches.

use std::collections::BTreeMap;
use weldment_ir::generate::Random;
use weldment_ir::{DType, Dim, Op};
use weldment_tests::draft::Draft;
use weldment_tests::execute::{Stored, execute, fill, reference};
use weldment_tests::programs::interpret_programs;

fn sym(name: &str) -> Dim {
    Dim::sym(name)
}

/// Asserts that outputs are the interpreter's to `tolerance` (0: exactly) on both hosts, and by the tile programs for GPUs of both
/// wave sizes.
#[track_caller]
fn check(draft: &Draft, tolerance: f64) {
    let values = fill(&draft.graph, &draft.dims, draft.given.clone(), 1);
    let expected = reference(&draft.graph, &draft.dims, &values).expect("the interpreter takes the case");
    for target in ["host", "x86-64-v3", "gfx942", "sm_90a"] {
        let found = match target {
            "gfx942" | "sm_90a" => interpret_programs(&draft.graph, &draft.dims, &values, target),
            _ => execute(&draft.graph, &draft.dims, &values, target, 2),
        };
        let found = found.unwrap_or_else(|e| panic!("{target}: {e}"));
        for (name, expected) in &expected {
            let worst = expected.iter().zip(&found[name]).enumerate().find(|(_, (a, b))| {
                let near = (*a - *b).abs() <= tolerance * a.abs().max(1.0);
                !(a == b || near)
            });
            assert!(found[name].len() == expected.len() && worst.is_none(), "{target} {name}: {worst:?}, {:?}", draft.dims);
        }
    }
}

/// topk of rows of scores, with a position each.
fn topk(rows: &[Vec<f32>], positions: &[i32], columns: u64, k: i64) -> Draft {
    let tokens = positions.len() as u64;
    let mut c = Draft::new(tokens, 1..=tokens + 3);
    c.graph.declare_symbol("C", 1, columns + 5);
    c.dims.insert("C".into(), columns);
    let scores = c.input("scores", DType::F32, vec![sym("T"), sym("C")]);
    let at = c.input("positions", DType::I32, vec![sym("T")]);
    let flat: Vec<u8> = rows.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
    c.given.insert("scores".into(), Stored { dtype: DType::F32, shape: vec![tokens, columns], bytes: flat });
    c.given.insert("positions".into(), Stored::ints(&[tokens], positions));
    let best = c.push(Op::Topk { k }, &[scores, at]);
    let window = c.push(Op::Window { k }, &[at]);
    c.results(&[best, window]);
    c
}

#[test]
fn topk_of_windows_around_k() {
    let mut random = Random::new(3);
    for k in [1, 7, 32, 100] {
        let positions: Vec<i32> = [0, k - 3, k - 2, k - 1, k, k + 1, 2 * k + 30].iter().map(|p| (*p).max(0) as i32).collect();
        let columns = 2 * k as u64 + 31;
        let mut rows: Vec<Vec<f32>> = Vec::new();
        for i in 0..positions.len() {
            // Few values, so that there are many ties; then many.
            let spread = if i % 2 == 0 { 3 } else { 1 << 20 };
            rows.push((0..columns).map(|_| random.below(spread) as f32 - spread as f32 / 2.0).collect());
        }
        check(&topk(&rows, &positions, columns, k), 0.0);
    }
}

#[test]
fn topk_of_hostile_scores() {
    let special = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MIN_POSITIVE, 1e-45, -1e-45, f32::MAX, f32::MIN];
    let mut random = Random::new(9);
    let columns = 90u64;
    let rows: Vec<Vec<f32>> = (0..12)
        .map(|_| (0..columns).map(|_| *random.pick(&special).unwrap()).collect())
        .chain([vec![f32::NEG_INFINITY; columns as usize], vec![f32::NAN; columns as usize]])
        .collect();
    let positions: Vec<i32> = (0..rows.len() as i32).map(|i| 89 - 3 * i).collect();
    check(&topk(&rows, &positions, columns, 20), 0.0);
}
