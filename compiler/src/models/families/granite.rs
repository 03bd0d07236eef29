//! Granite 3: the plain decoder with four multipliers: of embeddings, scores, what each part adds, and logits.

use crate::frontend::{FrontendError, Object};
use crate::models::family::{Family, Format, Spelling};
use crate::models::plain;
use crate::models::rope::Rotated;
use crate::models::spec::{Decoder, Scale};

pub const FAMILY: Family = Family {
    name: "granite",
    hf: Spelling::usual(&["granite"]),
    gguf: Spelling { interleaved: true, ..Spelling::usual(&["granite"]) },
    defaults: "{}",
    decoder,
};

fn decoder(c: &Object, format: Format) -> Result<Decoder, FrontendError> {
    let of = |key: &str| Ok::<f64, FrontendError>(c.real(key)?.unwrap_or(1.0));
    let decoder = plain::window_of_gguf(plain::decoder(c, Rotated::Whole)?, c, format)?;
    let decoder = Decoder {
        embedding_scale: Scale { factor: of("embedding_multiplier")?, rounded: false },
        logit_divisor: of("logits_scaling")?,
        ..decoder
    };
    let (scores, residual) = (of("attention_multiplier")?, of("residual_multiplier")?);
    Ok(decoder.each(|layer| {
        layer.attention.scale = scores;
        layer.residual_scale = residual;
    }))
}
