//! Rows of a table by index, or of a rank's part of a table, which has zeros for the other parts' rows. A packed table is read in the layout that a matmul would want, so that tied embeddings
//! are packed once.

use super::collective::{comm_param, rank};
use super::row::{elem_of, element_offset, for_row, load_f32, load_index, store_f32};
use super::schedule::{ELEMENTS, below, packed_param, param, threads_for};
use super::weights::{matrix_layout, quants, stored_elem};
use crate::family::{Addressing, Family, Sharing, Strides};
use crate::request::{
    Argument, Built, Request, RowSpace, Tensor, contiguous_last, last_dim, refuse, require, row_stride,
};
use crate::tile::{Access, Binary, Builder, Compare, Conversion, Elem, Param, V};
use weldment_artifact::{AffineBlocks, Layout, RowsInterleaved};
use weldment_ir::{DType, Dim, Op, OpKind};
use weldment_passes::target::Refusal;

/// Rows of a table.
pub struct Gather;

impl Family for Gather {
    fn runs(&self, kind: OpKind) -> bool {
        matches!(kind, OpKind::Gather | OpKind::GatherPart)
    }

    fn addressing(&self, _: OpKind) -> Addressing {
        Addressing { operands: &[Strides::Contiguous, Strides::Points], results: Strides::Rows, shares: Sharing::Never }
    }

    /// Preconditions of the family.
    fn check(&self, r: &Request<'_>) -> Result<(), Refusal> {
        let (table, indices, out) = (&r.operands[0], &r.operands[1], &r.results[0]);
        let h = last_dim(table)?;
        contiguous_last(out)?;
        row_stride(out)?;
        RowSpace::of(&indices.ty.shape)?;
        row_stride(&indices.points())?;
        if table.is_static {
            matrix_layout(table.ty.dtype, h, r.target(), false)?;
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

    fn build(&self, r: &Request<'_>) -> Result<Built, Refusal> {
        self.check(r)?;
        let (table, indices, out) = (&r.operands[0], &r.operands[1], &r.results[0]);
        let h = last_dim(table)?;
        let rows = RowSpace::of(&indices.ty.shape)?;
        let mut b = Builder::new("gather");
        let gpu = r.target().gpu().is_some();
        let table_param = if table.is_static {
            packed_param(&mut b, r.target(), "table")
        } else {
            param(&mut b, r.target(), "table", table, Access::Read)
        };
        let index_param = param(&mut b, r.target(), "indices", indices, Access::Read);
        let out_param = param(&mut b, r.target(), "out", out, Access::Write);
        rows.grid(&mut b, 0, 1);
        let row = b.program_id(0);
        let index_at = b.scale(row, row_stride(&indices.points())?);
        let index = load_index(&mut b, index_param, index_at);
        let mut arguments = vec![Argument::Operand(0), Argument::Operand(1), Argument::Result(0)];
        let (index, keep) = match r.op {
            Op::GatherPart { .. } => {
                let comm = comm_param(&mut b, r.target());
                arguments.push(Argument::Comm);
                let (index, keep) = part(&mut b, comm, index, table)?;
                (index, Some(keep))
            }
            _ => (index, None),
        };
        let out_row = b.scale(row, row_stride(out)?);
        if table.is_static {
            let layout = matrix_layout(table.ty.dtype, h, r.target(), false)?;
            arguments[0] = Argument::Packed { operands: vec![0], layout };
            let sink = Sink { param: out_param, row: out_row, dtype: out.ty.dtype, keep };
            let per = b.int(i64::from(layout.n_tile()));
            let (tile, lane) = (b.div(index, per), b.binary(Binary::Rem, index, per));
            let base = b.scale(tile, layout.tile_bytes(h).unwrap_or(0) as i64);
            match &layout {
                Layout::AffineBlocks(blocks) => blocks_row(&mut b, table_param, base, lane, blocks, h, &sink, gpu),
                Layout::RowsInterleaved(l) => interleaved_row(&mut b, table_param, base, lane, l, h, &sink),
                Layout::Raw(_) => plain_row(&mut b, table_param, base, table.ty.dtype, h, &sink, gpu),
            }
        } else {
            let base = b.scale(index, table.byte_stride(0));
            let sink = Sink { param: out_param, row: out_row, dtype: out.ty.dtype, keep };
            plain_row(&mut b, table_param, base, table.ty.dtype, h, &sink, gpu);
        }
        let summary = format!("{} rows of {h} {} -> {}", r.op.kind(), table.ty.dtype, out.ty.dtype);
        Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
    }
}

/// The row of this rank's part that stands for row `index` of the whole table, and whether it is there; else the first.
fn part(b: &mut Builder, comm: Param, index: V, table: &Tensor) -> Result<(V, V), Refusal> {
    let Some(rows) = table.ty.shape.first().and_then(Dim::constant) else {
        return refuse("table rows", &table.ty, "a constant");
    };
    let rank = rank(b, comm);
    let start = b.scale(rank, rows as i64);
    let own = b.sub(index, start);
    let (zero, end) = (b.int(0), b.int(rows as i64));
    let above = b.compare(Compare::LessEqual, zero, own);
    let below = b.compare(Compare::Less, own, end);
    let keep = b.binary(Binary::And, above, below);
    Ok((b.select(keep, own, zero), keep))
}

struct Sink {
    param: Param,
    row: V,
    dtype: DType,
    /// Scalar i1: the row is there, else it is zeros. `None`: it always is.
    keep: Option<V>,
}

impl Sink {
    /// `v`, or zeros.
    fn kept(&self, b: &mut Builder, v: V) -> V {
        let Some(keep) = self.keep else { return v };
        let shape = b.ty(v).shape.clone();
        let zero = match b.ty(v).elem {
            Elem::F32 => b.float_tile(&shape, 0.0),
            elem => {
                let zero = b.float_tile(&shape, 0.0);
                b.convert(Conversion::Float, zero, elem)
            }
        };
        b.select(keep, v, zero)
    }
}

/// Copies a row that lies as it is. On a GPU the row is cut along grid axis 1.
fn plain_row(b: &mut Builder, table: Param, base: V, dtype: DType, h: u64, sink: &Sink, gpu: bool) {
    if gpu {
        let width = h.next_power_of_two().min(ELEMENTS);
        b.threads(threads_for(width, 8));
        b.grid_constant(1, h.div_ceil(width));
        let (elem, out) = (elem_of(dtype).unwrap_or(Elem::F32), elem_of(sink.dtype).unwrap_or(Elem::F32));
        let piece = b.program_id(1);
        let start = b.scale(piece, width as i64);
        let mask = (!h.is_multiple_of(width)).then(|| below(b, start, width as u32, h));
        let at = element_offset(b, dtype, start);
        let at = b.add(base, at);
        let v = b.load(table, at, elem, &[width as u32], &[elem.bytes() as i64], mask);
        let v = if elem == out { v } else { b.to_f32(v) };
        let v = b.convert(Conversion::Float, v, out);
        let v = sink.kept(b, v);
        let at = element_offset(b, sink.dtype, start);
        let at = b.add(sink.row, at);
        b.store(sink.param, at, &[out.bytes() as i64], v, mask);
        return;
    }
    for_row(b, h, 32, &[], |b, i, width, _| {
        let at = element_offset(b, dtype, i);
        let at = b.add(base, at);
        let v = load_f32(b, table, at, dtype, width);
        let v = sink.kept(b, v);
        let at = element_offset(b, sink.dtype, i);
        let at = b.add(sink.row, at);
        store_f32(b, sink.param, at, sink.dtype, v);
        Vec::new()
    });
}

/// Dequantises one lane of each group, its bytes picked by address: a group at a time, or on a GPU a tile of groups along grid
/// axis 1.
#[allow(clippy::too_many_arguments, reason = "a place, a layout and a sink")]
fn blocks_row(b: &mut Builder, table: Param, base: V, lane: V, layout: &AffineBlocks, h: u64, sink: &Sink, gpu: bool) {
    let groups = h / u64::from(layout.group);
    if !gpu {
        let (zero, end) = (b.int(0), b.int(groups as i64));
        b.for_loop(zero, end, 1, &[], |b, i, _| {
            groups_row(b, table, (base, lane), layout, sink, i, 1, None);
            Vec::new()
        });
        return;
    }
    let together = groups.next_power_of_two().min(ELEMENTS / u64::from(layout.group));
    b.threads(threads_for(together * u64::from(layout.group), 8));
    b.grid_constant(1, groups.div_ceil(together));
    let piece = b.program_id(1);
    let first = b.scale(piece, together as i64);
    let mask = (!groups.is_multiple_of(together)).then(|| below(b, first, together as u32, groups));
    groups_row(b, table, (base, lane), layout, sink, first, together as u32, mask);
}

/// `count` groups from group `i` on, of which those in `mask` [count] exist.
#[allow(clippy::too_many_arguments, reason = "a place, a layout, a sink and a range")]
fn groups_row(
    b: &mut Builder,
    table: Param,
    (base, lane): (V, V),
    layout: &AffineBlocks,
    sink: &Sink,
    i: V,
    count: u32,
    mask: Option<V>,
) {
    let out_bytes = sink.dtype.block_bytes() as i64;
    let at = b.scale(i, layout.block_bytes() as i64);
    let at = b.add(base, at);
    let line = i64::from(layout.n_tile) * 4;
    let lane_at = b.scale(lane, 4);
    let lane_at = b.add(at, lane_at);
    let words = if layout.bits == 4 { layout.group / 8 } else { layout.group / 4 };
    let scale_bytes = layout.scale_bytes() as i64;
    let scale_at = b.offset(at, layout.quant_bytes() as i64);
    let own = b.scale(lane, scale_bytes);
    let scale_at = b.add(scale_at, own);
    let elem = if scale_bytes == 2 { Elem::F16 } else { Elem::F32 };
    let block = layout.block_bytes() as i64;
    // On a host a single group: its tiles have no dim for groups.
    let dims =
        |inner: [u32; 2]| if mask.is_some() || count > 1 { vec![count, inner[0], inner[1]] } else { inner.to_vec() };
    let spread = dims([1, 1]).len() == 3;
    let masked = |b: &mut Builder, inner: [u32; 2]| {
        let mask = mask?;
        let mask = b.reshape(mask, &[count, 1, 1]);
        Some(b.broadcast(mask, &[count, inner[0], inner[1]]))
    };
    let load = |b: &mut Builder, at: V, elem: Elem, inner: [u32; 2], strides: [i64; 2]| {
        let mask = masked(b, inner);
        let all = [block, strides[0], strides[1]];
        b.load(table, at, elem, &dims(inner), if spread { &all } else { &all[1..] }, mask)
    };
    let scalar = |b: &mut Builder, at: V| {
        let v = if spread { load(b, at, elem, [1, 1], [0, 0]) } else { b.load_scalar(table, at, elem) };
        b.to_f32(v)
    };
    let scale = scalar(b, scale_at);
    let minimum = layout.has_min.then(|| {
        let at = b.offset(scale_at, i64::from(layout.n_tile) * scale_bytes);
        scalar(b, at)
    });
    let bytes = load(b, lane_at, Elem::I8, [words, 4], [line, 1]);
    let row_at = b.scale(i, i64::from(layout.group) * out_bytes);
    let row_at = b.add(sink.row, row_at);
    for (q, start) in quants(b, layout, bytes) {
        let v = match minimum {
            Some(m) => b.fma(q, scale, m),
            None => b.mul(q, scale),
        };
        let elem = elem_of(sink.dtype).unwrap_or(Elem::F32);
        let v = b.convert(Conversion::Float, v, elem);
        let v = sink.kept(b, v);
        let at = b.offset(row_at, i64::from(start) * out_bytes);
        let mask = masked(b, [words, 4]);
        let strides = [i64::from(layout.group) * out_bytes, 4 * out_bytes, out_bytes];
        b.store(sink.param, at, if spread { &strides } else { &strides[1..] }, v, mask);
    }
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
        let v = sink.kept(b, v);
        let at = b.scale(i, sink.dtype.block_bytes() as i64);
        let at = b.add(sink.row, at);
        store_f32(b, sink.param, at, sink.dtype, v);
        Vec::new()
    });
}
