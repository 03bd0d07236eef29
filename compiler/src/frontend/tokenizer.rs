//! The text side of a model, as the artifact stores it.

use std::collections::BTreeMap;

/// Tokenizer and chat template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerData {
    /// The tokenizer in Hugging Face's `tokenizer.json` form, with every token that the model's other files add. That of a GGUF file
    /// is built from its metadata.
    pub json: Vec<u8>,
    /// The Jinja chat template, if the model has one.
    pub chat_template: Option<String>,
    /// Texts of the special tokens that templates print by name (`bos_token`, `eos_token`, ...), those that there are.
    pub special_tokens: BTreeMap<String, String>,
}
