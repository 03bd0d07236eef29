//! Gemma 3 (text): norms around attention and feed-forward whose stored weights lack 1, norms of q and k, scaled embeddings, and
//! windows in most layers, which have a rope of their own.

use crate::frontend::{FrontendError, Object};
use crate::models::family::{Family, Format, Spelling};
use crate::models::plain;
use crate::models::rope::{self, Rotated};
use crate::models::spec::{Activation, Decoder, Norms, QkNorm, RmsNorm, Scale};

pub const FAMILY: Family = Family {
    name: "gemma3",
    hf: Spelling::usual(&["gemma3_text"]),
    gguf: Spelling {
        names: &[
            ("post_attention_norm", "post_attention_layernorm"),
            ("ffn_norm", "pre_feedforward_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
        ],
        ..Spelling::usual(&["gemma3"])
    },
    defaults: r#"{ "head_dim": 256, "max_position_embeddings": 131072, "sliding_window": 4096, "rope_theta": 1e6,
        "query_pre_attn_scalar": 256, "tie_word_embeddings": true, "hidden_activation": "gelu_pytorch_tanh" }"#,
    decoder,
};

fn decoder(c: &Object, format: Format) -> Result<Decoder, FrontendError> {
    for key in ["final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"] {
        c.refuse(key)?;
    }
    let every = c.unsigned("sliding_window_pattern")?.unwrap_or(6).max(1) as usize;
    let plain = plain::decoder(c, Rotated::Whole)?.with_windows(c, |i| !(i + 1).is_multiple_of(every))?;
    let head_dim = plain.layers[0].attention.head_dim;
    let scale = match (c.real("query_pre_attn_scalar")?, c.real("attention_multiplier")?) {
        (Some(size), _) => size.sqrt().recip(),
        (None, Some(scale)) => scale,
        // GGUF files do not say it; the largest model alone has another.
        (None, None) if plain.layers.len() == 62 => {
            (plain.hidden as f64 / plain.layers[0].attention.heads as f64).sqrt().recip()
        }
        (None, None) => (head_dim as f64).sqrt().recip(),
    };
    let [sliding, full] = rope::read_of_kinds(c, head_dim, 10000.0)?;
    let offset = if format == Format::HuggingFace { 1.0 } else { 0.0 };
    let decoder = Decoder {
        embedding_scale: Scale { factor: (plain.hidden as f64).sqrt(), rounded: true },
        norm: RmsNorm { offset, ..plain.norm },
        ..plain
    };
    Ok(decoder.each(|layer| {
        layer.attention.rope = if layer.attention.window.is_some() { sliding.clone() } else { full.clone() };
        layer.attention.scale = scale;
        layer.attention.qk_norm = QkNorm::Heads;
        if format == Format::Gguf {
            layer.feed_forward.activation = Activation::GeluTanh;
        }
        layer.attention_norms.after = Some("post_attention_layernorm");
        layer.feed_forward_norms =
            Norms { before: Some("pre_feedforward_layernorm"), after: Some("post_feedforward_layernorm") };
    }))
}
