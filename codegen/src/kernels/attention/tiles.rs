//! Attention on matrix units. A wave takes 16 rows, keeps their softmax to itself and goes through keys and values several KV
//! blocks a step, with both products as dots. Two ways to deal out the work:
//!
//! * few tokens: a program is a token and a KV head, whose query heads are the rows. The waves split the context, and their
//!   softmaxes are joined at the end;
//! * many tokens: a program is a tile of tokens and a head; each wave has 16 of the tokens, and all go through the same keys, those
//!   of each sequence that has tokens in the tile.
//!
//! GPU caches lie with the contracted dim innermost in both products (see `state_order`), so that operands load as they are.

use super::join::Share;
use super::{LOWEST, Outcome, Problem, or_one, place, power, taken_in, token_grid};
use crate::choices::Choices;
use crate::kernels::paged;
use crate::kernels::row::elem_of;
use crate::kernels::schedule::{all_of, below, present};
use crate::target::GpuArch;
use crate::tile::{Binary, Builder, Compare, Conversion, Elem, Param, Reduction, V};
use weldment_ir::TensorType;

/// Rows of a wave: those of a matrix instruction.
pub const ROWS: u32 = 16;
/// Waves that share keys when tokens are many.
const TOKEN_WAVES: u32 = 4;
/// Threads among which few tokens split a context.
pub const CONTEXT_THREADS: u32 = 128;
/// Keys of a wave's step where programs share a context: as few as keep a program's loads in flight together.
pub const SHARED_KEYS: u32 = 32;
/// Largest head, which two waves hold the sums of together.
const WIDEST: u64 = 256;
/// Largest head whose sums one wave holds.
const ONE_WAVE: u32 = 128;
/// Elements of keys in a step of a wave: two to a register, 64 registers of a thread on NVIDIA.
pub const KEY_ELEMENTS: u32 = 4096;
/// Largest head whose next keys fit in registers beside all else.
const WIDEST_AHEAD: u32 = 64;

/// The operands' type, if all are of one that matrix units take and heads are not too large.
pub fn unit([q, keys, values]: [&TensorType; 3]) -> Option<Elem> {
    let elem = elem_of(q.dtype).filter(|e| *e != Elem::F32)?;
    let alike = [keys, values].iter().all(|t| t.dtype == q.dtype);
    (alike && q.last_constant()? <= WIDEST).then_some(elem)
}

/// What is fixed over a program's steps.
struct Walk<'p, 't> {
    p: &'p Problem<'t>,
    unit: Elem,
    waves: u32,
    /// Waves that have keys of their own: all or 1.
    key_waves: u32,
    /// Padded elements of a head.
    d: u32,
    /// i1 [d], where a head is not as large.
    depth: Option<V>,
    /// KV blocks of a wave's step.
    blocks: u32,
    /// The program's part of the steps.
    share: Share,
    /// Keys are loaded a step ahead.
    ahead: bool,
    /// [waves, ROWS, d]
    query: V,
    key_head: V,
    value_head: V,
}

/// One sequence as a program sees it.
#[derive(Clone, Copy)]
struct Sequence {
    /// Byte offset of its row of block tables.
    table_row: V,
    /// i32: the last position that a row sees; a scalar or [waves, ROWS, 1].
    limit: V,
    /// i64: the last position that any row sees.
    last: V,
    /// i64: the first one, where there is a window.
    first: Option<V>,
}

impl Walk<'_, '_> {
    fn keys(&self) -> u32 {
        self.blocks * self.p.slots
    }

    /// Positions of a step of all waves.
    fn stride(&self) -> u32 {
        self.keys() * self.key_waves
    }

    /// (top, total, sums) before the first step.
    fn init(&self, b: &mut Builder) -> [V; 3] {
        let top = b.float_tile(&[self.waves, ROWS, 1], LOWEST);
        let total = b.float_tile(&[self.waves, ROWS, 1], 0.0);
        [top, total, b.float_tile(&[self.waves, ROWS, self.d], 0.0)]
    }

    /// Goes through positions 0..=`s.last`, or from `s.first` on where there is a window; without one every row sees all positions below
    /// `free`, so that steps up to there need no masks.
    fn sequence(&self, b: &mut Builder, s: Sequence, free: V, carried: &[V]) -> Vec<V> {
        let stride = i64::from(self.stride());
        let (zero, per_step) = (b.int(0), b.int(stride));
        if let Some(first) = s.first {
            let step = b.div(first, per_step);
            let first = b.mul(step, per_step);
            let first = self.share.first(b, first, stride);
            let end = b.offset(s.last, 1);
            return self.steps(b, s, (first, end), carried, true);
        }
        let whole = b.div(free, per_step);
        let whole = b.mul(whole, per_step);
        let end = b.offset(s.last, 1);
        let first = self.share.first(b, zero, stride);
        let most = match self.ahead {
            true => self.steps_with_keys_ahead(b, s, (first, whole), carried),
            false => self.steps(b, s, (first, whole), carried, false),
        };
        let first = self.share.first(b, whole, stride);
        self.steps(b, s, (first, end), &most, true)
    }

    /// Steps from position `first` to `end`. Block ids are loaded a step ahead, those of the first before anything that has to
    /// wait for the launch before this one.
    fn steps(&self, b: &mut Builder, s: Sequence, (first, end): (V, V), carried: &[V], masked: bool) -> Vec<V> {
        let apart = self.share.apart(i64::from(self.stride()));
        let ids = |b: &mut Builder, first: V| {
            let there = self.present(b, s, first);
            // Keys and values lie differently, and each thread reads the ids of its own elements.
            [self.ids(b, s, first, Some(there)), self.ids(b, s, first, Some(there))]
        };
        let own = ids(b, first);
        let init: Vec<V> = carried.iter().copied().chain(own).collect();
        let done = b.for_loop(first, end, apart, &init, |b, first, carried| {
            let there = masked.then(|| self.present(b, s, first));
            let k = self.load_keys(b, carried[3], there);
            let v = self.load_values(b, carried[4], there);
            let next = b.offset(first, apart);
            self.step(b, (s, first, masked), &carried[..3], (k, v), |b| ids(b, next).to_vec())
        });
        done[..3].to_vec()
    }

    /// Steps from position `first` to `whole`, which need no masks, with the keys of the next under way during the softmax of
    /// each; the last step loads its own again.
    fn steps_with_keys_ahead(&self, b: &mut Builder, s: Sequence, (first, whole): (V, V), carried: &[V]) -> Vec<V> {
        let stride = i64::from(self.stride());
        let apart = self.share.apart(stride);
        let last_step = b.offset(whole, -stride);
        let there = self.present(b, s, first);
        let ids = self.ids(b, s, first, Some(there));
        let keys = self.load_keys(b, ids, Some(there));
        let init: Vec<V> = carried.iter().copied().chain([keys]).collect();
        let done = b.for_loop(first, whole, apart, &init, |b, first, carried| {
            let next = b.offset(first, apart);
            let next = b.binary(Binary::Min, next, last_step);
            let ids = self.ids(b, s, first, None);
            let v = self.load_values(b, ids, None);
            self.step(b, (s, first, false), &carried[..3], (carried[3], v), |b| {
                let ids = self.ids(b, s, next, None);
                vec![self.load_keys(b, ids, None)]
            })
        });
        done[..3].to_vec()
    }

    /// i1 [blocks of a step of all waves]: those from position `first` on that the sequence has.
    fn present(&self, b: &mut Builder, s: Sequence, first: V) -> V {
        let index = b.iota(Elem::I64, self.key_waves * self.blocks);
        let per_block = b.int(i64::from(self.p.slots));
        let first_block = b.div(first, per_block);
        // No blocks where the last position is -1, a sequence without tokens here.
        let last = b.offset(s.last, i64::from(self.p.slots));
        let blocks = b.div(last, per_block);
        let left = b.sub(blocks, first_block);
        b.compare(Compare::Less, index, left)
    }

    /// i64 [blocks of a step of all waves]: their ids, from position `first` on, of those that are `there`.
    fn ids(&self, b: &mut Builder, s: Sequence, first: V, there: Option<V>) -> V {
        let (table, count) = (self.p.tables.byte_stride(1), self.key_waves * self.blocks);
        let per_block = b.int(i64::from(self.p.slots));
        let block = b.div(first, per_block);
        let entry = b.scale(block, table);
        let entry = b.add(s.table_row, entry);
        let ids = b.load(self.p.params[5], entry, Elem::I32, &[count], &[table], there);
        paged::readable(b, ids, self.p.keys)
    }

    /// Keys [waves, d, keys] of the blocks `ids` that are `there`.
    fn load_keys(&self, b: &mut Builder, ids: V, there: Option<V>) -> V {
        let p = self.p;
        let shape = [self.waves, self.d, self.blocks, p.slots];
        let dims = [self.key_waves, 1, self.blocks, 1];
        let here = there.map(|t| b.reshape(t, &dims));
        let depth = self.depth.map(|k| b.reshape(k, &[1, self.d, 1, 1]));
        let mask = all_of(b, &[here, depth], &shape);
        let strides = [0, p.keys.byte_stride(2), 0, p.keys.byte_stride(3)];
        let places = b.scale(ids, p.keys.byte_stride(0));
        let places = b.reshape(places, &dims);
        let k = b.load_gather(p.params[1], self.key_head, places, self.unit, &shape, &strides, mask);
        b.reshape(k, &[self.waves, self.d, self.keys()])
    }

    /// Values [waves, keys, d] of the blocks `ids` that are `there`.
    fn load_values(&self, b: &mut Builder, ids: V, there: Option<V>) -> V {
        let p = self.p;
        let shape = [self.waves, self.blocks, p.slots, self.d];
        let dims = [self.key_waves, self.blocks, 1, 1];
        let here = there.map(|t| b.reshape(t, &dims));
        let depth = self.depth.map(|k| b.reshape(k, &[1, 1, 1, self.d]));
        let mask = all_of(b, &[here, depth], &shape);
        let strides = [0, 0, p.values.byte_stride(2), p.values.byte_stride(3)];
        let places = b.scale(ids, p.values.byte_stride(0));
        let places = b.reshape(places, &dims);
        let v = b.load_gather(p.params[2], self.value_head, places, self.unit, &shape, &strides, mask);
        b.reshape(v, &[self.waves, self.keys(), self.d])
    }

    /// The softmax after the keys from position `first` on, and what `ahead` loads for the next step. Where `masked`, some keys
    /// may be past what a row sees, or past the end.
    fn step(
        &self,
        b: &mut Builder,
        (s, first, masked): (Sequence, V, bool),
        carried: &[V],
        (k, mut v): (V, V),
        ahead: impl FnOnce(&mut Builder) -> Vec<V>,
    ) -> Vec<V> {
        let p = self.p;
        let keys = self.keys();
        // Position of each key.
        let position = masked.then(|| {
            let own = b.iota(Elem::I64, self.stride());
            b.add(own, first)
        });
        // Values are under way while scores are computed.
        let nothing = b.float_tile(&[self.waves, ROWS, keys], 0.0);
        let mut scores = b.dot(nothing, self.query, k);
        let next = ahead(b);
        if let Some(position) = position {
            let position = b.convert(Conversion::Signed, position, Elem::I32);
            let position = b.reshape(position, &[self.key_waves, 1, keys]);
            let mut seen = b.compare(Compare::LessEqual, position, s.limit);
            if let Some(window) = p.window {
                let before = b.int_of(Elem::I32, &[], window);
                let before = b.sub(s.limit, before);
                let inside = b.compare(Compare::Less, before, position);
                seen = b.binary(Binary::And, seen, inside);
            }
            let hidden = b.float(f64::NEG_INFINITY);
            scores = b.select(seen, scores, hidden);
        }

        let (weights, [top, total, sums]) = taken_in(b, p.scale, scores, [carried[0], carried[1], carried[2]]);

        let weights = b.convert(Conversion::Float, weights, self.unit);
        if let Some(position) = position {
            // Slots past the sequence's end, or before a window, may hold anything, NaN included: their weight is 0 and so must be their value.
            let mut seen = b.compare(Compare::LessEqual, position, s.last);
            if let Some(first) = s.first {
                let inside = b.compare(Compare::LessEqual, first, position);
                seen = b.binary(Binary::And, seen, inside);
            }
            let seen = b.reshape(seen, &[self.key_waves, keys, 1]);
            let zero = b.float(0.0);
            let zero = b.convert(Conversion::Float, zero, self.unit);
            v = b.select(seen, v, zero);
        }
        let sums = b.dot(sums, weights, v);
        [top, total, sums].into_iter().chain(next).collect()
    }
}

/// Padded elements of a head, and KV blocks of a step of a wave.
fn sizes(p: &Problem<'_>) -> (u32, u32) {
    let d = (p.d.next_power_of_two() as u32).max(16);
    let keys = (KEY_ELEMENTS / d).clamp(16, 64).max(p.slots);
    (d, keys / p.slots)
}

/// Waves that share the columns of heads of `d`.
pub fn together(d: u32) -> u32 {
    (d / ONE_WAVE).max(1)
}

/// sums / total, with one division a row.
fn quotient(b: &mut Builder, sums: V, total: V) -> V {
    let one = b.float(1.0);
    let inverse = b.div(one, total);
    b.mul(sums, inverse)
}

/// What a program for few tokens takes: a token and up to [`ROWS`] query heads of a KV head, its rows.
pub struct Few {
    token: V,
    /// First query head.
    head: V,
    /// i1 [ROWS, 1], where the KV head may have fewer left.
    rows: Option<V>,
    /// i1 [d], where a head is not as large.
    pub depth: Option<V>,
    /// Padded elements of a head.
    d: u32,
    /// [waves, ROWS, d], of the operands' type.
    pub query: V,
    pub key_head: V,
    pub value_head: V,
    /// i64: the token's.
    pub position: V,
    /// Byte offset of the sequence's row of block tables.
    pub table_row: V,
}

/// Programs of a token for few tokens.
pub fn programs(kv_heads: u64, share: u64) -> u64 {
    kv_heads * share.div_ceil(u64::from(ROWS))
}

impl Few {
    /// Sets the grid's first two axes and loads the rows, for `waves` of a program.
    pub fn new(b: &mut Builder, p: &Problem<'_>, unit: Elem, waves: u32, d: u32) -> Few {
        let size = unit.bytes() as i64;
        let groups = p.share.div_ceil(u64::from(ROWS));
        token_grid(b, 0, p.tokens, 1);
        b.grid_constant(1, programs(p.kv_heads, p.share));
        let (token, slot) = (b.program_id(0), b.program_id(1));
        let per_kv = b.int(groups as i64);
        let (kv_head, group) = (b.div(slot, per_kv), b.binary(Binary::Rem, slot, per_kv));
        // The program's first query head, and how many of the KV head's are left.
        let passed = b.scale(group, i64::from(ROWS));
        let first_head = b.scale(kv_head, p.share as i64);
        let head = b.add(first_head, passed);
        let all = b.int(p.share as i64);
        let rows = (!p.share.is_multiple_of(u64::from(ROWS))).then(|| present(b, passed, all, ROWS));
        let (position, table_row) = p.token(b, token);

        let start = b.int(0);
        let depth = (u64::from(d) != p.d).then(|| below(b, start, d, p.d));
        let q_base = place(b, p.q, token, head);
        let row_mask = rows.map(|r| b.reshape(r, &[1, ROWS, 1]));
        let columns = depth.map(|k| b.reshape(k, &[1, 1, d]));
        let mask = all_of(b, &[row_mask, columns], &[waves, ROWS, d]);
        let query = b.load(p.params[0], q_base, unit, &[waves, ROWS, d], &[0, p.q.byte_stride(1), size], mask);
        let key_head = b.scale(kv_head, p.keys.byte_stride(1));
        let value_head = b.scale(kv_head, p.values.byte_stride(1));
        Few { token, head, rows, depth, d, query, key_head, value_head, position, table_row }
    }

    /// Joins the waves' softmaxes `done` (top, total, sums) and leaves them as `outcome` says. Where the token `may_see_nothing`, the
    /// whole is then 0.
    pub fn finish(
        &self,
        b: &mut Builder,
        p: &Problem<'_>,
        outcome: Outcome,
        split: V,
        done: &[V],
        may_see_nothing: bool,
    ) {
        let d = self.d;
        let highest = b.reduce(Reduction::Max, done[0], 0);
        let change = b.sub(done[0], highest);
        let change = power(b, change, p.scale);
        let total = b.mul(done[1], change);
        let total = b.reduce(Reduction::Sum, total, 0);
        let sums = b.mul(done[2], change);
        let sums = b.reduce(Reduction::Sum, sums, 0);
        let rows = self.rows.map(|r| b.reshape(r, &[ROWS, 1]));
        let columns = self.depth.map(|k| b.reshape(k, &[1, d]));
        let out_param = match outcome {
            Outcome::Partials(partials) => {
                let highest = b.reshape(highest, &[ROWS, 1]);
                let total = b.reshape(total, &[ROWS, 1]);
                let sums = b.reshape(sums, &[ROWS, d]);
                partials.store(b, (self.token, split, self.head), [highest, total, sums], (rows, columns));
                return;
            }
            Outcome::Whole(param) => param,
        };
        let total = if may_see_nothing { or_one(b, total) } else { total };
        let value = quotient(b, sums, total);
        let out = elem_of(p.out.ty.dtype).unwrap_or(Elem::F32);
        let value = b.convert(Conversion::Float, value, out);
        let value = b.reshape(value, &[ROWS, d]);
        let mask = all_of(b, &[rows, columns], &[ROWS, d]);
        let at = place(b, p.out, self.token, self.head);
        b.store(out_param, at, &[p.out.byte_stride(1), out.bytes() as i64], value, mask);
    }
}

/// Builds the program for few tokens with operands of `unit`; gives its form for people.
pub fn build_few(
    b: &mut Builder,
    p: &Problem<'_>,
    outcome: Outcome,
    arch: GpuArch,
    choices: &Choices,
    unit: Elem,
) -> String {
    let (d, blocks) = sizes(p);
    let (splits, most_keys) = match outcome {
        Outcome::Partials(partials) => (partials.splits(), SHARED_KEYS),
        Outcome::Whole(_) => (1, u32::MAX),
    };
    let blocks = blocks.min((most_keys / p.slots).max(1));
    let threads = choices.attention_threads.unwrap_or(CONTEXT_THREADS);
    let waves = (threads / arch.wave() / together(d)).max(1);
    b.threads(threads.max(together(d) * arch.wave()));
    let few = Few::new(b, p, unit, waves, d);
    let Few { query, key_head, value_head, position, table_row, depth, .. } = few;
    let share = Share::new(b, splits);
    let split = share.split;
    let walk =
        Walk { p, unit, waves, key_waves: waves, d, depth, blocks, share, ahead: false, query, key_head, value_head };
    let limit = b.convert(Conversion::Signed, position, Elem::I32);
    let free = b.offset(position, 1);
    let init = walk.init(b);
    let first = p.first_seen(b, position);
    let done = walk.sequence(b, Sequence { table_row, limit, last: position, first }, free, &init);

    few.finish(b, p, outcome, split, &done, false);
    let form = format!("{} heads by {} keys a step, {threads} threads", p.share.min(u64::from(ROWS)), walk.stride());
    if splits > 1 { format!("{form}, {splits} programs a context") } else { form }
}

/// Builds the program for many tokens with operands of `unit`; gives its form for people.
pub fn build_many(b: &mut Builder, p: &Problem<'_>, out_param: Param, arch: GpuArch, unit: Elem) -> String {
    let size = unit.bytes() as i64;
    let (d, blocks) = sizes(p);
    let waves = TOKEN_WAVES;
    let m = ROWS * waves;
    let threads = waves * together(d) * arch.wave();
    b.threads(threads);
    token_grid(b, 0, p.tokens, u64::from(m));
    b.grid_constant(1, p.heads);
    let (tile, head) = (b.program_id(0), b.program_id(1));
    let per_kv = b.int(p.share as i64);
    let kv_head = b.div(head, per_kv);
    let count = match p.tokens {
        weldment_ir::Dim::Sym(s) => b.dim(s),
        weldment_ir::Dim::Const(n) => b.int(*n as i64),
    };
    // The last tiles see most: they go first, so that the short ones fill the gaps at the end.
    let last_token = b.offset(count, -1);
    let size_of_tile = b.int(i64::from(m));
    let last_tile = b.div(last_token, size_of_tile);
    let tile = b.sub(last_tile, tile);
    let first = b.scale(tile, i64::from(m));
    let rows = present(b, first, count, m);
    let rows = b.reshape(rows, &[waves, ROWS, 1]);
    // Bytes from wave to wave and row to row of a tensor's tokens.
    let by_token = |stride: i64| [i64::from(ROWS) * stride, stride];

    // Position and sequence of each row [waves, ROWS, 1]; rows too many take the first row's sequence and see nothing.
    let column = |b: &mut Builder, param: usize, stride: i64| {
        let at = b.scale(first, stride);
        let [wave, row] = by_token(stride);
        b.load(p.params[param], at, Elem::I32, &[waves, ROWS, 1], &[wave, row, 0], Some(rows))
    };
    let positions = column(b, 3, p.positions.byte_stride(0));
    let sequences = column(b, 4, p.ids.byte_stride(0));
    let at = b.scale(first, p.ids.byte_stride(0));
    let own = b.load_scalar(p.params[4], at, Elem::I32);
    let sequences = b.select(rows, sequences, own);
    let none = b.int_of(Elem::I32, &[], -1);
    let positions = b.select(rows, positions, none);
    let start = b.int(0);
    let largest = |b: &mut Builder, v: V| {
        let v = b.reshape(v, &[m]);
        let top = b.reduce(Reduction::Max, v, 0);
        let top = b.reshape(top, &[]);
        b.convert(Conversion::Signed, top, Elem::I64)
    };
    let smallest = |b: &mut Builder, v: V| {
        let zero = b.int_of(Elem::I32, &[], 0);
        let v = b.sub(zero, v);
        let top = largest(b, v);
        b.sub(start, top)
    };
    let (lowest_id, highest_id) = (smallest(b, sequences), largest(b, sequences));

    let depth = (u64::from(d) != p.d).then(|| below(b, start, d, p.d));
    let q_base = place(b, p.q, first, head);
    let [wave, row] = by_token(p.q.byte_stride(0));
    let columns = depth.map(|k| b.reshape(k, &[1, 1, d]));
    let mask = all_of(b, &[Some(rows), columns], &[waves, ROWS, d]);
    let query = b.load(p.params[0], q_base, unit, &[waves, ROWS, d], &[wave, row, size], mask);
    let key_head = b.scale(kv_head, p.keys.byte_stride(1));
    let value_head = b.scale(kv_head, p.values.byte_stride(1));
    let share = Share::alone(b);
    let walk = Walk {
        p,
        unit,
        waves,
        key_waves: 1,
        d,
        depth,
        blocks,
        share,
        ahead: d <= WIDEST_AHEAD,
        query,
        key_head,
        value_head,
    };
    let init = walk.init(b);
    let after = b.offset(highest_id, 1);
    let done = b.for_loop(lowest_id, after, 1, &init, |b, sequence, carried| {
        let table_row = p.tables.row_offset(b, sequence);
        let this = b.convert(Conversion::Signed, sequence, Elem::I32);
        let mine = b.compare(Compare::Equal, sequences, this);
        // -1 where a row is of another sequence.
        let none = b.int_of(Elem::I32, &[], -1);
        let limit = b.select(mine, positions, none);
        let last = largest(b, limit);
        let free = smallest(b, limit);
        let free = b.offset(free, 1);
        let earliest = p.window.map(|_| {
            // Rows of other sequences, and rows too many, see nothing.
            let mine = b.binary(Binary::And, mine, rows);
            let most = b.int_of(Elem::I32, &[], i64::from(i32::MAX));
            let own = b.select(mine, positions, most);
            smallest(b, own)
        });
        let first = earliest.and_then(|position| p.first_seen(b, position));
        walk.sequence(b, Sequence { table_row, limit, last, first }, free, carried)
    });

    // Rows too many saw nothing.
    let one = b.float(1.0);
    let total = b.select(rows, done[1], one);
    let value = quotient(b, done[2], total);
    let out = elem_of(p.out.ty.dtype).unwrap_or(Elem::F32);
    let value = b.convert(Conversion::Float, value, out);
    let mask = all_of(b, &[Some(rows), columns], &[waves, ROWS, d]);
    let at = place(b, p.out, first, head);
    let [wave, row] = by_token(p.out.byte_stride(0));
    b.store(out_param, at, &[wave, row, out.bytes() as i64], value, mask);
    format!("tiles of {m} tokens by {} keys, {threads} threads", walk.keys())
}
