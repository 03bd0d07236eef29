//! Decoders of GGUF's block formats, one block each. Layouts are those of `ggml-common.h` and `ggml-quants.c`.

use half::f16;

/// Bytes 2 `i` and 2 `i` + 1 as f16.
fn half_at(block: &[u8], i: usize) -> f32 {
    f16::from_le_bytes([block[2 * i], block[2 * i + 1]]).to_f32()
}

/// Two planes of 32 x i8, f32 scale, f32 sum of the values (which serves dot products and is not needed here).
pub(super) fn q8a(block: &[u8; 72], out: &mut [f32; 32]) {
    let d = f32::from_le_bytes([block[64], block[65], block[66], block[67]]);
    for ((value, high), low) in out.iter_mut().zip(&block[..32]).zip(&block[32..64]) {
        *value = (f32::from(*high as i8) + f32::from(*low as i8) / 254.0) * d;
    }
}

/// f16 scale, 32 x i8.
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (value, q) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(*q as i8) * d;
    }
}

/// The low nibbles are elements 0..16, the high nibbles 16..32.
fn nibbles(quants: &[u8], out: &mut [f32; 32], value: impl Fn(u8, usize) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for (i, q) in quants.iter().take(16).enumerate() {
        low[i] = value(q & 15, i);
        high[i] = value(q >> 4, i + 16);
    }
}

/// f16 scale, 32 x u4 offset by 8.
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    nibbles(&block[2..], out, |q, _| (f32::from(q) - 8.0) * d);
}

/// f16 scale, f16 minimum, 32 x u4.
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 1));
    nibbles(&block[4..], out, |q, _| f32::from(q) * d + m);
}

/// The fifth bits of a Q5 block: one bit an element, element 0 lowest.
fn fifth_bit(bits: [u8; 4], i: usize) -> u8 {
    ((u32::from_le_bytes(bits) >> i & 1) as u8) << 4
}

/// f16 scale, 32 fifth bits, 32 x u4, offset by 16.
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let high = [block[2], block[3], block[4], block[5]];
    nibbles(&block[6..], out, |q, i| (f32::from(q | fifth_bit(high, i)) - 16.0) * d);
}

/// f16 scale, f16 minimum, 32 fifth bits, 32 x u4.
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 1));
    let high = [block[4], block[5], block[6], block[7]];
    nibbles(&block[8..], out, |q, i| f32::from(q | fifth_bit(high, i)) * d + m);
}

/// The 6-bit scale and minimum of group `j` in 0..8, packed in 12 bytes: groups 0..4 have six bits in place, groups 4..8 a
/// nibble each in the last four bytes and their top two bits above the first eight.
fn scale_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        ((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// f16 scale of scales, f16 scale of minima, 12 packed bytes, 256 x u4: each 32 bytes hold two groups, low nibbles first.
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 1));
    let (packed, quants) = (&block[4..16], &block[16..]);
    for (group, values) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(packed, group);
        let (scale, min) = (d * scale, dmin * min);
        let shift = 4 * (group % 2);
        for (value, q) in values.iter_mut().zip(&quants[32 * (group / 2)..]) {
            *value = scale * f32::from(q >> shift & 15) - min;
        }
    }
}

/// As [`q4_k`] with a fifth bit: bit `g` of byte `i` in 32 belongs to element `i` of group `g`.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 1));
    let (packed, high, quants) = (&block[4..16], &block[16..48], &block[48..]);
    for (group, values) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(packed, group);
        let (scale, min) = (d * scale, dmin * min);
        let shift = 4 * (group % 2);
        for (i, (value, q)) in values.iter_mut().zip(&quants[32 * (group / 2)..]).enumerate() {
            let q = (q >> shift & 15) | (high[i] >> group & 1) << 4;
            *value = scale * f32::from(q) - min;
        }
    }
}

/// 256 x 6 bit offset by 32 (128 bytes of low nibbles, 64 of upper pairs), 16 x i8 scales, f16 scale of scales.
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 104);
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    for (group, values) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[group] as i8);
        // 128 elements (8 groups) share 64 low bytes and 32 high bytes; a quarter is 32 elements (2 groups).
        let (half, quarter, start) = (group / 8, group / 2 % 4, 16 * (group % 2));
        for (i, value) in values.iter_mut().enumerate() {
            let l = start + i;
            let nibble = low[64 * half + 32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
            let pair = high[32 * half + l] >> (2 * quarter) & 3;
            *value = scale * (f32::from(nibble | pair << 4) - 32.0);
        }
    }
}

/// Twice the E2M1 values, so that they are integers; the scale is halved to match.
const E2M1_DOUBLED: [f32; 16] = [0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.];

/// E8M0 scale, 32 x E2M1. As in GGML, scale code 255 is 2^128 here rather than OCP's NaN.
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let half_scale = match block[0] {
        code @ 0..2 => f32::from_bits(0x0020_0000 << code),
        code => f32::from_bits(u32::from(code - 1) << 23),
    };
    nibbles(&block[1..], out, |q, _| E2M1_DOUBLED[usize::from(q)] * half_scale);
}
