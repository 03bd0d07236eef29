//! The text side of a model, as the artifact stores it.

/// Tokenizer and chat template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerData {
    /// The tokenizer in Hugging Face's `tokenizer.json` form. That of a GGUF file is built from its metadata.
    pub json: Vec<u8>,
    /// The Jinja chat template, if the model has one.
    pub chat_template: Option<String>,
    /// Text of the beginning-of-sequence token, which templates print.
    pub bos_token: Option<String>,
    /// Text of the end-of-sequence token.
    pub eos_token: Option<String>,
}
