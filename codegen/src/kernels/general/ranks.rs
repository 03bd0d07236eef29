//! Rows of tables, and parts of tensors that belong to a rank.

use super::cell::Kind;
use super::{Draft, size, with};
use crate::kernels::collective::rank;
use crate::request::refuse;
use crate::tile::{Binary, Builder, Compare, V};
use weldment_ir::Op;
use weldment_passes::target::Refusal;

/// `index` within `0..count`: what callers name beyond is not read.
pub fn clamped(b: &mut Builder, index: V, count: V) -> V {
    let (zero, last) = (b.int(0), b.offset(count, -1));
    let index = b.min(index, last);
    b.max(index, zero)
}

/// `gather`, and `gather_part`, which has zeros for rows of other ranks' parts.
pub fn gather(d: &mut Draft<'_, '_>) -> Result<(), Refusal> {
    let part = matches!(d.r.op, Op::GatherPart { .. });
    let comm = part.then(|| d.comm());
    let rows = d.r.operands[0].ty.shape[0].clone();
    d.each(Kind::Real, |b, operands, index| {
        let (lead, column) = index.split_at(index.len() - 1);
        let count = size(b, &rows);
        let wanted = operands[1].integer(b, lead);
        let Some(comm) = comm else {
            let row = clamped(b, wanted, count);
            return operands[0].real(b, &[row, column[0]]);
        };
        let own = rank(b, comm);
        let start = b.mul(own, count);
        let wanted = b.sub(wanted, start);
        let row = clamped(b, wanted, count);
        let here = b.compare(Compare::Equal, row, wanted);
        let (v, zero) = (operands[0].real(b, &[row, column[0]]), b.float(0.0));
        b.select(here, v, zero)
    });
    Ok(())
}

/// This rank's part of a tensor.
pub fn shard(d: &mut Draft<'_, '_>) -> Result<(), Refusal> {
    let Op::Shard { axis, replicas, .. } = d.r.op else { return refuse("op", d.r.op.kind(), "shard") };
    if d.r.results[0].ty.dtype.is_block() {
        return refuse("rows of blocks", &d.r.results[0].ty, "whole blocks along a constant last dim");
    }
    let comm = d.comm();
    let axis = axis.unsigned_abs() as usize;
    let own_size = d.r.results[0].ty.shape[axis].clone();
    d.each(Kind::Stored, |b, operands, index| {
        let (own, replicas) = (rank(b, comm), b.int(*replicas));
        let part = b.binary(Binary::Div, own, replicas);
        let n = size(b, &own_size);
        let start = b.mul(part, n);
        let mut source = with(&index[..axis], start);
        source[axis] = b.add(start, index[axis]);
        source.extend(&index[axis + 1..]);
        operands[0].stored(b, &source)
    });
    Ok(())
}
