//! Names of tensors: a file's to ours, which are Hugging Face's of the plain decoder.

use super::family::{Format, Spelling};

/// (GGUF, ours) outside the layers, without `.weight` or `.bias`.
const TOP: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// (GGUF, ours) inside `blk.N.`.
const LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Our names of the tensor that a file of `format` calls `name`: several where it holds the rows of several. A name that is not
/// known stays as it is.
pub fn ours(name: &str, spelling: &Spelling, format: Format) -> Vec<String> {
    match format {
        Format::HuggingFace => of_hugging_face(name, spelling),
        Format::Gguf => of_gguf(name, spelling),
    }
    .unwrap_or_else(|| vec![name.to_owned()])
}

fn find<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours)
}

fn of_hugging_face(name: &str, spelling: &Spelling) -> Option<Vec<String>> {
    let (layer, inside) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, suffix) = inside.rsplit_once('.')?;
    let whole = |part: &str| format!("model.layers.{layer}.{part}.{suffix}");
    if let Some(parts) = find(spelling.stacked, part) {
        return Some(parts.iter().map(|p| whole(p)).collect());
    }
    find(spelling.names, part).map(|part| vec![whole(part)])
}

fn of_gguf(name: &str, spelling: &Spelling) -> Option<Vec<String>> {
    let (stem, suffix) = name.rsplit_once('.').filter(|(_, s)| matches!(*s, "weight" | "bias"))?;
    if let Some(ours) = find(&TOP, stem) {
        return Some(vec![format!("{ours}.{suffix}")]);
    }
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let whole = |part: &str| format!("model.layers.{layer}.{part}.{suffix}");
    if let Some(parts) = find(spelling.stacked, part) {
        return Some(parts.iter().map(|p| whole(p)).collect());
    }
    find(spelling.names, part).or_else(|| find(&LAYER, part)).map(|part| vec![whole(part)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::families;

    #[test]
    fn names_follow_the_tables() {
        let plain = Spelling::usual(&[]);
        for (gguf, canonical) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("blk.11.attn_q.weight", "model.layers.11.self_attn.q_proj.weight"),
            ("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias"),
            ("blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
            ("rope_freqs.weight", "rope_freqs.weight"),
            ("blk.x.attn_q.weight", "blk.x.attn_q.weight"),
            ("blk.1.unheard_of.weight", "blk.1.unheard_of.weight"),
        ] {
            assert_eq!(ours(gguf, &plain, Format::Gguf), [canonical]);
        }
    }

    #[test]
    fn families_have_names_of_their_own() {
        let of = |family: &str, name: &str, format| {
            let family = families::ALL.iter().find(|f| f.name == family).unwrap();
            ours(name, family.spelling(format), format)
        };
        let norm = "model.layers.2.pre_feedforward_layernorm.weight";
        assert_eq!(of("gemma3", "blk.2.ffn_norm.weight", Format::Gguf), [norm]);
        let halves = ["model.layers.2.mlp.gate_proj.weight", "model.layers.2.mlp.up_proj.weight"];
        assert_eq!(of("phi3", "blk.2.ffn_up.weight", Format::Gguf), halves);
        assert_eq!(of("phi3", "model.layers.2.mlp.gate_up_proj.weight", Format::HuggingFace), halves);
        let norm = "model.layers.2.input_layernorm.weight";
        assert_eq!(of("phi3", norm, Format::HuggingFace), [norm]);
    }
}
