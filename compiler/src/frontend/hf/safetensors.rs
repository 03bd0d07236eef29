//! The safetensors header over a mapped file. Read here rather than by the `safetensors` crate because a refusal must name the
//! tensor and its numbers, and because that crate's last size check can overflow on a crafted header.

use crate::frontend::error::{FrontendError, Place, shown};
use crate::frontend::mapped_file::Mapping;
use indexmap::IndexMap;
use indexmap::map::Entry;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::fmt;
use weldment_ir::DType;

/// The same limit as the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// A tensor of the file.
#[derive(Debug, Clone)]
pub(crate) struct TensorInfo {
    pub dtype: DType,
    pub shape: Vec<u64>,
    /// Byte offset from the start of the file.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

#[derive(Deserialize)]
struct RawInfo {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's tensors in its order; a repeated name is refused, `__metadata__` skipped.
struct Header(IndexMap<String, RawInfo>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut tensors = IndexMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    match tensors.entry(name) {
                        Entry::Occupied(o) => {
                            return Err(A::Error::custom(format!("tensor `{}` appears a second time", shown(o.key()))));
                        }
                        Entry::Vacant(v) => {
                            v.insert(map.next_value()?);
                        }
                    }
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

/// Reads and checks the header: known dtypes, sizes that match shapes, tensors that tile the data section without gap or overlap.
///
/// # Errors
/// Names the byte or the tensor.
pub(super) fn read_header(mapping: &Mapping) -> Result<IndexMap<String, TensorInfo>, FrontendError> {
    let (path, bytes) = (mapping.path(), mapping.bytes());
    let invalid = |place, message: String| FrontendError::invalid(path, place, message);
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(invalid(
            Place::Offset(0),
            format!("the file has {} bytes; a header length of 8 is expected first", bytes.len()),
        ));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().filter(|_| length <= MAX_HEADER).and_then(|n| rest.split_at_checked(n));
    let Some((header, data)) = header else {
        let message = format!(
            "a header of {length} bytes; {} are left in the file and at most {MAX_HEADER} are accepted",
            rest.len()
        );
        return Err(invalid(Place::Offset(0), message));
    };
    let Header(raw) = serde_json::from_slice(header)
        .map_err(|e| invalid(Place::Offset(8), format!("the header is not as expected: {e}")))?;

    let base = 8 + header.len();
    let mut tensors = IndexMap::with_capacity(raw.len());
    for (name, info) in raw {
        let wrong = |message: String| invalid(Place::Tensor(name.clone()), message);
        let dtype = dtype_of(&info.dtype).ok_or_else(|| {
            let message = format!("dtype `{}`; F32, F16, BF16, F8_E4M3, F8_E4M3FNUZ, F8_E5M2, F8_E5M2FNUZ, F8_E8M0, F4, I8, U8, I32, U32, I64 and BOOL are accepted", shown(&info.dtype));
            FrontendError::unsupported(path, Place::Tensor(name.clone()), message)
        })?;
        let size = dtype.byte_size(&info.shape).map_err(|e| wrong(e.to_string()))?;
        let (start, end) = info.data_offsets;
        if end.checked_sub(start) != Some(size) {
            return Err(wrong(format!(
                "data_offsets {start}..{end}; {size} bytes are expected of {dtype} {:?}",
                info.shape
            )));
        }
        if end > data.len() as u64 {
            return Err(wrong(format!("data_offsets {start}..{end}; the data section has {} bytes", data.len())));
        }
        // Both are at most the file's length, which fits a usize.
        tensors
            .insert(name, TensorInfo { dtype, shape: info.shape, offset: base + start as usize, size: size as usize });
    }
    let mut by_offset: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
    by_offset.sort_by_key(|(_, t)| (t.offset, t.size));
    let mut next = base;
    for (name, info) in by_offset {
        if info.offset != next {
            let message = format!(
                "starts at byte {}; {next} is expected, as tensors neither overlap nor leave gaps",
                info.offset
            );
            return Err(invalid(Place::Tensor(name.clone()), message));
        }
        next += info.size;
    }
    if next != bytes.len() {
        return Err(invalid(
            Place::Offset(next as u64),
            format!("{} bytes after the last tensor; none are expected", bytes.len() - next),
        ));
    }
    Ok(tensors)
}

fn dtype_of(name: &str) -> Option<DType> {
    Some(match name {
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        "F8_E4M3" => DType::F8E4M3,
        "F8_E4M3FNUZ" => DType::F8E4M3Fnuz,
        "F8_E5M2" => DType::F8E5M2,
        "F8_E5M2FNUZ" => DType::F8E5M2Fnuz,
        "F8_E8M0" => DType::F8E8M0,
        "F4" => DType::F4E2M1,
        "I8" => DType::I8,
        "U8" => DType::U8,
        "I32" => DType::I32,
        "U32" => DType::U32,
        "I64" => DType::I64,
        "BOOL" => DType::Bool,
        _ => return None,
    })
}
