//! Loads and stores: as wide as strides and alignment allow, up to 16 bytes a thread.

use super::emit::{Emit, Regs};
use super::layout::{Layout, first_bit, log2};
use crate::llvm::LlvmError;
use crate::llvm::ops::vector_of;
use crate::tile::{Address, TileType, V};
use inkwell::values::{BasicValue, BasicValueEnum, IntValue, PointerValue};

/// Byte stride of each element bit.
fn bit_strides(address: &Address, ty: &TileType) -> Vec<i64> {
    let mut out = vec![0; super::layout::bits(&ty.shape) as usize];
    for (axis, size) in ty.shape.iter().enumerate() {
        let first = first_bit(&ty.shape, axis);
        for bit in 0..log2(*size) {
            out[(first + bit) as usize] = address.strides[axis] << bit;
        }
    }
    out
}

/// How the registers of one tile meet memory.
pub(super) struct Access<'c> {
    /// Registers of each access, in order of address.
    pub groups: Vec<Vec<usize>>,
    strides: Vec<i64>,
    /// Start of the tile plus the thread's own part.
    start: PointerValue<'c>,
    /// Registers of the per-index offsets, by register of the tile.
    offsets: Option<Regs<'c>>,
    /// Registers of the mask, by register of the tile.
    mask: Option<Regs<'c>>,
}

impl<'c> Emit<'c, '_> {
    pub(super) fn access(
        &mut self,
        address: &Address,
        ty: &TileType,
        mask: Option<V>,
        layout: &Layout,
    ) -> Result<Access<'c>, LlvmError> {
        let strides = bit_strides(address, ty);
        let spread = |e: &mut Self, v: V| -> Result<Regs<'c>, LlvmError> {
            let map = super::layout::broadcast_bits(&e.ty(v).shape, &ty.shape);
            let regs = e.get(v, &layout.map(|b| map[b as usize]))?;
            Ok((0..layout.count()).map(|r| regs[layout.mapped_register(r, |b| map[b as usize])]).collect())
        };
        let mask = mask.map(|m| spread(self, m)).transpose()?;
        let offsets = address.gather.map(|g| spread(self, g)).transpose()?;
        let bytes = ty.elem.bytes();
        let mut run = layout.run(bytes, |b| strides[b as usize]);
        // A vector access must be aligned whole: every other stride and the start have to be multiples of it.
        let mut zeros = self.inferred.start_zeros(address);
        if let Some(g) = address.gather {
            zeros = zeros.min(self.inferred.divisor(g));
        }
        let rest = layout.regs.iter().enumerate().filter(|(i, _)| !run.contains(i)).map(|(_, b)| b);
        zeros = rest
            .chain(layout.threads.iter().flatten())
            .fold(zeros, |z, b| z.min(strides[*b as usize].trailing_zeros()));
        run.truncate((zeros as usize).saturating_sub(log2(bytes as u32) as usize));
        let offset = self.scalar(address.offset)?;
        let start = self.dynamic_offset(self.params[address.param.0 as usize], offset)?;
        let own = self.thread_part(layout, &|b| strides[b as usize])?;
        let own = self.builder.build_int_s_extend(own, self.context.i64_type(), "")?;
        let start = self.dynamic_offset(start, own)?;
        // Within a vector all elements share mask and offset, or they are accessed one by one.
        let mut groups = layout.groups(&run);
        let alike = |regs: &Option<Regs<'c>>, groups: &[Vec<usize>]| {
            regs.as_ref().is_none_or(|x| groups.iter().all(|g| g.iter().all(|r| x[*r] == x[g[0]])))
        };
        while !(alike(&mask, &groups) && alike(&offsets, &groups)) {
            run.pop();
            groups = layout.groups(&run);
        }
        Ok(Access { groups, strides, start, offsets, mask })
    }

    /// Address of the access that starts at register `first`.
    pub(super) fn place(&self, a: &Access<'c>, layout: &Layout, first: usize) -> Result<PointerValue<'c>, LlvmError> {
        let constant: i64 =
            layout.regs.iter().enumerate().map(|(i, b)| (first >> i & 1) as i64 * a.strides[*b as usize]).sum();
        let mut at = a.start;
        if let Some(offsets) = &a.offsets {
            at = self.dynamic_offset(at, offsets[first].into_int_value())?;
        }
        if constant == 0 { Ok(at) } else { self.byte_offset(at, constant) }
    }

    pub(super) fn condition(a: &Access<'c>, first: usize) -> Option<IntValue<'c>> {
        a.mask.as_ref().map(|m| m[first].into_int_value())
    }

    pub fn load(
        &mut self,
        address: &Address,
        ty: &TileType,
        mask: Option<V>,
        layout: &Layout,
    ) -> Result<Regs<'c>, LlvmError> {
        let param = address.param.0 as usize;
        if self.dirty[param] {
            self.barrier()?;
        }
        let a = self.access(address, ty, mask, layout)?;
        let scalar = self.elem_type(ty.elem);
        let width = a.groups[0].len();
        let row = if width == 1 { scalar } else { vector_of(scalar, width as u32).into() };
        let mut out: Regs<'c> = vec![scalar.const_zero(); layout.count()];
        for group in &a.groups {
            let first = group[0];
            let mut at = self.place(&a, layout, first)?;
            let condition = Self::condition(&a, first);
            if let Some(c) = condition {
                // Masked-off lanes read the parameter's start, which is always there, and drop what they got: no branch, so that
                // many loads are in flight at once.
                at = self.builder.build_select(c, at, self.params[param], "")?.into_pointer_value();
            }
            let loaded = self.builder.build_load(row, at, "")?;
            if let Some(i) = loaded.as_instruction_value() {
                let align = ty.elem.bytes() as u32 * width as u32;
                i.set_alignment(align).map_err(|e| LlvmError::Llvm(e.to_string()))?;
            }
            match (loaded.as_instruction_value(), self.kernel.params[param].constant, self.waited) {
                // What is loaded ahead of the wait for earlier launches is there to overlap with them, and ptxas moves the wait
                // past loads of constants.
                (Some(i), true, false) => i.set_volatile(true).map_err(|e| LlvmError::Llvm(e.to_string()))?,
                // What is loaded ahead of a wait for other ranks is there to overlap with it, and LLVM moves loads of constants to
                // where they are wanted.
                (_, true, true) if self.arch.is_amd() && self.ahead_of_ranks => {}
                (_, true, true) => self.invariant(loaded)?,
                _ => {}
            }
            let loaded = match condition {
                Some(c) => self.builder.build_select(c, loaded, row.const_zero(), "")?,
                None => loaded,
            };
            for (lane, r) in group.iter().enumerate() {
                out[*r] = self.extract(loaded, lane as u32)?;
            }
        }
        Ok(out)
    }

    pub fn store(&mut self, address: &Address, value: V, mask: Option<V>) -> Result<(), LlvmError> {
        let ty = self.ty(value).clone();
        let layout = self.natural(value);
        let regs = self.get(value, &layout)?;
        let a = self.access(address, &ty, mask, &layout)?;
        let width = a.groups[0].len();
        self.dirty[address.param.0 as usize] = true;
        self.replicas(&layout, |e| {
            for group in &a.groups {
                let first = group[0];
                let at = e.place(&a, &layout, first)?;
                let parts: Regs<'c> = group.iter().map(|r| regs[*r]).collect();
                let row: BasicValueEnum<'c> = e.gather_lanes(&parts)?;
                let write = |e: &mut Self| -> Result<(), LlvmError> {
                    let store = e.builder.build_store(at, row)?;
                    let align = ty.elem.bytes() as u32 * width as u32;
                    store.set_alignment(align).map_err(|e| LlvmError::Llvm(e.to_string()))
                };
                match Self::condition(&a, first) {
                    Some(c) => e.when(c, write)?,
                    None => write(e)?,
                }
            }
            Ok(())
        })
    }
}
