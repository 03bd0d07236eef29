//! Graphs for tests: a decoder as the front ends build it, and random bindings for any graph.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod obscure;
pub mod ranks;

use std::collections::BTreeMap;
use std::sync::Arc;
use weldment_ir::graph::OutputKind;
use weldment_ir::interpret::{Binding, Bindings, Domain, F64, Options, Outputs, Ring, interpret};
use weldment_ir::{DType, Dim, Graph, Op, Real, Value};
use weldment_passes::{Numerics, Optimised, ReferenceTarget};

/// xorshift64*: the same numbers everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }

    /// A dyadic number in -2..2: exact in every domain and compute dtype.
    pub fn real(&mut self) -> f64 {
        self.below(256) as f64 / 64.0 - 2.0
    }
}

#[derive(Clone, Copy)]
pub struct Decoder {
    pub layers: u64,
    pub hidden: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub inner: u64,
    pub vocab: u64,
    pub dtype: DType,
    pub weights: DType,
    pub v_weights: DType,
    pub qkv_bias: bool,
    pub qk_norm: bool,
}

pub const TINY: Decoder = Decoder {
    layers: 3,
    hidden: 64,
    heads: 2,
    kv_heads: 1,
    inner: 96,
    vocab: 40,
    dtype: DType::F32,
    weights: DType::F32,
    v_weights: DType::F32,
    qkv_bias: false,
    qk_norm: false,
};

pub struct Build {
    pub graph: Graph,
    weights: BTreeMap<String, Value>,
}

impl Build {
    pub fn new(name: &str) -> Build {
        Build { graph: Graph::new(name), weights: BTreeMap::new() }
    }

    pub fn push(&mut self, path: &str, op: Op, operands: &[Value]) -> Value {
        self.graph.push(path, op, operands).expect("a valid test graph")
    }

    pub fn input(&mut self, name: &str, dtype: DType, shape: Vec<Dim>) -> Value {
        self.push(name, Op::input(name, dtype, shape), &[])
    }

    pub fn weight(&mut self, name: &str, dtype: DType, shape: &[u64]) -> Value {
        if let Some(v) = self.weights.get(name) {
            return *v;
        }
        let shape = shape.iter().map(|n| Dim::Const(*n)).collect();
        let v = self.push(name, Op::Weight { name: name.into(), dtype, shape }, &[]);
        self.weights.insert(name.to_owned(), v);
        v
    }

    pub fn constant(&mut self, value: f64) -> Value {
        self.push("constant", Op::Constant { value: Real(value), dtype: DType::F32 }, &[])
    }

    pub fn state(&mut self, name: &str, dtype: DType, shape: Vec<Dim>) -> Value {
        self.push(name, Op::State { name: name.into(), dtype, shape }, &[])
    }

    pub fn result(&mut self, name: &str, value: Value) {
        self.graph.output(name, OutputKind::Result, value);
    }
}

impl Decoder {
    fn linear(&self, b: &mut Build, path: &str, x: Value, [n, k]: [u64; 2], dtype: DType, bias: bool) -> Value {
        let w = b.weight(&format!("{path}.weight"), dtype, &[n, k]);
        let out = b.push(path, Op::Matmul { dtype: self.dtype }, &[x, w]);
        if !bias {
            return out;
        }
        let bias = b.weight(&format!("{path}.bias"), self.dtype, &[n]);
        b.push(path, Op::Add {}, &[out, bias])
    }

    fn norm(&self, b: &mut Build, path: &str, x: Value, n: u64) -> Value {
        let w = b.weight(&format!("{path}.weight"), self.dtype, &[n]);
        b.push(path, Op::RmsNorm { eps: Real(1e-5), dtype: self.dtype }, &[x, w])
    }

    pub fn build(&self) -> Graph {
        let mut b = Build::new("step");
        for (name, max) in [("T", 8), ("B", 2), ("P", 2), ("R", 8), ("N", 4)] {
            b.graph.declare_symbol(name, 1, max);
        }
        let t = || vec![Dim::sym("T")];
        let tokens = b.input("tokens", DType::I32, t());
        let positions = b.input("positions", DType::I32, t());
        let ids = b.input("sequence_ids", DType::I32, t());
        let tables = b.input("block_tables", DType::I32, vec![Dim::sym("B"), Dim::sym("P")]);
        let rows = b.input("logit_rows", DType::I32, vec![Dim::sym("R")]);
        let head_dim = self.hidden / self.heads;
        let rope_table = Op::RopeTable {
            positions: 32,
            dim: head_dim as i64,
            theta: Real(10000.0),
            factor: Real(1.0),
            low: Real(1.0),
            high: Real(1.0),
            original: 0,
        };
        let table = b.push("rotary_emb", rope_table, &[]);
        let embedding = b.weight("embed_tokens.weight", self.weights, &[self.vocab, self.hidden]);
        let mut x = b.push("embed_tokens", Op::Gather { dtype: self.dtype }, &[embedding, tokens]);
        for i in 0..self.layers {
            let at = |part: &str| format!("layers.{i}.{part}");
            let normed = self.norm(&mut b, &at("input_layernorm"), x, self.hidden);
            let kv = self.kv_heads * head_dim;
            let heads = |b: &mut Build, name: &str, n: u64, count: u64, dtype: DType| {
                let path = at(&format!("self_attn.{name}"));
                let y = self.linear(b, &path, normed, [n, self.hidden], dtype, self.qkv_bias);
                let shape = vec![Dim::sym("T"), Dim::Const(count), Dim::Const(head_dim)];
                b.push(&path, Op::Reshape { shape }, &[y])
            };
            let mut q = heads(&mut b, "q_proj", self.hidden, self.heads, self.weights);
            let mut k = heads(&mut b, "k_proj", kv, self.kv_heads, self.weights);
            let v = heads(&mut b, "v_proj", kv, self.kv_heads, self.v_weights);
            if self.qk_norm {
                q = self.norm(&mut b, &at("self_attn.q_norm"), q, head_dim);
                k = self.norm(&mut b, &at("self_attn.k_norm"), k, head_dim);
            }
            let rope = Op::Rope { interleaved: false };
            let q = b.push(&at("self_attn.q_rope"), rope.clone(), &[q, positions, table]);
            let k = b.push(&at("self_attn.k_rope"), rope, &[k, positions, table]);
            let dims = |a, c| vec![Dim::sym("N"), Dim::Const(self.kv_heads), Dim::Const(a), Dim::Const(c)];
            let cache = |b: &mut Build, name: &str, shape: Vec<Dim>, x: Value, transposed: bool| {
                let before = b.state(&at(name), self.dtype, shape);
                let path = at(&format!("self_attn.{name}"));
                let after = b.push(&path, Op::CacheWrite { transposed }, &[before, x, positions, ids, tables]);
                b.graph.output(&at(name), OutputKind::State, after);
                after
            };
            let k = cache(&mut b, "k_cache", dims(head_dim, 16), k, true);
            let v = cache(&mut b, "v_cache", dims(16, head_dim), v, false);
            let scale = Real((head_dim as f64).sqrt().recip());
            let attention = Op::Attention { scale, dtype: self.dtype, window: 0 };
            let mixed = b.push(&at("self_attn.attention"), attention, &[q, k, v, positions, ids, tables]);
            let shape = vec![Dim::sym("T"), Dim::Const(self.hidden)];
            let mixed = b.push(&at("self_attn.attention"), Op::Reshape { shape }, &[mixed]);
            let path = at("self_attn.o_proj");
            let out = self.linear(&mut b, &path, mixed, [self.hidden, self.hidden], self.weights, false);
            x = b.push(&at("self_attn.residual"), Op::Add {}, &[out, x]);
            let normed = self.norm(&mut b, &at("post_attention_layernorm"), x, self.hidden);
            let gate =
                self.linear(&mut b, &at("mlp.gate_proj"), normed, [self.inner, self.hidden], self.weights, false);
            let up = self.linear(&mut b, &at("mlp.up_proj"), normed, [self.inner, self.hidden], self.weights, false);
            let active = b.push(&at("mlp.act_fn"), Op::Silu {}, &[gate]);
            let product = b.push(&at("mlp.product"), Op::Mul {}, &[active, up]);
            let down =
                self.linear(&mut b, &at("mlp.down_proj"), product, [self.hidden, self.inner], self.weights, false);
            x = b.push(&at("mlp.residual"), Op::Add {}, &[down, x]);
        }
        let normed = self.norm(&mut b, "norm", x, self.hidden);
        let picked = b.push("lm_head.rows", Op::Gather { dtype: self.dtype }, &[normed, rows]);
        let logits = b.push("lm_head", Op::Matmul { dtype: DType::F32 }, &[picked, embedding]);
        b.result("logits", logits);
        b.graph
    }
}

/// Dims for a random instance: two sequences of at most the symbols' maxima.
pub fn dims_of(graph: &Graph, random: &mut Random) -> BTreeMap<String, u64> {
    let mut dims = BTreeMap::new();
    for (name, range) in graph.symbols() {
        let n = match &**name {
            "N" | "P" | "B" => range.max,
            _ => range.min + random.below(range.max - range.min + 1),
        };
        dims.insert(name.to_string(), n);
    }
    dims
}

/// Random values for every leaf; integer inputs by name, as the entry defines them.
pub fn bindings(graph: &Graph, dims: &BTreeMap<String, u64>, random: &mut Random) -> Bindings {
    let mut out = Bindings::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let (Op::Input { name, dtype, shape, .. }
        | Op::Weight { name, dtype, shape }
        | Op::State { name, dtype, shape }) = &node.op
        else {
            continue;
        };
        let shape: Vec<usize> = shape
            .iter()
            .map(|d| match d {
                Dim::Const(n) => *n as usize,
                Dim::Sym(s) => dims[&**s] as usize,
            })
            .collect();
        let count: usize = shape.iter().product();
        let binding = if dtype.is_float() {
            Binding::f64(&shape, (0..count).map(|_| random.real()).collect())
        } else {
            let rows = dims.get("T").copied().unwrap_or(1);
            let value = |i: usize| match &**name {
                "tokens" => (i as i64 * 7) % 40,
                // Two sequences: the first half of the tokens, then the others.
                "sequence_ids" => i64::from(i as u64 >= rows / 2),
                "positions" => (i as i64) - if i as u64 >= rows / 2 { (rows / 2) as i64 } else { 0 },
                "block_tables" => i as i64,
                _ => i as i64 % rows as i64,
            };
            Binding::ints(&shape, (0..count).map(value).collect())
        };
        out.insert(name, binding);
    }
    out
}

pub fn run<D: Domain>(
    graph: &Graph,
    dims: &BTreeMap<String, u64>,
    b: &Bindings,
    options: &Options,
) -> Outputs<D::Value> {
    interpret::<D>(graph, dims, b, options).unwrap_or_else(|e| panic!("{}: {e}", graph.name))
}

/// Equal in the ring (casts ideal when `ideal`) on `cases` random instances.
pub fn assert_ring_equal(a: &Graph, b: &Graph, ideal: bool, cases: u64) {
    let options = if ideal { Options::ideal() } else { Options::default() };
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut done = 0;
    for _ in 0..cases * 20 {
        if done == cases {
            return;
        }
        let dims = dims_of(a, &mut random);
        let bind = bindings(a, &dims, &mut random);
        // A zero divisor redraws the case.
        let (Ok(x), Ok(y)) =
            (interpret::<Ring>(a, &dims, &bind, &options), interpret::<Ring>(b, &dims, &bind, &options))
        else {
            continue;
        };
        for (name, tensor) in &x {
            let parts = |t: &weldment_ir::interpret::Tensor<_>| -> Vec<u32> {
                let t: &weldment_ir::interpret::Tensor<weldment_ir::interpret::RingValue> = t;
                t.as_values().into_iter().flatten().map(|v| v.p()).collect()
            };
            assert_eq!(parts(tensor), parts(&y[name]), "output {name} differs in the ring");
        }
        done += 1;
    }
    panic!("only {done} of {cases} ring cases could be drawn");
}

/// Largest difference in f64, relative to the largest value.
pub fn f64_error(a: &Graph, b: &Graph, options: &Options, cases: u64) -> f64 {
    let mut random = Random(0xD1B5_4A32_D192_ED03);
    let mut worst = 0f64;
    for _ in 0..cases {
        let dims = dims_of(a, &mut random);
        let bind = bindings(a, &dims, &mut random);
        let (x, y) = (run::<F64>(a, &dims, &bind, options), run::<F64>(b, &dims, &bind, options));
        for (name, tensor) in &x {
            let (p, q) = (tensor.as_values().unwrap_or(&[]), y[name].as_values().unwrap_or(&[]));
            assert_eq!(p.len(), q.len());
            let scale = p.iter().fold(1e-9f64, |m, v| m.max(v.abs()));
            worst = p.iter().zip(q).fold(worst, |m, (u, v)| m.max((u - v).abs() / scale));
        }
    }
    worst
}

pub fn optimise(graph: &Graph, options: &weldment_passes::Options) -> Optimised {
    weldment_passes::optimise(graph, &ReferenceTarget::default(), options).unwrap_or_else(|e| panic!("{e}"))
}

pub fn policy(p: Numerics) -> weldment_passes::Options {
    weldment_passes::Options { fp_policy: Some(p), ..Default::default() }
}

/// How many nodes of each op.
pub fn count(graph: &Graph, op: &str) -> usize {
    graph.ids().filter(|id| graph.node(*id).op.kind().info().name == op).count()
}

pub fn listing(graph: &Graph) -> String {
    let mut out = String::new();
    for id in graph.ids() {
        let n = graph.node(id);
        let attrs: Vec<String> = n.op.attrs().iter().map(|a| a.to_string()).collect();
        let operands: Vec<String> = n.operands.iter().map(|v| format!("%{}.{}", v.node.index(), v.result)).collect();
        let sources: Vec<Arc<str>> = n.sources.iter().cloned().collect();
        let types: Vec<String> = n.types.iter().map(|t| t.to_string()).collect();
        out.push_str(&format!(
            "%{} = {}({}) {{{}}} : {}  {:?}\n",
            id.index(),
            n.op.kind(),
            operands.join(", "),
            attrs.join(", "),
            types.join(", "),
            sources
        ));
    }
    out
}
