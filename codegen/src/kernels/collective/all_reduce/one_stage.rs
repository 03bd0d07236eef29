//! One stage: every rank pushes its rows whole to all others, and each sums all of them. One way through the link.

use super::{Tensors, clean, parts, tensors, width};
use crate::channel::Channel;
use crate::kernels::collective::mailbox::{Mailbox, each_row};
use crate::kernels::collective::peers::Peers;
use crate::kernels::collective::{channel_programs, negative_zero, programs, world};
use crate::kernels::row::elem_of;
use crate::kernels::schedule::Walk;
use crate::request::{Built, Request, RowSpace};
use crate::tile::{Builder, Conversion, Elem};
use weldment_passes::target::Refusal;

/// The kernel of a request that passed the family's check.
///
/// # Errors
/// As the check.
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    let ty = &parts(r).x.ty;
    let (dtype, elem, world) = (ty.dtype, elem_of(ty.dtype).unwrap_or(Elem::F32), world(r)?);
    let rows = RowSpace::every(&ty.shape[..ty.rank() - 1]);
    let mut b = Builder::new("all_reduce");
    let mut arguments = Vec::new();
    let t = tensors(&mut b, r, &mut arguments)?;
    let Tensors { x, residual, d, .. } = t;
    let (width, threads) = width(r, d);
    let gpu = r.target().gpu().is_some();
    if gpu {
        b.threads(threads);
    }
    let most = channel_programs(r.target(), world, d * elem.bytes());
    let dealt = programs(&mut b, r, &rows, most);
    let channel = Channel::new(world, dealt.rows, d * elem.bytes(), negative_zero(dtype));
    let first = b.program_id(0);
    let peers = Peers::open(&mut b, r.target(), world, threads, &mut arguments);
    let mail = Mailbox::open(&mut b, r.target(), (channel, elem), peers, first, &mut arguments);
    let walk = Walk::of(d, width, gpu.then_some(1), None, first);
    let weights = t.early_weights(&mut b, &walk);
    each_row(&mut b, [&mail], &rows, (first, dealt.step), |b, row, [turn]| {
        let (mut own, mut addend) = (None, None);
        walk.each(b, &[], |b, piece, _| {
            let v = x.load(b, piece, row);
            let v = clean(b, v);
            let sent = b.convert(Conversion::Float, v, elem);
            if walk.is_single() {
                own = Some(v);
                addend = residual.map(|t| t.load(b, piece, row));
            }
            mail.push_one(b, &turn, piece, sent);
            mail.empty(b, &turn, piece, None);
            Vec::new()
        });
        t.finish(b, &walk, row, weights, |b, piece| {
            let own = own.unwrap_or_else(|| {
                let v = x.load(b, piece, row);
                clean(b, v)
            });
            let mut total = None;
            mail.gather(b, &turn, (piece, None), own, Builder::to_f32, |b, _, v| {
                total = Some(total.map_or(v, |t| b.add(t, v)));
            });
            let total = total.unwrap_or(own);
            let Some(residual) = residual else { return total };
            let other = addend.unwrap_or_else(|| residual.load(b, piece, row));
            b.add(total, other)
        });
    });
    let summary = format!("{} of {d} {dtype} over {world} ranks, one stage", r.op.kind());
    Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
}
