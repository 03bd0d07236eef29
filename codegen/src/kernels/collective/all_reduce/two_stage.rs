//! Two stages: every rank sums its slice of a row, with its slice of the residual, and sends the rounded sums to all; then each
//! has the whole row. Twice through the link, but a rank sends 2 (world - 1) / world rows in place of world - 1.

use super::form;
use super::{Tensors, clean, parts, tensors, width};
use crate::channel::Channel;
use crate::kernels::collective::mailbox::{Mailbox, each_row};
use crate::kernels::collective::peers::Peers;
use crate::kernels::collective::{NAN, channel_programs, negative_zero, programs, world};
use crate::kernels::row::elem_of;
use crate::kernels::schedule::Walk;
use crate::request::{Built, Request, RowSpace};
use crate::tile::{Builder, Compare, Conversion, Elem, V};
use weldment_passes::target::Refusal;

/// The kernel of a request that passed the family's check.
///
/// # Errors
/// As the check; a row that ranks cannot share out evenly.
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    let ty = &parts(r).x.ty;
    let (dtype, elem, world) = (ty.dtype, elem_of(ty.dtype).unwrap_or(Elem::F32), world(r)?);
    let rows = RowSpace::every(&ty.shape[..ty.rank() - 1]);
    let mut b = Builder::new("all_reduce");
    let mut arguments = Vec::new();
    let t = tensors(&mut b, r, &mut arguments)?;
    let Tensors { x, residual, sum, d, .. } = t;
    form::check_two(d, world)?;
    let slice = d / u64::from(world);
    let total_elem = elem_of(sum.dtype).unwrap_or(Elem::F32);
    let (row_width, threads) = width(r, d);
    let gpu = r.target().gpu().is_some();
    if gpu {
        b.threads(threads);
    }
    let most = channel_programs(r.target(), world, slice * elem.bytes().max(total_elem.bytes()));
    let dealt = programs(&mut b, r, &rows, most);
    let first = b.program_id(0);
    let peers = Peers::open(&mut b, r.target(), world, threads, &mut arguments);
    let mut mailbox = |b: &mut Builder, stage, elem: Elem, empty| {
        let channel = Channel { stage, ..Channel::new(world, dealt.rows, slice * elem.bytes(), empty) };
        debug_assert_eq!(channel.chunk, channel.row, "slices are whole packs");
        Mailbox::open(b, r.target(), (channel, elem), peers.clone(), first, &mut arguments)
    };
    let slices = mailbox(&mut b, 0, elem, negative_zero(dtype));
    // A small sum may be rounded to -0.0, which a NaN of those bits never is.
    let sums = mailbox(&mut b, 1, total_elem, NAN);
    let walk = Walk::of(d, row_width, gpu.then_some(1), None, first);
    let parts = Walk::of(slice, width(r, slice).0, gpu.then_some(1), None, first);
    let weights = t.early_weights(&mut b, &walk);
    each_row(&mut b, [&slices, &sums], &rows, (first, dealt.step), |b, row, [slices_turn, sums_turn]| {
        // Its slice of the row to each other rank.
        parts.each(b, &[], |b, piece, _| {
            // All are under way before the first is pushed.
            let values = peers.others.iter().map(|(peer, _)| {
                let v = x.load_part(b, piece, row, (*peer, slice));
                let v = clean(b, v);
                b.convert(Conversion::Float, v, elem)
            });
            let values: Vec<V> = values.collect();
            slices.push(b, &slices_turn, piece, None, &values);
            slices.empty(b, &slices_turn, piece, None);
            Vec::new()
        });
        // The sum of this rank's slice, to all.
        parts.each(b, &[], |b, piece, _| {
            let own = x.load_part(b, piece, row, (peers.rank, slice));
            let own = clean(b, own);
            let addend = residual.map(|t| t.load_part(b, piece, row, (peers.rank, slice)));
            let mut total = None;
            slices.gather(b, &slices_turn, (piece, None), own, Builder::to_f32, |b, _, v| {
                total = Some(total.map_or(v, |t| b.add(t, v)));
            });
            let total = total.unwrap_or(own);
            let total = addend.map_or(total, |other| b.add(total, other));
            let total = quiet(b, total);
            let total = b.convert(Conversion::Float, total, total_elem);
            sums.push_to_all(b, &sums_turn, piece, total);
            Vec::new()
        });
        walk.each(b, &[], |b, piece, _| {
            sums.empty_row(b, &sums_turn, piece);
            Vec::new()
        });
        // Sums may lie where x does: one has arrived only after this rank loaded, and pushed or summed, its element of x.
        t.finish(b, &walk, row, weights, |b, piece| sums.row(b, &sums_turn, piece));
    });
    let summary = format!("{} of {d} {dtype} over {world} ranks, two stages", r.op.kind());
    Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
}

/// `v` with one NaN for all.
fn quiet(b: &mut Builder, v: V) -> V {
    let is_number = b.compare(Compare::Equal, v, v);
    let nan = b.float(f64::NAN);
    b.select(is_number, v, nan)
}
