//! All-reduces that end in a quantised norm, on several ranks, step after step: compiled host code, and tile programs for GPUs in the
//! interpreter of ranks. Sums are exact, ranks agree to the bit, and codes are those of the norm in f64, but for one in a thousand
//! that may be a step off.

use half::bf16;
use indexmap::IndexMap;
use std::collections::BTreeMap;
use weldment_ir::generate::Random;
use weldment_ir::interpret::{Domain, F64, Options};
use weldment_ir::{DType, Dim, Op, Real, Value};
use weldment_tests::draft::Draft;
use weldment_tests::execute::{Stored, Values};
use weldment_tests::programs::RankPrograms;
use weldment_tests::ranks::Ranks;

const EPS: f64 = 1e-5;

/// What is computed: format and group of the codes, a residual or none.
#[derive(Clone, Copy, Debug)]
struct Case {
    world: usize,
    h: u64,
    dtype: DType,
    format: DType,
    group: u64,
    residual: bool,
}

fn graph(c: &Case) -> Draft {
    let Case { world, h, dtype, format, group, residual } = *c;
    let mut draft = Draft::new(1, 1..=5);
    let rows = || vec![Dim::sym("T"), Dim::Const(h)];
    let x = draft.input("x", dtype, rows());
    let w = draft.weight("w", dtype, &[h]);
    let (world, eps, group) = (world as i64, Real(EPS), group as i64);
    let first = if residual {
        let r = draft.input("residual", dtype, rows());
        draft.push(Op::AllReduceAddRmsNormQuantise { world, eps, dtype, format, group }, &[x, r, w])
    } else {
        draft.push(Op::AllReduceRmsNormQuantise { world, eps, dtype, format, group }, &[x, w])
    };
    let result = |result| Value { result, ..first };
    // The norm is read where there is no residual.
    let outputs = [result(0), result(1), result(3), result(2)];
    draft.results(&outputs[..if residual { 3 } else { 4 }]);
    draft
}

fn round(dtype: DType, x: f32) -> f32 {
    if dtype == DType::BF16 { bf16::from_f32(x).to_f32() } else { x }
}

/// Norms in f64 of rows of a rounded sum.
fn norms(sum: &[f32], weight: &[f32]) -> Vec<f64> {
    let row = |row: &[f32]| {
        let squares: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let scale = 1.0 / (squares / weight.len() as f64 + EPS).sqrt();
        row.iter().zip(weight).map(|(x, w)| f64::from(*x) * scale * f64::from(*w)).collect::<Vec<_>>()
    };
    sum.chunks(weight.len()).flat_map(row).collect()
}

fn check_step(
    c: &Case,
    found: &[IndexMap<String, Vec<f64>>],
    sum: &[f32],
    weight: &[f32],
    what: &str,
) -> (usize, usize) {
    for other in found {
        for (name, values) in &found[0] {
            let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(values) == bits(&other[name]), "{what}: ranks differ in {name}");
        }
    }
    let out = &found[0];
    let exact: Vec<f64> = sum.iter().map(|x| f64::from(*x)).collect();
    assert!(out["out2"] == exact, "{what}: sums");
    let norms = norms(sum, weight);
    if let Some(norm) = out.get("out3") {
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= b.abs() / 128.0 + 1e-6;
        assert!(norm.iter().zip(&norms).all(near), "{what}: norms");
    }
    let (mut codes, mut apart) = (norms, 0);
    for (i, group) in codes.chunks_mut(c.group as usize).enumerate() {
        let scale = F64::quantise(group, c.format, &Options::default());
        assert!((out["out1"][i] - scale).abs() <= 1e-5 * scale, "{what}: scale {i}: {} for {scale}", out["out1"][i]);
        for (code, found) in group.iter().zip(&out["out0"][i * c.group as usize..]) {
            if code != found {
                let step = if c.format == DType::F4E2M1 { 0.5 } else { 0.125 };
                let near = (code - found).abs() <= step * code.abs().max(found.abs()).max(0.02);
                assert!(near, "{what}: code {found} for {code}");
                apart += 1;
            }
        }
    }
    (codes.len(), apart)
}

enum Engine<'g> {
    Host(Box<Ranks<'g>>),
    Programs(Box<RankPrograms<'g>>),
}

fn check(target: &str, c: Case, steps: &[u64]) {
    let draft = graph(&c);
    let mut random = Random::new(c.h + c.world as u64);
    // Numbers of many bits: quotients of short ones are ties, which a rounding sends to either side.
    let mut one = || (random.bits() >> 40) as f32 / (1u32 << 22) as f32 - 2.0;
    let mut values = |n: u64| -> Vec<f32> { (0..n).map(|_| round(c.dtype, one())).collect() };
    let weight = values(c.h);
    let weights = Values::from([("w".to_owned(), Stored::floats(c.dtype, &[c.h], &weight))]);
    let mut engine = match target.split(' ').next() {
        Some("host") => {
            Engine::Host(Box::new(Ranks::new(&draft.graph, &weights, target, c.world, 1).expect("it compiles")))
        }
        _ => {
            Engine::Programs(Box::new(RankPrograms::new(&draft.graph, &weights, target, c.world).expect("it compiles")))
        }
    };
    let (mut codes, mut apart) = (0, 0);
    for (step, tokens) in steps.iter().enumerate() {
        let what = format!("{target} {c:?}, {tokens} tokens, step {step}");
        let n = tokens * c.h;
        let parts: Vec<Vec<f32>> = (0..c.world).map(|_| values(n)).collect();
        let residual = values(n);
        let own = |part: &Vec<f32>| {
            let mut own = weights.clone();
            own.insert("x".into(), Stored::floats(c.dtype, &[*tokens, c.h], part));
            own.insert("residual".into(), Stored::floats(c.dtype, &[*tokens, c.h], &residual));
            own
        };
        let inputs: Vec<Values> = parts.iter().map(own).collect();
        let dims = BTreeMap::from([("T".to_owned(), *tokens)]);
        let found = match &mut engine {
            Engine::Host(ranks) => ranks.run(&dims, &inputs),
            Engine::Programs(programs) => programs.run(&dims, &inputs, step as u64 + 7),
        };
        let total = |i: usize| {
            let sum = parts.iter().map(|p| p[i] + 0.0).reduce(|a, b| a + b).unwrap_or(0.0);
            round(c.dtype, if c.residual { sum + residual[i] } else { sum })
        };
        let sum: Vec<f32> = (0..n as usize).map(total).collect();
        let (all, off) = check_step(&c, &found.expect("it runs"), &sum, &weight, &what);
        (codes, apart) = (codes + all, apart + off);
    }
    assert!(apart * 1000 <= codes, "{target} {c:?}: {apart} of {codes} codes differ");
}

/// Forms of F1: per token, per group of 128 and MXFP4, with and without a residual.
const FORMS: [(DType, Option<u64>, bool); 6] = [
    (DType::F8E4M3, None, true),
    (DType::F8E4M3, None, false),
    (DType::F8E4M3, Some(128), true),
    (DType::F8E4M3Fnuz, Some(128), false),
    (DType::F4E2M1, Some(32), true),
    (DType::F4E2M1, Some(32), false),
];

#[test]
fn codes_are_those_of_the_norm_of_the_reduced_sum() {
    for (i, (format, group, residual)) in FORMS.into_iter().enumerate() {
        for (world, h) in [(2, 256), (4, 384)] {
            let dtype = if (i + world) % 4 == 1 { DType::F32 } else { DType::BF16 };
            let case = Case { world, h, dtype, format, group: group.unwrap_or(h), residual };
            check("host", case, &[1, 5, 2, 5]);
            if world == 2 {
                check(if i % 2 == 0 { "gfx942" } else { "sm_90a" }, case, &[3, 1]);
            } else if residual {
                // In two stages as well.
                check("host all_reduce=2", case, &[1, 5]);
                check(if i == 0 { "sm_90a all_reduce=2" } else { "gfx942 all_reduce=2" }, case, &[2]);
            }
        }
    }
}
