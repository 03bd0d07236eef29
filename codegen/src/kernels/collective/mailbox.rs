//! Data that is its own flag: every rank pushes what it has into the others' areas and polls its own until no element in it is
//! empty. No fence and no flag, so that a small message costs one way through the link; docs/collectives.md argues why it holds.

use super::channel::{Channel, TURNS};
use crate::kernels::schedule::Piece;
use crate::kernels::{Argument, RowSpace};
use crate::target::Target;
use crate::tile::{Access, Binary, Builder, Compare, Conversion, Elem, Param, TileType, V, Waiting};
use weldment_runtime::artifact::comm_table;

/// Bytes of arrivals that a thread of a GPU keeps in flight and in registers.
const IN_FLIGHT: u64 = 128;

/// The exchange of one kernel.
pub struct Mailbox {
    channel: Channel,
    elem: Elem,
    slab: Param,
    waiting: Waiting,
    gpu: bool,
    threads: u32,
    /// i64 number of this rank.
    rank: V,
    /// The other ranks, nearest after this one first: number, and bytes from this rank's slab to theirs.
    peers: Vec<(V, V)>,
    /// i1 for each rank: it is this one.
    is_own: Vec<V>,
    /// i64 index of the program among those of the channel.
    program: V,
}

/// The areas of one epoch: byte offsets from the channel's start.
pub struct Turn {
    area: V,
    before: V,
}

impl Mailbox {
    /// Declares the parameters of an exchange of `elem`s, which `arguments` then bind, and reads what is known of the ranks.
    /// `program`: index of the program, of as many as the channel has.
    pub fn open(
        b: &mut Builder,
        target: &Target,
        (channel, elem): (Channel, Elem),
        threads: u32,
        program: V,
        arguments: &mut Vec<Argument>,
    ) -> Mailbox {
        let gpu = target.gpu().is_some();
        let slab =
            if gpu { b.aligned_param("mail", Access::Write, 128, false) } else { b.param("mail", Access::Write) };
        let comm = super::comm_param(b, target);
        let start = b.param("slab", Access::Read);
        arguments.extend([Argument::Channel(channel), Argument::Comm, Argument::Slab]);
        let rank = super::rank(b, comm);
        let world = i64::from(channel.world);
        let peers = (1..world)
            .map(|j| {
                let peer = b.offset(rank, j);
                let ranks = b.int(world);
                let peer = b.binary(Binary::Rem, peer, ranks);
                let at = b.scale(peer, 8);
                let at = b.offset(at, comm_table::DELTAS as i64);
                let delta = b.load_scalar(comm, at, Elem::I64);
                // Slabs are whole pages; said here, so that what is pushed goes in whole vectors.
                let pages = b.int(-4096);
                (peer, b.binary(Binary::And, delta, pages))
            })
            .collect();
        let is_own = (0..world)
            .map(|s| {
                let s = b.int(s);
                b.compare(Compare::Equal, rank, s)
            })
            .collect();
        let waiting = Waiting { comm, slab: start };
        Mailbox { channel, elem, slab, waiting, gpu, threads, rank, peers, is_own, program }
    }

    /// Number of this rank, i64.
    pub fn rank(&self) -> V {
        self.rank
    }

    /// Calls `body` for each row of a program that has rows `first`, `first + step`, ... of `rows`, one epoch each; for its first
    /// row alone where `step` covers all rows. Programs without a row leave the channel alone.
    pub fn each_row(
        &self,
        b: &mut Builder,
        rows: &RowSpace,
        (first, step): (V, Option<u64>),
        mut body: impl FnMut(&mut Builder, V, &Turn),
    ) {
        let at = b.scale(self.program, 4);
        let epoch = b.load_scalar(self.slab, at, Elem::I32);
        let Some(step) = step else {
            let turn = self.turn(b, epoch);
            body(b, first, &turn);
            let next = self.next(b, epoch);
            // The stream's order is enough: the next use is another launch.
            return b.signal((self.slab, at, None), next, None, false);
        };
        let count = rows.count(b);
        b.for_loop(first, count, step as i64, &[epoch], |b, row, carried| {
            let turn = self.turn(b, carried[0]);
            body(b, row, &turn);
            let next = self.next(b, carried[0]);
            // Within a launch nothing else orders what was emptied in this epoch before what is pushed in the next.
            b.signal((self.slab, at, None), next, None, true);
            b.wait_for((self.slab, at, &[]), next, None, self.waiting);
            vec![next]
        });
    }

    fn next(&self, b: &mut Builder, epoch: V) -> V {
        let one = b.int_of(Elem::I32, &[], 1);
        b.add(epoch, one)
    }

    fn turn(&self, b: &mut Builder, epoch: V) -> Turn {
        let start = b.scale(self.program, (TURNS * self.channel.turn_bytes()) as i64);
        let start = b.offset(start, self.channel.areas() as i64);
        let mut area = |ahead: i64| {
            let ahead = b.int_of(Elem::I32, &[], ahead);
            let turn = b.add(epoch, ahead);
            let last = b.int_of(Elem::I32, &[], TURNS as i64 - 1);
            let turn = b.binary(Binary::And, turn, last);
            let turn = b.convert(Conversion::Unsigned, turn, Elem::I64);
            let at = b.scale(turn, self.channel.turn_bytes() as i64);
            b.add(start, at)
        };
        Turn { area: area(0), before: area(TURNS as i64 - 1) }
    }

    /// Byte offset of a piece in the chunk of rank `source` (i64) of an area. `at`: element at which the chunk starts.
    fn offset(&self, b: &mut Builder, area: V, source: V, piece: &Piece, chunk_at: Option<V>) -> V {
        let chunk = b.scale(source, self.channel.chunk as i64);
        let start = b.add(area, chunk);
        let element = chunk_at.map_or(piece.at, |at| b.sub(piece.at, at));
        let own = b.scale(element, self.elem.bytes() as i64);
        b.add(start, own)
    }

    /// Pushes a piece to each other rank: `value` gives what, by the peer's number. `chunk_at`: element at which the program's
    /// chunk starts, 0 if `None`.
    pub fn push(
        &self,
        b: &mut Builder,
        turn: &Turn,
        piece: &Piece,
        chunk_at: Option<V>,
        mut value: impl FnMut(&mut Builder, V) -> V,
    ) {
        let own = self.offset(b, turn.area, self.rank, piece, chunk_at);
        for (peer, delta) in &self.peers {
            let v = value(b, *peer);
            let at = b.add(*delta, own);
            piece.push(b, self.slab, at, v);
        }
    }

    /// Makes a piece of the area before this epoch's empty again.
    pub fn empty(&self, b: &mut Builder, turn: &Turn, piece: &Piece, chunk_at: Option<V>) {
        let word = if self.elem.bytes() == 2 { Elem::I16 } else { Elem::I32 };
        let nothing = b.int_of(word, &piece.shape(), i64::from(self.element()));
        for (source, _) in &self.peers {
            let at = self.offset(b, turn.before, *source, piece, chunk_at);
            piece.push(b, self.slab, at, nothing);
        }
    }

    fn element(&self) -> u32 {
        if self.elem.bytes() == 2 { self.channel.empty & 0xffff } else { self.channel.empty }
    }

    /// A piece as each rank has it, in the order of ranks: what arrives, and `own` in this rank's place. `view` is applied to
    /// what arrives.
    pub fn gather(
        &self,
        b: &mut Builder,
        turn: &Turn,
        (piece, chunk_at): (&Piece, Option<V>),
        own: V,
        view: impl Fn(&mut Builder, V) -> V,
        mut take: impl FnMut(&mut Builder, u32, V),
    ) {
        let others = self.channel.world - 1;
        let (mut seen, mut before) = (0, None);
        while seen < others {
            let group = self.group(piece, others - seen);
            let arrived = self.arrive(b, turn, (piece, chunk_at), (seen, group));
            for (i, row) in (seen..others).zip(arrived) {
                let row = view(b, row);
                take_in_order(b, self, i, (before, Some(row)), own, &mut take);
                before = Some(row);
            }
            seen += group.min(others - seen);
        }
        take_in_order(b, self, others, (before, None), own, &mut take);
    }

    /// Other ranks whose pieces are waited for together, of `left`; a power of two, and more than are left where that saves a
    /// wait.
    fn group(&self, piece: &Piece, left: u32) -> u32 {
        if !self.gpu {
            return 1;
        }
        let bytes = (u64::from(piece.width()) * self.elem.bytes()).div_ceil(u64::from(self.threads)).max(1);
        let most = (IN_FLIGHT / bytes).clamp(1, u64::from(left.next_power_of_two())) as u32;
        1 << most.ilog2()
    }

    /// Pieces of `group` of the other ranks from the `first` on, in the order of ranks: others below this rank have their own
    /// number, those from it on one more.
    fn arrive(
        &self,
        b: &mut Builder,
        turn: &Turn,
        (piece, chunk_at): (&Piece, Option<V>),
        (first, group): (u32, u32),
    ) -> Vec<V> {
        let element = i64::from(self.elem.bytes() as u32);
        let source = |b: &mut Builder, other: V| {
            let above = b.compare(Compare::LessEqual, self.rank, other);
            let one = b.offset(other, 1);
            b.select(above, one, other)
        };
        if !self.gpu {
            let other = b.int(i64::from(first));
            let source = source(b, other);
            let at = self.offset(b, turn.area, source, piece, chunk_at);
            let ty = TileType { elem: self.elem, shape: vec![piece.width()] };
            return vec![b.arrive((self.slab, at, None, &[element]), ty, None, self.element(), self.waiting)];
        }
        let index = b.iota(Elem::I64, group);
        let start = b.int(i64::from(first));
        let index = b.add(index, start);
        let others = self.channel.world - 1;
        let mask = if first + group > others {
            let others = b.int(i64::from(others));
            let there = b.compare(Compare::Less, index, others);
            Some(piece.mask_rows(b, there))
        } else {
            piece.mask_columns(b, group)
        };
        let sources = source(b, index);
        let chunks = b.scale(sources, self.channel.chunk as i64);
        let chunks = b.reshape(chunks, &[group, 1]);
        let zero = b.int(0);
        let at = self.offset(b, turn.area, zero, piece, chunk_at);
        let ty = TileType { elem: self.elem, shape: vec![group, piece.width()] };
        let arrived = b.arrive((self.slab, at, Some(chunks), &[0, element]), ty, mask, self.element(), self.waiting);
        (0..group).map(|i| b.row(arrived, i)).collect()
    }
}

/// Gives `take` what rank `source` has: of the others' pieces `below` if this rank is below it, `above` if it is above, else
/// `own`.
fn take_in_order(
    b: &mut Builder,
    mail: &Mailbox,
    source: u32,
    (below, above): (Option<V>, Option<V>),
    own: V,
    take: &mut impl FnMut(&mut Builder, u32, V),
) {
    let other = match (below, above) {
        (Some(below), Some(above)) => {
            let number = b.int(i64::from(source));
            let is_above = b.compare(Compare::Less, number, mail.rank);
            Some(b.select(is_above, above, below))
        }
        (one, two) => one.or(two),
    };
    let v = other.map_or(own, |other| b.select(mail.is_own[source as usize], own, other));
    take(b, source, v);
}
