//! Attention over listed positions. A program takes entries of its token's row of positions a step at a time and reads the key and
//! the value of each through the block table; entries that name nothing the token sees weigh nothing. What is computed depends on
//! which entry of a row names which position, never on where rows lie: rows that all tokens share (stride 0) give the same bits.
//!
//! A row may end in entries that are not seen, so a row longer than its token's window is searched for its last seen one first.

use super::join::{self, Room, Share};
use super::tiles::{self, CONTEXT_THREADS, Few, KEY_ELEMENTS, ROWS, SHARED_KEYS};
use super::{LOWEST, Outcome, Problem, exp_of_negative, or_one, place, shared_room, taken_in, token_grid};
use crate::choices::Choices;
use crate::family::{Addressing, Family, Sharing, Strides};
use crate::kernels::paged;
use crate::kernels::row::{elem_of, for_row, store_f32};
use crate::kernels::schedule::{all_of, below, param};
use crate::request::{Argument, Built, Request, Tensor, bytes_of, contiguous_last, last_dim, refuse};
use crate::target::{GpuArch, Target};
use crate::tile::{Access, Binary, Builder, Compare, Conversion, Elem, Param, Reduction, V};
use weldment_ir::{Op, OpKind};
use weldment_passes::target::Refusal;

/// Entries of a host program's step.
const HOST_ENTRIES: u32 = 16;
/// Elements of keys in a step of a GPU program without matrix units.
const STEP_ELEMENTS: u64 = 4096;
/// Threads of such a program.
const THREADS: u32 = 256;

/// Attention to positions that were picked.
pub struct SparseAttention;

impl Family for SparseAttention {
    fn runs(&self, kind: OpKind) -> bool {
        matches!(kind, OpKind::SparseAttention)
    }

    fn addressing(&self, _: OpKind) -> Addressing {
        Addressing {
            operands: &[
                Strides::Contiguous,
                Strides::Contiguous,
                Strides::Contiguous,
                Strides::Contiguous,
                Strides::Any,
            ],
            results: Strides::Contiguous,
            shares: Sharing::Never,
        }
    }

    /// Preconditions of the family: those of attention, and rows of a constant length.
    fn check(&self, r: &Request<'_>) -> Result<(), Refusal> {
        super::Attention.check(r)?;
        contiguous_last(&r.operands[3])?;
        last_dim(&r.operands[3]).map(|_| ())
    }

    fn heeds(&self) -> &'static [&'static str] {
        &["attention_threads", "attention_splits", "attention_tile_tokens"]
    }

    fn build(&self, r: &Request<'_>) -> Result<Built, Refusal> {
        self.check(r)?;
        let Op::SparseAttention { scale, .. } = r.op else { return refuse("op", r.op.kind(), "sparse_attention") };
        let [q, keys, values, indices, positions, ids, tables] = &r.operands[..] else {
            return refuse("operands", r.operands.len(), 7);
        };
        let mut b = Builder::new("sparse_attention");
        // Indices last: the others are numbered as attention's.
        let order = [0, 1, 2, 4, 5, 6, 3];
        let names = ["q", "k_cache", "v_cache", "positions", "sequence_ids", "block_tables", "indices"];
        let params: Vec<Param> = order
            .iter()
            .zip(names)
            .map(|(i, name)| param(&mut b, r.target(), name, &r.operands[*i], Access::Read))
            .collect();
        let operands = [q, keys, values, positions, ids, tables];
        let problem = Problem::new(&params, operands, &r.results[0], scale.0, r.max_tokens)?;
        let rows = Rows { p: &problem, indices, param: params[6], length: last_dim(indices)? };
        let products = [&q.ty, &keys.ty, &values.ty];
        let mut arguments: Vec<Argument> = order.map(Argument::Operand).into();
        let mut then = None;
        let form = match (r.target(), tiles::unit(products)) {
            (Target::Gpu(arch), Some(unit)) => {
                let outcome = match room(r) {
                    Some(room) => {
                        let partials = room.declare(&mut b, Access::Write);
                        arguments.extend(partials.arguments());
                        let join = join::build(&r.results[0], &q.ty.shape[0], room, problem.scale, *arch, true);
                        then = Some(Box::new(join));
                        Outcome::Partials(partials)
                    }
                    None => {
                        arguments.push(Argument::Result(0));
                        Outcome::Whole(param(&mut b, r.target(), "out", &r.results[0], Access::Write))
                    }
                };
                matrix(&mut b, &rows, outcome, *arch, &r.choices, unit)
            }
            (target, _) => {
                arguments.push(Argument::Result(0));
                let out = param(&mut b, r.target(), "out", &r.results[0], Access::Write);
                match target {
                    Target::Host(_) => host(&mut b, &rows, out),
                    Target::Gpu(_) => wide(&mut b, &rows, out),
                }
            }
        };
        let summary = format!(
            "attention to {} of {} heads over {} of {}, {form}, {} -> {}",
            rows.length, problem.heads, problem.kv_heads, problem.d, q.ty.dtype, r.results[0].ty.dtype
        );
        Ok(Built { kernel: b.finish(String::new()), arguments, summary, then })
    }

    fn scratch(&self, request: &Request<'_>) -> u64 {
        room(request).map_or(0, |room| room.bytes())
    }
}

/// Partial softmaxes of the programs that share a row, where they do.
fn room(r: &Request<'_>) -> Option<Room> {
    let heads = |operand: usize| r.operands.get(operand)?.ty.shape.get(1)?.constant();
    let kv_heads = heads(1)?;
    shared_room(r, tiles::programs(kv_heads, heads(0)?.checked_div(kv_heads)?))
}

/// Rows of listed positions.
struct Rows<'p, 't> {
    p: &'p Problem<'t>,
    indices: &'t Tensor,
    param: Param,
    /// Entries of a row.
    length: u64,
}

/// A token's row, its position, and where its sequence's blocks are.
#[derive(Clone, Copy)]
struct Picks {
    /// Byte offset.
    base: V,
    /// i64: the token's position.
    position: V,
    /// Byte offset of the sequence's row of block tables.
    table_row: V,
}

impl Rows<'_, '_> {
    fn row(&self, b: &mut Builder, token: V, position: V, table_row: V) -> Picks {
        Picks { base: b.scale(token, self.indices.byte_stride(0)), position, table_row }
    }

    /// i32 [n]: entries from `first` on, -1 past the row's end.
    fn entries(&self, b: &mut Builder, row: Picks, first: V, n: u32) -> V {
        let own = b.iota(Elem::I64, n);
        let length = b.int(self.length as i64);
        let left = b.sub(length, first);
        let inside = b.compare(Compare::Less, own, left);
        let at = b.scale(first, 4);
        let at = b.add(row.base, at);
        let entries = b.load(self.param, at, Elem::I32, &[n], &[4], Some(inside));
        let none = b.int_of(Elem::I32, &[], -1);
        b.select(inside, entries, none)
    }

    /// i1: entries that name a position which the token sees.
    fn seen(&self, b: &mut Builder, row: Picks, entries: V) -> V {
        let zero = b.int_of(Elem::I32, &[], 0);
        let named = b.compare(Compare::LessEqual, zero, entries);
        let limit = b.convert(Conversion::Signed, row.position, Elem::I32);
        let past = b.compare(Compare::LessEqual, entries, limit);
        b.binary(Binary::And, named, past)
    }

    /// i64: ids of the blocks that hold the positions of `entries`, where `seen`. Tiles are [.., 1].
    fn ids(&self, b: &mut Builder, row: Picks, entries: V, seen: V) -> V {
        let position = b.convert(Conversion::Signed, entries, Elem::I64);
        let per_block = b.int(i64::from(self.p.slots));
        let page = b.div(position, per_block);
        let at = b.scale(page, self.p.tables.byte_stride(1));
        let shape = b.ty(at).shape.clone();
        let strides = vec![0; shape.len()];
        let ids = b.load_gather(self.p.params[5], row.table_row, at, Elem::I32, &shape, &strides, Some(seen));
        paged::readable(b, ids, self.p.keys)
    }

    /// i64: byte offsets of the positions of `entries` in blocks `ids` of a cache, by its bytes from block to block and from slot to slot.
    /// They mean nothing where an entry is not seen.
    fn places(&self, b: &mut Builder, ids: V, entries: V, [block, slot]: [i64; 2]) -> V {
        let position = b.convert(Conversion::Signed, entries, Elem::I64);
        let per_block = b.int(i64::from(self.p.slots));
        let own = b.binary(Binary::Rem, position, per_block);
        let (first, own) = (b.scale(ids, block), b.scale(own, slot));
        b.add(first, own)
    }

    fn key_strides(&self) -> [i64; 2] {
        [self.p.keys.byte_stride(0), self.p.keys.byte_stride(3)]
    }

    fn value_strides(&self) -> [i64; 2] {
        [self.p.values.byte_stride(0), self.p.values.byte_stride(2)]
    }

    /// i64: entries up to the last seen one, `n` at a time. A row that is no longer than the window is taken whole.
    fn end(&self, b: &mut Builder, row: Picks, n: u32) -> V {
        let (zero, length) = (b.int(0), b.int(self.length as i64));
        let window = b.offset(row.position, 1);
        let short = b.compare(Compare::Less, window, length);
        let searched = b.select(short, length, zero);
        let none = b.int_of(Elem::I32, &[n], 0);
        let last = b.for_loop(zero, searched, i64::from(n), &[none], |b, first, carried| {
            let entries = self.entries(b, row, first, n);
            let seen = self.seen(b, row, entries);
            let first = b.convert(Conversion::Signed, first, Elem::I32);
            let own = b.iota(Elem::I32, n);
            let one = b.int_of(Elem::I32, &[], 1);
            let own = b.add(own, one);
            let place = b.add(own, first);
            let place = b.select(seen, place, carried[0]);
            vec![b.max(carried[0], place)]
        });
        let last = b.reduce(Reduction::Max, last[0], 0);
        let last = b.reshape(last, &[]);
        let last = b.convert(Conversion::Signed, last, Elem::I64);
        b.select(short, last, length)
    }
}

fn elem(t: &Tensor) -> Elem {
    elem_of(t.ty.dtype).unwrap_or(Elem::F32)
}

/// The host's form: a program a token and query head.
fn host(b: &mut Builder, rows: &Rows<'_, '_>, out_param: Param) -> String {
    let p = rows.p;
    let n = HOST_ENTRIES;
    b.grid_constant(0, p.heads);
    token_grid(b, 1, p.tokens, 1);
    let (head, token) = (b.program_id(0), b.program_id(1));
    let share = b.int(p.share as i64);
    let kv_head = b.div(head, share);
    let (position, table_row) = p.token(b, token);
    let row = rows.row(b, token, position, table_row);
    let q_base = place(b, p.q, token, head);
    let key_head = b.scale(kv_head, p.keys.byte_stride(1));
    let value_head = b.scale(kv_head, p.values.byte_stride(1));
    let (q, k, v) = (elem(p.q), elem(p.keys), elem(p.values));

    let tiles = super::lanes::column_tiles(p.d);
    let lowest = b.float_tile(&[1, 1], LOWEST);
    let nothing = b.float_tile(&[1, 1], 0.0);
    let mut init = vec![lowest, nothing];
    for (_, width) in &tiles {
        init.push(b.float_tile(&[1, *width], 0.0));
    }
    let zero = b.int(0);
    let end = rows.end(b, row, n);
    let done = b.for_loop(zero, end, i64::from(n), &init, |b, first, carried| {
        let entries = rows.entries(b, row, first, n);
        let seen = rows.seen(b, row, entries);
        let (entries, seen) = (b.reshape(entries, &[n, 1]), b.reshape(seen, &[n, 1]));
        let ids = rows.ids(b, row, entries, seen);
        let key_places = rows.places(b, ids, entries, rows.key_strides());
        let value_places = rows.places(b, ids, entries, rows.value_strides());
        let start = b.float_tile(&[n, 1], 0.0);
        let scores = for_row(b, p.d, 16, &[start], |b, e, width, carried| {
            let at = b.scale(e, p.keys.byte_stride(2));
            let at = b.add(key_head, at);
            let strides = [0, p.keys.byte_stride(2)];
            let keys = b.load_gather(p.params[1], at, key_places, k, &[n, width], &strides, Some(seen));
            let keys = b.to_f32(keys);
            let at = b.scale(e, q.bytes() as i64);
            let at = b.add(q_base, at);
            let query = b.load_row(p.params[0], at, q, width);
            let query = b.to_f32(query);
            let products = b.mul(keys, query);
            let sum = b.reduce(Reduction::Sum, products, 1);
            vec![b.add(carried[0], sum)]
        })[0];
        let scale = b.float(p.scale);
        let scores = b.mul(scores, scale);
        let hidden = b.float(f64::NEG_INFINITY);
        let scores = b.select(seen, scores, hidden);
        let scores = b.reshape(scores, &[1, n]);
        let (top, total) = (carried[0], carried[1]);
        let highest = b.reduce(Reduction::Max, scores, 1);
        let new_top = b.max(top, highest);
        let shifted = b.sub(scores, new_top);
        let weights = b.exp(shifted);
        let change = b.sub(top, new_top);
        let change = b.exp(change);
        let added = b.reduce(Reduction::Sum, weights, 1);
        let mut next = vec![new_top, b.fma(total, change, added)];
        for ((column, width), sums) in tiles.iter().zip(&carried[2..]) {
            let at = b.offset(value_head, bytes_of(p.values.ty.dtype, *column));
            let strides = [0, v.bytes() as i64];
            let values = b.load_gather(p.params[2], at, value_places, v, &[n, *width], &strides, Some(seen));
            let values = b.to_f32(values);
            let sums = b.mul(*sums, change);
            next.push(b.dot(sums, weights, values));
        }
        next
    });
    let total = or_one(b, done[1]);
    let one = b.float(1.0);
    let inverse = b.div(one, total);
    let base = place(b, p.out, token, head);
    for ((column, width), sums) in tiles.iter().zip(&done[2..]) {
        let value = b.mul(*sums, inverse);
        let value = b.reshape(value, &[*width]);
        let at = b.offset(base, bytes_of(p.out.ty.dtype, *column));
        store_f32(b, out_param, at, p.out.ty.dtype, value);
    }
    format!("{n} a step")
}

/// The form of GPUs where operands are not for matrix units: a program a token and query head, with a softmax for each place in a step.
fn wide(b: &mut Builder, rows: &Rows<'_, '_>, out_param: Param) -> String {
    let p = rows.p;
    let padded = p.d.next_power_of_two();
    let (n, d) = ((STEP_ELEMENTS / padded) as u32, padded as u32);
    b.threads(THREADS);
    token_grid(b, 0, p.tokens, 1);
    b.grid_constant(1, p.heads);
    let (token, head) = (b.program_id(0), b.program_id(1));
    let share = b.int(p.share as i64);
    let kv_head = b.div(head, share);
    let (position, table_row) = p.token(b, token);
    let row = rows.row(b, token, position, table_row);
    let start = b.int(0);
    let columns = (padded != p.d).then(|| below(b, start, d, p.d)).map(|m| b.reshape(m, &[1, d]));
    let q_base = place(b, p.q, token, head);
    let q = elem(p.q);
    let query = b.load(p.params[0], q_base, q, &[1, d], &[0, q.bytes() as i64], columns);
    let query = b.to_f32(query);
    let scale = b.float(p.scale);
    let query = b.mul(query, scale);
    let key_head = b.scale(kv_head, p.keys.byte_stride(1));
    let value_head = b.scale(kv_head, p.values.byte_stride(1));

    let lowest = b.float_tile(&[n, 1], LOWEST);
    let nothing = b.float_tile(&[n, 1], 0.0);
    let sums = b.float_tile(&[n, d], 0.0);
    let end = rows.end(b, row, THREADS);
    let done = b.for_loop(start, end, i64::from(n), &[lowest, nothing, sums], |b, first, carried| {
        let entries = rows.entries(b, row, first, n);
        let seen = rows.seen(b, row, entries);
        let (entries, seen) = (b.reshape(entries, &[n, 1]), b.reshape(seen, &[n, 1]));
        let load = |b: &mut Builder, at: usize, base: V, t: &Tensor, strides: [i64; 2], along: i64| {
            let ids = rows.ids(b, row, entries, seen);
            let places = rows.places(b, ids, entries, strides);
            let mask = all_of(b, &[Some(seen), columns], &[n, d]);
            let v = b.load_gather(p.params[at], base, places, elem(t), &[n, d], &[0, along], mask);
            b.to_f32(v)
        };
        let keys = load(b, 1, key_head, p.keys, rows.key_strides(), p.keys.byte_stride(2));
        let values = load(b, 2, value_head, p.values, rows.value_strides(), p.values.byte_stride(3));
        let scores = b.mul(keys, query);
        let scores = b.reduce(Reduction::Sum, scores, 1);
        let hidden = b.float(LOWEST);
        let scores = b.select(seen, scores, hidden);
        let new_top = b.max(carried[0], scores);
        let change = b.sub(carried[0], new_top);
        let change = exp_of_negative(b, change);
        let weight = b.sub(scores, new_top);
        let weight = exp_of_negative(b, weight);
        let zero = b.float(0.0);
        let weight = b.select(seen, weight, zero);
        let total = b.fma(carried[1], change, weight);
        let sums = b.mul(carried[2], change);
        vec![new_top, total, b.fma(values, weight, sums)]
    });
    let highest = b.reduce(Reduction::Max, done[0], 0);
    let change = b.sub(done[0], highest);
    let change = exp_of_negative(b, change);
    let total = b.mul(done[1], change);
    let total = b.reduce(Reduction::Sum, total, 0);
    let total = or_one(b, total);
    let sums = b.mul(done[2], change);
    let sums = b.reduce(Reduction::Sum, sums, 0);
    let value = b.div(sums, total);
    let out = elem(p.out);
    let value = b.convert(Conversion::Float, value, out);
    let at = place(b, p.out, token, head);
    b.store(out_param, at, &[0, out.bytes() as i64], value, columns);
    format!("{n} a step, {THREADS} threads")
}

/// The form on matrix units: a program a token and 16 query heads of a KV head; its waves take entries in turn.
fn matrix(
    b: &mut Builder,
    rows: &Rows<'_, '_>,
    outcome: Outcome,
    arch: GpuArch,
    choices: &Choices,
    unit: Elem,
) -> String {
    let p = rows.p;
    let d = (p.d.next_power_of_two() as u32).max(16);
    let splits = match outcome {
        Outcome::Partials(partials) => partials.splits(),
        Outcome::Whole(_) => 1,
    };
    let keys = (KEY_ELEMENTS / d).clamp(16, if splits > 1 { SHARED_KEYS } else { 64 });
    let threads = choices.attention_threads.unwrap_or(CONTEXT_THREADS);
    let waves = (threads / arch.wave() / tiles::together(d)).max(1);
    let threads = threads.max(tiles::together(d) * arch.wave());
    let n = waves * keys;
    b.threads(threads);
    let few = Few::new(b, p, unit, waves, d);
    let token = b.program_id(0);
    let row = rows.row(b, token, few.position, few.table_row);
    let share = Share::new(b, splits);
    let split = share.split;
    let zero = b.int(0);
    let end = rows.end(b, row, threads);
    let first = share.first(b, zero, i64::from(n));
    let apart = share.apart(i64::from(n));
    // Entries and blocks are found a step ahead, for keys, values and scores apart: each lies as its own user does.
    let found = |b: &mut Builder, first: V| {
        let mut out = Vec::new();
        for _ in 0..2 {
            let entries = rows.entries(b, row, first, n);
            let seen = rows.seen(b, row, entries);
            let (entries, seen) = (b.reshape(entries, &[n, 1]), b.reshape(seen, &[n, 1]));
            out.extend([entries, rows.ids(b, row, entries, seen)]);
        }
        out.push(rows.entries(b, row, first, n));
        out
    };
    let top = b.float_tile(&[waves, ROWS, 1], LOWEST);
    let total = b.float_tile(&[waves, ROWS, 1], 0.0);
    let sums = b.float_tile(&[waves, ROWS, d], 0.0);
    let init: Vec<V> = [top, total, sums].into_iter().chain(found(b, first)).collect();
    let done = b.for_loop(first, end, apart, &init, |b, first, carried| {
        // Keys [waves, d, keys] and values [waves, keys, d]; what is not seen is not read.
        let load =
            |b: &mut Builder, at: usize, found: &[V], bytes: [i64; 2], shape: [[u32; 4]; 3], strides: [i64; 4]| {
                let [whole, by_key, by_depth] = shape;
                let (entries, ids) = (b.reshape(found[0], &by_key), b.reshape(found[1], &by_key));
                let seen = rows.seen(b, row, entries);
                let places = rows.places(b, ids, entries, bytes);
                let depth = few.depth.map(|k| b.reshape(k, &by_depth));
                let mask = all_of(b, &[Some(seen), depth], &whole);
                let head = [few.key_head, few.value_head][at - 1];
                b.load_gather(p.params[at], head, places, unit, &whole, &strides, mask)
            };
        let shapes = [[waves, d, keys, 1], [waves, 1, keys, 1], [1, d, 1, 1]];
        let k = load(b, 1, &carried[3..5], rows.key_strides(), shapes, [0, p.keys.byte_stride(2), 0, 0]);
        let k = b.reshape(k, &[waves, d, keys]);
        let shapes = [[waves, keys, 1, d], [waves, keys, 1, 1], [1, 1, 1, d]];
        let v = load(b, 2, &carried[5..7], rows.value_strides(), shapes, [0, 0, 0, p.values.byte_stride(3)]);
        let v = b.reshape(v, &[waves, keys, d]);
        let nothing = b.float_tile(&[waves, ROWS, keys], 0.0);
        let scores = b.dot(nothing, few.query, k);
        let next = b.offset(first, apart);
        let ahead = found(b, next);
        let seen = rows.seen(b, row, carried[7]);
        let seen = b.reshape(seen, &[waves, 1, keys]);
        let hidden = b.float(f64::NEG_INFINITY);
        let scores = b.select(seen, scores, hidden);

        let (weights, [top, total, sums]) = taken_in(b, p.scale, scores, [carried[0], carried[1], carried[2]]);
        let weights = b.convert(Conversion::Float, weights, unit);
        let sums = b.dot(sums, weights, v);
        [top, total, sums].into_iter().chain(ahead).collect()
    });
    few.finish(b, p, outcome, split, &done, true);
    let form = format!("{} heads by {n} a step, {threads} threads", p.share.min(u64::from(ROWS)));
    if splits > 1 { format!("{form}, {splits} programs a row") } else { form }
}
