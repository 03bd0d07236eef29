//! Graphs that bring every kernel family of GPU targets to code: normal, ragged and edge shapes in every dtype, small
//! enough for an emulator.

mod collectives;

use crate::draft::Draft;
use crate::execute::{Stored, difference, difference_of_scale};
use indexmap::IndexMap;
use std::ops::{Deref, DerefMut};
use weldment_ir::interpret::{Argument, Function};
use weldment_ir::{DType, Dim, Op, OpKind, OutputKind, Real, Shape, Value};

/// Outputs by name.
pub type Outputs = IndexMap<String, Vec<f64>>;

/// A graph with the sizes it runs at and how near the interpreter its outputs must be.
#[derive(Clone, Debug)]
pub struct Case {
    /// For people and for the lock file.
    pub name: String,
    /// The graph; symbols have the range that its kernels are made for.
    pub draft: Draft,
    /// Largest accepted difference.
    pub tolerance: f64,
    /// How outputs are compared.
    pub difference: fn(&Outputs, &Outputs) -> f64,
    /// The ranks that run it together, if there are several.
    pub ranks: Option<Ranks>,
}

/// One of several ranks.
#[derive(Clone, Copy, Debug)]
pub struct Ranks {
    /// How many there are.
    pub world: usize,
    /// The one that an emulator runs.
    pub rank: usize,
    /// What follows the target's name: choices that are fixed.
    pub choices: &'static str,
}

fn sym(name: &str) -> Dim {
    Dim::sym(name)
}

/// `[T, n]`.
fn rows(n: u64) -> Shape {
    vec![sym("T"), Dim::Const(n)]
}

/// Relative rounding of results in `dtype`, with room for sums in another order.
fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 1.6e-2,
        DType::F16 => 2e-3,
        _ => 2e-5,
    }
}

impl Deref for Case {
    type Target = Draft;

    fn deref(&self) -> &Draft {
        &self.draft
    }
}

impl DerefMut for Case {
    fn deref_mut(&mut self) -> &mut Draft {
        &mut self.draft
    }
}

impl Case {
    fn new(name: impl Into<String>, tokens: u64, max: u64, tolerance: f64) -> Case {
        let name = format!("{}, {tokens} of {max} tokens", name.into());
        // As the driver splits: one token, or more than one.
        let draft = Draft::new(tokens, max.min(2)..=max);
        Case { name, draft, tolerance, difference, ranks: None }
    }

    fn outputs(mut self, outputs: &[Value]) -> Case {
        self.draft.results(outputs);
        self
    }

    /// A target with the choices that the case fixes.
    pub fn target(&self, name: &str) -> String {
        format!("{name}{}", self.ranks.map_or("", |ranks| ranks.choices))
    }

    /// Errors count against the largest result: products that cancel keep the rounding of their operands.
    fn of_scale(mut self) -> Case {
        self.difference = difference_of_scale;
        self
    }
}

/// Block formats of weights.
const FORMATS: [DType; 9] =
    [DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q4K, DType::Q5K, DType::Q6K, DType::MxFp4];

const FLOATS: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

/// All cases, in a fixed order.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (tokens, max, n, k) in
        [(1, 1, 64, 256), (1, 1, 19, 72), (1, 1, 3, 1040), (5, 16, 48, 128), (23, 40, 33, 72), (64, 64, 80, 192)]
    {
        for dtype in FLOATS {
            all.push(matmul(tokens, max, n, k, dtype, dtype));
        }
    }
    // Large tiles, whose last rows and columns are ragged.
    all.push(matmul(70, 256, 144, 256, DType::BF16, DType::BF16));
    all.push(matmul(70, 256, 136, 256, DType::BF16, DType::Q4_1));
    all.push(matmul(3, 16, 24, 64, DType::F32, DType::BF16));
    all.push(matmul(1, 1, 24, 64, DType::F32, DType::F16));
    for format in FORMATS {
        for (tokens, max) in [(1, 1), (6, 16)] {
            all.push(matmul(tokens, max, 24, 512, DType::BF16, format));
        }
    }
    for (tokens, max) in [(1, 1), (9, 16)] {
        for weights in [DType::BF16, DType::Q4_1] {
            all.push(epilogues(tokens, max, weights));
        }
    }
    for dtype in [DType::BF16, DType::F32] {
        for d in [7, 64, 576] {
            all.push(norms(3, 16, d, dtype));
        }
        all.push(norms(1, 1, 256, dtype));
        for (tokens, max) in [(1, 1), (5, 16)] {
            all.push(rope_and_caches(tokens, max, 64, 64, false, dtype));
        }
        all.push(rope_and_caches(4, 16, 16, 8, true, dtype));
        for (tokens, max, heads, kv, d) in [(1, 1, 4, 2, 64), (1, 1, 9, 3, 16), (6, 16, 6, 2, 64), (20, 32, 4, 4, 80)] {
            all.push(attention(tokens, max, heads, kv, d, dtype, 0));
        }
        // Windows within a block, over blocks, and of many tokens' tiles.
        for (tokens, max, window) in [(1, 1, 5), (6, 16, 20), (37, 96, 24)] {
            all.push(attention(tokens, max, 4, 2, 64, dtype, window));
        }
        all.push(elementwise(3, 16, 70, dtype));
        all.push(reductions(3, 16, 77, dtype));
        all.push(gather(4, 16, 96, dtype, dtype));
    }
    for dtype in [DType::BF16, DType::F32] {
        for (tokens, max, heads, d) in [(1, 1, 4, 64), (4, 16, 20, 24)] {
            all.push(index_scores(tokens, max, heads, d, dtype));
        }
        for (tokens, max, heads, kv, d) in [(1, 1, 4, 1, 64), (6, 16, 6, 2, 40), (3, 80, 2, 1, 160)] {
            all.push(sparse_attention(tokens, max, heads, kv, d, dtype));
        }
    }
    for (tokens, max, k, columns) in [(1, 1, 9, 50), (3, 16, 300, 4500)] {
        all.push(topk(tokens, max, k, columns));
    }
    // Tiles of tokens on matrix units.
    for (dtype, heads, kv, d) in
        [(DType::BF16, 6, 2, 64), (DType::BF16, 4, 4, 80), (DType::BF16, 2, 1, 128), (DType::F16, 2, 1, 128)]
    {
        all.push(attention(37, 96, heads, kv, d, dtype, 0));
    }
    for format in FORMATS {
        all.push(gather(1, 1, 256, format, DType::BF16));
    }
    all.push(copies());
    all.extend(collectives::cases());
    all
}

fn matmul(tokens: u64, max: u64, n: u64, k: u64, dtype: DType, weights: DType) -> Case {
    let name = format!("matmul {dtype} x {weights} [{n}, {k}]");
    let mut c = Case::new(name, tokens, max, rounding(dtype)).of_scale();
    let x = c.input("x", dtype, rows(k));
    let w = c.weight("w", weights, &[n, k]);
    let y = c.push(Op::Matmul { dtype }, &[x, w]);
    let z = c.push(Op::Matmul { dtype: DType::F32 }, &[x, w]);
    c.outputs(&[y, z])
}

fn epilogues(tokens: u64, max: u64, weights: DType) -> Case {
    let dtype = DType::BF16;
    let (n, k) = (40, 96);
    let mut c = Case::new(format!("matmul epilogues {weights}"), tokens, max, 2.0 * rounding(dtype)).of_scale();
    let x = c.input("x", dtype, rows(k));
    let r = c.input("r", dtype, rows(n));
    let w = c.weight("w", weights, &[n, k]);
    let u = c.weight("u", weights, &[n, k]);
    let bias = c.weight("bias", dtype, &[n]);
    let outputs = [
        c.push(Op::MatmulAdd { dtype }, &[x, w, r]),
        c.push(Op::MatmulAdd { dtype }, &[x, w, bias]),
        c.push(Op::MatmulSiluMul { dtype }, &[x, w, u]),
    ];
    c.outputs(&outputs)
}

fn norms(tokens: u64, max: u64, d: u64, dtype: DType) -> Case {
    let mut c = Case::new(format!("norms of {d} {dtype}"), tokens, max, rounding(dtype));
    let x = c.input("x", dtype, rows(d));
    let r = c.input("r", dtype, rows(d));
    let w = c.weight("w", dtype, &[d]);
    let eps = Real(1e-5);
    let a = c.push(Op::RmsNorm { eps, dtype }, &[x, w]);
    let node = c.graph.add(Op::AddRmsNorm { eps, dtype }, &[x, r, w], Default::default()).expect("a well-typed node");
    c.outputs(&[a, Value { node, result: 0 }, Value { node, result: 1 }])
}

/// Three sequences of different lengths, with tables narrower than the widest, tokens in the middle of blocks.
fn paged(name: String, tokens: u64, max: u64, tolerance: f64) -> (Case, [Value; 3]) {
    let mut c = Case::new(name, tokens, max, tolerance);
    for (name, n, most) in [("B", 3, 4), ("P", 4, 11), ("N", 9, 9)] {
        c.graph.declare_symbol(name, 1, most);
        c.dims.insert(name.to_owned(), n);
    }
    let positions = c.input("positions", DType::I32, vec![sym("T")]);
    let ids = c.input("sequence_ids", DType::I32, vec![sym("T")]);
    let tables = c.input("block_tables", DType::I32, vec![sym("B"), sym("P")]);
    c.given.insert("block_tables".into(), Stored::ints(&[3, 4], &[3, 0, 7, -1, 5, 8, 1, 2, 6, 4, -1, -1]));
    assert!(tokens <= 37, "the third sequence has 32 positions");
    let of = |t: i32| ([15, 40, 20][t as usize % 3] + t / 3, t % 3);
    let (at, sequence): (Vec<i32>, Vec<i32>) = (0..tokens as i32).map(of).unzip();
    c.given.insert("positions".into(), Stored::ints(&[tokens], &at));
    c.given.insert("sequence_ids".into(), Stored::ints(&[tokens], &sequence));
    (c, [positions, ids, tables])
}

fn rope_and_caches(tokens: u64, max: u64, d: u64, rotary: i64, interleaved: bool, dtype: DType) -> Case {
    let form = if interleaved { "interleaved " } else { "" };
    let name = format!("{form}rope and cache writes of {d} {dtype}");
    let (mut c, [positions, ids, tables]) = paged(name, tokens, max, rounding(dtype));
    let x = c.input("x", dtype, vec![sym("T"), Dim::Const(3), Dim::Const(d)]);
    let (theta, factor, low, high) = (Real(1e4), Real(1.0), Real(1.0), Real(4.0));
    let table = Op::RopeTable { positions: 64, dim: rotary, theta, factor, low, high, original: 64 };
    let table = c.push(table, &[]);
    let y = c.push(Op::Rope { interleaved }, &[x, positions, table]);
    c.graph.output("rope", OutputKind::Result, y);
    for (name, transposed) in [("k", true), ("v", false)] {
        let tail = if transposed { [Dim::Const(d), Dim::Const(16)] } else { [Dim::Const(16), Dim::Const(d)] };
        let shape = vec![sym("N"), Dim::Const(3), tail[0].clone(), tail[1].clone()];
        let state = c.push(Op::State { name: name.into(), dtype, shape }, &[]);
        let written = if transposed {
            c.push(Op::RopeCacheWrite { interleaved, transposed }, &[state, x, positions, table, ids, tables])
        } else {
            c.push(Op::CacheWrite { transposed }, &[state, x, positions, ids, tables])
        };
        c.graph.output(name, OutputKind::State, written);
    }
    c
}

fn attention(tokens: u64, max: u64, heads: u64, kv: u64, d: u64, dtype: DType, window: i64) -> Case {
    let within = if window > 0 { format!(" in a window of {window}") } else { String::new() };
    let name = format!("attention {heads} heads over {kv} of {d} {dtype}{within}");
    let (mut c, [positions, ids, tables]) = paged(name, tokens, max, rounding(dtype));
    let q = c.input("q", dtype, vec![sym("T"), Dim::Const(heads), Dim::Const(d)]);
    let shape = |a: u64, b: u64| vec![sym("N"), Dim::Const(kv), Dim::Const(a), Dim::Const(b)];
    let k = c.push(Op::State { name: "k".into(), dtype, shape: shape(d, 16) }, &[]);
    let v = c.push(Op::State { name: "v".into(), dtype, shape: shape(16, d) }, &[]);
    let y = c.push(Op::Attention { scale: Real(0.25), dtype, window }, &[q, k, v, positions, ids, tables]);
    c.outputs(&[y])
}

fn index_scores(tokens: u64, max: u64, heads: u64, d: u64, dtype: DType) -> Case {
    let name = format!("index scores of {heads} heads of {d} {dtype}");
    let (mut c, [positions, ids, tables]) = paged(name, tokens, max, 1e-4);
    c.graph.declare_symbol("C", 1, 64);
    c.dims.insert("C".into(), 55);
    let q = c.input("q", dtype, vec![sym("T"), Dim::Const(heads), Dim::Const(d)]);
    let weights = c.input("weights", dtype, vec![sym("T"), Dim::Const(heads)]);
    let shape = vec![sym("N"), Dim::Const(1), Dim::Const(d), Dim::Const(16)];
    let keys = c.push(Op::State { name: "keys".into(), dtype, shape }, &[]);
    // Windows of the first sequence are below 20.
    let op = Op::IndexScores { columns: vec![sym("C")], skip: 20 };
    let y = c.push(op, &[q, weights, keys, positions, ids, tables]);
    c.outputs(&[y])
}

/// Windows longer and shorter than `k`, one of them more than a tile of scores; scores of few values, so that there are ties.
fn topk(tokens: u64, max: u64, k: i64, columns: u64) -> Case {
    let mut c = Case::new(format!("topk of {columns} and window, {k} each"), tokens, max, 0.0);
    let scores = c.input("scores", DType::F32, rows(columns));
    let positions = c.input("positions", DType::I32, vec![sym("T")]);
    let values: Vec<f32> = (0..tokens * columns).map(|i| (i * 37 % 61) as f32 - 30.0).collect();
    c.given.insert("scores".into(), Stored::floats(DType::F32, &[tokens, columns], &values));
    let at: Vec<i32> = (0..tokens).map(|t| ((columns - 1) >> (2 * t)) as i32).collect();
    c.given.insert("positions".into(), Stored::ints(&[tokens], &at));
    let best = c.push(Op::Topk { k }, &[scores, positions]);
    let window = c.push(Op::Window { k }, &[positions]);
    c.outputs(&[best, window])
}

fn sparse_attention(tokens: u64, max: u64, heads: u64, kv: u64, d: u64, dtype: DType) -> Case {
    let name = format!("sparse attention {heads} heads over {kv} of {d} {dtype}");
    let (mut c, [positions, ids, tables]) = paged(name, tokens, max, rounding(dtype));
    let q = c.input("q", dtype, vec![sym("T"), Dim::Const(heads), Dim::Const(d)]);
    let shape = |a: u64, b: u64| vec![sym("N"), Dim::Const(kv), Dim::Const(a), Dim::Const(b)];
    let k = c.push(Op::State { name: "k".into(), dtype, shape: shape(d, 16) }, &[]);
    let v = c.push(Op::State { name: "v".into(), dtype, shape: shape(16, d) }, &[]);
    let width = 150;
    let indices = c.input("indices", DType::I32, rows(width));
    // Every position once, most of them not seen, absent entries between.
    let row = |t: u64| (0..width).map(move |j| if j.is_multiple_of(5) { -1 } else { ((7 * j + t) % width) as i32 });
    let list: Vec<i32> = (0..tokens).flat_map(row).collect();
    c.given.insert("indices".into(), Stored::ints(&[tokens, width], &list));
    let op = Op::SparseAttention { scale: Real(0.25), dtype };
    let y = c.push(op, &[q, k, v, indices, positions, ids, tables]);
    c.outputs(&[y])
}

fn elementwise(tokens: u64, max: u64, d: u64, dtype: DType) -> Case {
    let mut c = Case::new(format!("elementwise ops on {d} {dtype}"), tokens, max, rounding(dtype));
    let x = c.input("x", dtype, rows(d));
    let y = c.input("y", dtype, rows(d));
    let row = c.weight("row", dtype, &[d]);
    let column = c.input("column", dtype, rows(1));
    let mut outputs = vec![c.push(Op::Neg {}, &[x])];
    let positive = c.push(Op::Exp {}, &[x]);
    for (kind, f) in OpKind::ALL.iter().filter_map(|kind| Some((*kind, Function::of(*kind)?))) {
        let op = Op::from_attrs(kind, &[]).expect("functions have no attributes");
        outputs.push(c.push(op, &[if f.argument() == Argument::Positive { positive } else { x }]));
    }
    for (op, other) in [(Op::Add {}, y), (Op::Sub {}, row), (Op::Mul {}, column), (Op::Maximum {}, y)] {
        outputs.push(c.push(op, &[x, other]));
    }
    let less = c.push(Op::Less {}, &[x, y]);
    outputs.push(c.push(Op::Select {}, &[less, x, y]));
    outputs.push(c.push(Op::SiluMul { dtype }, &[x, y]));
    c.outputs(&outputs)
}

fn reductions(tokens: u64, max: u64, d: u64, dtype: DType) -> Case {
    let mut c = Case::new(format!("reductions of {d} {dtype}"), tokens, max, rounding(dtype));
    let x = c.input("x", dtype, rows(d));
    let ops = [Op::ReduceSum { axis: 1 }, Op::ReduceMean { axis: 1 }, Op::ReduceMax { axis: 1 }, Op::Softmax {}];
    let outputs: Vec<Value> = ops.into_iter().map(|op| c.push(op, &[x])).collect();
    c.outputs(&outputs)
}

fn gather(tokens: u64, max: u64, d: u64, table: DType, dtype: DType) -> Case {
    let mut c = Case::new(format!("gather {table} rows of {d} to {dtype}"), tokens, max, rounding(dtype));
    let ids = c.input("ids", DType::I32, vec![sym("T")]);
    let rows: Vec<i32> = [20, 0, 7, 8].into_iter().take(tokens as usize).collect();
    c.given.insert("ids".into(), Stored::ints(&[tokens], &rows));
    let table = c.weight("table", table, &[21, d]);
    let y = c.push(Op::Gather { dtype }, &[table, ids]);
    c.outputs(&[y])
}

fn copies() -> Case {
    let mut c = Case::new("casts and copies", 3, 16, 0.0);
    let x = c.input("x", DType::F32, rows(12));
    let half = c.push(Op::Cast { dtype: DType::F16 }, &[x]);
    let brain = c.push(Op::Cast { dtype: DType::BF16 }, &[x]);
    let back = c.push(Op::Cast { dtype: DType::F32 }, &[half]);
    let third = c.push(Op::Reshape { shape: vec![sym("T"), Dim::Const(3), Dim::Const(4)] }, &[x]);
    let turned = c.push(Op::Transpose { permutation: vec![0, 2, 1] }, &[third]);
    let joined = c.push(Op::Concat { axis: 2 }, &[third, third]);
    c.outputs(&[half, brain, back, turned, joined])
}
