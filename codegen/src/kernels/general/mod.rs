//! Any op of the table on operands of any dtype, shape and strides, an element at a time: what runs where no other family takes a
//! request. A program has a row of the result and goes along it, on a GPU together with others; what a value depends on is read
//! in loops of scalars. The interpreter is followed step by step, and nothing here is fast.

mod blocks;
mod cell;
mod paged;
mod product;
mod ranks;
mod reduce;
mod rope;
mod rows;
mod views;

use self::cell::{Cell, Kind};
use self::rows::Rows;
use super::collective::comm_param;
use super::pointwise;
use super::schedule::param;
use crate::request::{Argument, Built, Request, refuse};
use crate::tile::{Access, Binary, Builder, Compare, Conversion, Elem, Param, V};
use weldment_ir::{Category, DType, Dim, Op};
use weldment_passes::target::Refusal;

/// Threads of a program on a GPU, all but one of them idle.
const THREADS: u32 = 64;

/// A kernel on its way: operands and results as parameters.
struct Draft<'r, 'q> {
    r: &'r Request<'q>,
    b: Builder,
    operands: Vec<Cell<'r>>,
    results: Vec<Cell<'r>>,
    arguments: Vec<Argument>,
}

impl<'r, 'q> Draft<'r, 'q> {
    fn new(r: &'r Request<'q>) -> Draft<'r, 'q> {
        let moves = r.op.kind().info().category == Category::View;
        let mut b = Builder::new(if moves { "copy" } else { "general" });
        if moves {
            b.moves_only();
        }
        b.threads(THREADS);
        let mut arguments = Vec::new();
        let operands = r.operands.iter().enumerate().map(|(i, t)| {
            arguments.push(Argument::Operand(i));
            Cell { tensor: t, param: param(&mut b, r.target(), &format!("in{i}"), t, Access::Read) }
        });
        let operands = operands.collect();
        let results = r.results.iter().enumerate().map(|(i, t)| {
            arguments.push(Argument::Result(i));
            Cell { tensor: t, param: param(&mut b, r.target(), &format!("out{i}"), t, Access::Write) }
        });
        let results = results.collect();
        Draft { r, b, operands, results, arguments }
    }

    /// The table that tells a rank of itself.
    fn comm(&mut self) -> Param {
        self.arguments.push(Argument::Comm);
        comm_param(&mut self.b, self.r.target())
    }

    /// Calls `value` for every element of the one result and stores what it gives.
    fn each(&mut self, kind: Kind, mut value: impl FnMut(&mut Builder, &[Cell<'_>], &[V]) -> V) {
        let Draft { r, b, operands, results, .. } = self;
        let out = results[0];
        let rows = Rows::new(b, r.target(), &out.tensor.ty.shape, Some(out.step()));
        rows.each(b, &mut |b, lead| {
            rows.write(b, &out, lead, kind, &mut |b, index| value(b, operands, index));
        });
    }
}

/// The kernel of any request.
///
/// # Errors
/// For leaves and for what only other families do: exchanges between ranks.
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    // What only moves is moved as whole bytes where several elements share some.
    if let Some(bytes) = views::as_bytes(r) {
        return build(&bytes);
    }
    let mut d = Draft::new(r);
    match r.op {
        Op::Cast { dtype } => cast(&mut d, *dtype),
        Op::Select {} => select(&mut d),
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } | Op::Broadcast { .. } => views::copy(&mut d)?,
        Op::ReduceSum { .. } | Op::ReduceMean { .. } | Op::ReduceMax { .. } => reduce::one_axis(&mut d)?,
        Op::Softmax {} => reduce::softmax(&mut d),
        Op::RmsNorm { .. } | Op::AddRmsNorm { .. } | Op::RmsNormQuantise { .. } | Op::AddRmsNormQuantise { .. } => {
            reduce::norm(&mut d)?;
        }
        Op::Quantise { dtype, group } => reduce::quantise(&mut d, *dtype, *group)?,
        Op::Matmul { .. } | Op::MatmulAdd { .. } | Op::MatmulSiluMul { .. } => product::matmul(&mut d),
        Op::ScaledMatmul { rows, columns, .. } => product::scaled(&mut d, [*rows, *columns])?,
        Op::Gather { .. } | Op::GatherPart { .. } => ranks::gather(&mut d)?,
        Op::Shard { .. } => ranks::shard(&mut d)?,
        Op::RopeTable { .. } => rope::table(&mut d)?,
        Op::Rope { .. } => rope::rotated(&mut d)?,
        Op::CacheWrite { .. } | Op::RopeCacheWrite { .. } => paged::write(&mut d)?,
        Op::Attention { .. } | Op::SparseAttention { .. } => paged::attention(&mut d)?,
        Op::IndexScores { skip, .. } => paged::index_scores(&mut d, *skip),
        op if op.kind().info().category == Category::Elementwise => elementwise(&mut d)?,
        op => return refuse("op", op.kind(), "an op that one rank computes by itself"),
    }
    let types: Vec<String> = r.operands.iter().map(|t| t.ty.to_string()).collect();
    let summary = format!("{} of {} -> {}, by elements", r.op.kind(), types.join(", "), r.results[0].ty);
    Ok(Built { kernel: d.b.finish(String::new()), arguments: d.arguments, summary, then: None })
}

/// Arithmetic, comparisons and functions.
fn elementwise(d: &mut Draft<'_, '_>) -> Result<(), Refusal> {
    let op = d.r.op;
    let reals = d.r.operands[0].ty.dtype.is_float();
    let kind = if matches!(op, Op::Less {}) || !reals { Kind::Integer } else { Kind::Real };
    let mut outcome = Ok(());
    d.each(kind, |b, operands, index| {
        let inputs: Vec<V> =
            operands.iter().map(|t| if reals { t.real(b, index) } else { t.integer(b, index) }).collect();
        let value = match op {
            Op::Div {} if !reals => quotient(b, inputs[0], inputs[1]),
            _ => pointwise::arithmetic(b, op, &inputs).unwrap_or_else(|e| {
                outcome = Err(e);
                inputs[0]
            }),
        };
        if matches!(op, Op::Less {}) { b.convert(Conversion::Unsigned, value, Elem::I64) } else { value }
    });
    outcome
}

/// a / b of i64 towards zero, wrapping; 0 where b is 0.
fn quotient(b: &mut Builder, x: V, y: V) -> V {
    let (zero, one) = (b.int(0), b.int(1));
    let magnitude = |b: &mut Builder, v: V| {
        let (negative, turned) = (b.compare(Compare::Less, v, zero), b.sub(zero, v));
        (negative, b.select(negative, turned, v))
    };
    let ((x_negative, x), (y_negative, y)) = (magnitude(b, x), magnitude(b, y));
    let none = b.compare(Compare::Equal, y, zero);
    let divisor = b.select(none, one, y);
    let ratio = b.div(x, divisor);
    let turned = b.sub(zero, ratio);
    let negative = b.binary(Binary::Xor, x_negative, y_negative);
    let ratio = b.select(negative, turned, ratio);
    b.select(none, zero, ratio)
}

/// Elements as they are stored, so that nothing about them changes.
fn select(d: &mut Draft<'_, '_>) {
    d.each(Kind::Stored, |b, operands, index| {
        let condition = operands[0].integer(b, index);
        let zero = b.int(0);
        let off = b.compare(Compare::Equal, condition, zero);
        let (yes, no) = (operands[1].stored(b, index), operands[2].stored(b, index));
        b.select(off, no, yes)
    });
}

fn cast(d: &mut Draft<'_, '_>, to: DType) {
    let from = d.r.operands[0].ty.dtype;
    match (from.is_float(), to.is_float()) {
        _ if from == to && !from.is_block() => d.each(Kind::Stored, |b, o, index| o[0].stored(b, index)),
        (_, true) => d.each(Kind::Real, |b, o, index| o[0].real(b, index)),
        (false, false) => d.each(Kind::Integer, |b, o, index| o[0].integer(b, index)),
        (true, false) => d.each(Kind::Integer, |b, o, index| {
            let v = o[0].real(b, index);
            to_integer(b, v, to)
        }),
    }
}

/// Nearest integer of f32, ties to even, within the range of `to`; NaN gives 0. Of bool: whether it is not 0.
fn to_integer(b: &mut Builder, v: V, to: DType) -> V {
    let zero = b.float(0.0);
    if to == DType::Bool {
        let (none, one, nothing) = (b.compare(Compare::Equal, v, zero), b.int(1), b.int(0));
        return b.select(none, nothing, one);
    }
    let number = b.compare(Compare::Equal, v, v);
    let v = b.select(number, v, zero);
    let v = b.round(v);
    // f32 has no 2^63 - 1: what reaches 2^63 is told apart afterwards.
    let edge = f64::powi(2.0, 63);
    let (low, high) = (b.float(-edge), b.float(edge - f64::powi(2.0, 39)));
    let bounded = b.max(v, low);
    let bounded = b.min(bounded, high);
    let n = b.convert(Conversion::FloatToSigned, bounded, Elem::I64);
    let over = b.compare(Compare::Less, high, v);
    let most = b.int(i64::MAX);
    let n = b.select(over, most, n);
    let (min, max) = match to {
        DType::I8 => (i64::from(i8::MIN), i64::from(i8::MAX)),
        DType::U8 => (0, i64::from(u8::MAX)),
        DType::I32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        DType::U32 => (0, i64::from(u32::MAX)),
        _ => return n,
    };
    let (min, max) = (b.int(min), b.int(max));
    let n = b.max(n, min);
    b.min(n, max)
}

/// A dim in this step, i64.
fn size(b: &mut Builder, dim: &Dim) -> V {
    match dim {
        Dim::Const(n) => b.int(*n as i64),
        Dim::Sym(s) => b.dim(s),
    }
}

/// Place of an element in row-major order.
fn flat(b: &mut Builder, index: &[V], shape: &[Dim]) -> V {
    let mut place = b.int(0);
    for (i, dim) in index.iter().zip(shape) {
        let n = size(b, dim);
        place = b.mul(place, n);
        place = b.add(place, *i);
    }
    place
}

/// The indices of a row with one more behind them.
fn with(lead: &[V], last: V) -> Vec<V> {
    lead.iter().copied().chain([last]).collect()
}

/// The sum of `term` over `0..count`, in f32.
fn sum(b: &mut Builder, count: V, mut term: impl FnMut(&mut Builder, V) -> V) -> V {
    let (zero, nothing) = (b.int(0), b.float(0.0));
    b.for_loop(zero, count, 1, &[nothing], |b, i, carried| {
        let v = term(b, i);
        vec![b.add(carried[0], v)]
    })[0]
}

/// The largest `term` over `0..count`, `least` if there is none.
fn largest(b: &mut Builder, count: V, least: f64, mut term: impl FnMut(&mut Builder, V) -> V) -> V {
    let (zero, least) = (b.int(0), b.float(least));
    b.for_loop(zero, count, 1, &[least], |b, i, carried| {
        let v = term(b, i);
        vec![b.max(carried[0], v)]
    })[0]
}
