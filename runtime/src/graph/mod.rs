//! Capture once, replay many. Every driver is used through this code.

mod capture;
mod dims;

pub use capture::{Between, Capturing, Regions, StepGraph};
pub use dims::Dims;
