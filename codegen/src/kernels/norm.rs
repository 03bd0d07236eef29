//! Root-mean-square norms, with or without a residual added first. One program a row, f32 inside.

use super::row::{element_offset, for_row, load_f32, store_f32};
use super::{Argument, Built, Request, RowSpace, Tensor, contiguous_last, last_dim, require, row_stride};
use crate::tile::{Access, Builder, Reduction, V};
use weldment_ir::{DType, Op, Real};
use weldment_passes::target::Refusal;

/// Widest tile of a row; q8a blocks are exactly this wide.
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
        row_stride(t)?;
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
    let x_param = b.param("x", Access::Read);
    let residual_param = residual.map(|t| {
        arguments.push(Argument::Operand(1));
        (b.param("residual", Access::Read), t)
    });
    let w_param = b.param("w", Access::Read);
    arguments.push(Argument::Operand(r.operands.len() - 1));
    let norm_param = b.param("norm", Access::Write);
    arguments.push(Argument::Result(0));
    let sum_param = residual.map(|_| {
        arguments.push(Argument::Result(1));
        b.param("sum", Access::Write)
    });
    rows.grid(&mut b, 0, 1);

    let row = b.program_id(0);
    let x_row = b.scale(row, row_stride(x)?);
    let sum_row = match sum_param {
        Some(_) => b.scale(row, row_stride(&r.results[1])?),
        None => x_row,
    };
    let residual_row = match residual_param {
        Some((_, t)) => b.scale(row, row_stride(t)?),
        None => x_row,
    };
    let at = |b: &mut Builder, base: V, t: &Tensor, i: V| {
        let offset = element_offset(b, t.ty.dtype, i);
        b.add(base, offset)
    };
    let zero = b.float(0.0);
    let squares = for_row(&mut b, d, WIDTH, &[zero], |b, i, width, carried| {
        let x_at = at(b, x_row, x, i);
        let mut v = load_f32(b, x_param, x_at, x.ty.dtype, width);
        if let (Some((param, t)), Some(out)) = (residual_param, sum_param) {
            let r_at = at(b, residual_row, t, i);
            let other = load_f32(b, param, r_at, t.ty.dtype, width);
            v = b.add(v, other);
            let s_at = at(b, sum_row, &r.results[1], i);
            store_f32(b, out, s_at, r.results[1].ty.dtype, v);
            // The norm is of the sum as stored, rounded once.
            v = load_f32(b, out, s_at, r.results[1].ty.dtype, width);
        }
        let squared = b.mul(v, v);
        let s = b.reduce(Reduction::Sum, squared, 0);
        let s = b.reshape(s, &[]);
        vec![b.add(carried[0], s)]
    })[0];
    let count = b.float(d as f64);
    let mean = b.div(squares, count);
    let eps = b.float(eps.0);
    let mean = b.add(mean, eps);
    let root = b.sqrt(mean);
    let one = b.float(1.0);
    let scale = b.div(one, root);
    let out = &r.results[0];
    let out_row = b.scale(row, row_stride(out)?);
    for_row(&mut b, d, WIDTH, &[], |b, i, width, _| {
        let v = match sum_param {
            Some(param) => {
                let s_at = at(b, sum_row, &r.results[1], i);
                load_f32(b, param, s_at, r.results[1].ty.dtype, width)
            }
            None => {
                let x_at = at(b, x_row, x, i);
                load_f32(b, x_param, x_at, x.ty.dtype, width)
            }
        };
        let w_at = element_offset(b, weight.ty.dtype, i);
        let w = load_f32(b, w_param, w_at, weight.ty.dtype, width);
        let v = b.mul(v, scale);
        let v = b.mul(v, w);
        let o_at = at(b, out_row, out, i);
        store_f32(b, norm_param, o_at, out.ty.dtype, v);
        Vec::new()
    });
    let summary = format!("{} of {d} {} -> {}", r.op.kind(), x.ty.dtype, out.ty.dtype);
    Ok(Built { kernel: b.finish(String::new()), arguments, summary })
}
