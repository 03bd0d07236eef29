//! The highest scores of each row's window, and the whole window where it fits.
//!
//! A program takes a row. Scores become integers in the same order (NaN highest, -0 beside +0); the k-th highest is found two bits at a time,
//! by counting how many are at least each of four candidates: exact, and the same work whatever the scores. Then each lane goes
//! through a run of neighbouring columns twice, to count what it takes and to write it where the lanes before it end, so that columns
//! come out in ascending order. A window of at most k columns is written without a look at its scores.

use super::row::load_index;
use super::schedule::{param, steps, threads_for};
use crate::family::{Addressing, Family, Sharing, Strides};
use crate::request::{Argument, Built, Request, RowSpace, contiguous_last, refuse, require};
use crate::tile::{Access, Binary, Builder, Compare, Conversion, Elem, Param, Reduction, V};
use weldment_ir::{Dim, Op, OpKind};
use weldment_passes::target::Refusal;

/// Threads of a GPU program: each has a run of columns.
const THREADS: u32 = 512;
/// Scores that a GPU program counts at a time, 16 bytes a thread.
const GPU_SCORES: u32 = 4 * THREADS;
/// Scores that a host program counts at a time.
const HOST_SCORES: u32 = 16;
/// Candidates for the next bits of the k-th highest score, and those bits.
const CANDIDATES: u32 = 4;
const DIGIT_BITS: i64 = 2;
/// Lanes of which one reduction sums those before each.
const GROUP: u32 = 32;
/// Below every score's key.
const NOTHING: i64 = i32::MIN as i64;

/// The best of a window, and windows.
pub struct Topk;

impl Family for Topk {
    fn runs(&self, kind: OpKind) -> bool {
        matches!(kind, OpKind::Topk | OpKind::Window)
    }

    fn addressing(&self, _: OpKind) -> Addressing {
        Addressing {
            operands: &[Strides::Contiguous, Strides::Any],
            results: Strides::Contiguous,
            shares: Sharing::Never,
        }
    }

    /// Preconditions of the family.
    fn check(&self, r: &Request<'_>) -> Result<(), Refusal> {
        contiguous_last(&r.results[0])?;
        if let Op::Topk { .. } = r.op {
            contiguous_last(&r.operands[0])?;
        }
        require(r.results[0].ty.last_constant().is_some(), "k", &r.results[0].ty, "a constant")
    }

    fn build(&self, r: &Request<'_>) -> Result<Built, Refusal> {
        self.check(r)?;
        match (r.op, &r.operands[..]) {
            (Op::Topk { k }, [scores, positions]) => topk(r, *k, scores, positions),
            (Op::Window { k }, [positions]) => window(r, *k, positions),
            (op, _) => refuse("op", op.kind(), "topk or window"),
        }
    }
}

fn window(r: &Request<'_>, k: i64, positions: &crate::request::Tensor) -> Result<Built, Refusal> {
    let mut b = Builder::new("window");
    let position_param = param(&mut b, r.target(), "positions", positions, Access::Read);
    let out_param = param(&mut b, r.target(), "out", &r.results[0], Access::Write);
    let row = TokenRow::new(&mut b, r, (position_param, positions), out_param)?;
    let count = b.offset(row.position, 1);
    row.store_window(&mut b, k, count);
    Ok(Built {
        kernel: b.finish(String::new()),
        arguments: vec![Argument::Operand(0), Argument::Result(0)],
        summary: format!("windows of {k}"),
        then: None,
    })
}

fn topk(
    r: &Request<'_>,
    k: i64,
    scores: &crate::request::Tensor,
    positions: &crate::request::Tensor,
) -> Result<Built, Refusal> {
    let mut b = Builder::new("topk");
    let score_param = param(&mut b, r.target(), "scores", scores, Access::Read);
    let position_param = param(&mut b, r.target(), "positions", positions, Access::Read);
    let out_param = param(&mut b, r.target(), "out", &r.results[0], Access::Write);
    let row = TokenRow::new(&mut b, r, (position_param, positions), out_param)?;
    let columns = match &scores.ty.shape[1] {
        Dim::Const(n) => b.int(*n as i64),
        Dim::Sym(s) => b.dim(s),
    };
    let count = b.offset(row.position, 1);
    let count = b.min(count, columns);
    let base = b.scale(row.token, scores.byte_stride(0));
    let limit = b.int(k);
    let over = b.compare(Compare::Less, limit, count);
    let scores = Scores { param: score_param, base, count, width: row.width };
    b.if_then(over, |b| select(b, &scores, &row, k));
    let fits = b.compare(Compare::LessEqual, count, limit);
    b.if_then(fits, |b| row.store_window(b, k, count));
    Ok(Built {
        kernel: b.finish(String::new()),
        arguments: vec![Argument::Operand(0), Argument::Operand(1), Argument::Result(0)],
        summary: format!("{k} highest, {} scores at a time", row.width),
        then: None,
    })
}

/// A program's row.
struct TokenRow {
    token: V,
    position: V,
    out: Param,
    /// Byte offset of the row of the result.
    out_row: V,
    /// Elements that a program handles at a time.
    width: u32,
    /// Runs of columns that go in parallel.
    lanes: u32,
}

impl TokenRow {
    fn new(
        b: &mut Builder,
        r: &Request<'_>,
        (position_param, positions): (Param, &crate::request::Tensor),
        out: Param,
    ) -> Result<TokenRow, Refusal> {
        RowSpace::of(&positions.ty.shape)?.grid(b, 0, 1);
        let (width, lanes) = match (r.target().gpu().is_some(), r.op) {
            (false, _) => (HOST_SCORES, 1),
            (true, Op::Topk { .. }) => (GPU_SCORES, THREADS),
            (true, _) => (r.results[0].ty.last_constant().unwrap_or(1).next_power_of_two().min(2048) as u32, 1),
        };
        if r.target().gpu().is_some() {
            b.threads(threads_for(u64::from(width), 4));
        }
        let token = b.program_id(0);
        let at = b.scale(token, positions.byte_stride(0));
        let position = load_index(b, position_param, at);
        let out_row = b.scale(token, r.results[0].byte_stride(0));
        Ok(TokenRow { token, position, out, out_row, width, lanes })
    }

    /// Writes columns 0..count and -1 up to `k`.
    fn store_window(&self, b: &mut Builder, k: i64, count: V) {
        let count = b.convert(Conversion::Signed, count, Elem::I32);
        steps(b, k.unsigned_abs(), u64::from(self.width), &[], |b, at, mask, _| {
            let first = b.convert(Conversion::Signed, at, Elem::I32);
            let own = b.iota(Elem::I32, self.width);
            let column = b.add(own, first);
            let inside = b.compare(Compare::Less, column, count);
            let none = b.int_of(Elem::I32, &[], -1);
            let value = b.select(inside, column, none);
            let at = b.scale(at, 4);
            let at = b.add(self.out_row, at);
            b.store(self.out, at, &[4], value, mask);
            Vec::new()
        });
    }
}

/// The scores of a row's window.
struct Scores {
    param: Param,
    base: V,
    /// i64: columns of the window.
    count: V,
    width: u32,
}

/// Integers in the order of f32 `scores`: -0 with +0, NaN above all, and above [`NOTHING`].
fn keys(b: &mut Builder, scores: V) -> V {
    let bits = b.bitcast(scores, Elem::I32);
    let (zero, lowest) = (b.int_of(Elem::I32, &[], 0), b.int_of(Elem::I32, &[], NOTHING));
    let negative = b.compare(Compare::Less, bits, zero);
    // Minus the magnitude.
    let turned = b.sub(lowest, bits);
    let key = b.select(negative, turned, bits);
    let number = b.compare(Compare::Equal, scores, scores);
    let highest = b.int_of(Elem::I32, &[], i64::from(i32::MAX));
    b.select(number, key, highest)
}

/// i32 of a predicate.
fn counted(b: &mut Builder, predicate: V) -> V {
    b.convert(Conversion::Unsigned, predicate, Elem::I32)
}

/// The sum of a tile's elements along `axis`, which must leave one: a scalar.
fn total(b: &mut Builder, v: V, axis: u32) -> V {
    let sum = b.reduce(Reduction::Sum, v, axis);
    b.reshape(sum, &[])
}

impl Scores {
    /// `reached` [candidates, width] and, for each candidate, which scores from column `at` on reach it; past the window where `masked`,
    /// none does.
    fn count_tile(&self, b: &mut Builder, at: V, candidates: V, reached: V, masked: bool) -> V {
        let inside = masked.then(|| {
            let left = b.sub(self.count, at);
            let own = b.iota(Elem::I64, self.width);
            b.compare(Compare::Less, own, left)
        });
        let at = b.scale(at, 4);
        let at = b.add(self.base, at);
        let scores = b.load(self.param, at, Elem::F32, &[self.width], &[4], inside);
        let mut key = keys(b, scores);
        if let Some(inside) = inside {
            let nothing = b.int_of(Elem::I32, &[], NOTHING);
            key = b.select(inside, key, nothing);
        }
        let reaches = b.compare(Compare::LessEqual, candidates, key);
        let one = counted(b, reaches);
        b.add(reached, one)
    }

    /// The key of the `k`-th highest: the largest number that at least `k` keys reach.
    fn threshold(&self, b: &mut Builder, k: i64) -> V {
        let (zero, digits) = (b.int(0), b.int(32 / DIGIT_BITS));
        let lowest = b.int_of(Elem::I32, &[], NOTHING);
        b.for_loop(zero, digits, 1, &[lowest], |b, digit, carried| {
            let high = b.int(32 - DIGIT_BITS);
            let passed = b.scale(digit, DIGIT_BITS);
            let shift = b.sub(high, passed);
            let shift = b.convert(Conversion::Signed, shift, Elem::I32);
            let index = b.iota(Elem::I32, CANDIDATES);
            let index = b.reshape(index, &[CANDIDATES, 1]);
            let step = b.binary(Binary::Shl, index, shift);
            let candidates = b.add(carried[0], step);
            let zero = b.int(0);
            let none = b.int_of(Elem::I32, &[CANDIDATES, self.width], 0);
            let width = b.int(i64::from(self.width));
            let whole = b.div(self.count, width);
            let whole = b.mul(whole, width);
            let step = i64::from(self.width);
            // Whole tiles need no masks, so that scores load in 16-byte pieces.
            let reached = b
                .for_loop(zero, whole, step, &[none], |b, at, c| vec![self.count_tile(b, at, candidates, c[0], false)]);
            let reached = b.for_loop(whole, self.count, step, &reached, |b, at, c| {
                vec![self.count_tile(b, at, candidates, c[0], true)]
            });
            let reached = b.reduce(Reduction::Sum, reached[0], 1);
            // The first candidate is what is known already: enough keys reach it.
            let wanted = b.int_of(Elem::I32, &[], k);
            let enough = b.compare(Compare::LessEqual, wanted, reached);
            let enough = counted(b, enough);
            let passing = total(b, enough, 0);
            let one = b.int_of(Elem::I32, &[], 1);
            let next = b.sub(passing, one);
            let next = b.binary(Binary::Shl, next, shift);
            vec![b.add(carried[0], next)]
        })[0]
    }
}

/// Each lane's run of columns.
struct Runs<'s> {
    scores: &'s Scores,
    /// i64 [lanes, 1]: first column.
    first: V,
    /// i64: columns of a run.
    length: V,
    threshold: V,
    lanes: u32,
}

impl Runs<'_> {
    /// Goes along the runs with (column i64 [lanes, 1], above the threshold, at the threshold), threading carried values through.
    fn each(&self, b: &mut Builder, init: &[V], body: impl FnOnce(&mut Builder, V, V, V, &[V]) -> Vec<V>) -> Vec<V> {
        let zero = b.int(0);
        let starts = b.scale(self.first, 4);
        b.for_loop(zero, self.length, 1, init, |b, step, carried| {
            let column = b.add(self.first, step);
            let inside = b.compare(Compare::Less, column, self.scores.count);
            let at = b.scale(step, 4);
            let at = b.add(self.scores.base, at);
            let shape = [self.lanes, 1];
            let scores = b.load_gather(self.scores.param, at, starts, Elem::F32, &shape, &[0, 0], Some(inside));
            let key = keys(b, scores);
            let nothing = b.int_of(Elem::I32, &[], NOTHING);
            let key = b.select(inside, key, nothing);
            let above = b.compare(Compare::Less, self.threshold, key);
            let tie = b.compare(Compare::Equal, self.threshold, key);
            body(b, column, above, tie, carried)
        })
    }
}

/// Writes the columns of the `k` highest of more than `k` scores.
fn select(b: &mut Builder, scores: &Scores, row: &TokenRow, k: i64) {
    let threshold = scores.threshold(b, k);
    let lanes = row.lanes;
    let last = b.offset(scores.count, i64::from(lanes) - 1);
    let each = b.int(i64::from(lanes));
    let length = b.div(last, each);
    let lane = b.iota(Elem::I64, lanes);
    let lane = b.reshape(lane, &[lanes, 1]);
    let first = b.mul(lane, length);
    let runs = Runs { scores, first, length, threshold, lanes };

    let none = b.int_of(Elem::I32, &[lanes, 1], 0);
    let counts = runs.each(b, &[none, none], |b, _, above, tie, carried| {
        let (above, tie) = (counted(b, above), counted(b, tie));
        vec![b.add(carried[0], above), b.add(carried[1], tie)]
    });
    let above_in_all = total(b, counts[0], 0);
    let wanted = b.int_of(Elem::I32, &[], k);
    let ties = b.sub(wanted, above_in_all);
    let before = [before(b, counts[0], lanes), before(b, counts[1], lanes)];
    runs.each(b, &before, |b, column, above, tie, carried| {
        let room = b.compare(Compare::Less, carried[1], ties);
        let taken = b.binary(Binary::And, tie, room);
        let taken = b.binary(Binary::Or, above, taken);
        let ties_before = b.min(carried[1], ties);
        let place = b.add(carried[0], ties_before);
        let place = b.convert(Conversion::Signed, place, Elem::I64);
        let place = b.scale(place, 4);
        let column = b.convert(Conversion::Signed, column, Elem::I32);
        b.store_gather(row.out, row.out_row, place, &[0, 0], column, Some(taken));
        let (above, tie) = (counted(b, above), counted(b, tie));
        vec![b.add(carried[0], above), b.add(carried[1], tie)]
    });
}

/// i32 [lanes, 1]: the sum of the lanes before each.
fn before(b: &mut Builder, counts: V, lanes: u32) -> V {
    if lanes == 1 {
        return b.int_of(Elem::I32, &[1, 1], 0);
    }
    // Within a group of lanes, then over groups.
    let groups = lanes / GROUP;
    let zero = b.int_of(Elem::I32, &[], 0);
    let within = b.reshape(counts, &[groups, 1, GROUP]);
    let earlier = triangle(b, GROUP);
    let earlier = b.reshape(earlier, &[1, GROUP, GROUP]);
    let within = b.select(earlier, within, zero);
    let within = b.reduce(Reduction::Sum, within, 2);
    let sums = b.reshape(counts, &[groups, GROUP]);
    let sums = b.reduce(Reduction::Sum, sums, 1);
    let sums = b.reshape(sums, &[1, groups]);
    let earlier = triangle(b, groups);
    let over = b.select(earlier, sums, zero);
    let over = b.reduce(Reduction::Sum, over, 1);
    let over = b.reshape(over, &[groups, 1, 1]);
    let sum = b.add(within, over);
    let sum = b.reshape(sum, &[lanes, 1]);
    // What a reduction leaves lies as the reduction does, repeated over threads. A sum with the counts lies as they do.
    let with_own = b.add(counts, sum);
    b.sub(with_own, counts)
}

/// i1 [n, n]: column below row.
fn triangle(b: &mut Builder, n: u32) -> V {
    let column = b.iota(Elem::I32, n);
    let row = b.reshape(column, &[n, 1]);
    b.compare(Compare::Less, column, row)
}
