//! Ranks: the processes that run one model together, and the memory that they share.
//!
//! The ranks of a host meet at an abstract Unix socket ([`rendezvous`]), which nothing outlives, and share one anonymous file: a
//! control page for each rank ([`control`]) and, on the host target, the slabs of all ranks. A [`Group`] gives barriers, exchanges
//! small messages and keeps a watchdog: a rank that dies, stops, falls behind, does something else than the others or returns an
//! error ends the pending calls of all ranks with an error that names rank, step and cause ([`Error::Rank`](crate::Error::Rank)).

pub mod control;
pub(crate) mod cpu_time;
pub mod fault;
pub mod group;
pub(crate) mod inner;
mod library;
mod looks;
pub(crate) mod member;
mod ranks;
mod relax;
mod rendezvous;
pub mod slab;
mod watchdog;

pub use control::Phase;
pub use group::{Group, GroupOptions};
pub use library::Library;
pub use ranks::Ranks;

use std::time::Duration;

/// How long a rank may be silent, behind or missing before the job ends.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
