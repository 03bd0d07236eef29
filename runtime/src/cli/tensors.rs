//! Tensors in safetensors files, by name: what calls take and give.

use crate::DType;
use crate::artifact::limits::MAX_RANK;
use crate::artifact::write_atomically;
use crate::error::{Error, Result};
use crate::map::FileMap;
use crate::session::{TensorBuf, TensorView};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// Bytes of a header, at most.
const MAX_HEADER: usize = 64 << 20;

/// Names of dtypes in safetensors files.
const NAMES: [(&str, DType); 12] = [
    ("F32", DType::F32),
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("F8_E4M3", DType::F8E4M3),
    ("F8_E5M2", DType::F8E5M2),
    ("F8_E8M0", DType::F8E8M0),
    ("I8", DType::I8),
    ("U8", DType::U8),
    ("I32", DType::I32),
    ("U32", DType::U32),
    ("I64", DType::I64),
    ("BOOL", DType::Bool),
];

/// Reads tensor `name` of a file, or its only tensor if that has another name.
///
/// # Errors
/// If the file cannot be read or is not of that form, or it has several tensors and none of that name.
pub fn read(path: &Path, name: &str) -> Result<TensorBuf> {
    let map = FileMap::open(path)?;
    let bytes: &[u8] = &map;
    let bad = |detail: String| Error::corrupt(path, "safetensors", detail);
    let len = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
    let end = len.and_then(|len| usize::try_from(len).ok()).filter(|len| *len <= MAX_HEADER);
    let end = end.and_then(|len| len.checked_add(8)).filter(|end| *end <= bytes.len());
    let end = end.ok_or_else(|| bad("its header passes the end of the file, or 64 MiB".into()))?;
    let header: Value =
        serde_json::from_slice(&bytes[8..end]).map_err(|e| bad(format!("its header is not JSON: {e}")))?;
    let tensors = header.as_object().ok_or_else(|| bad("its header is no object".into()))?;
    let tensors: Vec<(&String, &Value)> = tensors.iter().filter(|(key, _)| *key != "__metadata__").collect();
    let named = tensors.iter().find(|(key, _)| *key == name);
    let tensor = match (named, &tensors[..]) {
        (Some((_, tensor)), _) | (None, [(_, tensor)]) => *tensor,
        (None, all) => {
            let names: Vec<&str> = all.iter().take(8).map(|(key, _)| key.as_str()).collect();
            return Err(bad(format!("it has no tensor {name}; it has [{}]", names.join(", "))));
        }
    };
    let dtype = tensor.get("dtype").and_then(Value::as_str).unwrap_or("none");
    let (_, dtype) = NAMES.iter().find(|(name, _)| *name == dtype).ok_or_else(|| {
        let accepted: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        bad(format!("tensor {name} is {dtype}; {} are accepted", accepted.join(", ")))
    })?;
    let shape: Option<Vec<u64>> =
        tensor.get("shape").and_then(Value::as_array).and_then(|dims| dims.iter().map(Value::as_u64).collect());
    let shape = shape.filter(|shape| shape.len() <= MAX_RANK);
    let shape = shape.ok_or_else(|| bad(format!("tensor {name} has no shape of up to {MAX_RANK} dims")))?;
    let offset = |i: usize| {
        let n = tensor.get("data_offsets")?.get(i)?.as_u64()?;
        usize::try_from(n).ok()?.checked_add(end)
    };
    let data = offset(0).zip(offset(1)).and_then(|(from, to)| bytes.get(from..to));
    let size = dtype.byte_size(&shape).ok();
    let data = data.filter(|data| Some(data.len() as u64) == size);
    let data =
        data.ok_or_else(|| bad(format!("tensor {name} lies outside the file, or is not as large as its shape")))?;
    Ok(TensorBuf { dtype: *dtype, shape, bytes: data.to_vec() })
}

/// Writes a tensor to a file of its own.
///
/// # Errors
/// If such files have no name for its dtype, or it cannot be written; nothing partial is left.
pub fn write(path: &Path, name: &str, tensor: TensorView<'_>) -> Result<()> {
    let TensorView { dtype, shape, bytes } = tensor;
    let spelt = NAMES.iter().find(|(_, known)| *known == dtype).map(|(name, _)| *name);
    let spelt = spelt.ok_or_else(|| Error::Unsupported(format!("safetensors files have no tensors of {dtype}")))?;
    let described = json!({ "dtype": spelt, "shape": shape, "data_offsets": [0, bytes.len()] });
    let mut header = json!({ name: described }).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomically(path, |out: &mut dyn Write| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        out.write_all(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let bytes: Vec<u8> = [1.0f32, -2.0, 3.5, 0.0, 1e-9, 7.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let x = TensorBuf { dtype: DType::F32, shape: vec![2, 3], bytes };
        write(&path, "x", x.view()).unwrap();
        assert_eq!(read(&path, "x").unwrap(), x);
        // The only tensor of a file need not have the input's name.
        assert_eq!(read(&path, "another").unwrap(), x);
        let good = std::fs::read(&path).unwrap();
        for len in 0..good.len() {
            std::fs::write(&path, &good[..len]).unwrap();
            assert!(read(&path, "x").is_err(), "{len} bytes were accepted");
        }
        for at in 0..good.len() - x.bytes.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x41;
            std::fs::write(&path, &bad).unwrap();
            let _ = read(&path, "x");
        }
        let block = TensorView { dtype: DType::Q4_0, shape: &[32], bytes: &[0; 18] };
        assert!(write(&path, "w", block).unwrap_err().to_string().contains("q4_0"));
    }
}
