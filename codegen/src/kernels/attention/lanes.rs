//! The host's form: a program a token and group of query heads, block by block, with one lane per output column in both products.

use super::{Problem, place};
use crate::choices::Choices;
use crate::kernels::paged;
use crate::kernels::row::{elem_of, for_row, segments, store_f32};
use crate::request::bytes_of;
use crate::tile::{Binary, Builder, Compare, Elem, Param, Reduction, V};

/// Columns of the result are kept in tiles of at most 32.
pub fn column_tiles(d: u64) -> Vec<(u64, u32)> {
    segments(d, 32)
        .into_iter()
        .flat_map(|(start, count, width)| (0..count).map(move |i| (start + i * width, width as u32)))
        .collect()
}

/// Builds the program; gives its form for people.
pub fn build(b: &mut Builder, p: &Problem<'_>, out_param: Param, choices: &Choices) -> String {
    let Problem { params, q, keys, values, tables, out, d, heads, share, slots, scale, max_tokens, .. } = p;
    // Decode spreads heads over programs; with many tokens, the heads of a group share each load of keys and values.
    let spread = choices.attention_sharing.map_or(*max_tokens == 1, |sharing| sharing == 1);
    let group = if spread || *share > 8 { 1 } else { *share as u32 };
    b.grid_constant(0, heads / u64::from(group));
    super::token_grid(b, 1, p.tokens, 1);

    let (slot, token) = (b.program_id(0), b.program_id(1));
    let head = b.scale(slot, i64::from(group));
    let per_kv = b.int(*share as i64);
    let kv_head = b.div(head, per_kv);
    let (position, table_row) = p.token(b, token);
    let q_base = place(b, q, token, head);
    let key_head = b.scale(kv_head, keys.byte_stride(1));
    let value_head = b.scale(kv_head, values.byte_stride(1));

    let tiles = column_tiles(*d);
    let lowest = b.float_tile(&[group, 1], f64::NEG_INFINITY);
    let nothing = b.float_tile(&[group, 1], 0.0);
    let mut init = vec![lowest, nothing];
    for (_, width) in &tiles {
        init.push(b.float_tile(&[group, *width], 0.0));
    }
    let per_block = b.int(i64::from(*slots));
    let count = b.offset(position, 1);
    let full = b.div(count, per_block);
    let last_block = b.div(position, per_block);
    let (zero, blocks) = (b.int(0), b.offset(last_block, 1));
    let first_seen = p.first_seen(b, position);
    let element = elem_of(keys.ty.dtype).unwrap_or(Elem::F32);
    let value_element = elem_of(values.ty.dtype).unwrap_or(Elem::F32);
    let q_element = elem_of(q.ty.dtype).unwrap_or(Elem::F32);
    let block_step = |b: &mut Builder, i: V, carried: &[V], masked: bool| {
        let entry = b.scale(i, tables.byte_stride(1));
        let entry = b.add(table_row, entry);
        let block = b.load_scalar(params[5], entry, Elem::I32);
        let block = paged::readable(b, block, keys);
        let key_base = b.scale(block, keys.byte_stride(0));
        let key_base = b.add(key_base, key_head);
        let start = b.float_tile(&[group, *slots], 0.0);
        let scores = for_row(b, *d, 16, &[start], |b, e, width, s| {
            let at = b.scale(e, keys.byte_stride(2));
            let at = b.add(key_base, at);
            let k =
                b.load(params[1], at, element, &[width, *slots], &[keys.byte_stride(2), element.bytes() as i64], None);
            let k = b.to_f32(k);
            let at = b.scale(e, q_element.bytes() as i64);
            let at = b.add(q_base, at);
            let left =
                b.load(params[0], at, q_element, &[group, width], &[q.byte_stride(1), q_element.bytes() as i64], None);
            let left = b.to_f32(left);
            vec![b.dot(s[0], left, k)]
        })[0];
        let scale = b.float(*scale);
        let mut scores = b.mul(scores, scale);
        let seen = masked.then(|| {
            let first = b.scale(i, i64::from(*slots));
            let lanes = b.iota(Elem::I64, *slots);
            let at = b.add(lanes, first);
            let seen = b.compare(Compare::LessEqual, at, position);
            match first_seen {
                Some(first) => {
                    let inside = b.compare(Compare::LessEqual, first, at);
                    b.binary(Binary::And, seen, inside)
                }
                None => seen,
            }
        });
        if let Some(seen) = seen {
            let hidden = b.float(f64::NEG_INFINITY);
            scores = b.select(seen, scores, hidden);
        }
        let (top, total) = (carried[0], carried[1]);
        let block_top = b.reduce(Reduction::Max, scores, 1);
        let new_top = b.max(top, block_top);
        let shifted = b.sub(scores, new_top);
        let weights = b.exp(shifted);
        let change = b.sub(top, new_top);
        let change = b.exp(change);
        let block_total = b.reduce(Reduction::Sum, weights, 1);
        let total = b.fma(total, change, block_total);
        let value_base = b.scale(block, values.byte_stride(0));
        let value_base = b.add(value_base, value_head);
        let mut next = vec![new_top, total];
        for ((column, width), acc) in tiles.iter().zip(&carried[2..]) {
            let at = b.offset(value_base, bytes_of(values.ty.dtype, *column));
            let v = b.load(
                params[2],
                at,
                value_element,
                &[*slots, *width],
                &[values.byte_stride(2), value_element.bytes() as i64],
                None,
            );
            let mut v = b.to_f32(v);
            // Slots past the sequence's end may hold anything, NaN included: their weight is 0 and so must be their value.
            if let Some(seen) = seen {
                let column = b.reshape(seen, &[*slots, 1]);
                let zero = b.float(0.0);
                v = b.select(column, v, zero);
            }
            let acc = b.mul(*acc, change);
            next.push(b.dot(acc, weights, v));
        }
        next
    };
    // Whole blocks need no mask; at most one block is partly seen at either end.
    let (before, whole, last) = match first_seen {
        None => (init, zero, full),
        Some(first) => {
            let start = b.div(first, per_block);
            let up = b.offset(first, i64::from(*slots) - 1);
            let up = b.div(up, per_block);
            let whole = b.binary(Binary::Min, up, full);
            let partial = b.for_loop(start, whole, 1, &init, |b, i, carried| block_step(b, i, carried, true));
            (partial, whole, b.binary(Binary::Max, full, start))
        }
    };
    let most = b.for_loop(whole, full, 1, &before, |b, i, carried| block_step(b, i, carried, false));
    let done = b.for_loop(last, blocks, 1, &most, |b, i, carried| block_step(b, i, carried, true));
    let one = b.float(1.0);
    let inverse = b.div(one, done[1]);
    for ((column, _), acc) in tiles.iter().zip(&done[2..]) {
        let value = b.mul(*acc, inverse);
        for g in 0..group {
            let row = b.row(value, g);
            let lanes = b.ty(row).lanes();
            let row = b.reshape(row, &[lanes]);
            let own = b.offset(head, i64::from(g));
            let base = place(b, out, token, own);
            let at = b.offset(base, bytes_of(out.ty.dtype, *column));
            store_f32(b, out_param, at, out.ty.dtype, row);
        }
    }
    format!("{group} a program")
}
