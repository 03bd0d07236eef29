//! Data behind flags: every rank stores what it has into the others' areas, releases a flag there, and reads its own area once it
//! has acquired all flags. For data that is too much to send whole to every rank; docs/collectives.md argues why it holds.

use super::channel::{Channel, Flags, SIDES};
use super::mailbox::{modulo, next};
use super::peers::{Peers, channel_param};
use crate::kernels::{Argument, RowSpace};
use crate::target::Target;
use crate::tile::{Builder, Compare, Elem, Param, V};
use weldment_runtime::artifact::comm_table;

/// The exchange of one kernel.
pub struct Flagged {
    /// Its part of the slab.
    pub channel: Flags,
    /// The parameter of the channel.
    pub param: Param,
    /// The ranks.
    pub peers: Peers,
    /// i64 index of the program among those of the channel.
    program: V,
    /// i64 [g, 1]: bytes from this rank's slab to each rank's, and i1 [g, 1]: there is such a rank.
    everyone: (V, Option<V>),
}

/// One epoch of a program.
pub struct Side {
    /// Byte offset of the area from the channel's start.
    pub area: V,
    /// i32: what flags of this epoch hold.
    count: V,
}

impl Flagged {
    /// Declares the parameters of an exchange, which `arguments` then bind, and reads what is known of the ranks.
    pub fn open(
        b: &mut Builder,
        target: &Target,
        channel: Flags,
        threads: u32,
        program: V,
        arguments: &mut Vec<Argument>,
    ) -> Flagged {
        let param = channel_param(b, target);
        arguments.push(Argument::Channel(Channel::Flags(channel)));
        let peers = Peers::open(b, target, channel.world, threads, arguments);
        let g = channel.world.next_power_of_two();
        let mask = (g > channel.world).then(|| {
            let index = b.iota(Elem::I64, g);
            let world = b.int(i64::from(channel.world));
            let there = b.compare(Compare::Less, index, world);
            b.reshape(there, &[g, 1])
        });
        let at = b.int(comm_table::DELTAS as i64);
        let deltas = b.load(peers.waiting.comm, at, Elem::I64, &[g, 1], &[8, 8], mask);
        Flagged { channel, param, peers, program, everyone: (deltas, mask) }
    }

    /// Calls `body` for each row of a program, one epoch each, as [`super::mailbox::Mailbox::each_row`].
    pub fn each_row(
        &self,
        b: &mut Builder,
        rows: &RowSpace,
        (first, step): (V, Option<u64>),
        mut body: impl FnMut(&mut Builder, V, &Side),
    ) {
        let at = b.scale(self.program, 4);
        let epoch = b.load_scalar(self.param, at, Elem::I32);
        let last = match step {
            None => {
                let side = self.side(b, epoch);
                body(b, first, &side);
                side.count
            }
            Some(step) => {
                let count = rows.count(b);
                b.for_loop(first, count, step as i64, &[epoch], |b, row, carried| {
                    let side = self.side(b, carried[0]);
                    body(b, row, &side);
                    vec![side.count]
                })[0]
            }
        };
        b.signal((self.param, at, None), last, None, false);
    }

    fn side(&self, b: &mut Builder, epoch: V) -> Side {
        let start = b.scale(self.program, (SIDES * self.channel.side_bytes()) as i64);
        let start = b.offset(start, self.channel.areas() as i64);
        let side = modulo(b, epoch, 0, SIDES);
        let at = b.scale(side, self.channel.side_bytes() as i64);
        Side { area: b.add(start, at), count: next(b, epoch) }
    }

    /// Tells all ranks that this one is through with `stage` of the epoch, and waits until all have told so: what they stored
    /// before may then be read.
    pub fn meet(&self, b: &mut Builder, side: &Side, stage: u64) {
        let (deltas, mask) = self.everyone;
        let flags = b.scale(self.program, self.channel.flag_bytes() as i64);
        let flags = b.offset(flags, (self.channel.flags() + stage * self.channel.stage_bytes()) as i64);
        let own = b.scale(self.peers.rank, 4);
        let own = b.add(flags, own);
        let g = self.channel.world.next_power_of_two();
        let count = b.broadcast(side.count, &[g, 1]);
        b.signal((self.param, own, Some(deltas)), count, mask, true);
        b.wait_for((self.param, flags, &[4, 0]), count, mask, self.peers.waiting);
    }
}
