//! Collectives on several ranks, step after step, against sums made by hand in the one order and with the one rounding that all
//! forms promise: compiled host code on threads of one process, and the tile programs for GPUs in an interpreter that lets programs
//! take turns by chance and stores arrive late.

use half::{bf16, f16};
use indexmap::IndexMap;
use std::collections::BTreeMap;
use weldment_ir::generate::Random;
use weldment_ir::{DType, Dim, Op, Real};
use weldment_tests::draft::Draft;
use weldment_tests::execute::{Stored, Values};
use weldment_tests::programs::RankPrograms;
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
    // The last NaN has the bits that stand for nothing where sums are waited for.
    let (nan, all_bits) = (f32::NAN, f32::from_bits(u32::MAX));
    let special = [-0.0, 0.0, 1e-40, -1e-40, 6e4, -6e4, f32::INFINITY, f32::NEG_INFINITY, nan, all_bits];
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
            let total = parts.iter().map(|p| p[i] + 0.0).reduce(|a, b| a + b).expect("ranks");
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

/// Ranks that run a graph in one of the two ways.
enum Engine<'g> {
    Host(Box<Ranks<'g>>),
    Programs(Box<RankPrograms<'g>>, u64),
}

impl<'g> Engine<'g> {
    fn new(draft: &'g Draft, weights: &'g Values, target: &str, world: usize, epoch: u32) -> Engine<'g> {
        if target.starts_with("host") {
            let ranks = Ranks::new(&draft.graph, weights, target, world, 1 + world % 2).expect("it compiles");
            ranks.start_epochs(epoch).expect("a slab");
            return Engine::Host(Box::new(ranks));
        }
        let mut programs = RankPrograms::new(&draft.graph, weights, target, world).expect("it compiles");
        programs.start_epochs(epoch);
        Engine::Programs(Box::new(programs), 1000 * u64::from(epoch))
    }

    fn run(&mut self, dims: &BTreeMap<String, u64>, values: &[Values]) -> Vec<IndexMap<String, Vec<f64>>> {
        match self {
            Engine::Host(ranks) => ranks.run(dims, values).expect("all ranks run"),
            Engine::Programs(programs, seed) => {
                *seed += 100;
                programs.run(dims, values, *seed).expect("all ranks run")
            }
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
    // Computed in the step, so that results may take their operands' bytes.
    let computed = |draft: &mut Draft, name: &str| {
        let input = draft.input(name, dtype, rows(h));
        draft.push(Op::Neg {}, &[input])
    };
    let x = computed(&mut draft, "x");
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
            let residual = computed(&mut draft, "residual");
            let w = draft.weight("w", dtype, &[h]);
            op(&mut draft, Op::AllReduceAddRmsNorm { world, eps: Real(EPS), dtype }, &[x, residual, w])
        }
    };
    draft.results(&results);
    draft
}

/// What is summed, and how.
struct Reduce {
    form: Form,
    world: usize,
    h: u64,
    dtype: DType,
    /// Most tokens.
    most: u64,
    /// Tokens of the steps.
    steps: &'static [u64],
    /// First epoch.
    epoch: u32,
}

/// Runs the steps one after the other and compares each with the sum by hand.
fn check_reduce(target: &str, r: Reduce) {
    let Reduce { form, world, h, dtype, most, steps, epoch } = r;
    let draft = reduce_graph(form, world as u64, h, dtype, most);
    let mut random = Random::new(h * 31 + world as u64);
    let weight = values(&mut random, dtype, h as usize, false).iter().map(|x| x.clamp(-2.0, 2.0)).collect::<Vec<_>>();
    let weights = Values::from([("w".to_owned(), Stored::floats(dtype, &[h], &weight))]);
    let mut ranks = Engine::new(&draft, &weights, target, world, epoch);
    for (step, tokens) in steps.iter().enumerate() {
        let what = format!("{target}, {form:?} of {tokens} x {h} {dtype}, {world} ranks, step {step}");
        let n = (tokens * h) as usize;
        let wild = form == Form::Plain;
        let parts: Vec<Vec<f32>> = (0..world).map(|_| values(&mut random, dtype, n, wild)).collect();
        let residual = values(&mut random, dtype, n, wild);
        let own = |part: &Vec<f32>| {
            let mut own = weights.clone();
            let negated = |values: &[f32]| values.iter().map(|x| -x).collect::<Vec<_>>();
            own.insert("x".into(), Stored::floats(dtype, &[*tokens, h], &negated(part)));
            own.insert("residual".into(), Stored::floats(dtype, &[*tokens, h], &negated(&residual)));
            own
        };
        let inputs: Vec<Values> = parts.iter().map(own).collect();
        let dims = BTreeMap::from([("T".to_owned(), *tokens)]);
        let found = ranks.run(&dims, &inputs);
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

const FORMS: [Form; 3] = [Form::Plain, Form::Norm, Form::AddNorm];

#[test]
fn all_reduces_add_in_the_order_of_ranks_and_round_once() {
    for (world, dtypes) in [(2, &[DType::F32, DType::BF16, DType::F16][..]), (3, &[DType::BF16]), (8, &[DType::F32])] {
        for form in FORMS {
            for dtype in dtypes {
                let steps = &[1, 5, 8, 2];
                check_reduce("host", Reduce { form, world, h: 40, dtype: *dtype, most: 8, steps, epoch: 0 });
            }
        }
    }
}

#[test]
fn tile_programs_add_in_the_order_of_ranks_and_round_once() {
    for (world, h, dtype) in
        [(1, 64, DType::F32), (2, 1032, DType::BF16), (3, 40, DType::F16), (4, 520, DType::F32), (8, 72, DType::BF16)]
    {
        for form in FORMS {
            for target in ["sm_90a", "gfx942"] {
                check_reduce(target, Reduce { form, world, h, dtype, most: 3, steps: &[1, 3, 2], epoch: 0 });
            }
        }
    }
}

#[test]
fn rows_of_any_width_are_summed() {
    for (target, h, dtype) in [
        ("host", 1, DType::F32),
        ("host", 7, DType::BF16),
        ("host", 13, DType::F16),
        ("sm_90a", 7, DType::BF16),
        ("sm_90a", 1, DType::F16),
        ("gfx942", 1, DType::F32),
        ("gfx942", 13, DType::BF16),
    ] {
        for form in [Form::Plain, Form::AddNorm] {
            check_reduce(target, Reduce { form, world: 2, h, dtype, most: 5, steps: &[1, 5, 2], epoch: u32::MAX - 1 });
        }
    }
}

/// Of integers too, none of which stands for nothing, along any axis.
#[test]
fn any_dtype_is_gathered_along_any_axis() {
    let (world, tokens) = (2usize, 5u64);
    for (target, dtype) in [
        ("host", DType::I32),
        ("host", DType::I8),
        ("host", DType::I64),
        ("host", DType::F32),
        ("sm_90a", DType::I32),
        ("gfx942", DType::U8),
    ] {
        for axis in [0, 2] {
            let mut draft = Draft::new(tokens, 1..=6);
            let shape = vec![Dim::Const(2), Dim::sym("T"), Dim::Const(3)];
            let x = draft.input("x", dtype, shape);
            let out = draft.push(Op::AllGather { axis, world: world as i64 }, &[x]);
            draft.results(&[out]);
            let weights = Values::new();
            let mut ranks = Engine::new(&draft, &weights, target, world, u32::MAX - 1);
            let count = 2 * tokens as usize * 3;
            let mut random = Random::new(3);
            for _ in 0..6 {
                let mut part = || (0..count).map(|_| random.below(5) as i64 - 2).collect::<Vec<i64>>();
                let parts = [part(), part()];
                let own = |part: &Vec<i64>| {
                    let size = [2, tokens, 3];
                    let reals: Vec<f32> = part.iter().map(|n| *n as f32).collect();
                    let stored = match dtype.is_float() {
                        true => Stored::floats(dtype, &size, &reals),
                        false => Stored::integers(dtype, &size, part),
                    };
                    Values::from([("x".to_owned(), stored)])
                };
                let inputs: Vec<Values> = parts.iter().map(own).collect();
                // As they read back: unsigned ones wrap.
                let decoded: Vec<Vec<f64>> = inputs.iter().map(|v| v["x"].decoded()).collect();
                let row = |part: &[f64], i: usize| part[3 * i..3 * i + 3].to_vec();
                let expected: Vec<f64> = match axis {
                    0 => decoded.concat(),
                    _ => (0..count / 3).flat_map(|i| [row(&decoded[0], i), row(&decoded[1], i)].concat()).collect(),
                };
                for (rank, found) in ranks.run(&draft.dims, &inputs).iter().enumerate() {
                    assert_eq!(found["out0"], expected, "{target}, {dtype} along {axis}, rank {rank}");
                }
            }
        }
    }
}

#[test]
fn epochs_may_wrap() {
    for target in ["host", "sm_90a"] {
        let steps = &[1, 4, 2, 3, 4, 1, 4, 4, 2];
        let r =
            Reduce { form: Form::AddNorm, world: 2, h: 72, dtype: DType::BF16, most: 4, steps, epoch: u32::MAX - 4 };
        check_reduce(target, r);
        // More rows than programs: a program uses several epochs in one step.
        let (world, h, steps) = (3, 16, if target == "host" { &[90, 3, 40] } else { &[1100, 3, 1030] });
        let r = Reduce { form: Form::Norm, world, h, dtype: DType::F32, most: 1100, steps, epoch: u32::MAX - 6 };
        check_reduce(target, r);
    }
}

#[test]
fn many_rows_are_walked_in_a_loop() {
    let (steps, epoch) = (&[1, 200, 33, 129], 0);
    let r = Reduce { form: Form::AddNorm, world: 2, h: 576, dtype: DType::BF16, most: 200, steps, epoch };
    check_reduce("host", r);
    let r = Reduce { form: Form::Plain, world: 4, h: 8, dtype: DType::F16, most: 200, steps: &[200, 31], epoch };
    check_reduce("host", r);
}

/// The same sums to the bit, whatever the form.
#[test]
fn two_stages_give_the_same_bits() {
    for (target, world, h, dtype) in [
        ("host all_reduce=2", 2, 80, DType::BF16),
        ("host all_reduce=2", 3, 72, DType::F32),
        ("host all_reduce=2", 8, 192, DType::F16),
        ("sm_90a all_reduce=2", 2, 1040, DType::BF16),
        ("gfx942 all_reduce=2", 3, 72, DType::F32),
        ("gfx942 all_reduce=2", 4, 96, DType::F16),
    ] {
        for form in FORMS {
            let (steps, epoch) = (&[1, 5, 3], u32::MAX - 1);
            check_reduce(target, Reduce { form, world, h, dtype, most: 5, steps, epoch });
        }
    }
    // Rows in several pieces.
    let (form, steps, epoch) = (Form::AddNorm, &[1, 2], 0);
    let wide = Reduce { form, world: 2, h: 16_400, dtype: DType::BF16, most: 2, steps, epoch };
    check_reduce("sm_90a all_reduce=2", wide);
    // More rows than programs.
    for (target, steps) in [("host all_reduce=2", &[100, 3, 70]), ("sm_90a all_reduce=2", &[1100, 3, 1030])] {
        let (form, epoch, most) = (Form::AddNorm, u32::MAX - 1, steps[0]);
        check_reduce(target, Reduce { form, world: 2, h: 16, dtype: DType::BF16, most, steps, epoch });
    }
}

/// Rows wider than a program holds.
#[test]
fn wide_rows_are_walked_in_pieces() {
    for form in [Form::AddNorm, Form::Plain] {
        let r = Reduce { form, world: 2, h: 16_392, dtype: DType::BF16, most: 1, steps: &[1], epoch: 0 };
        check_reduce("sm_90a", r);
    }
}

/// Each rank's outputs of a graph of one op on `x`, of `shape` after T tokens.
fn run_one(target: &str, op: Op, world: usize, n: u64, dtype: DType, tokens: u64, parts: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let mut draft = Draft::new(tokens, 1..=64);
    let x = draft.input("x", dtype, rows(n));
    let out = draft.push(op, &[x]);
    draft.results(&[out]);
    let weights = Values::new();
    let mut ranks = Engine::new(&draft, &weights, target, world, u32::MAX - 1);
    let own = |part: &Vec<f32>| Values::from([("x".to_owned(), Stored::floats(dtype, &[tokens, n], part))]);
    let inputs: Vec<Values> = parts.iter().map(own).collect();
    let mut found = Vec::new();
    for _ in 0..5 {
        found = ranks.run(&draft.dims, &inputs);
    }
    found.into_iter().map(|mut outputs| outputs.swap_remove("out0").expect("the result")).collect()
}

#[test]
fn all_gathers_join_columns_and_keep_their_bits() {
    for (target, world, n, dtype) in [
        ("host", 2, 24, DType::F32),
        ("host", 3, 7, DType::BF16),
        ("host", 8, 1, DType::F16),
        ("sm_90a", 2, 2050, DType::F32),
        ("sm_90a", 3, 7, DType::BF16),
        ("gfx942", 4, 130, DType::F16),
        ("gfx942", 8, 1, DType::F32),
    ] {
        {
            let mut random = Random::new(n);
            let tokens = if target.starts_with("host") { 37 } else { 3 };
            let parts: Vec<Vec<f32>> =
                (0..world).map(|_| values(&mut random, dtype, (tokens * n) as usize, true)).collect();
            let op = Op::AllGather { axis: 1, world: world as i64 };
            let found = run_one(target, op, world, n, dtype, tokens, &parts);
            let row =
                |t: usize| parts.iter().flat_map(move |p| p[t * n as usize..(t + 1) * n as usize].iter().copied());
            let expected: Vec<f32> = (0..tokens as usize).flat_map(row).collect();
            for (rank, found) in found.iter().enumerate() {
                same(found, &expected, &format!("{target}, all_gather of {n} {dtype}, rank {rank} of {world}"));
            }
        }
    }
}

/// Rows of other widths in chunks of the same size: what one leaves behind its end, nobody else makes empty.
#[test]
fn gathers_of_other_widths_keep_apart() {
    for (target, widths) in [("host", [1, 8]), ("sm_90a", [33, 64]), ("gfx942", [33, 64])] {
        let (world, dtype) = (2, DType::BF16);
        let mut draft = Draft::new(2, 1..=2);
        let outputs = widths.map(|n| {
            let x = draft.input(&format!("x{n}"), dtype, rows(n));
            draft.push(Op::AllGather { axis: 1, world }, &[x])
        });
        draft.results(&outputs);
        let weights = Values::new();
        let mut ranks = Engine::new(&draft, &weights, target, world as usize, 0);
        let mut random = Random::new(11);
        for step in 0..100 {
            let parts = widths.map(|n| [0, 1].map(|_| values(&mut random, dtype, 2 * n as usize, true)));
            let own = |rank: usize| {
                let each = widths
                    .iter()
                    .zip(&parts)
                    .map(|(n, parts)| (format!("x{n}"), Stored::floats(dtype, &[2, *n], &parts[rank])));
                Values::from_iter(each)
            };
            let found = ranks.run(&draft.dims, &[own(0), own(1)]);
            for (i, (n, parts)) in widths.iter().zip(&parts).enumerate() {
                let n = *n as usize;
                let row = |t: usize| parts.iter().flat_map(move |p| p[t * n..(t + 1) * n].iter().copied());
                let expected: Vec<f32> = (0..2).flat_map(row).collect();
                for found in &found {
                    same(&found[&format!("out{i}")], &expected, &format!("{target}, {n} columns, step {step}"));
                }
            }
        }
    }
}

#[test]
fn reduce_scatters_of_rows_give_each_rank_its_rows() {
    for target in ["host", "sm_90a", "gfx942"] {
        let (world, tokens) = (2usize, 3u64);
        let mut draft = Draft::new(tokens, 1..=6);
        let x = draft.input("x", DType::F32, vec![Dim::Const(4), Dim::sym("T"), Dim::Const(5)]);
        let out = draft.push(Op::ReduceScatter { axis: 0, world: world as i64 }, &[x]);
        draft.results(&[out]);
        let weights = Values::new();
        let mut ranks = Engine::new(&draft, &weights, target, world, u32::MAX - 1);
        let mut random = Random::new(5);
        let parts: Vec<Vec<f32>> = (0..world).map(|_| values(&mut random, DType::F32, 60, false)).collect();
        let own = |p: &Vec<f32>| Values::from([("x".to_owned(), Stored::floats(DType::F32, &[4, tokens, 5], p))]);
        let inputs: Vec<Values> = parts.iter().map(own).collect();
        let whole = sum(&parts, None, DType::F32);
        for _ in 0..5 {
            for (rank, found) in ranks.run(&draft.dims, &inputs).iter().enumerate() {
                same(&found["out0"], &whole[30 * rank..30 * (rank + 1)], &format!("{target}, rank {rank}"));
            }
        }
    }
}

#[test]
fn reduce_scatters_give_each_rank_its_columns() {
    for (target, world, n, dtype) in [
        ("host", 2, 48, DType::F32),
        ("host", 8, 64, DType::BF16),
        ("sm_90a", 3, 24, DType::F32),
        ("sm_90a", 2, 4112, DType::BF16),
        ("gfx942", 4, 64, DType::BF16),
    ] {
        {
            let mut random = Random::new(n);
            let tokens = if target.starts_with("host") { 35 } else { 3 };
            let parts: Vec<Vec<f32>> =
                (0..world).map(|_| values(&mut random, dtype, (tokens * n) as usize, true)).collect();
            let op = Op::ReduceScatter { axis: 1, world: world as i64 };
            let found = run_one(target, op, world, n, dtype, tokens, &parts);
            let whole = sum(&parts, None, dtype);
            let width = n as usize / world;
            for (rank, found) in found.iter().enumerate() {
                let expected: Vec<f32> =
                    whole.chunks(n as usize).flat_map(|r| r[rank * width..(rank + 1) * width].to_vec()).collect();
                same(found, &expected, &format!("{target}, reduce_scatter of {n} {dtype}, rank {rank} of {world}"));
            }
        }
    }
}

/// Every rank holds a third of the rows: what it gathers from them, summed over ranks, is the gather from the whole.
#[test]
fn parts_of_a_table_give_zeros_for_other_rows() {
    let (world, rows_each, h) = (3, 5, 24);
    for (target, dtype) in
        [("host", DType::F32), ("host", DType::BF16), ("sm_90a", DType::BF16), ("gfx942", DType::F32)]
    {
        let mut draft = Draft::new(6, 1..=8);
        let table = draft.weight("table", dtype, &[rows_each, h]);
        let indices = draft.input("indices", DType::I32, vec![Dim::sym("T")]);
        let out = draft.push(Op::GatherPart { world, dtype }, &[table, indices]);
        let sum = draft.push(Op::AllReduce { world }, &[out]);
        draft.results(&[out, sum]);
        let mut random = Random::new(7);
        let part = values(&mut random, dtype, (rows_each * h) as usize, false);
        let weights = Values::from([("table".to_owned(), Stored::floats(dtype, &[rows_each, h], &part))]);
        let mut ranks = Engine::new(&draft, &weights, target, world as usize, 0);
        let wanted = [0, 14, 5, 9, 4, 10];
        let own = Values::from([("indices".to_owned(), Stored::ints(&[6], &wanted))]);
        let found = ranks.run(&draft.dims, &vec![own; world as usize]);
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
