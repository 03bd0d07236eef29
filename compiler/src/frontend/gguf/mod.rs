//! GGUF versions 2 and 3: header, metadata and tensor table over a mapped file.
//!
//! Nothing in the header is trusted: counts are walked, not reserved; sizes come from the one checked byte-size function;
//! tensors must lie aligned, inside the data section and apart from each other.

mod cursor;
mod keys;
mod tokenizer;
mod types;
mod value;

pub(crate) use keys::read_keys;
pub(crate) use tokenizer::read_tokenizer;
pub use value::{Array, Value, ValueType};

use super::error::{FrontendError, Place, shown};
use super::mapped_file::Mapping;
use cursor::Cursor;
use indexmap::IndexMap;
use std::path::Path;
use weldment_ir::DType;

/// The first four bytes of every GGUF file.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: DType,
    /// Dims, outermost first (GGUF itself stores them innermost first).
    pub shape: Vec<u64>,
    /// Byte offset from the start of the file.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// A checked GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    mapping: Mapping,
    version: u32,
    metadata: IndexMap<String, Value>,
    tensors: IndexMap<String, TensorInfo>,
}

impl GgufFile {
    /// Maps and checks the file at `path`.
    ///
    /// # Errors
    /// Names the byte, key or tensor that is not as the format asks.
    pub fn open(path: &Path) -> Result<GgufFile, FrontendError> {
        let mapping = Mapping::open(path)?;
        let mut cursor = Cursor::new(path, mapping.bytes(), 0);
        let magic = cursor.take(4, "the magic")?;
        if magic != MAGIC {
            return Err(cursor.error_at(0, format!("the file starts with {magic:02x?}; \"GGUF\" is expected")));
        }
        let version = cursor.u32("the version")?;
        match version {
            2 | 3 => {}
            v if matches!(v.swap_bytes(), 2 | 3) => {
                return Err(FrontendError::unsupported(
                    path,
                    Place::Offset(4),
                    "a big-endian file; little-endian ones are accepted",
                ));
            }
            1 => {
                return Err(FrontendError::unsupported(path, Place::Offset(4), "GGUF version 1; 2 and 3 are accepted"));
            }
            v => return Err(cursor.error_at(4, format!("GGUF version {v}; 2 and 3 are accepted"))),
        }
        let tensor_count = cursor.u64("the tensor count")?;
        let key_count = cursor.u64("the metadata count")?;
        // The shortest entries: a tensor is name length, dim count, type, offset; a pair is key length, type, one byte.
        for (at, what, count, least) in [(8, "tensors", tensor_count, 24), (16, "metadata pairs", key_count, 13)] {
            if count > (cursor.remaining() / least) as u64 {
                let left = cursor.remaining();
                return Err(
                    cursor.error_at(at, format!("{count} {what}; the {left} bytes left hold at most {}", left / least))
                );
            }
        }
        let metadata = read_metadata(path, &mut cursor, key_count)?;
        let alignment = alignment(path, &metadata)?;
        let tensors = read_tensors(path, &mut cursor, tensor_count, alignment)?;
        Ok(GgufFile { version, metadata, tensors, mapping })
    }

    /// The format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The mapped file.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Gives the mapping up, for a checkpoint to keep.
    pub fn into_mapping(self) -> Mapping {
        self.mapping
    }

    /// Metadata in file order.
    pub fn metadata(&self) -> &IndexMap<String, Value> {
        &self.metadata
    }

    /// Tensors in file order, by the names of the file.
    pub fn tensors(&self) -> &IndexMap<String, TensorInfo> {
        &self.tensors
    }

    fn wrong_kind(&self, key: &str, found: &Value, expected: &str) -> FrontendError {
        self.key_error(key, format!("the value is {}; {expected} is expected", found.kind()))
    }

    /// An error at a metadata key.
    pub(crate) fn key_error(&self, key: &str, message: impl Into<String>) -> FrontendError {
        FrontendError::invalid(self.mapping.path(), Place::Key(key.to_owned()), message)
    }

    /// A string, if the key is there.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, FrontendError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_kind(key, other, "a string")),
        }
    }

    /// A non-negative integer, if the key is there.
    pub(crate) fn unsigned(&self, key: &str) -> Result<Option<u64>, FrontendError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Int(n)) => u64::try_from(*n)
                .map(Some)
                .map_err(|_| self.key_error(key, format!("the value is {n}; a non-negative integer is expected"))),
            Some(other) => Err(self.wrong_kind(key, other, "a non-negative integer")),
        }
    }

    /// A finite float, if the key is there.
    pub(crate) fn real(&self, key: &str) -> Result<Option<f64>, FrontendError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Real(x)) if x.is_finite() => Ok(Some(*x)),
            Some(Value::Real(x)) => Err(self.key_error(key, format!("the value is {x}; a finite number is expected"))),
            Some(other) => Err(self.wrong_kind(key, other, "a float")),
        }
    }

    /// A bool, if the key is there.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, FrontendError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Flag(b)) => Ok(Some(*b)),
            Some(other) => Err(self.wrong_kind(key, other, "a bool")),
        }
    }

    /// The strings of an array, if the key is there.
    pub(crate) fn strings(&self, key: &str) -> Result<Option<Vec<&str>>, FrontendError> {
        let array = match self.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Array(array)) if array.element == ValueType::String => array,
            Some(other) => return Err(self.wrong_kind(key, other, "an array of strings")),
        };
        let mut cursor = Cursor::new(self.mapping.path(), self.mapping.bytes(), array.bytes.start);
        (0..array.count).map(|_| cursor.string("an array's string")).collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// The numbers of an array of a scalar type, as f64 (a flag is 0 or 1), if the key is there.
    pub(crate) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, FrontendError> {
        let (array, size) = match self.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Array(array)) => match array.element.size() {
                Some(size) => (array, size),
                None => return Err(self.key_error(key, "an array of numbers is expected")),
            },
            Some(other) => return Err(self.wrong_kind(key, other, "an array of numbers")),
        };
        let bytes = self.mapping.bytes().get(array.bytes.clone()).unwrap_or_default();
        let number = |bytes| match value::decode_scalar(array.element, bytes) {
            Some(Value::Int(n)) => Ok(n as f64),
            Some(Value::Real(x)) => Ok(x),
            Some(Value::Flag(b)) => Ok(f64::from(u8::from(b))),
            _ => Err(self.key_error(key, "an array of numbers is expected")),
        };
        bytes.chunks_exact(size).map(number).collect::<Result<Vec<_>, _>>().map(Some)
    }
}

fn read_metadata(path: &Path, cursor: &mut Cursor<'_>, count: u64) -> Result<IndexMap<String, Value>, FrontendError> {
    let mut metadata = IndexMap::new();
    for _ in 0..count {
        let at = cursor.position();
        let key = cursor.string("a metadata key")?.to_owned();
        let kind = value::read_type(cursor)?;
        let value = value::read_value(cursor, kind)?;
        if metadata.contains_key(&key) {
            let message = format!("the key `{}` appears a second time", shown(&key));
            return Err(FrontendError::invalid(path, Place::Offset(at as u64), message));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

/// `general.alignment`, 32 where it is missing.
fn alignment(path: &Path, metadata: &IndexMap<String, Value>) -> Result<u64, FrontendError> {
    const KEY: &str = "general.alignment";
    match metadata.get(KEY) {
        None => Ok(32),
        Some(Value::Int(n)) if (8..=1 << 20).contains(n) && (*n as u64).is_power_of_two() => Ok(*n as u64),
        Some(other) => {
            let message = format!("the value is {other:?}; a power of two from 8 to 1048576 is expected");
            Err(FrontendError::invalid(path, Place::Key(KEY.into()), message))
        }
    }
}

fn read_tensors(
    path: &Path,
    cursor: &mut Cursor<'_>,
    count: u64,
    alignment: u64,
) -> Result<IndexMap<String, TensorInfo>, FrontendError> {
    let mut found = Vec::new();
    for _ in 0..count {
        found.push(read_tensor_info(path, cursor)?);
    }
    let data = (cursor.position() as u64).next_multiple_of(alignment);
    let end = (cursor.position() + cursor.remaining()) as u64;
    let mut tensors: IndexMap<String, TensorInfo> = IndexMap::with_capacity(found.len());
    for (name, dtype, shape, offset) in found {
        let wrong = |message: String| FrontendError::invalid(path, Place::Tensor(name.clone()), message);
        let size = dtype.byte_size(&shape).map_err(|e| wrong(e.to_string()))?;
        if !offset.is_multiple_of(alignment) {
            return Err(wrong(format!("offset {offset}; a multiple of the alignment {alignment} is expected")));
        }
        let start = data.checked_add(offset);
        let inside = start.and_then(|s| s.checked_add(size)).is_some_and(|e| e <= end);
        let (Some(start), true) = (start, inside) else {
            let section = end.saturating_sub(data);
            return Err(wrong(format!(
                "offset {offset} and {size} bytes; the data section from byte {data} has {section}"
            )));
        };
        if tensors.contains_key(&name) {
            return Err(wrong("the name appears a second time".into()));
        }
        // Both are at most the file's length, which fitted a usize when it was mapped.
        tensors.insert(name, TensorInfo { dtype, shape, offset: start as usize, size: size as usize });
    }
    let mut by_offset: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
    by_offset.sort_by_key(|(_, t)| (t.offset, t.size));
    for pair in by_offset.windows(2) {
        let ((a, first), (b, second)) = (pair[0], pair[1]);
        if first.offset + first.size > second.offset {
            let message = format!(
                "bytes {}..{} overlap tensor `{}`, which starts at byte {}",
                first.offset,
                first.offset + first.size,
                shown(b),
                second.offset
            );
            return Err(FrontendError::invalid(path, Place::Tensor(a.clone()), message));
        }
    }
    Ok(tensors)
}

type Stored = (String, DType, Vec<u64>, u64);

fn read_tensor_info(path: &Path, cursor: &mut Cursor<'_>) -> Result<Stored, FrontendError> {
    let name = cursor.string("a tensor name")?.to_owned();
    let wrong = |message: String| FrontendError::invalid(path, Place::Tensor(name.clone()), message);
    let rank = cursor.u32("a tensor's dim count")?;
    if !(1..=4).contains(&rank) {
        return Err(wrong(format!("{rank} dims; 1 to 4 are accepted")));
    }
    let mut shape = Vec::with_capacity(rank as usize);
    for _ in 0..rank {
        shape.push(cursor.u64("a tensor's dim")?);
    }
    shape.reverse();
    if shape.contains(&0) {
        return Err(wrong(format!("shape {shape:?}; dims above 0 are expected")));
    }
    let at = cursor.position();
    let id = cursor.u32("a tensor's type")?;
    let Some(dtype) = types::dtype_of(id) else {
        let message = format!("type {id} ({}) at byte {at}; {}", types::name_of(id), types::ACCEPTED);
        return Err(FrontendError::unsupported(path, Place::Tensor(name), message));
    };
    let offset = cursor.u64("a tensor's offset")?;
    Ok((name, dtype, shape, offset))
}
