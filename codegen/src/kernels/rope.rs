//! Rotary embedding and paged-cache writes: one program a token and head (on GPUs, several heads). The rotation and the write are one kernel, so
//! rope, cache_write and rope_cache_write are the same code with parts left out.

use super::paged;
use super::row::{elem_of, load_index, rounded};
use super::schedule::{self, ELEMENTS, Piece, Walk, param, threads_for};
use crate::family::{Addressing, Family, Sharing, Strides};
use crate::request::{Argument, Built, Request, Tensor, contiguous_last, last_dim, require};
use crate::tile::{Access, Builder, Conversion, Elem, Param, V};
use weldment_ir::{DType, Dim, Op, OpKind};
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

/// Rotary embeddings and writes of caches.
pub struct Rope;

impl Family for Rope {
    fn runs(&self, kind: OpKind) -> bool {
        matches!(kind, OpKind::Rope | OpKind::CacheWrite | OpKind::RopeCacheWrite)
    }

    fn addressing(&self, kind: OpKind) -> Addressing {
        match kind {
            OpKind::Rope => Addressing {
                operands: &[Strides::Contiguous, Strides::Any, Strides::Contiguous],
                results: Strides::Contiguous,
                shares: Sharing::Never,
            },
            _ => Addressing {
                operands: &[Strides::Contiguous, Strides::Contiguous, Strides::Any, Strides::Any],
                results: Strides::Contiguous,
                shares: Sharing::Never,
            },
        }
    }

    /// Preconditions of the family.
    fn check(&self, r: &Request<'_>) -> Result<(), Refusal> {
        let Some(p) = parts(r.op) else {
            return crate::request::refuse("op", r.op.kind(), "rope, cache_write or rope_cache_write");
        };
        let x = &r.operands[p.x];
        last_dim(x)?;
        contiguous_last(x)?;
        // GPU programs address caches by any strides.
        if p.cache.is_none() || r.target().gpu().is_none() {
            contiguous_last(&r.results[0])?;
        }
        require(x.ty.shape[1].constant().is_some(), "heads", &x.ty, "a constant")?;
        require(r.results[0].ty.dtype.is_compute_float(), "result dtype", r.results[0].ty.dtype, "f32, f16 or bf16")?;
        if let Some(t) = p.table {
            contiguous_last(&r.operands[t])?;
        }
        Ok(())
    }

    fn build(&self, r: &Request<'_>) -> Result<Built, Refusal> {
        self.check(r)?;
        let Some(p) = parts(r.op) else {
            return crate::request::refuse("op", r.op.kind(), "rope, cache_write or rope_cache_write");
        };
        let x = &r.operands[p.x];
        let d = last_dim(x)?;
        let heads = x.ty.shape[1].constant().unwrap_or(1);
        let mut b = Builder::new(if p.cache.is_some() { "cache_write" } else { "rope" });
        let mut arguments = Vec::new();
        let mut operand = |b: &mut Builder, name: &str, i: usize| {
            arguments.push(Argument::Operand(i));
            param(b, r.target(), name, &r.operands[i], Access::Read)
        };
        let x_param = operand(&mut b, "x", p.x);
        let positions = operand(&mut b, "positions", p.positions);
        let table = p.table.map(|t| (operand(&mut b, "table", t), &r.operands[t]));
        let cache = p.cache.as_ref().map(|c| {
            (operand(&mut b, "sequence_ids", c.sequence_ids), operand(&mut b, "block_tables", c.block_tables), c)
        });
        let out_param = param(&mut b, r.target(), "out", &r.results[0], Access::Write);
        arguments.push(Argument::Result(0));
        let rotary = table.map_or(0, |(_, t)| t.ty.last_constant().unwrap_or(0));
        // A host program takes one head; one of a GPU takes several, and tokens go along x, whose size is not limited.
        let together = r.target().gpu().map(|_| {
            let width = (rotary / 2).max(d - rotary).next_power_of_two();
            let heads = heads.next_power_of_two().min((ELEMENTS / 2 / width).max(1));
            b.threads(threads_for(heads * width, 4));
            heads as u32
        });
        let (head_axis, token_axis) = if together.is_some() { (1, 0) } else { (0, 1) };
        b.grid_constant(head_axis, heads.div_ceil(u64::from(together.unwrap_or(1))));
        match &x.ty.shape[0] {
            Dim::Sym(s) => b.grid_symbol(token_axis, s, 1, 1),
            Dim::Const(n) => b.grid_constant(token_axis, *n),
        }

        let (head, token) = (b.program_id(head_axis as u32), b.program_id(token_axis as u32));
        let head = b.scale(head, i64::from(together.unwrap_or(1)));
        let present = together.filter(|n| !heads.is_multiple_of(u64::from(*n))).map(|n| {
            let count = b.int(heads as i64);
            schedule::present(&mut b, head, count, n)
        });
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
                Destination { param: out_param, base: b.add(a, c), tensor: out, stride: 1, head: out.byte_stride(1) }
            }
            Some((ids, tables, c)) => {
                let slot_axis = if c.transposed { 3 } else { 2 };
                let slots = out.ty.shape[slot_axis].constant().unwrap_or(1);
                let id_at = b.scale(token, r.operands[c.sequence_ids].byte_stride(0));
                let sequence = load_index(&mut b, ids, id_at);
                let per = b.int(slots as i64);
                let (column, slot) = (b.div(position, per), b.binary(crate::tile::Binary::Rem, position, per));
                let row_at = r.operands[c.block_tables].row_offset(&mut b, sequence);
                let column_at = b.scale(column, r.operands[c.block_tables].byte_stride(1));
                let entry = b.add(row_at, column_at);
                let block = b.load_scalar(tables, entry, Elem::I32);
                guard = Some(paged::exists(&mut b, block, out));
                let block = b.convert(Conversion::Signed, block, Elem::I64);
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
                    head: out.byte_stride(1),
                }
            }
        };
        let source = Source { param: x_param, tensor: x, base: x_base };
        let walk = |n: u64, widest: u64| match together {
            None => Walk::of(n, widest, None, None, head),
            Some(heads) => Walk::of(n, n.next_power_of_two(), Some(heads), present, head),
        };
        let body = |b: &mut Builder| {
            if let Some((param, t)) = table {
                let row = b.scale(position, t.byte_stride(0));
                rotate(b, &walk(rotary / 2, 16), &source, (param, row), &destination, p.interleaved);
            }
            copy_rest(b, &walk(d - rotary, 32), &source, &destination, rotary);
        };
        match guard {
            Some(g) => b.if_then(g, body),
            None => body(&mut b),
        }
        let summary = format!("{} of {heads} x {d} {} -> {}", r.op.kind(), x.ty.dtype, out.ty.dtype);
        Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
    }
}

/// Where the rotated heads go.
struct Destination<'t> {
    param: Param,
    base: V,
    tensor: &'t Tensor,
    /// Elements from one to the next.
    stride: i64,
    /// Bytes from one head to the next.
    head: i64,
}

impl Destination<'_> {
    /// Stores a piece from `element` on, every `step`-th element.
    fn store(&self, b: &mut Builder, piece: &Piece, element: V, step: i64, v: V) {
        let dtype = self.tensor.ty.dtype;
        let bytes = self.stride * dtype.block_bytes() as i64;
        let at = b.scale(element, bytes);
        let at = b.add(self.base, at);
        let v = b.convert(Conversion::Float, v, elem_of(dtype).unwrap_or(Elem::F32));
        piece.store_elements(b, self.param, at, [self.head, bytes * step], v);
    }
}

/// Where heads come from.
struct Source<'t> {
    param: Param,
    tensor: &'t Tensor,
    base: V,
}

impl Source<'_> {
    /// A piece from `element` on, every `step`-th element, as f32.
    fn load(&self, b: &mut Builder, piece: &Piece, element: V, step: i64) -> V {
        let elem = elem_of(self.tensor.ty.dtype).unwrap_or(Elem::F32);
        let size = elem.bytes() as i64;
        let at = b.scale(element, size);
        let at = b.add(self.base, at);
        let v = piece.load_elements(b, self.param, at, elem, [self.tensor.byte_stride(1), size * step]);
        b.to_f32(v)
    }
}

/// (a, b) -> (a cos - b sin, b cos + a sin) over the first elements, of which `walk` goes along one half.
fn rotate(
    b: &mut Builder,
    walk: &Walk,
    x: &Source<'_>,
    (table, row): (Param, V),
    out: &Destination<'_>,
    interleaved: bool,
) {
    let half = walk.n as i64;
    walk.each(b, &[], |b, piece, _| {
        let cos = piece.load_shared(b, table, row, DType::F32);
        let sines = b.offset(row, half * 4);
        let sin = piece.load_shared(b, table, sines, DType::F32);
        let (first, second, step) = if interleaved {
            let even = b.scale(piece.at, 2);
            (even, b.offset(even, 1), 2)
        } else {
            (piece.at, b.offset(piece.at, half), 1)
        };
        let (a, c) = (x.load(b, piece, first, step), x.load(b, piece, second, step));
        let low = b.mul(c, sin);
        let low = b.neg(low);
        let low = b.fma(a, cos, low);
        let high = b.mul(a, sin);
        let high = b.fma(c, cos, high);
        // A cache of another dtype takes what `rope` alone would give.
        let own = x.tensor.ty.dtype;
        for (element, v) in [(first, low), (second, high)] {
            let v = if own == out.tensor.ty.dtype { v } else { rounded(b, own, v) };
            out.store(b, piece, element, step, v);
        }
        Vec::new()
    });
}

/// Elements from `start` on, unchanged.
fn copy_rest(b: &mut Builder, walk: &Walk, x: &Source<'_>, out: &Destination<'_>, start: u64) {
    walk.each(b, &[], |b, piece, _| {
        let element = b.offset(piece.at, start as i64);
        let v = x.load(b, piece, element, 1);
        out.store(b, piece, element, 1, v);
        Vec::new()
    });
}
