//! One element of a tensor, wherever it lies and whatever it is stored as.

use super::blocks;
use crate::kernels::minifloat::{MiniFloat, power_from_code, power_to_code};
use crate::kernels::row::{Q8A_SCALE, Q8A_STEPS, Q8A_SUM, elem_of};
use crate::request::Tensor;
use crate::tile::{Binary, Builder, Compare, Conversion, Elem, Param, V};
use weldment_ir::{DType, Dim};

/// In what form elements are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// f32, rounded to the dtype when stored; f8 and f4 saturate.
    Real,
    /// i64, cut to the dtype's width; of bool, whether it is not 0.
    Integer,
    /// As it is stored; of f4 the code, in i8.
    Stored,
}

/// An operand or a result as a parameter.
#[derive(Clone, Copy)]
pub struct Cell<'t> {
    /// Type and strides.
    pub tensor: &'t Tensor,
    /// Its start.
    pub param: Param,
}

impl Cell<'_> {
    fn dtype(&self) -> DType {
        self.tensor.ty.dtype
    }

    /// Elements along the last dim that are stored at a time.
    pub fn step(&self) -> u64 {
        self.dtype().block_elements() as u64
    }

    /// Index of an element in memory. `index` has as many dims as the tensor, or more in front; dims of 1 repeat.
    fn element(&self, b: &mut Builder, index: &[V]) -> V {
        let t = self.tensor;
        let own = &index[index.len() - t.ty.rank()..];
        if t.is_dense {
            return super::flat(b, own, &t.ty.shape);
        }
        let mut at = b.int(0);
        for (axis, i) in own.iter().enumerate() {
            if t.ty.shape[axis] != Dim::Const(1) && t.strides[axis] != 0 {
                let part = b.scale(*i, t.strides[axis] as i64);
                at = b.add(at, part);
            }
        }
        at
    }

    /// Byte of the block that holds element `at`, and the element's place in it.
    fn block(&self, b: &mut Builder, at: V) -> (V, V) {
        let per = b.int(self.dtype().block_elements() as i64);
        let (block, place) = (b.div(at, per), b.binary(Binary::Rem, at, per));
        (b.scale(block, self.dtype().block_bytes() as i64), place)
    }

    /// Element of the tile IR that a stored element is: i8 of what has no other.
    fn elem(&self) -> Elem {
        elem_of(self.dtype()).unwrap_or(Elem::I8)
    }

    /// The element as it is stored; not of block formats.
    pub fn stored(&self, b: &mut Builder, index: &[V]) -> V {
        let at = self.element(b, index);
        if self.dtype() == DType::F4E2M1 {
            let (byte, place) = self.block(b, at);
            let pair = b.load_scalar(self.param, byte, Elem::I8);
            let pair = b.convert(Conversion::Unsigned, pair, Elem::I64);
            let up = b.scale(place, 4);
            let code = b.binary(Binary::Shr, pair, up);
            let low = b.int(15);
            let code = b.binary(Binary::And, code, low);
            return b.convert(Conversion::Signed, code, Elem::I8);
        }
        let at = b.scale(at, self.dtype().block_bytes() as i64);
        b.load_scalar(self.param, at, self.elem())
    }

    /// The element as f32: exact, but for integers of more than 24 bits.
    pub fn real(&self, b: &mut Builder, index: &[V]) -> V {
        let dtype = self.dtype();
        if !dtype.is_float() {
            let n = self.integer(b, index);
            return b.to_f32(n);
        }
        if dtype.is_block() {
            let at = self.element(b, index);
            let (block, place) = self.block(b, at);
            return blocks::decode(b, self.param, dtype, block, place);
        }
        let v = self.stored(b, index);
        match MiniFloat::of(dtype) {
            Some(format) => format.decode(b, v),
            None if dtype == DType::F8E8M0 => power_from_code(b, v),
            None => b.to_f32(v),
        }
    }

    /// An integer or bool as i64.
    pub fn integer(&self, b: &mut Builder, index: &[V]) -> V {
        let v = self.stored(b, index);
        let unsigned = matches!(self.dtype(), DType::U8 | DType::U32 | DType::Bool);
        b.convert(if unsigned { Conversion::Unsigned } else { Conversion::Signed }, v, Elem::I64)
    }

    /// A value of `kind` as the element that is stored.
    fn encoded(&self, b: &mut Builder, kind: Kind, v: V) -> V {
        let dtype = self.dtype();
        match kind {
            Kind::Stored => v,
            Kind::Integer if dtype == DType::Bool => {
                let (zero, one) = (b.int(0), b.int(1));
                let none = b.compare(Compare::Equal, v, zero);
                let v = b.select(none, zero, one);
                b.convert(Conversion::Signed, v, Elem::I8)
            }
            Kind::Integer => b.convert(Conversion::Signed, v, self.elem()),
            Kind::Real => match MiniFloat::of(dtype) {
                Some(format) => {
                    let code = format.encode(b, v);
                    b.convert(Conversion::Signed, code, Elem::I8)
                }
                None if dtype == DType::F8E8M0 => power_to_code(b, v),
                None => b.convert(Conversion::Float, v, self.elem()),
            },
        }
    }

    /// Stores one element of a plain dtype.
    pub fn store(&self, b: &mut Builder, index: &[V], kind: Kind, v: V) {
        let at = self.element(b, index);
        let at = b.scale(at, self.dtype().block_bytes() as i64);
        let v = self.encoded(b, kind, v);
        b.store_row(self.param, at, v);
    }

    /// Stores an even element of f4 and the next.
    pub fn store_pair(&self, b: &mut Builder, index: &[V], kind: Kind, pair: [V; 2]) {
        let at = self.element(b, index);
        let (byte, _) = self.block(b, at);
        let [low, high] = pair.map(|v| {
            let code = self.encoded(b, kind, v);
            b.convert(Conversion::Unsigned, code, Elem::I32)
        });
        let (mask, four) = (b.int_of(Elem::I32, &[], 15), b.int_of(Elem::I32, &[], 4));
        let low = b.binary(Binary::And, low, mask);
        let high = b.binary(Binary::Shl, high, four);
        let both = b.binary(Binary::Or, low, high);
        let both = b.convert(Conversion::Signed, both, Elem::I8);
        b.store_row(self.param, byte, both);
    }

    /// Stores a block of q8a from the element at `index` on, of which `value` gives each by its place, twice.
    pub fn store_q8a(&self, b: &mut Builder, index: &[V], mut value: impl FnMut(&mut Builder, V) -> V) {
        let at = self.element(b, index);
        let (block, _) = self.block(b, at);
        let elements = b.int(DType::Q8A.block_elements() as i64);
        let amax = super::largest(b, elements, 0.0, |b, i| {
            let v = value(b, i);
            b.abs(v)
        });
        let (scale, zero, limit) = (b.float(1.0 / 127.0), b.float(0.0), b.float(127.0));
        let d = b.mul(amax, scale);
        // A zero block, or one so small that 127 / amax overflows, quantises to zeros.
        let smallest = b.float(1e-36);
        let tiny = b.compare(Compare::Less, amax, smallest);
        let inverse = b.div(limit, amax);
        let inverse = b.select(tiny, zero, inverse);
        let d = b.select(tiny, zero, d);
        let total = super::sum(b, elements, |b, i| {
            let v = value(b, i);
            let scaled = b.mul(v, inverse);
            let high = b.round(scaled);
            let rest = b.sub(scaled, high);
            let (steps, step) = (b.float(Q8A_STEPS), b.float(1.0 / Q8A_STEPS));
            let rest = b.mul(rest, steps);
            let low = b.round(rest);
            for (plane, start) in [(high, 0), (low, DType::Q8A.block_elements() as i64)] {
                let q = b.convert(Conversion::FloatToSigned, plane, Elem::I32);
                let q = b.convert(Conversion::Signed, q, Elem::I8);
                let at = b.add(block, i);
                let at = b.offset(at, start);
                b.store_row(self.param, at, q);
            }
            b.fma(low, step, high)
        });
        let sum = b.mul(total, d);
        for (v, at) in [(d, Q8A_SCALE), (sum, Q8A_SUM)] {
            let at = b.offset(block, at);
            b.store_row(self.param, at, v);
        }
    }
}
