//! Contractions on the host: the left operand is broadcast element by element (from memory where the load was
//! deferred), the right operand keeps one lane per output column.

use super::LlvmError;
use super::lower::{Lower, Rows};
use super::ops::{constant_splat, int_constant};
use crate::tile::{Binary, Elem, V};
use inkwell::types::BasicTypeEnum;
use inkwell::values::BasicValueEnum;

impl<'c> Lower<'c, '_> {
    /// Element group `k` of row `m` of a left operand, in every lane. `group` elements are read as one `elem`.
    fn left(
        &self,
        a: V,
        m: usize,
        k: u32,
        group: u32,
        elem: Elem,
        lanes: u32,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        let stored = self.ty(a).elem;
        if let Some((base, strides)) = &self.deferred[a.0 as usize] {
            if strides[1] != stored.bytes() as i64 && group > 1 {
                return Err(LlvmError::Tile("a grouped dot operand must be contiguous along k".into()));
            }
            let at = self.byte_offset(*base, m as i64 * strides[0] + i64::from(k * group) * strides[1])?;
            return self.load_broadcast(at, elem, lanes);
        }
        let row = self.get(a)?[m];
        let total = self.ty(a).lanes() / group;
        let row = if group == 1 { row } else { self.builder.build_bit_cast(row, self.row_type(elem, total), "")? };
        self.splat(self.extract(row, k)?, lanes)
    }

    pub fn dot(&mut self, acc: V, a: V, b: V) -> Result<Rows<'c>, LlvmError> {
        let mut out = self.get(acc)?.clone();
        let right = self.get(b)?.clone();
        let lanes = self.ty(b).lanes();
        for (k, w) in right.iter().enumerate() {
            for (m, sum) in out.iter_mut().enumerate() {
                let x = self.left(a, m, k as u32, 1, Elem::F32, lanes)?;
                *sum = self.fma(x, *w, *sum)?;
            }
        }
        Ok(out)
    }

    /// Pairs of bf16: `vdpbf16ps` where the CPU has it, else two fused multiply-adds on widened values. The two differ in
    /// rounding alone, and in that `vdpbf16ps` takes subnormals for zero.
    pub fn dot_bf16(&mut self, acc: V, a: V, b: V) -> Result<Rows<'c>, LlvmError> {
        let mut out = self.get(acc)?.clone();
        let right = self.get(b)?.clone();
        let lanes = self.ty(b).lanes() / 2;
        let f32_row = self.row_type(Elem::F32, lanes);
        let i32_row = self.row_type(Elem::I32, lanes);
        for (k, w) in right.iter().enumerate() {
            let w = self.builder.build_bit_cast(*w, i32_row, "")?;
            let (w_low, w_high) = self.bf16_halves(w, lanes)?;
            for (m, sum) in out.iter_mut().enumerate() {
                let x = self.left(a, m, k as u32, 2, Elem::I32, lanes)?;
                if self.target.avx512_bf16 && lanes == 16 {
                    *sum = self.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", &[], &[*sum, x, w], f32_row)?;
                } else {
                    let (x_low, x_high) = self.bf16_halves(x, lanes)?;
                    *sum = self.fma(x_low, w_low, *sum)?;
                    *sum = self.fma(x_high, w_high, *sum)?;
                }
            }
        }
        Ok(out)
    }

    /// The two bf16 of each 32-bit lane, as f32.
    fn bf16_halves(
        &self,
        x: BasicValueEnum<'c>,
        lanes: u32,
    ) -> Result<(BasicValueEnum<'c>, BasicValueEnum<'c>), LlvmError> {
        let constant = |n: i64| constant_splat(int_constant(self.context.i32_type().into(), n), lanes);
        let f32_row = self.row_type(Elem::F32, lanes);
        let low = self.binary(Binary::Shl, x, constant(16))?;
        let high = self.binary(Binary::And, x, constant(0xffff_0000))?;
        Ok((self.builder.build_bit_cast(low, f32_row, "")?, self.builder.build_bit_cast(high, f32_row, "")?))
    }

    pub fn dot_i8(&mut self, a: V, b: V, signed: bool, max: u32) -> Result<Rows<'c>, LlvmError> {
        let right = self.get(b)?.clone();
        let (m, lanes) = (self.ty(a).shape[0] as usize, self.ty(b).lanes() / 4);
        let vnni = (self.target.avx512_vnni && lanes == 16) || (self.target.avx_vnni && lanes == 8);
        if vnni {
            return self.dot_vnni(a, &right, m, lanes, signed);
        }
        if !matches!(lanes, 8 | 16) {
            return self.dot_i8_plain(a, &right, m, lanes, signed);
        }
        // Below AVX-512 VNNI: 16-bit pair sums by vpmaddubsw, 32 bytes at a time.
        let halves = lanes / 8;
        let mut sums: Vec<Rows<'c>> = vec![Vec::new(); m];
        for half in 0..halves {
            let right: Rows<'c> = right
                .iter()
                .map(|row| {
                    if halves == 1 { Ok(*row) } else { Ok(self.lanes(row.into_vector_value(), half * 32, 32)?.into()) }
                })
                .collect::<Result<_, LlvmError>>()?;
            for (row, sum) in self.dot_avx2(a, &right, m, signed, max)?.into_iter().enumerate() {
                sums[row].push(sum);
            }
        }
        sums.into_iter()
            .map(|parts| match parts[..] {
                [one] => Ok(one),
                [low, high] => {
                    let index: Vec<_> = (0..16).map(|i| self.context.i32_type().const_int(i, false)).collect();
                    let mask = inkwell::types::VectorType::const_vector(&index);
                    Ok(self
                        .builder
                        .build_shuffle_vector(low.into_vector_value(), high.into_vector_value(), mask, "")?
                        .into())
                }
                _ => Err(LlvmError::Tile("a dot wider than two machine vectors".into())),
            })
            .collect()
    }

    /// `vpdpbusd` takes unsigned times signed. Signed weights are biased by 128 and the bias times the sum of x removed.
    fn dot_vnni(&self, a: V, right: &Rows<'c>, m: usize, lanes: u32, signed: bool) -> Result<Rows<'c>, LlvmError> {
        let name = if lanes == 16 { "llvm.x86.avx512.vpdpbusd.512" } else { "llvm.x86.avx512.vpdpbusd.256" };
        let row = self.row_type(Elem::I32, lanes);
        let bytes = |n: i64| constant_splat(int_constant(self.context.i8_type().into(), n), lanes * 4);
        let mut out = vec![self.zero_row(Elem::I32, lanes); m];
        let mut bias = out.clone();
        for (k, w) in right.iter().enumerate() {
            let w = if signed { self.binary(Binary::Xor, *w, bytes(0x80))? } else { *w };
            for i in 0..m {
                let x = self.left(a, i, k as u32, 4, Elem::I32, lanes)?;
                out[i] = self.intrinsic(name, &[], &[out[i], w, x], row)?;
                if signed {
                    bias[i] = self.intrinsic(name, &[], &[bias[i], bytes(0x80), x], row)?;
                }
            }
        }
        if signed {
            for i in 0..m {
                out[i] = self.binary(Binary::Sub, out[i], bias[i])?;
            }
        }
        Ok(out)
    }

    /// AVX2, eight columns. `vpmaddubsw` saturates at 16 bits: unsigned weights up to 127 are safe in one pair
    /// (2 * 127 * 127 < 2^15); up to `max`, several k groups fit one 16-bit sum before widening. Signed weights go in as
    /// |w| with their sign moved to x, which is exact for |x| <= 127 and |w| <= 128.
    fn dot_avx2(&self, a: V, right: &Rows<'c>, m: usize, signed: bool, max: u32) -> Result<Rows<'c>, LlvmError> {
        let (i32_row, i16_row) = (self.row_type(Elem::I32, 8), self.row_type(Elem::I16, 16));
        let byte_row = self.row_type(Elem::I8, 32);
        let ones = constant_splat(int_constant(self.context.i16_type().into(), 1), 16);
        let groups_per_sum = (32767 / (2 * 127 * max.max(1))) as usize;
        if groups_per_sum == 0 && !signed {
            return Err(LlvmError::Tile(format!("unsigned weights up to {max} overflow 16-bit pair sums")));
        }
        let groups_per_sum = groups_per_sum.max(1);
        let mut out: Vec<Option<BasicValueEnum<'c>>> = vec![None; m];
        for (chunk_index, chunk) in right.chunks(groups_per_sum).enumerate() {
            let mut sums: Vec<Option<BasicValueEnum<'c>>> = vec![None; m];
            for (j, w) in chunk.iter().enumerate() {
                let k = (chunk_index * groups_per_sum + j) as u32;
                let magnitude = if signed { self.byte_abs(*w, byte_row)? } else { *w };
                for (i, sum) in sums.iter_mut().enumerate() {
                    let x = self.left(a, i, k, 4, Elem::I32, 8)?;
                    let x = if signed { self.intrinsic("llvm.x86.avx2.psign.b", &[], &[x, *w], byte_row)? } else { x };
                    let pairs = self.intrinsic("llvm.x86.avx2.pmadd.ub.sw", &[], &[magnitude, x], i16_row)?;
                    *sum = Some(match *sum {
                        Some(s) => self.binary(Binary::Add, s, pairs)?,
                        None => pairs,
                    });
                }
            }
            for (total, sum) in out.iter_mut().zip(sums) {
                let sum = sum.ok_or_else(|| LlvmError::Tile("an empty dot".into()))?;
                let wide = self.intrinsic("llvm.x86.avx2.pmadd.wd", &[], &[sum, ones], i32_row)?;
                *total = Some(match *total {
                    Some(t) => self.binary(Binary::Add, t, wide)?,
                    None => wide,
                });
            }
        }
        out.into_iter().map(|t| t.ok_or_else(|| LlvmError::Tile("an empty dot".into()))).collect()
    }

    fn byte_abs(&self, w: BasicValueEnum<'c>, row: BasicTypeEnum<'c>) -> Result<BasicValueEnum<'c>, LlvmError> {
        self.intrinsic("llvm.x86.avx2.psign.b", &[], &[w, w], row)
    }

    /// Any other width: widen and multiply. Correct everywhere, fast nowhere; kernels for the host avoid it.
    fn dot_i8_plain(&self, a: V, right: &Rows<'c>, m: usize, lanes: u32, signed: bool) -> Result<Rows<'c>, LlvmError> {
        let constant = |n: i64| constant_splat(int_constant(self.context.i32_type().into(), n), lanes);
        let i32_row = self.row_type(Elem::I32, lanes);
        let byte =
            |l: &Self, word: BasicValueEnum<'c>, j: i64, signed: bool| -> Result<BasicValueEnum<'c>, LlvmError> {
                let up = l.binary(Binary::Shl, word, constant(24 - 8 * j))?;
                let down = l.binary(Binary::Shr, up, constant(24))?;
                if !signed {
                    return Ok(down);
                }
                let flipped = l.binary(Binary::Xor, down, constant(0x80))?;
                l.binary(Binary::Sub, flipped, constant(0x80))
            };
        let mut out = vec![self.zero_row(Elem::I32, lanes); m];
        for (k, w) in right.iter().enumerate() {
            let w = self.builder.build_bit_cast(*w, i32_row, "")?;
            for (i, sum) in out.iter_mut().enumerate() {
                let x = self.left(a, i, k as u32, 4, Elem::I32, lanes)?;
                for j in 0..4 {
                    let product = self.binary(Binary::Mul, byte(self, x, j, true)?, byte(self, w, j, signed)?)?;
                    *sum = self.binary(Binary::Add, *sum, product)?;
                }
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use crate::llvm::{Emit, HostTarget, compile_host};
    use crate::setup::Symbols;
    use crate::tile::{Access, Builder, Elem};

    /// Assembly of [4, 16] += [4, 8] [8, 16] in bf16 for an AVX-512 machine.
    fn assembly(avx512_bf16: bool) -> String {
        let mut target = HostTarget::named("x86-64-v4").expect("a known target");
        if avx512_bf16 {
            target.features.push_str(",+avx512bf16");
            target.avx512_bf16 = true;
        }
        let mut b = Builder::new("test");
        let (x, w, out) = (b.param("x", Access::Read), b.param("w", Access::Read), b.param("out", Access::Write));
        let (zero, acc) = (b.int(0), b.float_tile(&[4, 16], 0.0));
        let left = b.load(x, zero, Elem::BF16, &[4, 8], &[16, 2], None);
        let right = b.load(w, zero, Elem::BF16, &[4, 32], &[64, 2], None);
        let sum = b.dot_bf16(acc, left, right);
        b.store(out, zero, &[64, 4], sum, None);
        let emit = Emit { llvm: false, asm: true };
        compile_host(&[&b.finish("dot".into())], (&target, &Symbols::plain(&[])), emit)
            .expect("a well-formed kernel")
            .asm
            .expect("assembly")
    }

    #[test]
    fn bf16_pairs_take_one_instruction_where_the_cpu_has_it() {
        let (with, without) = (assembly(true), assembly(false));
        assert_eq!(with.matches("vdpbf16ps").count(), 4 * 4, "{with}");
        assert!(!with.contains("vfmadd"), "{with}");
        assert!(!without.contains("vdpbf16ps") && without.contains("vfmadd"), "{without}");
    }
}
