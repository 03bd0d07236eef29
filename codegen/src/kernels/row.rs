//! Pieces shared by kernels that walk rows: dtype conversion at loads and stores, and splitting a row into tiles.

use crate::tile::{Builder, Conversion, Elem, Param, Reduction, V};
use weldment_ir::DType;

/// Steps of the low plane of q8a in one step of the high plane.
pub const Q8A_STEPS: f64 = 254.0;
/// Byte offset of the scale in a q8a block, after two planes of 32.
pub const Q8A_SCALE: i64 = 64;
/// Byte offset of the sum in a q8a block.
pub const Q8A_SUM: i64 = 68;

/// Tile element of a plain dtype as it lies in memory.
pub fn elem_of(dtype: DType) -> Option<Elem> {
    Some(match dtype {
        DType::F32 => Elem::F32,
        DType::F16 => Elem::F16,
        DType::BF16 => Elem::BF16,
        DType::I32 | DType::U32 => Elem::I32,
        DType::I64 => Elem::I64,
        DType::I8 | DType::U8 | DType::Bool => Elem::I8,
        _ => return None,
    })
}

/// Runs of equal tiles that cover `n` elements: (start, tiles, width), widest first, widths powers of two.
pub fn segments(n: u64, widest: u64) -> Vec<(u64, u64, u64)> {
    let (mut out, mut at, mut width) = (Vec::new(), 0, widest);
    while at < n {
        let count = (n - at) / width;
        if count > 0 {
            out.push((at, count, width));
            at += count * width;
        }
        width /= 2;
    }
    out
}

/// Byte offset of element `index` (i64, a multiple of the block) in a row of `dtype`.
pub fn element_offset(b: &mut Builder, dtype: DType, index: V) -> V {
    let block = dtype.block_elements() as i64;
    if block == 1 {
        return b.scale(index, dtype.block_bytes() as i64);
    }
    let per = b.int(block);
    let blocks = b.div(index, per);
    b.scale(blocks, dtype.block_bytes() as i64)
}

/// Calls `body` for each tile of a row of `n` elements with (element index, width), threading carried scalars through.
pub fn for_row(
    b: &mut Builder,
    n: u64,
    widest: u64,
    init: &[V],
    mut body: impl FnMut(&mut Builder, V, u32, &[V]) -> Vec<V>,
) -> Vec<V> {
    let mut carried = init.to_vec();
    for (start, count, width) in segments(n, widest) {
        if count == 1 {
            let at = b.int(start as i64);
            carried = body(b, at, width as u32, &carried);
            continue;
        }
        let (from, to) = (b.int(start as i64), b.int((start + count * width) as i64));
        carried = b.for_loop(from, to, width as i64, &carried, |b, i, c| body(b, i, width as u32, c));
    }
    carried
}

/// Loads `width` elements of a compute float as f32.
pub fn load_f32(b: &mut Builder, param: Param, offset: V, dtype: DType, width: u32) -> V {
    let elem = elem_of(dtype).unwrap_or(Elem::F32);
    let v = b.load_row(param, offset, elem, width);
    b.to_f32(v)
}

/// Rounds f32 values to `dtype` and stores them at a byte offset; q8a takes tiles of 32.
pub fn store_f32(b: &mut Builder, param: Param, offset: V, dtype: DType, v: V) {
    match dtype {
        DType::Q8A => store_q8a(b, param, offset, v),
        DType::F16 | DType::BF16 => {
            let elem = elem_of(dtype).unwrap_or(Elem::F32);
            let v = b.convert(Conversion::Float, v, elem);
            b.store_row(param, offset, v);
        }
        _ => b.store_row(param, offset, v),
    }
}

/// f32 values as they read back from memory of `dtype`.
pub fn rounded(b: &mut Builder, dtype: DType, v: V) -> V {
    let elem = elem_of(dtype).unwrap_or(Elem::F32);
    let v = b.convert(Conversion::Float, v, elem);
    b.to_f32(v)
}

/// One block of quantised activations: d = amax / 127, high = round(v / d), low = round(254 (v / d - high)); both planes,
/// d, and the sum of the values.
fn store_q8a(b: &mut Builder, param: Param, offset: V, v: V) {
    let magnitude = b.abs(v);
    let amax = b.reduce(Reduction::Max, magnitude, 0);
    let amax = b.reshape(amax, &[]);
    let (scale, zero, limit) = (b.float(1.0 / 127.0), b.float(0.0), b.float(127.0));
    let d = b.mul(amax, scale);
    // A zero block, or one so small that 127 / amax overflows, quantises to zeros.
    let smallest = b.float(1e-36);
    let tiny = b.compare(crate::tile::Compare::Less, amax, smallest);
    let inverse = b.div(limit, amax);
    let inverse = b.select(tiny, zero, inverse);
    let d = b.select(tiny, zero, d);
    let scaled = b.mul(v, inverse);
    let high = b.round(scaled);
    let rest = b.sub(scaled, high);
    let (steps, step) = (b.float(Q8A_STEPS), b.float(1.0 / Q8A_STEPS));
    let rest = b.mul(rest, steps);
    let low = b.round(rest);
    let value = b.fma(low, step, high);
    let total = b.reduce(Reduction::Sum, value, 0);
    let total = b.reshape(total, &[]);
    let sum = b.mul(total, d);
    for (plane, at) in [(high, 0), (low, 32)] {
        let q = b.convert(Conversion::FloatToSigned, plane, Elem::I32);
        let q = b.convert(Conversion::Signed, q, Elem::I8);
        let at = b.offset(offset, at);
        b.store_row(param, at, q);
    }
    let at = b.offset(offset, Q8A_SCALE);
    b.store_row(param, at, d);
    let at = b.offset(offset, Q8A_SUM);
    b.store_row(param, at, sum);
}

/// Loads an i32 and widens it to i64.
pub fn load_index(b: &mut Builder, param: Param, offset: V) -> V {
    let v = b.load_scalar(param, offset, Elem::I32);
    b.convert(Conversion::Signed, v, Elem::I64)
}

#[cfg(test)]
mod tests {
    use super::segments;

    #[test]
    fn segments_cover_every_length_once() {
        for n in 1..300 {
            let mut at = 0;
            for (start, count, width) in segments(n, 32) {
                assert_eq!(start, at);
                at += count * width;
            }
            assert_eq!(at, n);
        }
    }
}
