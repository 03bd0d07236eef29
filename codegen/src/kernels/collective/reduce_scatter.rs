//! Reduce-scatter: every rank pushes to each other that one's part, and sums what arrives in f32 in the order of ranks, rounded
//! once.

use super::columns::Columns;
use super::{elements, in_rows, negative_zero, row_at, world};
use crate::family::{Addressing, Family, Sharing, Strides};
use crate::kernels::row::elem_of;
use crate::kernels::schedule::{Piece, param};
use crate::request::{Argument, Built, Request, RowSpace, Tensor, refuse, require};
use crate::tile::{Access, Builder, Conversion, Elem, V};
use weldment_ir::{Op, OpKind};
use weldment_passes::target::Refusal;

/// A request by rows: the operand's strides at the places of a part, the result, and bytes from one rank's part to the next's.
fn parts(r: &Request<'_>) -> Result<(Tensor, Tensor, i64), Refusal> {
    let Op::ReduceScatter { axis, .. } = r.op else { return refuse("op", r.op.kind(), "reduce_scatter") };
    let (mut x, mut out) = (in_rows(&r.operands[0]), in_rows(&r.results[0]));
    if x.ty.rank() != out.ty.rank() {
        (x, out) = (r.operands[0].points(), r.results[0].points());
    }
    let axis = axis.unsigned_abs() as usize;
    let Some(size) = out.ty.shape[axis].constant() else { return refuse("axis", &out.ty, "a constant dim") };
    let step = size as i64 * x.byte_stride(axis);
    Ok((Tensor { ty: out.ty.clone(), ..x }, out, step))
}

/// This rank's part of a sum.
pub struct ReduceScatter;

impl Family for ReduceScatter {
    fn runs(&self, kind: OpKind) -> bool {
        matches!(kind, OpKind::ReduceScatter)
    }

    fn addressing(&self, _: OpKind) -> Addressing {
        Addressing { operands: &[Strides::Rows], results: Strides::Rows, shares: Sharing::Never }
    }

    /// Preconditions of the family.
    fn check(&self, r: &Request<'_>) -> Result<(), Refusal> {
        let (x, out, _) = parts(r)?;
        world(r)?;
        elements(&out)?;
        require(x.ty.dtype.is_compute_float(), "activation dtype", x.ty.dtype, "f32, f16 or bf16")
    }

    fn build(&self, r: &Request<'_>) -> Result<Built, Refusal> {
        self.check(r)?;
        let (x, out, step) = &parts(r)?;
        let (n, world) = (elements(out)?, world(r)?);
        let (dtype, elem) = (x.ty.dtype, elem_of(x.ty.dtype).unwrap_or(Elem::F32));
        let rows = RowSpace::every(&out.ty.shape[..out.ty.rank() - 1]);
        let mut b = Builder::new("reduce_scatter");
        let mut arguments = vec![Argument::Operand(0), Argument::Result(0)];
        let x_param = param(&mut b, r.target(), "x", x, Access::Read);
        let out_param = param(&mut b, r.target(), "out", out, Access::Write);
        let columns = Columns::new(&mut b, r, world, &rows, (n, elem), negative_zero(dtype));
        // A piece of the part of rank `of`, without negative zeros.
        let part = |b: &mut Builder, row: V, piece: &Piece, of: V| -> V {
            let base = row_at(b, x, row);
            let start = b.scale(of, *step);
            let base = b.add(base, start);
            let v = piece.load(b, x_param, base, dtype, 0);
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
                let base = row_at(b, out, row);
                piece.store(b, out_param, base, dtype, 0, total.unwrap_or(own));
            },
        );
        let summary = format!("reduce_scatter of {world} x {n} {dtype}");
        Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
    }
}
