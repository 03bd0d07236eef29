//! Text to tokens and back, as the commands need it. The `tokenizer` feature implements it; without, commands take ids.

use crate::artifact::Artifact;
use crate::error::Result;

/// A model's tokenizer with its chat template.
pub trait TextCodec {
    /// The ids of a prompt: through the chat template as one user turn, or as it is if `raw`.
    ///
    /// # Errors
    /// If the template or the tokenizer refuses.
    fn encode_prompt(&self, prompt: &str, raw: bool) -> Result<EncodedPrompt>;

    /// A decoder that is fed generated ids one at a time. Its text continues that of the ids `before`, and starts anew without them.
    fn decoder(&self, before: &[u32]) -> Box<dyn TextDecoder + '_>;
}

/// A prompt in ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPrompt {
    /// The ids.
    pub ids: Vec<u32>,
    /// What follows is an answer, a text of its own; otherwise it continues the prompt.
    pub is_turn: bool,
}

/// Text from ids as they come.
pub trait TextDecoder {
    /// Takes the next id and returns the text that is certain now; empty while a character is incomplete.
    ///
    /// # Errors
    /// If the id cannot be decoded.
    fn push(&mut self, id: u32) -> Result<String>;

    /// What is left at the end.
    ///
    /// # Errors
    /// If the last ids cannot be decoded.
    fn finish(self: Box<Self>) -> Result<String>;
}

/// Opens the tokenizer of an artifact; [`open`] is one.
pub type OpenCodec<'a> = &'a dyn Fn(&Artifact) -> Result<Option<Box<dyn TextCodec>>>;

/// The tokenizer of `artifact`; `None` if it carries none.
///
/// # Errors
/// If the tokenizer section or the chat template cannot be read.
#[cfg(feature = "tokenizer")]
pub fn open(artifact: &Artifact) -> Result<Option<Box<dyn TextCodec>>> {
    with_tokenizer::open(artifact)
}

/// This build has no tokenizer.
///
/// # Errors
/// None.
#[cfg(not(feature = "tokenizer"))]
pub fn open(_artifact: &Artifact) -> Result<Option<Box<dyn TextCodec>>> {
    Ok(None)
}

#[cfg(feature = "tokenizer")]
mod with_tokenizer {
    use super::{EncodedPrompt, TextCodec, TextDecoder};
    use crate::artifact::{Artifact, TOKENIZER_SECTION};
    use crate::error::{Error, Result};
    use crate::text::{ChatTemplate, Message, TextError, TokenStream, Tokenizer};

    struct Codec {
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
    }

    fn invalid(e: TextError) -> Error {
        Error::InvalidInput(e.to_string())
    }

    pub fn open(artifact: &Artifact) -> Result<Option<Box<dyn TextCodec>>> {
        let Some(section) = artifact.section(TOKENIZER_SECTION) else { return Ok(None) };
        let corrupt = |e: TextError| Error::corrupt(artifact.path(), "tokenizer", e.to_string());
        let tokenizer = Tokenizer::from_json(section).map_err(corrupt)?;
        let manifest = artifact.manifest();
        let template = match &manifest.chat_template {
            Some(source) => Some(ChatTemplate::new(source, manifest.special_tokens.clone()).map_err(corrupt)?),
            None => None,
        };
        Ok(Some(Box::new(Codec { tokenizer, template })))
    }

    impl TextCodec for Codec {
        fn encode_prompt(&self, prompt: &str, raw: bool) -> Result<EncodedPrompt> {
            match &self.template {
                Some(template) if !raw => {
                    let text = template.render(&[Message::new("user", prompt)], true).map_err(invalid)?;
                    // The template writes the special tokens itself.
                    let ids = self.tokenizer.encode(&text, false).map_err(invalid)?;
                    Ok(EncodedPrompt { ids, is_turn: true })
                }
                _ => Ok(EncodedPrompt { ids: self.tokenizer.encode(prompt, true).map_err(invalid)?, is_turn: false }),
            }
        }

        fn decoder(&self, before: &[u32]) -> Box<dyn TextDecoder + '_> {
            Box::new(Decoder { stream: self.tokenizer.stream_after(before, true) })
        }
    }

    struct Decoder<'a> {
        stream: TokenStream<'a>,
    }

    impl TextDecoder for Decoder<'_> {
        fn push(&mut self, id: u32) -> Result<String> {
            self.stream.push(id).map_err(invalid)
        }

        fn finish(self: Box<Self>) -> Result<String> {
            self.stream.finish().map_err(invalid)
        }
    }
}
