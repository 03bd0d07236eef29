//! Mistral: the plain decoder, whose layers all see the same window, if any. GGUF files call it llama.

use crate::frontend::{FrontendError, Object};
use crate::models::family::{Family, Format, Spelling};
use crate::models::plain;
use crate::models::rope::Rotated;
use crate::models::spec::Decoder;

pub const FAMILY: Family = Family {
    name: "mistral",
    hf: Spelling::usual(&["mistral"]),
    gguf: Spelling::usual(&[]),
    defaults: r#"{ "sliding_window": 4096, "max_position_embeddings": 131072, "num_key_value_heads": 8 }"#,
    decoder,
};

fn decoder(c: &Object, _: Format) -> Result<Decoder, FrontendError> {
    plain::decoder(c, Rotated::Whole)?.with_window(c)
}
