//! Instructions that compute lane by lane, move lanes, or reduce.

use super::LlvmError;
use super::lower::{Lower, Rows};
use super::ops::{constant_splat, int_constant};
use crate::tile::{Inst, Reduction, TileType, V};
use inkwell::types::BasicTypeEnum;
use inkwell::values::BasicValueEnum;

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
            Inst::Arrive { address, mask, empty, waiting } => self.arrive(address, &ty, *mask, *empty, *waiting),
            Inst::Dot { acc, a, b } => self.dot(*acc, *a, *b),
            Inst::DotBf16 { acc, a, b } => self.dot_bf16(*acc, *a, *b),
            Inst::DotI8 { a, b, signed, max } => self.dot_i8(*a, *b, *signed, *max),
            Inst::ProgramId(_)
            | Inst::Dim(_)
            | Inst::Store { .. }
            | Inst::Push { .. }
            | Inst::Signal { .. }
            | Inst::Await { .. }
            | Inst::For { .. }
            | Inst::If { .. } => Err(LlvmError::Tile(format!("{inst:?} does not define a value"))),
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
