//! Two stages: every rank sums its slice of a row, with its slice of the residual, and sends the rounded sums to all; then each
//! has the whole row. Twice through the link, but a rank sends 2 (world - 1) / world rows in place of world - 1.

use super::{Tensors, clean, parts, tensors, width};
use crate::kernels::collective::channel::Flags;
use crate::kernels::collective::flagged::Flagged;
use crate::kernels::collective::peers::Wanted;
use crate::kernels::collective::{channel_programs, programs, world};
use crate::kernels::row::elem_of;
use crate::kernels::schedule::{Piece, Walk};
use crate::kernels::{Built, Request, RowSpace};
use crate::select::stages;
use crate::tile::{Builder, Conversion, Elem, V};
use weldment_passes::target::Refusal;

/// The kernel of a request that passed the family's check.
///
/// # Errors
/// As the check; a row that ranks cannot share out evenly.
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    let ty = &parts(r).x.ty;
    let (dtype, elem, world) = (ty.dtype, elem_of(ty.dtype).unwrap_or(Elem::F32), world(r)?);
    let rows = RowSpace::of(&ty.shape[..ty.rank() - 1])?;
    let mut b = Builder::new("all_reduce");
    let mut arguments = Vec::new();
    let t = tensors(&mut b, r, &mut arguments)?;
    let Tensors { x, residual, sum, d, .. } = t;
    stages::check_two(d, world)?;
    let slice = d / u64::from(world);
    let total_elem = elem_of(sum.dtype).unwrap_or(Elem::F32);
    let (row_width, threads) = width(r, d);
    let gpu = r.target.gpu().is_some();
    if gpu {
        b.threads(threads);
    }
    let most = channel_programs(r.target, world, d * elem.bytes());
    let dealt = programs(&mut b, r, &rows, most);
    let channel = Flags::new(world, dealt.rows, slice * elem.bytes(), d * total_elem.bytes());
    let first = b.program_id(0);
    let flagged = Flagged::open(&mut b, r.target, channel, threads, first, &mut arguments);
    let walk = Walk::of(d, row_width, gpu.then_some(1), None, first);
    let parts = Walk::of(slice, width(r, slice).0, gpu.then_some(1), None, first);
    let weights = t.early_weights(&mut b, &walk);
    let (peers, param) = (&flagged.peers, flagged.param);
    flagged.each_row(&mut b, &rows, (first, dealt.step), |b, row, side| {
        let at = |b: &mut Builder, start: V, piece: &Piece, elem: Elem| {
            let own = b.scale(piece.at, elem.bytes() as i64);
            b.add(start, own)
        };
        // Its slice of the row to each other rank, where this rank's part of its area is.
        let part = b.scale(peers.rank, channel.slice as i64);
        let part = b.add(side.area, part);
        parts.each(b, &[], |b, piece, _| {
            let own = at(b, part, piece, elem);
            for (peer, delta) in &peers.others {
                let v = x.load_part(b, piece, row, (*peer, slice));
                let v = clean(b, v);
                let v = b.convert(Conversion::Float, v, elem);
                let to = b.add(*delta, own);
                piece.push(b, param, to, v);
            }
            Vec::new()
        });
        flagged.meet(b, side, 0);
        // The sum of this rank's slice, to all.
        let whole = b.offset(side.area, channel.slices() as i64);
        let start = b.scale(peers.rank, (slice * total_elem.bytes()) as i64);
        let start = b.add(whole, start);
        parts.each(b, &[], |b, piece, _| {
            let own = x.load_part(b, piece, row, (peers.rank, slice));
            let own = clean(b, own);
            let from = at(b, side.area, piece, elem);
            let fetch = |b: &mut Builder, (at, parts, strides, ty, mask): Wanted<'_>| match parts {
                Some(parts) => b.load_gather(param, at, parts, ty.elem, &ty.shape, strides, mask),
                None => b.load(param, at, ty.elem, &ty.shape, strides, mask),
            };
            let mut total = None;
            let source = (piece, elem, from, channel.slice);
            peers.in_order(b, source, own, fetch, Builder::to_f32, |b, _, v| {
                total = Some(total.map_or(v, |t| b.add(t, v)));
            });
            let mut total = total.unwrap_or(own);
            if let Some(residual) = residual {
                let other = residual.load_part(b, piece, row, (peers.rank, slice));
                total = b.add(total, other);
            }
            let total = b.convert(Conversion::Float, total, total_elem);
            let own = at(b, start, piece, total_elem);
            piece.push(b, param, own, total);
            for (_, delta) in &peers.others {
                let to = b.add(*delta, own);
                piece.push(b, param, to, total);
            }
            Vec::new()
        });
        flagged.meet(b, side, 1);
        t.finish(b, &walk, row, weights, |b, piece| piece.load(b, param, whole, sum.dtype, 0));
    });
    let summary = format!("{} of {d} {dtype} over {world} ranks, two stages", r.op.kind());
    Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
}
