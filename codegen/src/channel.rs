//! Channels: the parts of the symmetric slab through which the programs of collectives exchange data by sentinels. Code
//! generation lays them out; their layout is the same on every rank. Launches with equal channels share one: the stream orders them.

use weldment_artifact::SlabFill;

/// Areas that a program's epochs take in turn. One is being read, the one before is made empty again, and peers that are ahead write
/// the next; the fourth makes the number a power of two, so that turns survive the wrap of the epoch.
pub const TURNS: u64 = 4;

/// Bytes that the parts of a channel start at multiples of.
const LINE: u64 = 128;

/// Bytes that what a rank sends is a multiple of: the widest vectors.
const VECTOR: u64 = 16;

/// A part of the slab.
///
/// | part | bytes | what |
/// |---|---|---|
/// | epochs | 4 a program | uses so far, u32, wrapping; only the rank itself writes and reads them |
/// | areas | programs x 4 x world x chunk | by program, epoch % 4 and the rank that wrote it |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Channel {
    /// Ranks.
    pub world: u32,
    /// Programs that exchange independently of each other.
    pub programs: u64,
    /// Bytes that a program gets of one rank in one epoch, a multiple of 16.
    pub chunk: u64,
    /// Bytes of a rank's row, of which programs have chunks. Where the last chunk ends is what is made empty again: launches whose rows end
    /// elsewhere may not share a channel.
    pub row: u64,
    /// Bits of the element, repeated to 32, that stands where nothing has arrived.
    pub empty: u32,
    /// Which of the exchanges of one launch: those may not share a channel.
    pub stage: u32,
}

impl Channel {
    /// A channel for rows of `bytes`, whole, a program, rank and epoch.
    pub fn new(world: u32, programs: u64, bytes: u64, empty: u32) -> Channel {
        Channel { world, programs, chunk: bytes.next_multiple_of(VECTOR), row: bytes, empty, stage: 0 }
    }

    /// Byte at which the areas start.
    pub fn areas(&self) -> u64 {
        (4 * self.programs).next_multiple_of(LINE)
    }

    /// Bytes of a program's areas of one turn.
    pub fn turn_bytes(&self) -> u64 {
        (u64::from(self.world) * self.chunk).next_multiple_of(LINE)
    }

    /// Bytes of the channel.
    pub fn bytes(&self) -> u64 {
        self.areas() + self.programs * TURNS * self.turn_bytes()
    }

    /// What a channel at byte `start` of the slab holds before its first use; the rest is 0.
    pub fn fill(&self, start: u64) -> SlabFill {
        SlabFill { offset: start + self.areas(), bytes: self.bytes() - self.areas(), word: self.empty }
    }
}
