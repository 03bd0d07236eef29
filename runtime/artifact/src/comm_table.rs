//! The comm table: what a kernel of a collective must know of its rank. The session writes it once; kernels only read.
//!
//! | byte | type | what |
//! |---|---|---|
//! | 0 | i64 | number of this rank |
//! | 8 | i64 | ranks |
//! | 16 | i64 | bytes from the base of this rank's slab to its abort word, a u32 that is not 0 once the job is over; on GPUs a u32 follows it in which waiting programs leave, now and then, how often they have looked |
//! | 24 | u64 | host: address of the function that a waiting program calls between looks ([`Relax`]); 0 on GPUs |
//! | 64 + 8 r | i64 | bytes from the base of this rank's slab to that of rank r's, as this rank addresses it |

use crate::limits::MAX_WORLD;

/// Number of this rank.
pub const RANK: u64 = 0;
/// Ranks.
pub const WORLD: u64 = 8;
/// Distance to the abort word.
pub const ABORT: u64 = 16;
/// Address of the host's [`Relax`].
pub const RELAX: u64 = 24;
/// Distances to the slabs of all ranks.
pub const DELTAS: u64 = 64;
/// Size of the table.
pub const BYTES: u64 = DELTAS + 8 * MAX_WORLD as u64;

/// Called by host code between two looks at what has not arrived, with the comm table and the number of looks so far: rests the
/// longer the more there were. Returns 0, or anything else once the job is over and the program is to stop waiting.
pub type Relax = extern "C" fn(table: *const u8, looks: u64) -> u32;
