//! What a kernel knows of the ranks, and pieces of all of them in the order of ranks.

use crate::kernels::schedule::Piece;
use crate::request::Argument;
use crate::target::Target;
use crate::tile::{Binary, Builder, Compare, Elem, Param, TileType, V, Waiting};
use weldment_artifact::comm_table;

/// Bytes of other ranks' data that a thread of a GPU keeps in flight and in registers.
const IN_FLIGHT: u64 = 128;

/// This rank among the others.
#[derive(Clone)]
pub struct Peers {
    /// Ranks.
    pub world: u32,
    /// Where a waiting program learns that the job is over.
    pub waiting: Waiting,
    /// i64 number of this rank.
    pub rank: V,
    /// The other ranks, nearest after this one first: number, and bytes from this rank's slab to theirs.
    pub others: Vec<(V, V)>,
    /// i1 for each rank: it is this one.
    is_own: Vec<V>,
    gpu: bool,
    threads: u32,
}

/// Tiles of other ranks: bytes into the area, byte offsets of the ranks' parts where the tile holds several, type, mask.
pub type Wanted<'w> = (V, Option<V>, &'w [i64], TileType, Option<V>);

impl Peers {
    /// Declares the parameters that tell of ranks, which `arguments` then bind, and reads them. `threads`: of a program on a GPU.
    pub fn open(b: &mut Builder, target: &Target, world: u32, threads: u32, arguments: &mut Vec<Argument>) -> Peers {
        let comm = super::comm_param(b, target);
        let slab = b.param("slab", crate::tile::Access::Read);
        arguments.extend([Argument::Comm, Argument::Slab]);
        let rank = super::rank(b, comm);
        let ranks = i64::from(world);
        let others = (1..ranks)
            .map(|j| {
                let peer = b.offset(rank, j);
                let ranks = b.int(ranks);
                let peer = b.binary(Binary::Rem, peer, ranks);
                let at = b.scale(peer, 8);
                let at = b.offset(at, comm_table::DELTAS as i64);
                let delta = b.load_scalar(comm, at, Elem::I64);
                // Slabs are whole pages; said here, so that what is pushed goes in whole vectors.
                let pages = b.int(-4096);
                (peer, b.binary(Binary::And, delta, pages))
            })
            .collect();
        let is_own = (0..ranks)
            .map(|s| {
                let s = b.int(s);
                b.compare(Compare::Equal, rank, s)
            })
            .collect();
        let gpu = target.gpu().is_some();
        Peers { world, waiting: Waiting { comm, slab }, rank, others, is_own, gpu, threads }
    }

    /// Calls `take` with each rank's number and piece in the order of ranks, `own` in this rank's place. Parts of the others of
    /// `elem`s, `part` bytes from rank to rank, are read by `fetch` and seen through `view`; `at`: byte of the piece in the first.
    pub fn in_order(
        &self,
        b: &mut Builder,
        (piece, elem, at, part): (&Piece, Elem, V, u64),
        own: V,
        fetch: impl Fn(&mut Builder, Wanted<'_>) -> V,
        view: impl Fn(&mut Builder, V) -> V,
        mut take: impl FnMut(&mut Builder, u32, V),
    ) {
        let others = self.world - 1;
        let (mut seen, mut before) = (0, None);
        while seen < others {
            let group = self.group(piece, elem, others - seen);
            let rows = self.rows(b, (piece, elem, at, part), (seen, group), &fetch);
            for (i, row) in (seen..others).zip(rows) {
                let row = view(b, row);
                let v = self.choose(b, i, (before, Some(row)), own);
                take(b, i, v);
                before = Some(row);
            }
            seen += group.min(others - seen);
        }
        let v = self.choose(b, others, (before, None), own);
        take(b, others, v);
    }

    /// What rank `source` has: of the others' pieces `below` if this rank is below it, `above` if it is above, else `own`.
    fn choose(&self, b: &mut Builder, source: u32, (below, above): (Option<V>, Option<V>), own: V) -> V {
        let other = match (below, above) {
            (Some(below), Some(above)) => {
                let number = b.int(i64::from(source));
                let is_above = b.compare(Compare::Less, number, self.rank);
                Some(b.select(is_above, above, below))
            }
            (one, two) => one.or(two),
        };
        other.map_or(own, |other| b.select(self.is_own[source as usize], own, other))
    }

    /// Other ranks whose pieces are read together, of `left`; a power of two, and more than are left where that saves a wait.
    fn group(&self, piece: &Piece, elem: Elem, left: u32) -> u32 {
        if !self.gpu {
            return 1;
        }
        let bytes = (u64::from(piece.width()) * elem.bytes()).div_ceil(u64::from(self.threads)).max(1);
        let most = (IN_FLIGHT / bytes).clamp(1, u64::from(left.next_power_of_two())) as u32;
        1 << most.ilog2()
    }

    /// Pieces of `group` of the other ranks from the `first` on, in the order of ranks: others below this rank have their own
    /// number, those from it on one more.
    fn rows(
        &self,
        b: &mut Builder,
        (piece, elem, at, part): (&Piece, Elem, V, u64),
        (first, group): (u32, u32),
        fetch: &impl Fn(&mut Builder, Wanted<'_>) -> V,
    ) -> Vec<V> {
        let size = elem.bytes() as i64;
        let source = |b: &mut Builder, other: V| {
            let above = b.compare(Compare::LessEqual, self.rank, other);
            let one = b.offset(other, 1);
            b.select(above, one, other)
        };
        if !self.gpu {
            let other = b.int(i64::from(first));
            let source = source(b, other);
            let parts = b.scale(source, part as i64);
            let at = b.add(at, parts);
            return vec![fetch(b, (at, None, &[size], TileType { elem, shape: vec![piece.width()] }, None))];
        }
        let index = b.iota(Elem::I64, group);
        let start = b.int(i64::from(first));
        let index = b.add(index, start);
        let others = self.world - 1;
        let mask = if first + group > others {
            let others = b.int(i64::from(others));
            let there = b.compare(Compare::Less, index, others);
            Some(piece.mask_rows(b, there))
        } else {
            piece.mask_columns(b, group)
        };
        let sources = source(b, index);
        let parts = b.scale(sources, part as i64);
        let parts = b.reshape(parts, &[group, 1]);
        let ty = TileType { elem, shape: vec![group, piece.width()] };
        let rows = fetch(b, (at, Some(parts), &[0, size], ty, mask));
        (0..group).map(|i| b.row(rows, i)).collect()
    }
}

/// Declares the parameter of a launch's `stage`th channel, which starts at a page.
pub fn channel_param(b: &mut Builder, target: &Target, stage: u32) -> Param {
    let (name, access) = (format!("channel{stage}"), crate::tile::Access::Write);
    if target.gpu().is_some() { b.aligned_param(&name, access, 128, false) } else { b.param(&name, access) }
}
