//! Qwen2 and Qwen2.5: biases on the q, k and v projections; some layers may see a window.

use crate::frontend::{FrontendError, Object};
use crate::models::family::{Family, Format, Spelling};
use crate::models::plain;
use crate::models::rope::Rotated;
use crate::models::spec::Decoder;

pub const FAMILY: Family = Family {
    name: "qwen2",
    hf: Spelling::usual(&["qwen2"]),
    gguf: Spelling::usual(&["qwen2"]),
    defaults: r#"{ "max_position_embeddings": 32768, "sliding_window": 4096 }"#,
    decoder,
};

fn decoder(c: &Object, format: Format) -> Result<Decoder, FrontendError> {
    let decoder = windows(plain::decoder(c, Rotated::Whole)?, c, format)?;
    Ok(decoder.each(|layer| {
        layer.attention.qkv_bias = true;
        layer.attention.output_bias = false;
    }))
}

/// The layers from `max_window_layers` on see a window, where `use_sliding_window` holds and no list says otherwise.
pub fn windows(decoder: Decoder, c: &Object, format: Format) -> Result<Decoder, FrontendError> {
    if !c.flag("use_sliding_window")?.unwrap_or(false) {
        return plain::window_of_gguf(decoder, c, format);
    }
    let first = c.unsigned("max_window_layers")?.unwrap_or(28);
    decoder.with_windows(c, |i| i as u64 >= first)
}
