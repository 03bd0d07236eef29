//! Products of rows by matrices.

use super::cell::Kind;
use super::{Cell, Draft, size, sum, with};
use crate::request::{last_dim, refuse};
use crate::tile::{Builder, V};
use weldment_ir::{Dim, Op};
use weldment_passes::target::Refusal;

/// x [.., K] times w [N, K] at `index` [.., n].
fn product(b: &mut Builder, x: &Cell<'_>, w: &Cell<'_>, index: &[V], k: &Dim) -> V {
    let (lead, column) = index.split_at(index.len() - 1);
    let count = size(b, k);
    sum(b, count, |b, i| {
        let (x, w) = (x.real(b, &with(lead, i)), w.real(b, &[column[0], i]));
        b.mul(x, w)
    })
}

/// `matmul`, `matmul_add` and `matmul_silu_mul`.
pub fn matmul(d: &mut Draft<'_, '_>) {
    let op = d.r.op;
    let k = d.r.operands[1].ty.shape[1].clone();
    d.each(Kind::Real, |b, operands, index| {
        let first = product(b, &operands[0], &operands[1], index, &k);
        match op {
            Op::MatmulAdd { .. } => {
                let addend = operands[2].real(b, index);
                b.add(first, addend)
            }
            Op::MatmulSiluMul { .. } => {
                let up = product(b, &operands[0], &operands[2], index, &k);
                let gate = b.silu(first);
                b.mul(gate, up)
            }
            _ => first,
        }
    });
}

/// `scaled_matmul` with a scale for every `rows` x `columns` block of w.
pub fn scaled(d: &mut Draft<'_, '_>, [rows, columns]: [i64; 2]) -> Result<(), Refusal> {
    let (k, groups) = (last_dim(&d.r.operands[0])?, last_dim(&d.r.operands[1])?);
    let group = k / groups.max(1);
    let run = group.min(columns.unsigned_abs());
    if run == 0 || rows < 1 {
        return refuse("reduction length", k, "1 or more");
    }
    d.each(Kind::Real, |b, operands, index| {
        let (lead, column) = index.split_at(index.len() - 1);
        let runs = b.int((k / run) as i64);
        let per = b.int(rows);
        let w_row = b.div(column[0], per);
        sum(b, runs, |b, i| {
            let start = b.scale(i, run as i64);
            let count = b.int(run as i64);
            let total = sum(b, count, |b, j| {
                let at = b.add(start, j);
                let (x, w) = (operands[0].real(b, &with(lead, at)), operands[2].real(b, &[column[0], at]));
                b.mul(x, w)
            });
            let (of_x, of_w) = (b.int(group as i64), b.int(columns));
            let (g, c) = (b.div(start, of_x), b.div(start, of_w));
            let (x, w) = (operands[1].real(b, &with(lead, g)), operands[3].real(b, &[w_row, c]));
            let scale = b.mul(x, w);
            b.mul(total, scale)
        })
    });
    Ok(())
}
