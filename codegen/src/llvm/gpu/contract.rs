//! Dots: matrix instructions over fragments, or fused multiply-adds.

use super::dot::{DotPlan, Unit};
use super::emit::{Emit, Regs};
use crate::llvm::LlvmError;
use crate::tile::{Elem, V};
use inkwell::intrinsics::Intrinsic;
use inkwell::values::BasicValueEnum;

/// Element index parts of a register of the accumulator.
struct Corner {
    m: u64,
    n: u64,
    s: u64,
}

impl DotPlan {
    fn corner(&self, r: usize) -> Corner {
        let e = self.c.element(r);
        Corner { n: e & ((1 << self.n) - 1), m: e >> self.n & ((1 << self.m) - 1), s: e >> (self.n + self.m) }
    }

    fn left(&self, at: &Corner, m: u64, k: u64) -> usize {
        self.a.register(k | (at.m | m) << self.k | at.s << (self.k + self.m))
    }

    fn right(&self, at: &Corner, k: u64) -> usize {
        self.b.register(at.n | k << self.n | at.s << (self.n + self.k))
    }

    /// Values of k that one thread steps through, whose bits below `low` belong to one instruction.
    fn steps(&self, low: u8) -> Vec<u64> {
        let bits: Vec<u8> = self.a.regs.iter().copied().filter(|b| (low..self.k).contains(b)).collect();
        (0..1u64 << bits.len()).map(|i| bits.iter().enumerate().map(|(at, b)| (i >> at & 1) << b).sum()).collect()
    }
}

impl<'c> Emit<'c, '_> {
    pub fn dot(&mut self, v: V, acc: V, a: V, b: V) -> Result<Regs<'c>, LlvmError> {
        let missing = || LlvmError::Tile("a dot without a plan".into());
        let plan = self.inferred.plan(v).cloned().ok_or_else(missing)?;
        let elem = self.ty(a).elem;
        let mut sums = self.get(acc, &plan.c)?;
        let (left, right) = (self.get(a, &plan.a)?, self.get(b, &plan.b)?);
        match plan.unit {
            Unit::Fma => {
                for k in 0..1u64 << plan.k {
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let at = plan.corner(r);
                        *sum = self.fma(left[plan.left(&at, 0, k)], right[plan.right(&at, k)], *sum)?;
                    }
                }
            }
            Unit::Mma => {
                for k in plan.steps(2) {
                    for first in (0..sums.len()).step_by(4) {
                        let at = plan.corner(first);
                        let pair = |regs: &Regs<'c>, low: usize, high: usize| self.pair(regs[low], regs[high], elem);
                        let mut args = Vec::with_capacity(10);
                        for (m, p) in [(0, 0), (8, 0), (0, 2), (8, 2)] {
                            args.push(pair(&left, plan.left(&at, m, k | p), plan.left(&at, m, k | p | 1))?);
                        }
                        for p in [0, 2] {
                            args.push(pair(&right, plan.right(&at, k | p), plan.right(&at, k | p | 1))?);
                        }
                        // Accumulator registers of the instruction: two columns of row m, two of row m + 8.
                        args.extend([0, 1, 2, 3].map(|i| sums[first + i]));
                        for (i, x) in self.mma(elem, &args)?.into_iter().enumerate() {
                            sums[first + i] = x;
                        }
                    }
                }
            }
            Unit::Mfma { k_bits } => {
                for k in plan.steps(k_bits) {
                    for first in (0..sums.len()).step_by(4) {
                        let at = plan.corner(first);
                        let run = 0..1u64 << k_bits;
                        let l: Regs<'c> = run.clone().map(|j| left[plan.left(&at, 0, k | j)]).collect();
                        let r: Regs<'c> = run.map(|j| right[plan.right(&at, k | j)]).collect();
                        let c = self.gather_lanes(&sums[first..first + 4])?;
                        let name = match (k_bits, elem) {
                            (2, Elem::BF16) => "llvm.amdgcn.mfma.f32.16x16x16bf16.1k",
                            (2, _) => "llvm.amdgcn.mfma.f32.16x16x16f16",
                            (_, Elem::BF16) => "llvm.amdgcn.mfma.f32.16x16x32.bf16",
                            (_, _) => "llvm.amdgcn.mfma.f32.16x16x32.f16",
                        };
                        let zero: BasicValueEnum<'c> = self.i32(0).into();
                        let args = [self.gather_lanes(&l)?, self.gather_lanes(&r)?, c, zero, zero, zero];
                        let out = self.intrinsic(name, &[], &args, c.get_type())?;
                        for i in 0..4 {
                            sums[first + i] = self.extract(out, i as u32)?;
                        }
                    }
                }
            }
        }
        Ok(sums)
    }

    /// Two 16-bit elements as the operand type of `mma.sync`.
    fn pair(
        &self,
        low: BasicValueEnum<'c>,
        high: BasicValueEnum<'c>,
        elem: Elem,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        let both = self.gather_lanes(&[low, high])?;
        if elem == Elem::F16 { Ok(both) } else { Ok(self.builder.build_bit_cast(both, self.context.i32_type(), "")?) }
    }

    fn mma(&self, elem: Elem, args: &[BasicValueEnum<'c>]) -> Result<Regs<'c>, LlvmError> {
        let name = match elem {
            Elem::BF16 => "llvm.nvvm.mma.m16n8k16.row.col.bf16",
            _ => "llvm.nvvm.mma.m16n8k16.row.col.f32.f32",
        };
        let missing = || LlvmError::Intrinsic(name.to_owned());
        let function = Intrinsic::find(name).and_then(|i| i.get_declaration(self.module, &[])).ok_or_else(missing)?;
        let args: Vec<_> = args.iter().map(|a| (*a).into()).collect();
        let call = self.builder.build_call(function, &args, "")?;
        let out = call.try_as_basic_value().basic().ok_or_else(missing)?.into_struct_value();
        (0..4).map(|i| Ok(self.builder.build_extract_value(out, i, "")?)).collect()
    }
}
