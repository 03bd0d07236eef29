//! Rows of a table by index. A packed table is read in the layout that a matmul would want, so that tied embeddings
//! are packed once.

use super::row::{elem_of, for_row, load_f32, load_index, store_f32};
use super::weights::{matrix_layout, stored_elem};
use super::{Argument, Built, Request, RowSpace, contiguous_last, last_dim, require, row_stride};
use crate::tile::{Access, Binary, Builder, Conversion, Elem, Param, V};
use weldment_ir::Dim;
use weldment_passes::target::Refusal;
use weldment_runtime::artifact::{AffineBlocks, Layout, RowsInterleaved};

/// Preconditions of the family.
///
/// # Errors
/// The first that fails.
pub fn check(r: &Request<'_>) -> Result<(), Refusal> {
    let (table, indices, out) = (&r.operands[0], &r.operands[1], &r.results[0]);
    let h = last_dim(table)?;
    contiguous_last(out)?;
    row_stride(out)?;
    RowSpace::of(&indices.ty.shape)?;
    let mut flat = indices.clone();
    flat.ty.shape.push(Dim::Const(1));
    flat.strides.push(1);
    row_stride(&flat)?;
    if table.is_static {
        matrix_layout(table.ty.dtype, h, r.target, false)?;
        Ok(())
    } else {
        contiguous_last(table)?;
        require(
            table.ty.dtype.is_compute_float(),
            "table dtype computed in the step",
            table.ty.dtype,
            "f32, f16 or bf16",
        )
    }
}

/// The kernel of a request that passed [`check`].
///
/// # Errors
/// As [`check`].
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    check(r)?;
    let (table, indices, out) = (&r.operands[0], &r.operands[1], &r.results[0]);
    let h = last_dim(table)?;
    let rows = RowSpace::of(&indices.ty.shape)?;
    let mut b = Builder::new("gather");
    let table_param = b.param("table", Access::Read);
    let index_param = b.param("indices", Access::Read);
    let out_param = b.param("out", Access::Write);
    rows.grid(&mut b, 0, 1);
    let row = b.program_id(0);
    let stride = if indices.ty.rank() == 0 { 0 } else { indices.byte_stride(indices.ty.rank() - 1) };
    let index_at = b.scale(row, stride);
    let index = load_index(&mut b, index_param, index_at);
    let out_row = b.scale(row, row_stride(out)?);
    let mut first = Argument::Operand(0);
    if table.is_static {
        let layout = matrix_layout(table.ty.dtype, h, r.target, false)?;
        first = Argument::Packed { operands: vec![0], layout };
        let per = b.int(i64::from(layout.n_tile()));
        let (tile, lane) = (b.div(index, per), b.binary(Binary::Rem, index, per));
        let base = b.scale(tile, layout.tile_bytes(h).unwrap_or(0) as i64);
        let sink = Sink { param: out_param, row: out_row, dtype: out.ty.dtype };
        match &layout {
            Layout::AffineBlocks(blocks) => blocks_row(&mut b, table_param, base, lane, blocks, h, &sink),
            Layout::RowsInterleaved(l) => interleaved_row(&mut b, table_param, base, lane, l, h, &sink),
            Layout::Raw(_) => return super::refuse("table layout", "raw", "an interleaved one"),
        }
    } else {
        let base = b.scale(index, table.byte_stride(0));
        for_row(&mut b, h, 32, &[], |b, i, width, _| {
            let at = b.scale(i, table.ty.dtype.block_bytes() as i64);
            let at = b.add(base, at);
            let v = load_f32(b, table_param, at, table.ty.dtype, width);
            let at = b.scale(i, out.ty.dtype.block_bytes() as i64);
            let at = b.add(out_row, at);
            store_f32(b, out_param, at, out.ty.dtype, v);
            Vec::new()
        });
    }
    let summary = format!("gather rows of {h} {} -> {}", table.ty.dtype, out.ty.dtype);
    Ok(Built {
        kernel: b.finish(String::new()),
        arguments: vec![first, Argument::Operand(1), Argument::Result(0)],
        summary,
    })
}

struct Sink {
    param: Param,
    row: V,
    dtype: weldment_ir::DType,
}

/// Dequantises one lane of each group, its bytes picked by address.
fn blocks_row(b: &mut Builder, table: Param, base: V, lane: V, layout: &AffineBlocks, h: u64, sink: &Sink) {
    let (zero, groups) = (b.int(0), b.int((h / u64::from(layout.group)) as i64));
    let out_bytes = sink.dtype.block_bytes() as i64;
    b.for_loop(zero, groups, 1, &[], |b, i, _| {
        let at = b.scale(i, layout.block_bytes() as i64);
        let at = b.add(base, at);
        let words = i64::from(layout.n_tile) * 4;
        let lane_at = b.scale(lane, 4);
        let lane_at = b.add(at, lane_at);
        let count = if layout.bits == 4 { layout.group / 8 } else { layout.group / 4 };
        let scale_bytes = layout.scale_bytes() as i64;
        let scale_at = b.offset(at, layout.quant_bytes() as i64);
        let own = b.scale(lane, scale_bytes);
        let scale_at = b.add(scale_at, own);
        let elem = if scale_bytes == 2 { Elem::F16 } else { Elem::F32 };
        let scale = b.load_scalar(table, scale_at, elem);
        let scale = b.to_f32(scale);
        let minimum = layout.has_min.then(|| {
            let at = b.offset(scale_at, i64::from(layout.n_tile) * scale_bytes);
            let m = b.load_scalar(table, at, elem);
            b.to_f32(m)
        });
        let bytes = b.load(table, lane_at, Elem::I8, &[count, 4], &[words, 1], None);
        let wide = b.convert(Conversion::Unsigned, bytes, Elem::I32);
        let halves: Vec<(V, i64)> = if layout.bits == 4 {
            let (mask, four) = (b.int_of(Elem::I32, &[], 15), b.int_of(Elem::I32, &[], 4));
            let low = b.binary(Binary::And, wide, mask);
            let high = b.binary(Binary::Shr, wide, four);
            vec![(low, 0), (high, i64::from(layout.group) / 2)]
        } else if layout.signed {
            vec![(b.convert(Conversion::Signed, bytes, Elem::I32), 0)]
        } else {
            vec![(wide, 0)]
        };
        let row_at = b.scale(i, i64::from(layout.group) * out_bytes);
        let row_at = b.add(sink.row, row_at);
        for (q, start) in halves {
            let mut q = b.to_f32(q);
            if layout.bits == 4 && !layout.has_min {
                let eight = b.float(8.0);
                q = b.sub(q, eight);
            }
            let v = match minimum {
                Some(m) => b.fma(q, scale, m),
                None => b.mul(q, scale),
            };
            let elem = elem_of(sink.dtype).unwrap_or(Elem::F32);
            let v = b.convert(Conversion::Float, v, elem);
            let at = b.offset(row_at, start * out_bytes);
            b.store(sink.param, at, &[4 * out_bytes, out_bytes], v, None);
        }
        Vec::new()
    });
}

fn interleaved_row(b: &mut Builder, table: Param, base: V, lane: V, layout: &RowsInterleaved, h: u64, sink: &Sink) {
    let elem = stored_elem(layout);
    // What one row has in one place: an element or, with even h and so even widths, a pair.
    let word = if layout.k_pair { Elem::I32 } else { elem };
    let together = layout.k_step() as u32;
    let step = i64::from(layout.n_tile) * elem.bytes() as i64;
    let own = b.scale(lane, word.bytes() as i64);
    let first = b.add(base, own);
    for_row(b, h, 8, &[], |b, i, width, _| {
        let at = b.scale(i, step);
        let at = b.add(first, at);
        let v = b.load(table, at, word, &[width / together], &[step * i64::from(together)], None);
        let v = b.bitcast(v, elem);
        let v = b.to_f32(v);
        let at = b.scale(i, sink.dtype.block_bytes() as i64);
        let at = b.add(sink.row, at);
        store_f32(b, sink.param, at, sink.dtype, v);
        Vec::new()
    });
}
