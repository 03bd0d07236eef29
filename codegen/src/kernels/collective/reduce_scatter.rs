//! Reduce-scatter along the last dim: every rank pushes to each other that one's columns, and sums what arrives in f32 in the
//! order of ranks, rounded once.

use super::columns::Columns;
use super::{check_rows, negative_zero, packs, world};
use crate::kernels::row::elem_of;
use crate::kernels::schedule::{Piece, param};
use crate::kernels::{Argument, Built, Request, RowSpace, require, row_stride};
use crate::tile::{Access, Builder, Conversion, Elem, V};
use weldment_ir::Op;
use weldment_passes::target::Refusal;

/// Preconditions of the family.
///
/// # Errors
/// The first that fails.
pub fn check(r: &Request<'_>) -> Result<(), Refusal> {
    let (x, out) = (&r.operands[0], &r.results[0]);
    world(r)?;
    let axis = if let Op::ReduceScatter { axis, .. } = r.op { *axis } else { -1 };
    require(axis + 1 == x.ty.rank() as i64, "axis", axis, "the last")?;
    packs(out)?;
    require(x.ty.dtype.is_compute_float(), "activation dtype", x.ty.dtype, "f32, f16 or bf16")?;
    check_rows([x, out])
}

/// The kernel of a request that passed [`check`].
///
/// # Errors
/// As [`check`].
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    check(r)?;
    let (x, out) = (&r.operands[0], &r.results[0]);
    let (n, world) = (packs(out)?, world(r)?);
    let (dtype, elem) = (x.ty.dtype, elem_of(x.ty.dtype).unwrap_or(Elem::F32));
    let rows = RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
    let mut b = Builder::new("reduce_scatter");
    let mut arguments = vec![Argument::Operand(0), Argument::Result(0)];
    let x_param = param(&mut b, r.target, "x", x, Access::Read);
    let out_param = param(&mut b, r.target, "out", out, Access::Write);
    let columns = Columns::new(&mut b, r, world, &rows, (n, elem), negative_zero(dtype));
    let (x_stride, out_stride) = (row_stride(x)?, row_stride(out)?);
    // A piece of the columns of rank `of`, without negative zeros.
    let part = |b: &mut Builder, row: V, piece: &Piece, of: V| -> V {
        let base = b.scale(row, x_stride);
        let start = b.scale(of, n as i64 * elem.bytes() as i64);
        let base = b.add(base, start);
        let v = piece.load(b, x_param, base, dtype, x_stride);
        let zero = b.float(0.0);
        b.add(v, zero)
    };
    columns.exchange(
        &mut b,
        r,
        &rows,
        &mut arguments,
        |b, exchange, row, piece| {
            exchange.push(b, piece, |b, peer| {
                let v = part(b, row, piece, peer);
                b.convert(Conversion::Float, v, elem)
            });
        },
        |b, exchange, row, piece| {
            let own = part(b, row, piece, exchange.mail.peers.rank);
            let mut total = None;
            exchange.gather(b, piece, own, Builder::to_f32, |b, _, v| {
                total = Some(total.map_or(v, |t| b.add(t, v)));
            });
            let base = b.scale(row, out_stride);
            piece.store(b, out_param, base, dtype, out_stride, total.unwrap_or(own));
        },
    );
    let summary = format!("reduce_scatter of {world} x {n} {dtype}");
    Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
}
