//! What block formats are made of, and the layout that each is packed into.
//!
//! Sources: the block structs of ggml (`block_q4_0` ... `block_q6_K`, `block_mxfp4`) and the OCP MX specification 1.0.

use crate::dtype::DType;
use crate::layout::AffineBlocks;

/// What a block format is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockFormat {
    /// Elements that share a scale: 32, or 16 for q6_k.
    pub group: usize,
    /// Quants are unsigned with a minimum; otherwise signed around zero.
    pub affine: bool,
    /// Quants fit 4 bits (unsigned, or after adding 8).
    pub four_bits: bool,
    /// Scales (and minima) are f16 in the source.
    pub f16_scales: bool,
}

/// The structure of `dtype`, or `None` if it is no block format.
pub const fn block_format(dtype: DType) -> Option<BlockFormat> {
    let (group, affine, four_bits, f16_scales) = match dtype {
        DType::Q8_0 => (32, false, false, true),
        DType::Q4_0 => (32, false, true, true),
        DType::Q4_1 => (32, true, true, true),
        DType::Q5_0 => (32, false, false, true),
        DType::Q5_1 => (32, true, false, true),
        DType::Q4K => (32, true, true, false),
        DType::Q5K => (32, true, false, false),
        DType::Q6K => (16, false, false, false),
        DType::MxFp4 => (32, false, false, false),
        _ => return None,
    };
    Some(BlockFormat { group, affine, four_bits, f16_scales })
}

impl BlockFormat {
    /// True if `layout` can hold the format exactly.
    pub const fn fits(&self, layout: &AffineBlocks) -> bool {
        layout.is_well_formed()
            && layout.group as usize == self.group
            && layout.has_min == self.affine
            && (layout.bits == 4 && self.four_bits || layout.bits == 8 && layout.signed != self.affine)
            && (matches!(layout.scale, DType::F32) || self.f16_scales)
    }
}

/// The layout that `dtype` is packed into by default; `None` if it is no block format.
pub fn layout_for(dtype: DType, n_tile: u32) -> Option<AffineBlocks> {
    let format = block_format(dtype)?;
    let native = matches!(dtype, DType::Q4_0 | DType::Q4_1 | DType::Q8_0);
    Some(AffineBlocks {
        bits: if native && format.four_bits { 4 } else { 8 },
        signed: !format.affine && dtype != DType::Q4_0,
        n_tile,
        group: format.group as u32,
        has_min: format.affine,
        scale: if native { DType::F16 } else { DType::F32 },
        pair_interleave: false,
    })
}
