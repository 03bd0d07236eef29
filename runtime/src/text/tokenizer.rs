//! The tokenizer stored in an artifact, through the `tokenizers` crate.

use super::TextError;

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

    /// A decoder that is fed one token at a time.
    pub fn stream(&self, skip_special: bool) -> TokenStream<'_> {
        TokenStream { tokenizer: self, skip_special, window: Vec::new(), shown: 0 }
    }
}

/// Tokens a character may stretch over before what there is of it is shown as U+FFFD: a UTF-8 character has at most four bytes.
const MAX_HELD: usize = 4;

/// Decodes token by token, holding text back until it is whole characters. What all calls return, joined, is the text of all
/// tokens.
#[derive(Debug)]
pub struct TokenStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Tokens whose text was shown (`shown` of them, kept because decoders treat a first token differently), then held ones.
    window: Vec<u32>,
    shown: usize,
}

impl TokenStream<'_> {
    /// Takes the next token; gives the text that became certain, perhaps none.
    ///
    /// # Errors
    /// If the tokenizer refuses the ids.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        self.window.push(id);
        let text = self.fresh()?;
        let whole = !text.is_empty() && !text.ends_with('\u{fffd}');
        if whole || self.window.len() - self.shown > MAX_HELD {
            self.window.drain(..self.shown);
            self.shown = self.window.len();
            return Ok(text);
        }
        Ok(String::new())
    }

    /// Gives what is still held back.
    ///
    /// # Errors
    /// If the tokenizer refuses the ids.
    pub fn finish(mut self) -> Result<String, TextError> {
        let text = self.fresh()?;
        self.window.clear();
        Ok(text)
    }

    /// Text of the held tokens: that of the window less that of its shown part.
    fn fresh(&self) -> Result<String, TextError> {
        let decode = |ids| self.tokenizer.decode(ids, self.skip_special);
        let all = decode(&self.window)?;
        let before = decode(self.window.get(..self.shown).unwrap_or_default())?;
        // Held bytes can complete the character that a forced U+FFFD ended with; then the longest common part counts.
        let common = all.char_indices().zip(before.chars()).find(|((_, a), b)| a != b);
        let at = common.map_or(before.len().min(all.len()), |((at, _), _)| at);
        Ok(all.get(at..).unwrap_or_default().to_owned())
    }
}
