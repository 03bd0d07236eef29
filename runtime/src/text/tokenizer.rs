//! The tokenizer stored in an artifact, through the `tokenizers` crate.

use super::{TextError, TokenStream};
use tokenizers::decoders::DecoderWrapper;

/// A ready tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// From the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// If they are not one.
    pub fn from_json(json: &[u8]) -> Result<Tokenizer, TextError> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| TextError::Load(e.to_string()))?;
        // Some published files carry the settings of the training run; prompts are never cut or padded here.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| TextError::Load(e.to_string()))?;
        Ok(Tokenizer { inner })
    }

    /// Token ids of `text`. Special tokens written out in it are recognised; `add_special` also adds those that the model wants
    /// around every text (a beginning-of-sequence token, say). Chat templates print their own, so pass false for their output.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(|e| TextError::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of `ids`. Bytes that are not UTF-8 come out as U+FFFD.
    ///
    /// # Errors
    /// If the tokenizer refuses the ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        self.inner.decode(ids, skip_special).map_err(|e| TextError::Decode(e.to_string()))
    }

    /// The id of a token by its stored text.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The stored text of a token (byte-level tokens are spelled in their printable alphabet).
    pub fn token_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// A decoder that is fed one token at a time; its text starts anew.
    pub fn stream(&self, skip_special: bool) -> TokenStream<'_> {
        self.stream_after(&[], skip_special)
    }

    /// A decoder whose text continues that of `before`: tokenizers whose words begin with a space drop that of the first one.
    pub fn stream_after(&self, before: &[u32], skip_special: bool) -> TokenStream<'_> {
        TokenStream::new(self, before, skip_special)
    }

    pub(super) fn decoder(&self) -> Option<&DecoderWrapper> {
        self.inner.get_decoder()
    }

    /// True if tokens such as `<0xE4>` stand for bytes.
    pub(super) fn has_byte_fallback(&self) -> bool {
        match self.decoder() {
            Some(DecoderWrapper::ByteFallback(_)) => true,
            Some(DecoderWrapper::Sequence(list)) => {
                list.get_decoders().iter().any(|d| matches!(d, DecoderWrapper::ByteFallback(_)))
            }
            _ => false,
        }
    }

    /// The token of `id` as it counts in a text; none if it is unknown or a special one that is left out.
    pub(super) fn piece(&self, id: u32, skip_special: bool) -> Option<String> {
        let token = self.inner.id_to_token(id)?;
        let special = self.inner.get_added_vocabulary().is_special_token(&token);
        (!(skip_special && special)).then_some(token)
    }
}
