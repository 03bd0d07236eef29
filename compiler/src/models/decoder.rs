//! The graph of a decoder's step, from its specification: one node per model op.

use super::StepOptions;
use super::config::ModelConfig;
use super::rope::{Rope, RopeKind};
use super::spec::{Activation, Attention, Decoder, FeedForward, Layer, Norms, QkNorm, Scale};
use super::tensors::{Needed, Role, Tensors};
use crate::frontend::{FrontendError, Place, Quantization, WeightScales, is_code};
use std::collections::BTreeMap;
use std::sync::Arc;
use weldment_artifact::{InputRole, SymbolRole};
use weldment_ir::graph::OutputKind;
use weldment_ir::{DType, Dim, Graph, Op, Real, Shape, Value};

/// Limits of the entry's symbols, far above what any machine serves.
const MAX_TOKENS: u64 = 1 << 20;
const MAX_SEQS: u64 = 1 << 20;
const MAX_POSITIONS: u64 = 1 << 24;

type Built<T> = Result<T, FrontendError>;

/// Builds the graph of `config`'s decoder over `tensors`.
///
/// # Errors
/// If a tensor is not as needed, or an option is out of range.
pub(super) fn build(config: &ModelConfig, tensors: &mut dyn Tensors, options: &StepOptions) -> Built<Graph> {
    check_options(tensors, options)?;
    let Some(decoder) = &config.decoder else {
        return Err(FrontendError::unsupported(tensors.path(), Place::File, "a text graph has no decoder"));
    };
    let mut builder = DecoderGraph {
        decoder,
        quantization: config.quantization.as_ref(),
        tensors,
        options,
        graph: declared(options),
        weights: BTreeMap::new(),
        quantised: None,
        ropes: Vec::new(),
    };
    builder.step()?;
    Ok(builder.graph)
}

fn check_options(tensors: &dyn Tensors, options: &StepOptions) -> Built<()> {
    let wrong =
        |key: &str, message: String| Err(FrontendError::invalid(tensors.path(), Place::Key(key.to_owned()), message));
    if !options.dtype.is_compute_float() {
        return wrong("dtype", format!("{}; f32, f16 and bf16 are accepted", options.dtype));
    }
    let limits = [
        ("tokens", options.max_tokens, MAX_TOKENS),
        ("seqs", options.max_seqs, MAX_SEQS),
        ("max-seq", options.max_seq_len, MAX_POSITIONS),
    ];
    for (key, value, limit) in limits {
        if value == 0 || value > limit {
            return wrong(key, format!("{value}; 1 to {limit} is accepted"));
        }
    }
    Ok(())
}

/// The empty graph with the entry's symbols.
fn declared(options: &StepOptions) -> Graph {
    let mut graph = Graph::new("step");
    let blocks = options.max_seq_len.div_ceil(options.kv_block);
    // A rank without sequences steps beside the others, and a chunk of a prefill asks for no logits.
    graph.declare("T", 0, options.max_tokens, SymbolRole::Tokens);
    graph.declare("B", 0, options.max_seqs, SymbolRole::Sequences);
    graph.declare("P", 1, blocks, SymbolRole::Blocks("N".to_owned()));
    graph.declare("R", 0, options.max_tokens, SymbolRole::LogitRows);
    graph.declare("N", 1, blocks.saturating_mul(options.max_seqs), SymbolRole::Pool(options.kv_block as u32));
    graph.declare("C", 1, options.max_seq_len, SymbolRole::Context);
    graph
}

/// Name of a module's tensor.
fn tensor_name(path: &str, part: &str) -> String {
    if path == "lm_head" { format!("lm_head.{part}") } else { format!("model.{path}.{part}") }
}

struct DecoderGraph<'a> {
    decoder: &'a Decoder,
    quantization: Option<&'a Quantization>,
    tensors: &'a mut dyn Tensors,
    options: &'a StepOptions,
    graph: Graph,
    /// Weight leaves by name: a tied embedding is one leaf with two users.
    weights: BTreeMap<String, Value>,
    /// The value that was quantised last, how, and its codes: projections of one input follow each other.
    quantised: Option<((Value, DType, u64), Value)>,
    /// Tables of angles, one a rope.
    ropes: Vec<(&'a Rope, Value)>,
}

/// The step's inputs that every layer reads.
struct Inputs {
    positions: Value,
    sequence_ids: Value,
    block_tables: Value,
}

impl<'a> DecoderGraph<'a> {
    fn push(&mut self, path: &str, op: Op, operands: &[Value]) -> Built<Value> {
        let failed = |source| FrontendError::Graph { path: self.tensors.path().to_owned(), source };
        self.graph.push(path, op, operands).map_err(failed)
    }

    fn step(&mut self) -> Built<()> {
        let d = self.decoder;
        let token_dim = || vec![Dim::sym("T")];
        let tokens = self.input("tokens", token_dim(), InputRole::Tokens)?;
        let positions = self.input("positions", token_dim(), InputRole::Positions)?;
        let sequence_ids = self.input("sequence_ids", token_dim(), InputRole::Sequences)?;
        let block_tables = self.input("block_tables", vec![Dim::sym("B"), Dim::sym("P")], InputRole::Blocks)?;
        let logit_rows = self.input("logit_rows", vec![Dim::sym("R")], InputRole::LogitRows)?;
        let inputs = Inputs { positions, sequence_ids, block_tables };
        // Tables of angles first, so that layers are alike.
        for layer in &d.layers {
            self.rope_table(&layer.attention.rope)?;
        }

        let dtype = self.options.dtype;
        let embedding = self.weight("embed_tokens", "weight", [d.vocab, d.hidden], Role::Embedding)?;
        let embedded = self.push("embed_tokens", Op::Gather { dtype }, &[embedding, tokens])?;
        let mut hidden = self.scaled("embed_tokens", embedded, d.embedding_scale)?;
        for (i, layer) in d.layers.iter().enumerate() {
            hidden = self.layer(i, layer, hidden, &inputs)?;
        }
        // The norm comes before the rows are picked, so that it stays next to the last residual sum.
        let normed = self.rms_norm("norm", hidden, d.hidden)?;
        let rows = self.push("lm_head.rows", Op::Gather { dtype }, &[normed, logit_rows])?;
        let head = match d.tied_embeddings {
            true => embedding,
            false => self.weight("lm_head", "weight", [d.vocab, d.hidden], Role::Projection)?,
        };
        let mut logits = self.product("lm_head", rows, head, DType::F32)?;
        if d.logit_divisor != 1.0 {
            let by = Op::Constant { value: Real(d.logit_divisor), dtype: DType::F32 };
            let by = self.push("lm_head.divisor", by, &[])?;
            logits = self.push("lm_head.divided", Op::Div {}, &[logits, by])?;
        }
        self.graph.output("logits", OutputKind::Result, logits);
        Ok(())
    }

    /// hidden + attention, then + feed-forward, each between its norms.
    fn layer(&mut self, i: usize, layer: &'a Layer, hidden: Value, inputs: &Inputs) -> Built<Value> {
        let scale = Scale { factor: layer.residual_scale, rounded: false };
        let at = format!("layers.{i}.self_attn");
        let normed = self.before(i, layer.attention_norms, hidden)?;
        let mixed = self.attention(i, &layer.attention, normed, inputs)?;
        let mixed = self.after(i, layer.attention_norms, mixed)?;
        let mixed = self.scaled(&format!("{at}.residual_scale"), mixed, scale)?;
        let hidden = self.push(&format!("{at}.residual"), Op::Add {}, &[mixed, hidden])?;

        let at = format!("layers.{i}.mlp");
        let normed = self.before(i, layer.feed_forward_norms, hidden)?;
        let fed = self.feed_forward(i, &layer.feed_forward, normed)?;
        let fed = self.after(i, layer.feed_forward_norms, fed)?;
        let fed = self.scaled(&format!("{at}.residual_scale"), fed, scale)?;
        self.push(&format!("{at}.residual"), Op::Add {}, &[fed, hidden])
    }

    fn before(&mut self, i: usize, norms: Norms, x: Value) -> Built<Value> {
        norms.before.map_or(Ok(x), |name| self.rms_norm(&format!("layers.{i}.{name}"), x, self.decoder.hidden))
    }

    fn after(&mut self, i: usize, norms: Norms, x: Value) -> Built<Value> {
        norms.after.map_or(Ok(x), |name| self.rms_norm(&format!("layers.{i}.{name}"), x, self.decoder.hidden))
    }

    /// o_proj(attention(x)).
    fn attention(&mut self, i: usize, a: &'a Attention, x: Value, inputs: &Inputs) -> Built<Value> {
        let dtype = self.options.dtype;
        let at = |part: &str| format!("layers.{i}.self_attn.{part}");
        let whole = a.qk_norm == QkNorm::Whole;
        let q = self.heads(&at("q_proj"), x, a, a.heads, whole.then(|| at("q_norm")))?;
        let k = self.heads(&at("k_proj"), x, a, a.kv_heads, whole.then(|| at("k_norm")))?;
        let v = self.heads(&at("v_proj"), x, a, a.kv_heads, None)?;
        let (q, k) = match a.qk_norm {
            QkNorm::Heads => {
                (self.rms_norm(&at("q_norm"), q, a.head_dim)?, self.rms_norm(&at("k_norm"), k, a.head_dim)?)
            }
            QkNorm::None | QkNorm::Whole => (q, k),
        };
        let table = self.rope_table(&a.rope)?;
        let rope = Op::Rope { interleaved: a.rope.interleaved };
        let q = self.push(&at("q_rope"), rope.clone(), &[q, inputs.positions, table])?;
        let k = self.push(&at("k_rope"), rope, &[k, inputs.positions, table])?;
        let k_cache = self.cache(i, "k_cache", [a.kv_heads, a.head_dim, self.options.kv_block], k, inputs)?;
        let v_cache = self.cache(i, "v_cache", [a.kv_heads, self.options.kv_block, a.head_dim], v, inputs)?;
        let window = a.window.map_or(0, |n| n as i64);
        let attention = Op::Attention { scale: Real(a.scale), dtype, window };
        let operands = [q, k_cache, v_cache, inputs.positions, inputs.sequence_ids, inputs.block_tables];
        let mixed = self.push(&at("attention"), attention, &operands)?;
        let width = a.heads * a.head_dim;
        let shape = vec![Dim::sym("T"), Dim::Const(width)];
        let mixed = self.push(&at("attention"), Op::Reshape { shape }, &[mixed])?;
        self.linear(&at("o_proj"), mixed, [self.decoder.hidden, width], a.output_bias)
    }

    /// down_proj(activation(gate_proj(x)) * up_proj(x)).
    fn feed_forward(&mut self, i: usize, f: &FeedForward, x: Value) -> Built<Value> {
        let hidden = self.decoder.hidden;
        let at = |part: &str| format!("layers.{i}.mlp.{part}");
        let gate = self.linear(&at("gate_proj"), x, [f.width, hidden], f.bias)?;
        let up = self.linear(&at("up_proj"), x, [f.width, hidden], f.bias)?;
        let activation = match f.activation {
            Activation::Silu => Op::Silu {},
            Activation::GeluTanh => Op::Gelu {},
        };
        let active = self.push(&at("act_fn"), activation, &[gate])?;
        let product = self.push(&at("product"), Op::Mul {}, &[active, up])?;
        self.linear(&at("down_proj"), product, [hidden, f.width], f.bias)
    }

    /// x times a factor. One that the compute dtype does not hold is multiplied with in f32, and the product rounded.
    fn scaled(&mut self, path: &str, x: Value, scale: Scale) -> Built<Value> {
        if scale.factor == 1.0 {
            return Ok(x);
        }
        let dtype = self.graph.type_of(x).dtype;
        let wide = !scale.rounded && !holds(dtype, scale.factor);
        let of = if wide { DType::F32 } else { dtype };
        let x = if wide { self.push(path, Op::Cast { dtype: of }, &[x])? } else { x };
        let factor = self.push(path, Op::Constant { value: Real(scale.factor), dtype: of }, &[])?;
        let product = self.push(path, Op::Mul {}, &[x, factor])?;
        if wide { self.push(path, Op::Cast { dtype }, &[product]) } else { Ok(product) }
    }

    /// x W^T (+ bias) for a weight of shape [N, K].
    fn linear(&mut self, path: &str, x: Value, shape: [u64; 2], bias: bool) -> Built<Value> {
        let dtype = self.options.dtype;
        let w = self.weight(path, "weight", shape, Role::Projection)?;
        let out = self.product(path, x, w, dtype)?;
        if !bias {
            return Ok(out);
        }
        let mut b = self.weight(path, "bias", [shape[0]], Role::Bias)?;
        if self.graph.type_of(b).dtype != dtype {
            b = self.push(path, Op::Cast { dtype }, &[b])?;
        }
        self.push(path, Op::Add {}, &[out, b])
    }

    /// x times the weight of the module `path` transposed; where that is quantised, so is x first.
    fn product(&mut self, path: &str, x: Value, w: Value, dtype: DType) -> Built<Value> {
        let weight = self.graph.type_of(w).clone();
        let quantization = self.quantization.filter(|_| is_code(weight.dtype));
        let (Some(q), Some(&[n, k])) = (quantization, weight.constant_shape().as_deref()) else {
            return self.push(path, Op::Matmul { dtype }, &[x, w]);
        };
        let codes = self.quantised(path, x, weight.dtype, q.group(k))?;
        let scales = Value { result: 1, ..codes };
        let w_scales = self.weight_scales(path, q, [n, k])?;
        let [rows, columns] = match q.weights {
            WeightScales::Tensor | WeightScales::Channel => [1, k as i64],
            WeightScales::Block { rows, columns } => [rows.min(n) as i64, columns as i64],
        };
        self.push(path, Op::ScaledMatmul { rows, columns, dtype }, &[codes, scales, w, w_scales])
    }

    /// x in codes: once for all of its readers, at the first of them, so that it stands beside the norm that x is.
    fn quantised(&mut self, path: &str, x: Value, dtype: DType, group: u64) -> Built<Value> {
        if let Some((of, codes)) = self.quantised
            && of == (x, dtype, group)
        {
            return Ok(codes);
        }
        let codes = self.push(path, Op::Quantise { dtype, group: group as i64 }, &[x])?;
        self.quantised = Some(((x, dtype, group), codes));
        Ok(codes)
    }

    /// Scales of a quantised weight [N, K] in f32: one a block, or one a row; a scale of a whole tensor is repeated for each row,
    /// so that projections of one input can be joined.
    fn weight_scales(&mut self, path: &str, q: &Quantization, [n, k]: [u64; 2]) -> Built<Value> {
        let module = tensor_name(path, "weight");
        let name = self.tensors.scales_of(module.trim_end_matches(".weight"));
        let expected = q.scale_shape([n, k]);
        let mut scales = self.leaf(path, Needed { name, shape: expected.to_vec(), role: Role::Scales })?;
        if self.graph.type_of(scales).dtype != DType::F32 {
            scales = self.push(path, Op::Cast { dtype: DType::F32 }, &[scales])?;
        }
        let dims = |shape: [u64; 2]| -> Shape { shape.map(Dim::Const).to_vec() };
        if self.graph.type_of(scales).shape != dims(expected) {
            scales = self.push(path, Op::Reshape { shape: dims(expected) }, &[scales])?;
        }
        if q.weights == WeightScales::Tensor && n != 1 {
            scales = self.push(path, Op::Broadcast { shape: dims([n, 1]) }, &[scales])?;
        }
        Ok(scales)
    }

    /// A projection, normed as a whole where a norm is named, split into heads: [T, heads, head_dim].
    fn heads(&mut self, path: &str, x: Value, a: &Attention, heads: u64, norm: Option<String>) -> Built<Value> {
        let width = heads * a.head_dim;
        let mut flat = self.linear(path, x, [width, self.decoder.hidden], a.qkv_bias)?;
        if let Some(norm) = norm {
            flat = self.rms_norm(&norm, flat, width)?;
        }
        let shape = vec![Dim::sym("T"), Dim::Const(heads), Dim::Const(a.head_dim)];
        self.push(path, Op::Reshape { shape }, &[flat])
    }

    /// The norm of rows of `width`; stored weights that lack 1 get it in f32.
    fn rms_norm(&mut self, path: &str, x: Value, width: u64) -> Built<Value> {
        let mut w = self.weight(path, "weight", [width], Role::Norm)?;
        let norm = self.decoder.norm;
        if norm.offset != 0.0 {
            if self.graph.type_of(w).dtype != DType::F32 {
                w = self.push(path, Op::Cast { dtype: DType::F32 }, &[w])?;
            }
            let offset = Op::Constant { value: Real(norm.offset), dtype: DType::F32 };
            let offset = self.push(path, offset, &[])?;
            w = self.push(path, Op::Add {}, &[w, offset])?;
        }
        self.push(path, Op::RmsNorm { eps: Real(norm.eps), dtype: self.options.dtype }, &[x, w])
    }

    /// Declares a cache [N, Hkv, ..] with `dims` after N, writes `x` into it and gives the new version. Positions are innermost in the
    /// K cache.
    fn cache(&mut self, layer: usize, part: &str, dims: [u64; 3], x: Value, inputs: &Inputs) -> Built<Value> {
        let name = format!("layers.{layer}.{part}");
        let path = format!("layers.{layer}.self_attn.{part}");
        let shape: Shape = std::iter::once(Dim::sym("N")).chain(dims.map(Dim::Const)).collect();
        let state = Op::State { name: Arc::from(name.as_str()), dtype: self.options.dtype, shape };
        let before = self.push(&path, state, &[])?;
        let write = Op::CacheWrite { transposed: part == "k_cache" };
        let operands = [before, x, inputs.positions, inputs.sequence_ids, inputs.block_tables];
        let after = self.push(&path, write, &operands)?;
        self.graph.output(&name, OutputKind::State, after);
        Ok(after)
    }

    fn input(&mut self, name: &str, shape: Shape, role: InputRole) -> Built<Value> {
        self.push(name, Op::Input { name: name.into(), dtype: DType::I32, shape, role }, &[])
    }

    /// cos and sin of every position that the caches have room for.
    fn rope_table(&mut self, rope: &'a Rope) -> Built<Value> {
        if let Some((_, table)) = self.ropes.iter().find(|(known, _)| *known == rope) {
            return Ok(*table);
        }
        let path = match self.ropes.len() {
            0 => "rotary_emb".to_owned(),
            n => format!("rotary_emb.{n}"),
        };
        let frequencies = rope.frequencies(self.options.max_seq_len);
        let (factor, low, high, original) = match rope.kind {
            RopeKind::Llama3 { factor, low, high, original } => (factor, low, high, original),
            _ => (1.0, 1.0, 1.0, 0),
        };
        let op = Op::RopeTable {
            positions: self.options.max_seq_len.next_multiple_of(self.options.kv_block) as i64,
            dim: rope.rotary_dim as i64,
            theta: Real(frequencies.theta),
            factor: Real(factor),
            low: Real(low),
            high: Real(high),
            original: original as i64,
        };
        let divisors = match frequencies.divisors.is_empty() {
            true => Vec::new(),
            false => {
                let values = frequencies.divisors.into_iter().map(Real).collect();
                vec![self.push(&path, Op::Numbers { values }, &[])?]
            }
        };
        let mut table = self.push(&path, op, &divisors)?;
        if frequencies.scale != 1.0 {
            let scale = Op::Constant { value: Real(frequencies.scale), dtype: DType::F32 };
            let scale = self.push(&path, scale, &[])?;
            table = self.push(&path, Op::Mul {}, &[table, scale])?;
        }
        self.ropes.push((rope, table));
        Ok(table)
    }

    /// The leaf of the module `path`'s `weight` or `bias`.
    fn weight<const N: usize>(&mut self, path: &str, part: &str, shape: [u64; N], role: Role) -> Built<Value> {
        self.leaf(path, Needed { name: tensor_name(path, part), shape: shape.to_vec(), role })
    }

    fn leaf(&mut self, path: &str, needed: Needed) -> Built<Value> {
        if let Some(leaf) = self.weights.get(&needed.name) {
            return Ok(*leaf);
        }
        let (dtype, shape) = self.tensors.find(&needed)?;
        let shape = shape.into_iter().map(Dim::Const).collect();
        let leaf = self.push(path, Op::Weight { name: needed.name.as_str().into(), dtype, shape }, &[])?;
        self.weights.insert(needed.name, leaf);
        Ok(leaf)
    }
}

/// True if a factor is a number of `dtype`.
fn holds(dtype: DType, factor: f64) -> bool {
    let single = factor as f32;
    match dtype {
        DType::BF16 => f64::from(half::bf16::from_f32(single)) == factor,
        DType::F16 => f64::from(half::f16::from_f32(single)) == factor,
        // Every product with an f32 is one in f32.
        _ => true,
    }
}
