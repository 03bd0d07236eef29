//! Collectives on compiled host code: several ranks of one process, step after step, against sums made by hand in the one order
//! and with the one rounding that all forms promise.

use half::{bf16, f16};
use indexmap::IndexMap;
use std::collections::BTreeMap;
use weldment_ir::generate::Random;
use weldment_ir::{DType, Dim, Op, Real};
use weldment_tests::draft::Draft;
use weldment_tests::execute::{Stored, Values};
use weldment_tests::ranks::Ranks;

const EPS: f64 = 1e-5;

fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(x).to_f32(),
        DType::F16 => f16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// Values of every kind that a sum must get right: signed zeros, subnormals, huge ones, and in `wild` also infinities and NaN.
fn values(random: &mut Random, dtype: DType, n: usize, wild: bool) -> Vec<f32> {
    let special = [-0.0, 0.0, 1e-40, -1e-40, 6e4, -6e4, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let kinds = if wild { special.len() as u64 } else { 6 };
    (0..n)
        .map(|_| {
            let x = if random.one_in(4) { special[random.below(kinds) as usize] } else { random.small() as f32 };
            rounded(dtype, x)
        })
        .collect()
}

/// The sum over ranks and then the residual, in f32 in order, rounded once; negative zeros count as zeros.
fn sum(parts: &[Vec<f32>], residual: Option<&Vec<f32>>, dtype: DType) -> Vec<f32> {
    (0..parts[0].len())
        .map(|i| {
            let total = parts.iter().map(|p| p[i] + 0.0).reduce(|a, b| a + b).unwrap();
            rounded(dtype, residual.map_or(total, |r| total + r[i]))
        })
        .collect()
}

fn same(found: &[f64], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let b = f64::from(*b);
        assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "{what} [{i}]: {a} for {b}");
    }
}

/// Within a rounding of the norm in f64 of each row of the rounded sum.
fn near_norm(found: &[f64], sum: &[f32], weight: &[f32], dtype: DType, what: &str) {
    let ulp = match dtype {
        DType::BF16 => 1.0 / 128.0,
        DType::F16 => 1.0 / 1024.0,
        _ => 1e-5,
    };
    for (row, (found, sum)) in found.chunks(weight.len()).zip(sum.chunks(weight.len())).enumerate() {
        let squares: f64 = sum.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let scale = 1.0 / (squares / weight.len() as f64 + EPS).sqrt();
        for (i, ((found, x), w)) in found.iter().zip(sum).zip(weight).enumerate() {
            let expected = f64::from(*x) * scale * f64::from(*w);
            let near = (found - expected).abs() <= ulp * expected.abs() + 1e-6 || (found.is_nan() && expected.is_nan());
            assert!(near, "{what} row {row} [{i}]: {found} for {expected}");
        }
    }
}

fn all_agree(outputs: &[IndexMap<String, Vec<f64>>], what: &str) {
    for (rank, other) in outputs.iter().enumerate() {
        for (name, values) in &outputs[0] {
            let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(values) == bits(&other[name]), "{what}: rank {rank} differs from rank 0 in {name}");
        }
    }
}

fn rows(n: u64) -> Vec<Dim> {
    vec![Dim::sym("T"), Dim::Const(n)]
}

/// A form of the fused all-reduce.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Plain,
    Norm,
    AddNorm,
}

fn reduce_graph(form: Form, world: u64, h: u64, dtype: DType, most: u64) -> Draft {
    let mut draft = Draft::new(1, 1..=most);
    let x = draft.input("x", dtype, rows(h));
    let world = world as i64;
    let op = |draft: &mut Draft, op: Op, operands: &[weldment_ir::Value]| -> Vec<weldment_ir::Value> {
        let first = draft.push(op, operands);
        (0..draft.graph.node(first.node).types.len())
            .map(|index| weldment_ir::Value { node: first.node, result: index as _ })
            .collect()
    };
    let results = match form {
        Form::Plain => op(&mut draft, Op::AllReduce { world }, &[x]),
        Form::Norm => {
            let w = draft.weight("w", dtype, &[h]);
            op(&mut draft, Op::AllReduceRmsNorm { world, eps: Real(EPS), dtype }, &[x, w])
        }
        Form::AddNorm => {
            let residual = draft.input("residual", dtype, rows(h));
            let w = draft.weight("w", dtype, &[h]);
            op(&mut draft, Op::AllReduceAddRmsNorm { world, eps: Real(EPS), dtype }, &[x, residual, w])
        }
    };
    draft.results(&results);
    draft
}

/// Runs `steps` token counts in a row and compares each with the sum by hand.
fn check_reduce(form: Form, world: usize, h: u64, dtype: DType, most: u64, steps: &[u64], epoch: u32, threads: usize) {
    let draft = reduce_graph(form, world as u64, h, dtype, most);
    let mut random = Random::new(h * 31 + world as u64);
    let weight = values(&mut random, dtype, h as usize, false).iter().map(|x| x.clamp(-2.0, 2.0)).collect::<Vec<_>>();
    let weights = Values::from([("w".to_owned(), Stored::floats(dtype, &[h], &weight))]);
    let ranks = Ranks::new(&draft.graph, &weights, "host", world, threads).unwrap();
    ranks.start_epochs(epoch).unwrap();
    for (step, tokens) in steps.iter().enumerate() {
        let what = format!("{form:?} of {tokens} x {h} {dtype}, {world} ranks, step {step}");
        let n = (tokens * h) as usize;
        let wild = form == Form::Plain;
        let parts: Vec<Vec<f32>> = (0..world).map(|_| values(&mut random, dtype, n, wild)).collect();
        let residual = values(&mut random, dtype, n, wild);
        let own = |part: &Vec<f32>| {
            let mut own = weights.clone();
            own.insert("x".into(), Stored::floats(dtype, &[*tokens, h], part));
            own.insert("residual".into(), Stored::floats(dtype, &[*tokens, h], &residual));
            own
        };
        let inputs: Vec<Values> = parts.iter().map(own).collect();
        let dims = BTreeMap::from([("T".to_owned(), *tokens)]);
        let found = ranks.run(&dims, &inputs).unwrap();
        let expected = sum(&parts, (form == Form::AddNorm).then_some(&residual), dtype);
        all_agree(&found, &what);
        if form == Form::Plain {
            same(&found[0]["out0"], &expected, &what);
        } else {
            same(&found[0]["out1"], &expected, &what);
            near_norm(&found[0]["out0"], &expected, &weight, dtype, &what);
        }
    }
}

#[test]
fn all_reduces_add_in_the_order_of_ranks_and_round_once() {
    for world in [2, 3, 4, 8] {
        for form in [Form::Plain, Form::Norm, Form::AddNorm] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                check_reduce(form, world, 40, dtype, 8, &[1, 5, 8, 2], 0, 1);
            }
        }
    }
}

#[test]
fn epochs_may_wrap() {
    check_reduce(Form::AddNorm, 2, 72, DType::BF16, 4, &[1, 4, 2, 3, 4, 1, 4, 4, 2], u32::MAX - 4, 1);
    // More rows than programs: a program uses several epochs in one step.
    check_reduce(Form::Norm, 3, 16, DType::F32, 100, &[100, 3, 70, 100], u32::MAX - 6, 1);
}

#[test]
fn many_rows_are_walked_in_a_loop() {
    check_reduce(Form::AddNorm, 2, 576, DType::BF16, 200, &[1, 200, 33, 129], 0, 2);
    check_reduce(Form::Plain, 4, 8, DType::F16, 200, &[200, 31], 0, 2);
}

/// Each rank's outputs of a graph of one op on `x`, of `shape` after T tokens.
fn run_one(op: Op, world: usize, n: u64, dtype: DType, tokens: u64, parts: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let mut draft = Draft::new(tokens, 1..=64);
    let x = draft.input("x", dtype, rows(n));
    let out = draft.push(op, &[x]);
    draft.results(&[out]);
    let weights = Values::new();
    let ranks = Ranks::new(&draft.graph, &weights, "host", world, 1).unwrap();
    ranks.start_epochs(u32::MAX - 1).unwrap();
    let own = |part: &Vec<f32>| Values::from([("x".to_owned(), Stored::floats(dtype, &[tokens, n], part))]);
    let inputs: Vec<Values> = parts.iter().map(own).collect();
    let mut found = Vec::new();
    for _ in 0..5 {
        found = ranks.run(&draft.dims, &inputs).unwrap();
    }
    found.into_iter().map(|mut outputs| outputs.swap_remove("out0").unwrap()).collect()
}

#[test]
fn all_gathers_join_columns_and_keep_their_bits() {
    for (world, n) in [(2, 24), (3, 7), (4, 130), (8, 1)] {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let mut random = Random::new(n);
            let tokens = 37;
            let parts: Vec<Vec<f32>> =
                (0..world).map(|_| values(&mut random, dtype, (tokens * n) as usize, true)).collect();
            let op = Op::AllGather { axis: 1, world: world as i64 };
            let found = run_one(op, world, n, dtype, tokens, &parts);
            let row = |t: usize| parts.iter().flat_map(move |p| p[t * n as usize..(t + 1) * n as usize].iter().copied());
            let expected: Vec<f32> = (0..tokens as usize).flat_map(row).collect();
            for (rank, found) in found.iter().enumerate() {
                same(found, &expected, &format!("all_gather of {n} {dtype}, rank {rank} of {world}"));
            }
        }
    }
}

#[test]
fn reduce_scatters_give_each_rank_its_columns() {
    for (world, n) in [(2, 48), (3, 24), (4, 64), (8, 64)] {
        for dtype in [DType::F32, DType::BF16] {
            let mut random = Random::new(n);
            let tokens = 35;
            let parts: Vec<Vec<f32>> =
                (0..world).map(|_| values(&mut random, dtype, (tokens * n) as usize, true)).collect();
            let op = Op::ReduceScatter { axis: 1, world: world as i64 };
            let found = run_one(op, world, n, dtype, tokens, &parts);
            let whole = sum(&parts, None, dtype);
            let width = n as usize / world;
            for (rank, found) in found.iter().enumerate() {
                let expected: Vec<f32> =
                    whole.chunks(n as usize).flat_map(|r| r[rank * width..(rank + 1) * width].to_vec()).collect();
                same(found, &expected, &format!("reduce_scatter of {n} {dtype}, rank {rank} of {world}"));
            }
        }
    }
}

/// Every rank holds a third of the rows: what it gathers from them, summed over ranks, is the gather from the whole.
#[test]
fn parts_of_a_table_give_zeros_for_other_rows() {
    let (world, rows_each, h) = (3, 5, 24);
    for dtype in [DType::F32, DType::BF16] {
        let mut draft = Draft::new(6, 1..=8);
        let table = draft.weight("table", dtype, &[rows_each, h]);
        let indices = draft.input("indices", DType::I32, vec![Dim::sym("T")]);
        let out = draft.push(Op::GatherPart { world, dtype }, &[table, indices]);
        let sum = draft.push(Op::AllReduce { world }, &[out]);
        draft.results(&[out, sum]);
        let mut random = Random::new(7);
        let part = values(&mut random, dtype, (rows_each * h) as usize, false);
        let weights = Values::from([("table".to_owned(), Stored::floats(dtype, &[rows_each, h], &part))]);
        let ranks = Ranks::new(&draft.graph, &weights, "host", world as usize, 1).unwrap();
        let wanted = [0, 14, 5, 9, 4, 10];
        let own = Values::from([("indices".to_owned(), Stored::ints(&[6], &wanted))]);
        let found = ranks.run(&draft.dims, &vec![own; world as usize]).unwrap();
        for (t, index) in wanted.iter().enumerate() {
            let (owner, row) = (*index as usize / rows_each as usize, *index as usize % rows_each as usize);
            let (at, of) = (t * h as usize, row * h as usize);
            for (rank, outputs) in found.iter().enumerate() {
                let expected: Vec<f32> =
                    part[of..of + h as usize].iter().map(|x| if rank == owner { *x } else { 0.0 }).collect();
                same(&outputs["out0"][at..at + h as usize], &expected, &format!("token {t} on rank {rank}"));
                let summed: Vec<f32> = part[of..of + h as usize].iter().map(|x| x + 0.0).collect();
                same(&outputs["out1"][at..at + h as usize], &summed, &format!("sum of token {t} on rank {rank}"));
            }
        }
    }
}
