//! The numbers that rules are held against: [`Single`], f32 arithmetic step by step, for what must keep its bits, and
//! [`Algebra`], the ring with silu as what it is by definition, for what must be the same real number.

use std::cmp::Ordering;
use weldment_ir::DType;
use weldment_ir::interpret::{Domain, F64, Function, Options, Ring, RingValue, RopeSpec};

/// IEEE binary32: every step of arithmetic is rounded to f32, as kernels compute.
pub(super) struct Single;

impl Domain for Single {
    type Value = f32;
    const NAME: &'static str = "f32";
    const ZERO: f32 = 0.0;

    fn real(x: f64) -> Option<f32> {
        Some(x as f32)
    }
    fn int(n: i64) -> f32 {
        n as f32
    }
    fn add(a: f32, b: f32) -> f32 {
        a + b
    }
    fn sub(a: f32, b: f32) -> f32 {
        a - b
    }
    fn mul(a: f32, b: f32) -> f32 {
        a * b
    }
    fn neg(a: f32) -> f32 {
        -a
    }
    fn div(a: f32, b: f32) -> Option<f32> {
        Some(a / b)
    }
    fn greater(a: f32, b: f32) -> bool {
        a > b
    }
    fn order(a: f32, b: f32) -> Ordering {
        F64::order(f64::from(a), f64::from(b))
    }
    fn apply(f: Function, a: f32) -> f32 {
        f.at(f64::from(a)) as f32
    }
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).fold(0.0, |sum, (x, y)| sum + x * y)
    }
    fn softmax(row: &mut [f32]) -> Option<()> {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|v| *v = Single::apply(Function::Exp, *v - max));
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|v| *v /= sum);
        Some(())
    }
    fn round(values: &mut [f32], to: DType, options: &Options) {
        if to == DType::F32 {
            return;
        }
        let mut exact: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
        F64::round(&mut exact, to, options);
        values.iter_mut().zip(exact).for_each(|(v, e)| *v = e as f32);
    }
    fn quantise(group: &mut [f32], to: DType, options: &Options) -> f32 {
        let mut exact: Vec<f64> = group.iter().map(|v| f64::from(*v)).collect();
        let scale = F64::quantise(&mut exact, to, options);
        group.iter_mut().zip(exact).for_each(|(v, code)| *v = code as f32);
        scale as f32
    }
    fn to_int(a: f32, dtype: DType) -> i64 {
        F64::to_int(f64::from(a), dtype)
    }
    fn rope(spec: &RopeSpec, row: usize, column: usize, factor: Option<f32>) -> f32 {
        F64::rope(spec, row, column, factor.map(f64::from)) as f32
    }
    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
    }
}

/// The ring in which silu(a) is a * sigmoid(a) instead of a hash of its own.
pub(super) struct Algebra;

impl Domain for Algebra {
    type Value = RingValue;
    const NAME: &'static str = "ring";
    const ZERO: RingValue = Ring::ZERO;

    fn real(x: f64) -> Option<RingValue> {
        Ring::real(x)
    }
    fn int(n: i64) -> RingValue {
        Ring::int(n)
    }
    fn add(a: RingValue, b: RingValue) -> RingValue {
        Ring::add(a, b)
    }
    fn sub(a: RingValue, b: RingValue) -> RingValue {
        Ring::sub(a, b)
    }
    fn mul(a: RingValue, b: RingValue) -> RingValue {
        Ring::mul(a, b)
    }
    fn neg(a: RingValue) -> RingValue {
        Ring::neg(a)
    }
    fn div(a: RingValue, b: RingValue) -> Option<RingValue> {
        Ring::div(a, b)
    }
    fn greater(a: RingValue, b: RingValue) -> bool {
        Ring::greater(a, b)
    }
    fn order(a: RingValue, b: RingValue) -> Ordering {
        Ring::order(a, b)
    }
    fn apply(f: Function, a: RingValue) -> RingValue {
        match f {
            Function::Silu => Ring::mul(a, Ring::apply(Function::Sigmoid, a)),
            _ => Ring::apply(f, a),
        }
    }
    fn dot(a: &[RingValue], b: &[RingValue]) -> RingValue {
        Ring::dot(a, b)
    }
    fn softmax(row: &mut [RingValue]) -> Option<()> {
        Ring::softmax(row)
    }
    fn round(values: &mut [RingValue], to: DType, options: &Options) {
        Ring::round(values, to, options);
    }
    fn quantise(group: &mut [RingValue], to: DType, options: &Options) -> RingValue {
        Ring::quantise(group, to, options)
    }
    fn to_int(a: RingValue, dtype: DType) -> i64 {
        Ring::to_int(a, dtype)
    }
    fn rope(spec: &RopeSpec, row: usize, column: usize, factor: Option<RingValue>) -> RingValue {
        Ring::rope(spec, row, column, factor)
    }
    fn same(a: RingValue, b: RingValue) -> bool {
        Ring::same(a, b)
    }
}

#[test]
fn silu_is_a_times_sigmoid() {
    for i in -400..400 {
        let a = f64::from(i) / 8.0;
        assert!((Function::Silu.at(a) - a * Function::Sigmoid.at(a)).abs() <= 4.0 * f64::EPSILON * a.abs(), "{a}");
    }
}
