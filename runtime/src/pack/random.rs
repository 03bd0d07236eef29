//! Weights for models of which only the config is at hand: deterministic, any row by itself, plausible in size.
//!
//! Matrices have standard deviation `1 / sqrt(K)`, rank-1 tensors (norms) are `1 + 0.1 n`; FP8 matrices are codes of the order of 64
//! beside scales of the order of 2^-12. A value depends on the seed, the
//! tensor's name, its row and its column alone, so any number of threads makes the same bytes.

use super::formats::encode_row;
use crate::DType;
use half::f16;

/// A generator of the rows of one tensor.
#[derive(Clone, Copy, Debug)]
pub struct RandomTensor {
    key: u64,
    dtype: DType,
    columns: u64,
    kind: Kind,
}

/// What the values of a float tensor are like.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Vector,
    /// Scales of FP8 codes, by their name.
    Scales,
    Matrix,
}

/// What brings random FP8 codes to the size of a matrix of a few thousand columns.
const SCALE: f32 = 1.0 / 4096.0;

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A sum of four uniforms: mean 0, variance 1, within +-3.47.
fn normal(bits: u64) -> f32 {
    let sum = (bits & 0xffff) + ((bits >> 16) & 0xffff) + ((bits >> 32) & 0xffff) + (bits >> 48);
    // Four uniforms on 0..65536 have mean 131070 and variance 4 * 65536^2 / 12.
    (sum as f32 - 131_070.0) * (1.732_050_8 / 65_536.0)
}

impl RandomTensor {
    /// The tensor `name` of `shape` (dims outermost first) under `seed`.
    pub fn new(name: &str, seed: u64, dtype: DType, shape: &[u64]) -> Self {
        let hash = blake3::hash(name.as_bytes());
        let mut raw = [0u8; 8];
        raw.copy_from_slice(&hash.as_bytes()[..8]);
        let key = mix(u64::from_le_bytes(raw) ^ mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)));
        let kind = match shape.len() {
            _ if name.ends_with(".weight_scale_inv") || name.ends_with(".weight_scale") => Kind::Scales,
            0 | 1 => Kind::Vector,
            _ => Kind::Matrix,
        };
        RandomTensor { key, dtype, columns: shape.last().copied().unwrap_or(1), kind }
    }

    /// Bytes of one row (the last dim).
    pub fn row_bytes(&self) -> usize {
        self.dtype.byte_size(&[self.columns]).unwrap_or(0) as usize
    }

    /// Fills `out` with the logical bytes of `row`.
    pub fn fill_row(&self, row: u64, out: &mut [u8]) {
        self.fill_row_from(row, 0, out);
    }

    /// Fills `out` with the logical bytes of `row` from byte `start` on, which is that of a block or element.
    pub fn fill_row_from(&self, row: u64, start: usize, out: &mut [u8]) {
        if start > 0 && !matches!(self.dtype, DType::F32 | DType::F16 | DType::BF16) {
            // Words of eight bytes do not end where blocks do: the row up to the end of the part is made whole.
            let mut whole = vec![0u8; start + out.len()];
            self.fill_row_from(row, 0, &mut whole);
            out.copy_from_slice(&whole[start..]);
            return;
        }
        let first = (start / self.dtype.block_bytes()) as u64;
        let stream = mix(self.key ^ row.wrapping_mul(0xd6e8_feb8_6659_fd93));
        let at = |i: u64| mix(stream.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let sigma = 1.0 / (self.columns.max(1) as f32).sqrt();
        match self.dtype {
            DType::F32 | DType::F16 | DType::BF16 => {
                let mut values = [0f32; 64];
                let element = self.dtype.block_bytes();
                for (chunk, out) in out.chunks_mut(64 * element).enumerate() {
                    let n = out.len() / element;
                    for (i, v) in values[..n].iter_mut().enumerate() {
                        let x = normal(at(first + (chunk * 64 + i) as u64));
                        *v = match self.kind {
                            Kind::Vector => 1.0 + 0.1 * x,
                            Kind::Scales => SCALE * (1.0 + 0.1 * x),
                            Kind::Matrix => sigma * x,
                        };
                    }
                    encode_row(self.dtype, &values[..n], out);
                }
            }
            // A byte at most the largest number's, either sign: values of the order of 64, for scales of the order of 2^-12.
            DType::F8E4M3 | DType::F8E4M3Fnuz => {
                for (i, code) in out.iter_mut().enumerate() {
                    let bits = at(i as u64);
                    *code = (0x40 + (bits % 0x38) as u8) | ((bits >> 32) as u8 & 0x80);
                }
            }
            _ => {
                for (i, word) in out.chunks_mut(8).enumerate() {
                    word.copy_from_slice(&at(i as u64).to_le_bytes()[..word.len()]);
                }
                if self.dtype.is_block() {
                    for block in out.chunks_exact_mut(self.dtype.block_bytes()) {
                        set_scales(self.dtype, block, sigma);
                    }
                }
            }
        }
    }
}

/// Replaces a block's random scales so that its values have standard deviation `sigma` and mean 0. The divisors are the
/// standard deviations of uniform quants (4 bits 4.61, 5 bits 9.23, 6 bits 18.5, 8 bits 73.9, E2M1 2.93).
fn set_scales(dtype: DType, block: &mut [u8], sigma: f32) {
    let mut put = |at: usize, value: f32| block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
    match dtype {
        DType::Q8_0 => put(0, sigma / 73.9),
        DType::Q4_0 => put(0, sigma / 4.61),
        DType::Q4_1 => {
            put(0, sigma / 4.61);
            put(2, -7.5 * sigma / 4.61);
        }
        DType::Q5_0 => put(0, sigma / 9.23),
        DType::Q5_1 => {
            put(0, sigma / 9.23);
            put(2, -15.5 * sigma / 9.23);
        }
        DType::Q4K | DType::Q5K => {
            let (deviation, centre) = if dtype == DType::Q4K { (4.61, 7.5) } else { (9.23, 15.5) };
            put(0, sigma / deviation / 33.0);
            put(2, centre * sigma / deviation / 33.0);
            // Every 6-bit scale and minimum is 33 = 0b10_0001: see `k_scale_min`.
            block[4..12].fill(0b1010_0001);
            block[12..16].fill(0b0001_0001);
        }
        DType::Q6K => {
            put(208, sigma / 18.5 / 32.0);
            block[192..208].fill(32);
        }
        DType::MxFp4 => block[0] = (127.0 + (sigma / 2.93).log2().round()).clamp(1.0, 254.0) as u8,
        _ => {}
    }
}
