//! Reductions along one axis and softmax along the last.

use super::row::{elem_of, for_row, load_f32, store_f32};
use super::{Argument, Built, Request, RowSpace, contiguous_last, last_dim, refuse, require, row_stride};
use crate::tile::{Access, Builder, Reduction, V};
use weldment_ir::Op;
use weldment_passes::target::Refusal;

/// Preconditions of the family.
///
/// # Errors
/// The first that fails.
pub fn check(r: &Request<'_>) -> Result<(), Refusal> {
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

/// Reduces a row of x, after `map`, to a scalar.
fn reduce_row(b: &mut Builder, n: u64, op: Reduction, first: V, mut tile: impl FnMut(&mut Builder, V, u32) -> V) -> V {
    for_row(b, n, 32, &[first], |b, i, width, carried| {
        let v = tile(b, i, width);
        let v = b.reduce(op, v, 0);
        let v = b.reshape(v, &[]);
        vec![if op == Reduction::Sum { b.add(carried[0], v) } else { b.max(carried[0], v) }]
    })[0]
}

/// The kernel of a request that passed [`check`].
///
/// # Errors
/// As [`check`].
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    check(r)?;
    let (x, out) = (&r.operands[0], &r.results[0]);
    let n = last_dim(x)?;
    let dtype = x.ty.dtype;
    let mut b = Builder::new("reduce");
    let (x_param, out_param) = (b.param("x", Access::Read), b.param("out", Access::Write));
    RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?.grid(&mut b, 0, 1);
    let row = b.program_id(0);
    let base = b.scale(row, row_stride(x)?);
    let out_base = b.scale(row, row_stride(out)?);
    let load = |b: &mut Builder, i: V, width: u32| {
        let at = b.scale(i, dtype.block_bytes() as i64);
        let at = b.add(base, at);
        load_f32(b, x_param, at, dtype, width)
    };
    let (zero, lowest) = (b.float(0.0), b.float(f64::NEG_INFINITY));
    match r.op {
        Op::ReduceSum { .. } | Op::ReduceMean { .. } => {
            let mut total = reduce_row(&mut b, n, Reduction::Sum, zero, load);
            if let Op::ReduceMean { .. } = r.op {
                let count = b.float(n as f64);
                total = b.div(total, count);
            }
            store_f32(&mut b, out_param, out_base, out.ty.dtype, total);
        }
        Op::ReduceMax { .. } => {
            let top = reduce_row(&mut b, n, Reduction::Max, lowest, load);
            store_f32(&mut b, out_param, out_base, out.ty.dtype, top);
        }
        Op::Softmax {} => {
            let top = reduce_row(&mut b, n, Reduction::Max, lowest, load);
            let weight = |b: &mut Builder, i: V, width: u32| {
                let v = load(b, i, width);
                let v = b.sub(v, top);
                b.exp(v)
            };
            let total = reduce_row(&mut b, n, Reduction::Sum, zero, weight);
            for_row(&mut b, n, 32, &[], |b, i, width, _| {
                let v = weight(b, i, width);
                let v = b.div(v, total);
                let at = b.scale(i, out.ty.dtype.block_bytes() as i64);
                let at = b.add(out_base, at);
                store_f32(b, out_param, at, out.ty.dtype, v);
                Vec::new()
            });
        }
        other => return refuse("op", other.kind(), "a reduction or softmax"),
    }
    let summary = format!("{} of {n} {dtype}", r.op.kind());
    Ok(Built { kernel: b.finish(String::new()), arguments: vec![Argument::Operand(0), Argument::Result(0)], summary })
}
