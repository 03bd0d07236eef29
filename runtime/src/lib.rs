//! Maps a Weldment artifact (`model.weld`), captures it once and replays it.
//!
//! ```
//! # mod tiny { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/mod.rs")); }
//! # #[cfg(not(target_arch = "x86_64"))]
//! # fn main() {}
//! # #[cfg(target_arch = "x86_64")]
//! # fn main() {
//! #     let dir = tempfile::tempdir().unwrap();
//! #     tiny::write_tiny(&dir.path().join("model.weld"));
//! #     generate(&dir.path().join("model.weld")).unwrap();
//! # }
//! use weldment_runtime::{Artifact, Device, GenerateOptions, Session, SessionOptions};
//!
//! # fn generate(path: &std::path::Path) -> weldment_runtime::Result<()> {
//! let artifact = Artifact::open(path)?;
//! let device = Device::host(0)?;
//! let mut session = Session::new(&artifact, &device, SessionOptions::default())?;
//! let prompt = [2, 3];
//! let generation = session.generate(&prompt, &GenerateOptions::default(), |id| {
//!     println!("{id}");
//!     std::ops::ControlFlow::Continue(())
//! })?;
//! println!("{:.0} tokens/s", generation.decode_tokens_per_second());
//! # assert_eq!(generation.tokens, [4, 5, 6]);
//! # Ok(())
//! # }
//! ```
//!
//! The crate depends on no compiler crate. [`artifact`] declares the file format once, for the compiler that writes it and the
//! runtime that reads it; [`pack`] declares the weight layouts; [`session`] is the road from a file to logits.

pub mod artifact;
pub mod cli;
pub mod codec;
pub mod comm;
pub mod conformance;
pub mod cpu;
pub mod device;
pub mod driver;
pub mod error;
pub mod generate;
pub mod graph;
pub mod log;
pub mod map;
pub mod memory;
pub mod pack;
pub mod sampler;
pub mod session;
pub mod shapes;
#[cfg(feature = "tokenizer")]
pub mod text;
pub mod values;
pub mod weights;

pub use artifact::Artifact;
pub use device::{Device, DeviceChoice};
pub use error::{Error, Result};
pub use generate::{GenerateOptions, Generation, Stop};
pub use sampler::Sampling;
pub use session::{Session, SessionOptions, StepInput, Stream};
pub use weldment_artifact::DType;

/// Hex blake3 of `bytes`: how artifacts name their sections, tensors and code.
pub fn blake3_hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
