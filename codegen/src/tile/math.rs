//! Transcendentals as polynomials of the tile IR, the same on every target (LLVM's own are not total, see design).

use super::{Binary, Builder, Compare, Conversion, Elem, V};

impl Builder {
    /// e^x for f32 tiles, error under 2 ulp, +inf above 88.72, 0 below -87.34, NaN kept.
    ///
    /// Cody-Waite reduction x = n ln 2 + r, |r| <= ln 2 / 2, then the degree-6 Taylor-Remez polynomial of Cephes' expf
    /// and a scale by 2^n in two halves, so that n = 128 does not overflow early.
    pub fn exp(&mut self, x: V) -> V {
        if self.coarse {
            let log2e = self.float(std::f64::consts::LOG2_E);
            let scaled = self.mul(x, log2e);
            return self.exp2(scaled);
        }
        let shape = self.ty(x).shape.clone();
        let c = |b: &mut Builder, v: f64| b.float_tile(&shape, v);
        let (low, high) = (c(self, -87.336_544), c(self, 88.722_83));
        // Max and min give the second operand for NaN, so the clamp keeps x second and NaN survives.
        let clamped = self.max(low, x);
        let clamped = self.min(high, clamped);
        let log2e = c(self, std::f64::consts::LOG2_E);
        let scaled = self.mul(clamped, log2e);
        let n = self.round(scaled);
        let (ln2_high, ln2_low) = (c(self, -0.693_359_375), c(self, 2.121_944_4e-4));
        let r = self.fma(n, ln2_high, clamped);
        let r = self.fma(n, ln2_low, r);
        let mut p = c(self, 1.987_569_2e-4);
        for k in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            let k = c(self, k);
            p = self.fma(p, r, k);
        }
        let r2 = self.mul(r, r);
        let p = self.fma(p, r2, r);
        let one = c(self, 1.0);
        let p = self.add(p, one);
        let n = self.convert(Conversion::FloatToSigned, n, Elem::I32);
        let one_bit = self.int_of(Elem::I32, &shape, 1);
        let half = self.shift_right_signed(n, one_bit);
        let rest = self.sub(n, half);
        let (a, b) = (self.power_of_two(half), self.power_of_two(rest));
        let p = self.mul(p, a);
        let p = self.mul(p, b);
        let (zero, infinity) = (c(self, 0.0), c(self, f64::INFINITY));
        let under = self.compare(Compare::Less, x, low);
        let p = self.select(under, zero, p);
        let over = self.compare(Compare::Less, high, x);
        self.select(over, infinity, p)
    }

    /// Arithmetic shift right by one, from logical operations: (n + 2^31) >> 1 - 2^30.
    fn shift_right_signed(&mut self, n: V, one: V) -> V {
        let shape = self.ty(n).shape.clone();
        let (bias, half_bias) =
            (self.int_of(Elem::I32, &shape, i64::from(i32::MIN)), self.int_of(Elem::I32, &shape, 1 << 30));
        let shifted = self.binary(Binary::Xor, n, bias);
        let shifted = self.binary(Binary::Shr, shifted, one);
        self.sub(shifted, half_bias)
    }

    /// 2^n as f32 for i32 n in the normal exponent range.
    fn power_of_two(&mut self, n: V) -> V {
        let shape = self.ty(n).shape.clone();
        let (bias, bits) = (self.int_of(Elem::I32, &shape, 127), self.int_of(Elem::I32, &shape, 23));
        let e = self.add(n, bias);
        let e = self.binary(Binary::Shl, e, bits);
        self.bitcast(e, Elem::F32)
    }

    /// 1 / (1 + e^-x).
    pub fn sigmoid(&mut self, x: V) -> V {
        let n = self.neg(x);
        let e = self.exp(n);
        let one = self.float(1.0);
        let d = self.add(e, one);
        self.quotient(one, d)
    }

    /// a / b for b >= 1.
    fn quotient(&mut self, a: V, b: V) -> V {
        if self.coarse {
            let inverse = self.reciprocal(b);
            return self.mul(a, inverse);
        }
        self.div(a, b)
    }

    /// x / (1 + e^-x); -0 at -inf would be NaN by the formula's limit, so x is clamped at -1e4 where silu is 0 in f32.
    pub fn silu(&mut self, x: V) -> V {
        let floor = self.float(-1e4);
        let x = self.max(floor, x);
        let n = self.neg(x);
        let e = self.exp(n);
        let one = self.float(1.0);
        let d = self.add(e, one);
        self.quotient(x, d)
    }

    /// tanh x = 1 - 2 / (e^2x + 1) for |x| >= 1/4, else x + x^3 P(x^2) (Taylor to x^9), whose cancellation is benign.
    pub fn tanh(&mut self, x: V) -> V {
        let (two, one) = (self.float(2.0), self.float(1.0));
        let x2 = self.mul(x, two);
        let e = self.exp(x2);
        let d = self.add(e, one);
        let q = self.quotient(two, d);
        let far = self.sub(one, q);
        let s = self.mul(x, x);
        let mut p = self.float(62.0 / 2835.0);
        for k in [-17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0] {
            let k = self.float(k);
            p = self.fma(p, s, k);
        }
        let x3 = self.mul(s, x);
        let near = self.fma(p, x3, x);
        let (magnitude, limit) = (self.abs(x), self.float(0.25));
        let small = self.compare(Compare::Less, magnitude, limit);
        self.select(small, near, far)
    }

    /// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    pub fn gelu(&mut self, x: V) -> V {
        let (k, c, half, one) =
            (self.float(0.044_715), self.float(0.797_884_560_802_865_4), self.float(0.5), self.float(1.0));
        let x2 = self.mul(x, x);
        let x3 = self.mul(x2, x);
        let inner = self.fma(k, x3, x);
        let inner = self.mul(c, inner);
        let t = self.tanh(inner);
        let t = self.add(t, one);
        let h = self.mul(half, x);
        self.mul(h, t)
    }
}
