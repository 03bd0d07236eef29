//! Causal attention over a paged KV cache with an online softmax: one program a token and group of query heads.
//!
//! Blocks of keys lie with positions innermost and blocks of values with elements innermost, so both products keep one
//! lane per output column. The softmax follows Milakov and Gimelshein, "Online normalizer calculation for softmax".

use super::row::{elem_of, load_index, segments, store_f32};
use super::{Argument, Built, Request, Tensor, bytes_of, contiguous_last, last_dim, require};
use crate::tile::{Access, Builder, Compare, Elem, Reduction, V};
use weldment_ir::{DType, Dim, Op};
use weldment_passes::target::Refusal;

/// Preconditions of the family.
///
/// # Errors
/// The first that fails.
pub fn check(r: &Request<'_>) -> Result<(), Refusal> {
    let (q, out) = (&r.operands[0], &r.results[0]);
    let d = last_dim(q)?;
    for t in [q, out, &r.operands[1], &r.operands[2]] {
        contiguous_last(t)?;
    }
    let slots = r.operands[1].ty.last_constant().unwrap_or(0);
    require(slots.is_power_of_two() && slots <= 64, "KV block", slots, "a power of two up to 64")?;
    require(out.ty.dtype != DType::Q8A || d.is_multiple_of(32), "head size for q8a", d, "a multiple of 32")?;
    require(q.ty.dtype.is_compute_float(), "query dtype", q.ty.dtype, "f32, f16 or bf16")?;
    require(q.ty.shape[1].constant().is_some(), "heads", &q.ty, "a constant")
}

/// Columns of the result are kept in tiles of at most 32.
fn column_tiles(d: u64) -> Vec<(u64, u32)> {
    segments(d, 32)
        .into_iter()
        .flat_map(|(start, count, width)| (0..count).map(move |i| (start + i * width, width as u32)))
        .collect()
}

/// The kernel of a request that passed [`check`].
///
/// # Errors
/// As [`check`].
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    check(r)?;
    let Op::Attention { scale, .. } = r.op else { return super::refuse("op", r.op.kind(), "attention") };
    let [q, keys, values, positions, ids, tables] = &r.operands[..] else {
        return super::refuse("operands", r.operands.len(), 6);
    };
    let out = &r.results[0];
    let d = last_dim(q)?;
    let heads = q.ty.shape[1].constant().unwrap_or(1);
    let kv_heads = keys.ty.shape[1].constant().unwrap_or(1);
    let slots = keys.ty.last_constant().unwrap_or(16) as u32;
    // Decode spreads heads over programs; with many tokens, the heads of a group share each load of keys and values.
    let share = heads / kv_heads;
    let spread = r.target.choices().attention_sharing.map_or(r.max_tokens == 1, |sharing| sharing == 1);
    let group = if spread || share > 8 { 1 } else { share as u32 };
    let mut b = Builder::new("attention");
    let names = ["q", "k_cache", "v_cache", "positions", "sequence_ids", "block_tables"];
    let params: Vec<_> = names.iter().map(|n| b.param(n, Access::Read)).collect();
    let out_param = b.param("out", Access::Write);
    let mut arguments: Vec<Argument> = (0..6).map(Argument::Operand).collect();
    arguments.push(Argument::Result(0));
    b.grid_constant(0, heads / u64::from(group));
    match &q.ty.shape[0] {
        Dim::Sym(s) => b.grid_symbol(1, s, 1, 1),
        Dim::Const(n) => b.grid_constant(1, *n),
    }

    let (slot, token) = (b.program_id(0), b.program_id(1));
    let head = b.scale(slot, i64::from(group));
    let per_kv = b.int(share as i64);
    let kv_head = b.div(head, per_kv);
    let position_at = b.scale(token, positions.byte_stride(0));
    let position = load_index(&mut b, params[3], position_at);
    let id_at = b.scale(token, ids.byte_stride(0));
    let sequence = load_index(&mut b, params[4], id_at);
    let table_row = b.scale(sequence, tables.byte_stride(0));
    let q_base = place(&mut b, q, token, head);
    let key_head = b.scale(kv_head, keys.byte_stride(1));
    let value_head = b.scale(kv_head, values.byte_stride(1));

    let tiles = column_tiles(d);
    let lowest = b.float_tile(&[group, 1], f64::NEG_INFINITY);
    let nothing = b.float_tile(&[group, 1], 0.0);
    let mut init = vec![lowest, nothing];
    for (_, width) in &tiles {
        init.push(b.float_tile(&[group, *width], 0.0));
    }
    let per_block = b.int(i64::from(slots));
    let count = b.offset(position, 1);
    let full = b.div(count, per_block);
    let last_block = b.div(position, per_block);
    let (zero, blocks) = (b.int(0), b.offset(last_block, 1));
    let element = elem_of(keys.ty.dtype).unwrap_or(Elem::F32);
    let value_element = elem_of(values.ty.dtype).unwrap_or(Elem::F32);
    let q_element = elem_of(q.ty.dtype).unwrap_or(Elem::F32);
    let block_step = |b: &mut Builder, i: V, carried: &[V], masked: bool| {
        let entry = b.scale(i, tables.byte_stride(1));
        let entry = b.add(table_row, entry);
        let block = load_index(b, params[5], entry);
        let key_base = b.scale(block, keys.byte_stride(0));
        let key_base = b.add(key_base, key_head);
        let start = b.float_tile(&[group, slots], 0.0);
        let scores = super::row::for_row(b, d, 16, &[start], |b, e, width, s| {
            let at = b.scale(e, keys.byte_stride(2));
            let at = b.add(key_base, at);
            let k =
                b.load(params[1], at, element, &[width, slots], &[keys.byte_stride(2), element.bytes() as i64], None);
            let k = b.to_f32(k);
            let at = b.scale(e, q_element.bytes() as i64);
            let at = b.add(q_base, at);
            let left =
                b.load(params[0], at, q_element, &[group, width], &[q.byte_stride(1), q_element.bytes() as i64], None);
            let left = b.to_f32(left);
            vec![b.dot(s[0], left, k)]
        })[0];
        let scale = b.float(scale.0);
        let mut scores = b.mul(scores, scale);
        let seen = masked.then(|| {
            let first = b.scale(i, i64::from(slots));
            let lanes = b.iota(Elem::I64, slots);
            let at = b.add(lanes, first);
            b.compare(Compare::LessEqual, at, position)
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
                &[slots, *width],
                &[values.byte_stride(2), value_element.bytes() as i64],
                None,
            );
            let mut v = b.to_f32(v);
            // Slots past the sequence's end may hold anything, NaN included: their weight is 0 and so must be their value.
            if let Some(seen) = seen {
                let column = b.reshape(seen, &[slots, 1]);
                let zero = b.float(0.0);
                v = b.select(column, v, zero);
            }
            let acc = b.mul(*acc, change);
            next.push(b.dot(acc, weights, v));
        }
        next
    };
    // Whole blocks need no mask; at most one block is partly seen.
    let most = b.for_loop(zero, full, 1, &init, |b, i, carried| block_step(b, i, carried, false));
    let done = b.for_loop(full, blocks, 1, &most, |b, i, carried| block_step(b, i, carried, true));
    let one = b.float(1.0);
    let inverse = b.div(one, done[1]);
    for ((column, _), acc) in tiles.iter().zip(&done[2..]) {
        let value = b.mul(*acc, inverse);
        for g in 0..group {
            let row = b.row(value, g);
            let lanes = b.ty(row).lanes();
            let row = b.reshape(row, &[lanes]);
            let own = b.offset(head, i64::from(g));
            let base = place(&mut b, out, token, own);
            let at = b.offset(base, bytes_of(out.ty.dtype, *column));
            store_f32(&mut b, out_param, at, out.ty.dtype, row);
        }
    }
    let summary = format!(
        "attention {heads} heads over {kv_heads} of {d}, {group} a program, {} -> {}",
        q.ty.dtype, out.ty.dtype
    );
    Ok(Built { kernel: b.finish(String::new()), arguments, summary })
}

/// Byte offset of [token, head, 0].
fn place(b: &mut Builder, t: &Tensor, token: V, head: V) -> V {
    let a = b.scale(token, t.byte_stride(0));
    let h = b.scale(head, t.byte_stride(1));
    b.add(a, h)
}
