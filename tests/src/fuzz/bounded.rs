//! Running error bounds: the interpreter over numbers that carry how far f32 arithmetic may be from them.
//!
//! A value with error 0 is exact: whatever the order of sums, a right kernel gives these very bits. Where a decision (a
//! comparison, a cast to an integer) hangs on less than the error, the thread is marked and the case must be drawn again.

use std::cell::Cell;
use std::cmp::Ordering;
use weldment_ir::DType;
use weldment_ir::interpret::{Domain, F64, Function, Options, RopeSpec};

/// A real number and the most that a right computation in f32 may be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// The number, computed in f64.
    pub value: f64,
    /// Absolute.
    pub error: f64,
}

/// Half an ulp of 1.0 in f32.
const UNIT: f64 = f32::EPSILON as f64 / 2.0;
/// Results below the normal range of f32 may be flushed.
const TINY: f64 = f32::MIN_POSITIVE as f64;
/// A sum whose terms, in units of the smallest bit of any, add up to no more than this is exact in every order; two of
/// f32's 24 bits are kept for what a fused kernel adds before or after.
const EXACT_SUM: f64 = (1u64 << 22) as f64;

/// The domain of [`Bound`]. `Options::ideal` names the dtypes whose roundings may happen or not, as rules of class `Rounding`
/// move them; other roundings happen where the graph says.
#[derive(Clone, Copy, Debug)]
pub struct Bounded;

thread_local! {
    static UNDECIDED: Cell<bool> = const { Cell::new(false) };
}

/// True if a decision hung on less than the error since the last call on this thread.
pub fn take_undecided() -> bool {
    UNDECIDED.take()
}

fn is_single(v: f64) -> bool {
    f64::from(v as f32) == v && (v == 0.0 || v.abs() >= TINY)
}

/// The weight of the lowest bit of `v`; infinite for 0.
fn lowest_bit(v: f64) -> f64 {
    if v == 0.0 || !v.is_finite() {
        return f64::INFINITY;
    }
    let bits = v.to_bits();
    let exponent = ((bits >> 52) & 0x7ff) as i32 - 1075;
    let mantissa = (bits & ((1 << 52) - 1)) | (1 << 52);
    2f64.powi(exponent + mantissa.trailing_zeros() as i32)
}

impl Bound {
    fn exact(value: f64) -> Bound {
        Bound { value, error: 0.0 }
    }

    /// A result computed with a relative error of `units` units beside what its operands bring.
    fn computed(value: f64, propagated: f64, units: f64) -> Bound {
        let error = propagated + units * UNIT * (value.abs() + propagated) + TINY;
        // Past f32's range: no bound.
        Bound { value, error: if value.abs() + error < f64::from(f32::MAX) { error } else { f64::INFINITY } }
    }

    fn is_exact(&self) -> bool {
        self.error == 0.0
    }
}

/// A sum of `terms`, whose magnitudes add up to `mass` and whose lowest bit is `lowest`.
fn summed(value: f64, propagated: f64, mass: f64, lowest: f64, terms: usize) -> Bound {
    if propagated == 0.0 && (mass == 0.0 || mass / lowest <= EXACT_SUM) && mass < 1e30 && (lowest > TINY) {
        return Bound::exact(value);
    }
    let units = terms as f64 + 16.0;
    let bound = Bound::computed(value, propagated, 1.0);
    Bound { error: bound.error + units * (UNIT * (mass + propagated) + TINY), ..bound }
}

impl Domain for Bounded {
    type Value = Bound;
    const NAME: &'static str = "bounded";
    const ZERO: Bound = Bound { value: 0.0, error: 0.0 };

    fn real(x: f64) -> Option<Bound> {
        // A constant such as 0.1 is an f32 in the code.
        Some(if is_single(x) { Bound::exact(x) } else { Bound::computed(x, 0.0, 1.0) })
    }
    fn int(n: i64) -> Bound {
        let x = n as f64;
        if is_single(x) { Bound::exact(x) } else { Bound::computed(x, 0.0, 1.0) }
    }
    fn add(a: Bound, b: Bound) -> Bound {
        let (value, mass) = (a.value + b.value, a.value.abs() + b.value.abs());
        let propagated = a.error + b.error;
        if propagated == 0.0 && mass / lowest_bit(a.value).min(lowest_bit(b.value)) <= EXACT_SUM && is_single(value) {
            return Bound::exact(value);
        }
        Bound::computed(value, propagated, 1.0)
    }
    fn sub(a: Bound, b: Bound) -> Bound {
        Bounded::add(a, Bounded::neg(b))
    }
    fn mul(a: Bound, b: Bound) -> Bound {
        let value = a.value * b.value;
        let propagated = a.value.abs() * b.error + b.value.abs() * a.error + a.error * b.error;
        if propagated == 0.0 && is_single(value) {
            return Bound::exact(value);
        }
        Bound::computed(value, propagated, 1.0)
    }
    fn neg(a: Bound) -> Bound {
        Bound { value: -a.value, ..a }
    }
    fn div(a: Bound, b: Bound) -> Option<Bound> {
        let value = a.value / b.value;
        if a.is_exact() && b.is_exact() && is_single(value) && value * b.value == a.value {
            return Some(Bound::exact(value));
        }
        let least = b.value.abs() - b.error;
        // What is divided by what may be 0 has no bound, whatever dtype it is rounded to.
        if least <= 0.0 {
            UNDECIDED.set(true);
        }
        let propagated = if least > 0.0 { (a.error + value.abs() * b.error) / least } else { f64::INFINITY };
        Some(Bound::computed(value, propagated, 3.0))
    }
    fn greater(a: Bound, b: Bound) -> bool {
        let error = a.error + b.error;
        if error > 0.0 && (a.value - b.value).abs() <= error {
            UNDECIDED.set(true);
        }
        a.value > b.value
    }
    fn order(a: Bound, b: Bound) -> Ordering {
        // Asks `greater` to note a near-tie.
        let _ = Bounded::greater(a, b);
        F64::order(a.value, b.value)
    }
    fn max(a: Bound, b: Bound) -> Bound {
        let (high, low) = if b.value > a.value { (b, a) } else { (a, b) };
        // The other one may be on top, by no more than its own error.
        Bound { error: high.error.max(low.value + low.error - high.value), ..high }
    }
    fn min(a: Bound, b: Bound) -> Bound {
        Bounded::neg(Bounded::max(Bounded::neg(a), Bounded::neg(b)))
    }
    fn sum(terms: impl Iterator<Item = Bound>) -> Bound {
        let (mut value, mut propagated, mut mass, mut lowest, mut count) = (0.0, 0.0, 0.0, f64::INFINITY, 0);
        for t in terms {
            value += t.value;
            propagated += t.error;
            mass += t.value.abs();
            lowest = lowest_bit(t.value).min(lowest);
            count += 1;
        }
        summed(value, propagated, mass, lowest, count)
    }
    fn apply(f: Function, a: Bound) -> Bound {
        let value = f.at(a.value);
        let (low, high) = (a.value - a.error, a.value + a.error);
        let propagated = if a.is_exact() { 0.0 } else { f.slope(low, high) * a.error };
        // Kernels' polynomials err by so many units.
        let bound = |units: f64| Bound::computed(value, propagated, units);
        let beside = |bound: Bound, error: f64| Bound { error: bound.error + error, ..bound };
        match f {
            Function::Exp => bound(6.0),
            // Where e^-a overflows the kernel gives 0, a * e^a short of it.
            Function::Silu => beside(bound(12.0), 1e-36),
            // 1 + tanh cancels on the left, so errors count against a.
            Function::Gelu => beside(bound(4.0), 16.0 * UNIT * a.value.abs()),
            Function::Sigmoid => bound(12.0),
            Function::Rsqrt => bound(4.0),
            _ => bound(24.0),
        }
    }

    fn dot(a: &[Bound], b: &[Bound]) -> Bound {
        let (mut value, mut propagated, mut mass, mut lowest) = (0.0, 0.0, 0.0, f64::INFINITY);
        for (x, y) in a.iter().zip(b) {
            let product = x.value * y.value;
            value += product;
            mass += product.abs();
            propagated += x.value.abs() * y.error + y.value.abs() * x.error + x.error * y.error;
            lowest = lowest_bit(product).min(lowest);
        }
        summed(value, propagated, mass, lowest, a.len().min(b.len()))
    }
    fn softmax(row: &mut [Bound]) -> Option<()> {
        let top = row.iter().map(|v| v.value).fold(f64::NEG_INFINITY, f64::max);
        let spread = row.iter().map(|v| v.error).fold(0.0, f64::max);
        let terms = row.len() as f64;
        let (mut sum, mut drift) = (0.0, 0.0);
        for v in row.iter_mut() {
            let distance = (v.value - top).abs() + spread;
            // The difference to the highest is rounded before it is raised.
            let relative = (v.error + UNIT * (distance + v.value.abs())).exp_m1() + 8.0 * UNIT;
            *v = Bound { value: (v.value - top).exp(), error: relative };
            sum += v.value;
            drift += v.value * relative;
        }
        let drift = drift / sum + (terms + 16.0) * UNIT;
        for v in row.iter_mut() {
            let value = v.value / sum;
            let relative = if drift < 0.5 { (v.error + drift) / (1.0 - drift) } else { f64::INFINITY };
            *v = Bound::computed(value, value * relative, 2.0);
        }
        Some(())
    }
    fn round(values: &mut [Bound], to: DType, options: &Options) {
        let ideal = options.ideal.contains(&to);
        match to {
            // Every op has counted its own rounding; what is exact in f64 alone has not been rounded yet.
            DType::F32 => {
                values
                    .iter_mut()
                    .filter(|v| v.is_exact() && !is_single(v.value))
                    .for_each(|v| v.error = UNIT * v.value.abs());
            }
            DType::Q8A => values.chunks_mut(DType::Q8A.block_elements()).for_each(|block| round_block(block, ideal)),
            _ => values.iter_mut().for_each(|v| *v = round_half(*v, to, ideal)),
        }
    }
    fn quantise(group: &mut [Bound], to: DType, options: &Options) -> Bound {
        // The extremes of every magnitude: each end of a code's interval is divided by a scale of either.
        let of = |value: &dyn Fn(&Bound) -> f64| {
            let mut values: Vec<f64> = group.iter().map(value).collect();
            let scale = F64::quantise(&mut values, to, options);
            (values, scale)
        };
        let (codes, scale) = of(&|v| v.value);
        if group.iter().all(Bound::is_exact) {
            group.iter_mut().zip(codes).for_each(|(v, code)| *v = Bound::exact(code));
            return Bound::exact(scale);
        }
        let (low, high) = (of(&|v| (v.value.abs() - v.error).max(0.0)).1, of(&|v| v.value.abs() + v.error).1);
        let ends = |v: &Bound| [v.value - v.error, v.value + v.error];
        for (v, code) in group.iter_mut().zip(codes) {
            let quotients = ends(v).into_iter().flat_map(|x| [x / low, x / high]).map(|x| x * (1.0 + 4.0 * UNIT));
            let error = quotients.map(|x| (rounded(x, to) - code).abs()).fold(0.0, f64::max);
            *v = Bound { value: code, error: if low > 0.0 { error } else { f64::INFINITY } };
        }
        Bound { value: scale, error: (high - scale).max(scale - low) + 2.0 * UNIT * scale }
    }
    fn to_int(a: Bound, dtype: DType) -> i64 {
        let n = F64::to_int(a.value, dtype);
        if [a.value - a.error, a.value + a.error].iter().any(|v| F64::to_int(*v, dtype) != n) {
            UNDECIDED.set(true);
        }
        n
    }
    fn rope(spec: &RopeSpec, row: usize, column: usize, factor: Option<Bound>) -> Bound {
        let value = F64::rope(spec, row, column, factor.map(|f| f.value));
        // Frequencies are at most 1 / factor, and angles change as they do.
        // A table by factors of the step is computed in f32.
        let propagated = factor.map_or(0.0, |f| row as f64 * f.error / (f.value * f.value).abs() + 8.0 * UNIT);
        Bound::computed(value, propagated, 1.0)
    }
    fn same(a: Bound, b: Bound) -> bool {
        F64::same(a.value, b.value)
    }
}

/// `x` in a plain dtype.
fn rounded(x: f64, to: DType) -> f64 {
    let mut one = [x];
    F64::round(&mut one, to, &Options::default());
    one[0]
}

/// A plain dtype narrower than f32. Rounding is monotone: where both ends of the interval round alike, nothing is left of it.
fn round_half(v: Bound, to: DType, ideal: bool) -> Bound {
    let (low, mid, high) = (rounded(v.value - v.error, to), rounded(v.value, to), rounded(v.value + v.error, to));
    if !(low.is_finite() && high.is_finite()) {
        return Bound { error: f64::INFINITY, ..v };
    }
    if !ideal {
        return Bound { value: mid, error: (high - mid).max(mid - low) };
    }
    if v.is_exact() && mid == v.value {
        return v;
    }
    // Anywhere in the interval, half a step of the dtype is the most.
    let unit = if to == DType::BF16 { 2f64.powi(-9) } else { 2f64.powi(-12) };
    let subnormal = if to == DType::BF16 { TINY } else { 2f64.powi(-25) };
    Bound { error: v.error + 2.0 * unit * (v.value.abs() + v.error) + subnormal, ..v }
}

/// A q8a block: exact values become what the format holds, others keep their value and gain half a step of the low plane.
fn round_block(block: &mut [Bound], ideal: bool) {
    let exact = !ideal && block.iter().all(Bound::is_exact);
    let top = block.iter().map(|v| v.value.abs() + v.error).fold(0.0, f64::max);
    if exact {
        let mut values: Vec<f64> = block.iter().map(|v| v.value).collect();
        F64::round(&mut values, DType::Q8A, &Options::default());
        let step = top / (127.0 * 254.0);
        for (v, value) in block.iter_mut().zip(values) {
            // Kernels scale by 127 / amax, the format by 1 / (amax / 127): so near a tie either side is right.
            let from_tie = ((v.value / step).rem_euclid(1.0) - 0.5).abs();
            let tie = if step > 0.0 && from_tie < 0.02 { 1.01 * step } else { 0.0 };
            // (high + low / 254) * d is seldom an f32; whoever reads it rounds.
            *v = Bound { value, error: 4.0 * UNIT * value.abs() + tie };
        }
        return;
    }
    let half_step = top / (2.0 * 127.0 * 254.0);
    for v in block {
        *v = Bound::computed(v.value, v.error + 1.01 * half_step, 8.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(values: &[f64]) -> Vec<Bound> {
        values.iter().map(|v| Bound::exact(*v)).collect()
    }

    #[test]
    fn dyadic_sums_are_exact_until_they_overflow_the_mantissa() {
        let a = exact(&[0.5, -1.25, 3.0]);
        assert_eq!(Bounded::dot(&a, &a), Bound::exact(0.25 + 1.5625 + 9.0));
        let wide = exact(&[16_777_216.0, 1.0]);
        assert!(Bounded::dot(&wide, &exact(&[1.0, 1.0])).error >= 1.0);
    }

    #[test]
    fn rounding_removes_what_is_left_of_an_interval_or_keeps_a_step() {
        let near = Bound { value: 1.001, error: 1e-6 };
        assert_eq!(round_half(near, DType::BF16, false), Bound::exact(1.0));
        let tie = Bound { value: 1.0 + 2f64.powi(-8), error: 1e-6 };
        assert_eq!(round_half(tie, DType::BF16, false).error, 2f64.powi(-7));
        assert!(round_half(near, DType::BF16, true).error > 0.001);
    }

    #[test]
    fn near_ties_are_noted() {
        assert!(!Bounded::greater(Bound::exact(1.0), Bound::exact(1.0)) && !take_undecided());
        let blurred = Bound { value: 1.0, error: 1e-7 };
        Bounded::greater(blurred, Bound::exact(1.0 + 1e-8));
        assert!(take_undecided() && !take_undecided());
        Bounded::to_int(Bound { value: 2.5, error: 1e-7 }, DType::I32);
        assert!(take_undecided());
    }

    /// f32 arithmetic, in both orders, stays within the bounds of a long sum, a softmax and a quotient.
    #[test]
    fn single_precision_stays_within_the_bounds() {
        let values: Vec<f64> = (0..200).map(|i| f64::from((f64::from(i) * 0.37).sin() as f32)).collect();
        let bounds = exact(&values);
        let product = Bounded::dot(&bounds, &bounds);
        for order in [values.clone(), values.iter().rev().copied().collect()] {
            let single: f32 = order.iter().map(|v| (*v as f32) * (*v as f32)).sum();
            assert!((f64::from(single) - product.value).abs() <= product.error);
        }
        let mut row = bounds.clone();
        Bounded::softmax(&mut row);
        let sum: f32 = values.iter().map(|v| (*v as f32 - 1.0).exp()).sum();
        for (v, b) in values.iter().zip(&row) {
            let single = (*v as f32 - 1.0).exp() / sum;
            assert!((f64::from(single) - b.value).abs() <= b.error && b.error < 1e-4 * b.value);
        }
    }
}
