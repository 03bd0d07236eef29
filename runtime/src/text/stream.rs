//! Text of tokens as they come. A token is bytes of text, not characters: it may end inside one that the next token finishes. Exactly
//! such an unfinished tail is held back.

use super::{TextError, Tokenizer};
use std::collections::HashMap;
use std::sync::LazyLock;
use tokenizers::decoders::DecoderWrapper;

/// Tokens before the next one that its decoding looks at: decoders treat a text's first token differently.
const CONTEXT: usize = 4;

/// Bytes by the characters that stand for them in byte-level vocabularies: printable ones for themselves, the others from U+0100 on.
static BYTE_OF: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255).filter(|b| !printable(*b)).zip('\u{100}'..);
    (0..=255).filter(|b| printable(*b)).map(|b| (char::from(b), b)).chain(others.map(|(b, c)| (c, b))).collect()
});

/// How tokens spell bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// Every character is a byte.
    Level,
    /// Tokens such as `<0xE4>` are bytes; others are text, of which the tokenizer's decoder knows.
    Fallback,
}

impl Spelling {
    fn of(decoder: Option<&DecoderWrapper>) -> Spelling {
        match decoder {
            Some(DecoderWrapper::ByteLevel(_)) => Spelling::Level,
            Some(DecoderWrapper::Sequence(list))
                if list.get_decoders().iter().any(|d| matches!(d, DecoderWrapper::ByteLevel(_))) =>
            {
                Spelling::Level
            }
            _ => Spelling::Fallback,
        }
    }
}

/// The byte that a token such as `<0xE4>` is.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.is_ascii()).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Decodes token by token. What all calls return, joined, is the text of all tokens.
#[derive(Debug)]
pub struct TokenStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    spelling: Spelling,
    /// Tokens last taken, those of the text before included.
    context: Vec<u32>,
    /// The beginning of a character: at most three bytes.
    pending: Vec<u8>,
}

impl<'a> TokenStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, before: &[u32], skip_special: bool) -> TokenStream<'a> {
        let spelling = Spelling::of(tokenizer.decoder());
        let mut context: Vec<u32> = before
            .iter()
            .rev()
            .filter(|id| tokenizer.piece(**id, skip_special).is_some())
            .take(CONTEXT)
            .copied()
            .collect();
        context.reverse();
        TokenStream { tokenizer, skip_special, spelling, context, pending: Vec::new() }
    }

    /// Takes the next token; gives the text that became certain, perhaps none.
    ///
    /// # Errors
    /// If the tokenizer refuses the ids.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        let Some(token) = self.tokenizer.piece(id, self.skip_special) else { return Ok(String::new()) };
        if self.spelling == Spelling::Level {
            let bytes: Option<Vec<u8>> = token.chars().map(|c| BYTE_OF.get(&c).copied()).collect();
            // A token with other characters, an added one, is its own text.
            self.pending.extend(bytes.unwrap_or_else(|| token.into_bytes()));
            return Ok(self.certain());
        }
        let text = match fallback_byte(&token).filter(|_| self.tokenizer.has_byte_fallback()) {
            Some(byte) => {
                self.pending.push(byte);
                self.certain()
            }
            None => self.rest() + &self.fresh(id)?,
        };
        self.context.push(id);
        if self.context.len() > CONTEXT {
            self.context.remove(0);
        }
        Ok(text)
    }

    /// Gives what is still held back: the beginning of a character, which nothing finished.
    ///
    /// # Errors
    /// None so far.
    pub fn finish(mut self) -> Result<String, TextError> {
        Ok(self.rest())
    }

    /// Takes everything but an unfinished tail from the pending bytes. What is no UTF-8 becomes U+FFFD.
    fn certain(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                }
                Err(e) => {
                    let (valid, bad) = rest.split_at(e.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    match e.error_len() {
                        Some(len) => {
                            text += &self.replacement(len);
                            rest = &bad[len..];
                            continue;
                        }
                        // The end came inside a character.
                        None => rest = bad,
                    }
                }
            }
            self.pending = rest.to_vec();
            return text;
        }
    }

    /// Takes all pending bytes: they are no character, and none will come of them.
    fn rest(&mut self) -> String {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() { String::new() } else { self.replacement(pending.len()) }
    }

    /// What stands for `bytes` bytes at the start of which no character is: as each kind of tokenizer's own decoder has it.
    fn replacement(&self, bytes: usize) -> String {
        let count = if self.spelling == Spelling::Level { 1 } else { bytes };
        String::from(char::REPLACEMENT_CHARACTER).repeat(count)
    }

    /// What `id` adds to the text of the tokens before it.
    fn fresh(&self, id: u32) -> Result<String, TextError> {
        let mut ids = self.context.clone();
        let before = self.tokenizer.decode(&ids, self.skip_special)?;
        ids.push(id);
        let all = self.tokenizer.decode(&ids, self.skip_special)?;
        let common = all.char_indices().zip(before.chars()).find(|((_, a), b)| a != b);
        let at = common.map_or(before.len().min(all.len()), |((at, _), _)| at);
        Ok(all.get(at..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A tokenizer of these tokens in the order of ids; those in `special` are special.
    fn tokenizer(tokens: &[String], special: &[u32], decoder: Value) -> Tokenizer {
        let vocab: serde_json::Map<String, Value> = tokens.iter().cloned().zip((0..).map(Value::from)).collect();
        let added: Vec<Value> = special
            .iter()
            .map(|id| {
                json!({ "id": id, "content": tokens[*id as usize], "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": false, "special": true })
            })
            .collect();
        let tree = json!({ "version": "1.0", "added_tokens": added, "decoder": decoder,
                           "model": { "type": "BPE", "vocab": vocab, "merges": [] } });
        Tokenizer::from_json(tree.to_string().as_bytes()).unwrap()
    }

    fn spelled(bytes: &[u8]) -> String {
        let char_of: HashMap<u8, char> = BYTE_OF.iter().map(|(c, b)| (*b, *c)).collect();
        bytes.iter().map(|b| char_of[b]).collect()
    }

    fn byte_level() -> Value {
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false })
    }

    fn sentence_piece() -> Value {
        json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }, { "type": "ByteFallback" },
            { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 } ] })
    }

    /// The characters of `bytes` up to the one that they end in.
    fn whole(bytes: &[u8]) -> &str {
        match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => std::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap(),
        }
    }

    #[test]
    fn exactly_the_unfinished_tail_is_held_back() {
        let text =
            "a\u{4f60}\u{597d}\u{4e16}\u{754c}\u{1f600}\u{1f389}\u{e9}\u{43c}\u{3053}\u{1f1eb}\u{1f1f7}!".as_bytes();
        for first in 1..5 {
            for size in 1..9 {
                let mut ends: Vec<usize> = (first..text.len()).step_by(size).collect();
                ends.push(text.len());
                let starts = [0].into_iter().chain(ends.iter().copied());
                let parts: Vec<&[u8]> = starts.zip(&ends).map(|(a, b)| &text[a..*b]).collect();
                let mut tokens: Vec<String> = parts.iter().map(|part| spelled(part)).collect();
                tokens.sort();
                tokens.dedup();
                let tokenizer = tokenizer(&tokens, &[], byte_level());
                let mut stream = tokenizer.stream(true);
                let mut shown = String::new();
                for (part, end) in parts.iter().zip(&ends) {
                    shown += &stream.push(tokenizer.id_of(&spelled(part)).unwrap()).unwrap();
                    assert_eq!(shown, whole(&text[..*end]), "first {first}, then {size} bytes a token");
                }
                assert_eq!(stream.finish().unwrap(), "");
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_at_once() {
        let parts: [&[u8]; 7] = [b"\xff", b"\xf0\x9f", b"\x98x", b"\x80\x80", b"ok\xe4\xbd", b"<s>", b"\xa0"];
        let tokens: Vec<String> = parts.iter().map(|part| spelled(part)).collect();
        let tokenizer = tokenizer(&tokens, &[5], byte_level());
        let mut stream = tokenizer.stream(true);
        let shown: Vec<String> = (0..7).map(|id| stream.push(id).unwrap()).collect();
        // The special token does not part the character around it; an unknown id neither.
        assert_eq!(shown, ["\u{fffd}", "", "\u{fffd}x", "\u{fffd}\u{fffd}", "ok", "", "\u{4f60}"]);
        assert_eq!(stream.push(99).unwrap(), "");
        assert_eq!(stream.push(1).unwrap() + &stream.finish().unwrap(), "\u{fffd}");
        let all: Vec<u32> = (0..7).collect();
        assert_eq!(tokenizer.decode(&all, true).unwrap(), shown.concat());
    }

    #[test]
    fn sentence_piece_keeps_the_space_of_what_continues() {
        let mut tokens: Vec<String> = (0..=255).map(|b| format!("<0x{b:02X}>")).collect();
        tokens.extend(["<s>", "\u{2581}Hello", "\u{2581}world", "\u{2581}\u{2581}\u{2581}x", "!"].map(str::to_owned));
        let tokenizer = tokenizer(&tokens, &[256], sentence_piece());
        let show = |before: &[u32], ids: &[u32]| {
            let mut stream = tokenizer.stream_after(before, true);
            let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
            (pieces, stream.finish().unwrap())
        };
        let pieces = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(show(&[256, 257], &[258, 260, 257]).0, pieces(&[" world", "!", " Hello"]));
        assert_eq!(show(&[256, 257, 256], &[258]).0, pieces(&[" world"]));
        assert_eq!(show(&[257], &[259, 258]).0, pieces(&["   x", " world"]));
        // After nothing, or only a token that is no text, a text starts.
        assert_eq!(show(&[], &[258, 258]).0, pieces(&["world", " world"]));
        assert_eq!(show(&[256], &[258]).0, pieces(&["world"]));
        // Bytes: two characters in one run, one that is broken off by text, and one by the end.
        let (shown, rest) = show(&[257], &[0xe4, 0xbd, 0xa0, 0xc3, 0xa9, 0xf0, 0x9f, 258, 0xff, 0xe4]);
        assert_eq!(
            shown,
            pieces(&["", "", "\u{4f60}", "", "\u{e9}", "", "", "\u{fffd}\u{fffd} world", "\u{fffd}", ""])
        );
        assert_eq!(rest, "\u{fffd}");
    }
}
