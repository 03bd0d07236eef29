//! Token files in, logits out: JSON arrays and safetensors, read by hand because two small cases need no crate.

use crate::artifact::limits::MAX_TOKENS_FILE_BYTES;
use crate::artifact::write_atomically;
use crate::error::{Error, Result};
use crate::map::FileMap;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// Token ids from a JSON array, or from tensor `prompt` (i64, i32 or u32) of a safetensors file, by its name's ending.
///
/// # Errors
/// If the file cannot be read, is not of that form, or holds an id that is not one.
pub fn read_tokens(path: &Path) -> Result<Vec<u32>> {
    let bytes = FileMap::open(path)?;
    if bytes.len() as u64 > MAX_TOKENS_FILE_BYTES {
        let what = format!("{}: bytes", path.display());
        return Err(Error::Limit { what, found: bytes.len() as u64, limit: MAX_TOKENS_FILE_BYTES });
    }
    if path.extension().is_some_and(|e| e == "safetensors") {
        return tokens_of_safetensors(&bytes, path);
    }
    serde_json::from_slice::<Vec<u32>>(&bytes)
        .map_err(|e| Error::corrupt(path, "token ids", format!("not a JSON array of token ids: {e}")))
}

fn tokens_of_safetensors(bytes: &[u8], path: &Path) -> Result<Vec<u32>> {
    let bad = |detail: &str| Error::corrupt(path, "safetensors", detail);
    let len = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)).ok_or_else(|| bad("shorter than its header"))?;
    let end = usize::try_from(len)
        .ok()
        .and_then(|n| n.checked_add(8))
        .filter(|end| *end <= bytes.len())
        .ok_or_else(|| bad("its header passes the end of the file"))?;
    let header: Value =
        serde_json::from_slice(&bytes[8..end]).map_err(|e| bad(&format!("its header is not JSON: {e}")))?;
    let tensor = header.get("prompt").ok_or_else(|| bad("it has no tensor called prompt"))?;
    let size = match tensor.get("dtype").and_then(Value::as_str) {
        Some("I64") => 8,
        Some("I32" | "U32") => 4,
        _ => return Err(bad("tensor prompt is not I64, I32 or U32")),
    };
    let offset = |i: usize| {
        let n = tensor.get("data_offsets")?.get(i)?.as_u64()?;
        usize::try_from(n).ok()?.checked_add(end)
    };
    let data = offset(0)
        .zip(offset(1))
        .and_then(|(from, to)| bytes.get(from..to))
        .filter(|data| data.len().is_multiple_of(size))
        .ok_or_else(|| bad("tensor prompt lies outside the file"))?;
    let id = |raw: &[u8]| {
        let value = match raw {
            [a, b, c, d] => i64::from(u32::from_le_bytes([*a, *b, *c, *d])),
            _ => i64::from_le_bytes(raw.try_into().ok()?),
        };
        u32::try_from(value).ok()
    };
    data.chunks_exact(size).map(|raw| id(raw).ok_or_else(|| bad("tensor prompt holds a negative or huge id"))).collect()
}

/// Writes tensor `logits`, f32 `[rows, columns]`, as safetensors.
///
/// # Errors
/// If the file cannot be written; nothing partial is left.
pub fn write_logits(path: &Path, logits: &[f32], columns: usize) -> Result<()> {
    let rows = logits.len() / columns.max(1);
    let tensor = json!({ "dtype": "F32", "shape": [rows, columns], "data_offsets": [0, logits.len() * 4] });
    let mut header = json!({ "logits": tensor }).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomically(path, |out: &mut dyn Write| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let mut block = Vec::with_capacity(1 << 16);
        for part in logits.chunks(1 << 14) {
            block.clear();
            part.iter().for_each(|v| block.extend_from_slice(&v.to_le_bytes()));
            out.write_all(&block)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_files() {
        let dir = tempfile::tempdir().unwrap();
        let json = dir.path().join("ids.json");
        std::fs::write(&json, "[1, 2, 30000]").unwrap();
        assert_eq!(read_tokens(&json).unwrap(), [1, 2, 30000]);
        for text in ["", "{}", "[-1]", "[1.5]", "[4294967296]", "[1"] {
            std::fs::write(&json, text).unwrap();
            assert!(read_tokens(&json).is_err(), "{text}");
        }
        let tensors = dir.path().join("g.safetensors");
        let header = r#"{"prompt":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}"#;
        let good =
            [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &5i64.to_le_bytes(), &7i64.to_le_bytes()]
                .concat();
        std::fs::write(&tensors, &good).unwrap();
        assert_eq!(read_tokens(&tensors).unwrap(), [5, 7]);
        for len in 0..good.len() {
            std::fs::write(&tensors, &good[..len]).unwrap();
            assert!(read_tokens(&tensors).is_err(), "{len} bytes were accepted");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            std::fs::write(&tensors, &bad).unwrap();
            let _ = read_tokens(&tensors);
        }
    }

    #[test]
    fn logits_are_safetensors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.safetensors");
        write_logits(&path, &[1.0, 2.0, 3.0, 4.0], 2).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        assert_eq!(header["logits"]["shape"], json!([2, 2]));
        assert_eq!(bytes.len(), 8 + len + 16);
        assert_eq!(bytes[8 + len..][4..8], 2.0f32.to_le_bytes());
    }
}
