//! Metadata values. Arrays stay in the file: a value keeps where they lie, so that memory is bounded by the file's own size.

use super::cursor::Cursor;
use crate::frontend::error::FrontendError;
use std::ops::Range;

/// Type ids of metadata values, as the format numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
    /// 0
    U8,
    /// 1
    I8,
    /// 2
    U16,
    /// 3
    I16,
    /// 4
    U32,
    /// 5
    I32,
    /// 6
    F32,
    /// 7
    Bool,
    /// 8
    String,
    /// 9
    Array,
    /// 10
    U64,
    /// 11
    I64,
    /// 12
    F64,
}

const TYPES: [ValueType; 13] = [
    ValueType::U8,
    ValueType::I8,
    ValueType::U16,
    ValueType::I16,
    ValueType::U32,
    ValueType::I32,
    ValueType::F32,
    ValueType::Bool,
    ValueType::String,
    ValueType::Array,
    ValueType::U64,
    ValueType::I64,
    ValueType::F64,
];

impl ValueType {
    /// Bytes of one value; `None` for strings and arrays.
    pub fn size(self) -> Option<usize> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::String | ValueType::Array => None,
        }
    }
}

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any integer type.
    Int(i128),
    /// Either float type.
    Real(f64),
    /// A bool.
    Flag(bool),
    /// A string.
    Text(String),
    /// An array, still in the file.
    Array(Array),
}

/// Where an array's elements lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    /// Type of every element.
    pub element: ValueType,
    /// Number of elements; their bytes were checked to be there.
    pub count: u64,
    /// Byte range of the elements in the file.
    pub bytes: Range<usize>,
}

impl Value {
    /// What the value is, for error messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Int(_) => "an integer",
            Value::Real(_) => "a float",
            Value::Flag(_) => "a bool",
            Value::Text(_) => "a string",
            Value::Array(_) => "an array",
        }
    }
}

/// Reads a type id.
pub(super) fn read_type(cursor: &mut Cursor<'_>) -> Result<ValueType, FrontendError> {
    let at = cursor.position();
    let id = cursor.u32("a value type")?;
    TYPES
        .get(id as usize)
        .copied()
        .ok_or_else(|| cursor.error_at(at, format!("metadata value type {id}; 0 (u8) to 12 (f64) are accepted")))
}

/// Arrays of arrays deeper than this are refused; none is in use.
const MAX_DEPTH: u32 = 4;

/// Reads a value of type `kind`.
pub(super) fn read_value(cursor: &mut Cursor<'_>, kind: ValueType) -> Result<Value, FrontendError> {
    match kind {
        ValueType::String => Ok(Value::Text(cursor.string("a string value")?.to_owned())),
        ValueType::Array => read_array(cursor, MAX_DEPTH).map(Value::Array),
        scalar => {
            let at = cursor.position();
            let bytes = cursor.take(scalar.size().unwrap_or(0) as u64, "a metadata value")?;
            decode_scalar(scalar, bytes)
                .ok_or_else(|| cursor.error_at(at, format!("a bool of {bytes:?}; 0 or 1 is accepted")))
        }
    }
}

fn read_array(cursor: &mut Cursor<'_>, depth: u32) -> Result<Array, FrontendError> {
    let at = cursor.position();
    let element = read_type(cursor)?;
    let count = cursor.u64("an array length")?;
    let start = cursor.position();
    match element.size() {
        Some(size) => {
            let bytes = count.checked_mul(size as u64).ok_or_else(|| {
                cursor.error_at(at, format!("an array of {count} elements; its bytes do not fit in 64 bits"))
            })?;
            cursor.take(bytes, "an array")?;
        }
        None if depth == 0 => return Err(cursor.error_at(at, format!("arrays nested deeper than {MAX_DEPTH}"))),
        // Each step consumes at least 8 bytes or fails, so a lying count ends at the end of the file.
        None => {
            for _ in 0..count {
                if element == ValueType::String {
                    cursor.string("an array's string")?;
                } else {
                    read_array(cursor, depth - 1)?;
                }
            }
        }
    }
    Ok(Array { element, count, bytes: start..cursor.position() })
}

/// A scalar from exactly its bytes; `None` for a bool that is neither 0 nor 1, or for wrong lengths.
pub(super) fn decode_scalar(kind: ValueType, bytes: &[u8]) -> Option<Value> {
    Some(match kind {
        ValueType::U8 => Value::Int(u8::from_le_bytes(bytes.try_into().ok()?).into()),
        ValueType::I8 => Value::Int(i8::from_le_bytes(bytes.try_into().ok()?).into()),
        ValueType::U16 => Value::Int(u16::from_le_bytes(bytes.try_into().ok()?).into()),
        ValueType::I16 => Value::Int(i16::from_le_bytes(bytes.try_into().ok()?).into()),
        ValueType::U32 => Value::Int(u32::from_le_bytes(bytes.try_into().ok()?).into()),
        ValueType::I32 => Value::Int(i32::from_le_bytes(bytes.try_into().ok()?).into()),
        ValueType::U64 => Value::Int(u64::from_le_bytes(bytes.try_into().ok()?).into()),
        ValueType::I64 => Value::Int(i64::from_le_bytes(bytes.try_into().ok()?).into()),
        ValueType::F32 => Value::Real(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        ValueType::F64 => Value::Real(f64::from_le_bytes(bytes.try_into().ok()?)),
        ValueType::Bool => match bytes {
            [0] => Value::Flag(false),
            [1] => Value::Flag(true),
            _ => return None,
        },
        ValueType::String | ValueType::Array => return None,
    })
}
