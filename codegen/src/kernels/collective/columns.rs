//! Rows cut into chunks of columns, a program each: for rows that may be as wide as a vocabulary.

use super::mailbox::{Mailbox, each_row};
use super::peers::Peers;
use super::{Programs, channel_programs, programs};
use crate::channel::Channel;
use crate::kernels::schedule::{ELEMENTS, Piece, Walk, threads_for};
use crate::request::{Argument, Request, RowSpace};
use crate::tile::{Builder, Elem, V};

/// Widest tile of a row on a host.
const WIDTH: u64 = 32;

/// Rows of `n` elements that are exchanged chunk by chunk.
pub struct Columns {
    /// Elements of a row.
    n: u64,
    /// Width of a chunk on a GPU; a host's program takes a whole row.
    chunk: Option<u64>,
    threads: u32,
    dealt: Programs,
    channel: Channel,
    elem: Elem,
}

impl Columns {
    /// Deals out `rows` of `n` elements among the programs of a grid; `empty` as [`Channel::empty`].
    pub fn new(
        b: &mut Builder,
        r: &Request<'_>,
        world: u32,
        rows: &RowSpace,
        (n, elem): (u64, Elem),
        empty: u32,
    ) -> Columns {
        if r.target().gpu().is_none() {
            let dealt = programs(b, r, rows, channel_programs(r.target(), world, n * elem.bytes()));
            let channel = Channel::new(world, dealt.rows, n * elem.bytes(), empty);
            return Columns { n, chunk: None, threads: 1, dealt, channel, elem };
        }
        let width = n.next_power_of_two().min(ELEMENTS);
        let across = n.div_ceil(width);
        let threads = threads_for(width, 4);
        b.threads(threads);
        b.grid_constant(1, across);
        // Wide rows share out the programs that narrow ones have to themselves.
        let most = channel_programs(r.target(), world, width * elem.bytes());
        let dealt = programs(b, r, rows, (most / across).max(1));
        let channel = Channel::new(world, dealt.rows * across, width * elem.bytes(), empty);
        let channel = Channel { row: n * elem.bytes(), ..channel };
        Columns { n, chunk: Some(width), threads, dealt, channel, elem }
    }

    /// Opens the exchange, and calls `body` for each row with the pieces that the program has of it. `body` is given the row, and a
    /// function that walks its pieces.
    pub fn exchange(
        &self,
        b: &mut Builder,
        r: &Request<'_>,
        rows: &RowSpace,
        arguments: &mut Vec<Argument>,
        mut push: impl FnMut(&mut Builder, &Exchange<'_>, V, &Piece),
        mut take: impl FnMut(&mut Builder, &Exchange<'_>, V, &Piece),
    ) {
        let first = b.program_id(0);
        let (program, at) = match self.chunk {
            None => (first, None),
            Some(width) => {
                let chunk = b.program_id(1);
                let program = b.scale(first, self.n.div_ceil(width) as i64);
                (b.add(program, chunk), Some(b.scale(chunk, width as i64)))
            }
        };
        let peers = Peers::open(b, r.target(), self.channel.world, self.threads, arguments);
        let mail = Mailbox::open(b, r.target(), (self.channel, self.elem), peers, program, arguments);
        each_row(b, [&mail], rows, (first, self.dealt.step), |b, row, [turn]| {
            let each = |b: &mut Builder, body: &mut dyn FnMut(&mut Builder, &Exchange<'_>, V, &Piece)| {
                let exchange = Exchange { mail: &mail, turn: &turn, at };
                match (self.chunk, at) {
                    (Some(width), Some(at)) => {
                        let piece = Piece::of_row(b, at, width as u32, self.n);
                        body(b, &exchange, row, &piece);
                    }
                    _ => {
                        let walk = Walk::of(self.n, WIDTH, None, None, row);
                        walk.each(b, &[], |b, piece, _| {
                            body(b, &exchange, row, piece);
                            Vec::new()
                        });
                    }
                }
            };
            each(b, &mut push);
            each(b, &mut take);
        });
    }
}

/// A mailbox at one epoch, for pieces of one chunk.
pub struct Exchange<'m> {
    /// The mailbox.
    pub mail: &'m Mailbox,
    turn: &'m super::mailbox::Turn,
    at: Option<V>,
}

impl Exchange<'_> {
    /// Pushes what `value` gives for each peer's number, and empties the areas before.
    pub fn push(&self, b: &mut Builder, piece: &Piece, mut value: impl FnMut(&mut Builder, V) -> V) {
        let values: Vec<V> = self.mail.peers.others.iter().map(|(peer, _)| value(b, *peer)).collect();
        self.mail.push(b, self.turn, piece, self.at, &values);
        self.mail.empty(b, self.turn, piece, self.at);
    }

    /// Calls `take` with each rank's number and piece, `own` in this rank's place.
    pub fn gather(
        &self,
        b: &mut Builder,
        piece: &Piece,
        own: V,
        view: impl Fn(&mut Builder, V) -> V,
        take: impl FnMut(&mut Builder, u32, V),
    ) {
        self.mail.gather(b, self.turn, (piece, self.at), own, view, take);
    }
}
