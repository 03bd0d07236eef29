//! What GPU programs exchange with other ranks: pushes, arrivals, signals.
//!
//! Relaxed accesses at system scope are volatile vectors on NVIDIA (`ld.volatile` and `st.volatile` are relaxed at system scope,
//! and 16 bytes wide), and atomic words of up to 8 bytes on AMD, where a volatile access would wait for itself.

use super::emit::{Emit, Regs};
use super::layout::Layout;
use crate::llvm::LlvmError;
use crate::llvm::ops::{instruction, text, vector_of};
use crate::tile::{Address, Elem, TileType, V, Waiting};
use inkwell::types::BasicTypeEnum;
use inkwell::values::{BasicValueEnum, InstructionValue, IntValue, PointerValue};
use inkwell::{AtomicOrdering, IntPredicate};
use weldment_artifact::comm_table;

/// Looks between two at the abort word, less one: a power of two less one. The word is in the host's memory, where a look of every
/// resident thread takes about 2 ms (seen on H200): were it asked sooner than that, ranks would make each other late for ever.
const LOOKS: u64 = (1 << 14) - 1;

/// `s_waitcnt vmcnt(0)`, in the encoding of GFX9.
const VECTOR_MEMORY_DONE: u64 = 0x0f70;

impl<'c, 'k> Emit<'c, 'k> {
    /// The words as which `bytes` (2, 4, 8 or 16) travel.
    fn words(&self, bytes: u64) -> (inkwell::types::IntType<'c>, u32) {
        match (bytes, self.arch.is_amd()) {
            (2, _) => (self.context.i16_type(), 1),
            (8 | 16, true) => (self.context.i64_type(), bytes as u32 / 8),
            _ => (self.context.i32_type(), bytes as u32 / 4),
        }
    }

    /// The access that does not wait for others and that other ranks take part in.
    fn relaxed(&self, access: InstructionValue<'c>, align: u32) -> Result<(), LlvmError> {
        access.set_alignment(align).map_err(text)?;
        if self.arch.is_amd() {
            access.set_atomic_ordering(AtomicOrdering::Monotonic).map_err(text)
        } else {
            access.set_volatile(true).map_err(text)
        }
    }

    /// Stores neighbours of `elem`, together up to 16 bytes.
    fn push_group(&self, at: PointerValue<'c>, parts: &[BasicValueEnum<'c>], elem: Elem) -> Result<(), LlvmError> {
        let bytes = elem.bytes() * parts.len() as u64;
        let (word, count) = self.words(bytes);
        let row = self.gather_lanes(parts)?;
        if count == 1 || !self.arch.is_amd() {
            let kind: BasicTypeEnum<'c> = if count == 1 { word.into() } else { vector_of(word.into(), count).into() };
            let store = self.builder.build_store(at, self.builder.build_bit_cast(row, kind, "")?)?;
            return self.relaxed(store, bytes as u32);
        }
        let words = self.builder.build_bit_cast(row, vector_of(word.into(), count), "")?;
        for i in 0..count {
            let store = self.builder.build_store(self.byte_offset(at, 8 * i64::from(i))?, self.extract(words, i)?)?;
            self.relaxed(store, 8)?;
        }
        Ok(())
    }

    /// Loads neighbours as words: one value for each.
    fn look_group(&self, at: PointerValue<'c>, bytes: u64) -> Result<Regs<'c>, LlvmError> {
        let (word, count) = self.words(bytes);
        if count == 1 || !self.arch.is_amd() {
            let kind: BasicTypeEnum<'c> = if count == 1 { word.into() } else { vector_of(word.into(), count).into() };
            let loaded = self.builder.build_load(kind, at, "")?;
            self.relaxed(instruction(loaded)?, bytes as u32)?;
            return (0..count).map(|i| self.extract(loaded, i)).collect();
        }
        (0..count)
            .map(|i| {
                let loaded = self.builder.build_load(word, self.byte_offset(at, 8 * i64::from(i))?, "")?;
                self.relaxed(instruction(loaded)?, 8)?;
                Ok(loaded)
            })
            .collect()
    }

    /// Not 0 if an element of the word has the bits `empty`.
    fn empties(&self, word: IntValue<'c>, elem: Elem, empty: u32) -> Result<IntValue<'c>, LlvmError> {
        let (kind, width) = (word.get_type(), u64::from(word.get_type().get_bit_width()));
        let lane = 8 * elem.bytes();
        let each = |x: u64| kind.const_int((0..width / lane).fold(0, |all, i| all | x << (lane * i)), false);
        // The classic search for a zero lane, which only a zero lane answers.
        let b = &self.builder;
        let other = b.build_xor(word, each(u64::from(empty)), "")?;
        let less = b.build_int_sub(other, each(1), "")?;
        let high = b.build_and(b.build_not(other, "")?, each(1 << (lane - 1)), "")?;
        Ok(b.build_and(less, high, "")?)
    }

    pub fn push(&mut self, address: &Address, value: V, mask: Option<V>) -> Result<(), LlvmError> {
        let ty = self.ty(value).clone();
        let layout = self.natural(value);
        let regs = self.get(value, &layout)?;
        let a = self.access(address, &ty, mask, &layout)?;
        self.replicas(&layout, |e| {
            for group in &a.groups {
                let at = e.place(&a, &layout, group[0])?;
                let parts: Regs<'c> = group.iter().map(|r| regs[*r]).collect();
                match Self::condition(&a, group[0]) {
                    Some(c) => e.when(c, |e| e.push_group(at, &parts, ty.elem))?,
                    None => e.push_group(at, &parts, ty.elem)?,
                }
            }
            Ok(())
        })
    }

    pub fn arrive(
        &mut self,
        (address, mask): (&Address, Option<V>),
        ty: &TileType,
        empty: u32,
        waiting: Waiting,
        layout: &Layout,
    ) -> Result<Regs<'c>, LlvmError> {
        let a = self.access(address, ty, mask, layout)?;
        // What is never there is not looked at.
        let never = |c: Option<IntValue<'c>>| c.and_then(|c| c.get_zero_extended_constant()) == Some(0);
        let groups: Vec<&Vec<usize>> = a.groups.iter().filter(|g| !never(Self::condition(&a, g[0]))).collect();
        let mut places = Vec::with_capacity(groups.len());
        for group in &groups {
            let at = self.place(&a, layout, group[0])?;
            places.push(match Self::condition(&a, group[0]) {
                // Masked lanes look at the start of the parameter, which is there, and drop what they see.
                Some(c) => {
                    let start = self.params[address.param.0 as usize];
                    self.builder.build_select(c, at, start, "")?.into_pointer_value()
                }
                None => at,
            });
        }
        let bytes = ty.elem.bytes() * a.groups[0].len() as u64;
        let found = self.look(waiting, |e| {
            // Everything is under way before the first is looked at.
            let words = places.iter().map(|at| e.look_group(*at, bytes)).collect::<Result<Vec<_>, _>>()?;
            let mut missing: Option<IntValue<'c>> = None;
            for (group, words) in groups.iter().zip(&words) {
                let mut here: Option<IntValue<'c>> = None;
                for word in words {
                    let empties = e.empties(word.into_int_value(), ty.elem, empty)?;
                    here = Some(here.map_or(Ok(empties), |h| e.builder.build_or(h, empties, ""))?);
                }
                let Some(here) = here else { continue };
                let mut here = e.builder.build_int_compare(IntPredicate::NE, here, here.get_type().const_zero(), "")?;
                if let Some(c) = Self::condition(&a, group[0]) {
                    here = e.builder.build_and(here, c, "")?;
                }
                missing = Some(missing.map_or(Ok(here), |m| e.builder.build_or(m, here, ""))?);
            }
            Ok((missing.unwrap_or(e.context.bool_type().const_zero()), words))
        })?;
        let scalar = self.elem_type(ty.elem);
        let mut out: Regs<'c> = vec![scalar.const_zero(); layout.count()];
        for (group, words) in groups.iter().zip(found) {
            let words = self.gather_lanes(&words)?;
            let row = self.builder.build_bit_cast(words, self.row_type(ty.elem, group.len() as u32), "")?;
            let row = match Self::condition(&a, group[0]) {
                Some(c) => self.builder.build_select(c, row, row.get_type().const_zero(), "")?,
                None => row,
            };
            for (lane, r) in group.iter().enumerate() {
                out[*r] = self.extract(row, lane as u32)?;
            }
        }
        Ok(out)
    }

    pub fn signal(&mut self, address: &Address, value: V, release: bool) -> Result<(), LlvmError> {
        let (layout, word, at) = self.word(address, value)?;
        // What any thread did before is done before the word is written. A barrier of AMD's orders waves of a block, but does
        // not wait for what they have under way to memory, and the release of one wave waits for its own alone.
        let amd_release = release && self.arch.is_amd();
        if amd_release {
            self.wait_for_memory()?;
        }
        self.barrier()?;
        let order = if release && !amd_release { AtomicOrdering::Release } else { AtomicOrdering::Monotonic };
        self.replicas(&layout, |e| {
            if amd_release {
                // LLVM 22 takes the wait after the write-back for needless where no store is under way.
                e.builder.build_fence(AtomicOrdering::Release, false, "")?;
                e.wait_for_memory()?;
            }
            e.store_word(at, word, order)
        })
    }

    /// Waits until the thread's accesses to memory are done, on AMD.
    fn wait_for_memory(&self) -> Result<(), LlvmError> {
        self.call("llvm.amdgcn.s.waitcnt", &[self.i32(VECTOR_MEMORY_DONE).into()])
    }

    pub fn wait_for(&mut self, address: &Address, value: V, waiting: Waiting) -> Result<(), LlvmError> {
        let (layout, word, at) = self.word(address, value)?;
        self.replicas(&layout, |e| e.look(waiting, |e| e.behind(at, word)).map(drop))?;
        self.barrier()
    }

    /// The layout of a word, which one thread has, its value, and its place.
    fn word(&mut self, address: &Address, value: V) -> Result<(Layout, IntValue<'c>, PointerValue<'c>), LlvmError> {
        let (ty, layout) = (self.ty(value).clone(), self.natural(value));
        let word = self.get(value, &layout)?[0].into_int_value();
        let a = self.access(address, &ty, None, &layout)?;
        let at = self.place(&a, &layout, 0)?;
        Ok((layout, word, at))
    }

    /// Looks until nothing is missing, or the abort word says that the job is over. `once` gives what is missing and what was
    /// read.
    fn look<T>(
        &mut self,
        waiting: Waiting,
        once: impl FnOnce(&mut Self) -> Result<(IntValue<'c>, T), LlvmError>,
    ) -> Result<T, LlvmError> {
        let (i32t, i64t) = (self.context.i32_type(), self.context.i64_type());
        let before = self.current_block()?;
        let block = |name| self.context.append_basic_block(self.function, name);
        let (head, again, ask, after) = (block("look"), block("again"), block("ask"), block("arrived"));
        self.builder.build_unconditional_branch(head)?;
        self.builder.position_at_end(head);
        let looks = self.builder.build_phi(i32t, "looks")?;
        let (missing, found) = once(self)?;
        self.builder.build_conditional_branch(missing, again, after)?;
        self.builder.position_at_end(again);
        let count = self.builder.build_int_add(looks.as_basic_value().into_int_value(), self.i32(1), "")?;
        let part = self.builder.build_and(count, self.i32(LOOKS), "")?;
        let due = self.builder.build_int_compare(IntPredicate::EQ, part, self.i32(0), "")?;
        self.builder.build_conditional_branch(due, ask, head)?;
        self.builder.position_at_end(ask);
        let at = self.byte_offset(self.params[waiting.comm.0 as usize], comm_table::ABORT as i64)?;
        let distance = self.builder.build_load(i64t, at, "")?;
        self.invariant(distance)?;
        let word = self.dynamic_offset(self.params[waiting.slab.0 as usize], distance.into_int_value())?;
        // Whoever watches the ranks sees that this one waits, and for how long.
        let told = self.builder.build_store(self.byte_offset(word, 4)?, count)?;
        self.relaxed(told, 4)?;
        let word = self.look_group(word, 4)?[0].into_int_value();
        let on = self.builder.build_int_compare(IntPredicate::EQ, word, self.i32(0), "")?;
        self.builder.build_conditional_branch(on, head, after)?;
        looks.add_incoming(&[(&i32t.const_zero(), before), (&count, again), (&count, ask)]);
        self.builder.position_at_end(after);
        Ok(found)
    }
}
