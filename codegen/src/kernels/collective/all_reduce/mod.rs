//! All-reduce, alone or with the residual sum and the root-mean-square norm that follow. Partial sums are added in f32 in the
//! order of ranks, then the residual; the sum is rounded once, and the norm reads the rounded sum; it may be quantised where it is made.
//! Negative zeros count as zeros.
//! Both forms compute the same bits, so ranks agree whatever each sums.

pub mod form;
mod one_stage;
mod two_stage;

use super::{check_rows, elements, in_rows, row_at, whole_packs, world};
use crate::family::{Addressing, Family, Sharing, Strides};
use crate::kernels::minifloat::MiniFloat;
use crate::kernels::quantise::{Sink, format};
use crate::kernels::row::elem_of;
use crate::kernels::schedule::{Piece, Walk, param};
use crate::request::{Argument, Built, Request, RowSpace, Tensor, require};
use crate::tile::{Access, Builder, Conversion, Elem, Param, Reduction, V};
use form::Stages;
use weldment_ir::{DType, Op, OpKind};
use weldment_passes::target::Refusal;

/// Widest tile of a row on a host; q8a blocks are exactly this wide.
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

/// Sums over ranks, with the norm that follows.
pub struct AllReduce;

impl Family for AllReduce {
    fn runs(&self, kind: OpKind) -> bool {
        matches!(
            kind,
            OpKind::AllReduce
                | OpKind::AllReduceRmsNorm
                | OpKind::AllReduceAddRmsNorm
                | OpKind::AllReduceRmsNormQuantise
                | OpKind::AllReduceAddRmsNormQuantise
        )
    }

    fn addressing(&self, kind: OpKind) -> Addressing {
        match kind {
            // Codes lie in another order than what they are made of.
            OpKind::AllReduceRmsNormQuantise | OpKind::AllReduceAddRmsNormQuantise => {
                Addressing { operands: &[Strides::Rows], results: Strides::Rows, shares: Sharing::Never }
            }
            _ => Addressing { operands: &[Strides::Rows], results: Strides::Rows, shares: Sharing::Rows },
        }
    }

    /// What a rule asks before it fuses: what [`build`] asks, and whole packs, without which nothing is gained.
    fn check(&self, r: &Request<'_>) -> Result<(), Refusal> {
        let p = parts(r);
        match form::fixed(&r.choices) {
            Some(Stages::Unfused | Stages::Library) if p.norm.is_some() => {
                require(false, "all_reduce", "0 or 3", "1 or 2: --set all_reduce=0 or 3 keeps norms apart")?;
            }
            _ if p.norm.is_some() => whole_packs(p.x)?,
            _ => {}
        }
        admit(&rowed(r))
    }

    fn build(&self, r: &Request<'_>) -> Result<Built, Refusal> {
        let r = &rowed(r);
        admit(r)?;
        let x = parts(r).x;
        let (d, world) = (elements(x)?, world(r)?);
        let rows = RowSpace::every(&x.ty.shape[..x.ty.rank() - 1]);
        let tokens = if rows.symbol.is_some() { rows.mul.saturating_mul(r.max_tokens) } else { rows.mul };
        let bytes = (d * x.ty.dtype.block_bytes() as u64).saturating_mul(tokens);
        match form::choose(r.setup, world, d, bytes) {
            Stages::Two => two_stage::build(r),
            _ => one_stage::build(r),
        }
    }
}

/// The request by rows: where there is no norm any tensor is as good as rows of one element.
fn rowed<'r>(r: &Request<'r>) -> Request<'r> {
    let mut r = r.clone();
    if !matches!(r.op, Op::AllReduce { .. }) {
        return r;
    }
    let both = || r.operands.iter().chain(&r.results);
    let rows: Vec<Tensor> = both().map(in_rows).collect();
    let alike = rows.iter().all(|t| t.ty.rank() == rows[0].ty.rank());
    let tensors: Vec<Tensor> = if alike { rows } else { both().map(Tensor::points).collect() };
    if let [x, sum] = &tensors[..] {
        (r.operands[0], r.results[0]) = (x.clone(), sum.clone());
    }
    r
}

/// Preconditions of the family.
fn admit(r: &Request<'_>) -> Result<(), Refusal> {
    let p = parts(r);
    let world = world(r)?;
    let d = elements(p.x)?;
    require(p.x.ty.dtype.is_compute_float(), "activation dtype", p.x.ty.dtype, "f32, f16 or bf16")?;
    check_rows(std::iter::once(p.x).chain(p.residual).chain(&r.results))?;
    if let Some((weight, _)) = p.norm {
        check_rows([weight])?;
        require(weight.ty.dtype.is_compute_float(), "weight dtype", weight.ty.dtype, "f32, f16 or bf16")?;
        let out = r.results[p.normed].ty.dtype;
        let blocks = out == DType::Q8A && d.is_multiple_of(WIDTH);
        require(out.is_compute_float() || blocks, "norm dtype", out, "f32, f16, bf16, or q8a for multiples of 32")?;
    }
    if let Some((format, group)) = p.codes {
        Sink::check(r.target(), d, group, format)?;
    }
    let sum = r.results[p.sum].ty.dtype;
    for t in p.residual.into_iter().chain([&r.results[p.sum]]) {
        require(t.ty.dtype.is_compute_float(), "residual dtype", t.ty.dtype, "f32, f16 or bf16")?;
    }
    let addend = p.residual.map_or(p.x.ty.dtype, |t| t.ty.dtype);
    require(sum == addend, "sum dtype", sum, format!("{addend}, to which the sum is rounded"))?;
    if form::fixed(&r.choices) == Some(Stages::Two) { form::check_two(d, world) } else { Ok(()) }
}

/// A tensor, its parameter and dtype. A program has a row at a time, so that no stride from row to row matters.
#[derive(Clone, Copy)]
struct Place<'r> {
    param: Param,
    dtype: DType,
    tensor: &'r Tensor,
}

impl Place<'_> {
    fn load(self, b: &mut Builder, piece: &Piece, row: V) -> V {
        let base = row_at(b, self.tensor, row);
        piece.load(b, self.param, base, self.dtype, 0)
    }

    fn store(self, b: &mut Builder, piece: &Piece, row: V, v: V) {
        let base = row_at(b, self.tensor, row);
        piece.store(b, self.param, base, self.dtype, 0, v);
    }

    /// The piece of `n` columns of rank `of`.
    fn load_part(self, b: &mut Builder, piece: &Piece, row: V, (of, n): (V, u64)) -> V {
        let base = row_at(b, self.tensor, row);
        let start = b.scale(of, crate::request::bytes_of(self.dtype, n));
        let base = b.add(base, start);
        piece.load(b, self.param, base, self.dtype, 0)
    }
}

/// Without negative zeros.
fn clean(b: &mut Builder, v: V) -> V {
    let zero = b.float(0.0);
    b.add(v, zero)
}

/// The tensors of a kernel.
struct Tensors<'r> {
    x: Place<'r>,
    residual: Option<Place<'r>>,
    norm: Option<Norm<'r>>,
    sum: Place<'r>,
    d: u64,
}

/// The norm that follows a sum.
#[derive(Clone, Copy)]
struct Norm<'r> {
    weight: Place<'r>,
    eps: f64,
    /// Where it goes, unless its codes are all that is read.
    out: Option<Place<'r>>,
    codes: Option<Codes<'r>>,
}

/// Codes of a norm and their scales.
#[derive(Clone, Copy)]
struct Codes<'r> {
    dtype: DType,
    format: MiniFloat,
    group: u64,
    places: [Place<'r>; 2],
}

/// Declares the parameters of a request's tensors.
fn tensors<'r>(b: &mut Builder, r: &'r Request<'_>, arguments: &mut Vec<Argument>) -> Result<Tensors<'r>, Refusal> {
    let p = parts(r);
    let mut place = |b: &mut Builder, name: &str, tensor: &'r Tensor, access: Access, argument: Argument| {
        arguments.push(argument);
        Place { param: param(b, r.target(), name, tensor, access), dtype: tensor.ty.dtype, tensor }
    };
    let x = place(b, "x", p.x, Access::Read, Argument::Operand(0));
    let residual = p.residual.map(|t| place(b, "residual", t, Access::Read, Argument::Operand(1)));
    let norm = match p.norm {
        None => None,
        Some((w, eps)) => {
            let weight = place(b, "w", w, Access::Read, Argument::Operand(r.operands.len() - 1));
            let t = &r.results[p.normed];
            let wanted = p.codes.is_none() || !t.is_unread;
            let out = wanted.then(|| place(b, "norm", t, Access::Write, Argument::Result(p.normed)));
            let codes = match p.codes {
                None => None,
                Some((dtype, group)) => {
                    let codes = place(b, "codes", &r.results[0], Access::Write, Argument::Result(0));
                    let scales = place(b, "scales", &r.results[1], Access::Write, Argument::Result(1));
                    Some(Codes { dtype, format: format(dtype)?, group, places: [codes, scales] })
                }
            };
            Some(Norm { weight, eps, out, codes })
        }
    };
    let sum = place(b, "sum", &r.results[p.sum], Access::Write, Argument::Result(p.sum));
    Ok(Tensors { x, residual, norm, sum, d: elements(p.x)? })
}

/// Width of the pieces of a row of `d`, and threads of a program. Two vectors of 16 bytes a thread: a program of half as many warps
/// is sooner through its barriers.
fn width(r: &Request<'_>, d: u64) -> (u64, u32) {
    let width = if r.target().gpu().is_some() { d.next_power_of_two().min(WIDEST) } else { WIDTH };
    (width, (width / 16).clamp(64, MOST_THREADS) as u32)
}

impl Tensors<'_> {
    /// The norm's weights, where a row is one piece: they need not wait for the launch before.
    fn early_weights(&self, b: &mut Builder, walk: &Walk) -> Option<V> {
        let norm = self.norm.filter(|_| walk.is_single())?;
        let mut weights = None;
        let start = b.int(0);
        walk.each(b, &[], |b, piece, _| {
            weights = Some(piece.load_shared(b, norm.weight.param, start, norm.weight.dtype));
            Vec::new()
        });
        weights
    }

    /// Stores a row's sums, which `total` gives by piece in f32 or rounded already, and its norm.
    fn finish(
        &self,
        b: &mut Builder,
        walk: &Walk,
        row: V,
        weights: Option<V>,
        mut total: impl FnMut(&mut Builder, &Piece) -> V,
    ) {
        let (nothing, elem) = (walk.per_row(b, 0.0), elem_of(self.sum.dtype).unwrap_or(Elem::F32));
        let mut kept = None;
        let squares = walk.each(b, &[nothing], |b, piece, carried| {
            let total = total(b, piece);
            let stored = b.convert(Conversion::Float, total, elem);
            self.sum.store(b, piece, row, stored);
            // The norm is of the sum as stored, rounded once.
            let total = b.to_f32(stored);
            kept = Some(total);
            if self.norm.is_none() {
                return carried.to_vec();
            }
            let squared = b.mul(total, total);
            let s = walk.reduce(b, Reduction::Sum, squared);
            vec![b.add(carried[0], s)]
        })[0];
        let Some(Norm { weight, eps, out, codes }) = self.norm else { return };
        let kept = kept.filter(|_| walk.is_single());
        let count = b.float(self.d as f64);
        let mean = b.div(squares, count);
        let eps = b.float(eps);
        let mean = b.add(mean, eps);
        let root = b.sqrt(mean);
        let one = b.float(1.0);
        let scale = b.div(one, root);
        let start = b.int(0);
        let normed = |b: &mut Builder, piece: &Piece| {
            let v = kept.unwrap_or_else(|| self.sum.load(b, piece, row));
            let w = weights.unwrap_or_else(|| piece.load_shared(b, weight.param, start, weight.dtype));
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
        if let Some(Codes { dtype, format, group, places }) = codes {
            let (bases, params) = (places.map(|p| row_at(b, p.tensor, row)), places.map(|p| p.param));
            Sink { n: self.d, group, dtype, format, params, bases, strides: [0, 0] }.store(b, walk, normed);
        }
    }
}
