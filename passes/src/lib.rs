//! The passes of Weldment: equality saturation over the graph IR with named, classed rewrites, extraction by a
//! target's cost model, bufferisation, and the match report.
#![forbid(unsafe_code)]

pub mod buffer;
pub mod target;

pub use target::{ReferenceTarget, Refusal, TargetModel};
