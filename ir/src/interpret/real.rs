//! The f64 domain: the reference for what a graph computes.

use super::domain::{Domain, Options, RopeSpec};
use super::function::Function;
use super::tensor::wrap;
use crate::DType;
use crate::codec::{MiniFloat, Overflow};
use half::{bf16, f16};
use std::cmp::Ordering;

/// IEEE binary64.
#[derive(Clone, Copy, Debug)]
pub struct F64;

impl Domain for F64 {
    type Value = f64;
    const NAME: &'static str = "f64";
    const ZERO: f64 = 0.0;

    #[inline]
    fn real(x: f64) -> Option<f64> {
        Some(x)
    }
    fn int(n: i64) -> f64 {
        n as f64
    }
    #[inline]
    fn add(a: f64, b: f64) -> f64 {
        a + b
    }
    #[inline]
    fn sub(a: f64, b: f64) -> f64 {
        a - b
    }
    #[inline]
    fn mul(a: f64, b: f64) -> f64 {
        a * b
    }
    #[inline]
    fn neg(a: f64) -> f64 {
        -a
    }
    #[inline]
    fn div(a: f64, b: f64) -> Option<f64> {
        Some(a / b)
    }
    #[inline]
    fn greater(a: f64, b: f64) -> bool {
        a > b
    }
    fn order(a: f64, b: f64) -> Ordering {
        a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
    }
    fn apply(f: Function, a: f64) -> f64 {
        f.at(a)
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        // Eight independent sums, so that the loop vectorises.
        let n = a.len().min(b.len());
        let (a, b) = (&a[..n], &b[..n]);
        let mut sums = [0.0f64; 8];
        let (a8, a_rest) = a.as_chunks::<8>();
        let (b8, b_rest) = b.as_chunks::<8>();
        for (x, y) in a8.iter().zip(b8) {
            for i in 0..8 {
                sums[i] += x[i] * y[i];
            }
        }
        let rest: f64 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
        sums.iter().sum::<f64>() + rest
    }

    fn softmax(row: &mut [f64]) -> Option<()> {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut sum = 0.0;
        for v in row.iter_mut() {
            *v = (*v - max).exp();
            sum += *v;
        }
        row.iter_mut().for_each(|v| *v /= sum);
        Some(())
    }

    fn round(values: &mut [f64], to: DType, options: &Options) {
        if options.ideal.contains(&to) || (to == DType::F32 && !options.round_f32) {
            return;
        }
        if to == DType::Q8A {
            values.chunks_mut(DType::Q8A.block_elements()).for_each(round_q8a);
        } else {
            values.iter_mut().for_each(|v| *v = round_to(to, *v));
        }
    }

    fn quantise(group: &mut [f64], to: DType, options: &Options) -> f64 {
        let amax = group.iter().fold(0.0f32, |m, v| m.max(v.abs() as f32));
        // In f32, as kernels compute it: a tie must fall to the same side in both.
        let scale = match to {
            DType::F4E2M1 => f64::from(mx_scale(amax)),
            _ => f64::from(amax / round_to(to, f64::MAX) as f32),
        };
        let ideal = options.ideal.contains(&to);
        for v in group {
            *v = match to {
                _ if scale < f64::from(f32::MIN_POSITIVE) && to != DType::F4E2M1 => 0.0,
                _ if ideal => *v / scale,
                DType::F4E2M1 => round_to(to, *v / scale),
                _ => round_to(to, f64::from(*v as f32 / scale as f32)),
            };
        }
        if scale < f64::from(f32::MIN_POSITIVE) && to != DType::F4E2M1 { 0.0 } else { scale }
    }

    fn to_int(a: f64, dtype: DType) -> i64 {
        if dtype == DType::Bool {
            return i64::from(a != 0.0);
        }
        // `as` saturates and takes NaN to 0.
        let n = a.round_ties_even() as i64;
        let (min, max) = match dtype {
            DType::I8 => (i64::from(i8::MIN), i64::from(i8::MAX)),
            DType::U8 => (0, i64::from(u8::MAX)),
            DType::I32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
            DType::U32 => (0, i64::from(u32::MAX)),
            _ => (i64::MIN, i64::MAX),
        };
        wrap(dtype, n.clamp(min, max))
    }

    fn rope(spec: &RopeSpec, row: usize, column: usize, factor: Option<f64>) -> f64 {
        let half = spec.dim / 2;
        let pair = column % half;
        let mut frequency = spec.theta.powf(-2.0 * pair as f64 / spec.dim as f64) / factor.unwrap_or(1.0);
        if spec.factor != 1.0 {
            frequency = llama3_frequency(spec, frequency);
        }
        let angle = row as f64 * frequency;
        if column < half { angle.cos() } else { angle.sin() }
    }

    fn same(a: f64, b: f64) -> bool {
        a == b || (a.is_nan() && b.is_nan())
    }
}

/// Llama 3.1's frequency scaling (transformers, modeling_rope_utils, `_compute_llama3_parameters`).
fn llama3_frequency(spec: &RopeSpec, frequency: f64) -> f64 {
    let original = spec.original as f64;
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    if wavelength > original / spec.low {
        frequency / spec.factor
    } else if wavelength < original / spec.high {
        frequency
    } else {
        let smooth = (original / wavelength - spec.low) / (spec.high - spec.low);
        (1.0 - smooth) * frequency / spec.factor + smooth * frequency
    }
}

/// `v` as f32, rounded to odd: what is lost leaves its mark in the last bit, so that rounding again, to fewer bits, falls to the
/// side that rounding `v` itself does.
fn to_odd(v: f64) -> f32 {
    let nearest = v as f32;
    if f64::from(nearest) == v || v.is_nan() {
        return nearest;
    }
    let outward = f64::from(nearest).abs() > v.abs();
    let toward_zero = if outward { nearest.to_bits() - 1 } else { nearest.to_bits() };
    f32::from_bits(toward_zero | 1)
}

/// `v` rounded to a plain float dtype: nearest even, f8 and f4 saturating.
pub(crate) fn round_to(dtype: DType, v: f64) -> f64 {
    let mini = |format: MiniFloat| f64::from(format.decode(format.encode(to_odd(v), Overflow::Saturate)));
    match dtype {
        DType::F32 => f64::from(v as f32),
        // Not `from_f64`, which drops the last 32 bits of v and so takes what is just over a tie for the tie.
        DType::F16 => f16::from_f32(to_odd(v)).to_f64(),
        DType::BF16 => bf16::from_f32(to_odd(v)).to_f64(),
        DType::F8E4M3 => mini(MiniFloat::E4M3),
        DType::F8E4M3Fnuz => mini(MiniFloat::E4M3_FNUZ),
        DType::F8E5M2 => mini(MiniFloat::E5M2),
        DType::F8E5M2Fnuz => mini(MiniFloat::E5M2_FNUZ),
        DType::F4E2M1 => mini(MiniFloat::E2M1),
        // A scale is a positive power of two; anything without a logarithm takes the smallest.
        DType::F8E8M0 if v > 0.0 => 2f64.powf(v.log2().round_ties_even().clamp(-127.0, 127.0)),
        DType::F8E8M0 => 2f64.powi(-127),
        _ => v,
    }
}

/// The shared scale of a group of f4e2m1 whose largest magnitude is `amax`: 2^(floor(log2 amax) - 2), 4 being the largest power of two in
/// f4e2m1 (OCP Microscaling Formats 1.0, section 6.3), with an exponent of -127 at least.
fn mx_scale(amax: f32) -> f32 {
    // A subnormal amax has field 0, which is below the least exponent as well.
    let field = (amax.to_bits() >> 23).min(254) as i32;
    crate::codec::e8m0_to_f32((field - 2).max(0) as u8)
}

/// One q8a block: d = amax / 127 in f32, high = round(v / d), low = round(254 (v / d - high)).
fn round_q8a(block: &mut [f64]) {
    let d = block.iter().fold(0.0f32, |m, v| m.max(v.abs() as f32)) / 127.0;
    // 1/d in f32, as the codec and the kernels compute it: a tie must fall to the same side in all three.
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    for v in block {
        let scaled = *v as f32 * inverse;
        let high = scaled.round_ties_even().clamp(-127.0, 127.0);
        let low = ((scaled - high) * 254.0).round_ties_even().clamp(-127.0, 127.0);
        *v = (f64::from(high) + f64::from(low) / 254.0) * f64::from(d);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Just beside a tie, by less than f32 can tell, each side rounds to its own neighbour.
    #[test]
    fn values_beside_a_tie_round_to_their_side() {
        let formats = [(DType::BF16, 8), (DType::F16, 11), (DType::F8E4M3, 4), (DType::F8E5M2, 3)];
        for (dtype, bits) in formats {
            let step = 2f64.powi(1 - bits);
            for (low, sign) in [(1.0, 1.0), (1.0 + step, 1.0), (1.0, -1.0), (1.0 + step, -1.0)] {
                let tie = low + step / 2.0;
                for (v, rounded) in [(tie - 1e-12, low), (tie + 1e-12, low + step), (tie + 1e-7, low + step)] {
                    assert_eq!(round_to(dtype, sign * v), sign * rounded, "{v} in {dtype}");
                }
            }
        }
        assert_eq!(round_to(DType::BF16, 1e39), f64::INFINITY);
        assert_eq!(round_to(DType::F16, -1e300), f64::NEG_INFINITY);
        assert_eq!(round_to(DType::F16, 2f64.powi(-26)), 0.0);
        assert_eq!(round_to(DType::F16, 2f64.powi(-25) + 1e-15), 2f64.powi(-24));
        assert!(round_to(DType::BF16, f64::NAN).is_nan());
    }
}
