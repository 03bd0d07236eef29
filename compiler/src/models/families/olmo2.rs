//! OLMo 2: norms after attention and feed-forward instead of before, and over all heads of q and of k.

use crate::frontend::{FrontendError, Object};
use crate::models::family::{Family, Format, Spelling};
use crate::models::plain;
use crate::models::rope::Rotated;
use crate::models::spec::{Decoder, Norms, QkNorm};

pub const FAMILY: Family = Family {
    name: "olmo2",
    hf: Spelling::usual(&["olmo2"]),
    gguf: Spelling {
        names: &[("post_attention_norm", "post_attention_layernorm"), ("post_ffw_norm", "post_feedforward_layernorm")],
        ..Spelling::usual(&["olmo2"])
    },
    defaults: r#"{ "rms_norm_eps": 1e-5 }"#,
    decoder,
};

fn decoder(c: &Object, format: Format) -> Result<Decoder, FrontendError> {
    let decoder = plain::window_of_gguf(plain::decoder(c, Rotated::Whole)?, c, format)?;
    Ok(decoder.each(|layer| {
        layer.attention.qk_norm = QkNorm::Whole;
        layer.attention_norms = Norms { before: None, after: Some("post_attention_layernorm") };
        layer.feed_forward_norms = Norms { before: None, after: Some("post_feedforward_layernorm") };
    }))
}
