//! Matrix products with packed weights: plain, + addend, and silu(gate) * up over a pair of weights.
//!
//! A program computes an [m_tile, n_tile] tile of the result over all of K. Weights lie one lane per output row, so the
//! inner step is a broadcast of x against a vector of weights, for one token (gemv) and for many (gemm) alike.

use super::weights::{load_group, load_pairs, load_rows, matrix_layout};
use super::{Argument, Built, Request, RowSpace, contiguous_last, last_dim, refuse, require, row_stride};
use crate::kernels::row::{Q8A_SCALE, Q8A_STEPS, Q8A_SUM, elem_of};
use crate::tile::{Access, Builder, Compare, Conversion, Elem, Param, V};
use weldment_ir::{DType, Op, TensorType};
use weldment_passes::target::Refusal;
use weldment_runtime::artifact::{AffineBlocks, Layout, RowsInterleaved};

/// Preconditions of the family.
///
/// # Errors
/// The first that fails.
pub fn check(r: &Request<'_>) -> Result<(), Refusal> {
    let (x, w) = (&r.operands[0], &r.operands[1]);
    let k = last_dim(x)?;
    require(w.ty.constant_shape().is_some(), "weight shape", &w.ty, "constant dims")?;
    require(r.results[0].ty.dtype.is_compute_float(), "result dtype", r.results[0].ty.dtype, "f32, f16 or bf16")?;
    require(
        x.ty.dtype.is_compute_float() || x.ty.dtype == DType::Q8A,
        "activation dtype",
        x.ty.dtype,
        "f32, f16, bf16 or q8a",
    )?;
    require(
        x.ty.dtype != DType::Q8A || w.ty.dtype.is_block(),
        "weight dtype for q8a activations",
        w.ty.dtype,
        "a block-quantised format",
    )?;
    contiguous_last(x)?;
    contiguous_last(&r.results[0])?;
    row_stride(x)?;
    row_stride(&r.results[0])?;
    RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
    if w.is_static {
        matrix_layout(w.ty.dtype, k, r.target, false)?;
    } else {
        require(
            w.ty.dtype.is_compute_float() && x.ty.dtype.is_compute_float(),
            "weight dtype computed in the step",
            w.ty.dtype,
            "f32, f16 or bf16",
        )?;
        require(!matches!(r.op, Op::MatmulSiluMul { .. }), "weight", "one computed in the step", "a static one")?;
    }
    if let Op::MatmulAdd { .. } = r.op {
        contiguous_last(&r.operands[2])?;
        addend_stride(r)?;
    }
    Ok(())
}

/// Byte stride of the addend per row: 0 for a bias.
fn addend_stride(r: &Request<'_>) -> Result<i64, Refusal> {
    let (addend, out) = (&r.operands[2], &r.results[0]);
    require(addend.ty.last_constant() == out.ty.last_constant(), "addend", &addend.ty, "the result's last dim")?;
    let lead = &addend.ty.shape[..addend.ty.rank() - 1];
    if lead.iter().all(|d| d.constant() == Some(1)) {
        return Ok(0);
    }
    require(addend.ty.shape == out.ty.shape, "addend", &addend.ty, format!("a vector or {}", out.ty))?;
    row_stride(addend)
}

/// Rows per program: one for decode, else as many as leave the accumulators in registers.
fn row_tile(r: &Request<'_>, rows: &RowSpace) -> u32 {
    let wide = r.target.choices().gemm_rows.unwrap_or(if r.target.lanes() == 16 { 8 } else { 4 });
    match &rows.symbol {
        // Rows past the symbol's value are computed into the padding that bufferisation leaves (16 rows).
        Some(s) if s == "T" && r.max_tokens > 1 => wide,
        Some(s) if s == "T" => 1,
        // Logit rows are few.
        Some(_) => 1,
        None => [8, 4, 2, 1].into_iter().find(|m| *m <= wide && rows.mul.is_multiple_of(u64::from(*m))).unwrap_or(1),
    }
}

struct Left<'t> {
    ty: &'t TensorType,
    param: Param,
    /// Byte offset of the first row of the program's tile.
    base: V,
    stride: i64,
    rows: u32,
}

/// The kernel of a request that passed [`check`].
///
/// # Errors
/// As [`check`].
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    check(r)?;
    let (x, out) = (&r.operands[0], &r.results[0]);
    let k = last_dim(x)?;
    let n = last_dim(out)?;
    let rows = RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
    let m_tile = row_tile(r, &rows);
    let n_tile = u64::from(r.target.lanes());
    let pair = matches!(r.op, Op::MatmulSiluMul { .. });
    let mut b = Builder::new(if m_tile == 1 { "gemv" } else { "gemm" });
    let x_param = b.param("x", Access::Read);
    let w_param = b.param("w", Access::Read);
    let mut arguments = vec![Argument::Operand(0)];
    let layout = if r.operands[1].is_static {
        let layout = matrix_layout(r.operands[1].ty.dtype, k, r.target, pair)?;
        arguments.push(Argument::Packed { operands: if pair { vec![1, 2] } else { vec![1] }, layout });
        Some(layout)
    } else {
        arguments.push(Argument::Operand(1));
        None
    };
    let addend = matches!(r.op, Op::MatmulAdd { .. }).then(|| {
        arguments.push(Argument::Operand(2));
        b.param("addend", Access::Read)
    });
    let out_param = b.param("out", Access::Write);
    arguments.push(Argument::Result(0));
    rows.grid(&mut b, 0, u64::from(m_tile));
    b.grid_constant(1, n.div_ceil(n_tile));

    let (pid_m, tile) = (b.program_id(0), b.program_id(1));
    let first_row = b.scale(pid_m, i64::from(m_tile));
    let base = b.scale(first_row, row_stride(x)?);
    let left = Left { ty: &x.ty, param: x_param, base, stride: row_stride(x)?, rows: m_tile };
    let value = match layout {
        Some(layout) => {
            let tile_bytes = layout.tile_bytes(k).unwrap_or(0) as i64;
            if pair {
                let gate_at = b.scale(tile, 2 * tile_bytes);
                let up_at = b.offset(gate_at, tile_bytes);
                let gate = packed_product(&mut b, &left, w_param, gate_at, &layout, k)?;
                let up = packed_product(&mut b, &left, w_param, up_at, &layout, k)?;
                let gate = b.silu(gate);
                b.mul(gate, up)
            } else {
                let at = b.scale(tile, tile_bytes);
                packed_product(&mut b, &left, w_param, at, &layout, k)?
            }
        }
        None => dynamic_product(&mut b, &left, r, w_param, tile, k)?,
    };

    let first_column = b.scale(tile, n_tile as i64);
    let ragged = !n.is_multiple_of(n_tile);
    let store = |b: &mut Builder, mask: Option<V>| -> Result<(), Refusal> {
        let mut value = value;
        if let Some(param) = addend {
            let stride = addend_stride(r)?;
            let dtype = r.operands[2].ty.dtype;
            let elem = elem_of(dtype).unwrap_or(Elem::F32);
            let row_at = b.scale(first_row, stride);
            let column_at = b.scale(first_column, elem.bytes() as i64);
            let at = b.add(row_at, column_at);
            let a = b.load(param, at, elem, &[m_tile, n_tile as u32], &[stride, elem.bytes() as i64], mask);
            let a = b.to_f32(a);
            value = b.add(value, a);
        }
        let elem = elem_of(out.ty.dtype).unwrap_or(Elem::F32);
        let stride = row_stride(out)?;
        let row_at = b.scale(first_row, stride);
        let column_at = b.scale(first_column, elem.bytes() as i64);
        let at = b.add(row_at, column_at);
        let value = b.convert(Conversion::Float, value, elem);
        b.store(out_param, at, &[stride, elem.bytes() as i64], value, mask);
        Ok(())
    };
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
    Ok(Built { kernel: b.finish(String::new()), arguments, summary })
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
    super::row::for_row(b, k, 8, &[init], |b, i, width, carried| {
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
    let lanes = r.target.lanes();
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

#[cfg(test)]
mod tests {
    use super::{DType, Op, Request, TensorType, build};
    use crate::kernels::Tensor;
    use crate::target::Target;
    use weldment_ir::Dim;

    /// The tile program of [4, k] x [32, k].
    fn program(x: DType, w: DType, k: u64) -> String {
        let target = Target::named("x86-64-v4", &[]).expect("a known target");
        let tensor = |dtype, rows, columns| {
            Tensor::contiguous(&TensorType { dtype, shape: vec![Dim::Const(rows), Dim::Const(columns)] })
        };
        let request = Request {
            op: &Op::Matmul { dtype: DType::F32 },
            operands: vec![tensor(x, 4, k), Tensor { is_static: true, ..tensor(w, 32, k) }],
            results: vec![tensor(DType::F32, 4, 32)],
            max_tokens: 1,
            target: &target,
        };
        build(&request).expect("a matmul the family takes").kernel.to_string()
    }

    #[test]
    fn bf16_by_bf16_takes_the_bf16_dot() {
        assert!(program(DType::BF16, DType::BF16, 38).contains("dot_bf16"));
        for (x, w, k) in [(DType::BF16, DType::BF16, 37), (DType::F32, DType::BF16, 38), (DType::BF16, DType::F16, 38)]
        {
            assert!(!program(x, w, k).contains("dot_bf16"), "{x} {w} {k}");
        }
    }
}
