//! One element of a block format as GGUF stores it: the same numbers as `weldment_ir::codec` reads, a scalar at a time.

use crate::kernels::row::{Q8A_SCALE, Q8A_STEPS};
use crate::tile::{Binary, Builder, Compare, Conversion, Elem, Param, V};
use weldment_ir::DType;

/// A block in memory and the place of one of its elements.
struct Block<'b> {
    b: &'b mut Builder,
    param: Param,
    /// i64 byte offset.
    start: V,
    /// i64.
    place: V,
}

/// Element `place` (i64) of the block of `dtype` at byte `start`, as f32.
pub fn decode(b: &mut Builder, param: Param, dtype: DType, start: V, place: V) -> V {
    let mut x = Block { b, param, start, place };
    match dtype {
        DType::Q8A => x.q8a(),
        DType::Q8_0 => {
            let q = x.signed_byte(2, place);
            let (q, d) = (x.b.to_f32(q), x.half(0));
            x.b.mul(q, d)
        }
        DType::Q4_0 | DType::Q5_0 => {
            let (q, zero) = if dtype == DType::Q4_0 { (x.nibble(2), 8.0) } else { (x.five_bits(2, 6), 16.0) };
            let (q, zero, d) = (x.b.to_f32(q), x.b.float(zero), x.half(0));
            let q = x.b.sub(q, zero);
            x.b.mul(q, d)
        }
        DType::Q4_1 | DType::Q5_1 => {
            let q = if dtype == DType::Q4_1 { x.nibble(4) } else { x.five_bits(4, 8) };
            let (q, d, m) = (x.b.to_f32(q), x.half(0), x.half(2));
            x.b.fma(q, d, m)
        }
        DType::Q4K | DType::Q5K => x.k_quants(dtype == DType::Q5K),
        DType::Q6K => x.q6_k(),
        _ => x.mxfp4(),
    }
}

impl Block<'_> {
    fn int(&mut self, n: i64) -> V {
        self.b.int(n)
    }

    fn rem(&mut self, v: V, n: i64) -> V {
        let n = self.int(n);
        self.b.binary(Binary::Rem, v, n)
    }

    fn quotient(&mut self, v: V, n: i64) -> V {
        let n = self.int(n);
        self.b.div(v, n)
    }

    /// The byte at `at` (i64) from byte `from` of the block on.
    fn load(&mut self, from: i64, at: V) -> V {
        let at = self.b.add(self.start, at);
        let at = self.b.offset(at, from);
        self.b.load_scalar(self.param, at, Elem::I8)
    }

    fn byte(&mut self, from: i64, at: V) -> V {
        let v = self.load(from, at);
        self.b.convert(Conversion::Unsigned, v, Elem::I64)
    }

    fn signed_byte(&mut self, from: i64, at: V) -> V {
        let v = self.load(from, at);
        self.b.convert(Conversion::Signed, v, Elem::I64)
    }

    /// The f16 at byte `at` of the block, as f32.
    fn half(&mut self, at: i64) -> V {
        let at = self.b.offset(self.start, at);
        let v = self.b.load_scalar(self.param, at, Elem::F16);
        self.b.to_f32(v)
    }

    /// `count` bits of `v` from bit `shift` on.
    fn bits(&mut self, v: V, shift: V, count: i64) -> V {
        let v = self.b.binary(Binary::Shr, v, shift);
        let mask = self.int((1 << count) - 1);
        self.b.binary(Binary::And, v, mask)
    }

    /// The element's four bits of 16 bytes from `from` on: low ones first, then high ones.
    fn nibble(&mut self, from: i64) -> V {
        let (at, half) = (self.rem(self.place, 16), self.quotient(self.place, 16));
        let byte = self.byte(from, at);
        let shift = self.b.scale(half, 4);
        self.bits(byte, shift, 4)
    }

    /// The same with a fifth bit, one a place in the word at `high`.
    fn five_bits(&mut self, high: i64, from: i64) -> V {
        let q = self.nibble(from);
        let (at, shift) = (self.quotient(self.place, 8), self.rem(self.place, 8));
        let byte = self.byte(high, at);
        let bit = self.bits(byte, shift, 1);
        let bit = self.b.scale(bit, 16);
        self.b.add(q, bit)
    }

    fn q8a(&mut self) -> V {
        let (high, low) = (self.signed_byte(0, self.place), self.signed_byte(32, self.place));
        let (high, low) = (self.b.to_f32(high), self.b.to_f32(low));
        let step = self.b.float(1.0 / Q8A_STEPS);
        let v = self.b.fma(low, step, high);
        let at = self.b.offset(self.start, Q8A_SCALE);
        let d = self.b.load_scalar(self.param, at, Elem::F32);
        self.b.mul(v, d)
    }

    /// The 6-bit scale and minimum of group `j` of a K block.
    fn scale_min(&mut self, j: V) -> (V, V) {
        let (four, zero) = (self.int(4), self.int(0));
        let low = self.b.compare(Compare::Less, j, four);
        // Of the later groups: a nibble each, and the top two bits of the bytes of the first eight.
        let before = self.b.offset(j, -4);
        let before = self.b.select(low, zero, before);
        let (own, next, above) = (self.byte(4, j), self.byte(8, j), self.byte(4, before));
        let six = self.int(6);
        let join = |x: &mut Self, nibble: V, top: V| {
            let top = x.bits(top, six, 2);
            let top = x.b.scale(top, 16);
            x.b.add(nibble, top)
        };
        let (low_nibble, high_nibble) = (self.bits(next, zero, 4), self.bits(next, four, 4));
        let (late_scale, late_min) = (join(self, low_nibble, above), join(self, high_nibble, own));
        let (early_scale, early_min) = (self.bits(own, zero, 6), self.bits(next, zero, 6));
        let scale = self.b.select(low, early_scale, late_scale);
        let min = self.b.select(low, early_min, late_min);
        (self.b.to_f32(scale), self.b.to_f32(min))
    }

    fn k_quants(&mut self, fifth: bool) -> V {
        let (group, within) = (self.quotient(self.place, 32), self.rem(self.place, 32));
        let (pair, side) = (self.quotient(group, 2), self.rem(group, 2));
        let at = self.b.scale(pair, 32);
        let at = self.b.add(at, within);
        let byte = self.byte(if fifth { 48 } else { 16 }, at);
        let shift = self.b.scale(side, 4);
        let mut q = self.bits(byte, shift, 4);
        if fifth {
            let byte = self.byte(16, within);
            let bit = self.bits(byte, group, 1);
            let bit = self.b.scale(bit, 16);
            q = self.b.add(q, bit);
        }
        let (scale, min) = self.scale_min(group);
        let (d, dmin, q) = (self.half(0), self.half(2), self.b.to_f32(q));
        let (scale, min) = (self.b.mul(d, scale), self.b.mul(dmin, min));
        let v = self.b.mul(scale, q);
        self.b.sub(v, min)
    }

    fn q6_k(&mut self) -> V {
        let group = self.quotient(self.place, 16);
        // 128 elements share 64 low bytes and 32 high ones; a quarter of them is 32 elements.
        let (half, quarter) = (self.quotient(self.place, 128), self.quotient(self.place, 32));
        let (quarter, l) = (self.rem(quarter, 4), self.rem(self.place, 32));
        let (odd, upper) = (self.rem(quarter, 2), self.quotient(quarter, 2));
        let (at, next) = (self.b.scale(half, 64), self.b.scale(odd, 32));
        let at = self.b.add(at, next);
        let at = self.b.add(at, l);
        let (byte, shift) = (self.byte(0, at), self.b.scale(upper, 4));
        let nibble = self.bits(byte, shift, 4);
        let at = self.b.scale(half, 32);
        let at = self.b.add(at, l);
        let (byte, shift) = (self.byte(128, at), self.b.scale(quarter, 2));
        let top = self.bits(byte, shift, 2);
        let top = self.b.scale(top, 16);
        let q = self.b.add(nibble, top);
        let q = self.b.offset(q, -32);
        let scale = self.signed_byte(192, group);
        let (q, scale, d) = (self.b.to_f32(q), self.b.to_f32(scale), self.half(208));
        let scale = self.b.mul(d, scale);
        self.b.mul(scale, q)
    }

    fn mxfp4(&mut self) -> V {
        let code = self.nibble(1);
        let code = self.b.convert(Conversion::Signed, code, Elem::I8);
        let v = crate::kernels::minifloat::MiniFloat::of(DType::F4E2M1).map_or(code, |f| f.decode(self.b, code));
        // Halves of the scale: 2^(e - 128), whose smallest two are below f32's normals.
        let zero = self.int(0);
        let e = self.byte(0, zero);
        let e = self.b.convert(Conversion::Signed, e, Elem::I32);
        let int = |b: &mut Builder, n: i64| b.int_of(Elem::I32, &[], n);
        let (one, two, up, least) = (int(self.b, 1), int(self.b, 2), int(self.b, 23), int(self.b, 0x0020_0000));
        let less = self.b.sub(e, one);
        let normal = self.b.binary(Binary::Shl, less, up);
        let tiny = self.b.binary(Binary::Shl, least, e);
        let is_tiny = self.b.compare(Compare::Less, e, two);
        let bits = self.b.select(is_tiny, tiny, normal);
        let (scale, doubled) = (self.b.bitcast(bits, Elem::F32), self.b.float(2.0));
        let v = self.b.mul(v, doubled);
        self.b.mul(v, scale)
    }
}
