//! Instructions that compute lane by lane, move lanes, or reduce.

use super::LlvmError;
use super::lower::{Lower, Rows, vector_of};
use crate::tile::{Binary, Compare, Conversion, Elem, Inst, Reduction, TileType, Unary, V};
use inkwell::types::BasicTypeEnum;
use inkwell::values::{BasicValueEnum, IntValue, VectorValue};
use inkwell::{FloatPredicate, IntPredicate};

/// Applies a builder method that takes two integers or two integer vectors.
macro_rules! on_ints {
    ($self:ident, $method:ident, $a:expr, $b:expr $(, $extra:expr)*) => {
        match ($a, $b) {
            (BasicValueEnum::IntValue(a), BasicValueEnum::IntValue(b)) => $self.builder.$method($($extra,)* a, b, "")?.into(),
            (a, b) => $self.builder.$method($($extra,)* a.into_vector_value(), b.into_vector_value(), "")?.into(),
        }
    };
}

/// The same for floats.
macro_rules! on_floats {
    ($self:ident, $method:ident, $a:expr, $b:expr $(, $extra:expr)*) => {
        match ($a, $b) {
            (BasicValueEnum::FloatValue(a), BasicValueEnum::FloatValue(b)) => $self.builder.$method($($extra,)* a, b, "")?.into(),
            (a, b) => $self.builder.$method($($extra,)* a.into_vector_value(), b.into_vector_value(), "")?.into(),
        }
    };
}

/// Converts a value or a vector with a builder method `(value, type)`.
macro_rules! converted {
    ($self:ident, $method:ident, $v:expr, $ty:expr, $kind:ident, $into:ident) => {
        match ($v, $ty) {
            (BasicValueEnum::$kind(v), ty) => $self.builder.$method(v, ty.$into(), "")?.into(),
            (v, ty) => $self.builder.$method(v.into_vector_value(), ty.into_vector_type(), "")?.into(),
        }
    };
}

impl<'c> Lower<'c, '_> {
    /// Emits an instruction that defines `v`.
    pub fn instruction(&mut self, inst: &Inst, v: V) -> Result<Rows<'c>, LlvmError> {
        let ty = self.ty(v).clone();
        match inst {
            Inst::Int(n) => self.constant(&ty, |t| int_constant(t, *n)),
            Inst::Float(x) => self.constant(&ty, |t| t.into_float_type().const_float(*x).into()),
            Inst::Iota => {
                let scalar = self.elem_type(ty.elem);
                let lanes: Vec<_> =
                    (0..ty.lanes()).map(|i| scalar.into_int_type().const_int(u64::from(i), false)).collect();
                Ok(vec![if lanes.len() == 1 {
                    lanes[0].into()
                } else {
                    inkwell::types::VectorType::const_vector(&lanes).into()
                }])
            }
            Inst::Unary(op, a) => self.each(*a, |l, x| l.unary(*op, x)),
            Inst::Binary(op, a, b) => self.zip(*a, *b, |l, x, y| l.binary(*op, x, y)),
            Inst::Fma(a, b, c) => {
                let (a, b, c) = (self.get(*a)?.clone(), self.get(*b)?.clone(), self.get(*c)?.clone());
                a.iter().zip(&b).zip(&c).map(|((a, b), c)| self.fma(*a, *b, *c)).collect()
            }
            Inst::Compare(op, a, b) => self.zip(*a, *b, |l, x, y| l.compare(*op, x, y)),
            Inst::Select(c, a, b) => {
                let c = self.get(*c)?.clone();
                let (a, b) = (self.get(*a)?.clone(), self.get(*b)?.clone());
                c.iter().zip(a.iter().zip(&b)).map(|(c, (a, b))| self.select(*c, *a, *b)).collect()
            }
            Inst::Convert(how, a) => {
                let from = self.ty(*a).elem;
                self.each(*a, |l, x| l.convert(*how, x, from, ty.elem, ty.lanes()))
            }
            Inst::Bitcast(a) => {
                // bf16 and i16 share an LLVM type; everything else is a bit cast of whole rows.
                let row = self.row_type(ty.elem, ty.lanes());
                self.each(*a, |l, x| Ok(l.builder.build_bit_cast(x, row, "")?))
            }
            Inst::Broadcast(a) => self.broadcast(*a, &ty),
            Inst::Reshape(a) => self.reshape(*a, &ty),
            Inst::Stack(parts) => {
                let mut rows = Vec::new();
                for p in parts {
                    rows.extend(self.get(*p)?.iter().copied());
                }
                Ok(rows)
            }
            Inst::Row(a, i) => Ok(vec![self.get(*a)?[*i as usize]]),
            Inst::Reduce(op, a, axis) => self.reduce(*op, *a, *axis as usize),
            Inst::Load { address, mask } => self.load(address, &ty, *mask),
            Inst::Dot { acc, a, b } => self.dot(*acc, *a, *b),
            Inst::DotBf16 { acc, a, b } => self.dot_bf16(*acc, *a, *b),
            Inst::DotI8 { a, b, signed, max } => self.dot_i8(*a, *b, *signed, *max),
            Inst::ProgramId(_) | Inst::Dim(_) | Inst::Store { .. } | Inst::For { .. } | Inst::If { .. } => {
                Err(LlvmError::Tile(format!("{inst:?} does not define a value")))
            }
        }
    }

    fn each(
        &mut self,
        a: V,
        f: impl Fn(&Self, BasicValueEnum<'c>) -> Result<BasicValueEnum<'c>, LlvmError>,
    ) -> Result<Rows<'c>, LlvmError> {
        self.get(a)?.iter().map(|x| f(self, *x)).collect()
    }

    fn zip(
        &mut self,
        a: V,
        b: V,
        f: impl Fn(&Self, BasicValueEnum<'c>, BasicValueEnum<'c>) -> Result<BasicValueEnum<'c>, LlvmError>,
    ) -> Result<Rows<'c>, LlvmError> {
        self.get(a)?.iter().zip(self.get(b)?).map(|(x, y)| f(self, *x, *y)).collect()
    }

    fn constant(
        &self,
        ty: &TileType,
        scalar: impl Fn(BasicTypeEnum<'c>) -> BasicValueEnum<'c>,
    ) -> Result<Rows<'c>, LlvmError> {
        let one = scalar(self.elem_type(ty.elem));
        Ok(vec![constant_splat(one, ty.lanes()); ty.rows()])
    }

    fn unary(&self, op: Unary, x: BasicValueEnum<'c>) -> Result<BasicValueEnum<'c>, LlvmError> {
        let intrinsic = |name| self.intrinsic(name, &[x.get_type()], &[x], x.get_type());
        match (op, x) {
            (Unary::Neg, BasicValueEnum::FloatValue(x)) => Ok(self.builder.build_float_neg(x, "")?.into()),
            (Unary::Neg, BasicValueEnum::VectorValue(x)) if !element_is_int(x) => {
                Ok(self.builder.build_float_neg(x, "")?.into())
            }
            (Unary::Neg, BasicValueEnum::IntValue(x)) => Ok(self.builder.build_int_neg(x, "")?.into()),
            (Unary::Neg, x) => Ok(self.builder.build_int_neg(x.into_vector_value(), "")?.into()),
            (Unary::Abs, _) => intrinsic("llvm.fabs"),
            (Unary::Sqrt, _) => intrinsic("llvm.sqrt"),
            (Unary::Round, _) => intrinsic("llvm.roundeven"),
        }
    }

    pub fn binary(
        &self,
        op: Binary,
        a: BasicValueEnum<'c>,
        b: BasicValueEnum<'c>,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        let float = is_float(a);
        Ok(match (op, float) {
            (Binary::Add, true) => on_floats!(self, build_float_add, a, b),
            (Binary::Sub, true) => on_floats!(self, build_float_sub, a, b),
            (Binary::Mul, true) => on_floats!(self, build_float_mul, a, b),
            (Binary::Div, true) => on_floats!(self, build_float_div, a, b),
            (Binary::Max, true) => {
                self.select(on_floats!(self, build_float_compare, a, b, FloatPredicate::OGT), a, b)?
            }
            (Binary::Min, true) => {
                self.select(on_floats!(self, build_float_compare, a, b, FloatPredicate::OLT), a, b)?
            }
            (Binary::Add, false) => on_ints!(self, build_int_add, a, b),
            (Binary::Sub, false) => on_ints!(self, build_int_sub, a, b),
            (Binary::Mul, false) => on_ints!(self, build_int_mul, a, b),
            (Binary::Div, false) => on_ints!(self, build_int_unsigned_div, a, b),
            (Binary::Rem, false) => on_ints!(self, build_int_unsigned_rem, a, b),
            (Binary::Max, false) => self.select(on_ints!(self, build_int_compare, a, b, IntPredicate::SGT), a, b)?,
            (Binary::Min, false) => self.select(on_ints!(self, build_int_compare, a, b, IntPredicate::SLT), a, b)?,
            (Binary::And, false) => on_ints!(self, build_and, a, b),
            (Binary::Or, false) => on_ints!(self, build_or, a, b),
            (Binary::Xor, false) => on_ints!(self, build_xor, a, b),
            (Binary::Shl, false) => on_ints!(self, build_left_shift, a, b),
            (Binary::Shr, false) => match (a, b) {
                (BasicValueEnum::IntValue(a), BasicValueEnum::IntValue(b)) => {
                    self.builder.build_right_shift(a, b, false, "")?.into()
                }
                (a, b) => {
                    self.builder.build_right_shift(a.into_vector_value(), b.into_vector_value(), false, "")?.into()
                }
            },
            (op, true) => return Err(LlvmError::Tile(format!("{op:?} of floats"))),
        })
    }

    /// a * b + c with one rounding.
    pub fn fma(
        &self,
        a: BasicValueEnum<'c>,
        b: BasicValueEnum<'c>,
        c: BasicValueEnum<'c>,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        self.intrinsic("llvm.fma", &[a.get_type()], &[a, b, c], a.get_type())
    }

    fn compare(
        &self,
        op: Compare,
        a: BasicValueEnum<'c>,
        b: BasicValueEnum<'c>,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        let (ints, floats) = match op {
            Compare::Less => (IntPredicate::SLT, FloatPredicate::OLT),
            Compare::LessEqual => (IntPredicate::SLE, FloatPredicate::OLE),
            Compare::Equal => (IntPredicate::EQ, FloatPredicate::OEQ),
        };
        Ok(if is_float(a) {
            on_floats!(self, build_float_compare, a, b, floats)
        } else {
            on_ints!(self, build_int_compare, a, b, ints)
        })
    }

    fn select(
        &self,
        c: BasicValueEnum<'c>,
        a: BasicValueEnum<'c>,
        b: BasicValueEnum<'c>,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        Ok(match c {
            BasicValueEnum::IntValue(c) => self.builder.build_select(c, a, b, "")?,
            c => self.builder.build_select(c.into_vector_value(), a, b, "")?,
        })
    }

    fn convert(
        &self,
        how: Conversion,
        x: BasicValueEnum<'c>,
        from: Elem,
        to: Elem,
        lanes: u32,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        let row = self.row_type(to, lanes);
        match (how, from, to) {
            (Conversion::Float, Elem::BF16, Elem::F32) => self.bf16_to_f32(x, lanes),
            (Conversion::Float, Elem::F32, Elem::BF16) => self.f32_to_bf16(x, lanes),
            (Conversion::Float, Elem::F16, Elem::F32) => {
                Ok(converted!(self, build_float_ext, x, row, FloatValue, into_float_type))
            }
            (Conversion::Float, Elem::F32, Elem::F16) => {
                Ok(converted!(self, build_float_trunc, x, row, FloatValue, into_float_type))
            }
            (Conversion::SignedToFloat, _, Elem::F32) => Ok(match x {
                BasicValueEnum::IntValue(x) => {
                    self.builder.build_signed_int_to_float(x, row.into_float_type(), "")?.into()
                }
                x => self.builder.build_signed_int_to_float(x.into_vector_value(), row.into_vector_type(), "")?.into(),
            }),
            (Conversion::FloatToSigned, Elem::F32, _) => Ok(match x {
                BasicValueEnum::FloatValue(x) => {
                    self.builder.build_float_to_signed_int(x, row.into_int_type(), "")?.into()
                }
                x => self.builder.build_float_to_signed_int(x.into_vector_value(), row.into_vector_type(), "")?.into(),
            }),
            (Conversion::Signed | Conversion::Unsigned, _, _) if !from.is_float() && !to.is_float() => {
                Ok(if to.bytes() < from.bytes() || to == Elem::I1 {
                    converted!(self, build_int_truncate, x, row, IntValue, into_int_type)
                } else if how == Conversion::Signed {
                    converted!(self, build_int_s_extend, x, row, IntValue, into_int_type)
                } else {
                    converted!(self, build_int_z_extend, x, row, IntValue, into_int_type)
                })
            }
            _ => Err(LlvmError::Tile(format!("conversion {how:?} from {from:?} to {to:?}"))),
        }
    }

    fn int_splat(&self, n: i64, lanes: u32) -> BasicValueEnum<'c> {
        constant_splat(int_constant(self.context.i32_type().into(), n), lanes)
    }

    /// bf16 is the upper half of an f32.
    pub fn bf16_to_f32(&self, x: BasicValueEnum<'c>, lanes: u32) -> Result<BasicValueEnum<'c>, LlvmError> {
        let wide = self.row_type(Elem::I32, lanes);
        let x = converted!(self, build_int_z_extend, x, wide, IntValue, into_int_type);
        let x = self.binary(Binary::Shl, x, self.int_splat(16, lanes))?;
        Ok(self.builder.build_bit_cast(x, self.row_type(Elem::F32, lanes), "")?)
    }

    /// Round to nearest even by adding 0x7fff plus the last kept bit; a NaN keeps its upper half, made quiet.
    fn f32_to_bf16(&self, x: BasicValueEnum<'c>, lanes: u32) -> Result<BasicValueEnum<'c>, LlvmError> {
        let bits = self.builder.build_bit_cast(x, self.row_type(Elem::I32, lanes), "")?;
        let upper = self.binary(Binary::Shr, bits, self.int_splat(16, lanes))?;
        let odd = self.binary(Binary::And, upper, self.int_splat(1, lanes))?;
        let bias = self.binary(Binary::Add, odd, self.int_splat(0x7fff, lanes))?;
        let rounded = self.binary(Binary::Add, bits, bias)?;
        let rounded = self.binary(Binary::Shr, rounded, self.int_splat(16, lanes))?;
        let quiet = self.binary(Binary::Or, upper, self.int_splat(0x40, lanes))?;
        let nan = on_floats!(self, build_float_compare, x, x, FloatPredicate::UNO);
        let out = self.select(nan, quiet, rounded)?;
        let row = self.row_type(Elem::BF16, lanes);
        Ok(converted!(self, build_int_truncate, out, row, IntValue, into_int_type))
    }

    /// A scalar in every lane.
    pub fn splat(&self, x: BasicValueEnum<'c>, lanes: u32) -> Result<BasicValueEnum<'c>, LlvmError> {
        if lanes == 1 {
            return Ok(x);
        }
        let ty = vector_of(x.get_type(), lanes);
        let zero = self.context.i32_type().const_zero();
        let first = self.builder.build_insert_element(ty.get_poison(), x, zero, "")?;
        let mask = self.context.i32_type().vec_type(lanes).const_zero();
        Ok(self.builder.build_shuffle_vector(first, ty.get_poison(), mask, "")?.into())
    }

    fn broadcast(&mut self, a: V, ty: &TileType) -> Result<Rows<'c>, LlvmError> {
        let from = self.ty(a).clone();
        let source = self.get(a)?.clone();
        let mut rows = Vec::with_capacity(ty.rows());
        let mut splats: Vec<Option<BasicValueEnum<'c>>> = vec![None; source.len()];
        for row in 0..ty.rows() {
            // Split the row index into coordinates of the result's leading dims, drop those the operand repeats.
            let (mut rest, mut index, mut stride) = (row, 0, 1);
            for axis in (0..ty.shape.len().saturating_sub(1)).rev() {
                let size = ty.shape[axis] as usize;
                let at = rest % size;
                rest /= size;
                if let Some(own) = (axis + from.shape.len()).checked_sub(ty.shape.len()) {
                    let own_size = from.shape[own] as usize;
                    index += if own_size == 1 { 0 } else { at * stride };
                    stride *= own_size;
                }
            }
            if from.lanes() == ty.lanes() {
                rows.push(source[index]);
            } else {
                let splat = match splats[index] {
                    Some(s) => s,
                    None => self.splat(source[index], ty.lanes())?,
                };
                splats[index] = Some(splat);
                rows.push(splat);
            }
        }
        Ok(rows)
    }

    fn reshape(&mut self, a: V, ty: &TileType) -> Result<Rows<'c>, LlvmError> {
        let source = self.get(a)?.clone();
        let from = self.ty(a).lanes();
        if from == ty.lanes() {
            return Ok(source);
        }
        let mut elements = Vec::new();
        for row in source {
            for lane in 0..from {
                elements.push(self.extract(row, lane)?);
            }
        }
        elements.chunks(ty.lanes() as usize).map(|lanes| self.gather_lanes(lanes)).collect()
    }

    /// One lane of a row.
    pub fn extract(&self, row: BasicValueEnum<'c>, lane: u32) -> Result<BasicValueEnum<'c>, LlvmError> {
        match row {
            BasicValueEnum::VectorValue(v) => Ok(self.builder.build_extract_element(v, self.lane_index(lane), "")?),
            scalar => Ok(scalar),
        }
    }

    fn lane_index(&self, lane: u32) -> IntValue<'c> {
        self.context.i32_type().const_int(u64::from(lane), false)
    }

    /// A row from scalars.
    pub fn gather_lanes(&self, lanes: &[BasicValueEnum<'c>]) -> Result<BasicValueEnum<'c>, LlvmError> {
        if lanes.len() == 1 {
            return Ok(lanes[0]);
        }
        let mut row = vector_of(lanes[0].get_type(), lanes.len() as u32).get_poison();
        for (i, x) in lanes.iter().enumerate() {
            row = self.builder.build_insert_element(row, *x, self.lane_index(i as u32), "")?;
        }
        Ok(row.into())
    }

    /// Lanes `from..from + n` of a row.
    pub fn lanes(&self, row: VectorValue<'c>, from: u32, n: u32) -> Result<VectorValue<'c>, LlvmError> {
        let index: Vec<_> = (from..from + n).map(|i| self.lane_index(i)).collect();
        let mask = inkwell::types::VectorType::const_vector(&index);
        Ok(self.builder.build_shuffle_vector(row, row.get_type().get_poison(), mask, "")?)
    }

    fn combine(
        &self,
        op: Reduction,
        a: BasicValueEnum<'c>,
        b: BasicValueEnum<'c>,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        self.binary(if op == Reduction::Sum { Binary::Add } else { Binary::Max }, a, b)
    }

    fn reduce(&mut self, op: Reduction, a: V, axis: usize) -> Result<Rows<'c>, LlvmError> {
        let ty = self.ty(a).clone();
        let rows = self.get(a)?.clone();
        if axis + 1 == ty.shape.len() {
            return rows.into_iter().map(|row| self.reduce_lanes(op, row, ty.lanes())).collect();
        }
        let inner: usize = ty.shape[axis + 1..ty.shape.len() - 1].iter().product::<u32>() as usize;
        let size = ty.shape[axis] as usize;
        let mut out = Vec::new();
        for outer in rows.chunks(size * inner) {
            for i in 0..inner {
                let mut parts: Vec<_> = (0..size).map(|j| outer[j * inner + i]).collect();
                while parts.len() > 1 {
                    parts = parts
                        .chunks(2)
                        .map(|p| if p.len() == 2 { self.combine(op, p[0], p[1]) } else { Ok(p[0]) })
                        .collect::<Result<_, _>>()?;
                }
                out.push(parts[0]);
            }
        }
        Ok(out)
    }

    /// Halves a row until one lane is left; an odd tail is folded in at the end.
    fn reduce_lanes(
        &self,
        op: Reduction,
        row: BasicValueEnum<'c>,
        lanes: u32,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        let (mut row, mut n, mut tail) = (row, lanes, None);
        while n > 1 {
            let v = row.into_vector_value();
            if n % 2 == 1 {
                let last = self.extract(row, n - 1)?;
                tail = Some(match tail {
                    Some(t) => self.combine(op, t, last)?,
                    None => last,
                });
            }
            let half = n / 2;
            row = if half == 1 {
                self.combine(op, self.extract(row, 0)?, self.extract(row, 1)?)?
            } else {
                self.combine(op, self.lanes(v, 0, half)?.into(), self.lanes(v, half, half)?.into())?
            };
            n = half;
        }
        match tail {
            Some(t) => self.combine(op, row, t),
            None => Ok(row),
        }
    }
}

fn element_is_int(v: VectorValue<'_>) -> bool {
    matches!(v.get_type().get_element_type(), BasicTypeEnum::IntType(_))
}

fn is_float(x: BasicValueEnum<'_>) -> bool {
    match x {
        BasicValueEnum::FloatValue(_) => true,
        BasicValueEnum::VectorValue(v) => !element_is_int(v),
        _ => false,
    }
}

pub(super) fn int_constant(ty: BasicTypeEnum<'_>, n: i64) -> BasicValueEnum<'_> {
    ty.into_int_type().const_int(n as u64, true).into()
}

/// A constant in every lane.
pub(super) fn constant_splat(one: BasicValueEnum<'_>, lanes: u32) -> BasicValueEnum<'_> {
    if lanes == 1 {
        return one;
    }
    match one {
        BasicValueEnum::IntValue(x) => inkwell::types::VectorType::const_vector(&vec![x; lanes as usize]).into(),
        BasicValueEnum::FloatValue(x) => inkwell::types::VectorType::const_vector(&vec![x; lanes as usize]).into(),
        other => other,
    }
}
