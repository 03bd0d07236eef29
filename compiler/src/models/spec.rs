//! What a decoder is made of: a list of layers, each attention and feed-forward, each with norms before, after or around.
//!
//! A family turns a config into one of these; the builder turns it into a graph.

use super::rope::Rope;

/// A decoder from token ids to logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoder {
    /// Width of the residual stream.
    pub hidden: u64,
    /// Rows of the embedding and of the output projection.
    pub vocab: u64,
    /// Embeddings are multiplied by this.
    pub embedding_scale: Scale,
    /// Layers, first to last.
    pub layers: Vec<Layer>,
    /// All norms.
    pub norm: RmsNorm,
    /// The output projection is the embedding table.
    pub tied_embeddings: bool,
    /// Logits are divided by this.
    pub logit_divisor: f64,
}

/// A factor, and whether it takes the compute dtype's precision before it is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// The factor; 1 is none.
    pub factor: f64,
    /// It is rounded to the compute dtype first.
    pub rounded: bool,
}

/// RMS norms: x * rsqrt(mean(x^2) + eps) * (w + offset).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean.
    pub eps: f64,
    /// Added to stored weights: 0 or 1.
    pub offset: f64,
}

/// hidden + scale * attention(hidden), then the same with the feed-forward.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Attention.
    pub attention: Attention,
    /// Norms around it.
    pub attention_norms: Norms,
    /// Feed-forward.
    pub feed_forward: FeedForward,
    /// Norms around it.
    pub feed_forward_norms: Norms,
    /// What both give is multiplied by this before it is added.
    pub residual_scale: f64,
}

/// Norms of a part of a layer, by their modules' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Norms {
    /// Of what the part reads.
    pub before: Option<&'static str>,
    /// Of what it gives.
    pub after: Option<&'static str>,
}

/// Grouped-query attention over a paged cache, with rope.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: u64,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u64,
    /// Elements a head.
    pub head_dim: u64,
    /// q, k and v projections have biases.
    pub qkv_bias: bool,
    /// The output projection has one.
    pub output_bias: bool,
    /// Norms of q and k before rope.
    pub qk_norm: QkNorm,
    /// Rotary embedding.
    pub rope: Rope,
    /// A token sees so many positions, itself the last; `None`: all before it.
    pub window: Option<u64>,
    /// Scores are multiplied by this.
    pub scale: f64,
}

/// Norms of q and k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Of each head, with one weight for all.
    Heads,
    /// Of all heads together.
    Whole,
}

/// down(activation(gate(x)) * up(x)).
#[derive(Debug, Clone, PartialEq)]
pub struct FeedForward {
    /// Width inside.
    pub width: u64,
    /// Of the gate.
    pub activation: Activation,
    /// gate, up and down projections have biases.
    pub bias: bool,
}

/// Activations of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x / (1 + e^-x).
    Silu,
    /// The Gaussian error linear unit's tanh form.
    GeluTanh,
}
