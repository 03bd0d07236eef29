//! Characters to tokens, each with its place.

use super::is_word_char;
use crate::error::IrError;
use std::fmt;

/// 1-based line and column (in characters).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    line: usize,
    column: usize,
}

impl Place {
    pub(super) fn error(self, message: impl Into<String>) -> IrError {
        IrError::Parse { line: self.line, column: self.column, message: message.into() }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'a> {
    /// A letter or `_`, then letters, digits, `_`.
    Word(&'a str),
    /// `-1.5e-6`: not yet converted.
    Number(&'a str),
    /// `%name`, without the `%`.
    Value(&'a str),
    /// Unescaped.
    Text(String),
    /// Any of `@ ( ) { } [ ] : , = .`
    Mark(char),
    /// `..`
    Range,
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(w) => write!(f, "`{}`", clip(w)),
            Token::Number(n) => write!(f, "`{}`", clip(n)),
            Token::Value(v) => write!(f, "`%{}`", clip(v)),
            Token::Text(t) => write!(f, "{:?}", clip(t)),
            Token::Mark(c) => write!(f, "`{c}`"),
            Token::Range => f.write_str("`..`"),
            Token::End => f.write_str("the end of the file"),
        }
    }
}

/// The start of hostile text is enough for a message.
pub(super) fn clip(text: &str) -> &str {
    text.char_indices().nth(60).map_or(text, |(i, _)| &text[..i])
}

pub(super) struct Lexer<'a> {
    rest: &'a str,
    place: Place,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Lexer<'a> {
        Lexer { rest: text, place: Place { line: 1, column: 1 } }
    }

    /// The place of the next character.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Moves over `bytes` bytes, which end at a character boundary, and returns them.
    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        for c in taken.chars() {
            if c == '\n' {
                self.place = Place { line: self.place.line + 1, column: 1 };
            } else {
                self.place.column += 1;
            }
        }
        self.rest = rest;
        taken
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !accept(c)).unwrap_or(self.rest.len());
        self.take(end)
    }

    pub(super) fn next(&mut self) -> Result<(Token<'a>, Place), IrError> {
        loop {
            self.take_while(char::is_whitespace);
            if !self.rest.starts_with(['#', ';']) {
                break;
            }
            self.take_while(|c| c != '\n');
        }
        let place = self.place;
        let Some(first) = self.rest.chars().next() else { return Ok((Token::End, place)) };
        let token = match first {
            c if c.is_ascii_alphabetic() || c == '_' => Token::Word(self.take_while(is_word_char)),
            c if c.is_ascii_digit() || c == '-' => Token::Number(self.number()),
            '%' => {
                self.take(1);
                let name = self.take_while(is_word_char);
                if name.is_empty() {
                    return Err(place.error("`%` without a name; a number or a word is expected after it"));
                }
                Token::Value(name)
            }
            '"' => Token::Text(self.text()?),
            '.' if self.rest.starts_with("..") => {
                self.take(2);
                Token::Range
            }
            '@' | '(' | ')' | '{' | '}' | '[' | ']' | ':' | ',' | '=' | '.' => {
                self.take(1);
                Token::Mark(first)
            }
            other => return Err(place.error(format!("unexpected character {other:?}"))),
        };
        Ok((token, place))
    }

    /// The extent of a number; what it means is decided by who asks for it.
    fn number(&mut self) -> &'a str {
        let bytes = self.rest.as_bytes();
        let digits = |from: usize| from + bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
        let mut end = digits(usize::from(bytes[0] == b'-'));
        // Not the `..` of a range.
        if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
            end = digits(end + 1);
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            if bytes.get(end + 1 + sign).is_some_and(u8::is_ascii_digit) {
                end = digits(end + 1 + sign);
            }
        }
        self.take(end)
    }

    /// A string with Rust's escapes, as `{:?}` writes them.
    fn text(&mut self) -> Result<String, IrError> {
        let open = self.place;
        self.take(1);
        let mut out = String::new();
        loop {
            out.push_str(self.take_while(|c| !matches!(c, '"' | '\\' | '\n')));
            let place = self.place;
            match self.rest.chars().next() {
                Some('"') => {
                    self.take(1);
                    return Ok(out);
                }
                Some('\\') => {
                    self.take(1);
                    out.push(self.escape(place)?);
                }
                _ => return Err(open.error("a string without its closing `\"` on the same line")),
            }
        }
    }

    fn escape(&mut self, place: Place) -> Result<char, IrError> {
        let wrong = || place.error("unknown escape; \\\\, \\\", \\', \\n, \\r, \\t, \\0 and \\u{hex} are accepted");
        let c = self.rest.chars().next().ok_or_else(wrong)?;
        self.take(c.len_utf8());
        Ok(match c {
            '\\' | '"' | '\'' => c,
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            '0' => '\0',
            'u' => {
                let inner = self.rest.strip_prefix('{').ok_or_else(wrong)?;
                let close = inner.bytes().take(7).position(|b| b == b'}').ok_or_else(wrong)?;
                let code = inner.get(..close).and_then(|hex| u32::from_str_radix(hex, 16).ok());
                let c = code.and_then(char::from_u32).ok_or_else(wrong)?;
                self.take(close + 2);
                c
            }
            _ => return Err(wrong()),
        })
    }
}
