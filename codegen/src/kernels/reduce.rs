//! Reductions along one axis and softmax along the last.

use super::row::elem_of;
use super::schedule::{Piece, Walk, param};
use crate::family::{Addressing, Family, Sharing, Strides};
use crate::request::{Argument, Built, Request, RowSpace, contiguous_last, last_dim, refuse, require, row_stride};
use crate::tile::{Access, Builder, Reduction, V};
use weldment_ir::{Op, OpKind};
use weldment_passes::target::Refusal;

/// Reductions of rows.
pub struct Reduce;

impl Family for Reduce {
    fn runs(&self, kind: OpKind) -> bool {
        matches!(kind, OpKind::ReduceSum | OpKind::ReduceMean | OpKind::ReduceMax | OpKind::Softmax)
    }

    fn addressing(&self, _: OpKind) -> Addressing {
        Addressing { operands: &[Strides::Rows], results: Strides::Rows, shares: Sharing::Never }
    }

    /// Preconditions of the family.
    fn check(&self, r: &Request<'_>) -> Result<(), Refusal> {
        let (x, out) = (&r.operands[0], &r.results[0]);
        last_dim(x)?;
        contiguous_last(x)?;
        contiguous_last(out)?;
        require(elem_of(x.ty.dtype).is_some_and(|e| e.is_float()), "operand dtype", x.ty.dtype, "f32, f16 or bf16")?;
        if let Op::ReduceSum { axis } | Op::ReduceMean { axis } | Op::ReduceMax { axis } = r.op {
            require(*axis as usize + 1 == x.ty.rank(), "axis", axis, format!("the last, {}", x.ty.rank() - 1))?;
        }
        row_stride(x)?;
        row_stride(out)?;
        RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
        Ok(())
    }

    fn build(&self, r: &Request<'_>) -> Result<Built, Refusal> {
        self.check(r)?;
        let (x, out) = (&r.operands[0], &r.results[0]);
        let n = last_dim(x)?;
        let dtype = x.ty.dtype;
        let mut b = Builder::new("reduce");
        let x_param = param(&mut b, r.target(), "x", x, Access::Read);
        let out_param = param(&mut b, r.target(), "out", out, Access::Write);
        let walk = Walk::new(&mut b, r.target(), &RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?, n, 32);
        let (x_stride, out_stride) = (row_stride(x)?, row_stride(out)?);
        let base = b.scale(walk.first, x_stride);
        let out_base = b.scale(walk.first, out_stride);
        let load = |b: &mut Builder, piece: &Piece| piece.load(b, x_param, base, dtype, x_stride);
        match r.op {
            Op::ReduceSum { .. } | Op::ReduceMean { .. } | Op::ReduceMax { .. } => {
                let op = if let Op::ReduceMax { .. } = r.op { Reduction::Max } else { Reduction::Sum };
                let mut total = reduce_rows(&mut b, &walk, op, load);
                if let Op::ReduceMean { .. } = r.op {
                    let count = b.float(n as f64);
                    total = b.div(total, count);
                }
                walk.store_per_row(&mut b, out_param, out_base, out.ty.dtype, out_stride, total);
            }
            Op::Softmax {} => {
                let mut kept = None;
                let top = reduce_rows(&mut b, &walk, Reduction::Max, |b, piece| {
                    let v = load(b, piece);
                    kept = Some(v);
                    v
                });
                let weight = |b: &mut Builder, v: V| {
                    let v = b.sub(v, top);
                    b.exp(v)
                };
                // A row in registers is read and raised once.
                let kept = kept.filter(|_| walk.is_single()).map(|v| weight(&mut b, v));
                let tile = |b: &mut Builder, piece: &Piece| {
                    kept.unwrap_or_else(|| {
                        let v = load(b, piece);
                        weight(b, v)
                    })
                };
                let total = reduce_rows(&mut b, &walk, Reduction::Sum, tile);
                walk.each(&mut b, &[], |b, piece, _| {
                    let v = tile(b, piece);
                    let v = b.div(v, total);
                    piece.store(b, out_param, out_base, out.ty.dtype, out_stride, v);
                    Vec::new()
                });
            }
            other => return refuse("op", other.kind(), "a reduction or softmax"),
        }
        let summary = format!("{} of {n} {dtype}", r.op.kind());
        Ok(Built {
            kernel: b.finish(String::new()),
            arguments: vec![Argument::Operand(0), Argument::Result(0)],
            summary,
            then: None,
        })
    }
}

/// Reduces rows of x, as `tile` gives them, to one value each. The reduction's neutral value fills masked places.
fn reduce_rows(b: &mut Builder, walk: &Walk, op: Reduction, mut tile: impl FnMut(&mut Builder, &Piece) -> V) -> V {
    let neutral = if op == Reduction::Sum { 0.0 } else { f64::NEG_INFINITY };
    let first = walk.per_row(b, neutral);
    walk.each(b, &[first], |b, piece, carried| {
        let v = tile(b, piece);
        let v = piece.or(b, v, neutral);
        let v = walk.reduce(b, op, v);
        vec![if op == Reduction::Sum { b.add(carried[0], v) } else { b.max(carried[0], v) }]
    })[0]
}
