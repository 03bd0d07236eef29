//! Each kernel family against the interpreter: ragged, tiny and large shapes, every weight format, stale arena bytes.

use weldment_ir::interpret::{Argument, Function};
use weldment_ir::{DType, Dim, Op, OpKind, OutputKind, Real, Shape, Value};
use weldment_tests::draft::Draft;
use weldment_tests::execute::{Stored, difference, difference_of_scale, execute, fill, reference};
use weldment_tests::programs::interpret_programs;

type Outputs = indexmap::IndexMap<String, Vec<f64>>;

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

fn dims(list: &[Dim]) -> Shape {
    list.to_vec()
}

impl Case {
    fn new(tokens: u64, max: u64) -> Case {
        Case(Draft::new(tokens, 1..=max))
    }

    fn check(mut self, outputs: &[Value], tolerance: f64) {
        self.results(outputs);
        self.check_graph(tolerance);
    }

    fn check_graph(self, tolerance: f64) {
        self.check_by(tolerance, difference);
    }

    /// Outputs of quantised arithmetic: errors against the largest result, since a tie of a quant may round either way.
    fn check_quantised(mut self, output: Value, tolerance: f64) {
        self.graph.output("out", OutputKind::Result, output);
        self.check_by(tolerance, difference_of_scale);
    }

    fn check_by(self, tolerance: f64, difference: fn(&Outputs, &Outputs) -> f64) {
        for seed in 0..2 {
            let values = fill(&self.graph, &self.dims, self.given.clone(), seed);
            let expected = reference(&self.graph, &self.dims, &values).expect("the interpreter takes the case");
            for target in ["host", "x86-64-v3"] {
                let found = execute(&self.graph, &self.dims, &values, target, 2).expect("the case compiles");
                let d = difference(&expected, &found);
                assert!(
                    d <= tolerance,
                    "{target}, dims {:?}: difference {d} over {tolerance}\nexpected {expected:.4?}\nfound {found:.4?}",
                    self.dims
                );
            }
            // Programs for GPUs, of both wave sizes; there activations are not quantised.
            if self.graph.ids().any(|id| self.graph.node(id).types.iter().any(|t| t.dtype == DType::Q8A)) {
                continue;
            }
            for target in ["gfx942", "sm_90a"] {
                let found = interpret_programs(&self.graph, &self.dims, &values, target)
                    .unwrap_or_else(|e| panic!("{target}: {e}"));
                let d = difference(&expected, &found);
                assert!(
                    d <= tolerance,
                    "{target}, dims {:?}: difference {d} over {tolerance}\nexpected {expected:.4?}\nfound {found:.4?}",
                    self.dims
                );
            }
        }
    }
}

const FORMATS: &[DType] = &[
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
    DType::MxFp4,
];

#[test]
fn float_matmul_of_every_shape() {
    for (t, max, n, k) in [(1, 1, 8, 8), (1, 1, 17, 33), (5, 64, 40, 24), (3, 7, 1, 1), (13, 16, 65, 100)] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let mut c = Case::new(t, max);
            let x = c.input("x", DType::F32, dims(&[sym("T"), Dim::Const(k)]));
            let w = c.weight("w", dtype, &[n, k]);
            let y = c.push(Op::Matmul { dtype: DType::F32 }, &[x, w]);
            c.check(&[y], 1e-5);
        }
    }
}

#[test]
fn block_formats_with_float_activations() {
    for dtype in FORMATS {
        for (t, max, n) in [(1, 1, 24), (6, 9, 13)] {
            let mut c = Case::new(t, max);
            let x = c.input("x", DType::F32, dims(&[sym("T"), Dim::Const(512)]));
            let w = c.weight("w", *dtype, &[n, 512]);
            let y = c.push(Op::Matmul { dtype: DType::F32 }, &[x, w]);
            c.check(&[y], 1e-4);
        }
    }
}

#[test]
fn block_formats_with_integer_activations() {
    for dtype in FORMATS {
        for (t, max, n) in [(1, 1, 24), (6, 9, 13)] {
            let mut c = Case::new(t, max);
            let x = c.input("x", DType::F32, dims(&[sym("T"), Dim::Const(512)]));
            let w = c.weight("w", *dtype, &[n, 512]);
            let q = c.push(Op::Cast { dtype: DType::Q8A }, &[x]);
            let y = c.push(Op::Matmul { dtype: DType::F32 }, &[q, w]);
            c.check_quantised(y, 2e-3);
        }
    }
}

#[test]
fn extreme_quants_do_not_saturate() {
    for dtype in [DType::Q8_0, DType::Q4_0, DType::Q4_1] {
        let mut c = Case::new(1, 1);
        let x = c.input("x", DType::F32, dims(&[sym("T"), Dim::Const(64)]));
        c.given.insert(
            "x".into(),
            Stored::floats(
                DType::F32,
                &[1, 64],
                &(0..64).map(|i| if i % 3 == 0 { -127.0 } else { 127.0 }).collect::<Vec<_>>(),
            ),
        );
        for (name, byte) in [("low", 0x80u8), ("high", 0xff)] {
            let w = c.weight(name, dtype, &[16, 64]);
            let mut stored = Stored::random(dtype, &[16, 64], 1);
            let header = if dtype == DType::Q4_1 { 4 } else { 2 };
            for block in stored.bytes.chunks_mut(dtype.block_bytes()) {
                block[header..].fill(byte);
            }
            c.given.insert(name.into(), stored);
            let q = c.push(Op::Cast { dtype: DType::Q8A }, &[x]);
            let y = c.push(Op::Matmul { dtype: DType::F32 }, &[q, w]);
            c.graph.output(name, OutputKind::Result, y);
        }
        c.check_graph(1e-4);
    }
}

#[test]
fn matmul_epilogues() {
    for (t, max) in [(1, 1), (7, 32)] {
        for (n, k) in [(24, 32), (19, 64)] {
            let mut c = Case::new(t, max);
            let x = c.input("x", DType::F32, dims(&[sym("T"), Dim::Const(k)]));
            let r = c.input("r", DType::F32, dims(&[sym("T"), Dim::Const(n)]));
            let w = c.weight("w", DType::Q8_0, &[n, k]);
            let u = c.weight("u", DType::Q8_0, &[n, k]);
            let bias = c.weight("bias", DType::F32, &[n]);
            let a = c.push(Op::MatmulAdd { dtype: DType::F32 }, &[x, w, r]);
            let b = c.push(Op::MatmulAdd { dtype: DType::F32 }, &[x, w, bias]);
            let s = c.push(Op::MatmulSiluMul { dtype: DType::F32 }, &[x, w, u]);
            let h = c.push(Op::MatmulSiluMul { dtype: DType::BF16 }, &[x, w, u]);
            c.graph.output("bf16", OutputKind::Result, h);
            c.check(&[a, b, s], 8e-3);
        }
    }
}

/// Products of bf16 by bf16: f32 sums, and the same rounded to bf16.
#[test]
fn bf16_activations_and_weights() {
    // K of one pair, odd, and with tails of every width; N below a tile, whole tiles and ragged; M with and without tails.
    for (t, max, n, k) in
        [(1, 1, 1, 2), (1, 1, 17, 33), (3, 7, 16, 1), (5, 64, 40, 24), (8, 8, 32, 62), (13, 16, 65, 100)]
    {
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 8e-3)] {
            let mut c = Case::new(t, max);
            let x = c.input("x", DType::BF16, dims(&[sym("T"), Dim::Const(k)]));
            let r = c.input("r", dtype, dims(&[sym("T"), Dim::Const(n)]));
            let w = c.weight("w", DType::BF16, &[n, k]);
            let u = c.weight("u", DType::BF16, &[n, k]);
            let bias = c.weight("bias", DType::BF16, &[n]);
            let outputs = [
                c.push(Op::Matmul { dtype }, &[x, w]),
                c.push(Op::MatmulAdd { dtype }, &[x, w, r]),
                c.push(Op::MatmulAdd { dtype }, &[x, w, bias]),
                c.push(Op::MatmulSiluMul { dtype }, &[x, w, u]),
            ];
            c.check(&outputs, tolerance);
        }
    }
}

/// The embedding's rows and the logits read one table, in k pairs where the hidden size is even.
#[test]
fn tied_bf16_tables() {
    for (h, dtype) in [(2, DType::BF16), (38, DType::BF16), (38, DType::F32), (33, DType::BF16)] {
        let mut c = Case::new(5, 6);
        let ids = c.input("ids", DType::I32, dims(&[sym("T")]));
        c.given.insert("ids".into(), Stored::ints(&[5], &[20, 0, 7, 16, 8]));
        let table = c.weight("table", DType::BF16, &[21, h]);
        let rows = c.push(Op::Gather { dtype }, &[table, ids]);
        let logits = c.push(Op::Matmul { dtype: DType::F32 }, &[rows, table]);
        c.check(&[rows, logits], 1e-5);
    }
}

#[test]
fn merged_weights_and_slices() {
    let mut c = Case::new(5, 8);
    let x = c.input("x", DType::F32, dims(&[sym("T"), Dim::Const(32)]));
    let parts: Vec<Value> =
        [("a", 24), ("b", 8), ("c", 8)].iter().map(|(n, rows)| c.weight(n, DType::Q4_0, &[*rows, 32])).collect();
    let w = c.push(Op::Concat { axis: 0 }, &parts);
    let y = c.push(Op::Matmul { dtype: DType::F32 }, &[x, w]);
    let slices: Vec<Value> = [(0, 24), (24, 32), (32, 40)]
        .iter()
        .map(|(s, e)| c.push(Op::Slice { axis: 1, start: *s, end: *e }, &[y]))
        .collect();
    let doubled: Vec<Value> = slices.iter().map(|s| c.push(Op::Add {}, &[*s, *s])).collect();
    c.check(&doubled, 1e-4);
}

#[test]
fn weights_computed_in_the_step() {
    for n in [8, 11] {
        let mut c = Case::new(3, 4);
        let x = c.input("x", DType::F32, dims(&[sym("T"), Dim::Const(12)]));
        let w = c.input("w", DType::F32, dims(&[Dim::Const(n), Dim::Const(12)]));
        let y = c.push(Op::Matmul { dtype: DType::F32 }, &[x, w]);
        c.check(&[y], 1e-5);
    }
}

#[test]
fn norms() {
    for d in [1, 7, 32, 64, 100, 576] {
        let mut c = Case::new(3, 5);
        let x = c.input("x", DType::F32, dims(&[sym("T"), Dim::Const(d)]));
        let r = c.input("r", DType::F32, dims(&[sym("T"), Dim::Const(d)]));
        let w = c.weight("w", DType::F32, &[d]);
        let eps = Real(1e-5);
        let a = c.push(Op::RmsNorm { eps, dtype: DType::F32 }, &[x, w]);
        let node = c.graph.add(Op::AddRmsNorm { eps, dtype: DType::F32 }, &[x, r, w], Default::default()).unwrap();
        let (norm, sum) = (Value { node, result: 0 }, Value { node, result: 1 });
        c.check(&[a, norm, sum], 1e-5);
    }
}

/// Heads of a joined projection: from token to token one stride, from head to head another.
#[test]
fn norms_of_heads() {
    for d in [16, 64, 100] {
        let mut c = Case::new(3, 5);
        let x = c.input("x", DType::F32, dims(&[sym("T"), Dim::Const(7), Dim::Const(d)]));
        let w = c.weight("w", DType::F32, &[d]);
        let (heads, others) = (
            c.push(Op::Slice { axis: 1, start: 2, end: 5 }, &[x]),
            c.push(Op::Slice { axis: 1, start: 4, end: 7 }, &[x]),
        );
        let eps = Real(1e-5);
        let norm = c.push(Op::RmsNorm { eps, dtype: DType::F32 }, &[heads, w]);
        let node =
            c.graph.add(Op::AddRmsNorm { eps, dtype: DType::F32 }, &[heads, others, w], Default::default()).unwrap();
        let (both, sum) = (Value { node, result: 0 }, Value { node, result: 1 });
        c.check(&[norm, both, sum], 1e-5);
    }
}

#[test]
fn norm_to_quantised_activations() {
    let mut c = Case::new(3, 5);
    let x = c.input("x", DType::F32, dims(&[sym("T"), Dim::Const(96)]));
    let w = c.weight("w", DType::F32, &[96]);
    let m = c.weight("m", DType::Q8_0, &[16, 96]);
    let a = c.push(Op::RmsNorm { eps: Real(1e-5), dtype: DType::Q8A }, &[x, w]);
    let y = c.push(Op::Matmul { dtype: DType::F32 }, &[a, m]);
    c.check_quantised(y, 2e-3);
}

#[test]
fn elementwise_ops() {
    for d in [1, 5, 33, 64] {
        let mut c = Case::new(2, 3);
        let x = c.input("x", DType::F32, dims(&[sym("T"), Dim::Const(d)]));
        let y = c.input("y", DType::F32, dims(&[sym("T"), Dim::Const(d)]));
        let row = c.weight("row", DType::F32, &[d]);
        let column = c.input("column", DType::F32, dims(&[sym("T"), Dim::Const(1)]));
        let exp = c.push(Op::Exp {}, &[x]);
        let mut outputs = vec![c.push(Op::Neg {}, &[x])];
        for (kind, f) in OpKind::ALL.iter().filter_map(|kind| Some((*kind, Function::of(*kind)?))) {
            let op = Op::from_attrs(kind, &[]).unwrap();
            outputs.push(c.push(op, &[if f.argument() == Argument::Positive { exp } else { x }]));
        }
        for op in [Op::Add {}, Op::Sub {}, Op::Mul {}, Op::Maximum {}, Op::Minimum {}] {
            for other in [y, row, column] {
                outputs.push(c.push(op.clone(), &[x, other]));
            }
        }
        let less = c.push(Op::Less {}, &[x, y]);
        outputs.push(c.push(Op::Select {}, &[less, x, y]));
        outputs.push(c.push(Op::SiluMul { dtype: DType::F32 }, &[x, y]));
        outputs.push(c.push(Op::Div {}, &[x, exp]));
        c.check(&outputs, 3e-6);
    }
}

#[test]
fn extreme_values_of_exp_and_friends() {
    let values =
        [0.0, -0.0, 1e-40, -1e-40, 88.0, 89.0, 200.0, -87.0, -88.0, -103.0, -104.0, -1e30, 1e30, 0.3, -0.2, 0.26];
    let mut c = Case::new(1, 1);
    let n = values.len() as u64;
    let x = c.input("x", DType::F32, dims(&[sym("T"), Dim::Const(n)]));
    c.given.insert("x".into(), Stored::floats(DType::F32, &[1, n], &values));
    let outputs: Vec<Value> =
        [Op::Silu {}, Op::Tanh {}, Op::Sigmoid {}].iter().map(|op| c.push(op.clone(), &[x])).collect();
    let bounded = c.push(Op::Minimum {}, &[x, x]);
    let gelu = c.push(Op::Sigmoid {}, &[bounded]);
    c.check(&[outputs, vec![gelu]].concat(), 1e-6);
}

#[test]
fn casts_and_copies() {
    let mut c = Case::new(3, 4);
    let x = c.input("x", DType::F32, dims(&[sym("T"), Dim::Const(12)]));
    let half = c.push(Op::Cast { dtype: DType::F16 }, &[x]);
    let brain = c.push(Op::Cast { dtype: DType::BF16 }, &[x]);
    let back = c.push(Op::Cast { dtype: DType::F32 }, &[half]);
    let third = c.push(Op::Reshape { shape: dims(&[sym("T"), Dim::Const(3), Dim::Const(4)]) }, &[x]);
    let turned = c.push(Op::Transpose { permutation: vec![0, 2, 1] }, &[third]);
    let joined = c.push(Op::Concat { axis: 2 }, &[third, third]);
    c.check(&[half, brain, back, turned, joined], 0.0);
}

#[test]
fn reductions_and_softmax() {
    for d in [1, 3, 64, 77] {
        let mut c = Case::new(3, 4);
        let x = c.input("x", DType::F32, dims(&[sym("T"), Dim::Const(d)]));
        let ops = [Op::ReduceSum { axis: 1 }, Op::ReduceMean { axis: 1 }, Op::ReduceMax { axis: 1 }, Op::Softmax {}];
        let outputs: Vec<Value> = ops.iter().map(|op| c.push(op.clone(), &[x])).collect();
        c.check(&outputs, 1e-5);
    }
}

#[test]
fn gathers_from_every_format() {
    for dtype in FORMATS.iter().copied().chain([DType::F32, DType::F16, DType::BF16]) {
        let mut c = Case::new(4, 6);
        let ids = c.input("ids", DType::I32, dims(&[sym("T")]));
        c.given.insert("ids".into(), Stored::ints(&[4], &[20, 0, 7, 8]));
        let table = c.weight("table", dtype, &[21, 256]);
        let y = c.push(Op::Gather { dtype: DType::F32 }, &[table, ids]);
        c.check(&[y], 1e-6);
    }
}

/// Three sequences of different lengths, with tables narrower than the widest, tokens in the middle of blocks.
fn paged(tokens: u64, max: u64) -> (Case, [Value; 3]) {
    let mut c = Case::new(tokens, max);
    for (name, n, most) in [("B", 3, 4), ("P", 4, 11), ("N", 9, 9)] {
        c.graph.declare_symbol(name, 1, most);
        c.dims.insert(name.to_owned(), n);
    }
    let positions = c.input("positions", DType::I32, dims(&[sym("T")]));
    let ids = c.input("sequence_ids", DType::I32, dims(&[sym("T")]));
    let tables = c.input("block_tables", DType::I32, dims(&[sym("B"), sym("P")]));
    c.given.insert("block_tables".into(), Stored::ints(&[3, 4], &[3, 0, 7, -1, 5, 8, 1, 2, 6, 4, -1, -1]));
    let at: Vec<i32> = (0..tokens as i32).map(|t| [15, 40, 20][t as usize % 3] + t / 3).collect();
    c.given.insert("positions".into(), Stored::ints(&[tokens], &at));
    c.given
        .insert("sequence_ids".into(), Stored::ints(&[tokens], &(0..tokens as i32).map(|t| t % 3).collect::<Vec<_>>()));
    (c, [positions, ids, tables])
}

#[test]
fn rope_and_cache_writes() {
    for (tokens, max, d, rotary, interleaved) in
        [(1, 1, 16, 16, false), (5, 8, 16, 8, false), (4, 8, 64, 64, true), (2, 2, 6, 6, false)]
    {
        let (mut c, [positions, ids, tables]) = paged(tokens, max);
        let x = c.input("x", DType::F32, dims(&[sym("T"), Dim::Const(3), Dim::Const(d)]));
        let table = c.push(
            Op::RopeTable {
                positions: 64,
                dim: rotary,
                theta: Real(1e4),
                factor: Real(1.0),
                low: Real(1.0),
                high: Real(4.0),
                original: 64,
            },
            &[],
        );
        let y = c.push(Op::Rope { interleaved }, &[x, positions, table]);
        c.graph.output("rope", OutputKind::Result, y);
        for (name, transposed) in [("k", true), ("v", false)] {
            let tail = if transposed { [Dim::Const(d), Dim::Const(16)] } else { [Dim::Const(16), Dim::Const(d)] };
            let shape = dims(&[sym("N"), Dim::Const(3), tail[0].clone(), tail[1].clone()]);
            let state = c.push(Op::State { name: name.into(), dtype: DType::F32, shape }, &[]);
            let written = if transposed {
                c.push(Op::RopeCacheWrite { interleaved, transposed }, &[state, x, positions, table, ids, tables])
            } else {
                c.push(Op::CacheWrite { transposed }, &[state, x, positions, ids, tables])
            };
            c.graph.output(name, OutputKind::State, written);
        }
        c.check_graph(1e-5);
    }
}

#[test]
fn attention_over_pages() {
    // No window; one within a block, of a block, over several, over all.
    let windows = [0, 1, 5, 16, 20, 1000];
    let sizes = [(1, 1, 4, 2, 16), (6, 8, 6, 2, 16), (4, 4, 3, 3, 80), (3, 4, 9, 3, 64)];
    for ((tokens, max, heads, kv, d), window) in sizes.into_iter().flat_map(|s| windows.map(|w| (s, w))) {
        for dtype in [DType::F32, DType::BF16] {
            let (mut c, [positions, ids, tables]) = paged(tokens, max);
            let q = c.input("q", DType::F32, dims(&[sym("T"), Dim::Const(heads), Dim::Const(d)]));
            let shape = |a: u64, b: u64| dims(&[sym("N"), Dim::Const(kv), Dim::Const(a), Dim::Const(b)]);
            let k = c.push(Op::State { name: "k".into(), dtype, shape: shape(d, 16) }, &[]);
            let v = c.push(Op::State { name: "v".into(), dtype, shape: shape(16, d) }, &[]);
            let y = c.push(
                Op::Attention { scale: Real(0.25), dtype: DType::F32, window },
                &[q, k, v, positions, ids, tables],
            );
            c.check(&[y], 1e-5);
        }
    }
}
