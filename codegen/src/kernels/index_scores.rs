//! Logits of a sparse attention's indexer over a paged cache of keys.
//!
//! A program takes a token and a run of columns. Runs past the token's window, and all runs of a token whose window is below `skip`, are
//! zeros and read neither keys nor tables. A host goes key block by key block; a GPU takes its run's keys as one tile, against
//! all heads on matrix units where q and keys are of one 16-bit dtype, else head by head.

use super::row::{elem_of, for_row, load_index};
use super::schedule::{all_of, below, param, present};
use super::{attention, paged};
use crate::family::{Addressing, Family, Sharing, Strides};
use crate::request::{Argument, Built, Request, Tensor, contiguous_last, last_dim, refuse, require};
use crate::tile::{Access, Builder, Compare, Elem, Param, Reduction, V};
use weldment_ir::{Dim, Op, OpKind};
use weldment_passes::target::Refusal;

/// Columns of a program; at least a key block, of at most 64 positions.
const COLUMNS: u32 = 64;
/// Heads of a tile on matrix units.
const HEADS: u32 = 64;
/// Elements of keys that a GPU program holds of each column.
const DEPTH: u32 = 128;

/// Scores of an indexer.
pub struct IndexScores;

impl Family for IndexScores {
    fn runs(&self, kind: OpKind) -> bool {
        matches!(kind, OpKind::IndexScores)
    }

    fn addressing(&self, _: OpKind) -> Addressing {
        Addressing {
            operands: &[Strides::Contiguous, Strides::Any, Strides::Contiguous, Strides::Any],
            results: Strides::Contiguous,
            shares: Sharing::Never,
        }
    }

    /// Preconditions of the family.
    fn check(&self, r: &Request<'_>) -> Result<(), Refusal> {
        let (q, weights, keys) = (&r.operands[0], &r.operands[1], &r.operands[2]);
        contiguous_last(q)?;
        contiguous_last(&r.results[0])?;
        attention::check_keys(keys)?;
        if r.target().gpu().is_none() {
            contiguous_last(keys)?;
        }
        let float = |t: &Tensor| t.ty.dtype.is_compute_float();
        require(float(q), "query dtype", q.ty.dtype, "f32, f16 or bf16")?;
        require(float(weights), "weight dtype", weights.ty.dtype, "f32, f16 or bf16")?;
        require(q.ty.shape[1].constant().is_some(), "heads", &q.ty, "a constant")?;
        last_dim(q).map(|_| ())
    }

    fn build(&self, r: &Request<'_>) -> Result<Built, Refusal> {
        self.check(r)?;
        let Op::IndexScores { columns, skip } = r.op else { return refuse("op", r.op.kind(), "index_scores") };
        let [q, weights, keys, positions, ids, tables] = &r.operands[..] else {
            return refuse("operands", r.operands.len(), 6);
        };
        let mut b = Builder::new("index_scores");
        let names = ["q", "weights", "keys", "positions", "sequence_ids", "block_tables"];
        let params: Vec<Param> =
            names.iter().zip(&r.operands).map(|(n, t)| param(&mut b, r.target(), n, t, Access::Read)).collect();
        let out_param = param(&mut b, r.target(), "out", &r.results[0], Access::Write);
        let (d, heads) = (last_dim(q)?, q.ty.shape[1].constant().unwrap_or(1));
        attention::token_grid(&mut b, 0, &q.ty.shape[0], 1);
        let count = match &columns[0] {
            Dim::Const(n) => {
                b.grid_constant(1, n.div_ceil(u64::from(COLUMNS)));
                b.int(*n as i64)
            }
            Dim::Sym(s) => {
                b.grid_symbol(1, s, 1, u64::from(COLUMNS));
                b.dim(s)
            }
        };
        let (token, piece) = (b.program_id(0), b.program_id(1));
        let first = b.scale(piece, i64::from(COLUMNS));
        let at = b.scale(token, positions.byte_stride(0));
        let position = load_index(&mut b, params[3], at);
        // Columns that are scored: none of a window below `skip`.
        let window = b.offset(position, 1);
        let window = b.min(window, count);
        let (none, least) = (b.int(0), b.int(*skip));
        let skipped = b.compare(Compare::Less, position, least);
        let scored = b.select(skipped, none, window);
        let out_row = b.scale(token, r.results[0].byte_stride(0));
        let program = Program {
            params,
            out_param,
            q,
            weights,
            keys,
            ids,
            tables,
            d,
            heads,
            token,
            first,
            count,
            scored,
            out_row,
        };
        let form = match r.target().gpu() {
            None => host(&mut b, &program),
            Some(_) => program.gpu(&mut b),
        };
        let arguments = (0..6).map(Argument::Operand).chain([Argument::Result(0)]).collect();
        let summary = format!("indexer logits of {heads} heads of {d}, {form}, {} and {}", q.ty.dtype, keys.ty.dtype);
        Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
    }
}

struct Program<'t> {
    params: Vec<Param>,
    out_param: Param,
    q: &'t Tensor,
    weights: &'t Tensor,
    keys: &'t Tensor,
    ids: &'t Tensor,
    tables: &'t Tensor,
    d: u64,
    heads: u64,
    token: V,
    /// First column of the program.
    first: V,
    /// Columns of the result.
    count: V,
    /// Columns that are not zero by rule.
    scored: V,
    /// Byte offset of the result's row.
    out_row: V,
}

fn elem(t: &Tensor) -> Elem {
    elem_of(t.ty.dtype).unwrap_or(Elem::F32)
}

fn bytes(t: &Tensor) -> i64 {
    elem(t).bytes() as i64
}

/// weight * max(0, product), with 0 where the product is not above 0.
fn weighed(b: &mut Builder, product: V, weight: V) -> V {
    let zero = b.float(0.0);
    let above = b.compare(Compare::Less, zero, product);
    let value = b.mul(product, weight);
    b.select(above, value, zero)
}

impl Program<'_> {
    fn slots(&self) -> u32 {
        self.keys.ty.last_constant().unwrap_or(16) as u32
    }

    /// Byte offset of the token's row of block tables.
    fn table_row(&self, b: &mut Builder) -> V {
        let at = b.scale(self.token, self.ids.byte_stride(0));
        let sequence = load_index(b, self.params[4], at);
        self.tables.row_offset(b, sequence)
    }

    /// Stores columns `first`.. of a tile [n]: zeros from the scored ones on, nothing past the last column.
    fn store(&self, b: &mut Builder, first: V, scores: V) {
        let n = b.ty(scores).lanes();
        let own = b.iota(Elem::I64, n);
        let left = b.sub(self.scored, first);
        let seen = b.compare(Compare::Less, own, left);
        let zero = b.float(0.0);
        let scores = b.select(seen, scores, zero);
        let left = b.sub(self.count, first);
        let inside = b.compare(Compare::Less, own, left);
        let at = b.scale(first, 4);
        let at = b.add(self.out_row, at);
        b.store(self.out_param, at, &[4], scores, Some(inside));
    }

    fn gpu(&self, b: &mut Builder) -> String {
        let unit = elem_of(self.q.ty.dtype).filter(|e| *e != Elem::F32 && self.q.ty.dtype == self.keys.ty.dtype);
        let threads = if unit.is_some() { 128 } else { 256 };
        b.threads(threads);
        let live = b.compare(Compare::Less, self.first, self.scored);
        b.if_then(live, |b| {
            let run = Run::new(b, self);
            let scores = match unit {
                Some(unit) => run.dots(b, unit),
                None => run.products(b),
            };
            let scores = b.reshape(scores, &[COLUMNS]);
            self.store(b, self.first, scores);
        });
        let dead = b.compare(Compare::LessEqual, self.scored, self.first);
        b.if_then(dead, |b| {
            let zeros = b.float_tile(&[COLUMNS], 0.0);
            self.store(b, self.first, zeros);
        });
        format!(
            "{COLUMNS} columns, {}, {threads} threads",
            if unit.is_some() { "all heads" } else { "a head at a time" }
        )
    }
}

/// The keys of a GPU program's columns.
struct Run<'p, 't> {
    p: &'p Program<'t>,
    /// i64 [blocks]: places of key blocks.
    places: V,
    /// i1 [blocks]: blocks with scored columns.
    there: V,
    /// Byte offset of q.
    q_base: V,
    /// Elements of a piece of a head.
    depth: u32,
}

impl<'p, 't> Run<'p, 't> {
    fn new(b: &mut Builder, p: &'p Program<'t>) -> Run<'p, 't> {
        let (slots, table) = (p.slots(), p.tables.byte_stride(1));
        let blocks = COLUMNS / slots;
        let table_row = p.table_row(b);
        let index = b.iota(Elem::I64, blocks);
        let own = b.scale(index, i64::from(slots));
        let left = b.sub(p.scored, p.first);
        let there = b.compare(Compare::Less, own, left);
        let per_block = b.int(i64::from(slots));
        let block = b.div(p.first, per_block);
        let at = b.scale(block, table);
        let at = b.add(table_row, at);
        let ids = b.load(p.params[5], at, Elem::I32, &[blocks], &[table], Some(there));
        let ids = paged::readable(b, ids, p.keys);
        let places = b.scale(ids, p.keys.byte_stride(0));
        let q_base = b.scale(p.token, p.q.byte_stride(0));
        let depth = (p.d.next_power_of_two() as u32).clamp(16, DEPTH);
        Run { p, places, there, q_base, depth }
    }

    /// Starts of the pieces of a head.
    fn pieces(&self) -> impl Iterator<Item = u64> + use<> {
        (0..self.p.d).step_by(self.depth as usize)
    }

    /// i1 [depth]: the elements from `start` on that a head has, unless all are there.
    fn elements(&self, b: &mut Builder, start: u64) -> Option<V> {
        let at = b.int(start as i64);
        (start + u64::from(self.depth) > self.p.d).then(|| below(b, at, self.depth, self.p.d))
    }

    /// Keys [depth, columns] from element `start` on.
    fn keys(&self, b: &mut Builder, start: u64) -> V {
        let (keys, slots) = (self.p.keys, self.p.slots());
        let (blocks, depth) = (COLUMNS / slots, self.depth);
        let shape = [depth, blocks, slots];
        let there = b.reshape(self.there, &[1, blocks, 1]);
        let elements = self.elements(b, start).map(|m| b.reshape(m, &[depth, 1, 1]));
        let mask = all_of(b, &[Some(there), elements], &shape);
        let places = b.reshape(self.places, &[1, blocks, 1]);
        let at = b.int(start as i64 * keys.byte_stride(2));
        let strides = [keys.byte_stride(2), 0, keys.byte_stride(3)];
        let k = b.load_gather(self.p.params[2], at, places, elem(keys), &shape, &strides, mask);
        b.reshape(k, &[depth, COLUMNS])
    }

    /// The keys of each piece, where a thread can hold all.
    fn held(&self, b: &mut Builder) -> Option<V> {
        (self.p.d <= u64::from(self.depth)).then(|| self.keys(b, 0))
    }

    /// Scores [1, columns] by matrix units.
    fn dots(&self, b: &mut Builder, unit: Elem) -> V {
        let p = self.p;
        let rows = (p.heads.next_power_of_two() as u32).clamp(16, HEADS);
        let held = self.held(b);
        let mut scores = b.float_tile(&[1, COLUMNS], 0.0);
        for head in (0..p.heads).step_by(rows as usize) {
            let there = (head + u64::from(rows) > p.heads).then(|| {
                let (first, all) = (b.int(head as i64), b.int(p.heads as i64));
                present(b, first, all, rows)
            });
            let mut product = b.float_tile(&[rows, COLUMNS], 0.0);
            for start in self.pieces() {
                let keys = held.unwrap_or_else(|| self.keys(b, start));
                let elements = self.elements(b, start).map(|m| b.reshape(m, &[1, self.depth]));
                let mask = all_of(b, &[there, elements], &[rows, self.depth]);
                let at = b.offset(self.q_base, head as i64 * p.q.byte_stride(1) + start as i64 * bytes(p.q));
                let strides = [p.q.byte_stride(1), bytes(p.q)];
                let q = b.load(p.params[0], at, unit, &[rows, self.depth], &strides, mask);
                product = b.dot(product, q, keys);
            }
            let at = b.scale(p.token, p.weights.byte_stride(0));
            let at = b.offset(at, head as i64 * p.weights.byte_stride(1));
            let weights = [p.weights.byte_stride(1), 0];
            let weights = b.load(p.params[1], at, elem(p.weights), &[rows, 1], &weights, there);
            let weights = b.to_f32(weights);
            let value = weighed(b, product, weights);
            let sum = b.reduce(Reduction::Sum, value, 0);
            scores = b.add(scores, sum);
        }
        scores
    }

    /// Scores [1, columns], a head at a time.
    fn products(&self, b: &mut Builder) -> V {
        let p = self.p;
        let held = self.held(b);
        let (zero, heads) = (b.int(0), b.int(p.heads as i64));
        let nothing = b.float_tile(&[1, COLUMNS], 0.0);
        b.for_loop(zero, heads, 1, &[nothing], |b, head, carried| {
            let own = b.scale(head, p.q.byte_stride(1));
            let q_head = b.add(self.q_base, own);
            let mut product = b.float_tile(&[1, COLUMNS], 0.0);
            for start in self.pieces() {
                let keys = held.unwrap_or_else(|| self.keys(b, start));
                let keys = b.to_f32(keys);
                let mask = self.elements(b, start).map(|m| b.reshape(m, &[self.depth, 1]));
                let at = b.offset(q_head, start as i64 * bytes(p.q));
                let q = b.load(p.params[0], at, elem(p.q), &[self.depth, 1], &[bytes(p.q), 0], mask);
                let q = b.to_f32(q);
                let value = b.mul(keys, q);
                let sum = b.reduce(Reduction::Sum, value, 0);
                product = b.add(product, sum);
            }
            let at = b.scale(p.token, p.weights.byte_stride(0));
            let own = b.scale(head, p.weights.byte_stride(1));
            let at = b.add(at, own);
            let weight = b.load_scalar(p.params[1], at, elem(p.weights));
            let weight = b.to_f32(weight);
            let value = weighed(b, product, weight);
            vec![b.add(carried[0], value)]
        })[0]
    }
}

/// Builds the host's program: key block by key block, heads by eights; gives its form for people.
fn host(b: &mut Builder, p: &Program<'_>) -> String {
    let slots = p.slots();
    let per_block = b.int(i64::from(slots));
    let q_base = b.scale(p.token, p.q.byte_stride(0));
    let end = b.offset(p.first, i64::from(COLUMNS));
    let end = b.min(end, p.count);
    let scored = b.min(p.scored, end);
    // Columns of a block: whole rows but for the last block of the result.
    let store = |b: &mut Builder, first: V, scores: V| {
        let after = b.offset(first, i64::from(slots));
        let whole = b.compare(Compare::LessEqual, after, p.scored);
        b.if_then(whole, |b| {
            let at = b.scale(first, 4);
            let at = b.add(p.out_row, at);
            b.store_row(p.out_param, at, scores);
        });
        let cut = b.compare(Compare::Less, p.scored, after);
        b.if_then(cut, |b| p.store(b, first, scores));
    };
    let live = b.compare(Compare::Less, p.first, scored);
    b.if_then(live, |b| {
        let table_row = p.table_row(b);
        b.for_loop(p.first, scored, i64::from(slots), &[], |b, first, _| {
            let block = b.div(first, per_block);
            let entry = b.scale(block, p.tables.byte_stride(1));
            let entry = b.add(table_row, entry);
            let id = b.load_scalar(p.params[5], entry, Elem::I32);
            let id = paged::readable(b, id, p.keys);
            let base = b.scale(id, p.keys.byte_stride(0));
            let scores = block_scores(b, p, base, q_base);
            let scores = b.reshape(scores, &[slots]);
            store(b, first, scores);
            Vec::new()
        });
    });
    // Zeros from the first block without scored columns on.
    let ahead = b.offset(scored, i64::from(slots) - 1);
    let from = b.div(ahead, per_block);
    let from = b.mul(from, per_block);
    let from = b.max(from, p.first);
    let zeros = b.float_tile(&[slots], 0.0);
    b.for_loop(from, end, i64::from(slots), &[], |b, first, _| {
        p.store(b, first, zeros);
        Vec::new()
    });
    format!("{COLUMNS} columns")
}

/// Scores [1, slots] of the key block at byte `base`.
fn block_scores(b: &mut Builder, p: &Program<'_>, base: V, q_base: V) -> V {
    let (slots, keys, q, weights) = (p.slots(), p.keys, p.q, p.weights);
    let nothing = b.float_tile(&[1, slots], 0.0);
    for_row(b, p.heads, 8, &[nothing], |b, head, rows, carried| {
        let own = b.scale(head, q.byte_stride(1));
        let q_head = b.add(q_base, own);
        let start = b.float_tile(&[rows, slots], 0.0);
        let product = for_row(b, p.d, 16, &[start], |b, e, width, sum| {
            let at = b.scale(e, keys.byte_stride(2));
            let at = b.add(base, at);
            let k = b.load(p.params[2], at, elem(keys), &[width, slots], &[keys.byte_stride(2), bytes(keys)], None);
            let k = b.to_f32(k);
            let at = b.scale(e, bytes(q));
            let at = b.add(q_head, at);
            let left = b.load(p.params[0], at, elem(q), &[rows, width], &[q.byte_stride(1), bytes(q)], None);
            let left = b.to_f32(left);
            vec![b.dot(sum[0], left, k)]
        })[0];
        let at = b.scale(p.token, weights.byte_stride(0));
        let own = b.scale(head, weights.byte_stride(1));
        let at = b.add(at, own);
        let weight = b.load(p.params[1], at, elem(weights), &[rows, 1], &[weights.byte_stride(1), 0], None);
        let weight = b.to_f32(weight);
        let value = weighed(b, product, weight);
        let sum = b.reduce(Reduction::Sum, value, 0);
        vec![b.add(carried[0], sum)]
    })[0]
}
