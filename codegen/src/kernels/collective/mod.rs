//! Collectives: what ranks compute together through the symmetric slab. A kernel addresses a peer's memory as its own slab plus
//! the distance that the comm table gives; every rank runs the same programs, each of which waits for its own index on the
//! others alone, so that grids need not be resident as a whole.

pub mod all_gather;
pub mod all_reduce;
pub mod channel;
mod columns;
mod mailbox;
mod peers;
pub mod reduce_scatter;

use super::{Request, RowSpace, Tensor, contiguous_last, last_dim, require, row_stride};
use crate::target::Target;
use crate::tile::{Access, Builder, Elem, Param, V};
use weldment_ir::{DType, Op};
use weldment_passes::target::Refusal;
use weldment_runtime::artifact::comm_table;

/// Most programs of a channel: more rows than these are walked in a loop, whose turns cost a fence each.
const PROGRAMS_GPU: u64 = 1024;
const PROGRAMS_HOST: u64 = 32;
/// Bytes of the slab that a channel of a GPU may take: a thousandth of what the machines have that hold such models.
const CHANNEL_BYTES: u64 = 128 << 20;

/// Elements of which a row is made whole: 16 bytes of the widest tiles, on every target.
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
    let most = comm_table::MAX_WORLD;
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
    let bound = match space.symbol.as_deref() {
        None => Some(space.mul),
        Some("T" | "R") => space.mul.checked_mul(r.max_tokens),
        Some(_) => None,
    };
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
    let each = channel::TURNS * u64::from(world) * bytes.max(1);
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
    for t in tensors {
        contiguous_last(t)?;
        row_stride(t)?;
        RowSpace::of(&t.ty.shape[..t.ty.rank().saturating_sub(1)])?;
    }
    Ok(())
}

/// The last dim, in whole packs.
fn packs(t: &Tensor) -> Result<u64, Refusal> {
    let n = last_dim(t)?;
    require(n > 0 && n.is_multiple_of(PACK), "hidden size", n, format!("a multiple of {PACK}"))?;
    Ok(n)
}
