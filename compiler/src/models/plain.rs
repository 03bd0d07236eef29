//! The plain decoder that families start from: pre-norm attention with grouped heads and rope, then a gated feed-forward.

use super::family::Format;
use super::rope::{self, Rotated};
use super::spec::{Activation, Attention, Decoder, FeedForward, Layer, Norms, QkNorm, RmsNorm, Scale};
use crate::frontend::{FrontendError, Object, shown};

/// Most layers of a model.
const MAX_LAYERS: u64 = 4096;

/// The plain decoder with the sizes, biases, activation and rope of a config.
///
/// # Errors
/// Names the key that is missing, of another type, or unsupported.
pub fn decoder(c: &Object, rotated: Rotated) -> Result<Decoder, FrontendError> {
    let (hidden, heads) = (c.needed("hidden_size")?, c.needed("num_attention_heads")?);
    let head_dim = match c.unsigned("head_dim")? {
        Some(n) => n,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    let layers = c.needed("num_hidden_layers")?;
    if !(1..=MAX_LAYERS).contains(&layers) {
        return Err(c.invalid("num_hidden_layers", format!("{layers}; 1 to {MAX_LAYERS} is accepted")));
    }
    let bias = c.flag("attention_bias")?.unwrap_or(false);
    let layer = Layer {
        attention: Attention {
            heads,
            kv_heads: c.unsigned("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            qkv_bias: bias,
            output_bias: c.flag(OUTPUT_BIAS)?.unwrap_or(bias),
            qk_norm: QkNorm::None,
            rope: rope::read(c, head_dim, rotated)?,
            window: None,
            scale: (head_dim as f64).sqrt().recip(),
        },
        attention_norms: Norms { before: Some("input_layernorm"), after: None },
        feed_forward: FeedForward {
            width: c.needed("intermediate_size")?,
            activation: activation(c)?,
            bias: c.flag("mlp_bias")?.unwrap_or(false),
        },
        feed_forward_norms: Norms { before: Some("post_attention_layernorm"), after: None },
        residual_scale: 1.0,
    };
    Ok(Decoder {
        hidden,
        vocab: c.needed("vocab_size")?,
        embedding_scale: Scale { factor: 1.0, rounded: false },
        layers: vec![layer; layers as usize],
        norm: RmsNorm { eps: c.needed_real("rms_norm_eps", "every norm")?, offset: 0.0 },
        tied_embeddings: c.flag("tie_word_embeddings")?.unwrap_or(false),
        logit_divisor: 1.0,
    })
}

/// Key by which a GGUF file, whose tensors alone tell of biases, tells that of the output projection.
pub const OUTPUT_BIAS: &str = "attention_output_bias";

fn activation(c: &Object) -> Result<Activation, FrontendError> {
    let key = if c.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    match c.text(key)? {
        None | Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
        Some(other) => Err(c.unsupported(
            key,
            format!("activation `{}`; silu, gelu_pytorch_tanh and gelu_new are accepted", shown(other)),
        )),
    }
}

impl Decoder {
    /// Applies `change` to every layer.
    pub fn each(mut self, change: impl FnMut(&mut Layer)) -> Decoder {
        self.layers.iter_mut().for_each(change);
        self
    }

    /// Lets every layer see a window of `sliding_window` positions, if the config has one.
    ///
    /// # Errors
    /// If the key is of another type, or `layer_types` makes layers differ.
    pub fn with_window(self, c: &Object) -> Result<Decoder, FrontendError> {
        let window = c.unsigned("sliding_window")?;
        let wanted = if window.is_some() { "sliding_attention" } else { "full_attention" };
        only_layers_of(c, wanted)?;
        Ok(self.each(|layer| layer.attention.window = window))
    }

    /// Lets the layers that `layer_types` calls sliding see a window of `sliding_window` positions; without the list, those for which
    /// `slides` holds.
    ///
    /// # Errors
    /// Names the key that is missing or not as expected.
    pub fn with_windows(mut self, c: &Object, slides: impl Fn(usize) -> bool) -> Result<Decoder, FrontendError> {
        let window = c.unsigned("sliding_window")?;
        let kinds = layer_types(c, self.layers.len())?;
        for (i, layer) in self.layers.iter_mut().enumerate() {
            if kinds.as_ref().map_or(slides(i), |kinds| kinds[i]) {
                let missing = || c.invalid("sliding_window", "missing; layers that slide need it");
                layer.attention.window = Some(window.ok_or_else(missing)?);
            }
        }
        Ok(self)
    }
}

/// Which layers slide, by `layer_types`.
fn layer_types(c: &Object, layers: usize) -> Result<Option<Vec<bool>>, FrontendError> {
    const KEY: &str = "layer_types";
    let Some(found) = c.get(KEY) else { return Ok(None) };
    let read = |kind: &serde_json::Value| match kind.as_str() {
        Some("sliding_attention") => Some(true),
        Some("full_attention") => Some(false),
        _ => None,
    };
    let kinds: Option<Vec<bool>> = found.as_array().and_then(|list| list.iter().map(read).collect());
    let kinds = kinds.filter(|kinds| kinds.len() == layers).ok_or_else(|| {
        let found = shown(&found.to_string());
        let message = format!("{found}; {layers} of \"full_attention\" and \"sliding_attention\" are accepted");
        c.unsupported(KEY, message)
    })?;
    Ok(Some(kinds))
}

/// Refuses layers of other kinds than `wanted`, where the config lists any.
fn only_layers_of(c: &Object, wanted: &str) -> Result<(), FrontendError> {
    let Some(kinds) = c.get("layer_types") else { return Ok(()) };
    let alike = |kind: &serde_json::Value| kind.as_str() == Some(wanted);
    if kinds.as_array().is_some_and(|kinds| kinds.iter().all(alike)) {
        return Ok(());
    }
    let message = format!("{}; a list of \"{wanted}\" is accepted", shown(&kinds.to_string()));
    Err(c.unsupported("layer_types", message))
}

/// Refuses windows of a family whose files in `format` have none. GGUF files of any family may state one.
pub fn window_of_gguf(decoder: Decoder, c: &Object, format: Format) -> Result<Decoder, FrontendError> {
    match format {
        Format::Gguf => decoder.with_window(c),
        Format::HuggingFace => {
            c.refuse("use_sliding_window")?;
            only_layers_of(c, "full_attention")?;
            Ok(decoder)
        }
    }
}
