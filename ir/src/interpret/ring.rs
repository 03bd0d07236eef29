//! The ring domain: pairs in F_p x F_q, in which algebraically equal graphs agree bit for bit whatever the order of sums.
//!
//! p = 2q + 1 with both prime, so 4 (a square) has order q in F_p, and b -> 4^b is a homomorphism from sums mod q to
//! products mod p: that is `exp`. Its result has no q part ("poison"), as have all keyed hashes, which stand for functions
//! that are not algebraic.

use super::domain::{Domain, Options, RopeSpec};
use super::function::Function;
use super::tensor::wrap;
use crate::DType;
use std::cmp::Ordering;
use std::sync::LazyLock;

/// Modulus of the p part.
pub const P: u64 = 2_147_483_579;
/// Modulus of the q part, (P - 1) / 2.
pub const Q: u64 = 1_073_741_789;
/// The q part of a value without one.
const POISON: u32 = u32::MAX;

/// An element of F_p x F_q. `==` compares both parts; tests of graphs compare p parts only, see [`Domain::same`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingValue {
    p: u32,
    q: u32,
}

impl RingValue {
    /// The p part, the one that is compared.
    pub fn p(self) -> u32 {
        self.p
    }

    /// The q part, if it has one.
    pub fn q(self) -> Option<u32> {
        (self.q != POISON).then_some(self.q)
    }

    fn new(p: u64, q: Option<u64>) -> RingValue {
        RingValue { p: (p % P) as u32, q: q.map_or(POISON, |q| (q % Q) as u32) }
    }
}

/// The ring.
#[derive(Clone, Copy, Debug)]
pub struct Ring;

fn power(base: u64, mut exponent: u64, modulus: u64) -> u64 {
    let (mut result, mut square) = (1, base % modulus);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = result * square % modulus;
        }
        square = square * square % modulus;
        exponent >>= 1;
    }
    result
}

/// 2^e mod P and mod Q for every exponent of a finite f64's integer significand, -1074..=971.
static TWO: LazyLock<Vec<(u64, u64)>> = LazyLock::new(|| {
    let of = |e: i64, modulus: u64| power(2, e.rem_euclid(modulus as i64 - 1) as u64, modulus);
    (-1074..=971).map(|e| (of(e, P), of(e, Q))).collect()
});

/// Two rounds of splitmix64's finaliser over the key and the p part.
fn hash(key: u64, value: u64) -> u64 {
    fn mix(mut x: u64) -> u64 {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    mix(mix(key.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ value.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Keys of the functions that are hashed. Casts use `CAST` plus the dtype's place in the table.
mod key {
    pub const ROPE: u64 = 7;
    /// One for each function, in their order.
    pub const FUNCTION: u64 = 0x10;
    pub const CAST: u64 = 0x100;
    /// As `CAST`.
    pub const QUANTISE: u64 = 0x200;
}

fn hashed(key: u64, a: RingValue) -> RingValue {
    RingValue::new(hash(key, u64::from(a.p)), None)
}

fn both(a: RingValue, b: RingValue, op: impl Fn(u64, u64, u64) -> u64) -> RingValue {
    let q = (a.q != POISON && b.q != POISON).then(|| op(u64::from(a.q), u64::from(b.q), Q));
    RingValue::new(op(u64::from(a.p), u64::from(b.p), P), q)
}

impl Domain for Ring {
    type Value = RingValue;
    const NAME: &'static str = "ring";
    const ZERO: RingValue = RingValue { p: 0, q: 0 };

    fn real(x: f64) -> Option<RingValue> {
        if !x.is_finite() {
            return None;
        }
        let bits = x.to_bits();
        let field = (bits >> 52) & 0x7ff;
        let fraction = bits & ((1 << 52) - 1);
        // x = significand * 2^(place - 1074), exactly.
        let (significand, place) = if field == 0 { (fraction, 0) } else { (fraction | 1 << 52, field as usize - 1) };
        let (p, q) = TWO[place];
        let value = RingValue::new(significand % P * p, Some(significand % Q * q));
        Some(if x < 0.0 { Ring::neg(value) } else { value })
    }
    fn int(n: i64) -> RingValue {
        RingValue::new(n.rem_euclid(P as i64) as u64, Some(n.rem_euclid(Q as i64) as u64))
    }
    fn add(a: RingValue, b: RingValue) -> RingValue {
        both(a, b, |x, y, _| x + y)
    }
    fn sub(a: RingValue, b: RingValue) -> RingValue {
        both(a, b, |x, y, modulus| x + modulus - y)
    }
    fn mul(a: RingValue, b: RingValue) -> RingValue {
        both(a, b, |x, y, _| x * y)
    }
    fn neg(a: RingValue) -> RingValue {
        Ring::sub(Ring::ZERO, a)
    }
    fn div(a: RingValue, b: RingValue) -> Option<RingValue> {
        // A zero q part beside a non-zero p part has no inverse either, and poison would depend on the order of steps.
        if b.p == 0 || b.q == 0 {
            return None;
        }
        let inverse = RingValue::new(power(b.p.into(), P - 2, P), b.q().map(|q| power(q.into(), Q - 2, Q)));
        Some(Ring::mul(a, inverse))
    }
    fn greater(a: RingValue, b: RingValue) -> bool {
        a.p > b.p
    }
    fn order(a: RingValue, b: RingValue) -> Ordering {
        a.p.cmp(&b.p)
    }
    fn apply(f: Function, a: RingValue) -> RingValue {
        match (f, a.q()) {
            (Function::Exp, Some(q)) => RingValue::new(power(4, q.into(), P), None),
            _ => hashed(key::FUNCTION + f as u64, a),
        }
    }

    fn dot(a: &[RingValue], b: &[RingValue]) -> RingValue {
        // Products are below 2^62, so a sum kept below 2^63 takes one more; then a multiple of the modulus goes.
        const HALF: u64 = 1 << 63;
        let (mut p, mut q, mut poison) = (0u64, 0u64, false);
        for (x, y) in a.iter().zip(b) {
            let bad = x.q == POISON || y.q == POISON;
            poison |= bad;
            p += u64::from(x.p) * u64::from(y.p);
            q += if bad { 0 } else { u64::from(x.q) * u64::from(y.q) };
            p -= if p >= HALF { HALF - HALF % P } else { 0 };
            q -= if q >= HALF { HALF - HALF % Q } else { 0 };
        }
        RingValue::new(p, (!poison).then_some(q))
    }

    fn softmax(row: &mut [RingValue]) -> Option<()> {
        // No maximum is subtracted: the ring is exact, and its order has nothing to do with size.
        let mut sum = Ring::ZERO;
        for v in row.iter_mut() {
            *v = Ring::apply(Function::Exp, *v);
            sum = Ring::add(sum, *v);
        }
        for v in row.iter_mut() {
            *v = Ring::div(*v, sum)?;
        }
        Some(())
    }

    fn round(values: &mut [RingValue], to: DType, options: &Options) {
        // All arithmetic is f32's, so rounding to f32 counts as identity.
        if to == DType::F32 || options.ideal.contains(&to) {
            return;
        }
        let key = key::CAST + to as u64;
        if to == DType::Q8A {
            // An element depends on its whole block, through the scale.
            for block in values.chunks_mut(DType::Q8A.block_elements()) {
                let scale = block.iter().fold(key, |k, v| hash(k, u64::from(v.p)));
                block.iter_mut().for_each(|v| *v = hashed(scale, *v));
            }
        } else {
            values.iter_mut().for_each(|v| *v = hashed(key, *v));
        }
    }

    fn quantise(group: &mut [RingValue], to: DType, options: &Options) -> RingValue {
        // Every code depends on the whole group, through the scale.
        let key = group.iter().fold(key::QUANTISE + to as u64, |k, v| hash(k, u64::from(v.p)));
        let scale = RingValue::new(key, None);
        let quotient = |v: RingValue| Ring::div(v, scale).unwrap_or(v);
        let ideal = options.ideal.contains(&to);
        group.iter_mut().for_each(|v| *v = if ideal { quotient(*v) } else { hashed(key, *v) });
        scale
    }

    fn to_int(a: RingValue, dtype: DType) -> i64 {
        wrap(dtype, (hash(key::CAST + dtype as u64, u64::from(a.p)) >> 1) as i64)
    }

    fn rope(spec: &RopeSpec, row: usize, column: usize, factor: Option<RingValue>) -> RingValue {
        // Not the number of rows: a longer table has the same first rows.
        let mut key = key::ROPE;
        for part in [spec.theta, spec.factor, spec.low, spec.high, spec.original as f64] {
            key = hash(key, part.to_bits());
        }
        for part in [spec.dim as u64, row as u64, column as u64, factor.map_or(P, |f| u64::from(f.p))] {
            key = hash(key, part);
        }
        // A constant of the graph, so it may have a q part, which keeps scores fit for `exp`.
        RingValue::new(key, Some(hash(key, 1)))
    }

    fn same(a: RingValue, b: RingValue) -> bool {
        a.p == b.p
    }
}
