//! Root-mean-square norms, with or without a residual added first, f32 inside. One program a row, or on GPUs several short ones;
//! there a row that fits in registers is read once.

use super::pointwise::{coordinates, row_base};
use super::row::rounded;
use super::schedule::{Piece, Walk, param};
use super::{Argument, Built, Request, RowSpace, Tensor, contiguous_last, last_dim, require, row_stride};
use crate::tile::{Access, Builder, Param, Reduction, V};
use weldment_ir::{DType, Op, Real};
use weldment_passes::target::Refusal;

/// Widest tile of a row on a host; q8a blocks are exactly this wide.
const WIDTH: u64 = 32;

fn parts<'r>(r: &'r Request<'_>) -> (Option<&'r Tensor>, &'r Tensor, Real) {
    match r.op {
        Op::AddRmsNorm { eps, .. } => (Some(&r.operands[1]), &r.operands[2], *eps),
        Op::RmsNorm { eps, .. } => (None, &r.operands[1], *eps),
        _ => (None, &r.operands[r.operands.len() - 1], Real(0.0)),
    }
}

/// Preconditions of the family.
///
/// # Errors
/// The first that fails.
pub fn check(r: &Request<'_>) -> Result<(), Refusal> {
    let x = &r.operands[0];
    let d = last_dim(x)?;
    let (residual, weight, _) = parts(r);
    for t in std::iter::once(x).chain(residual).chain(&r.results).chain(std::iter::once(weight)) {
        contiguous_last(t)?;
    }
    require(x.ty.dtype.is_compute_float(), "activation dtype", x.ty.dtype, "f32, f16 or bf16")?;
    let out = r.results[0].ty.dtype;
    require(out != DType::Q8A || d.is_multiple_of(WIDTH), "hidden size for q8a", d, "a multiple of 32")?;
    RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
    Ok(())
}

/// The kernel of a request that passed [`check`].
///
/// # Errors
/// As [`check`].
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    check(r)?;
    let x = &r.operands[0];
    let d = last_dim(x)?;
    let (residual, weight, eps) = parts(r);
    let rows = RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
    let mut b = Builder::new("norm");
    let mut arguments = vec![Argument::Operand(0)];
    let x_param = param(&mut b, r.target, "x", x, Access::Read);
    let residual = residual.map(|t| {
        arguments.push(Argument::Operand(1));
        (param(&mut b, r.target, "residual", t, Access::Read), t)
    });
    let w_param = param(&mut b, r.target, "w", weight, Access::Read);
    arguments.push(Argument::Operand(r.operands.len() - 1));
    let norm_param = param(&mut b, r.target, "norm", &r.results[0], Access::Write);
    arguments.push(Argument::Result(0));
    let sum = residual.map(|_| {
        arguments.push(Argument::Result(1));
        (param(&mut b, r.target, "sum", &r.results[1], Access::Write), &r.results[1])
    });
    // Heads of a joined projection lie at two strides, one from token to token and one from head to head.
    let tensors = [Some(x), residual.map(|(_, t)| t), r.results.first(), r.results.get(1)];
    let folds = tensors.into_iter().flatten().all(|t| row_stride(t).is_ok());
    let start_walk = if folds { Walk::new } else { Walk::single_rows };
    let walk = start_walk(&mut b, r.target, &rows, d, WIDTH);
    let lead = &x.ty.shape[..x.ty.rank() - 1];
    let index = if folds { Vec::new() } else { coordinates(&mut b, walk.first, lead) };

    // A tensor with its parameter, the program's first row and the bytes from row to row.
    let mut place = |param: Param, t: &Tensor| -> Result<(Param, V, DType, i64), Refusal> {
        if !folds {
            let strides: Vec<i64> = (0..lead.len()).map(|i| t.byte_stride(i)).collect();
            return Ok((param, row_base(&mut b, &index, &strides), t.ty.dtype, 0));
        }
        let stride = row_stride(t)?;
        Ok((param, b.scale(walk.first, stride), t.ty.dtype, stride))
    };
    let x = place(x_param, x)?;
    let out = place(norm_param, &r.results[0])?;
    let residual = residual.map(|(p, t)| place(p, t)).transpose()?;
    let sum = sum.map(|(p, t)| place(p, t)).transpose()?;
    let load =
        |b: &mut Builder, piece: &Piece, from: (Param, V, DType, i64)| piece.load(b, from.0, from.1, from.2, from.3);
    let store =
        |b: &mut Builder, piece: &Piece, to: (Param, V, DType, i64), v: V| piece.store(b, to.0, to.1, to.2, to.3, v);
    let nothing = walk.per_row(&mut b, 0.0);
    let start = b.int(0);
    let (mut kept, mut weights) = (None, None);
    let squares = walk.each(&mut b, &[nothing], |b, piece, carried| {
        // Weights are read first where the row is one piece: they need not wait for the launch before.
        weights = walk.is_single().then(|| piece.load_shared(b, w_param, start, weight.ty.dtype));
        let mut v = load(b, piece, x);
        if let (Some(residual), Some(sum)) = (residual, sum) {
            let other = load(b, piece, residual);
            v = b.add(v, other);
            store(b, piece, sum, v);
            // The norm is of the sum as stored, rounded once.
            v = rounded(b, sum.2, v);
        }
        kept = Some(v);
        let squared = b.mul(v, v);
        let s = walk.reduce(b, Reduction::Sum, squared);
        vec![b.add(carried[0], s)]
    })[0];
    let kept = kept.filter(|_| walk.is_single());
    let count = b.float(d as f64);
    let mean = b.div(squares, count);
    let eps = b.float(eps.0);
    let mean = b.add(mean, eps);
    let root = b.sqrt(mean);
    let one = b.float(1.0);
    let scale = b.div(one, root);
    walk.each(&mut b, &[], |b, piece, _| {
        let v = kept.unwrap_or_else(|| load(b, piece, sum.unwrap_or(x)));
        let w = weights.unwrap_or_else(|| piece.load_shared(b, w_param, start, weight.ty.dtype));
        let v = b.mul(v, scale);
        let v = b.mul(v, w);
        store(b, piece, out, v);
        Vec::new()
    });
    let summary = format!("{} of {d} {} -> {}", r.op.kind(), r.operands[0].ty.dtype, r.results[0].ty.dtype);
    Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
}
