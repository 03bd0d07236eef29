//! Text in and out (feature `tokenizer`): tokenizer, streaming decoder, chat template.

mod chat;
mod guard;
mod rewrite;
mod stream;
mod tokenizer;

pub use chat::{ChatTemplate, Message, SpecialTokens};
pub use stream::TokenStream;
pub use tokenizer::Tokenizer;

use thiserror::Error;

/// What can go wrong between text and tokens.
#[derive(Debug, Error)]
pub enum TextError {
    /// The stored tokenizer is not one the `tokenizers` crate reads.
    #[error("the tokenizer cannot be loaded: {0}")]
    Load(String),
    /// A text could not be encoded.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
    /// Tokens could not be decoded.
    #[error("the tokens cannot be decoded: {0}")]
    Decode(String),
    /// The chat template does not parse, or refused the messages.
    #[error("the chat template failed: {0}")]
    Template(String),
}
