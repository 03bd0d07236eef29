//! The tensors that a config asks for, with their shapes: one list for checking checkpoints and for making random ones.

use super::config::{ModelConfig, RopeKind};

/// What a tensor is to the model, which decides the dtypes it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The embedding table.
    Embedding,
    /// A projection, [out, in].
    Projection,
    /// A norm's weight.
    Norm,
    /// A projection's bias.
    Bias,
    /// Rotary frequency divisors.
    RopeFactors,
}

/// One tensor of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Canonical name.
    pub name: String,
    /// Shape, outermost first.
    pub shape: Vec<u64>,
    /// What it is for.
    pub role: Role,
}

impl Expected {
    /// The module that this is the projection weight of.
    pub fn module(&self) -> Option<&str> {
        self.name.strip_suffix(".weight").filter(|_| self.role == Role::Projection)
    }
}

/// Every tensor of the decoder that `config` describes, in the order of use.
pub fn expected_tensors(config: &ModelConfig) -> Vec<Expected> {
    let c = config;
    let (q, kv) = (c.heads.saturating_mul(c.head_dim), c.kv_heads.saturating_mul(c.head_dim));
    let mut list = Vec::new();
    let mut add = |name: String, shape: &[u64], role| list.push(Expected { name, shape: shape.to_vec(), role });
    add("model.embed_tokens.weight".into(), &[c.vocab, c.hidden], Role::Embedding);
    if c.rope.kind == RopeKind::Factors {
        add("rope_freqs.weight".into(), &[c.rope.rotary_dim / 2], Role::RopeFactors);
    }
    for layer in 0..c.layers {
        let mut norm = |part: &str, width| add(format!("model.layers.{layer}.{part}.weight"), &[width], Role::Norm);
        norm("input_layernorm", c.hidden);
        norm("post_attention_layernorm", c.hidden);
        if c.qk_norm {
            norm("self_attn.q_norm", c.head_dim);
            norm("self_attn.k_norm", c.head_dim);
        }
        let projections = [
            ("self_attn.q_proj", q, c.hidden, c.qkv_bias),
            ("self_attn.k_proj", kv, c.hidden, c.qkv_bias),
            ("self_attn.v_proj", kv, c.hidden, c.qkv_bias),
            ("self_attn.o_proj", c.hidden, q, c.o_bias),
            ("mlp.gate_proj", c.intermediate, c.hidden, c.mlp_bias),
            ("mlp.up_proj", c.intermediate, c.hidden, c.mlp_bias),
            ("mlp.down_proj", c.hidden, c.intermediate, c.mlp_bias),
        ];
        for (part, rows, columns, bias) in projections {
            add(format!("model.layers.{layer}.{part}.weight"), &[rows, columns], Role::Projection);
            if bias {
                add(format!("model.layers.{layer}.{part}.bias"), &[rows], Role::Bias);
            }
        }
    }
    add("model.norm.weight".into(), &[c.hidden], Role::Norm);
    if !c.tied_embeddings {
        add("lm_head.weight".into(), &[c.vocab, c.hidden], Role::Projection);
    }
    list
}
