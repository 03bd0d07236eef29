//! Tile programs for GPUs in an interpreter of the tile IR against the graph interpreter: no tile breaks the rules of GPU
//! lowerings, no access leaves its buffer, no two programs of a launch touch the same bytes, and the numbers are right.

use weldment_ir::{DType, Dim, Op, Real, Value};
use weldment_tests::cases::cases;
use weldment_tests::draft::Draft;
use weldment_tests::execute::{Stored, difference, difference_of_scale, random_values, reference};
use weldment_tests::programs::interpret_programs;

const TARGETS: [&str; 4] = ["gfx90a", "gfx942", "gfx950", "sm_90a"];

/// The emulator's cases, on every target.
#[test]
fn every_family_agrees_with_the_graph() {
    // Those of several ranks: tests/collectives.rs.
    for case in cases().into_iter().filter(|case| case.ranks.is_none()) {
        let values = random_values(&case.graph, &case.dims, case.given.clone(), 7).expect("values");
        let expected = reference(&case.graph, &case.dims, &values).expect("the interpreter takes the case");
        for target in TARGETS {
            let found = interpret_programs(&case.graph, &case.dims, &values, target)
                .unwrap_or_else(|e| panic!("{target}, {}: {e}", case.name));
            let d = (case.difference)(&expected, &found);
            assert!(d <= case.tolerance, "{target}, {}: difference {d} over {}", case.name, case.tolerance);
        }
    }
}

type Outputs = indexmap::IndexMap<String, Vec<f64>>;
type Difference = fn(&Outputs, &Outputs) -> f64;

struct Case(Draft);

impl std::ops::Deref for Case {
    type Target = Draft;

    fn deref(&self) -> &Draft {
        &self.0
    }
}

impl std::ops::DerefMut for Case {
    fn deref_mut(&mut self) -> &mut Draft {
        &mut self.0
    }
}

fn sym(name: &str) -> Dim {
    Dim::sym(name)
}

impl Case {
    fn new(tokens: u64, max: u64) -> Case {
        Case(Draft::new(tokens, max.min(2)..=max))
    }

    /// Checks the outputs on a target of each wave size.
    #[track_caller]
    fn check(self, outputs: &[Value], tolerance: f64) {
        self.check_by(outputs, tolerance, difference);
    }

    /// As [`Case::check`], with another measure of difference.
    #[track_caller]
    fn check_by(mut self, outputs: &[Value], tolerance: f64, difference: Difference) {
        self.results(outputs);
        let values = random_values(&self.graph, &self.dims, self.given.clone(), 3).expect("values");
        let expected = reference(&self.graph, &self.dims, &values).expect("the interpreter takes the case");
        for target in ["gfx942", "sm_90a"] {
            let found = interpret_programs(&self.graph, &self.dims, &values, target)
                .unwrap_or_else(|e| panic!("{target}, {:?}: {e}", self.dims));
            let d = difference(&expected, &found);
            assert!(d <= tolerance, "{target}, {:?}: difference {d} over {tolerance}", self.dims);
        }
    }
}

/// Loops along K of every length: written out, looped, with tails, shorter than a vector; output rows by the thousand.
#[test]
fn products_of_every_length() {
    for (tokens, max, n, k) in [
        (1, 1, 5, 20_000),
        (1, 1, 4100, 64),
        (1, 1, 2, 5),
        (2, 2, 70, 2100),
        (3, 3, 9, 4096),
        (4, 4, 17, 1023),
        (5, 5, 130, 3000),
        (17, 33, 70, 700),
        (70, 100, 150, 130),
    ] {
        for (x, w) in [(DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::F16, DType::BF16)] {
            let mut c = Case::new(tokens, max);
            let x = c.input("x", x, vec![sym("T"), Dim::Const(k)]);
            let w = c.weight("w", w, &[n, k]);
            let y = c.push(Op::Matmul { dtype: DType::F32 }, &[x, w]);
            c.check(&[y], 1e-4);
        }
    }
}

#[test]
fn pairs_and_addends() {
    for (tokens, max) in [(1, 1), (3, 4), (9, 30), (70, 90)] {
        for (n, k) in [(40, 96), (33, 2080)] {
            for weights in [DType::BF16, DType::F32, DType::Q8_0, DType::Q4_0] {
                let mut c = Case::new(tokens, max);
                let x = c.input("x", DType::BF16, vec![sym("T"), Dim::Const(k)]);
                let r = c.input("r", DType::BF16, vec![sym("T"), Dim::Const(n)]);
                let (w, u) = (c.weight("w", weights, &[n, k]), c.weight("u", weights, &[n, k]));
                let bias = c.weight("bias", DType::F32, &[n]);
                let outputs = [
                    c.push(Op::MatmulSiluMul { dtype: DType::F32 }, &[x, w, u]),
                    c.push(Op::MatmulAdd { dtype: DType::F32 }, &[x, w, bias]),
                    c.push(Op::MatmulAdd { dtype: DType::BF16 }, &[x, w, r]),
                ];
                // Block formats are rounded to bf16 before a dot: an error of the order of the terms, not of their sum.
                c.check_by(&outputs, 2e-2, difference_of_scale);
            }
        }
    }
}

/// x of constant rows, of several rows a token, and transposed weights computed in the step.
#[test]
fn other_rows() {
    for rows in [1, 3, 4, 7, 40] {
        let mut c = Case::new(2, 3);
        let x = c.input("x", DType::BF16, vec![Dim::Const(rows), Dim::Const(70)]);
        let heads = c.input("heads", DType::BF16, vec![sym("T"), Dim::Const(rows), Dim::Const(70)]);
        let w = c.weight("w", DType::BF16, &[37, 70]);
        let step = c.input("step", DType::BF16, vec![Dim::Const(70), Dim::Const(20)]);
        let turned = c.push(Op::Transpose { permutation: vec![1, 0] }, &[step]);
        let outputs = [
            c.push(Op::Matmul { dtype: DType::F32 }, &[x, w]),
            c.push(Op::Matmul { dtype: DType::F32 }, &[heads, w]),
            c.push(Op::Matmul { dtype: DType::F32 }, &[x, turned]),
            c.push(Op::Matmul { dtype: DType::F32 }, &[heads, turned]),
        ];
        c.check(&outputs, 1e-4);
    }
}

/// Rows of logits are picked from the tokens: few or many, in one program.
#[test]
fn rows_of_logits() {
    for (tokens, max, rows) in [(1, 1, 1), (3, 4, 2), (40, 64, 1), (40, 64, 37)] {
        for weights in [DType::BF16, DType::Q6K] {
            let mut c = Case::new(tokens, max);
            c.graph.declare_symbol("R", 1, max);
            c.dims.insert("R".into(), rows);
            let x = c.input("x", DType::BF16, vec![sym("T"), Dim::Const(256)]);
            let ids = c.input("ids", DType::I32, vec![sym("R")]);
            let picked: Vec<i32> = (0..rows).map(|i| ((i * 7 + 1) % tokens) as i32).collect();
            c.given.insert("ids".into(), Stored::ints(&[rows], &picked));
            let w = c.weight("w", weights, &[50, 256]);
            let few = c.push(Op::Gather { dtype: DType::BF16 }, &[x, ids]);
            let y = c.push(Op::Matmul { dtype: DType::F32 }, &[few, w]);
            c.check_by(&[y], 1e-2, difference_of_scale);
        }
    }
}

/// Rows that one tile cannot hold, and rows so short that a program takes many.
#[test]
fn rows_of_every_length() {
    for (tokens, d) in [(2, 20_000), (1, 16_384), (5, 3), (300, 4), (1, 8192), (3, 4097)] {
        let mut c = Case::new(tokens, if tokens == 1 { 1 } else { 300 });
        let x = c.input("x", DType::F32, vec![sym("T"), Dim::Const(d)]);
        let r = c.input("r", DType::F32, vec![sym("T"), Dim::Const(d)]);
        let w = c.weight("w", DType::F32, &[d]);
        let eps = Real(1e-5);
        let node =
            c.graph.add(Op::AddRmsNorm { eps, dtype: DType::F32 }, &[x, r, w], Default::default()).expect("a node");
        let mut outputs = vec![Value { node, result: 0 }, Value { node, result: 1 }];
        outputs.push(c.push(Op::RmsNorm { eps, dtype: DType::F32 }, &[x, w]));
        outputs.push(c.push(Op::Softmax {}, &[r]));
        outputs.push(c.push(Op::ReduceSum { axis: 1 }, &[r]));
        outputs.push(c.push(Op::ReduceMax { axis: 1 }, &[r]));
        outputs.push(c.push(Op::SiluMul { dtype: DType::F32 }, &[r, r]));
        c.check(&outputs, 1e-4);
    }
}

/// Heads of a joined projection: from token to token one stride, from head to head another.
#[test]
fn norms_of_heads() {
    for d in [16, 64, 100] {
        let mut c = Case::new(3, 5);
        let x = c.input("x", DType::BF16, vec![sym("T"), Dim::Const(7), Dim::Const(d)]);
        let w = c.weight("w", DType::F32, &[d]);
        let heads = c.push(Op::Slice { axis: 1, start: 2, end: 5 }, &[x]);
        let norm = c.push(Op::RmsNorm { eps: Real(1e-5), dtype: DType::F32 }, &[heads, w]);
        c.check(&[norm], 1e-5);
    }
}

/// Copies and broadcasts whose leading dims lie at no common stride.
#[test]
fn strided_elementwise() {
    let mut c = Case::new(3, 5);
    let x = c.input("x", DType::F32, vec![sym("T"), Dim::Const(6), Dim::Const(5)]);
    let row = c.input("row", DType::F32, vec![Dim::Const(6), Dim::Const(1)]);
    let turned = c.push(Op::Transpose { permutation: vec![1, 0, 2] }, &[x]);
    let scaled = c.push(Op::Mul {}, &[x, row]);
    let part = c.push(Op::Slice { axis: 1, start: 2, end: 5 }, &[scaled]);
    let outputs = [
        c.push(Op::Neg {}, &[turned]),
        c.push(Op::Exp {}, &[part]),
        c.push(Op::Add {}, &[scaled, x]),
        c.push(Op::Concat { axis: 1 }, &[part, x]),
    ];
    c.check(&outputs, 1e-5);
}

/// `sequences` sequences in pages of 16: tokens in the order given by `of` (sequence and position of each).
fn paged(of: &[(i32, i32)], max: u64, sequences: u64, pages: u64) -> (Case, [Value; 3]) {
    let tokens = of.len() as u64;
    let mut c = Case::new(tokens, max);
    // Tables are narrower than the widest.
    let blocks = sequences * pages + 1;
    for (name, n, most) in [("B", sequences, sequences), ("P", pages, pages + 5), ("N", blocks, blocks)] {
        c.graph.declare_symbol(name, 1, most);
        c.dims.insert(name.to_owned(), n);
    }
    let positions = c.input("positions", DType::I32, vec![sym("T")]);
    let ids = c.input("sequence_ids", DType::I32, vec![sym("T")]);
    let tables = c.input("block_tables", DType::I32, vec![sym("B"), sym("P")]);
    let blocks = (sequences * pages) as i32;
    // Blocks in no order; those past a sequence's end are absent.
    let furthest = |s: i32| of.iter().filter(|(own, _)| *own == s).map(|(_, p)| p / 16).max().unwrap_or(-1);
    let table: Vec<i32> = (0..blocks)
        .map(|i| (i / pages as i32, i % pages as i32, i))
        .map(|(s, page, i)| if page <= furthest(s) { (i * 7 + 3) % blocks } else { -1 })
        .collect();
    c.given.insert("block_tables".into(), Stored::ints(&[sequences, pages], &table));
    c.given.insert("positions".into(), Stored::ints(&[tokens], &of.iter().map(|(_, p)| *p).collect::<Vec<_>>()));
    c.given.insert("sequence_ids".into(), Stored::ints(&[tokens], &of.iter().map(|(s, _)| *s).collect::<Vec<_>>()));
    (c, [positions, ids, tables])
}

#[track_caller]
fn attention(of: &[(i32, i32)], max: u64, (heads, kv, d): (u64, u64, u64), dtype: DType, tolerance: f64) {
    let sequences = of.iter().map(|(s, _)| *s as u64 + 1).max().unwrap_or(1);
    let pages = of.iter().map(|(_, p)| *p as u64 / 16 + 1).max().unwrap_or(1);
    let (mut c, [positions, ids, tables]) = paged(of, max, sequences, pages);
    let q = c.input("q", dtype, vec![sym("T"), Dim::Const(heads), Dim::Const(d)]);
    let cache = |c: &mut Case, name: &str, a: u64, b: u64| {
        let shape = vec![sym("N"), Dim::Const(kv), Dim::Const(a), Dim::Const(b)];
        c.push(Op::State { name: name.into(), dtype, shape }, &[])
    };
    let (k, v) = (cache(&mut c, "k", d, 16), cache(&mut c, "v", 16, d));
    let y =
        c.push(Op::Attention { scale: Real(0.3), dtype: DType::F32, window: 0 }, &[q, k, v, positions, ids, tables]);
    c.check(&[y], tolerance);
}

/// A prompt of `n` tokens of sequence `s`, `before` of which came earlier.
fn prompt(s: i32, before: i32, n: i32) -> Vec<(i32, i32)> {
    (before..before + n).map(|p| (s, p)).collect()
}

#[test]
fn attention_of_few_tokens() {
    // Contexts of one position, a block's edge, more blocks than a step takes; shared and spread heads; heads of any size.
    for (position, d) in [(0, 64), (15, 64), (16, 128), (700, 64), (300, 256), (40, 80), (130, 16), (20, 8), (9, 6)] {
        for dtype in [DType::BF16, DType::F32] {
            attention(&[(0, position)], 1, (6, 2, d), dtype, 2e-3);
        }
    }
    let batch: Vec<(i32, i32)> = (0..40).map(|s| (s, 11 * s)).collect();
    attention(&batch, 64, (8, 2, 64), DType::BF16, 2e-3);
    attention(&batch, 64, (8, 8, 32), DType::F16, 2e-3);
    attention(&prompt(0, 3, 20), 100, (4, 1, 64), DType::F32, 2e-3);
}

#[test]
fn attention_of_many_tokens() {
    for d in [64, 128, 80, 16, 256] {
        attention(&prompt(0, 0, 70), 96, (4, 2, d), DType::BF16, 2e-2);
    }
    // Several prompts with pasts beside single tokens, then in an order that no scheduler would give.
    let mut mixed = [prompt(0, 37, 20), prompt(1, 0, 33), vec![(2, 100), (3, 5)], prompt(4, 8, 50)].concat();
    attention(&mixed, 256, (4, 2, 64), DType::BF16, 2e-2);
    // A sequence without tokens between two with some, whose table has no block.
    attention(&[prompt(0, 0, 35), prompt(2, 0, 35)].concat(), 96, (4, 2, 64), DType::BF16, 2e-2);
    mixed.reverse();
    mixed.swap(3, 60);
    attention(&mixed, 256, (2, 1, 64), DType::F16, 2e-2);
}
