//! The collective protocols, checked by trying every interleaving: the memory events of the tile programs themselves, on two and
//! three ranks over several launches, under a memory model in which stores arrive late and out of order.

pub mod explore;
pub mod program;

pub use explore::{Content, Event, Explored, Order, Violation, Word, explore};
pub use program::{Programs, Slabs};
