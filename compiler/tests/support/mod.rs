//! A tiny GGUF writer and the tiny models that the tests write with it.

#![allow(dead_code, reason = "each test binary uses its own part")]

use weldment_ir::DType;
use weldment_ir::codec::{Overflow, encode};

/// Builds a GGUF file piece by piece; nothing is checked, so that it can lie.
#[derive(Clone)]
pub struct GgufWriter {
    pub version: u32,
    pub alignment: usize,
    pairs: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// Innermost first, as the format has it.
    pub dims: Vec<u64>,
    pub kind: u32,
    pub data: Vec<u8>,
    /// In place of the next free offset.
    pub offset: Option<u64>,
}

fn text(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

impl GgufWriter {
    pub fn new() -> GgufWriter {
        GgufWriter { version: 3, alignment: 32, pairs: Vec::new(), tensors: Vec::new() }
    }

    /// Sets a key to raw bytes: type id and value.
    pub fn raw(&mut self, key: &str, bytes: Vec<u8>) -> &mut Self {
        self.pairs.retain(|(k, _)| k != key);
        self.pairs.push((key.to_owned(), bytes));
        self
    }

    pub fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.raw(key, [4u32.to_le_bytes(), value.to_le_bytes()].concat())
    }

    pub fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.raw(key, [6u32.to_le_bytes(), value.to_le_bytes()].concat())
    }

    pub fn flag(&mut self, key: &str, value: bool) -> &mut Self {
        self.raw(key, [&7u32.to_le_bytes()[..], &[u8::from(value)]].concat())
    }

    pub fn string(&mut self, key: &str, value: &str) -> &mut Self {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        text(&mut bytes, value);
        self.raw(key, bytes)
    }

    pub fn strings(&mut self, key: &str, values: &[String]) -> &mut Self {
        let mut bytes = [9u32.to_le_bytes(), 8u32.to_le_bytes()].concat();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| text(&mut bytes, v));
        self.raw(key, bytes)
    }

    pub fn f32s(&mut self, key: &str, values: &[f32]) -> &mut Self {
        let mut bytes = [9u32.to_le_bytes(), 6u32.to_le_bytes()].concat();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        self.raw(key, bytes)
    }

    pub fn i32s(&mut self, key: &str, values: &[i32]) -> &mut Self {
        let mut bytes = [9u32.to_le_bytes(), 5u32.to_le_bytes()].concat();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        self.raw(key, bytes)
    }

    /// A tensor of small made-up values; `shape` outermost first.
    pub fn tensor(&mut self, name: &str, dtype: DType, shape: &[u64]) -> &mut Self {
        let count: u64 = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| ((i * 37 + 11) % 101) as f32 / 101.0 - 0.5).collect();
        let kind = match dtype {
            DType::F32 => 0,
            DType::F16 => 1,
            DType::Q4_0 => 2,
            DType::Q4_1 => 3,
            DType::Q8_0 => 8,
            other => panic!("no type id for {other}"),
        };
        let data = encode(dtype, &values, Overflow::Ieee).unwrap();
        let dims = shape.iter().rev().copied().collect();
        self.tensors.push(Tensor { name: name.to_owned(), dims, kind, data, offset: None });
        self
    }

    pub fn named(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            text(&mut out, key);
            out.extend(value);
        }
        let mut next = 0u64;
        for t in &self.tensors {
            text(&mut out, &t.name);
            out.extend((t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(t.kind.to_le_bytes());
            out.extend(t.offset.unwrap_or(next).to_le_bytes());
            next = (next + t.data.len() as u64).next_multiple_of(self.alignment as u64);
        }
        for t in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&t.data);
        }
        out
    }
}

/// GPT-2's printable alphabet: the character that stands for each byte.
pub fn byte_alphabet() -> Vec<String> {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256u32;
    let mut character = |b: u32| {
        if printable(b) {
            return b;
        }
        next += 1;
        next - 1
    };
    (0..256).map(|b| char::from_u32(character(b)).unwrap().to_string()).collect()
}

/// A one-layer llama with a byte-level tokenizer: 32 wide, 2 heads over 1, vocabulary 260.
pub fn tiny_llama() -> GgufWriter {
    let mut tokens = byte_alphabet();
    tokens.extend(["he", "hel", "<|bos|>", "<|im_end|>"].map(str::to_owned));
    let mut kinds = vec![1; 258];
    kinds.extend([3, 3]);
    let mut w = GgufWriter::new();
    w.string("general.architecture", "llama")
        .u32("general.alignment", 32)
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 32)
        .u32("llama.feed_forward_length", 64)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("llama.rope.freq_base", 10000.0)
        .u32("llama.rope.dimension_count", 16)
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "smollm")
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strings("tokenizer.ggml.merges", &["h e", "he l"].map(str::to_owned))
        .u32("tokenizer.ggml.bos_token_id", 258)
        .u32("tokenizer.ggml.eos_token_id", 259)
        .string("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}")
        .tensor("token_embd.weight", DType::Q8_0, &[260, 32])
        .tensor("output_norm.weight", DType::F32, &[32])
        .tensor("blk.0.attn_norm.weight", DType::F32, &[32])
        .tensor("blk.0.attn_q.weight", DType::Q4_1, &[32, 32])
        .tensor("blk.0.attn_k.weight", DType::Q4_0, &[16, 32])
        .tensor("blk.0.attn_v.weight", DType::F16, &[16, 32])
        .tensor("blk.0.attn_output.weight", DType::Q4_0, &[32, 32])
        .tensor("blk.0.ffn_norm.weight", DType::F32, &[32])
        .tensor("blk.0.ffn_gate.weight", DType::Q4_0, &[64, 32])
        .tensor("blk.0.ffn_up.weight", DType::Q4_0, &[64, 32])
        .tensor("blk.0.ffn_down.weight", DType::Q8_0, &[32, 64]);
    w
}
