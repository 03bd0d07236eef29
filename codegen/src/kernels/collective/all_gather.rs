//! All-gather: every rank pushes its part, and each puts all of them side by side.

use super::columns::Columns;
use super::{NAN, elements, in_bytes, in_rows, row_at, world};
use crate::family::{Addressing, Family, Sharing, Strides};
use crate::kernels::schedule::{Piece, param};
use crate::request::{Argument, Built, Request, RowSpace, Tensor, refuse};
use crate::tile::{Access, Builder, Compare, Conversion, Elem, Param, V};
use weldment_ir::{Op, OpKind};
use weldment_passes::target::Refusal;

/// A request by rows.
struct Parts {
    x: Tensor,
    /// The result's strides, at the places of this rank's part.
    out: Tensor,
    /// Bytes of the result from one rank's part to the next's.
    step: i64,
    /// Bytes, widened one by one: those of dtypes other than floats may be any, and no value of theirs can stand for nothing.
    bytes: bool,
}

fn parts(r: &Request<'_>) -> Result<Parts, Refusal> {
    let Op::AllGather { axis, .. } = r.op else { return refuse("op", r.op.kind(), "all_gather") };
    let (x, out) = (&r.operands[0], &r.results[0]);
    let bytes = !x.ty.dtype.is_compute_float();
    let (mut x, mut out) = if bytes { (in_bytes(x)?, in_bytes(out)?) } else { (in_rows(x), in_rows(out)) };
    if x.ty.rank() != out.ty.rank() {
        let (from, to) = (&r.operands[0], &r.results[0]);
        (x, out) =
            if bytes { (in_bytes(&from.points())?, in_bytes(&to.points())?) } else { (from.points(), to.points()) };
    }
    let axis = axis.unsigned_abs() as usize;
    let Some(size) = x.ty.shape[axis].constant() else { return refuse("axis", &x.ty, "a constant dim") };
    let step = size as i64 * out.byte_stride(axis);
    let out = Tensor { ty: x.ty.clone(), ..out };
    Ok(Parts { x, out, step, bytes })
}

/// Every rank's rows.
pub struct AllGather;

impl Family for AllGather {
    fn runs(&self, kind: OpKind) -> bool {
        matches!(kind, OpKind::AllGather)
    }

    fn addressing(&self, _: OpKind) -> Addressing {
        Addressing { operands: &[Strides::Rows], results: Strides::Rows, shares: Sharing::Never }
    }

    /// Preconditions of the family.
    fn check(&self, r: &Request<'_>) -> Result<(), Refusal> {
        world(r)?;
        elements(&parts(r)?.x)?;
        Ok(())
    }

    fn build(&self, r: &Request<'_>) -> Result<Built, Refusal> {
        let Parts { x, out, step, bytes } = &parts(r)?;
        let (n, world) = (elements(x)?, world(r)?);
        // Bits of floats move as they are.
        let stored = match x.ty.dtype.block_bytes() {
            1 => Elem::I8,
            2 => Elem::I16,
            _ => Elem::I32,
        };
        let elem = if *bytes { Elem::I32 } else { stored };
        let rows = RowSpace::every(&x.ty.shape[..x.ty.rank() - 1]);
        let mut b = Builder::new("all_gather");
        let mut arguments = vec![Argument::Operand(0), Argument::Result(0)];
        let x_param = param(&mut b, r.target(), "x", x, Access::Read);
        let out_param = param(&mut b, r.target(), "out", out, Access::Write);
        let columns = Columns::new(&mut b, r, world, &rows, (n, elem), NAN);
        let size = stored.bytes() as i64;
        let own = |b: &mut Builder, row: V, piece: &Piece| -> V {
            let v = load(b, x_param, x, piece, row, stored);
            if *bytes {
                return b.convert(Conversion::Unsigned, v, Elem::I32);
            }
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
                let base = row_at(b, out, row);
                let at = b.scale(piece.at, size);
                let base = b.add(base, at);
                exchange.gather(
                    b,
                    piece,
                    v,
                    |_, v| v,
                    |b, source, v| {
                        let at = b.offset(base, i64::from(source) * step);
                        let v = b.convert(Conversion::Signed, v, stored);
                        piece.store_elements(b, out_param, at, [0, size], v);
                    },
                );
            },
        );
        let summary = format!("all_gather of {n} {} over {world} ranks", r.operands[0].ty.dtype);
        Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
    }
}

fn load(b: &mut Builder, param: Param, x: &Tensor, piece: &Piece, row: V, elem: Elem) -> V {
    let base = row_at(b, x, row);
    let at = b.scale(piece.at, elem.bytes() as i64);
    let at = b.add(base, at);
    piece.load_elements(b, param, at, elem, [0, elem.bytes() as i64])
}
