//! Reading packed weights: which layout a dtype is packed in, and the tiles of each layout as f32 or as quants.

use super::{refuse, require};
use crate::target::Target;
use crate::tile::{Binary, Builder, Conversion, Elem, Param, V};
use weldment_ir::DType;
use weldment_passes::target::Refusal;
use weldment_runtime::artifact::{AffineBlocks, Layout, RowsInterleaved};

/// The layout of an [N, K] weight for this target: one lane per output row.
///
/// # Errors
/// If no kernel reads the dtype, or K is not a whole number of groups.
pub fn matrix_layout(dtype: DType, k: u64, target: &Target, pair_interleave: bool) -> Result<Layout, Refusal> {
    let runtime = weldment_runtime::DType::from_name(dtype.name());
    let n_tile = target.lanes();
    let layout = match runtime {
        Some(d @ (weldment_runtime::DType::F32 | weldment_runtime::DType::F16 | weldment_runtime::DType::BF16)) => {
            // One layout per dtype and K, whatever reads it: a tied embedding is packed once for its gather and its matmul.
            let k_pair = d == weldment_runtime::DType::BF16 && k.is_multiple_of(2);
            Layout::RowsInterleaved(RowsInterleaved { dtype: d, n_tile, pair_interleave, k_pair })
        }
        Some(d) => match weldment_runtime::pack::layout_for(d, n_tile) {
            Some(blocks) => Layout::AffineBlocks(AffineBlocks { pair_interleave, ..blocks }),
            None => return refuse("weight dtype", dtype, "f32, f16, bf16 or a block-quantised format"),
        },
        None => return refuse("weight dtype", dtype, "f32, f16, bf16 or a block-quantised format"),
    };
    require(
        layout.tile_bytes(k).is_some(),
        "reduction length",
        k,
        format!("a multiple of {}", dtype.block_elements()),
    )?;
    Ok(layout)
}

/// The quants of one group of a tile, with their scales.
pub struct Group {
    /// [group / 4, 4 * n_tile] bytes.
    pub quants: V,
    /// f32 [n_tile].
    pub scale: V,
    /// f32 [n_tile].
    pub minimum: Option<V>,
    /// The value is (q - zero) * scale (+ minimum).
    pub zero: f64,
    /// Quants are i8.
    pub signed: bool,
    /// Largest magnitude of a quant.
    pub max: u32,
}

/// Loads group at byte `offset` of a pack item in `layout`.
pub fn load_group(b: &mut Builder, param: Param, offset: V, layout: &AffineBlocks) -> Group {
    let n = layout.n_tile;
    let row = i64::from(n) * 4;
    let quants = if layout.bits == 4 {
        // Nibbles: split whole words, since byte shifts do not exist on most machines.
        let words = b.load(param, offset, Elem::I32, &[layout.group / 8, n], &[row, 4], None);
        let (mask, four) = (b.int_of(Elem::I32, &[], 0x0f0f_0f0f), b.int_of(Elem::I32, &[], 4));
        let low = b.binary(Binary::And, words, mask);
        let high = b.binary(Binary::Shr, words, four);
        let high = b.binary(Binary::And, high, mask);
        let both = b.stack(&[low, high]);
        b.bitcast(both, Elem::I8)
    } else {
        b.load(param, offset, Elem::I8, &[layout.group / 4, n * 4], &[row, 1], None)
    };
    let scale_elem = if layout.scale == weldment_runtime::DType::F16 { Elem::F16 } else { Elem::F32 };
    let at = b.offset(offset, layout.quant_bytes() as i64);
    let scale = b.load_row(param, at, scale_elem, n);
    let scale = b.to_f32(scale);
    let minimum = layout.has_min.then(|| {
        let at = b.offset(at, i64::from(n) * scale_elem.bytes() as i64);
        let m = b.load_row(param, at, scale_elem, n);
        b.to_f32(m)
    });
    let nibble_zero = layout.bits == 4 && !layout.has_min;
    let max = match (layout.bits, layout.signed) {
        (4, _) => 15,
        (_, true) => 128,
        // Formats with minima have at most 5 bits.
        (_, false) => 31,
    };
    Group { quants, scale, minimum, zero: if nibble_zero { 8.0 } else { 0.0 }, signed: layout.signed, max }
}

impl Group {
    /// The group's values as f32 [group, n_tile].
    pub fn dequantise(&self, b: &mut Builder, layout: &AffineBlocks) -> V {
        let words = b.bitcast(self.quants, Elem::I32);
        let mut columns = Vec::new();
        for j in 0..4i64 {
            let up = b.int_of(Elem::I32, &[], 24 - 8 * j);
            let down = b.int_of(Elem::I32, &[], 24);
            let byte = b.binary(Binary::Shl, words, up);
            let byte = b.binary(Binary::Shr, byte, down);
            columns.push(self.to_value(b, byte));
        }
        // columns[j] is [group / 4, n] of elements 4 i + j: interleave them into ascending order.
        let mut rows = Vec::new();
        for i in 0..layout.group / 4 {
            for column in &columns {
                rows.push(b.row(*column, i));
            }
        }
        b.stack(&rows)
    }

    /// Bytes in i32 lanes to f32 values.
    fn to_value(&self, b: &mut Builder, byte: V) -> V {
        let byte = if self.signed {
            let sign = b.int_of(Elem::I32, &[], 0x80);
            let flipped = b.binary(Binary::Xor, byte, sign);
            b.sub(flipped, sign)
        } else {
            byte
        };
        let mut q = b.convert(Conversion::SignedToFloat, byte, Elem::F32);
        if self.zero != 0.0 {
            let zero = b.float(self.zero);
            q = b.sub(q, zero);
        }
        match self.minimum {
            Some(m) => b.fma(q, self.scale, m),
            None => b.mul(q, self.scale),
        }
    }
}

/// Tile element of an interleaved float matrix.
pub fn stored_elem(layout: &RowsInterleaved) -> Elem {
    match layout.dtype {
        weldment_runtime::DType::F16 => Elem::F16,
        weldment_runtime::DType::BF16 => Elem::BF16,
        _ => Elem::F32,
    }
}

/// `k_tile` (even) rows of a bf16 matrix in k pairs as [k_tile / 2, 2 n_tile], from byte `offset`: the right side of `dot_bf16`.
pub fn load_pairs(b: &mut Builder, param: Param, offset: V, layout: &RowsInterleaved, k_tile: u32) -> V {
    let lanes = 2 * layout.n_tile;
    b.load(param, offset, Elem::BF16, &[k_tile / 2, lanes], &[2 * i64::from(lanes), 2], None)
}

/// `k_tile` rows of an interleaved float matrix as f32 [k_tile, n_tile], from byte `offset`; `k_tile` is even where k comes in
/// pairs.
pub fn load_rows(b: &mut Builder, param: Param, offset: V, layout: &RowsInterleaved, k_tile: u32) -> V {
    if layout.k_pair {
        let pairs = load_pairs(b, param, offset, layout, k_tile);
        return widen_pairs(b, pairs);
    }
    let elem = stored_elem(layout);
    let row = i64::from(layout.n_tile) * elem.bytes() as i64;
    let tile = b.load(param, offset, elem, &[k_tile, layout.n_tile], &[row, elem.bytes() as i64], None);
    b.to_f32(tile)
}

/// bf16 pairs [k / 2, 2 n] as f32 [k, n]. A bf16 is the upper half of its f32, so a shift and a mask of whole words do.
fn widen_pairs(b: &mut Builder, pairs: V) -> V {
    let words = b.bitcast(pairs, Elem::I32);
    let (half, upper) = (b.int_of(Elem::I32, &[], 16), b.int_of(Elem::I32, &[], !0xffff));
    let even = b.binary(Binary::Shl, words, half);
    let odd = b.binary(Binary::And, words, upper);
    let (even, odd) = (b.bitcast(even, Elem::F32), b.bitcast(odd, Elem::F32));
    let mut rows = Vec::new();
    for pair in 0..b.ty(words).shape[0] {
        rows.extend([b.row(even, pair), b.row(odd, pair)]);
    }
    b.stack(&rows)
}
