//! Llama 1 to 3 and models of that shape: the plain decoder, with biases where the config asks for them.

use crate::frontend::{FrontendError, Object};
use crate::models::family::{Family, Format, Spelling};
use crate::models::plain;
use crate::models::rope::Rotated;
use crate::models::spec::Decoder;

pub const FAMILY: Family = Family {
    name: "llama",
    hf: Spelling::usual(&["llama"]),
    // Mistral is a llama there.
    gguf: Spelling { interleaved: true, ..Spelling::usual(&["llama"]) },
    defaults: "{}",
    decoder,
};

fn decoder(c: &Object, format: Format) -> Result<Decoder, FrontendError> {
    plain::window_of_gguf(plain::decoder(c, Rotated::Whole)?, c, format)
}
