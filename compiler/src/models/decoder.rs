//! The decoder that llama, qwen2 and qwen3 share: pre-norm attention with grouped heads and rope over a paged cache, then a
//! SiLU-gated MLP.

use super::{KV_BLOCK, StepOptions};
use crate::frontend::{Checkpoint, FrontendError, ModelConfig, Place, Quantization, RopeKind, WeightScales, is_code};
use std::collections::BTreeMap;
use std::sync::Arc;
use weldment_artifact::{InputRole, SymbolRole};
use weldment_ir::graph::OutputKind;
use weldment_ir::{DType, Dim, Graph, IrError, Op, Real, Shape, Value};

/// Limits of the entry's symbols, far above what any machine serves.
const MAX_TOKENS: u64 = 1 << 20;
const MAX_SEQS: u64 = 1 << 20;
const MAX_POSITIONS: u64 = 1 << 24;

/// Builds the graph; the checkpoint's tensors were checked against its config.
pub(super) fn build(checkpoint: &Checkpoint, options: &StepOptions) -> Result<Graph, FrontendError> {
    check_options(checkpoint, options)?;
    let mut builder = Builder::new(checkpoint, options);
    match builder.step() {
        Ok(()) => Ok(builder.graph),
        Err(source) => Err(FrontendError::Graph { path: checkpoint.path().to_owned(), source }),
    }
}

fn check_options(checkpoint: &Checkpoint, options: &StepOptions) -> Result<(), FrontendError> {
    let wrong = |key: &str, message: String| {
        Err(FrontendError::invalid(checkpoint.path(), Place::Key(key.to_owned()), message))
    };
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

/// Name of a module's tensor in the checkpoint.
fn tensor_name(path: &str, part: &str) -> String {
    if path == "lm_head" { format!("lm_head.{part}") } else { format!("model.{path}.{part}") }
}

struct Builder<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    options: &'a StepOptions,
    graph: Graph,
    /// Weight leaves by name: a tied embedding is one leaf with two users.
    weights: BTreeMap<String, Value>,
    /// The value that was quantised last, how, and its codes: projections of one input follow each other.
    quantised: Option<((Value, DType, u64), Value)>,
}

/// The step's inputs that every layer reads.
struct Inputs {
    positions: Value,
    sequence_ids: Value,
    block_tables: Value,
    rope_table: Value,
}

impl<'a> Builder<'a> {
    fn new(checkpoint: &'a Checkpoint, options: &'a StepOptions) -> Builder<'a> {
        let mut graph = Graph::new("step");
        let blocks = options.max_seq_len.div_ceil(KV_BLOCK);
        // A rank without sequences steps beside the others, and a chunk of a prefill asks for no logits.
        graph.declare("T", 0, options.max_tokens, SymbolRole::Tokens);
        graph.declare("B", 0, options.max_seqs, SymbolRole::Sequences);
        graph.declare("P", 1, blocks, SymbolRole::Blocks("N".to_owned()));
        graph.declare("R", 0, options.max_tokens, SymbolRole::LogitRows);
        graph.declare("N", 1, blocks.saturating_mul(options.max_seqs), SymbolRole::Pool(KV_BLOCK as u32));
        graph.declare("C", 1, options.max_seq_len, SymbolRole::Context);
        Builder { checkpoint, config: &checkpoint.config, options, graph, weights: BTreeMap::new(), quantised: None }
    }

    fn step(&mut self) -> Result<(), IrError> {
        let token_dim = || vec![Dim::sym("T")];
        let tokens = self.input("tokens", token_dim(), InputRole::Tokens)?;
        let positions = self.input("positions", token_dim(), InputRole::Positions)?;
        let sequence_ids = self.input("sequence_ids", token_dim(), InputRole::Sequences)?;
        let block_tables = self.input("block_tables", vec![Dim::sym("B"), Dim::sym("P")], InputRole::Blocks)?;
        let logit_rows = self.input("logit_rows", vec![Dim::sym("R")], InputRole::LogitRows)?;
        let rope_table = self.rope_table()?;
        let inputs = Inputs { positions, sequence_ids, block_tables, rope_table };

        let dtype = self.options.dtype;
        let embedding = self.weight("embed_tokens", "weight")?;
        let mut hidden = self.graph.push("embed_tokens", Op::Gather { dtype }, &[embedding, tokens])?;
        for layer in 0..self.config.layers {
            hidden = self.attention(layer, hidden, &inputs)?;
            hidden = self.mlp(layer, hidden)?;
        }
        // The norm comes before the rows are picked, so that it stays next to the last residual sum.
        let normed = self.rms_norm("norm", hidden)?;
        let rows = self.graph.push("lm_head.rows", Op::Gather { dtype }, &[normed, logit_rows])?;
        let head = if self.config.tied_embeddings { embedding } else { self.weight("lm_head", "weight")? };
        let logits = self.product("lm_head", rows, head, DType::F32)?;
        self.graph.output("logits", OutputKind::Result, logits);
        Ok(())
    }

    /// hidden + o_proj(attention(norm(hidden))).
    fn attention(&mut self, layer: u64, hidden: Value, inputs: &Inputs) -> Result<Value, IrError> {
        let c = self.config;
        let dtype = self.options.dtype;
        let at = |part: &str| format!("layers.{layer}.self_attn.{part}");
        let normed = self.rms_norm(&format!("layers.{layer}.input_layernorm"), hidden)?;
        let q = self.heads(&at("q_proj"), normed, c.heads, c.qkv_bias)?;
        let k = self.heads(&at("k_proj"), normed, c.kv_heads, c.qkv_bias)?;
        let v = self.heads(&at("v_proj"), normed, c.kv_heads, c.qkv_bias)?;
        let (q, k) = match c.qk_norm {
            true => (self.rms_norm(&at("q_norm"), q)?, self.rms_norm(&at("k_norm"), k)?),
            false => (q, k),
        };
        let rope = Op::Rope { interleaved: c.rope.interleaved };
        let q = self.graph.push(&at("q_rope"), rope.clone(), &[q, inputs.positions, inputs.rope_table])?;
        let k = self.graph.push(&at("k_rope"), rope, &[k, inputs.positions, inputs.rope_table])?;
        let k_cache = self.cache(layer, "k_cache", [c.head_dim, KV_BLOCK], k, inputs)?;
        let v_cache = self.cache(layer, "v_cache", [KV_BLOCK, c.head_dim], v, inputs)?;
        let attention = Op::Attention { scale: Real((c.head_dim as f64).sqrt().recip()), dtype };
        let operands = [q, k_cache, v_cache, inputs.positions, inputs.sequence_ids, inputs.block_tables];
        let mixed = self.graph.push(&at("attention"), attention, &operands)?;
        let shape = vec![Dim::sym("T"), Dim::Const(c.heads * c.head_dim)];
        let mixed = self.graph.push(&at("attention"), Op::Reshape { shape }, &[mixed])?;
        let out = self.linear(&at("o_proj"), mixed, c.o_bias)?;
        self.graph.push(&at("residual"), Op::Add {}, &[out, hidden])
    }

    /// hidden + down_proj(silu(gate_proj(norm)) * up_proj(norm)).
    fn mlp(&mut self, layer: u64, hidden: Value) -> Result<Value, IrError> {
        let bias = self.config.mlp_bias;
        let at = |part: &str| format!("layers.{layer}.mlp.{part}");
        let normed = self.rms_norm(&format!("layers.{layer}.post_attention_layernorm"), hidden)?;
        let gate = self.linear(&at("gate_proj"), normed, bias)?;
        let up = self.linear(&at("up_proj"), normed, bias)?;
        let active = self.graph.push(&at("act_fn"), Op::Silu {}, &[gate])?;
        let product = self.graph.push(&at("product"), Op::Mul {}, &[active, up])?;
        let down = self.linear(&at("down_proj"), product, bias)?;
        self.graph.push(&at("residual"), Op::Add {}, &[down, hidden])
    }

    /// x W^T (+ bias).
    fn linear(&mut self, path: &str, x: Value, bias: bool) -> Result<Value, IrError> {
        let dtype = self.options.dtype;
        let w = self.weight(path, "weight")?;
        let out = self.product(path, x, w, dtype)?;
        if !bias {
            return Ok(out);
        }
        let mut b = self.weight(path, "bias")?;
        if self.graph.type_of(b).dtype != dtype {
            b = self.graph.push(path, Op::Cast { dtype }, &[b])?;
        }
        self.graph.push(path, Op::Add {}, &[out, b])
    }

    /// x times the weight of the module `path` transposed; where that is quantised, so is x first.
    fn product(&mut self, path: &str, x: Value, w: Value, dtype: DType) -> Result<Value, IrError> {
        let weight = self.graph.type_of(w).clone();
        let quantization = self.config.quantization.as_ref().filter(|_| is_code(weight.dtype));
        let (Some(q), Some(&[n, k])) = (quantization, weight.constant_shape().as_deref()) else {
            return self.graph.push(path, Op::Matmul { dtype }, &[x, w]);
        };
        let codes = self.quantised(path, x, weight.dtype, q.group(k))?;
        let scales = Value { result: 1, ..codes };
        let w_scales = self.weight_scales(path, q, [n, k])?;
        let [rows, columns] = match q.weights {
            WeightScales::Tensor | WeightScales::Channel => [1, k as i64],
            WeightScales::Block { rows, columns } => [rows.min(n) as i64, columns as i64],
        };
        self.graph.push(path, Op::ScaledMatmul { rows, columns, dtype }, &[codes, scales, w, w_scales])
    }

    /// x in codes: once for all of its readers, at the first of them, so that it stands beside the norm that x is.
    fn quantised(&mut self, path: &str, x: Value, dtype: DType, group: u64) -> Result<Value, IrError> {
        if let Some((of, codes)) = self.quantised
            && of == (x, dtype, group)
        {
            return Ok(codes);
        }
        let codes = self.graph.push(path, Op::Quantise { dtype, group: group as i64 }, &[x])?;
        self.quantised = Some(((x, dtype, group), codes));
        Ok(codes)
    }

    /// Scales of a quantised weight [N, K] in f32: one a block, or one a row; a scale of a whole tensor is repeated for each row,
    /// so that projections of one input can be joined.
    fn weight_scales(&mut self, path: &str, q: &Quantization, [n, k]: [u64; 2]) -> Result<Value, IrError> {
        let names = Quantization::SCALES.map(|part| tensor_name(path, part));
        let name = names.iter().find(|name| self.checkpoint.tensor(name).is_some()).unwrap_or(&names[0]);
        let mut scales = self.named_weight(path, name)?;
        if self.graph.type_of(scales).dtype != DType::F32 {
            scales = self.graph.push(path, Op::Cast { dtype: DType::F32 }, &[scales])?;
        }
        let dims = |shape: [u64; 2]| -> Shape { shape.map(Dim::Const).to_vec() };
        if self.graph.type_of(scales).shape != dims(q.scale_shape([n, k])) {
            scales = self.graph.push(path, Op::Reshape { shape: dims(q.scale_shape([n, k])) }, &[scales])?;
        }
        if q.weights == WeightScales::Tensor && n != 1 {
            scales = self.graph.push(path, Op::Broadcast { shape: dims([n, 1]) }, &[scales])?;
        }
        Ok(scales)
    }

    /// A projection split into heads: [T, heads, head_dim].
    fn heads(&mut self, path: &str, x: Value, heads: u64, bias: bool) -> Result<Value, IrError> {
        let flat = self.linear(path, x, bias)?;
        let shape = vec![Dim::sym("T"), Dim::Const(heads), Dim::Const(self.config.head_dim)];
        self.graph.push(path, Op::Reshape { shape }, &[flat])
    }

    fn rms_norm(&mut self, path: &str, x: Value) -> Result<Value, IrError> {
        let w = self.weight(path, "weight")?;
        let op = Op::RmsNorm { eps: Real(self.config.rms_eps), dtype: self.options.dtype };
        self.graph.push(path, op, &[x, w])
    }

    /// Declares a cache [N, Hkv, `block`], writes `x` into it and gives the new version. Positions are innermost in the K cache.
    fn cache(&mut self, layer: u64, part: &str, block: [u64; 2], x: Value, inputs: &Inputs) -> Result<Value, IrError> {
        let name = format!("layers.{layer}.{part}");
        let path = format!("layers.{layer}.self_attn.{part}");
        let shape: Shape =
            vec![Dim::sym("N"), Dim::Const(self.config.kv_heads), Dim::Const(block[0]), Dim::Const(block[1])];
        let state = Op::State { name: Arc::from(name.as_str()), dtype: self.options.dtype, shape };
        let before = self.graph.push(&path, state, &[])?;
        let write = Op::CacheWrite { transposed: part == "k_cache" };
        let operands = [before, x, inputs.positions, inputs.sequence_ids, inputs.block_tables];
        let after = self.graph.push(&path, write, &operands)?;
        self.graph.output(&name, OutputKind::State, after);
        Ok(after)
    }

    fn input(&mut self, name: &str, shape: Shape, role: InputRole) -> Result<Value, IrError> {
        self.graph.push(name, Op::Input { name: name.into(), dtype: DType::I32, shape, role }, &[])
    }

    /// cos and sin of every position that the caches have room for.
    fn rope_table(&mut self) -> Result<Value, IrError> {
        let rope = &self.config.rope;
        let (factor, low, high, original) = match rope.kind {
            RopeKind::Llama3 { factor, low, high, original } => (factor, low, high, original),
            // Every wavelength, 2 pi or more, is long beside an original context of one position.
            RopeKind::Linear { factor } => (factor, 1.0, 2.0, 1),
            RopeKind::Default | RopeKind::Factors => (1.0, 1.0, 1.0, 0),
        };
        let op = Op::RopeTable {
            positions: self.options.max_seq_len.next_multiple_of(KV_BLOCK) as i64,
            dim: rope.rotary_dim as i64,
            theta: Real(rope.theta),
            factor: Real(factor),
            low: Real(low),
            high: Real(high),
            original: original as i64,
        };
        let factors = match rope.kind {
            RopeKind::Factors => vec![self.named_weight("rotary_emb", "rope_freqs.weight")?],
            _ => Vec::new(),
        };
        self.graph.push("rotary_emb", op, &factors)
    }

    /// The leaf of the module `path`'s `weight` or `bias`.
    fn weight(&mut self, path: &str, part: &str) -> Result<Value, IrError> {
        self.named_weight(path, &tensor_name(path, part))
    }

    fn named_weight(&mut self, path: &str, name: &str) -> Result<Value, IrError> {
        if let Some(leaf) = self.weights.get(name) {
            return Ok(*leaf);
        }
        let missing =
            || IrError::InvalidGraph { path: path.to_owned(), message: format!("there is no tensor `{name}`") };
        let tensor = self.checkpoint.tensor(name).ok_or_else(missing)?;
        let shape = tensor.shape.iter().map(|n| Dim::Const(*n)).collect();
        let leaf = self.graph.push(path, Op::Weight { name: name.into(), dtype: tensor.dtype, shape }, &[])?;
        self.weights.insert(name.to_owned(), leaf);
        Ok(leaf)
    }
}
