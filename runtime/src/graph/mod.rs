//! Capture once, replay many. Every driver is used through this code.

mod capture;
mod copies;
mod dims;
mod single;

pub use capture::{Between, Capturing, Regions, StepGraph};
pub use copies::{CapturedCopy, copies, launched_copies};
pub use dims::Dims;
pub use single::{SingleSteps, Step};
