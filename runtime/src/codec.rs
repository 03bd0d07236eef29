//! Text to tokens and back, as the commands need it. The `tokenizer` feature implements it; without, commands take ids.

use crate::artifact::Artifact;
use crate::error::Result;

/// A model's tokenizer with its chat template.
pub trait TextCodec {
    /// The ids of a prompt: through the chat template as one user turn, or as it is if `raw`.
    ///
    /// # Errors
    /// If the template or the tokenizer refuses.
    fn encode_prompt(&self, prompt: &str, raw: bool) -> Result<Vec<u32>>;

    /// A decoder that is fed generated ids one at a time.
    fn decoder(&self) -> Box<dyn TextDecoder + '_>;
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
    use super::{TextCodec, TextDecoder};
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
        let token = |id: Option<u32>| id.and_then(|id| tokenizer.token_of(id));
        let bos = token(manifest.model.bos_id);
        let eos = token(manifest.model.eos_ids.first().copied());
        let template = match &manifest.chat_template {
            Some(source) => Some(ChatTemplate::new(source, bos.as_deref(), eos.as_deref()).map_err(corrupt)?),
            None => None,
        };
        Ok(Some(Box::new(Codec { tokenizer, template })))
    }

    impl TextCodec for Codec {
        fn encode_prompt(&self, prompt: &str, raw: bool) -> Result<Vec<u32>> {
            match &self.template {
                Some(template) if !raw => {
                    let text = template.render(&[Message::new("user", prompt)], true).map_err(invalid)?;
                    // The template writes the special tokens itself.
                    self.tokenizer.encode(&text, false).map_err(invalid)
                }
                _ => self.tokenizer.encode(prompt, true).map_err(invalid),
            }
        }

        fn decoder(&self) -> Box<dyn TextDecoder + '_> {
            Box::new(Decoder { stream: self.tokenizer.stream(true) })
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
