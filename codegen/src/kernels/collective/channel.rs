//! Channels: the parts of the symmetric slab through which the programs of collectives exchange data. Code generation lays them
//! out; their layout is the same on every rank. Launches with equal channels share one: the stream orders them.

use weldment_runtime::artifact::SlabFill;

/// Areas that a program's epochs take in turn where data is its own flag. One is being read, the one before is made empty again,
/// and peers that are ahead write the next; the fourth makes the number a power of two, so that turns survive the wrap of the
/// epoch.
pub const TURNS: u64 = 4;

/// Areas that epochs take in turn where flags order everything: peers that are ahead write the other one.
pub const SIDES: u64 = 2;

/// Stages that have flags of their own.
pub const STAGES: u64 = 2;

/// Bytes that the parts of a channel start at multiples of.
const LINE: u64 = 128;

/// A part of the slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Data that is its own flag.
    Mail(Mail),
    /// Data behind flags.
    Flags(Flags),
}

impl Channel {
    /// Bytes of the channel.
    pub fn bytes(&self) -> u64 {
        match self {
            Channel::Mail(mail) => mail.areas() + mail.programs * TURNS * mail.turn_bytes(),
            Channel::Flags(flags) => flags.areas() + flags.programs * SIDES * flags.side_bytes(),
        }
    }

    /// What a channel at byte `start` of the slab holds before its first use; the rest is 0.
    pub fn fill(&self, start: u64) -> Option<SlabFill> {
        let Channel::Mail(mail) = self else { return None };
        let bytes = mail.programs * TURNS * mail.turn_bytes();
        Some(SlabFill { offset: start + mail.areas(), bytes, word: mail.empty })
    }
}

/// | part | bytes | what |
/// |---|---|---|
/// | epochs | 4 a program | uses so far, u32, wrapping; only the rank itself writes and reads them |
/// | areas | programs x 4 x world x chunk | by program, epoch % 4 and the rank that wrote it |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mail {
    /// Ranks.
    pub world: u32,
    /// Programs that exchange independently of each other.
    pub programs: u64,
    /// Bytes that a program gets of one rank in one epoch, a multiple of 128.
    pub chunk: u64,
    /// Bits of the element, repeated to 32, that stands where nothing has arrived.
    pub empty: u32,
}

impl Mail {
    /// A channel for `bytes` a program, rank and epoch.
    pub fn new(world: u32, programs: u64, bytes: u64, empty: u32) -> Mail {
        Mail { world, programs, chunk: bytes.next_multiple_of(LINE), empty }
    }

    /// Byte at which the areas start.
    pub fn areas(&self) -> u64 {
        (4 * self.programs).next_multiple_of(LINE)
    }

    /// Bytes of a program's areas of one turn.
    pub fn turn_bytes(&self) -> u64 {
        u64::from(self.world) * self.chunk
    }
}

/// | part | bytes | what |
/// |---|---|---|
/// | epochs | 4 a program | as in [`Mail`] |
/// | flags | programs x 2 x world x 4, a program's on lines of its own | by program, stage and rank: epochs that the rank is through with, u32, wrapping |
/// | areas | programs x 2 x (world x slice + row) | by program and epoch % 2: a slice by the rank that wrote it, then a whole row |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flags {
    /// Ranks.
    pub world: u32,
    /// Programs that exchange independently of each other.
    pub programs: u64,
    /// Bytes that a program gets of one rank in one epoch, a multiple of 128.
    pub slice: u64,
    /// Bytes of the row that all ranks put together, a multiple of 128.
    pub row: u64,
}

impl Flags {
    /// A channel for slices and rows of so many bytes.
    pub fn new(world: u32, programs: u64, slice: u64, row: u64) -> Flags {
        Flags { world, programs, slice: slice.next_multiple_of(LINE), row: row.next_multiple_of(LINE) }
    }

    /// Byte at which the flags start.
    pub fn flags(&self) -> u64 {
        (4 * self.programs).next_multiple_of(LINE)
    }

    /// Bytes of a stage's flags of one program.
    pub fn stage_bytes(&self) -> u64 {
        4 * u64::from(self.world)
    }

    /// Bytes from a program's flags to the next one's.
    pub fn flag_bytes(&self) -> u64 {
        (STAGES * self.stage_bytes()).next_multiple_of(LINE)
    }

    /// Byte at which the areas start.
    pub fn areas(&self) -> u64 {
        self.flags() + self.programs * self.flag_bytes()
    }

    /// Bytes from an area's start to its row.
    pub fn slices(&self) -> u64 {
        u64::from(self.world) * self.slice
    }

    /// Bytes of a program's area of one side.
    pub fn side_bytes(&self) -> u64 {
        self.slices() + self.row
    }
}
