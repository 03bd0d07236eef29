//! Operands that matrix units do not take, f32 above all: a program takes a token and the query heads of a KV head, and its
//! threads split the context. As many
//! neighbouring threads as cover a head in 16-byte pieces take a KV block together and keep a softmax of their own, so that
//! nothing crosses waves until the end, where the partial softmaxes are joined.
//!
//! Keys are read as [positions, blocks, elements]: a thread's 16 bytes are neighbouring positions of one element. Scores then lie
//! with a block's positions in registers, and values are read a position at a time as [blocks, elements], in the same threads.

use super::{LOWEST, Problem, exp_of_negative, place, token_grid};
use crate::choices::Choices;
use crate::kernels::paged;
use crate::kernels::row::elem_of;
use crate::kernels::schedule::{all_of, below};
use crate::tile::{Binary, Builder, Compare, Conversion, Elem, Param, Reduction, V};

/// Programs that make sharing keys and values among query heads worth more than spreading the heads.
const ENOUGH_PROGRAMS: u64 = 132;
/// Largest number of query heads whose sums fit in registers.
const MOST_SHARED: u64 = 8;

/// Builds the program; gives its form for people.
pub fn build(b: &mut Builder, p: &Problem<'_>, out_param: Param, choices: &Choices) -> String {
    let elem = |t: &super::Tensor| elem_of(t.ty.dtype).unwrap_or(Elem::F32);
    let (q_elem, key_elem, value_elem) = (elem(p.q), elem(p.keys), elem(p.values));
    let size = |e: Elem| e.bytes() as i64;
    let padded = p.d.next_power_of_two();
    // Neighbouring positions in a load of keys, and threads a block of KV takes.
    let vector = (16 / key_elem.bytes() as u32).min(p.slots);
    let across = (padded as u32 / (16 / value_elem.bytes() as u32)).max(1);
    let threads = choices.attention_threads.unwrap_or(if padded >= 64 { 256 } else { 128 }).max(across);
    let blocks = threads / across;
    let few = p.kv_heads.saturating_mul(p.max_tokens) < ENOUGH_PROGRAMS;
    let spread = choices.attention_sharing.map_or(few, |sharing| sharing == 1);
    let group = if spread || p.share > MOST_SHARED { 1 } else { p.share };
    b.threads(threads);
    token_grid(b, 0, p.tokens, 1);
    b.grid_constant(1, p.heads / group);

    let (token, slot) = (b.program_id(0), b.program_id(1));
    let head = b.scale(slot, group as i64);
    let per_kv = b.int(p.share as i64);
    let kv_head = b.div(head, per_kv);
    let (position, table_row) = p.token(b, token);
    let q_base = place(b, p.q, token, head);
    let key_head = b.scale(kv_head, p.keys.byte_stride(1));
    let value_head = b.scale(kv_head, p.values.byte_stride(1));

    // q by head and run of `across` elements: f32 [1, 1, across], scaled.
    let scale = b.float(p.scale);
    let runs = p.d.div_ceil(u64::from(across));
    let ragged = |b: &mut Builder, run: u64| {
        let at = b.int((run * u64::from(across)) as i64);
        let mask = ((run + 1) * u64::from(across) > p.d).then(|| below(b, at, across, p.d));
        mask.map(|m| b.reshape(m, &[1, 1, across]))
    };
    let masks: Vec<Option<V>> = (0..runs).map(|run| ragged(b, run)).collect();
    let mut query = Vec::new();
    for g in 0..group {
        let mut parts = Vec::new();
        for (run, mask) in masks.iter().enumerate() {
            let bytes = g as i64 * p.q.byte_stride(1) + run as i64 * i64::from(across) * size(q_elem);
            let at = b.offset(q_base, bytes);
            let v = b.load(p.params[0], at, q_elem, &[1, 1, across], &[0, 0, size(q_elem)], *mask);
            let v = b.to_f32(v);
            parts.push(b.mul(v, scale));
        }
        query.push(parts);
    }

    let start = b.int(0);
    let columns = (padded != p.d).then(|| {
        let mask = below(b, start, padded as u32, p.d);
        b.reshape(mask, &[1, padded as u32])
    });
    let lowest = b.float_tile(&[1, blocks], LOWEST);
    let nothing = b.float_tile(&[1, blocks], 0.0);
    let sums = b.float_tile(&[blocks, padded as u32], 0.0);
    let init: Vec<V> = (0..group).flat_map(|_| [lowest, nothing, sums]).collect();
    let per_block = b.int(i64::from(p.slots));
    let last_block = b.div(position, per_block);
    let end = b.offset(last_block, 1);
    let begin = match p.first_seen(b, position) {
        Some(first) => b.div(first, per_block),
        None => start,
    };
    let done = b.for_loop(begin, end, i64::from(blocks), &init, |b, first, carried| {
        // Places of this step's blocks; those past the context's end are not read.
        let index = b.iota(Elem::I64, blocks);
        let left = b.sub(end, first);
        let present = b.compare(Compare::Less, index, left);
        let entry = b.scale(first, p.tables.byte_stride(1));
        let entry = b.add(table_row, entry);
        let block = b.load(p.params[5], entry, Elem::I32, &[blocks], &[p.tables.byte_stride(1)], Some(present));
        let block = paged::readable(b, block, p.keys);
        let place_of = |b: &mut Builder, stride: i64, shape: &[u32]| {
            let at = b.scale(block, stride);
            b.reshape(at, shape)
        };
        let key_places = place_of(b, p.keys.byte_stride(0), &[1, blocks, 1]);
        let value_places = place_of(b, p.values.byte_stride(0), &[blocks, 1]);
        // Position of slot 0 of each block, from the token's position on backwards.
        let slots = b.int(i64::from(p.slots));
        let own = b.mul(index, slots);
        let passed = b.mul(first, slots);
        let before = b.sub(position, passed);
        let room = b.sub(before, own);
        // Slots that a token sees, of those at `room`: no later than the token's own, and within its window.
        let sees = |b: &mut Builder, slot: V, room: V| {
            let seen = b.compare(Compare::LessEqual, slot, room);
            let Some(window) = p.window else { return seen };
            let least = b.offset(room, 1 - window);
            let inside = b.compare(Compare::LessEqual, least, slot);
            b.binary(Binary::And, seen, inside)
        };

        // Scores [vector, blocks] of each run of positions and head.
        let mut scores: Vec<Vec<V>> = Vec::new();
        for run in 0..p.slots / vector {
            let zeros = b.float_tile(&[vector, blocks, across], 0.0);
            let mut sums = vec![zeros; group as usize];
            for (part, mask) in masks.iter().enumerate() {
                let element = part as i64 * i64::from(across);
                let bytes = element * p.keys.byte_stride(2) + i64::from(run * vector) * p.keys.byte_stride(3);
                let at = b.offset(key_head, bytes);
                let shape = [vector, blocks, across];
                let here = b.reshape(present, &[1, blocks, 1]);
                let mask = all_of(b, &[Some(here), *mask], &shape);
                let strides = [p.keys.byte_stride(3), 0, p.keys.byte_stride(2)];
                let k = b.load_gather(p.params[1], at, key_places, key_elem, &shape, &strides, mask);
                let k = b.to_f32(k);
                for (sum, query) in sums.iter_mut().zip(&query) {
                    *sum = b.fma(k, query[part], *sum);
                }
            }
            let slot = b.iota(Elem::I64, vector);
            let slot = b.offset(slot, i64::from(run * vector));
            let slot = b.reshape(slot, &[vector, 1]);
            let room = b.reshape(room, &[1, blocks]);
            let seen = sees(b, slot, room);
            let hidden = b.float(f64::NEG_INFINITY);
            let of_heads = sums
                .into_iter()
                .map(|s| {
                    let s = b.reduce(Reduction::Sum, s, 2);
                    let s = b.reshape(s, &[vector, blocks]);
                    b.select(seen, s, hidden)
                })
                .collect();
            scores.push(of_heads);
        }

        let mut next = Vec::new();
        let mut weights: Vec<Vec<V>> = vec![Vec::new(); group as usize];
        for g in 0..group as usize {
            let [top, total, sums] = [carried[3 * g], carried[3 * g + 1], carried[3 * g + 2]];
            let mut new_top = top;
            for run in &scores {
                let m = b.reduce(Reduction::Max, run[g], 0);
                new_top = b.max(new_top, m);
            }
            let change = b.sub(top, new_top);
            let change = exp_of_negative(b, change);
            let mut total = b.mul(total, change);
            for run in &scores {
                let shifted = b.sub(run[g], new_top);
                let weight = exp_of_negative(b, shifted);
                let s = b.reduce(Reduction::Sum, weight, 0);
                total = b.add(total, s);
                weights[g].push(weight);
            }
            let change = b.reshape(change, &[blocks, 1]);
            let sums = b.mul(sums, change);
            next.extend([new_top, total, sums]);
        }
        for slot in 0..p.slots {
            let at = b.offset(value_head, i64::from(slot) * p.values.byte_stride(2));
            // Slots past the sequence's end may hold anything, NaN included: they are not read.
            let room = b.reshape(room, &[blocks, 1]);
            let own = b.int(i64::from(slot));
            let seen = sees(b, own, room);
            let shape = [blocks, padded as u32];
            let mask = all_of(b, &[Some(seen), columns], &shape);
            let v =
                b.load_gather(p.params[2], at, value_places, value_elem, &shape, &[0, p.values.byte_stride(3)], mask);
            let v = b.to_f32(v);
            for g in 0..group as usize {
                let weight = b.row(weights[g][(slot / vector) as usize], slot % vector);
                let weight = b.reshape(weight, &[blocks, 1]);
                next[3 * g + 2] = b.fma(v, weight, next[3 * g + 2]);
            }
        }
        next
    });

    for g in 0..group as usize {
        let [top, total, sums] = [done[3 * g], done[3 * g + 1], done[3 * g + 2]];
        let highest = b.reduce(Reduction::Max, top, 1);
        let change = b.sub(top, highest);
        let change = exp_of_negative(b, change);
        let total = b.mul(total, change);
        let total = b.reduce(Reduction::Sum, total, 1);
        let change = b.reshape(change, &[blocks, 1]);
        let sums = b.mul(sums, change);
        let sums = b.reduce(Reduction::Sum, sums, 0);
        let value = b.div(sums, total);
        let out = elem(p.out);
        let value = b.convert(Conversion::Float, value, out);
        let own = b.offset(head, g as i64);
        let at = place(b, p.out, token, own);
        b.store(out_param, at, &[0, size(out)], value, columns);
    }
    format!("{group} heads and {blocks} KV blocks a step, {threads} threads")
}
