//! GGML's reference quantisers for three formats, enough to build test models without another tool, and our own of activations.

use half::f16;

/// 1 / `d`, or 0 for a block of zeros.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Appends the activation block of 32 `values`: high plane, low plane in steps of 1/254, scale amax / 127, sum of the values.
pub(super) fn q8a(values: &[f32], out: &mut Vec<u8>) {
    let d = values.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
    let id = inverse(d);
    let high = |v: &f32| (v * id).round_ties_even().clamp(-127.0, 127.0);
    let low = |v: &f32| ((v * id - high(v)) * 254.0).round_ties_even().clamp(-127.0, 127.0);
    out.extend(values.iter().map(|v| high(v) as i8 as u8));
    out.extend(values.iter().map(|v| low(v) as i8 as u8));
    let sum: f32 = values.iter().map(|v| high(v) + low(v) / 254.0).sum();
    out.extend(d.to_le_bytes());
    out.extend((d * sum).to_le_bytes());
}

/// Appends the block of 32 `values`.
pub(super) fn q8_0(values: &[f32], out: &mut Vec<u8>) {
    let d = values.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
    let id = inverse(d);
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(values.iter().map(|v| (v * id).round() as i8 as u8));
}

/// Appends 16 bytes: element `i` in the low nibble, `i` + 16 in the high one.
fn nibbles(values: &[f32], out: &mut Vec<u8>, quant: impl Fn(f32) -> u8) {
    let (low, high) = values.split_at(16);
    out.extend(low.iter().zip(high).map(|(l, h)| quant(*l).min(15) | quant(*h).min(15) << 4));
}

/// Appends the block of 32 `values`.
pub(super) fn q4_0(values: &[f32], out: &mut Vec<u8>) {
    // The value of largest magnitude maps to -8 exactly, whatever its sign.
    let extreme = values.iter().fold(0.0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let d = extreme / -8.0;
    let id = inverse(d);
    out.extend(f16::from_f32(d).to_le_bytes());
    nibbles(values, out, |v| (v * id + 8.5) as u8);
}

/// Appends the block of 32 `values`.
pub(super) fn q4_1(values: &[f32], out: &mut Vec<u8>) {
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (max - min) / 15.0;
    let id = inverse(d);
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(f16::from_f32(min).to_le_bytes());
    nibbles(values, out, |v| ((v - min) * id + 0.5) as u8);
}
