//! The host's form: weights lie one lane per output row, so the inner step is a broadcast of x against a vector of weights, for
//! one token (gemv) and for many (gemm) alike.

use super::{Bound, Left, joined};
use crate::kernels::row::{Q8A_SCALE, Q8A_STEPS, Q8A_SUM, elem_of, for_row};
use crate::kernels::weights::{load_group, load_pairs, load_rows};
use crate::request::{Built, Request, RowSpace, last_dim, refuse, row_stride};
use crate::tile::{Builder, Compare, Elem, Param, V};
use weldment_artifact::{AffineBlocks, Layout, RowsInterleaved};
use weldment_ir::{DType, Op};
use weldment_passes::target::Refusal;

/// Rows per program: one for decode, else as many as leave the accumulators in registers.
pub(in crate::kernels) fn row_tile(r: &Request<'_>, rows: &RowSpace) -> u32 {
    let wide = r.choices.gemm_rows.unwrap_or(if r.target().lanes() == 16 { 8 } else { 4 });
    match &rows.symbol {
        // Rows past the symbol's value are computed into the padding that bufferisation leaves (16 rows).
        Some(_) if r.counts_tokens(rows) && r.max_tokens > 1 => wide,
        // One token; or rows of logits, which are few.
        Some(_) => 1,
        None => [8, 4, 2, 1].into_iter().find(|m| *m <= wide && rows.mul.is_multiple_of(u64::from(*m))).unwrap_or(1),
    }
}

/// The host's kernel.
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    let (x, out) = (&r.operands[0], &r.results[0]);
    let k = last_dim(x)?;
    let n = last_dim(out)?;
    let rows = RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
    let m_tile = row_tile(r, &rows);
    let n_tile = u64::from(r.target().lanes());
    let pair = matches!(r.op, Op::MatmulSiluMul { .. });
    let mut b = Builder::new(if m_tile == 1 { "gemv" } else { "gemm" });
    let bound = Bound::new(&mut b, r)?;
    let (x_param, w_param) = (bound.x, bound.w);
    rows.grid(&mut b, 0, u64::from(m_tile));
    b.grid_constant(1, n.div_ceil(n_tile));

    let (pid_m, tile) = (b.program_id(0), b.program_id(1));
    let first_row = b.scale(pid_m, i64::from(m_tile));
    let base = b.scale(first_row, row_stride(x)?);
    let left = Left { ty: &x.ty, param: x_param, base, stride: row_stride(x)?, rows: m_tile };
    let value = match bound.layout {
        Some(layout) => {
            let tile_bytes = layout.tile_bytes(k).unwrap_or(0) as i64;
            if pair {
                let gate_at = b.scale(tile, 2 * tile_bytes);
                let up_at = b.offset(gate_at, tile_bytes);
                let gate = packed_product(&mut b, &left, w_param, gate_at, &layout, k)?;
                let up = packed_product(&mut b, &left, w_param, up_at, &layout, k)?;
                joined(&mut b, &[gate, up])
            } else {
                let at = b.scale(tile, tile_bytes);
                packed_product(&mut b, &left, w_param, at, &layout, k)?
            }
        }
        None => dynamic_product(&mut b, &left, r, w_param, tile, k)?,
    };

    let first_column = b.scale(tile, n_tile as i64);
    let ragged = !n.is_multiple_of(n_tile);
    let store = |b: &mut Builder, mask: Option<V>| bound.store(b, r, value, [first_row, first_column], mask);
    if ragged {
        // The last tile stores only the columns that exist.
        let lanes = b.iota(Elem::I64, n_tile as u32);
        let column = b.add(lanes, first_column);
        let limit = b.int(n as i64);
        let mask = b.compare(Compare::Less, column, limit);
        let mask = b.reshape(mask, &[1, n_tile as u32]);
        let mask = b.broadcast(mask, &[m_tile, n_tile as u32]);
        let last = b.offset(first_column, n_tile as i64);
        let full = b.compare(Compare::LessEqual, last, limit);
        let partial = b.compare(Compare::Less, limit, last);
        let mut outcome = Ok(());
        b.if_then(full, |b| outcome = store(b, None));
        outcome?;
        let mut outcome = Ok(());
        b.if_then(partial, |b| outcome = store(b, Some(mask)));
        outcome?;
    } else {
        store(&mut b, None)?;
    }
    let summary = format!(
        "{} {} x {} [{n}, {k}] -> {}, tile {m_tile}x{n_tile}",
        r.op.kind(),
        x.ty.dtype,
        r.operands[1].ty.dtype,
        out.ty.dtype
    );
    Ok(Built { kernel: b.finish(String::new()), arguments: bound.arguments, summary, then: None })
}

fn packed_product(b: &mut Builder, x: &Left<'_>, w: Param, at: V, layout: &Layout, k: u64) -> Result<V, Refusal> {
    match layout {
        Layout::AffineBlocks(blocks) if x.ty.dtype == DType::Q8A => Ok(integer_product(b, x, w, at, blocks, k)),
        Layout::AffineBlocks(blocks) => Ok(dequantised_product(b, x, w, at, blocks, k)),
        Layout::RowsInterleaved(rows) => Ok(float_product(b, x, w, at, rows, k)),
        Layout::Raw(_) => refuse("weight layout", "raw", "an interleaved one"),
    }
}

/// int8 activations: exact integer sums within a group, then sum += s_w * s_x * dot (+ min_w * s_x * sum(q_x)).
fn integer_product(b: &mut Builder, x: &Left<'_>, w: Param, at: V, layout: &AffineBlocks, k: u64) -> V {
    let n = layout.n_tile;
    let group = u64::from(layout.group);
    let per_block = 32 / group as i64;
    let x_block = DType::Q8A.block_bytes() as i64;
    let (zero, blocks) = (b.int(0), b.int((k / 32) as i64));
    let init = b.float_tile(&[x.rows, n], 0.0);
    let sums = b.for_loop(zero, blocks, 1, &[init], |b, i, carried| {
        let mut acc = carried[0];
        let x_at = b.scale(i, x_block);
        let x_at = b.add(x.base, x_at);
        let w_at = b.scale(i, layout.block_bytes() as i64 * per_block);
        let w_at = b.add(at, w_at);
        let scale_at = b.offset(x_at, Q8A_SCALE);
        let x_scale = b.load(x.param, scale_at, Elem::F32, &[x.rows, 1], &[x.stride, 4], None);
        for part in 0..per_block {
            let w_at = b.offset(w_at, part * layout.block_bytes() as i64);
            let g = load_group(b, w, w_at, layout);
            // One exact integer product per plane of x; the low plane counts 1/254.
            let plane = |b: &mut Builder, start: i64| {
                let q_at = b.offset(x_at, start + part * group as i64);
                let q = b.load(x.param, q_at, Elem::I8, &[x.rows, group as u32], &[x.stride, 1], None);
                let dot = b.dot_i8(q, g.quants, g.signed, g.max);
                b.to_f32(dot)
            };
            let (high, low) = (plane(b, 0), plane(b, 32));
            let step = b.float(1.0 / Q8A_STEPS);
            let dot = b.fma(low, step, high);
            let mut scaled = b.mul(dot, x_scale);
            if g.minimum.is_some() || g.zero != 0.0 {
                let sum_at = b.offset(x_at, Q8A_SUM);
                let x_sum = b.load(x.param, sum_at, Elem::F32, &[x.rows, 1], &[x.stride, 4], None);
                if g.zero != 0.0 {
                    let zero = b.float(-g.zero);
                    let correction = b.mul(x_sum, zero);
                    scaled = b.fma(dot, x_scale, correction);
                }
                if let Some(m) = g.minimum {
                    acc = b.fma(x_sum, m, acc);
                }
            }
            acc = b.fma(scaled, g.scale, acc);
        }
        vec![acc]
    });
    sums[0]
}

/// Float activations against block-quantised weights: each group is expanded in registers.
fn dequantised_product(b: &mut Builder, x: &Left<'_>, w: Param, at: V, layout: &AffineBlocks, k: u64) -> V {
    let elem = elem_of(x.ty.dtype).unwrap_or(Elem::F32);
    let group = u64::from(layout.group);
    let (zero, groups) = (b.int(0), b.int((k / group) as i64));
    let init = b.float_tile(&[x.rows, layout.n_tile], 0.0);
    let sums = b.for_loop(zero, groups, 1, &[init], |b, i, carried| {
        let w_at = b.scale(i, layout.block_bytes() as i64);
        let w_at = b.add(at, w_at);
        let values = load_group(b, w, w_at, layout).dequantise(b, layout);
        let x_at = b.scale(i, group as i64 * elem.bytes() as i64);
        let x_at = b.add(x.base, x_at);
        let left = load_left(b, x, x_at, elem, group as u32);
        vec![b.dot(carried[0], left, values)]
    });
    sums[0]
}

/// A [rows, width] piece of x as f32; f32 pieces stay in memory until the dot broadcasts them.
fn load_left(b: &mut Builder, x: &Left<'_>, at: V, elem: Elem, width: u32) -> V {
    let tile = b.load(x.param, at, elem, &[x.rows, width], &[x.stride, elem.bytes() as i64], None);
    b.to_f32(tile)
}

/// Float activations and weights. Where both are bf16, k pairs go to the bf16 dot as they lie; else both widen to f32.
fn float_product(b: &mut Builder, x: &Left<'_>, w: Param, at: V, layout: &RowsInterleaved, k: u64) -> V {
    let elem = elem_of(x.ty.dtype).unwrap_or(Elem::F32);
    let row_bytes = i64::from(layout.n_tile) * layout.dtype.block_bytes() as i64;
    let pairs = layout.k_pair && x.ty.dtype == DType::BF16;
    let init = b.float_tile(&[x.rows, layout.n_tile], 0.0);
    for_row(b, k, 8, &[init], |b, i, width, carried| {
        let w_at = b.scale(i, row_bytes);
        let w_at = b.add(at, w_at);
        let x_at = b.scale(i, elem.bytes() as i64);
        let x_at = b.add(x.base, x_at);
        if pairs {
            // K is even, and so is every width.
            let values = load_pairs(b, w, w_at, layout, width);
            let left = b.load(x.param, x_at, elem, &[x.rows, width], &[x.stride, elem.bytes() as i64], None);
            return vec![b.dot_bf16(carried[0], left, values)];
        }
        let values = load_rows(b, w, w_at, layout, width);
        let left = load_left(b, x, x_at, elem, width);
        vec![b.dot(carried[0], left, values)]
    })[0]
}

/// A right side computed in the step: [N, K] as it lies, one lane per row.
fn dynamic_product(b: &mut Builder, x: &Left<'_>, r: &Request<'_>, w: Param, tile: V, k: u64) -> Result<V, Refusal> {
    let weights = &r.operands[1];
    let n = weights.ty.shape[0].constant().unwrap_or(1);
    let lanes = r.target().lanes();
    let elem = elem_of(weights.ty.dtype).unwrap_or(Elem::F32);
    let x_elem = elem_of(x.ty.dtype).unwrap_or(Elem::F32);
    let (row, column) = (weights.byte_stride(0), weights.byte_stride(1));
    let init = b.float_tile(&[x.rows, lanes], 0.0);
    let (zero, end) = (b.int(0), b.int(k as i64));
    let first = b.scale(tile, i64::from(lanes));
    // Rows past N are not there to be read.
    let spare = b.int(n as i64);
    let index = b.iota(Elem::I64, lanes);
    let index = b.add(index, first);
    let mask = b.compare(Compare::Less, index, spare);
    let mask = b.reshape(mask, &[1, lanes]);
    let base = b.scale(first, row);
    let sums = b.for_loop(zero, end, 1, &[init], |b, i, carried| {
        let at = b.scale(i, column);
        let at = b.add(base, at);
        let guard = (!n.is_multiple_of(u64::from(lanes))).then_some(mask);
        let values = b.load(w, at, elem, &[1, lanes], &[0, row], guard);
        let values = b.to_f32(values);
        let x_at = b.scale(i, x_elem.bytes() as i64);
        let x_at = b.add(x.base, x_at);
        let left = load_left(b, x, x_at, x_elem, 1);
        vec![b.dot(carried[0], left, values)]
    });
    Ok(sums[0])
}
