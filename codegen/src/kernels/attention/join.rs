//! A context split over programs ("flash decoding"): where tokens are too few to fill a GPU, several programs of a token and KV head
//! take interleaved steps of its context and leave partial softmaxes in scratch memory, which a second launch joins. A program
//! without a step leaves a softmax of nothing, so that all partials are there to be read, whatever the position.

use crate::choices::Choices;
use crate::kernels::row::elem_of;
use crate::kernels::schedule::{all_of, below};
use crate::request::{Argument, Built, Tensor};
use crate::target::GpuArch;
use crate::tile::{Access, Binary, Builder, Conversion, Elem, Param, Reduction, V};
use weldment_ir::Dim;

/// Programs that keep a GPU busy: about four for each of its multiprocessors.
const ENOUGH_PROGRAMS: u64 = 512;
/// Most programs that share a context: a thread of the second launch holds a piece of each one's sums.
const MOST_SPLITS: u64 = 16;
/// Fewest that pay for the second launch.
const FEWEST_SPLITS: u64 = 4;
/// Bytes of a partial's element.
const BYTES: i64 = 4;

/// Programs that share a context, where each token has `programs` of them otherwise.
pub fn splits(programs: u64, max_tokens: u64, choices: &Choices) -> u64 {
    if let Some(splits) = choices.attention_splits {
        return u64::from(splits);
    }
    let wanted = ENOUGH_PROGRAMS / programs.saturating_mul(max_tokens).max(1);
    let splits = wanted.clamp(1, MOST_SPLITS).next_power_of_two();
    let splits = if splits > wanted.max(1) { splits / 2 } else { splits };
    if splits < FEWEST_SPLITS { 1 } else { splits }
}

/// Where partial softmaxes lie in scratch memory: sums f32 [tokens, splits, heads, d], then the highest scores and the totals,
/// f32 [tokens, splits, heads] each.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Programs that share a context.
    pub splits: u64,
    heads: u64,
    d: u64,
    /// Most tokens.
    tokens: u64,
}

impl Room {
    /// Room for `splits` partials of each of `tokens` tokens.
    pub fn new(splits: u64, tokens: u64, heads: u64, d: u64) -> Room {
        Room { splits, heads, d, tokens }
    }

    /// Byte offsets of highest scores, of totals, and of the end.
    fn places(&self) -> [u64; 3] {
        let rows = self.tokens.saturating_mul(self.splits * self.heads);
        let size = |elements: u64| elements.saturating_mul(BYTES as u64).next_multiple_of(64);
        let sums = size(rows.saturating_mul(self.d));
        let each = size(rows);
        [sums, sums.saturating_add(each), sums.saturating_add(each.saturating_mul(2))]
    }

    /// Bytes of all partials.
    pub fn bytes(&self) -> u64 {
        self.places()[2]
    }

    /// Declares the parameters of sums, highest scores and totals.
    pub fn declare(self, b: &mut Builder, access: Access) -> Partials {
        let params = ["sums", "highest", "totals"].map(|name| b.aligned_param(name, access, 64, false));
        Partials { room: self, params }
    }

    fn arguments(&self) -> [Argument; 3] {
        let [highest, totals, _] = self.places();
        [0, highest, totals].map(|offset| Argument::Scratch { offset })
    }
}

/// Partials as a program addresses them.
#[derive(Clone, Copy)]
pub struct Partials {
    room: Room,
    params: [Param; 3],
}

impl Partials {
    /// Bindings of the declared parameters.
    pub fn arguments(&self) -> [Argument; 3] {
        self.room.arguments()
    }

    /// Programs that share a context.
    pub fn splits(&self) -> u64 {
        self.room.splits
    }

    /// Index of the row of a token, split and head.
    fn row(&self, b: &mut Builder, token: V, split: V, head: V) -> V {
        let before = b.scale(token, self.room.splits as i64);
        let at = b.add(before, split);
        let at = b.scale(at, self.room.heads as i64);
        b.add(at, head)
    }

    /// Stores the softmaxes of neighbouring heads from `head` on: highest scores and totals [rows, 1], sums [rows, padded d].
    pub fn store(
        &self,
        b: &mut Builder,
        (token, split, head): (V, V, V),
        [highest, totals, sums]: [V; 3],
        (rows, columns): (Option<V>, Option<V>),
    ) {
        let row = self.row(b, token, split, head);
        let at = b.scale(row, BYTES);
        b.store(self.params[1], at, &[BYTES, 0], highest, rows);
        b.store(self.params[2], at, &[BYTES, 0], totals, rows);
        let width = self.room.d as i64 * BYTES;
        let at = b.scale(row, width);
        let shape = b.ty(sums).shape.clone();
        let mask = all_of(b, &[rows, columns], &shape);
        b.store(self.params[0], at, &[width, BYTES], sums, mask);
    }
}

/// The second launch: a program joins the partials of a token and of as many heads as a wave holds side by side, in 16 bytes a
/// thread. A token that `may_see_nothing` gives 0 then.
pub fn build(out: &Tensor, tokens: &Dim, room: Room, scale: f64, arch: GpuArch, may_see_nothing: bool) -> Built {
    let mut b = Builder::new("attention_join");
    let partials = room.declare(&mut b, Access::Read);
    let out_param = b.aligned_param("out", Access::Write, out.align, false);
    let padded = room.d.next_power_of_two();
    let threads = arch.wave().max(padded as u32 / 4);
    let together = u64::from(4 * threads) / padded;
    let group = together.min(1 << room.heads.trailing_zeros());
    b.threads(threads);
    super::token_grid(&mut b, 0, tokens, 1);
    b.grid_constant(1, room.heads / group);
    let (token, slot) = (b.program_id(0), b.program_id(1));
    let head = b.scale(slot, group as i64);
    let start = b.int(0);
    let row = partials.row(&mut b, token, start, head);
    let (s, g, d) = (room.splits as u32, group as u32, padded as u32);
    let columns = (padded != room.d).then(|| below(&mut b, start, d, room.d));

    // Highest scores and totals have the sums' shape throughout: then each thread loads those of its own elements, and nothing
    // crosses threads.
    let shape = [s, g, d];
    let at = b.scale(row, BYTES);
    let by_row = [room.heads as i64 * BYTES, BYTES, 0];
    let highest = b.load(partials.params[1], at, Elem::F32, &[s, g, 1], &by_row, None);
    let totals = b.load(partials.params[2], at, Elem::F32, &[s, g, 1], &by_row, None);
    let width = room.d as i64 * BYTES;
    let at = b.scale(row, width);
    let mask = columns.map(|k| b.reshape(k, &[1, 1, d])).map(|k| b.broadcast(k, &shape));
    let sums = b.load(partials.params[0], at, Elem::F32, &shape, &[room.heads as i64 * width, width, BYTES], mask);
    let highest = b.broadcast(highest, &shape);
    let totals = b.broadcast(totals, &shape);
    let top = b.reduce(Reduction::Max, highest, 0);
    let change = b.sub(highest, top);
    let change = super::power(&mut b, change, scale);
    let totals = b.mul(totals, change);
    let total = b.reduce(Reduction::Sum, totals, 0);
    let sums = b.mul(sums, change);
    let sum = b.reduce(Reduction::Sum, sums, 0);
    let total = if may_see_nothing { super::or_one(&mut b, total) } else { total };
    let value = b.div(sum, total);
    let elem = elem_of(out.ty.dtype).unwrap_or(Elem::F32);
    let value = b.convert(Conversion::Float, value, elem);
    let value = b.reshape(value, &[g, d]);
    let mask = columns.map(|k| b.reshape(k, &[1, d])).map(|k| b.broadcast(k, &[g, d]));
    let at = super::place(&mut b, out, token, head);
    b.store(out_param, at, &[out.byte_stride(1), elem.bytes() as i64], value, mask);

    let arguments = room.arguments().into_iter().chain([Argument::Result(0)]).collect();
    let summary = format!(
        "joins {} partials of {group} heads of {}, {threads} threads, f32 -> {}",
        room.splits, room.d, out.ty.dtype
    );
    Built { kernel: b.finish(String::new()), arguments, summary, then: None }
}

/// Steps of `stride` that a program of a shared context takes: its own index along grid axis 2, among `splits`.
pub struct Share {
    /// i64: the program's index.
    pub split: V,
    splits: i64,
}

impl Share {
    /// The share of a program among `splits`, by grid axis 2.
    pub fn new(b: &mut Builder, splits: u64) -> Share {
        if splits == 1 {
            return Share::alone(b);
        }
        b.grid_constant(2, splits);
        Share { split: b.program_id(2), splits: splits as i64 }
    }

    /// Every step.
    pub fn alone(b: &mut Builder) -> Share {
        Share { split: b.int(0), splits: 1 }
    }

    /// Positions from a step of the program to its next.
    pub fn apart(&self, stride: i64) -> i64 {
        stride * self.splits
    }

    /// Start of the program's first step from `whole` on, a multiple of `stride`.
    pub fn first(&self, b: &mut Builder, whole: V, stride: i64) -> V {
        if self.splits == 1 {
            return whole;
        }
        let per_step = b.int(stride);
        let passed = b.div(whole, per_step);
        let ahead = b.sub(self.split, passed);
        let within = b.int(self.splits - 1);
        let ahead = b.binary(Binary::And, ahead, within);
        let ahead = b.scale(ahead, stride);
        b.add(whole, ahead)
    }
}
