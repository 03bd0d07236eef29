//! Capture once, replay many. Every driver is used through this code.

mod capture;
mod copies;
mod dims;
mod single;

pub(crate) use capture::{Between, Capturing, EntryGraph, Regions};
pub use copies::CapturedCopy;
pub(crate) use copies::{copies, launched_copies};
pub(crate) use dims::Dims;
pub use single::{SingleSteps, Step};
