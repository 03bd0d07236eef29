//! A reader of MessagePack, as far as code-object metadata needs it: borrowed values with their place in the bytes.
//! The input is not trusted: every length is checked against what is left, and nesting is bounded.

use std::ops::Range;

/// Deepest nesting that is read.
const MAX_DEPTH: u32 = 16;

/// A value with the bytes it was read from.
#[derive(Clone, Debug, PartialEq)]
pub struct Value<'a> {
    /// Where it lies in the input.
    pub at: Range<usize>,
    /// What it is.
    pub kind: Kind<'a>,
}

/// The kinds that are told apart.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind<'a> {
    /// An integer, of either sign, that fits.
    Int(i64),
    /// A string.
    Str(&'a str),
    /// A sequence.
    Array(Vec<Value<'a>>),
    /// Pairs in the order they are stored.
    Map(Vec<(Value<'a>, Value<'a>)>),
    /// nil, booleans, floats, bytes, extensions: nothing that is asked for.
    Other,
}

impl<'a> Value<'a> {
    /// Reads one value, which must end the input.
    ///
    /// # Errors
    /// What is malformed, and where.
    pub fn read(bytes: &'a [u8]) -> Result<Value<'a>, String> {
        let mut reader = Reader { bytes, at: 0 };
        let value = reader.value(0)?;
        if reader.at == bytes.len() { Ok(value) } else { Err(format!("bytes follow the value at {}", reader.at)) }
    }

    /// The entry of a map.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        let Kind::Map(pairs) = &self.kind else { return None };
        pairs.iter().find(|(k, _)| k.kind == Kind::Str(key)).map(|(_, v)| v)
    }

    /// A string entry of a map.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        match self.get(key)?.kind {
            Kind::Str(text) => Some(text),
            _ => None,
        }
    }

    /// An entry of a map that is an integer of 32 bits, not negative.
    pub fn count(&self, key: &str) -> Option<u32> {
        match self.get(key)?.kind {
            Kind::Int(n) => u32::try_from(n).ok(),
            _ => None,
        }
    }

    /// The elements of an array entry of a map.
    pub fn list(&self, key: &str) -> Option<&[Value<'a>]> {
        match &self.get(key)?.kind {
            Kind::Array(list) => Some(list),
            _ => None,
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let piece = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end));
        let piece = piece.ok_or_else(|| format!("{n} bytes at {} pass the end", self.at))?;
        self.at += n;
        Ok(piece)
    }

    fn unsigned(&mut self, bytes: usize) -> Result<u64, String> {
        Ok(self.take(bytes)?.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    fn length(&mut self, bytes: usize) -> Result<usize, String> {
        usize::try_from(self.unsigned(bytes)?).map_err(|e| e.to_string())
    }

    fn text(&mut self, n: usize) -> Result<Kind<'a>, String> {
        std::str::from_utf8(self.take(n)?).map(Kind::Str).map_err(|e| e.to_string())
    }

    fn skip(&mut self, n: usize) -> Result<Kind<'a>, String> {
        self.take(n).map(|_| Kind::Other)
    }

    // Elements take a byte each at least, so a count that passes the end fails before it is believed.
    fn array(&mut self, n: usize, depth: u32) -> Result<Kind<'a>, String> {
        let mut list = Vec::new();
        for _ in 0..n {
            list.push(self.value(depth + 1)?);
        }
        Ok(Kind::Array(list))
    }

    fn map(&mut self, n: usize, depth: u32) -> Result<Kind<'a>, String> {
        let mut pairs = Vec::new();
        for _ in 0..n {
            pairs.push((self.value(depth + 1)?, self.value(depth + 1)?));
        }
        Ok(Kind::Map(pairs))
    }

    fn value(&mut self, depth: u32) -> Result<Value<'a>, String> {
        if depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH}"));
        }
        let start = self.at;
        let head = self.unsigned(1)? as u8;
        let low = usize::from(head);
        let kind = match head {
            0x00..=0x7f => Kind::Int(i64::from(head)),
            0xe0..=0xff => Kind::Int(i64::from(head as i8)),
            0x80..=0x8f => self.map(low & 0xf, depth)?,
            0x90..=0x9f => self.array(low & 0xf, depth)?,
            0xa0..=0xbf => self.text(low & 0x1f)?,
            0xc0 | 0xc2 | 0xc3 => Kind::Other,
            0xc1 => return Err(format!("byte 0xc1 at {start}")),
            // Bytes, then extensions with a type byte.
            0xc4..=0xc6 => {
                let n = self.length(1 << (head - 0xc4))?;
                self.skip(n)?
            }
            0xc7..=0xc9 => {
                let n = self.length(1 << (head - 0xc7))?;
                self.skip(n.saturating_add(1))?
            }
            0xca => self.skip(4)?,
            0xcb => self.skip(8)?,
            0xcc..=0xcf => self.unsigned(1 << (head - 0xcc))?.try_into().map_or(Kind::Other, Kind::Int),
            0xd0..=0xd3 => {
                let bytes = 1u32 << (head - 0xd0);
                let shift = 64 - 8 * bytes;
                Kind::Int((self.unsigned(bytes as usize)? << shift) as i64 >> shift)
            }
            0xd4..=0xd8 => self.skip((1 << (head - 0xd4)) + 1)?,
            0xd9..=0xdb => {
                let n = self.length(1 << (head - 0xd9))?;
                self.text(n)?
            }
            0xdc | 0xdd => {
                let n = self.length(if head == 0xdc { 2 } else { 4 })?;
                self.array(n, depth)?
            }
            0xde | 0xdf => {
                let n = self.length(if head == 0xde { 2 } else { 4 })?;
                self.map(n, depth)?
            }
        };
        Ok(Value { at: start..self.at, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_kind() {
        let bytes = b"\x84\xa1a\x92\x01\xff\xa1b\xd9\x02hi\xa1c\xcd\x01\x00\xa1d\xd1\xff\xfe";
        let value = Value::read(bytes).unwrap();
        let ints: Vec<&Kind<'_>> = value.list("a").unwrap().iter().map(|v| &v.kind).collect();
        assert_eq!(ints, [&Kind::Int(1), &Kind::Int(-1)]);
        assert_eq!(value.text("b"), Some("hi"));
        assert_eq!(value.count("c"), Some(256));
        assert_eq!(value.get("d").map(|v| &v.kind), Some(&Kind::Int(-2)));
        assert_eq!(value.count("d"), None);
        assert_eq!(&bytes[value.list("a").unwrap()[1].at.clone()], b"\xff");
    }

    #[test]
    fn damage_is_an_error() {
        let whole = b"\x82\xa4name\xdc\x00\x02\xca\x00\x00\x00\x00\xc4\x01x\xa1k\xcf\xff\xff\xff\xff\xff\xff\xff\xff";
        assert!(Value::read(whole).is_ok());
        for cut in 0..whole.len() {
            assert!(Value::read(&whole[..cut]).is_err(), "{cut}");
        }
        for at in 0..whole.len() {
            for byte in 0..=255 {
                let mut damaged = whole.to_vec();
                damaged[at] = byte;
                let _ = Value::read(&damaged);
            }
        }
        assert!(Value::read(&[0x91; 64]).unwrap_err().contains("nested"));
        assert!(Value::read(b"\xdd\xff\xff\xff\xff").is_err());
    }
}
