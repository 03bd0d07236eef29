//! Phi-3, Phi-3.5 and Phi-4: q, k and v in one tensor, gate and up in another; part of a head may be rotated, by two sets of
//! frequencies; all layers may see a window.

use crate::frontend::{FrontendError, Object};
use crate::models::family::{Family, Format, Spelling};
use crate::models::plain;
use crate::models::rope::Rotated;
use crate::models::spec::Decoder;

pub const FAMILY: Family = Family {
    name: "phi3",
    hf: Spelling {
        stacked: &[
            ("self_attn.qkv_proj", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            ("mlp.gate_up_proj", &["mlp.gate_proj", "mlp.up_proj"]),
        ],
        ..Spelling::usual(&["phi3"])
    },
    gguf: Spelling {
        stacked: &[
            ("attn_qkv", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            ("ffn_up", &["mlp.gate_proj", "mlp.up_proj"]),
        ],
        ..Spelling::usual(&["phi3"])
    },
    defaults: r#"{ "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096 }"#,
    decoder,
};

fn decoder(c: &Object, _: Format) -> Result<Decoder, FrontendError> {
    plain::decoder(c, Rotated::Part)?.with_window(c)
}
