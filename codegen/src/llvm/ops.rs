//! Scalar and vector operations on LLVM values, the same for every target: arithmetic, conversions, lanes, addresses.

use super::LlvmError;
use crate::tile::{Binary, Compare, Conversion, Elem, Reduction, Unary};
use inkwell::builder::Builder;
use inkwell::context::Context;
use inkwell::intrinsics::Intrinsic;
use inkwell::module::Module;
use inkwell::types::{BasicType, BasicTypeEnum, VectorType};
use inkwell::values::{
    BasicValue, BasicValueEnum, FunctionValue, InstructionValue, IntValue, PointerValue, VectorValue,
};
use inkwell::{AtomicOrdering, FloatPredicate, IntPredicate};

/// What inkwell says of an access that it does not take.
pub(super) fn text(e: impl std::fmt::Display) -> LlvmError {
    LlvmError::Llvm(e.to_string())
}

/// The load that gave a value.
pub(super) fn instruction(value: BasicValueEnum<'_>) -> Result<InstructionValue<'_>, LlvmError> {
    value.as_instruction_value().ok_or_else(|| LlvmError::Llvm("a load without an instruction".into()))
}

/// Where instructions go.
pub(super) struct Ops<'c, 'k> {
    pub context: &'c Context,
    pub module: &'k Module<'c>,
    pub builder: Builder<'c>,
    pub function: FunctionValue<'c>,
}

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

impl<'c> Ops<'c, '_> {
    /// LLVM element type; bf16 travels as i16, since LLVM's bfloat needs library calls where the CPU lacks it.
    pub fn elem_type(&self, elem: Elem) -> BasicTypeEnum<'c> {
        match elem {
            Elem::I1 => self.context.bool_type().into(),
            Elem::I8 => self.context.i8_type().into(),
            Elem::I16 | Elem::BF16 => self.context.i16_type().into(),
            Elem::I32 => self.context.i32_type().into(),
            Elem::I64 => self.context.i64_type().into(),
            Elem::F16 => self.context.f16_type().into(),
            Elem::F32 => self.context.f32_type().into(),
        }
    }

    /// LLVM type of one row.
    pub fn row_type(&self, elem: Elem, lanes: u32) -> BasicTypeEnum<'c> {
        let scalar = self.elem_type(elem);
        if lanes == 1 { scalar } else { vector_of(scalar, lanes).into() }
    }

    /// `base + bytes`.
    pub fn byte_offset(&self, base: PointerValue<'c>, bytes: i64) -> Result<PointerValue<'c>, LlvmError> {
        let offset = self.context.i64_type().const_int(bytes as u64, true);
        self.dynamic_offset(base, offset)
    }

    /// Stores a word that is waited for.
    pub fn store_word(&self, at: PointerValue<'c>, word: IntValue<'c>, order: AtomicOrdering) -> Result<(), LlvmError> {
        let store = self.builder.build_store(at, word)?;
        store.set_alignment(4).map_err(text)?;
        store.set_atomic_ordering(order).map_err(text)
    }

    /// Acquires an i32 word: i1, it has not come as far as `word`; and what it is. Compared by distance, so that the count may wrap.
    pub fn behind(
        &self,
        at: PointerValue<'c>,
        word: IntValue<'c>,
    ) -> Result<(IntValue<'c>, BasicValueEnum<'c>), LlvmError> {
        let i32t = self.context.i32_type();
        let loaded = self.builder.build_load(i32t, at, "")?;
        let load = instruction(loaded)?;
        load.set_alignment(4).map_err(text)?;
        load.set_atomic_ordering(AtomicOrdering::Acquire).map_err(text)?;
        let ahead = self.builder.build_int_sub(loaded.into_int_value(), word, "")?;
        Ok((self.builder.build_int_compare(IntPredicate::SLT, ahead, i32t.const_zero(), "")?, loaded))
    }

    /// `base + bytes` for a run-time offset.
    pub fn dynamic_offset(&self, base: PointerValue<'c>, bytes: IntValue<'c>) -> Result<PointerValue<'c>, LlvmError> {
        // SAFETY: an i8 GEP has no index type to get wrong; whether the address is in bounds is the kernel family's
        // precondition, checked by the interpreter comparison and the canary tests.
        Ok(unsafe { self.builder.build_gep(self.context.i8_type(), base, &[bytes], "")? })
    }

    /// Marks a load of memory that no kernel writes while it runs (arguments, dims).
    pub fn invariant(&self, loaded: BasicValueEnum<'c>) -> Result<(), LlvmError> {
        let kind = self.context.get_kind_id("invariant.load");
        let instruction =
            loaded.as_instruction_value().ok_or_else(|| LlvmError::Llvm("a load without an instruction".into()))?;
        instruction.set_metadata(self.context.metadata_node(&[]), kind).map_err(|e| LlvmError::Llvm(e.to_string()))
    }

    /// Calls an intrinsic, bit-casting arguments to its parameter types and the result to `result`.
    pub fn intrinsic(
        &self,
        name: &str,
        overload: &[BasicTypeEnum<'c>],
        args: &[BasicValueEnum<'c>],
        result: BasicTypeEnum<'c>,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        let missing = || LlvmError::Intrinsic(name.to_owned());
        let function =
            Intrinsic::find(name).and_then(|i| i.get_declaration(self.module, overload)).ok_or_else(missing)?;
        let mut converted = Vec::with_capacity(args.len());
        for (arg, param) in args.iter().zip(function.get_type().get_param_types()) {
            let param = BasicTypeEnum::try_from(param).map_err(|_| missing())?;
            converted.push(if arg.get_type() == param {
                (*arg).into()
            } else {
                self.builder.build_bit_cast(*arg, param, "")?.into()
            });
        }
        let call = self.builder.build_call(function, &converted, "")?;
        let value = call.try_as_basic_value().basic().ok_or_else(missing)?;
        if value.get_type() == result { Ok(value) } else { Ok(self.builder.build_bit_cast(value, result, "")?) }
    }

    pub fn current_block(&self) -> Result<inkwell::basic_block::BasicBlock<'c>, LlvmError> {
        self.builder.get_insert_block().ok_or_else(|| LlvmError::Llvm("no insertion point".into()))
    }

    pub fn unary(&self, op: Unary, x: BasicValueEnum<'c>) -> Result<BasicValueEnum<'c>, LlvmError> {
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
            (Unary::Exp2 | Unary::Reciprocal, _) => Err(LlvmError::Tile(format!("{op:?} on a host"))),
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
            // The builder folds constants alone.
            (Binary::And, false) if is_zero(a) => a,
            (Binary::And, false) if is_zero(b) => b,
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

    pub fn compare(
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

    pub fn select(
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

    pub fn convert(
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

    pub fn int_splat(&self, n: i64, lanes: u32) -> BasicValueEnum<'c> {
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
    pub fn f32_to_bf16(&self, x: BasicValueEnum<'c>, lanes: u32) -> Result<BasicValueEnum<'c>, LlvmError> {
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

    /// One lane of a row.
    pub fn extract(&self, row: BasicValueEnum<'c>, lane: u32) -> Result<BasicValueEnum<'c>, LlvmError> {
        match row {
            BasicValueEnum::VectorValue(v) => Ok(self.builder.build_extract_element(v, self.lane_index(lane), "")?),
            scalar => Ok(scalar),
        }
    }

    pub fn lane_index(&self, lane: u32) -> IntValue<'c> {
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

    pub fn combine(
        &self,
        op: Reduction,
        a: BasicValueEnum<'c>,
        b: BasicValueEnum<'c>,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        self.binary(if op == Reduction::Sum { Binary::Add } else { Binary::Max }, a, b)
    }
}

fn element_is_int(v: VectorValue<'_>) -> bool {
    matches!(v.get_type().get_element_type(), BasicTypeEnum::IntType(_))
}

fn is_zero(x: BasicValueEnum<'_>) -> bool {
    matches!(x, BasicValueEnum::IntValue(x) if x.get_zero_extended_constant() == Some(0))
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

/// A vector type over any scalar type.
pub(super) fn vector_of(scalar: BasicTypeEnum<'_>, lanes: u32) -> VectorType<'_> {
    match scalar {
        BasicTypeEnum::FloatType(t) => t.vec_type(lanes),
        BasicTypeEnum::IntType(t) => t.vec_type(lanes),
        other => unreachable!("tile elements are ints and floats, not {}", other.as_basic_type_enum()),
    }
}
