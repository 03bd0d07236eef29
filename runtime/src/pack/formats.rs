//! Splits the block formats of GGUF and OCP MX into groups of small integers with a scale and a minimum, exactly.
//!
//! Sources: the block structs of ggml (`block_q4_0` ... `block_q6_K`, `block_mxfp4`) and the OCP MX specification 1.0.

use crate::DType;
use crate::artifact::block::block_format;
use half::{bf16, f16};

/// Up to 32 elements that share a scale: element i is `q[i] * scale + min`.
#[derive(Clone, Debug)]
pub struct Group {
    /// Quants: centred formats give signed ones and `min` 0, affine ones give `0..=31`.
    pub q: [i8; 32],
    /// Scale, exact in f32 for every format.
    pub scale: f32,
    /// Minimum, exact in f32 for every format.
    pub min: f32,
}

/// Twice the E2M1 values by code, so that they are integers.
const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

fn f16_at(block: &[u8], at: usize) -> f32 {
    match block.get(at..at + 2) {
        Some(b) => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        None => 0.0,
    }
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    match block.get(at..at + 4) {
        Some(b) => u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        None => 0,
    }
}

/// Half of the OCP E8M0 scale `2^(e - 127)`, exactly; 255 is NaN.
pub fn e8m0_half(e: u8) -> f32 {
    match e {
        255 => f32::NAN,
        // 2^-128 and 2^-127 are subnormal.
        0 | 1 => f32::from_bits(0x0020_0000 << e),
        _ => f32::from_bits(u32::from(e - 1) << 23),
    }
}

/// 6-bit scale and minimum `j` of the 12 bytes that q4_k and q5_k share.
fn k_scale_min(s: &[u8; 12], j: usize) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        ((s[j + 4] & 15) | ((s[j - 4] >> 6) << 4), (s[j + 4] >> 4) | ((s[j] >> 6) << 4))
    }
}

/// Group `index` of one block of `dtype`. `block` has `dtype.block_bytes()` bytes; a short one reads as zeros, other dtypes too.
pub fn split(dtype: DType, block: &[u8], index: usize) -> Group {
    let mut g = Group { q: [0; 32], scale: 0.0, min: 0.0 };
    if block.len() < dtype.block_bytes() {
        return g;
    }
    match dtype {
        DType::Q8_0 => {
            g.scale = f16_at(block, 0);
            for (q, b) in g.q.iter_mut().zip(&block[2..34]) {
                *q = *b as i8;
            }
        }
        DType::Q4_0 => {
            g.scale = f16_at(block, 0);
            nibbles(&mut g.q, &block[2..18], |n| n as i8 - 8);
        }
        DType::Q4_1 => {
            (g.scale, g.min) = (f16_at(block, 0), f16_at(block, 2));
            nibbles(&mut g.q, &block[4..20], |n| n as i8);
        }
        DType::Q5_0 | DType::Q5_1 => {
            g.scale = f16_at(block, 0);
            let (at, zero) = if dtype == DType::Q5_0 { (2, 16) } else { (4, 0) };
            if dtype == DType::Q5_1 {
                g.min = f16_at(block, 2);
            }
            let high = u32_at(block, at);
            nibbles(&mut g.q, &block[at + 4..at + 20], |n| n as i8);
            for (j, q) in g.q.iter_mut().enumerate() {
                *q = (*q | (((high >> j) & 1) << 4) as i8) - zero;
            }
        }
        DType::Q4K | DType::Q5K => {
            let mut scales = [0u8; 12];
            scales.copy_from_slice(&block[4..16]);
            let j = index & 7;
            let (scale, min) = k_scale_min(&scales, j);
            g.scale = f16_at(block, 0) * f32::from(scale);
            g.min = -(f16_at(block, 2) * f32::from(min));
            let (high, low) = if dtype == DType::Q5K { (Some(&block[16..48]), 48) } else { (None, 16) };
            let quants = &block[low + (j / 2) * 32..low + (j / 2) * 32 + 32];
            for (l, (q, b)) in g.q.iter_mut().zip(quants).enumerate() {
                let nibble = if j & 1 == 0 { b & 15 } else { b >> 4 };
                let bit = high.map_or(0, |h| (h[l] >> j) & 1);
                *q = (nibble | (bit << 4)) as i8;
            }
        }
        DType::Q6K => {
            let j = index & 15;
            g.scale = f16_at(block, 208) * f32::from(block[192 + j] as i8);
            // Each half of 128 elements: four runs of 32 share ql[64] and qh[32]; a group is half a run.
            let (half, run, first) = (j / 8, (j % 8) / 2, (j % 2) * 16);
            for (i, q) in g.q.iter_mut().take(16).enumerate() {
                let l = first + i;
                let low = block[half * 64 + (run & 1) * 32 + l];
                let low = if run < 2 { low & 15 } else { low >> 4 };
                let high = (block[128 + half * 32 + l] >> (2 * run)) & 3;
                *q = (low | (high << 4)) as i8 - 32;
            }
        }
        DType::MxFp4 => {
            g.scale = e8m0_half(block[0]);
            nibbles(&mut g.q, &block[1..17], |n| E2M1_DOUBLED[usize::from(n & 15)]);
        }
        _ => {}
    }
    g
}

/// Low nibbles are elements 0..16, high nibbles 16..32.
fn nibbles(q: &mut [i8; 32], bytes: &[u8], value: impl Fn(u8) -> i8) {
    for (j, b) in bytes.iter().take(16).enumerate() {
        q[j] = value(b & 15);
        q[j + 16] = value(b >> 4);
    }
}

/// True if rows of `dtype` can be decoded to f32.
pub const fn is_decodable(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16) || block_format(dtype).is_some()
}

/// Decodes one row of `dtype` to f32: f32, f16 and bf16 exactly, block formats as `q * scale + min` in f32.
pub fn decode_row(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        DType::F16 => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *o = f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        DType::BF16 => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *o = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
            }
        }
        _ => {
            let Some(format) = block_format(dtype) else { return };
            let per_block = dtype.block_elements();
            for (block, out) in bytes.chunks_exact(dtype.block_bytes()).zip(out.chunks_exact_mut(per_block)) {
                for (index, out) in out.chunks_exact_mut(format.group).enumerate() {
                    let g = split(dtype, block, index);
                    for (o, q) in out.iter_mut().zip(&g.q) {
                        *o = f32::from(*q) * g.scale + g.min;
                    }
                }
            }
        }
    }
}

/// Encodes f32 values as `dtype` (f32, f16 or bf16, to nearest even); other dtypes leave `out` as it is.
pub fn encode_row(dtype: DType, values: &[f32], out: &mut [u8]) {
    match dtype {
        DType::F32 => out.chunks_exact_mut(4).zip(values).for_each(|(o, v)| o.copy_from_slice(&v.to_le_bytes())),
        DType::F16 => {
            out.chunks_exact_mut(2).zip(values).for_each(|(o, v)| o.copy_from_slice(&f16::from_f32(*v).to_le_bytes()));
        }
        DType::BF16 => {
            out.chunks_exact_mut(2).zip(values).for_each(|(o, v)| o.copy_from_slice(&bf16::from_f32(*v).to_le_bytes()));
        }
        _ => {}
    }
}
