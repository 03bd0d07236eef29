//! The passes of Weldment: equality saturation over the graph IR with named, classed rewrites, extraction by a
//! target's cost model, bufferisation, and the match report.
#![forbid(unsafe_code)]

pub mod buffer;
mod correspondence;
mod cut;
pub mod egraph;
pub mod error;
pub mod extract;
pub mod pipeline;
pub mod probe;
pub mod regions;
pub mod report;
pub mod rules;
pub mod shard;
mod solve;
pub mod specialise;
pub mod target;
pub mod units;

#[cfg(test)]
extern crate self as weldment_passes;

pub use correspondence::Correspondence;
pub use error::PassError;
pub use pipeline::{Optimised, Options, optimise};
pub use probe::{Probe, Rewrite};
pub use rules::Numerics;
pub use target::{ReferenceTarget, Refusal, TargetModel};
