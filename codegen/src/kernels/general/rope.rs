//! Rotary embedding, and its table where the factors of its frequencies are computed in the step.

use super::cell::{Cell, Kind};
use super::ranks::clamped;
use super::{Draft, size};
use crate::request::{last_dim, refuse};
use crate::tile::{Binary, Builder, Compare, Conversion, Elem, V};
use std::f64::consts::PI;
use weldment_ir::Op;
use weldment_passes::target::Refusal;

/// What a rotation reads.
pub struct Rotation<'t> {
    /// Heads [T, H, D].
    pub x: Cell<'t>,
    /// [T].
    pub positions: Cell<'t>,
    /// [P, R].
    pub table: Cell<'t>,
    /// R.
    pub rotary: u64,
    /// Pairs are neighbours.
    pub interleaved: bool,
}

impl Rotation<'_> {
    /// The rotated element at `index` [t, h, i], not rounded.
    pub fn value(&self, b: &mut Builder, index: &[V]) -> V {
        let [token, head, i] = index else { return self.x.real(b, index) };
        if self.rotary == 0 {
            return self.x.real(b, index);
        }
        let (rotary, half, zero) = (b.int(self.rotary as i64), b.int(self.rotary as i64 / 2), b.int(0));
        let turned = b.compare(Compare::Less, *i, rotary);
        let at = b.select(turned, *i, zero);
        let pair = if self.interleaved {
            let two = b.int(2);
            b.div(at, two)
        } else {
            b.binary(Binary::Rem, at, half)
        };
        let (low, high) = if self.interleaved {
            let low = b.scale(pair, 2);
            (low, b.offset(low, 1))
        } else {
            (pair, b.add(pair, half))
        };
        let rows = size(b, &self.table.tensor.ty.shape[0]);
        let position = self.positions.integer(b, &[*token]);
        let row = clamped(b, position, rows);
        let sine = b.add(pair, half);
        let (cos, sin) = (self.table.real(b, &[row, pair]), self.table.real(b, &[row, sine]));
        let (x, y) = (self.x.real(b, &[*token, *head, low]), self.x.real(b, &[*token, *head, high]));
        let cross = b.mul(y, sin);
        let cross = b.neg(cross);
        let first = b.fma(x, cos, cross);
        let cross = b.mul(x, sin);
        let second = b.fma(y, cos, cross);
        let is_low = b.compare(Compare::Equal, at, low);
        let v = b.select(is_low, first, second);
        let own = self.x.real(b, index);
        b.select(turned, v, own)
    }
}

/// `rope`.
pub fn rotated(d: &mut Draft<'_, '_>) -> Result<(), Refusal> {
    let Op::Rope { interleaved } = d.r.op else { return refuse("op", d.r.op.kind(), "rope") };
    let rotary = last_dim(&d.r.operands[2])?;
    d.each(Kind::Real, |b, operands, index| {
        let [x, positions, table] = [operands[0], operands[1], operands[2]];
        Rotation { x, positions, table, rotary, interleaved: *interleaved }.value(b, index)
    });
    Ok(())
}

/// An unevaluated sum of two f32: about 45 bits.
#[derive(Clone, Copy)]
struct Pair(V, V);

impl Pair {
    fn constant(b: &mut Builder, x: f64) -> Pair {
        let high = f64::from(x as f32);
        Pair(b.float(high), b.float(x - high))
    }

    fn normal(b: &mut Builder, high: V, low: V) -> Pair {
        let sum = b.add(high, low);
        let rest = b.sub(sum, high);
        Pair(sum, b.sub(low, rest))
    }

    fn mul(self, b: &mut Builder, other: Pair) -> Pair {
        let p = b.mul(self.0, other.0);
        let n = b.neg(p);
        let e = b.fma(self.0, other.0, n);
        let e = b.fma(self.0, other.1, e);
        let e = b.fma(self.1, other.0, e);
        Pair::normal(b, p, e)
    }

    /// 1 / v of an f32.
    fn inverse(b: &mut Builder, v: V) -> Pair {
        let one = b.float(1.0);
        let q = b.div(one, v);
        let n = b.neg(q);
        let rest = b.fma(n, v, one);
        let low = b.div(rest, v);
        Pair::normal(b, q, low)
    }

    fn add(self, b: &mut Builder, other: Pair) -> Pair {
        // Knuth's sum, exact whichever is larger.
        let s = b.add(self.0, other.0);
        let part = b.sub(s, self.0);
        let first = b.sub(s, part);
        let first = b.sub(self.0, first);
        let second = b.sub(other.0, part);
        let e = b.add(first, second);
        let low = b.add(self.1, other.1);
        let e = b.add(e, low);
        Pair::normal(b, s, e)
    }

    fn select(b: &mut Builder, condition: V, yes: Pair, no: Pair) -> Pair {
        Pair(b.select(condition, yes.0, no.0), b.select(condition, yes.1, no.1))
    }
}

/// `rope_table`: positions may be many, so turns are counted in pairs of f32 before their whole part is dropped.
pub fn table(d: &mut Draft<'_, '_>) -> Result<(), Refusal> {
    let Op::RopeTable { dim, theta, factor, low, high, original, .. } = d.r.op else {
        return refuse("op", d.r.op.kind(), "rope_table");
    };
    let half = dim / 2;
    d.each(Kind::Real, |b, operands, index| {
        let halves = b.int(half);
        let column = b.binary(Binary::Rem, index[1], halves);
        // theta^(-2 column / dim) / 2 pi by the bits of the column.
        let mut turns = Pair::constant(b, 0.5 / PI);
        for bit in 0..(half as u64).ilog2() + 1 {
            let power = Pair::constant(b, theta.0.powf(-2.0 * f64::powi(2.0, bit as i32) / *dim as f64));
            let (down, one) = (b.int(i64::from(bit)), b.int(1));
            let set = b.binary(Binary::Shr, column, down);
            let set = b.binary(Binary::And, set, one);
            let set = b.compare(Compare::Equal, set, one);
            let more = turns.mul(b, power);
            turns = Pair::select(b, set, more, turns);
        }
        if let Some(factors) = operands.first() {
            let by = factors.real(b, &[column]);
            let by = Pair::inverse(b, by);
            turns = turns.mul(b, by);
        }
        if factor.0 != 1.0 {
            // Llama 3: the share of the frequency that is kept, between the two wavelengths.
            let original = Pair::constant(b, *original as f64);
            let share = turns.mul(b, original);
            let below = Pair::constant(b, -low.0);
            let share = share.add(b, below);
            let scale = Pair::constant(b, 1.0 / (high.0 - low.0));
            let share = share.mul(b, scale);
            let (zero, one) = (Pair::constant(b, 0.0), Pair::constant(b, 1.0));
            let none = b.compare(Compare::LessEqual, share.0, zero.0);
            let share = Pair::select(b, none, zero, share);
            let all = b.compare(Compare::LessEqual, one.0, share.0);
            let share = Pair::select(b, all, one, share);
            // A negative frequency has no wavelength over the limits.
            let turned = b.compare(Compare::Less, turns.0, zero.0);
            let share = Pair::select(b, turned, one, share);
            let (rest, least) = (Pair::constant(b, 1.0 - 1.0 / factor.0), Pair::constant(b, 1.0 / factor.0));
            let by = share.mul(b, rest);
            let by = by.add(b, least);
            turns = turns.mul(b, by);
        }
        let position = b.to_f32(index[0]);
        let nothing = b.float(0.0);
        let Pair(turns, rest) = turns.mul(b, Pair(position, nothing));
        let whole = b.round(turns);
        let turns = b.sub(turns, whole);
        let turns = b.add(turns, rest);
        // sin x = cos (x - a quarter).
        let is_cos = b.compare(Compare::Less, index[1], halves);
        let (none, quarter) = (b.float(0.0), b.float(0.25));
        let shift = b.select(is_cos, none, quarter);
        let turns = b.sub(turns, shift);
        cosine(b, turns)
    });
    Ok(())
}

/// cos of so many turns, -2..2: Taylor to the tenth power within an eighth of a turn.
fn cosine(b: &mut Builder, turns: V) -> V {
    let (four, quarter, tau) = (b.float(4.0), b.float(0.25), b.float(2.0 * PI));
    let q = b.mul(turns, four);
    let q = b.round(q);
    let whole = b.mul(q, quarter);
    let rest = b.sub(turns, whole);
    let z = b.mul(rest, tau);
    let z2 = b.mul(z, z);
    let series = |b: &mut Builder, coefficients: &[f64]| {
        let mut p = b.float(coefficients[0]);
        for c in &coefficients[1..] {
            let c = b.float(*c);
            p = b.fma(p, z2, c);
        }
        p
    };
    let cos = series(b, &[-1.0 / 3_628_800.0, 1.0 / 40_320.0, -1.0 / 720.0, 1.0 / 24.0, -0.5, 1.0]);
    let sin = series(b, &[1.0 / 362_880.0, -1.0 / 5040.0, 1.0 / 120.0, -1.0 / 6.0, 1.0]);
    let sin = b.mul(sin, z);
    // Quarters: cos, -sin, -cos, sin.
    let q = b.convert(Conversion::FloatToSigned, q, Elem::I32);
    let bit = |b: &mut Builder, mask: i64, v: V| {
        let (mask, none) = (b.int_of(Elem::I32, &[], mask), b.int_of(Elem::I32, &[], 0));
        let v = b.binary(Binary::And, v, mask);
        b.compare(Compare::Equal, v, none)
    };
    let even = bit(b, 1, q);
    let v = b.select(even, cos, sin);
    let one = b.int_of(Elem::I32, &[], 1);
    let next = b.add(q, one);
    let kept = bit(b, 2, next);
    let turned = b.neg(v);
    b.select(kept, v, turned)
}
