//! All-gather along the last dim: every rank pushes its columns, and each puts all of them side by side.

use super::columns::Columns;
use super::{NAN, check_rows, world};
use crate::kernels::row::elem_of;
use crate::kernels::schedule::{Piece, param};
use crate::kernels::{Argument, Built, Request, RowSpace, last_dim, require, row_stride};
use crate::tile::{Access, Builder, Compare, Elem, Param, V};
use weldment_ir::Op;
use weldment_passes::target::Refusal;

/// Preconditions of the family.
///
/// # Errors
/// The first that fails.
pub fn check(r: &Request<'_>) -> Result<(), Refusal> {
    let x = &r.operands[0];
    world(r)?;
    let axis = if let Op::AllGather { axis, .. } = r.op { *axis } else { -1 };
    require(axis + 1 == x.ty.rank() as i64, "axis", axis, "the last")?;
    last_dim(x)?;
    require(x.ty.dtype.is_compute_float(), "dtype", x.ty.dtype, "f32, f16 or bf16")?;
    check_rows(std::iter::once(x).chain(&r.results))
}

/// The kernel of a request that passed [`check`].
///
/// # Errors
/// As [`check`].
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    check(r)?;
    let (x, out) = (&r.operands[0], &r.results[0]);
    let (n, world) = (last_dim(x)?, world(r)?);
    // Bits move as they are.
    let elem = if x.ty.dtype.block_bytes() == 2 { Elem::I16 } else { Elem::I32 };
    debug_assert_eq!(elem_of(x.ty.dtype).map(Elem::bytes), Some(elem.bytes()));
    let rows = RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
    let mut b = Builder::new("all_gather");
    let mut arguments = vec![Argument::Operand(0), Argument::Result(0)];
    let x_param = param(&mut b, r.target, "x", x, Access::Read);
    let out_param = param(&mut b, r.target, "out", out, Access::Write);
    let columns = Columns::new(&mut b, r, world, &rows, (n, elem), NAN);
    let (x_stride, out_stride) = (row_stride(x)?, row_stride(out)?);
    let size = elem.bytes() as i64;
    let own = |b: &mut Builder, row: V, piece: &Piece| -> V {
        let v = load(b, x_param, piece, row, x_stride, elem);
        // The NaN that stands for nothing travels as its neighbour; every other value keeps its bits, -0.0 too.
        let empty = b.int_of(elem, &[], -1);
        let other = b.int_of(elem, &[], -2);
        let is_empty = b.compare(Compare::Equal, v, empty);
        b.select(is_empty, other, v)
    };
    columns.exchange(
        &mut b,
        r,
        &rows,
        &mut arguments,
        |b, exchange, row, piece| {
            let v = own(b, row, piece);
            exchange.push(b, piece, |_, _| v);
        },
        |b, exchange, row, piece| {
            let v = own(b, row, piece);
            let base = b.scale(row, out_stride);
            let at = b.scale(piece.at, size);
            let base = b.add(base, at);
            exchange.gather(
                b,
                piece,
                v,
                |_, v| v,
                |b, source, v| {
                    let at = b.offset(base, i64::from(source) * n as i64 * size);
                    piece.store_elements(b, out_param, at, [out_stride, size], v);
                },
            );
        },
    );
    let summary = format!("all_gather of {n} {} over {world} ranks", x.ty.dtype);
    Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
}

fn load(b: &mut Builder, param: Param, piece: &Piece, row: V, stride: i64, elem: Elem) -> V {
    let base = b.scale(row, stride);
    let at = b.scale(piece.at, elem.bytes() as i64);
    let at = b.add(base, at);
    piece.load_elements(b, param, at, elem, [stride, elem.bytes() as i64])
}
