//! Qwen3: each head of q and k is RMS-normed before rope.

use super::qwen2;
use crate::frontend::{FrontendError, Object};
use crate::models::family::{Family, Format, Spelling};
use crate::models::plain;
use crate::models::rope::Rotated;
use crate::models::spec::{Decoder, QkNorm};

pub const FAMILY: Family = Family {
    name: "qwen3",
    hf: Spelling::usual(&["qwen3"]),
    gguf: Spelling::usual(&["qwen3"]),
    defaults: r#"{ "head_dim": 128, "max_position_embeddings": 32768, "sliding_window": 4096 }"#,
    decoder,
};

fn decoder(c: &Object, format: Format) -> Result<Decoder, FrontendError> {
    let decoder = qwen2::windows(plain::decoder(c, Rotated::Whole)?, c, format)?;
    Ok(decoder.each(|layer| layer.attention.qk_norm = QkNorm::Heads))
}
