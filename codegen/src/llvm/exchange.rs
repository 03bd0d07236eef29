//! What host programs exchange with other ranks: pushes, arrivals, signals.
//!
//! Tiles travel as volatile vectors. On x86-64 an aligned element of a vector is read and written whole, which is all that data
//! that is its own flag needs; no order between elements is asked for. Signals are atomic words.

use super::LlvmError;
use super::lower::{Lower, Rows};
use super::memory::row_offsets;
use super::ops::{constant_splat, instruction, text};
use crate::tile::{Address, Compare, Elem, TileType, V, Waiting};
use inkwell::values::{BasicValueEnum, IntValue, PointerValue};
use inkwell::{AtomicOrdering, IntPredicate};
use std::num::NonZeroU32;
use weldment_artifact::comm_table;

impl<'c, 'k> Lower<'c, 'k> {
    /// Where each row of a tile starts that is pushed or waited for, whole.
    fn row_starts(
        &self,
        address: &Address,
        ty: &TileType,
        mask: Option<V>,
    ) -> Result<Vec<PointerValue<'c>>, LlvmError> {
        if mask.is_some() || (ty.lanes() != 1 && address.strides.last() != Some(&(ty.elem.bytes() as i64))) {
            return Err(LlvmError::Tile(format!("{}: rows for ranks are whole and contiguous", self.kernel.name)));
        }
        let base = self.base(address)?;
        let rows = row_offsets(ty, &address.strides).into_iter().enumerate();
        rows.map(|(i, offset)| self.row_start(base, address, ty, i, offset)).collect()
    }

    pub fn push(&mut self, address: &Address, value: V, mask: Option<V>) -> Result<(), LlvmError> {
        let (ty, rows) = (self.ty(value).clone(), self.get(value)?.clone());
        for (at, row) in self.row_starts(address, &ty, mask)?.into_iter().zip(rows) {
            let store = self.builder.build_store(at, row)?;
            store.set_alignment(address.align).map_err(text)?;
            store.set_volatile(true).map_err(text)?;
        }
        Ok(())
    }

    pub fn arrive(
        &mut self,
        address: &Address,
        ty: &TileType,
        mask: Option<V>,
        empty: u32,
        waiting: Waiting,
    ) -> Result<Rows<'c>, LlvmError> {
        let row = self.row_type(ty.elem, ty.lanes());
        let word = self.elem_type(if ty.elem.bytes() == 2 { Elem::I16 } else { Elem::I32 }).into_int_type();
        let nothing = constant_splat(word.const_int(u64::from(empty), false).into(), ty.lanes());
        let starts = self.row_starts(address, ty, mask)?;
        let arrived = starts.into_iter().map(|at| {
            self.look(waiting, |lower| {
                let loaded = lower.builder.build_load(row, at, "")?;
                let load = instruction(loaded)?;
                load.set_alignment(address.align).map_err(text)?;
                load.set_volatile(true).map_err(text)?;
                let words = lower.builder.build_bit_cast(loaded, nothing.get_type(), "")?;
                let missing = lower.compare(Compare::Equal, words, nothing)?;
                Ok((lower.any(missing)?, loaded))
            })
        });
        arrived.collect()
    }

    pub fn signal(&mut self, address: &Address, value: V, release: bool) -> Result<(), LlvmError> {
        let word = self.scalar(value)?;
        let at = self.base(address)?;
        self.store_word(at, word, if release { AtomicOrdering::Release } else { AtomicOrdering::Monotonic })
    }

    pub fn wait_for(&mut self, address: &Address, value: V, waiting: Waiting) -> Result<(), LlvmError> {
        let word = self.scalar(value)?;
        let at = self.base(address)?;
        self.look(waiting, |lower| lower.behind(at, word)).map(drop)
    }

    /// Looks, and rests by the comm table's callback, until nothing is missing or the callback says that the job is over. `once`
    /// gives what is missing and what was read.
    fn look(
        &mut self,
        waiting: Waiting,
        once: impl FnOnce(&mut Self) -> Result<(IntValue<'c>, BasicValueEnum<'c>), LlvmError>,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        let comm = self.params[waiting.comm.0 as usize];
        let (i32t, i64t, pointer) =
            (self.context.i32_type(), self.context.i64_type(), self.context.ptr_type(Default::default()));
        let before = self.current_block()?;
        let head = self.context.append_basic_block(self.function, "look");
        let rest = self.context.append_basic_block(self.function, "rest");
        let after = self.context.append_basic_block(self.function, "arrived");
        self.builder.build_unconditional_branch(head)?;
        self.builder.position_at_end(head);
        let looks = self.builder.build_phi(i64t, "looks")?;
        let (missing, found) = once(self)?;
        self.builder.build_conditional_branch(missing, rest, after)?;
        self.builder.position_at_end(rest);
        let count =
            self.builder.build_int_add(looks.as_basic_value().into_int_value(), i64t.const_int(1, false), "")?;
        let at = self.byte_offset(comm, comm_table::RELAX as i64)?;
        let relax = self.builder.build_load(pointer, at, "relax")?.into_pointer_value();
        let signature = i32t.fn_type(&[pointer.into(), i64t.into()], false);
        let call = self.builder.build_indirect_call(signature, relax, &[comm.into(), count.into()], "")?;
        let over = call.try_as_basic_value().basic().ok_or_else(|| LlvmError::Llvm("a call without a value".into()))?;
        let on = self.builder.build_int_compare(IntPredicate::EQ, over.into_int_value(), i32t.const_zero(), "")?;
        self.builder.build_conditional_branch(on, head, after)?;
        looks.add_incoming(&[(&i64t.const_zero(), before), (&count, rest)]);
        self.builder.position_at_end(after);
        Ok(found)
    }

    /// True where any lane of an i1 row is.
    fn any(&self, row: BasicValueEnum<'c>) -> Result<IntValue<'c>, LlvmError> {
        let BasicValueEnum::VectorValue(bits) = row else { return Ok(row.into_int_value()) };
        let lanes = bits.get_type().get_size();
        let word = NonZeroU32::new(lanes).and_then(|n| self.context.custom_width_int_type(n).ok());
        let word = word.ok_or_else(|| LlvmError::Tile(format!("{}: a row of {lanes}", self.kernel.name)))?;
        let all = self.builder.build_bit_cast(row, word, "")?.into_int_value();
        Ok(self.builder.build_int_compare(IntPredicate::NE, all, word.const_zero(), "")?)
    }
}
