//! Tensor names: GGUF's to the canonical ones, which are Hugging Face's.

/// (GGUF, canonical) outside the layers, without `.weight` or `.bias`.
const TOP: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// (GGUF, canonical) inside `blk.N.`.
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

/// The canonical name of a GGUF tensor; a name without one stays as it is.
pub(crate) fn canonical_name(name: &str) -> String {
    rename(name).unwrap_or_else(|| name.to_owned())
}

fn rename(name: &str) -> Option<String> {
    let (stem, suffix) = name.rsplit_once('.').filter(|(_, s)| matches!(*s, "weight" | "bias"))?;
    let find =
        |table: &[(&str, &'static str)], stem: &str| table.iter().find(|(gguf, _)| *gguf == stem).map(|(_, c)| *c);
    if let Some(canonical) = find(&TOP, stem) {
        return Some(format!("{canonical}.{suffix}"));
    }
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    Some(format!("model.layers.{layer}.{}.{suffix}", find(&LAYER, part)?))
}

#[cfg(test)]
mod tests {
    use super::canonical_name;

    #[test]
    fn names_follow_the_tables() {
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
            assert_eq!(canonical_name(gguf), canonical);
        }
    }
}
