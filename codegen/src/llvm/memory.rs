//! Loads and stores of tiles.

use super::LlvmError;
use super::lower::{Lower, Rows};
use super::ops::constant_splat;
use crate::tile::{Address, TileType, V};
use inkwell::values::{BasicValue, BasicValueEnum, IntValue, PointerValue};

/// Byte offset of each row: the strides of all dims but the last.
pub(super) fn row_offsets(ty: &TileType, strides: &[i64]) -> Vec<i64> {
    let lead = ty.shape.len().saturating_sub(1);
    let mut offsets = vec![0i64];
    for (size, stride) in ty.shape.iter().zip(strides).take(lead) {
        offsets = offsets.iter().flat_map(|o| (0..i64::from(*size)).map(move |i| o + i * stride)).collect();
    }
    offsets
}

impl<'c> Lower<'c, '_> {
    pub fn base(&self, address: &Address) -> Result<PointerValue<'c>, LlvmError> {
        self.dynamic_offset(self.params[address.param.0 as usize], self.scalar(address.offset)?)
    }

    /// Start of row `row` of a tile: `offset` bytes from the base, and the row's own offset where the address gathers.
    pub fn row_start(
        &self,
        base: PointerValue<'c>,
        address: &Address,
        ty: &TileType,
        row: usize,
        offset: i64,
    ) -> Result<PointerValue<'c>, LlvmError> {
        let at = self.byte_offset(base, offset)?;
        let Some(gather) = address.gather else { return Ok(at) };
        // The row's index along each leading dim, numbered as the gathered offsets are (theirs may be 1).
        let own = &self.ty(gather).shape;
        let (mut rest, mut index, mut scale) = (row, 0, 1);
        for (size, own) in ty.shape.iter().zip(own).rev().skip(1) {
            index += (rest % *size as usize) % *own as usize * scale;
            scale *= *own as usize;
            rest /= *size as usize;
        }
        self.dynamic_offset(at, self.get(gather)?[index].into_int_value())
    }

    /// The mask's value for a row, if there is a mask.
    pub fn row_mask(&self, mask: Option<V>, row: usize) -> Result<Option<BasicValueEnum<'c>>, LlvmError> {
        let Some(mask) = mask else { return Ok(None) };
        let rows = self.get(mask)?;
        Ok(Some(if rows.len() == 1 { rows[0] } else { rows[row] }))
    }

    pub fn load(&mut self, address: &Address, ty: &TileType, mask: Option<V>) -> Result<Rows<'c>, LlvmError> {
        let base = self.base(address)?;
        let mut rows = Vec::with_capacity(ty.rows());
        for (i, offset) in row_offsets(ty, &address.strides).into_iter().enumerate() {
            let at = self.row_start(base, address, ty, i, offset)?;
            let lane_stride = address.strides.last().copied().unwrap_or(0);
            rows.push(match self.row_mask(mask, i)? {
                None => self.load_row(at, ty, lane_stride, address.align)?,
                Some(BasicValueEnum::IntValue(condition)) => {
                    self.load_if(condition, at, ty, lane_stride, address.align)?
                }
                Some(condition) if lane_stride == ty.elem.bytes() as i64 => self.load_masked(condition, at, ty)?,
                Some(condition) => {
                    let scalar = TileType { elem: ty.elem, shape: vec![] };
                    let mut values = Vec::with_capacity(ty.lanes() as usize);
                    for lane in 0..ty.lanes() {
                        let bit = self.extract(condition, lane)?.into_int_value();
                        let at = self.byte_offset(at, i64::from(lane) * lane_stride)?;
                        values.push(self.load_if(bit, at, &scalar, 0, address.align)?);
                    }
                    self.gather_lanes(&values)?
                }
            });
        }
        Ok(rows)
    }

    fn load_row(
        &self,
        at: PointerValue<'c>,
        ty: &TileType,
        lane_stride: i64,
        align: u32,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        let lanes = ty.lanes();
        if lanes == 1 || lane_stride == ty.elem.bytes() as i64 {
            let loaded = self.builder.build_load(self.row_type(ty.elem, lanes), at, "")?;
            if let Some(i) = loaded.as_instruction_value() {
                i.set_alignment(align).map_err(|e| LlvmError::Llvm(e.to_string()))?;
            }
            return Ok(loaded);
        }
        let scalar = TileType { elem: ty.elem, shape: vec![] };
        if lane_stride == 0 {
            let one = self.load_row(at, &scalar, 0, align)?;
            return self.splat(one, lanes);
        }
        let mut values = Vec::with_capacity(lanes as usize);
        for lane in 0..lanes {
            let at = self.byte_offset(at, i64::from(lane) * lane_stride)?;
            values.push(self.load_row(at, &scalar, 0, ty.elem.bytes() as u32)?);
        }
        self.gather_lanes(&values)
    }

    /// Loads a row under a scalar condition, zeros otherwise.
    fn load_if(
        &mut self,
        condition: IntValue<'c>,
        at: PointerValue<'c>,
        ty: &TileType,
        lane_stride: i64,
        align: u32,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        let row_type = self.row_type(ty.elem, ty.lanes());
        let before = self.current_block()?;
        let mut inside = None;
        self.when(condition, |lower| {
            let row = lower.load_row(at, ty, lane_stride, align)?;
            inside = Some((row, lower.current_block()?));
            Ok(())
        })?;
        let (row, block) = inside.ok_or_else(|| LlvmError::Llvm("a masked load without a body".into()))?;
        let phi = self.builder.build_phi(row_type, "")?;
        phi.add_incoming(&[(&row_type.const_zero(), before), (&row, block)]);
        Ok(phi.as_basic_value())
    }

    fn load_masked(
        &self,
        mask: BasicValueEnum<'c>,
        at: PointerValue<'c>,
        ty: &TileType,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        let row = self.row_type(ty.elem, ty.lanes());
        // LLVM 22 takes the alignment as an attribute of the pointer; without one it assumes the element's.
        let pointer = at.get_type().into();
        self.intrinsic("llvm.masked.load", &[row, pointer], &[at.into(), mask, row.const_zero()], row)
    }

    pub fn store(&mut self, address: &Address, value: V, mask: Option<V>) -> Result<(), LlvmError> {
        let base = self.base(address)?;
        let ty = self.ty(value).clone();
        let rows = self.get(value)?.clone();
        let lane_stride = address.strides.last().copied().unwrap_or(0);
        for ((i, offset), row) in row_offsets(&ty, &address.strides).into_iter().enumerate().zip(rows) {
            let at = self.row_start(base, address, &ty, i, offset)?;
            match self.row_mask(mask, i)? {
                None => self.store_row(at, row, &ty, lane_stride, address.align)?,
                Some(BasicValueEnum::IntValue(condition)) => {
                    self.when(condition, |lower| lower.store_row(at, row, &ty, lane_stride, address.align))?;
                }
                Some(condition) => {
                    for lane in 0..ty.lanes() {
                        let (bit, x) = (self.extract(condition, lane)?.into_int_value(), self.extract(row, lane)?);
                        let at = self.byte_offset(at, i64::from(lane) * lane_stride)?;
                        self.when(bit, |lower| Ok(lower.builder.build_store(at, x).map(|_| ())?))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn store_row(
        &self,
        at: PointerValue<'c>,
        row: BasicValueEnum<'c>,
        ty: &TileType,
        lane_stride: i64,
        align: u32,
    ) -> Result<(), LlvmError> {
        if ty.lanes() == 1 || lane_stride == ty.elem.bytes() as i64 {
            let store = self.builder.build_store(at, row)?;
            return store.set_alignment(align).map_err(|e| LlvmError::Llvm(e.to_string()));
        }
        for lane in 0..ty.lanes() {
            let at = self.byte_offset(at, i64::from(lane) * lane_stride)?;
            self.builder.build_store(at, self.extract(row, lane)?)?;
        }
        Ok(())
    }

    /// A scalar of `bytes` width loaded from memory and repeated: the operand form that dots want.
    pub fn load_broadcast(
        &self,
        at: PointerValue<'c>,
        elem: crate::tile::Elem,
        lanes: u32,
    ) -> Result<BasicValueEnum<'c>, LlvmError> {
        let scalar = TileType { elem, shape: vec![] };
        let one = self.load_row(at, &scalar, 0, 1)?;
        self.splat(one, lanes)
    }

    /// A zero row of `lanes`.
    pub fn zero_row(&self, elem: crate::tile::Elem, lanes: u32) -> BasicValueEnum<'c> {
        constant_splat(self.elem_type(elem).const_zero(), lanes)
    }
}
