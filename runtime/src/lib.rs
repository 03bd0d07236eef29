//! Maps a Weldment artifact (`model.weld`), captures it once and replays it.
//!
//! The crate depends on no compiler crate. [`artifact`] declares the file format once, for the compiler that writes it and the
//! runtime that reads it; [`pack`] declares the weight layouts; [`session`] is the road from a file to logits.

pub mod artifact;
pub mod cli;
pub mod codec;
pub mod cpu;
pub mod driver;
pub mod dtype;
pub mod error;
pub mod generate;
pub mod graph;
pub mod log;
pub mod map;
pub mod memory;
pub mod pack;
pub mod sampler;
pub mod session;
#[cfg(feature = "tokenizer")]
pub mod text;
pub mod weights;

pub use artifact::Artifact;
pub use dtype::DType;
pub use error::{Error, Result};
pub use generate::{GenerateOptions, Generation, Stop};
pub use sampler::Sampling;
pub use session::{Device, Session, SessionOptions, StepInput, Stream};
