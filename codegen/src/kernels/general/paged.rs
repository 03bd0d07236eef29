//! Paged caches: writes, attention and an indexer's scores, one product at a time.

use super::cell::{Cell, Kind};
use super::ranks::clamped;
use super::rope::Rotation;
use super::rows::Rows;
use super::{Draft, largest, size, sum, with};
use crate::kernels::paged;
use crate::kernels::row::rounded;
use crate::request::{last_dim, refuse};
use crate::tile::{Binary, Builder, Compare, Conversion, Elem, V};
use weldment_ir::Op;
use weldment_passes::target::Refusal;

/// Where tokens live.
#[derive(Clone, Copy)]
struct Pages<'t> {
    positions: Cell<'t>,
    ids: Cell<'t>,
    tables: Cell<'t>,
    /// Positions that a block holds.
    slots: i64,
}

impl<'t> Pages<'t> {
    /// Of the last three of `operands`, for blocks of `slots`.
    fn new(operands: &[Cell<'t>], slots: u64) -> Result<Pages<'t>, Refusal> {
        let [.., positions, ids, tables] = operands else { return refuse("operands", operands.len(), "3 or more") };
        Ok(Pages { positions: *positions, ids: *ids, tables: *tables, slots: slots.max(1) as i64 })
    }

    /// Id (i32) of the block, and slot, of a position of token `t`'s sequence.
    fn locate(&self, b: &mut Builder, token: V, position: V) -> (V, V) {
        let slots = b.int(self.slots);
        let (page, slot) = (b.div(position, slots), b.binary(Binary::Rem, position, slots));
        let sequence = self.ids.integer(b, &[token]);
        (self.tables.stored(b, &[sequence, page]), slot)
    }

    /// Block and slot of a position that is read from `cache`.
    fn present(&self, b: &mut Builder, cache: &Cell<'_>, token: V, position: V) -> (V, V) {
        let (id, slot) = self.locate(b, token, position);
        (paged::readable(b, id, cache.tensor), slot)
    }
}

/// `cache_write` and `rope_cache_write`.
pub fn write(d: &mut Draft<'_, '_>) -> Result<(), Refusal> {
    let Draft { r, b, operands, results, .. } = d;
    let (interleaved, transposed) = match r.op {
        Op::CacheWrite { transposed } => (None, *transposed),
        Op::RopeCacheWrite { interleaved, transposed } => (Some(*interleaved), *transposed),
        op => return refuse("op", op.kind(), "cache_write or rope_cache_write"),
    };
    let (x, cache) = (operands[1], results[0]);
    let slots = r.results[0].ty.shape[if transposed { 3 } else { 2 }].constant().unwrap_or(1);
    let paged: Vec<Cell<'_>> = match interleaved {
        None => operands[2..].to_vec(),
        Some(_) => vec![operands[2], operands[4], operands[5]],
    };
    let pages = Pages::new(&paged, slots)?;
    let rotation = match interleaved {
        None => None,
        Some(interleaved) => {
            let rotary = last_dim(&r.operands[3])?;
            Some(Rotation { x, positions: operands[2], table: operands[3], rotary, interleaved })
        }
    };
    let shape = &x.tensor.ty.shape;
    let rows = Rows::new(b, r.target(), shape, None);
    rows.each(b, &mut |b, lead| {
        let position = pages.positions.integer(b, &lead[..1]);
        let (id, slot) = pages.locate(b, lead[0], position);
        let there = paged::exists(b, id, cache.tensor);
        let block = b.convert(Conversion::Signed, id, Elem::I64);
        b.if_then(there, |b| {
            let (zero, end) = (b.int(0), size(b, &shape[2]));
            b.for_loop(zero, end, 1, &[], |b, i, _| {
                let at = with(lead, i);
                let v = match &rotation {
                    None => x.real(b, &at),
                    Some(rotation) => {
                        // A cache of another dtype takes what `rope` alone would give.
                        let v = rotation.value(b, &at);
                        rounded(b, x.tensor.ty.dtype, v)
                    }
                };
                let place = if transposed { [block, lead[1], i, slot] } else { [block, lead[1], slot, i] };
                cache.store(b, &place, Kind::Real, v);
                Vec::new()
            });
        });
    });
    Ok(())
}

/// A position that a token looks at, and whether it does.
type Seen = (V, Option<V>);

/// `attention` and `sparse_attention`: the highest score, the sum of weights, then each element with its weights anew.
pub fn attention(d: &mut Draft<'_, '_>) -> Result<(), Refusal> {
    let Draft { r, b, operands, results, .. } = d;
    let (Op::Attention { scale, .. } | Op::SparseAttention { scale, .. }) = r.op else {
        return refuse("op", r.op.kind(), "attention or sparse_attention");
    };
    let last = match r.op {
        Op::Attention { window, .. } if *window > 0 => Some(*window),
        _ => None,
    };
    let sparse = matches!(r.op, Op::SparseAttention { .. });
    let ([q, keys, values], out) = ([operands[0], operands[1], operands[2]], results[0]);
    let heads = |t: &Cell<'_>| t.tensor.ty.shape[1].constant().unwrap_or(1).max(1);
    let group = (heads(&q) / heads(&keys)).max(1) as i64;
    let pages = Pages::new(operands, last_dim(keys.tensor)?)?;
    let depth = last_dim(q.tensor)? as i64;
    let rows = Rows::new(b, r.target(), &out.tensor.ty.shape, None);
    rows.each(b, &mut |b, lead| {
        let (token, head) = (lead[0], lead[1]);
        let per = b.int(group);
        let kv_head = b.div(head, per);
        let own = pages.positions.integer(b, &[token]);
        let window = b.offset(own, 1);
        let count = match last {
            _ if sparse => size(b, &operands[3].tensor.ty.shape[1]),
            Some(last) => {
                let last = b.int(last);
                b.binary(Binary::Min, window, last)
            }
            None => window,
        };
        let seen = |b: &mut Builder, i: V| -> Seen {
            if !sparse {
                let passed = b.sub(window, count);
                return (b.add(i, passed), None);
            }
            let named = operands[3].integer(b, &[token, i]);
            let position = clamped(b, named, window);
            (position, Some(b.compare(Compare::Equal, named, position)))
        };
        let score = |b: &mut Builder, (position, valid): Seen| {
            let (block, slot) = pages.present(b, &keys, token, position);
            let depth = b.int(depth);
            let dot = sum(b, depth, |b, i| {
                let (x, k) = (q.real(b, &with(lead, i)), keys.real(b, &[block, kv_head, i, slot]));
                b.mul(x, k)
            });
            let by = b.float(scale.0);
            let score = b.mul(dot, by);
            let least = b.float(f64::NEG_INFINITY);
            valid.map_or(score, |valid| b.select(valid, score, least))
        };
        let top = largest(b, count, f64::NEG_INFINITY, |b, i| {
            let seen = seen(b, i);
            score(b, seen)
        });
        let weight = |b: &mut Builder, seen: Seen| {
            let v = score(b, seen);
            let v = b.sub(v, top);
            let v = b.exp(v);
            let none = b.float(0.0);
            seen.1.map_or(v, |valid| b.select(valid, v, none))
        };
        let total = sum(b, count, |b, i| {
            let seen = seen(b, i);
            weight(b, seen)
        });
        rows.write(b, &out, lead, Kind::Real, &mut |b, index| {
            let v = sum(b, count, |b, i| {
                let seen = seen(b, i);
                let (block, slot) = pages.present(b, &values, token, seen.0);
                let (w, v) = (weight(b, seen), values.real(b, &[block, kv_head, slot, index[2]]));
                b.mul(w, v)
            });
            // A row that sees nothing gives 0.
            let zero = b.float(0.0);
            let nothing = b.compare(Compare::Equal, total, zero);
            let v = b.div(v, total);
            b.select(nothing, zero, v)
        });
    });
    Ok(())
}

/// `index_scores`.
pub fn index_scores(d: &mut Draft<'_, '_>, skip: i64) {
    let (heads, slots) = (d.r.operands[0].ty.shape[1].clone(), d.r.operands[2].ty.last_constant().unwrap_or(1));
    let depth = d.r.operands[0].ty.shape[2].clone();
    d.each(Kind::Real, |b, operands, index| {
        let (token, column) = (index[0], index[1]);
        let [q, weights, keys] = [operands[0], operands[1], operands[2]];
        let Ok(pages) = Pages::new(operands, slots) else { return b.float(0.0) };
        let position = pages.positions.integer(b, &[token]);
        let least = b.int(skip);
        let (visible, far) =
            (b.compare(Compare::LessEqual, column, position), b.compare(Compare::LessEqual, least, position));
        let visible = b.binary(Binary::And, visible, far);
        // What is not visible has no heads, and reads no keys.
        let (all, none) = (size(b, &heads), b.int(0));
        let count = b.select(visible, all, none);
        sum(b, count, |b, head| {
            let (block, slot) = pages.present(b, &keys, token, column);
            let (depth, zero) = (size(b, &depth), b.int(0));
            let dot = sum(b, depth, |b, i| {
                let (x, k) = (q.real(b, &[token, head, i]), keys.real(b, &[block, zero, i, slot]));
                b.mul(x, k)
            });
            let nothing = b.float(0.0);
            let counts = b.compare(Compare::Less, nothing, dot);
            let dot = b.select(counts, dot, nothing);
            let w = weights.real(b, &[token, head]);
            b.mul(w, dot)
        })
    });
}
