//! Element codecs: bytes of any [`DType`] to `f32` values, and `f32` values to the formats that tests and hoisting write.
//!
//! Decoding is the reference meaning of a stored tensor. Every product a block format forms (scale x sub-scale x quant) fits
//! the 24-bit significand of f32, so a decoded element carries at most the one rounding of the final addition of its minimum,
//! which is also what GGML computes. Integers beyond 2^24 are rounded to the nearest f32.

mod block;
mod minifloat;
mod quantise;
#[cfg(test)]
mod tests;

pub use minifloat::{MiniFloat, e8m0_from_f32, e8m0_to_f32};

use crate::DType;
use half::{bf16, f16};
use thiserror::Error;

/// What is wrong with a buffer given to a codec.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CodecError {
    /// The element count is not a whole number of blocks.
    #[error("{dtype} is stored in blocks of {} elements; {elements} elements are not whole blocks", dtype.block_elements())]
    PartialBlock {
        /// Element type.
        dtype: DType,
        /// Elements asked for.
        elements: usize,
    },
    /// The byte count does not belong to the element count.
    #[error("{elements} elements of {dtype} take {expected} bytes, {found} were given")]
    Length {
        /// Element type.
        dtype: DType,
        /// Elements asked for.
        elements: usize,
        /// Bytes those elements take.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// There is no encoder for this dtype.
    #[error("{0} cannot be encoded; f32, f16, bf16, the f8 types, f4e2m1, q8a, q8_0, q4_0 and q4_1 can")]
    NoEncoder(DType),
}

/// What an encoder does with a value that rounds beyond the largest finite one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// Clamp to the largest finite value, infinities included.
    Saturate,
    /// Infinity where the format has one, NaN otherwise (f4e2m1 has neither and clamps).
    Ieee,
}

/// Bytes that `elements` elements of `dtype` take.
///
/// # Errors
/// If `elements` is not whole blocks, or the size overflows (reported as such a length).
pub fn byte_len(dtype: DType, elements: usize) -> Result<usize, CodecError> {
    let block = dtype.block_elements();
    if !elements.is_multiple_of(block) {
        return Err(CodecError::PartialBlock { dtype, elements });
    }
    (elements / block).checked_mul(dtype.block_bytes()).ok_or(CodecError::Length {
        dtype,
        elements,
        expected: usize::MAX,
        found: 0,
    })
}

/// Decodes `out.len()` elements of `dtype` from little-endian `bytes`.
///
/// # Errors
/// If `out` is not whole blocks or `bytes` is not exactly as long as they are.
pub fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
    let expected = byte_len(dtype, out.len())?;
    if bytes.len() != expected {
        return Err(CodecError::Length { dtype, elements: out.len(), expected, found: bytes.len() });
    }
    match dtype {
        DType::F32 => each(bytes, out, f32::from_le_bytes),
        DType::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        DType::BF16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        DType::F8E4M3 => table(bytes, out, MiniFloat::E4M3),
        DType::F8E4M3Fnuz => table(bytes, out, MiniFloat::E4M3_FNUZ),
        DType::F8E5M2 => table(bytes, out, MiniFloat::E5M2),
        DType::F8E5M2Fnuz => table(bytes, out, MiniFloat::E5M2_FNUZ),
        DType::F8E8M0 => each(bytes, out, |[b]| e8m0_to_f32(b)),
        DType::F4E2M1 => {
            for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
                pair[0] = MiniFloat::E2M1.decode(byte & 15);
                pair[1] = MiniFloat::E2M1.decode(byte >> 4);
            }
        }
        DType::I8 => each(bytes, out, |b| f32::from(i8::from_le_bytes(b))),
        DType::U8 => each(bytes, out, |[b]| f32::from(b)),
        DType::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
        DType::U32 => each(bytes, out, |b| u32::from_le_bytes(b) as f32),
        DType::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
        DType::Bool => each(bytes, out, |[b]| if b == 0 { 0.0 } else { 1.0 }),
        DType::Q8A => blocks(bytes, out, block::q8a),
        DType::Q8_0 => blocks(bytes, out, block::q8_0),
        DType::Q4_0 => blocks(bytes, out, block::q4_0),
        DType::Q4_1 => blocks(bytes, out, block::q4_1),
        DType::Q5_0 => blocks(bytes, out, block::q5_0),
        DType::Q5_1 => blocks(bytes, out, block::q5_1),
        DType::Q4K => blocks(bytes, out, block::q4_k),
        DType::Q5K => blocks(bytes, out, block::q5_k),
        DType::Q6K => blocks(bytes, out, block::q6_k),
        DType::MxFp4 => blocks(bytes, out, block::mxfp4),
    }
    Ok(())
}

/// Decodes a whole buffer into a new vector of `elements` values.
///
/// # Errors
/// See [`decode`].
pub fn decode_vec(dtype: DType, bytes: &[u8], elements: usize) -> Result<Vec<f32>, CodecError> {
    // Checked before the allocation, so that memory stays bounded by the bytes at hand.
    let expected = byte_len(dtype, elements)?;
    if bytes.len() != expected {
        return Err(CodecError::Length { dtype, elements, expected, found: bytes.len() });
    }
    let mut out = vec![0.0; elements];
    decode(dtype, bytes, &mut out)?;
    Ok(out)
}

/// Encodes `values` as little-endian bytes of `dtype`, rounding to nearest, ties to even.
///
/// `q8_0`, `q4_0` and `q4_1` use GGML's reference quantiser and ignore `overflow`, as does `q8a`.
///
/// # Errors
/// If `values` is not whole blocks, or `dtype` has no encoder.
pub fn encode(dtype: DType, values: &[f32], overflow: Overflow) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::with_capacity(byte_len(dtype, values.len())?);
    let saturate = overflow == Overflow::Saturate;
    let mini = |out: &mut Vec<u8>, format: MiniFloat| out.extend(values.iter().map(|v| format.encode(*v, overflow)));
    match dtype {
        DType::F32 => values.iter().for_each(|v| out.extend(v.to_le_bytes())),
        DType::F16 => values.iter().for_each(|v| {
            let limit = f16::MAX.to_f32();
            out.extend(f16::from_f32(if saturate { clamp(*v, limit) } else { *v }).to_le_bytes());
        }),
        DType::BF16 => values.iter().for_each(|v| {
            let limit = bf16::MAX.to_f32();
            out.extend(bf16::from_f32(if saturate { clamp(*v, limit) } else { *v }).to_le_bytes());
        }),
        DType::F8E4M3 => mini(&mut out, MiniFloat::E4M3),
        DType::F8E4M3Fnuz => mini(&mut out, MiniFloat::E4M3_FNUZ),
        DType::F8E5M2 => mini(&mut out, MiniFloat::E5M2),
        DType::F8E5M2Fnuz => mini(&mut out, MiniFloat::E5M2_FNUZ),
        DType::F4E2M1 => out.extend(
            values
                .chunks_exact(2)
                .map(|pair| MiniFloat::E2M1.encode(pair[0], overflow) | MiniFloat::E2M1.encode(pair[1], overflow) << 4),
        ),
        DType::F8E8M0 => out.extend(values.iter().map(|v| e8m0_from_f32(*v))),
        DType::Q8A => values.chunks_exact(32).for_each(|v| quantise::q8a(v, &mut out)),
        DType::Q8_0 => values.chunks_exact(32).for_each(|v| quantise::q8_0(v, &mut out)),
        DType::Q4_0 => values.chunks_exact(32).for_each(|v| quantise::q4_0(v, &mut out)),
        DType::Q4_1 => values.chunks_exact(32).for_each(|v| quantise::q4_1(v, &mut out)),
        other => return Err(CodecError::NoEncoder(other)),
    }
    Ok(out)
}

/// `f32::clamp` to `±limit` that keeps NaN.
fn clamp(value: f32, limit: f32) -> f32 {
    if value.is_nan() { value } else { value.clamp(-limit, limit) }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    let (words, _) = bytes.as_chunks::<N>();
    for (value, word) in out.iter_mut().zip(words) {
        *value = decode(*word);
    }
}

fn table(bytes: &[u8], out: &mut [f32], format: MiniFloat) {
    let mut values = [0.0; 256];
    for (code, value) in (0..=255).zip(&mut values) {
        *value = format.decode(code);
    }
    for (value, byte) in out.iter_mut().zip(bytes) {
        *value = values[usize::from(*byte)];
    }
}

fn blocks<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let (stored, _) = bytes.as_chunks::<BYTES>();
    let (values, _) = out.as_chunks_mut::<ELEMENTS>();
    for (block, values) in stored.iter().zip(values) {
        decode(block, values);
    }
}
