//! Root-mean-square norms, with or without a residual added first, f32 inside. One program a row, or on GPUs several short ones;
//! there a row that fits in registers is read once. A norm may be quantised where it is made.

use super::pointwise::{coordinates, row_base};
use super::quantise::{Sink, format};
use super::row::rounded;
use super::schedule::{Piece, Walk, param};
use crate::family::{Addressing, Family, Sharing, Strides};
use crate::request::{Argument, Built, Request, RowSpace, Tensor, contiguous_last, last_dim, require, row_stride};
use crate::tile::{Access, Builder, Param, Reduction, V};
use weldment_ir::{DType, Op, OpKind, Real};
use weldment_passes::target::Refusal;

/// Widest tile of a row on a host; q8a blocks are exactly this wide.
const WIDTH: u64 = 32;

/// Operands and results of an op of the family, by what they are.
struct Parts<'r> {
    residual: Option<&'r Tensor>,
    weight: &'r Tensor,
    eps: Real,
    /// The norm's place among the results.
    norm: usize,
    /// The sum's, where there is a residual.
    sum: Option<usize>,
    /// dtype and group of codes, which are the first result, with their scales as the second.
    codes: Option<(DType, u64)>,
}

impl<'r> Parts<'r> {
    fn of(r: &'r Request<'_>) -> Parts<'r> {
        let weight = &r.operands[r.operands.len() - 1];
        let plain = Parts { residual: None, weight, eps: Real(0.0), norm: 0, sum: None, codes: None };
        let residual = r.operands.get(1);
        match r.op {
            Op::AddRmsNorm { eps, .. } => Parts { residual, eps: *eps, sum: Some(1), ..plain },
            Op::RmsNorm { eps, .. } => Parts { eps: *eps, ..plain },
            Op::RmsNormQuantise { eps, format, group, .. } => {
                Parts { eps: *eps, norm: 2, codes: Some((*format, group.unsigned_abs())), ..plain }
            }
            Op::AddRmsNormQuantise { eps, format, group, .. } => {
                let codes = Some((*format, group.unsigned_abs()));
                Parts { residual, eps: *eps, norm: 2, sum: Some(3), codes, ..plain }
            }
            _ => plain,
        }
    }
}

/// Norms of rows, added to and quantised.
pub struct Norm;

impl Family for Norm {
    fn runs(&self, kind: OpKind) -> bool {
        matches!(kind, OpKind::RmsNorm | OpKind::AddRmsNorm | OpKind::RmsNormQuantise | OpKind::AddRmsNormQuantise)
    }

    fn addressing(&self, kind: OpKind) -> Addressing {
        match kind {
            OpKind::RmsNorm | OpKind::AddRmsNorm => {
                Addressing { operands: &[Strides::Contiguous], results: Strides::Contiguous, shares: Sharing::Rows }
            }
            // Codes lie in another order than what they are made of.
            _ => Addressing { operands: &[Strides::Contiguous], results: Strides::Contiguous, shares: Sharing::Never },
        }
    }

    /// Preconditions of the family.
    fn check(&self, r: &Request<'_>) -> Result<(), Refusal> {
        let x = &r.operands[0];
        let d = last_dim(x)?;
        let parts = Parts::of(r);
        for t in std::iter::once(x).chain(parts.residual).chain(&r.results).chain(std::iter::once(parts.weight)) {
            contiguous_last(t)?;
        }
        require(x.ty.dtype.is_compute_float(), "activation dtype", x.ty.dtype, "f32, f16 or bf16")?;
        let out = r.results[parts.norm].ty.dtype;
        require(out != DType::Q8A || d.is_multiple_of(WIDTH), "hidden size for q8a", d, "a multiple of 32")?;
        if let Some((format, group)) = parts.codes {
            Sink::check(r.target(), d, group, format)?;
        }
        RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
        Ok(())
    }

    fn build(&self, r: &Request<'_>) -> Result<Built, Refusal> {
        self.check(r)?;
        let x = &r.operands[0];
        let d = last_dim(x)?;
        let parts = Parts::of(r);
        let rows = RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
        let mut b = Builder::new("norm");
        let mut arguments = vec![Argument::Operand(0)];
        let x_param = param(&mut b, r.target(), "x", x, Access::Read);
        let residual = parts.residual.map(|t| {
            arguments.push(Argument::Operand(1));
            (param(&mut b, r.target(), "residual", t, Access::Read), t)
        });
        let w_param = param(&mut b, r.target(), "w", parts.weight, Access::Read);
        arguments.push(Argument::Operand(r.operands.len() - 1));
        let mut result = |b: &mut Builder, name: &str, i: usize| {
            arguments.push(Argument::Result(i));
            (param(b, r.target(), name, &r.results[i], Access::Write), &r.results[i])
        };
        let read = |i: usize| !r.results[i].is_unread || parts.codes.is_none();
        // Codes and their scales are made together, whichever is read.
        let coded = parts.codes.is_some() && (read(0) || read(1));
        let codes = coded.then(|| (result(&mut b, "codes", 0), result(&mut b, "scales", 1)));
        let norm = read(parts.norm).then(|| result(&mut b, "norm", parts.norm));
        let sum = parts.sum.filter(|i| read(*i)).map(|i| result(&mut b, "sum", i));
        // Heads of a joined projection lie at two strides, one from token to token and one from head to head.
        let folds = std::iter::once(x).chain(parts.residual).chain(&r.results).all(|t| row_stride(t).is_ok());
        let start_walk = if folds { Walk::new } else { Walk::single_rows };
        let walk = start_walk(&mut b, r.target(), &rows, d, WIDTH);
        let lead = &x.ty.shape[..x.ty.rank() - 1];
        let index = if folds { Vec::new() } else { coordinates(&mut b, walk.first, lead) };
        let mut place = |(param, t): (Param, &Tensor)| -> Result<Place, Refusal> {
            if !folds {
                let strides: Vec<i64> = (0..lead.len()).map(|i| t.byte_stride(i)).collect();
                return Ok(Place { param, base: row_base(&mut b, &index, &strides), dtype: t.ty.dtype, stride: 0 });
            }
            let stride = row_stride(t)?;
            Ok(Place { param, base: b.scale(walk.first, stride), dtype: t.ty.dtype, stride })
        };
        let x = place((x_param, x))?;
        let norm = norm.map(&mut place).transpose()?;
        let residual = residual.map(&mut place).transpose()?;
        let sum = sum.map(&mut place).transpose()?;
        let codes = codes.map(|(codes, scales)| Ok([place(codes)?, place(scales)?])).transpose()?;
        let nothing = walk.per_row(&mut b, 0.0);
        let start = b.int(0);
        let weight_dtype = parts.weight.ty.dtype;
        // The norm is of the sum as stored, rounded once.
        let added = |b: &mut Builder, piece: &Piece| {
            let v = x.load(b, piece);
            let Some(residual) = residual else { return v };
            let other = residual.load(b, piece);
            b.add(v, other)
        };
        let kept_dtype = residual.map_or(DType::F32, |r| r.dtype);
        let (mut kept, mut weights) = (None, None);
        let squares = walk.each(&mut b, &[nothing], |b, piece, carried| {
            // Weights are read first where the row is one piece: they need not wait for the launch before.
            weights = walk.is_single().then(|| piece.load_shared(b, w_param, start, weight_dtype));
            let mut v = added(b, piece);
            if let Some(sum) = sum {
                sum.store(b, piece, v);
            }
            if residual.is_some() {
                v = rounded(b, kept_dtype, v);
            }
            kept = Some(v);
            let squared = b.mul(v, v);
            let s = walk.reduce(b, Reduction::Sum, squared);
            vec![b.add(carried[0], s)]
        })[0];
        let kept = kept.filter(|_| walk.is_single());
        let count = b.float(d as f64);
        let mean = b.div(squares, count);
        let eps = b.float(parts.eps.0);
        let mean = b.add(mean, eps);
        let root = b.sqrt(mean);
        let one = b.float(1.0);
        let scale = b.div(one, root);
        let normed = |b: &mut Builder, piece: &Piece| {
            let v = kept.unwrap_or_else(|| match (sum, residual) {
                (Some(sum), _) => sum.load(b, piece),
                (None, None) => x.load(b, piece),
                (None, Some(_)) => {
                    let v = added(b, piece);
                    rounded(b, kept_dtype, v)
                }
            });
            let w = weights.unwrap_or_else(|| piece.load_shared(b, w_param, start, weight_dtype));
            let v = b.mul(v, scale);
            b.mul(v, w)
        };
        if let Some(norm) = norm {
            walk.each(&mut b, &[], |b, piece, _| {
                let v = normed(b, piece);
                norm.store(b, piece, v);
                Vec::new()
            });
        }
        if let (Some([codes, scales]), Some((dtype, group))) = (codes, parts.codes) {
            let sink = Sink {
                n: d,
                group,
                dtype,
                format: format(dtype)?,
                params: [codes.param, scales.param],
                bases: [codes.base, scales.base],
                strides: [codes.stride, scales.stride],
            };
            sink.store(&mut b, &walk, normed);
        }
        let made = parts.codes.map_or(String::new(), |(format, group)| format!(", {format} in {group}s"));
        let out = r.results[parts.norm].ty.dtype;
        let summary = format!("{} of {d} {} -> {out}{made}", r.op.kind(), r.operands[0].ty.dtype);
        Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
    }
}

/// A tensor as a program goes through it: the program's first row, and bytes from row to row.
#[derive(Clone, Copy)]
struct Place {
    param: Param,
    base: V,
    dtype: DType,
    stride: i64,
}

impl Place {
    fn load(&self, b: &mut Builder, piece: &Piece) -> V {
        piece.load(b, self.param, self.base, self.dtype, self.stride)
    }

    fn store(&self, b: &mut Builder, piece: &Piece, v: V) {
        piece.store(b, self.param, self.base, self.dtype, self.stride, v);
    }
}
