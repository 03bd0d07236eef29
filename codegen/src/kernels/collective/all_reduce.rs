//! All-reduce in one stage, alone or with the residual sum and the root-mean-square norm that follow: every rank pushes its rows
//! to all others, and each sums all of them. Partial sums are added in f32 in the order of ranks, then the residual; the sum is
//! rounded once, and the norm reads the rounded sum; it may be quantised where it is made.

use super::channel::Channel;
use super::mailbox::Mailbox;
use super::{channel_programs, check_rows, negative_zero, packs, programs, world};
use crate::kernels::quantise::Sink;
use crate::kernels::row::{elem_of, rounded};
use crate::kernels::schedule::{Piece, Walk, param};
use crate::kernels::{Argument, Built, Request, RowSpace, Tensor, last_dim, require, row_stride};
use crate::tile::{Access, Builder, Conversion, Elem, Param, Reduction, V};
use weldment_ir::{DType, Op};
use weldment_passes::target::Refusal;

/// Widest tile of a row on a host.
const WIDTH: u64 = 32;
/// Widest piece of a row on a GPU, and most threads of a program.
const WIDEST: u64 = 16_384;
const MOST_THREADS: u64 = 1024;

struct Parts<'r> {
    x: &'r Tensor,
    residual: Option<&'r Tensor>,
    /// Weight and epsilon of the norm.
    norm: Option<(&'r Tensor, f64)>,
    /// Positions of the sum and of the norm among the results.
    sum: usize,
    normed: usize,
    /// dtype and group of codes, which are the first result, with their scales as the second.
    codes: Option<(DType, u64)>,
}

fn parts<'r>(r: &'r Request<'_>) -> Parts<'r> {
    let o = &r.operands;
    let plain = Parts { x: &o[0], residual: None, norm: None, sum: 0, normed: 0, codes: None };
    match r.op {
        Op::AllReduceAddRmsNorm { eps, .. } => {
            Parts { residual: Some(&o[1]), norm: Some((&o[2], eps.0)), sum: 1, ..plain }
        }
        Op::AllReduceRmsNorm { eps, .. } => Parts { norm: Some((&o[1], eps.0)), sum: 1, ..plain },
        Op::AllReduceAddRmsNormQuantise { eps, format, group, .. } => {
            let codes = Some((*format, group.unsigned_abs()));
            Parts { residual: Some(&o[1]), norm: Some((&o[2], eps.0)), sum: 3, normed: 2, codes, ..plain }
        }
        Op::AllReduceRmsNormQuantise { eps, format, group, .. } => {
            let codes = Some((*format, group.unsigned_abs()));
            Parts { norm: Some((&o[1], eps.0)), sum: 3, normed: 2, codes, ..plain }
        }
        _ => plain,
    }
}

/// Preconditions of the family.
///
/// # Errors
/// The first that fails.
pub fn check(r: &Request<'_>) -> Result<(), Refusal> {
    let p = parts(r);
    world(r)?;
    packs(p.x)?;
    require(p.x.ty.dtype.is_compute_float(), "activation dtype", p.x.ty.dtype, "f32, f16 or bf16")?;
    check_rows(std::iter::once(p.x).chain(p.residual).chain(&r.results))?;
    if let Some((weight, _)) = p.norm {
        check_rows([weight])?;
        require(weight.ty.dtype.is_compute_float(), "weight dtype", weight.ty.dtype, "f32, f16 or bf16")?;
    }
    if let Some((format, group)) = p.codes {
        Sink::check(r.target, last_dim(p.x)?, group, format)?;
    }
    for t in p.residual.into_iter().chain([&r.results[p.sum], &r.results[p.normed]]) {
        require(t.ty.dtype.is_compute_float(), "result dtype", t.ty.dtype, "f32, f16 or bf16")?;
    }
    Ok(())
}

/// A tensor's parameter, dtype and the bytes from row to row.
#[derive(Clone, Copy)]
struct Place {
    param: Param,
    dtype: DType,
    stride: i64,
}

impl Place {
    fn load(self, b: &mut Builder, piece: &Piece, row: V) -> V {
        let base = b.scale(row, self.stride);
        piece.load(b, self.param, base, self.dtype, self.stride)
    }

    fn store(self, b: &mut Builder, piece: &Piece, row: V, v: V) {
        let base = b.scale(row, self.stride);
        piece.store(b, self.param, base, self.dtype, self.stride, v);
    }
}

/// The kernel of a request that passed [`check`].
///
/// # Errors
/// As [`check`].
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    check(r)?;
    let p = parts(r);
    let (d, world) = (packs(p.x)?, world(r)?);
    let (dtype, elem) = (p.x.ty.dtype, elem_of(p.x.ty.dtype).unwrap_or(Elem::F32));
    let rows = RowSpace::of(&p.x.ty.shape[..p.x.ty.rank() - 1])?;
    let mut b = Builder::new("all_reduce");
    let mut arguments = Vec::new();
    let mut place = |b: &mut Builder, name: &str, t: &Tensor, access: Access, argument: Argument| {
        arguments.push(argument);
        Ok::<_, Refusal>(Place {
            param: param(b, r.target, name, t, access),
            dtype: t.ty.dtype,
            stride: row_stride(t)?,
        })
    };
    let x = place(&mut b, "x", p.x, Access::Read, Argument::Operand(0))?;
    let residual = p.residual.map(|t| place(&mut b, "residual", t, Access::Read, Argument::Operand(1))).transpose()?;
    let norm = match p.norm {
        None => None,
        Some((w, eps)) => {
            let w = place(&mut b, "w", w, Access::Read, Argument::Operand(r.operands.len() - 1))?;
            let t = &r.results[p.normed];
            // Codes may be all that is read of it.
            let wanted = p.codes.is_none() || !t.is_unread;
            let out = wanted.then(|| place(&mut b, "norm", t, Access::Write, Argument::Result(p.normed)));
            Some((w, eps, out.transpose()?))
        }
    };
    let codes = match p.codes {
        None => None,
        Some((format, group)) => {
            let codes = place(&mut b, "codes", &r.results[0], Access::Write, Argument::Result(0))?;
            let scales = place(&mut b, "scales", &r.results[1], Access::Write, Argument::Result(1))?;
            Some((format, group, [codes, scales]))
        }
    };
    let sum = place(&mut b, "sum", &r.results[p.sum], Access::Write, Argument::Result(p.sum))?;

    let gpu = r.target.gpu().is_some();
    let most = channel_programs(r.target, world, d * elem.bytes());
    let width = if gpu { d.next_power_of_two().min(WIDEST) } else { WIDTH };
    // Two vectors of 16 bytes a thread: a program of half as many warps is sooner through its barriers.
    let threads = (width / 16).clamp(64, MOST_THREADS) as u32;
    if gpu {
        b.threads(threads);
    }
    let dealt = programs(&mut b, r, &rows, most);
    let channel = Channel::new(world, dealt.rows, d * elem.bytes(), negative_zero(dtype));
    let first = b.program_id(0);
    let mail = Mailbox::open(&mut b, r.target, (channel, elem), threads, first, &mut arguments);
    let walk = Walk::of(d, width, gpu.then_some(1), None, first);
    let start = b.int(0);
    // Weights are read first where the row is one piece: they need not wait for the launch before.
    let mut weights = None;
    if let (true, Some((w, ..))) = (walk.is_single(), norm) {
        walk.each(&mut b, &[], |b, piece, _| {
            weights = Some(piece.load_shared(b, w.param, start, w.dtype));
            Vec::new()
        });
    }
    let mut refused = Ok(());
    mail.each_row(&mut b, &rows, (first, dealt.step), |b, row, turn| {
        let (mut own, mut addend) = (None, None);
        walk.each(b, &[], |b, piece, _| {
            let v = clean(b, piece, x, row);
            let sent = b.convert(Conversion::Float, v, elem);
            if walk.is_single() {
                own = Some(v);
                addend = residual.map(|t| t.load(b, piece, row));
            }
            mail.push(b, turn, piece, None, |_, _| sent);
            mail.empty(b, turn, piece, None);
            Vec::new()
        });
        let nothing = walk.per_row(b, 0.0);
        let mut kept = None;
        let squares = walk.each(b, &[nothing], |b, piece, carried| {
            let own = own.unwrap_or_else(|| clean(b, piece, x, row));
            let mut total = None;
            mail.gather(b, turn, (piece, None), own, Builder::to_f32, |b, _, v| {
                total = Some(total.map_or(v, |t| b.add(t, v)));
            });
            let mut total = total.unwrap_or(own);
            if let Some(t) = residual {
                let other = addend.unwrap_or_else(|| t.load(b, piece, row));
                total = b.add(total, other);
            }
            sum.store(b, piece, row, total);
            // The norm is of the sum as stored, rounded once.
            let total = rounded(b, sum.dtype, total);
            kept = Some(total);
            if norm.is_none() {
                return carried.to_vec();
            }
            let squared = b.mul(total, total);
            let s = walk.reduce(b, Reduction::Sum, squared);
            vec![b.add(carried[0], s)]
        })[0];
        let Some((w, eps, out)) = norm else { return };
        let kept = kept.filter(|_| walk.is_single());
        let count = b.float(d as f64);
        let mean = b.div(squares, count);
        let eps = b.float(eps);
        let mean = b.add(mean, eps);
        let root = b.sqrt(mean);
        let one = b.float(1.0);
        let scale = b.div(one, root);
        let normed = |b: &mut Builder, piece: &Piece| {
            let v = kept.unwrap_or_else(|| sum.load(b, piece, row));
            let w = weights.unwrap_or_else(|| piece.load_shared(b, w.param, start, w.dtype));
            let v = b.mul(v, scale);
            b.mul(v, w)
        };
        if let Some(out) = out {
            walk.each(b, &[], |b, piece, _| {
                let v = normed(b, piece);
                out.store(b, piece, row, v);
                Vec::new()
            });
        }
        if let Some((format, group, places)) = codes {
            let bases = places.map(|p| b.scale(row, p.stride));
            let (params, strides) = (places.map(|p| p.param), places.map(|p| p.stride));
            let sink = Sink { n: d, group, dtype: format, params, bases, strides };
            if let Err(e) = sink.store(b, &walk, normed) {
                refused = Err(e);
            }
        }
    });
    refused?;
    let summary = format!("{} of {d} {dtype} over {world} ranks, one stage", r.op.kind());
    Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
}

/// A piece of this rank's x as f32, without negative zeros.
fn clean(b: &mut Builder, piece: &Piece, x: Place, row: V) -> V {
    let v = x.load(b, piece, row);
    let zero = b.float(0.0);
    b.add(v, zero)
}
