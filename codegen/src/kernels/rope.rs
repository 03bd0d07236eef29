//! Rotary embedding and paged-cache writes: one program a token and head. The rotation and the write are one kernel, so
//! rope, cache_write and rope_cache_write are the same code with parts left out.

use super::row::{elem_of, element_offset, for_row, load_f32, load_index, segments, store_f32};
use super::{Argument, Built, Request, Tensor, contiguous_last, last_dim, require};
use crate::tile::{Access, Builder, Compare, Conversion, Param, V};
use weldment_ir::{Dim, Op};
use weldment_passes::target::Refusal;

/// Operand positions by op.
struct Parts {
    x: usize,
    positions: usize,
    table: Option<usize>,
    cache: Option<Cache>,
    interleaved: bool,
}

struct Cache {
    sequence_ids: usize,
    block_tables: usize,
    transposed: bool,
}

fn parts(op: &Op) -> Option<Parts> {
    Some(match op {
        Op::Rope { interleaved } => {
            Parts { x: 0, positions: 1, table: Some(2), cache: None, interleaved: *interleaved }
        }
        Op::CacheWrite { transposed } => {
            let cache = Cache { sequence_ids: 3, block_tables: 4, transposed: *transposed };
            Parts { x: 1, positions: 2, table: None, cache: Some(cache), interleaved: false }
        }
        Op::RopeCacheWrite { interleaved, transposed } => {
            let cache = Cache { sequence_ids: 4, block_tables: 5, transposed: *transposed };
            Parts { x: 1, positions: 2, table: Some(3), cache: Some(cache), interleaved: *interleaved }
        }
        _ => return None,
    })
}

/// Preconditions of the family.
///
/// # Errors
/// The first that fails.
pub fn check(r: &Request<'_>) -> Result<(), Refusal> {
    let Some(p) = parts(r.op) else { return super::refuse("op", r.op.kind(), "rope, cache_write or rope_cache_write") };
    let x = &r.operands[p.x];
    last_dim(x)?;
    contiguous_last(x)?;
    contiguous_last(&r.results[0])?;
    require(x.ty.shape[1].constant().is_some(), "heads", &x.ty, "a constant")?;
    require(r.results[0].ty.dtype.is_compute_float(), "result dtype", r.results[0].ty.dtype, "f32, f16 or bf16")?;
    if let Some(t) = p.table {
        contiguous_last(&r.operands[t])?;
    }
    Ok(())
}

/// Where the rotated row goes.
struct Destination<'t> {
    param: Param,
    base: V,
    tensor: &'t Tensor,
    /// Element stride.
    stride: i64,
}

impl Destination<'_> {
    fn store(&self, b: &mut Builder, element: V, step: i64, v: V) {
        let dtype = self.tensor.ty.dtype;
        let bytes = self.stride * dtype.block_bytes() as i64;
        let at = b.scale(element, bytes);
        let at = b.add(self.base, at);
        if bytes * step == dtype.block_bytes() as i64 {
            store_f32(b, self.param, at, dtype, v);
        } else {
            let elem = elem_of(dtype).unwrap_or(crate::tile::Elem::F32);
            let v = b.convert(Conversion::Float, v, elem);
            b.store(self.param, at, &[bytes * step], v, None);
        }
    }
}

/// The kernel of a request that passed [`check`].
///
/// # Errors
/// As [`check`].
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    check(r)?;
    let Some(p) = parts(r.op) else { return super::refuse("op", r.op.kind(), "rope, cache_write or rope_cache_write") };
    let x = &r.operands[p.x];
    let d = last_dim(x)?;
    let heads = x.ty.shape[1].constant().unwrap_or(1);
    let mut b = Builder::new(if p.cache.is_some() { "cache_write" } else { "rope" });
    let mut arguments = Vec::new();
    let mut operand = |b: &mut Builder, name: &str, i: usize| {
        arguments.push(Argument::Operand(i));
        b.param(name, Access::Read)
    };
    let x_param = operand(&mut b, "x", p.x);
    let positions = operand(&mut b, "positions", p.positions);
    let table = p.table.map(|t| (operand(&mut b, "table", t), &r.operands[t]));
    let cache = p
        .cache
        .as_ref()
        .map(|c| (operand(&mut b, "sequence_ids", c.sequence_ids), operand(&mut b, "block_tables", c.block_tables), c));
    let out_param = b.param("out", Access::Write);
    arguments.push(Argument::Result(0));
    b.grid_constant(0, heads);
    match &x.ty.shape[0] {
        Dim::Sym(s) => b.grid_symbol(1, s, 1, 1),
        Dim::Const(n) => b.grid_constant(1, *n),
    }

    let (head, token) = (b.program_id(0), b.program_id(1));
    let at_token = b.scale(token, r.operands[p.positions].byte_stride(0));
    let position = load_index(&mut b, positions, at_token);
    let x_token = b.scale(token, x.byte_stride(0));
    let x_head = b.scale(head, x.byte_stride(1));
    let x_base = b.add(x_token, x_head);
    let out = &r.results[0];
    let mut guard = None;
    let destination = match cache {
        None => {
            let (a, c) = (b.scale(token, out.byte_stride(0)), b.scale(head, out.byte_stride(1)));
            Destination { param: out_param, base: b.add(a, c), tensor: out, stride: 1 }
        }
        Some((ids, tables, c)) => {
            let slot_axis = if c.transposed { 3 } else { 2 };
            let slots = out.ty.shape[slot_axis].constant().unwrap_or(1);
            let id_at = b.scale(token, r.operands[c.sequence_ids].byte_stride(0));
            let sequence = load_index(&mut b, ids, id_at);
            let per = b.int(slots as i64);
            let (column, slot) = (b.div(position, per), b.binary(crate::tile::Binary::Rem, position, per));
            let row_at = b.scale(sequence, r.operands[c.block_tables].byte_stride(0));
            let column_at = b.scale(column, r.operands[c.block_tables].byte_stride(1));
            let entry = b.add(row_at, column_at);
            let block = load_index(&mut b, tables, entry);
            let none = b.int(-1);
            guard = Some(b.compare(Compare::Less, none, block));
            let mut base = b.scale(block, out.byte_stride(0));
            for (index, axis) in [(head, 1), (slot, slot_axis)] {
                let part = b.scale(index, out.byte_stride(axis));
                base = b.add(base, part);
            }
            Destination {
                param: out_param,
                base,
                tensor: out,
                stride: out.strides[if c.transposed { 2 } else { 3 }] as i64,
            }
        }
    };
    let body = |b: &mut Builder| {
        let rotary = match table {
            Some((param, t)) => {
                let rotary = t.ty.last_constant().unwrap_or(0);
                let row = b.scale(position, t.byte_stride(0));
                rotate(b, (x_param, x, x_base), (param, row), &destination, rotary, p.interleaved);
                rotary
            }
            None => 0,
        };
        copy_rest(b, (x_param, x, x_base), &destination, rotary, d);
    };
    match guard {
        Some(g) => b.if_then(g, body),
        None => body(&mut b),
    }
    let summary = format!("{} of {heads} x {d} {} -> {}", r.op.kind(), x.ty.dtype, out.ty.dtype);
    Ok(Built { kernel: b.finish(String::new()), arguments, summary })
}

type Source<'t> = (Param, &'t Tensor, V);

/// (a, b) -> (a cos - b sin, b cos + a sin) over the first `rotary` elements.
fn rotate(
    b: &mut Builder,
    (x_param, x, x_base): Source<'_>,
    (table, row): (Param, V),
    out: &Destination<'_>,
    rotary: u64,
    interleaved: bool,
) {
    let half = rotary / 2;
    let size = x.ty.dtype.block_bytes() as i64;
    for_row(b, half, 16, &[], |b, i, width, _| {
        let cos_at = b.scale(i, 4);
        let cos_at = b.add(row, cos_at);
        let sin_at = b.offset(cos_at, half as i64 * 4);
        let cos = b.load_row(table, cos_at, crate::tile::Elem::F32, width);
        let sin = b.load_row(table, sin_at, crate::tile::Elem::F32, width);
        let (first, second, step) = if interleaved {
            let even = b.scale(i, 2);
            (even, b.offset(even, 1), 2)
        } else {
            (i, b.offset(i, half as i64), 1)
        };
        let mut pair = Vec::new();
        for element in [first, second] {
            let at = b.scale(element, size);
            let at = b.add(x_base, at);
            let elem = elem_of(x.ty.dtype).unwrap_or(crate::tile::Elem::F32);
            let v = b.load(x_param, at, elem, &[width], &[size * step], None);
            pair.push(b.to_f32(v));
        }
        let (a, c) = (pair[0], pair[1]);
        let low = b.mul(c, sin);
        let low = b.neg(low);
        let low = b.fma(a, cos, low);
        let high = b.mul(a, sin);
        let high = b.fma(c, cos, high);
        out.store(b, first, step, low);
        out.store(b, second, step, high);
        Vec::new()
    });
}

/// Elements from `start` on, unchanged.
fn copy_rest(b: &mut Builder, (x_param, x, x_base): Source<'_>, out: &Destination<'_>, start: u64, end: u64) {
    for (from, count, width) in segments(end - start, 32) {
        for tile in 0..count {
            let element = b.int((start + from + tile * width) as i64);
            let at = element_offset(b, x.ty.dtype, element);
            let at = b.add(x_base, at);
            let v = load_f32(b, x_param, at, x.ty.dtype, width as u32);
            out.store(b, element, 1, v);
        }
    }
}
