//! The LL protocol with sentinels: every rank pushes what it has into the others' areas and polls its own until no element in it is
//! empty. No fence and no flag, so that a small message costs one way through the link; docs/collectives.md argues why it holds.

use super::peers::{Peers, channel_param};
use crate::channel::{Channel, TURNS};
use crate::kernels::schedule::Piece;
use crate::request::{Argument, RowSpace};
use crate::target::Target;
use crate::tile::{Binary, Builder, Conversion, Elem, Param, TileType, V};

/// The exchange of one kernel.
pub struct Mailbox {
    channel: Channel,
    elem: Elem,
    param: Param,
    /// The ranks.
    pub peers: Peers,
    /// i64 index of the program among those of the channel.
    program: V,
}

/// The areas of one epoch: byte offsets from the channel's start.
pub struct Turn {
    area: V,
    before: V,
}

/// Calls `body` for each row of a program that has rows `first`, `first + step`, ... of `rows`, one epoch of each of `mails` a row;
/// for its first row alone where `step` covers all rows. Programs without a row leave the channels alone.
pub fn each_row<const N: usize>(
    b: &mut Builder,
    mails: [&Mailbox; N],
    rows: &RowSpace,
    (first, step): (V, Option<u64>),
    mut body: impl FnMut(&mut Builder, V, [Turn; N]),
) {
    let epochs = mails.map(|mail| {
        let at = mail.epoch(b);
        b.load_scalar(mail.param, at, Elem::I32)
    });
    let mut round = |b: &mut Builder, row: V, epochs: &[V]| -> Vec<V> {
        let turns = std::array::from_fn(|i| mails[i].turn(b, epochs[i]));
        body(b, row, turns);
        epochs.iter().map(|epoch| next(b, *epoch)).collect()
    };
    let Some(step) = step else {
        let last = round(b, first, &epochs);
        for (mail, next) in mails.iter().zip(last) {
            let at = mail.epoch(b);
            // The stream's order is enough: the next use is another launch.
            b.signal(mail.param, at, next, false);
        }
        return;
    };
    let count = rows.count(b);
    b.for_loop(first, count, step as i64, &epochs, |b, row, epochs| {
        let last = round(b, row, epochs);
        for (i, (mail, next)) in mails.iter().zip(&last).enumerate() {
            let at = mail.epoch(b);
            // Within a launch nothing else orders what was emptied in this epoch before what is pushed in the next. The last
            // release does, for all of them.
            let release = i + 1 == N;
            b.signal(mail.param, at, *next, release);
            if release {
                b.wait_for(mail.param, at, *next, mail.peers.waiting);
            }
        }
        last
    });
}

impl Mailbox {
    /// Declares the parameter of an exchange of `elem`s among `peers`, which `arguments` then bind. `program`: index of the program,
    /// of as many as the channel has.
    pub fn open(
        b: &mut Builder,
        target: &Target,
        (channel, elem): (Channel, Elem),
        peers: Peers,
        program: V,
        arguments: &mut Vec<Argument>,
    ) -> Mailbox {
        let param = channel_param(b, target, channel.stage);
        arguments.push(Argument::Channel(channel));
        Mailbox { channel, elem, param, peers, program }
    }

    /// Byte of the program's epoch.
    fn epoch(&self, b: &mut Builder) -> V {
        b.scale(self.program, 4)
    }

    fn turn(&self, b: &mut Builder, epoch: V) -> Turn {
        let start = b.scale(self.program, (TURNS * self.channel.turn_bytes()) as i64);
        let start = b.offset(start, self.channel.areas() as i64);
        let mut area = |ahead: i64| {
            let turn = turn_of(b, epoch, ahead);
            let at = b.scale(turn, self.channel.turn_bytes() as i64);
            b.add(start, at)
        };
        Turn { area: area(0), before: area(TURNS as i64 - 1) }
    }

    /// Byte offset of a piece in the chunk of rank `source` (i64) of an area. `chunk_at`: element at which the chunk starts.
    fn offset(&self, b: &mut Builder, area: V, source: Option<V>, piece: &Piece, chunk_at: Option<V>) -> V {
        let start = match source {
            Some(source) => {
                let chunk = b.scale(source, self.channel.chunk as i64);
                b.add(area, chunk)
            }
            None => area,
        };
        let element = chunk_at.map_or(piece.at, |at| b.sub(piece.at, at));
        let own = b.scale(element, self.elem.bytes() as i64);
        b.add(start, own)
    }

    /// Pushes a piece to each other rank: its value, in the order of `peers.others`. `chunk_at`: element at which the program's chunk
    /// starts, 0 if `None`.
    pub fn push(&self, b: &mut Builder, turn: &Turn, piece: &Piece, chunk_at: Option<V>, values: &[V]) {
        debug_assert_eq!(values.len(), self.peers.others.len());
        let own = self.offset(b, turn.area, Some(self.peers.rank), piece, chunk_at);
        for ((_, delta), v) in self.peers.others.iter().zip(values) {
            let at = b.add(*delta, own);
            piece.push(b, self.param, at, *v);
        }
    }

    /// Pushes one value to all other ranks.
    pub fn push_one(&self, b: &mut Builder, turn: &Turn, piece: &Piece, v: V) {
        self.push(b, turn, piece, None, &vec![v; self.peers.others.len()]);
    }

    /// Pushes a piece of this rank's chunk to every rank, this one too.
    pub fn push_to_all(&self, b: &mut Builder, turn: &Turn, piece: &Piece, v: V) {
        let own = self.offset(b, turn.area, Some(self.peers.rank), piece, None);
        self.push_one(b, turn, piece, v);
        piece.push(b, self.param, own, v);
    }

    /// Makes a piece of the area before this epoch's empty again.
    pub fn empty(&self, b: &mut Builder, turn: &Turn, piece: &Piece, chunk_at: Option<V>) {
        let nothing = self.nothing(b, piece);
        for (source, _) in &self.peers.others {
            let at = self.offset(b, turn.before, Some(*source), piece, chunk_at);
            piece.push(b, self.param, at, nothing);
        }
    }

    /// Makes a piece of all ranks' chunks, without gaps side by side, in the area before this epoch's empty again.
    pub fn empty_row(&self, b: &mut Builder, turn: &Turn, piece: &Piece) {
        let nothing = self.nothing(b, piece);
        let at = self.offset(b, turn.before, None, piece, None);
        piece.push(b, self.param, at, nothing);
    }

    /// A piece of all ranks' chunks, without gaps side by side.
    pub fn row(&self, b: &mut Builder, turn: &Turn, piece: &Piece) -> V {
        let at = self.offset(b, turn.area, None, piece, None);
        let ty = TileType { elem: self.elem, shape: piece.shape() };
        piece.arrive(b, (self.param, at), ty, self.element(), self.peers.waiting)
    }

    fn nothing(&self, b: &mut Builder, piece: &Piece) -> V {
        let word = if self.elem.bytes() == 2 { Elem::I16 } else { Elem::I32 };
        b.int_of(word, &piece.shape(), i64::from(self.element()))
    }

    /// Bits of the element that stands for nothing.
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
        take: impl FnMut(&mut Builder, u32, V),
    ) {
        let at = self.offset(b, turn.area, None, piece, chunk_at);
        let arrive = |b: &mut Builder, (at, parts, strides, ty, mask): super::peers::Wanted<'_>| {
            b.arrive((self.param, at, parts, strides), ty, mask, self.element(), self.peers.waiting)
        };
        self.peers.in_order(b, (piece, self.elem, at, self.channel.chunk), own, arrive, view, take);
    }
}

/// The epoch after `epoch`.
fn next(b: &mut Builder, epoch: V) -> V {
    let one = b.int_of(Elem::I32, &[], 1);
    b.add(epoch, one)
}

/// i64 `(epoch + ahead) % TURNS`, a power of two.
fn turn_of(b: &mut Builder, epoch: V, ahead: i64) -> V {
    let ahead = b.int_of(Elem::I32, &[], ahead);
    let turn = b.add(epoch, ahead);
    let last = b.int_of(Elem::I32, &[], TURNS as i64 - 1);
    let turn = b.binary(Binary::And, turn, last);
    b.convert(Conversion::Unsigned, turn, Elem::I64)
}
