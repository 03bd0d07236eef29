//! Reading packed weights: which layout a dtype is packed in, and the tiles of each layout as f32 or as quants.

use crate::request::{refuse, require};
use crate::target::Target;
use crate::tile::{Binary, Builder, Conversion, Elem, Param, V};
use weldment_artifact::{AffineBlocks, Layout, Raw, RowsInterleaved};
use weldment_ir::DType;
use weldment_passes::target::Refusal;

/// Output rows of a tile of block formats on GPUs: four neighbouring rows make 16 bytes, and a tile is a matrix unit's width.
const GPU_TILE: u32 = 32;

/// The layout of an [N, K] weight for this target: one lane per output row, or on GPUs plain rows of floats.
///
/// # Errors
/// If no kernel reads the dtype, or K is not a whole number of groups.
pub fn matrix_layout(dtype: DType, k: u64, target: &Target, pair_interleave: bool) -> Result<Layout, Refusal> {
    let n_tile = if target.gpu().is_some() { GPU_TILE } else { target.lanes() };
    let layout = match dtype {
        DType::F32 | DType::F16 | DType::BF16 if target.gpu().is_some() => Layout::Raw(Raw { dtype }),
        DType::F32 | DType::F16 | DType::BF16 => {
            // One layout per dtype and K, whatever reads it: a tied embedding is packed once for its gather and its matmul.
            let k_pair = dtype == DType::BF16 && k.is_multiple_of(2);
            Layout::RowsInterleaved(RowsInterleaved { dtype, n_tile, pair_interleave, k_pair })
        }
        _ => match weldment_artifact::layout_for(dtype, n_tile) {
            Some(blocks) => Layout::AffineBlocks(AffineBlocks { pair_interleave, ..blocks }),
            None => return refuse("weight dtype", dtype, "f32, f16, bf16 or a block-quantised format"),
        },
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
    let scale_elem = if layout.scale == DType::F16 { Elem::F16 } else { Elem::F32 };
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

/// Words of quants of a tile of groups, for products whose lanes go along output rows.
pub struct Words {
    /// f32 [groups, words, n_tile] of each element of a word, in the order of [`Words::elements`].
    pub values: Vec<V>,
    /// f32 [groups, 1, n_tile].
    pub scale: V,
    /// f32 [groups, 1, n_tile].
    pub minimum: Option<V>,
    /// The value is (q - zero) * scale (+ minimum).
    pub zero: f64,
}

impl Words {
    /// Words that a group has of each output row.
    pub fn of(layout: &AffineBlocks) -> u32 {
        layout.group * u32::from(layout.bits) / 32
    }

    /// Element of the group that each value of word 0 is; those of word i are 4 i further.
    pub fn elements(layout: &AffineBlocks) -> Vec<u32> {
        let halves = if layout.bits == 4 { vec![0, layout.group / 2] } else { vec![0] };
        halves.into_iter().flat_map(|start| (0..4).map(move |j| start + j)).collect()
    }
}

/// Scales and minima f32 [groups, .., n_tile] of `groups` groups from byte `offset` on; `dims` is their shape.
fn load_scales(
    b: &mut Builder,
    param: Param,
    offset: V,
    layout: &AffineBlocks,
    dims: &[u32],
    mask: Option<V>,
) -> (V, Option<V>) {
    let elem = if layout.scale == DType::F16 { Elem::F16 } else { Elem::F32 };
    let size = elem.bytes() as i64;
    let mut strides = vec![0; dims.len()];
    strides[0] = layout.block_bytes() as i64;
    strides[dims.len() - 1] = size;
    let mask = mask.map(|m| {
        let ones: Vec<u32> = dims.iter().enumerate().map(|(i, d)| if i == 0 { *d } else { 1 }).collect();
        let m = b.reshape(m, &ones);
        b.broadcast(m, dims)
    });
    let mut load = |at: i64| {
        let at = b.offset(offset, at);
        let v = b.load(param, at, elem, dims, &strides, mask);
        b.to_f32(v)
    };
    let scales = layout.quant_bytes() as i64;
    let scale = load(scales);
    (scale, layout.has_min.then(|| load(scales + i64::from(layout.n_tile) * size)))
}

/// Loads `groups` groups from byte `offset` on, of which those in `present` [groups, 1, 1] exist.
pub fn load_words(
    b: &mut Builder,
    param: Param,
    offset: V,
    layout: &AffineBlocks,
    groups: u32,
    present: Option<V>,
) -> Words {
    let n = layout.n_tile;
    let shape = [groups, Words::of(layout), n];
    let mask = present.map(|m| b.broadcast(m, &shape));
    let words = b.load(param, offset, Elem::I32, &shape, &[layout.block_bytes() as i64, i64::from(n) * 4, 4], mask);
    let (scale, minimum) = load_scales(b, param, offset, layout, &[groups, 1, n], present);
    let mut values = Vec::new();
    let width = i64::from(layout.bits);
    // Low nibbles of the four bytes, then high ones; or the bytes.
    let starts: &[i64] = if layout.bits == 4 { &[0, 4] } else { &[0] };
    for start in starts {
        for j in 0..4 {
            let down = b.int_of(Elem::I32, &[], start + 8 * j);
            let ones = b.int_of(Elem::I32, &[], (1 << width) - 1);
            let q = b.binary(Binary::Shr, words, down);
            let mut q = b.binary(Binary::And, q, ones);
            if layout.signed {
                let sign = b.int_of(Elem::I32, &[], 0x80);
                let flipped = b.binary(Binary::Xor, q, sign);
                q = b.sub(flipped, sign);
            }
            values.push(b.to_f32(q));
        }
    }
    let zero = if layout.bits == 4 && !layout.has_min { 8.0 } else { 0.0 };
    Words { values, scale, minimum, zero }
}

/// Values f32 [groups, quads, 4, n_tile] of `quads` fours of elements from four `first` of each group on, and the element of the
/// group they start with: of 4-bit layouts low nibbles and high nibbles. Groups in `present` [groups, 1, 1] exist.
pub fn load_quads(
    b: &mut Builder,
    param: Param,
    offset: V,
    layout: &AffineBlocks,
    [groups, first, quads]: [u32; 3],
    present: Option<V>,
) -> Vec<(V, u32)> {
    let n = layout.n_tile;
    let shape = [groups, quads, 4, n];
    let mask = present.map(|m| {
        let m = b.reshape(m, &[groups, 1, 1, 1]);
        b.broadcast(m, &shape)
    });
    let line = i64::from(n) * 4;
    let at = b.offset(offset, i64::from(first) * line);
    let bytes = b.load(param, at, Elem::I8, &shape, &[layout.block_bytes() as i64, line, 1, 4], mask);
    let (scale, minimum) = load_scales(b, param, offset, layout, &[groups, 1, 1, n], present);
    quants(b, layout, bytes)
        .into_iter()
        .map(|(q, start)| {
            let value = match minimum {
                Some(m) => b.fma(q, scale, m),
                None => b.mul(q, scale),
            };
            (value, start + 4 * first)
        })
        .collect()
}

/// Quants less their zero, as f32, from bytes of a layout, with the place in the group of the first byte's: one tile, or of 4-bit
/// layouts low and high nibbles.
pub fn quants(b: &mut Builder, layout: &AffineBlocks, bytes: V) -> Vec<(V, u32)> {
    if layout.bits == 8 {
        let how = if layout.signed { Conversion::Signed } else { Conversion::Unsigned };
        let wide = b.convert(how, bytes, Elem::I32);
        return vec![(b.to_f32(wide), 0)];
    }
    let wide = b.convert(Conversion::Unsigned, bytes, Elem::I32);
    let (mask, four) = (b.int_of(Elem::I32, &[], 15), b.int_of(Elem::I32, &[], 4));
    let low = b.binary(Binary::And, wide, mask);
    let high = b.binary(Binary::Shr, wide, four);
    [(low, 0), (high, layout.group / 2)]
        .into_iter()
        .map(|(q, start)| {
            let mut q = b.to_f32(q);
            if !layout.has_min {
                let eight = b.float(8.0);
                q = b.sub(q, eight);
            }
            (q, start)
        })
        .collect()
}

/// Tile element of an interleaved float matrix.
pub fn stored_elem(layout: &RowsInterleaved) -> Elem {
    match layout.dtype {
        DType::F16 => Elem::F16,
        DType::BF16 => Elem::BF16,
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
