//! Collectives: what ranks compute together through the symmetric slab. A kernel addresses a peer's memory as its own slab plus
//! the distance that the comm table gives; every rank runs the same programs, each of which waits for its own index on the
//! others alone, so that grids need not be resident as a whole.

pub mod all_gather;
pub mod all_reduce;

mod columns;
mod mailbox;
mod peers;
pub mod reduce_scatter;

use super::pointwise::{coordinates, row_base};
use crate::request::{Request, RowSpace, Tensor, bytes_of, contiguous_last, last_dim, refuse, require, row_stride};
use crate::target::Target;
use crate::tile::{Access, Builder, Elem, Param, V};
use weldment_artifact::comm_table;
use weldment_artifact::limits::MAX_WORLD;
use weldment_ir::{DType, Dim, Op};
use weldment_passes::target::Refusal;

/// Most programs of a channel: more rows than these are walked in a loop, whose turns cost a fence each.
const PROGRAMS_GPU: u64 = 1024;
const PROGRAMS_HOST: u64 = 32;
/// Bytes of the slab that a channel of a GPU may take: a thousandth of what the machines have that hold such models.
const CHANNEL_BYTES: u64 = 128 << 20;

/// Elements of which a fused row is made whole: 16 bytes of the widest tiles, on every target.
const PACK: u64 = 8;

/// Ranks of a collective op.
pub fn world_of(op: &Op) -> Option<u64> {
    let world = match op {
        Op::AllReduce { world }
        | Op::AllGather { world, .. }
        | Op::ReduceScatter { world, .. }
        | Op::AllReduceRmsNorm { world, .. }
        | Op::AllReduceAddRmsNorm { world, .. }
        | Op::AllReduceRmsNormQuantise { world, .. }
        | Op::AllReduceAddRmsNormQuantise { world, .. }
        | Op::GatherPart { world, .. } => *world,
        _ => return None,
    };
    u64::try_from(world).ok()
}

/// Ranks that a kernel serves.
fn world(r: &Request<'_>) -> Result<u32, Refusal> {
    let world = world_of(r.op).unwrap_or(1);
    let most = u64::from(MAX_WORLD);
    require((1..=most).contains(&world), "world", world, format!("1 to {most}"))?;
    Ok(world as u32)
}

/// Declares the comm table, which never changes.
pub fn comm_param(b: &mut Builder, target: &Target) -> Param {
    if target.gpu().is_some() { b.aligned_param("comm", Access::Read, 64, true) } else { b.param("comm", Access::Read) }
}

/// Number of this rank, i64.
pub fn rank(b: &mut Builder, comm: Param) -> V {
    let at = b.int(comm_table::RANK as i64);
    b.load_scalar(comm, at, Elem::I64)
}

/// How the rows of a launch are dealt out to programs.
struct Programs {
    /// Rows from one of a program to its next; `None` where each program has one.
    step: Option<u64>,
    /// Programs that walk rows, of the channel.
    rows: u64,
}

/// Programs for `space` rows: one each where all rows of the variant have one.
fn programs(b: &mut Builder, r: &Request<'_>, space: &RowSpace, most: u64) -> Programs {
    // Of symbols other than tokens and logit rows no bound is known here.
    let bound = r.most_rows(space).filter(|_| space.others.is_empty());
    if bound.is_some_and(|n| n <= most) {
        space.grid(b, 0, 1);
        return Programs { step: None, rows: most };
    }
    b.grid_constant(0, most);
    Programs { step: Some(most), rows: most }
}

/// Programs of a channel of `world` ranks through which each exchanges `bytes` at a time: as many as its part of the slab has room
/// for, up to the target's most.
fn channel_programs(target: &Target, world: u32, bytes: u64) -> u64 {
    if target.gpu().is_none() {
        return PROGRAMS_HOST;
    }
    let each = crate::channel::TURNS * u64::from(world) * bytes.max(1);
    let room = (CHANNEL_BYTES / each).clamp(1, PROGRAMS_GPU);
    1 << room.ilog2()
}

/// Bits of -0.0 in every element: what is pushed never holds it, so it stands for what has not arrived.
fn negative_zero(dtype: DType) -> u32 {
    if dtype == DType::F32 { 0x8000_0000 } else { 0x8000_8000 }
}

/// All bits set, a NaN: stands for what has not arrived where -0.0 is pushed.
const NAN: u32 = 0xffff_ffff;

/// Preconditions of everything whose rows are exchanged.
fn check_rows<'t>(tensors: impl IntoIterator<Item = &'t Tensor>) -> Result<(), Refusal> {
    tensors.into_iter().try_for_each(contiguous_last)
}

/// `t` as rows of contiguous elements, which a dim of 1 behind the others makes of any tensor.
fn in_rows(t: &Tensor) -> Tensor {
    let whole = t.ty.last_constant().is_some() && contiguous_last(t).is_ok();
    if whole { t.clone() } else { t.points() }
}

/// `t` as the bytes of its rows.
fn in_bytes(t: &Tensor) -> Result<Tensor, Refusal> {
    let mut t = if t.ty.dtype.block_elements() > 1 { t.clone() } else { in_rows(t) };
    let dtype = std::mem::replace(&mut t.ty.dtype, DType::U8);
    contiguous_last(&t)?;
    let blocks = |n: u64| n.is_multiple_of(dtype.block_elements() as u64).then(|| bytes_of(dtype, n) as u64);
    let (Some(last), Some((inner, outer))) = (t.ty.last_constant().and_then(blocks), t.strides.split_last_mut()) else {
        return refuse("last dim", &t.ty, "whole blocks, a constant number of them");
    };
    *inner = 1;
    for stride in outer {
        *stride = blocks(*stride).map_or_else(|| refuse("row stride", *stride, "whole blocks"), Ok)?;
    }
    if let Some(dim) = t.ty.shape.last_mut() {
        *dim = Dim::Const(last);
    }
    Ok(t)
}

/// Byte at which row `row` of `t` starts, its rows being those of all leading dims in turn.
fn row_at(b: &mut Builder, t: &Tensor, row: V) -> V {
    if let Ok(stride) = row_stride(t) {
        return b.scale(row, stride);
    }
    let lead = &t.ty.shape[..t.ty.rank() - 1];
    let index = coordinates(b, row, lead);
    let strides: Vec<i64> = (0..lead.len()).map(|axis| t.byte_stride(axis)).collect();
    row_base(b, &index, &strides)
}

/// Elements of a row; none at all cannot be waited for.
fn elements(t: &Tensor) -> Result<u64, Refusal> {
    let n = last_dim(t)?;
    require(n > 0, "hidden size", n, "1 or more")?;
    Ok(n)
}

/// What a sum that is fused with what follows asks of its rows: whole packs.
fn whole_packs(t: &Tensor) -> Result<(), Refusal> {
    let n = last_dim(t)?;
    require(n > 0 && n.is_multiple_of(PACK), "hidden size", n, format!("a multiple of {PACK}"))
}
