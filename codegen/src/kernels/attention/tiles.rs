//! Many tokens on a GPU: a program takes a tile of tokens and a head, and goes through the keys and values of each sequence that
//! has tokens in the tile, several KV blocks a step, with both products on matrix units. Each wave takes 16 of the tokens, so
//! that the softmax of a row stays inside it.

use super::{Problem, place};
use crate::kernels::row::elem_of;
use crate::kernels::schedule::{all_of, below, present};
use crate::target::GpuArch;
use crate::tile::{Builder, Compare, Conversion, Elem, Reduction, V};

/// Tokens of a wave: the rows of a matrix instruction.
const ROWS: u32 = 16;
/// Waves of a program.
const WAVES: u32 = 4;
/// Largest head whose sums a wave holds.
const WIDEST: u64 = 256;
/// Elements of keys in a step that a wave holds: 64 a thread of a warp, two in a register.
const KEY_ELEMENTS: u32 = 4096;
/// Below every score, yet finite: the difference of two such is a number.
const LOWEST: f64 = -1e30;

/// The operands' type, if all are of one that matrix units take and heads are not too large.
pub fn unit(p: &Problem<'_>) -> Option<Elem> {
    let elem = elem_of(p.q.ty.dtype).filter(|e| *e != Elem::F32)?;
    let alike = [p.keys, p.values].iter().all(|t| t.ty.dtype == p.q.ty.dtype);
    (alike && p.d <= WIDEST).then_some(elem)
}

/// Builds the program with operands of `unit`; gives its form for people.
pub fn build(b: &mut Builder, p: &Problem<'_>, arch: GpuArch, unit: Elem) -> String {
    let size = unit.bytes() as i64;
    let d = (p.d.next_power_of_two() as u32).max(16);
    let keys = (KEY_ELEMENTS / d).clamp(16, 64).max(p.slots);
    let blocks = keys / p.slots;
    let m = ROWS * WAVES;
    b.threads(WAVES * arch.wave());
    p.token_grid(b, 0, u64::from(m));
    b.grid_constant(1, p.heads);
    let (tile, head) = (b.program_id(0), b.program_id(1));
    let first = b.scale(tile, i64::from(m));
    let per_kv = b.int(p.share as i64);
    let kv_head = b.div(head, per_kv);
    let count = match p.tokens {
        weldment_ir::Dim::Sym(s) => b.dim(s),
        weldment_ir::Dim::Const(n) => b.int(*n as i64),
    };
    let rows = present(b, first, count, m);
    let rows = b.reshape(rows, &[WAVES, ROWS, 1]);
    // Bytes from wave to wave and row to row of a tensor's tokens.
    let by_token = |stride: i64| [i64::from(ROWS) * stride, stride];

    // Position and sequence of each row [waves, rows, 1]; rows too many take the first row's sequence and see nothing.
    let column = |b: &mut Builder, param: usize, stride: i64| {
        let at = b.scale(first, stride);
        let [wave, row] = by_token(stride);
        b.load(p.params[param], at, Elem::I32, &[WAVES, ROWS, 1], &[wave, row, 0], Some(rows))
    };
    let positions = column(b, 3, p.positions.byte_stride(0));
    let sequences = column(b, 4, p.ids.byte_stride(0));
    let at = b.scale(first, p.ids.byte_stride(0));
    let own = b.load_scalar(p.params[4], at, Elem::I32);
    let sequences = b.select(rows, sequences, own);
    let none = b.int_of(Elem::I32, &[], -1);
    let positions = b.select(rows, positions, none);
    let largest = |b: &mut Builder, v: V| {
        let v = b.reshape(v, &[m]);
        let top = b.reduce(Reduction::Max, v, 0);
        let top = b.reshape(top, &[]);
        b.convert(Conversion::Signed, top, Elem::I64)
    };
    let zero = b.int_of(Elem::I32, &[], 0);
    let negated = b.sub(zero, sequences);
    let lowest_id = largest(b, negated);
    let start = b.int(0);
    let lowest_id = b.sub(start, lowest_id);
    let highest_id = largest(b, sequences);

    let depth = (u64::from(d) != p.d).then(|| below(b, start, d, p.d));
    let q_base = place(b, p.q, first, head);
    let [wave, row] = by_token(p.q.byte_stride(0));
    let mask = depth.map(|k| b.reshape(k, &[1, 1, d]));
    let mask = all_of(b, &[Some(rows), mask], &[WAVES, ROWS, d]);
    let query = b.load(p.params[0], q_base, unit, &[WAVES, ROWS, d], &[wave, row, size], mask);
    let key_head = b.scale(kv_head, p.keys.byte_stride(1));
    let value_head = b.scale(kv_head, p.values.byte_stride(1));
    let top = b.float_tile(&[WAVES, ROWS, 1], LOWEST);
    let total = b.float_tile(&[WAVES, ROWS, 1], 0.0);
    let sums = b.float_tile(&[WAVES, ROWS, d], 0.0);
    let scale = b.float(p.scale);
    let after = b.offset(highest_id, 1);
    let done = b.for_loop(lowest_id, after, 1, &[top, total, sums], |b, sequence, carried| {
        let table_row = b.scale(sequence, p.tables.byte_stride(0));
        let this = b.convert(Conversion::Signed, sequence, Elem::I32);
        let mine = b.compare(Compare::Equal, sequences, this);
        // The last position that a row of this sequence sees; -1 where a row is of another.
        let limit = b.select(mine, positions, none);
        let last = largest(b, limit);
        let per_block = b.int(i64::from(p.slots));
        let end = b.offset(last, i64::from(p.slots));
        let end = b.div(end, per_block);
        b.for_loop(start, end, i64::from(blocks), carried, |b, first, carried| {
            let index = b.iota(Elem::I64, blocks);
            let left = b.sub(end, first);
            let there = b.compare(Compare::Less, index, left);
            let entry = b.scale(first, p.tables.byte_stride(1));
            let entry = b.add(table_row, entry);
            let block = b.load(p.params[5], entry, Elem::I32, &[blocks], &[p.tables.byte_stride(1)], Some(there));
            let block = b.convert(Conversion::Signed, block, Elem::I64);
            let passed = b.scale(first, i64::from(p.slots));

            let places = b.scale(block, p.keys.byte_stride(0));
            let places = b.reshape(places, &[1, 1, blocks, 1]);
            let here = b.reshape(there, &[1, 1, blocks, 1]);
            let shape = [WAVES, d, blocks, p.slots];
            let mask = depth.map(|k| b.reshape(k, &[1, d, 1, 1]));
            let mask = all_of(b, &[Some(here), mask], &shape);
            let strides = [0, p.keys.byte_stride(2), 0, size];
            let k = b.load_gather(p.params[1], key_head, places, unit, &shape, &strides, mask);
            let k = b.reshape(k, &[WAVES, d, keys]);
            let nothing = b.float_tile(&[WAVES, ROWS, keys], 0.0);
            let scores = b.dot(nothing, query, k);
            let scores = b.mul(scores, scale);
            let slot = b.iota(Elem::I32, keys);
            let passed_32 = b.convert(Conversion::Signed, passed, Elem::I32);
            let slot = b.add(slot, passed_32);
            let slot = b.reshape(slot, &[1, 1, keys]);
            let seen = b.compare(Compare::LessEqual, slot, limit);
            let hidden = b.float(f64::NEG_INFINITY);
            let scores = b.select(seen, scores, hidden);

            let (top, total, sums) = (carried[0], carried[1], carried[2]);
            let highest = b.reduce(Reduction::Max, scores, 2);
            let new_top = b.max(top, highest);
            let shifted = b.sub(scores, new_top);
            let weights = b.exp(shifted);
            let change = b.sub(top, new_top);
            let change = b.exp(change);
            let added = b.reduce(Reduction::Sum, weights, 2);
            let total = b.fma(total, change, added);
            let sums = b.mul(sums, change);

            let weights = b.convert(Conversion::Float, weights, unit);
            let places = b.scale(block, p.values.byte_stride(0));
            let places = b.reshape(places, &[1, blocks, 1, 1]);
            // Slots past the sequence's end may hold anything, NaN included: they are not read.
            let slot = b.iota(Elem::I64, keys);
            let room = b.sub(last, passed);
            let valid = b.compare(Compare::LessEqual, slot, room);
            let valid = b.reshape(valid, &[1, blocks, p.slots, 1]);
            let columns = depth.map(|k| b.reshape(k, &[1, 1, 1, d]));
            let shape = [WAVES, blocks, p.slots, d];
            let mask = all_of(b, &[Some(valid), columns], &shape);
            let strides = [0, 0, p.values.byte_stride(2), size];
            let v = b.load_gather(p.params[2], value_head, places, unit, &shape, &strides, mask);
            let v = b.reshape(v, &[WAVES, keys, d]);
            let sums = b.dot(sums, weights, v);
            vec![new_top, total, sums]
        })
    });

    // Rows too many saw nothing.
    let one = b.float(1.0);
    let total = b.select(rows, done[1], one);
    let value = b.div(done[2], total);
    let out = elem_of(p.out.ty.dtype).unwrap_or(Elem::F32);
    let value = b.convert(Conversion::Float, value, out);
    let columns = depth.map(|k| b.reshape(k, &[1, 1, d]));
    let mask = all_of(b, &[Some(rows), columns], &[WAVES, ROWS, d]);
    let at = place(b, p.out, first, head);
    let [wave, row] = by_token(p.out.byte_stride(0));
    b.store(p.out_param, at, &[wave, row, out.bytes() as i64], value, mask);
    format!("tiles of {m} tokens by {keys} keys, {} threads", WAVES * arch.wave())
}
