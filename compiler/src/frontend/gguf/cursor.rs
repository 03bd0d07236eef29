//! A bounds-checked little-endian reader that knows its file, so that every error names the byte.

use crate::frontend::error::{FrontendError, Place, shown};
use std::path::Path;

/// Reads forward through a byte slice.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8], at: usize) -> Cursor<'a> {
        Cursor { path, bytes, at }
    }

    /// The offset of the next byte.
    pub fn position(&self) -> usize {
        self.at
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    /// An error at the byte `at`.
    pub fn error_at(&self, at: usize, message: impl Into<String>) -> FrontendError {
        FrontendError::invalid(self.path, Place::Offset(at as u64), message)
    }

    /// The next `length` bytes; `what` names them in the error.
    pub fn take(&mut self, length: u64, what: &str) -> Result<&'a [u8], FrontendError> {
        let left = self.remaining();
        let slice =
            usize::try_from(length).ok().and_then(|n| self.bytes.get(self.at..self.at.checked_add(n)?)).ok_or_else(
                || self.error_at(self.at, format!("{what} takes {length} bytes, {left} are left in the file")),
            )?;
        self.at += slice.len();
        Ok(slice)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], FrontendError> {
        let bytes = self.take(N as u64, what)?;
        let mut out = [0; N];
        out.copy_from_slice(bytes);
        Ok(out)
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, FrontendError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64, FrontendError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A u64 length and as many bytes of UTF-8.
    pub fn string(&mut self, what: &str) -> Result<&'a str, FrontendError> {
        let at = self.at;
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| {
            let text = shown(&String::from_utf8_lossy(bytes));
            self.error_at(at, format!("{what} is not UTF-8: \"{text}\""))
        })
    }
}
