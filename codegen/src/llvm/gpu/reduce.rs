//! Reductions: over a thread's registers, then over the lanes of a wave, then over waves through shared memory. The order is
//! fixed, and every thread that ends with a result has the same bits.

use super::emit::{Emit, Regs};
use super::layout::{Layout, log2};
use crate::llvm::LlvmError;
use crate::tile::{Elem, Reduction};
use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::values::{BasicValueEnum, IntValue};

/// DPP controls (AMD CDNA ISA, "Data Parallel Processing"): swap lanes 1 apart, 2 apart, mirror 8 lanes, mirror 16.
const DPP: [&str; 4] = ["quad_perm:[1,0,3,2]", "quad_perm:[2,3,0,1]", "row_half_mirror", "row_mirror"];

impl<'c> Emit<'c, '_> {
    /// Reduces element bits `first..first + size`. The layout that comes back numbers bits as before and has none of those.
    pub fn reduce(
        &mut self,
        op: Reduction,
        mut regs: Regs<'c>,
        elem: Elem,
        from: &Layout,
        first: u8,
        size: u8,
    ) -> Result<(Regs<'c>, Layout), LlvmError> {
        let reduced = |b: u8| (first..first + size).contains(&b);
        let mut layout = from.clone();
        while let Some(at) = layout.regs.iter().rposition(|b| reduced(*b)) {
            regs = self.fold(op, &regs, at)?;
            layout.regs.remove(at);
        }
        let lane_bits = log2(self.arch.wave()) as usize;
        for lane in 0..lane_bits.min(layout.threads.len()) {
            if layout.threads[lane].is_some_and(reduced) {
                layout.threads[lane] = None;
                let uniform = layout.threads[..lane].iter().all(Option::is_none);
                for x in &mut regs {
                    let other = self.exchange(*x, elem, lane as u32, uniform)?;
                    *x = self.combine(op, *x, other)?;
                }
            }
        }
        let waves: Vec<u8> = layout.threads.iter().flatten().copied().filter(|b| reduced(*b)).collect();
        if waves.is_empty() {
            return Ok((regs, layout));
        }
        // Partial results of the waves change hands as a tile of their own, with dense element bits.
        let mut held: Vec<u8> = layout.regs.iter().copied().chain(layout.threads.iter().flatten().copied()).collect();
        held.sort_unstable();
        let dense = |b: u8| held.binary_search(&b).ok().map(|i| i as u8);
        let parts = layout.map(dense);
        let layout = from.reduced(first, size, lane_bits);
        let mut whole = layout.map(dense);
        let own = whole.regs.len();
        whole.regs.extend(waves.iter().filter_map(|b| dense(*b)));
        regs = self.relayout(regs, elem, held.len() as u8, &parts, &whole)?;
        for at in (own..whole.regs.len()).rev() {
            regs = self.fold(op, &regs, at)?;
        }
        Ok((regs, layout))
    }

    /// Combines registers that differ in index bit `at`.
    fn fold(&self, op: Reduction, regs: &[BasicValueEnum<'c>], at: usize) -> Result<Regs<'c>, LlvmError> {
        let low = (1usize << at) - 1;
        (0..regs.len() / 2)
            .map(|i| {
                let r = (i & low) | (i & !low) << 1;
                self.combine(op, regs[r], regs[r | 1 << at])
            })
            .collect()
    }

    /// The value of the lane whose index differs in bit `lane`. `uniform`: lanes that differ in lower bits hold the same.
    fn exchange(
        &self,
        x: BasicValueEnum<'c>,
        elem: Elem,
        lane: u32,
        uniform: bool,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        if elem.bytes() != 4 {
            return Err(LlvmError::Tile(format!("{}: a reduction of {elem:?} over lanes", self.kernel.name)));
        }
        let i32t = self.context.i32_type();
        let word = self.builder.build_bit_cast(x, i32t, "")?;
        let constant = |n: u64| -> BasicValueEnum<'c> { i32t.const_int(n, false).into() };
        let other = if !self.arch.is_amd() {
            let all = i32t.const_all_ones().into();
            let args = [all, word, constant(1 << lane), constant(31)];
            self.intrinsic("llvm.nvvm.shfl.sync.bfly.i32", &[], &args, i32t.into())?
        } else if lane < 2 || (lane < 4 && uniform) {
            // A mirror changes lower lane bits too, which is the same where those lanes agree.
            self.dpp(word.into_int_value(), DPP[lane as usize])?
        } else {
            let own = self.builder.build_and(self.thread, self.i32(63), "")?;
            let peer = self.builder.build_xor(own, self.i32(1 << lane), "")?;
            let address = self.builder.build_left_shift(peer, self.i32(2), "")?;
            self.intrinsic("llvm.amdgcn.ds.bpermute", &[], &[address.into(), word], i32t.into())?
        };
        Ok(self.builder.build_bit_cast(other, x.get_type(), "")?)
    }

    /// A move between lanes. Written as assembly so that the result is a register of its own: the intrinsic ends up in place,
    /// which the emulator that checks us cannot run. Between a vector instruction and a DPP read of its result the ISA wants
    /// two wait states, which LLVM cannot know of here.
    fn dpp(&self, x: IntValue<'c>, control: &str) -> Result<BasicValueEnum<'c>, LlvmError> {
        let i32t = self.context.i32_type();
        let ty = i32t.fn_type(&[i32t.into()], false);
        let text = format!("s_nop 1\n\tv_mov_b32_dpp $0, $1 {control} row_mask:0xf bank_mask:0xf");
        let asm = self.context.create_inline_asm(ty, text, "=&v,v".into(), false, false, None, false);
        let call = self.builder.build_indirect_call(ty, asm, &[x.into()], "")?;
        let convergent = self.context.create_enum_attribute(Attribute::get_named_enum_kind_id("convergent"), 0);
        call.add_attribute(AttributeLoc::Function, convergent);
        call.try_as_basic_value().basic().ok_or_else(|| LlvmError::Llvm("a DPP move without a value".into()))
    }
}
