//! Front ends: a model file or directory in, a [`Checkpoint`] out. What follows never asks which format it was.

mod checkpoint;
mod config;
mod error;
pub mod gguf;
pub mod graph;
pub mod hf;
mod layout;
mod mapping;
mod quantization;
mod random;
mod tokenizer;

pub use checkpoint::{Checkpoint, TensorSource, TensorView, WeightSource};
pub use config::{Architecture, ModelConfig, RopeConfig, RopeKind};
pub use error::{FrontendError, Place};
pub use layout::{Expected, Role, expected_tensors};
pub use mapping::Mapping;
pub use quantization::{ActivationScales, Quantization, WeightScales, is_code};
pub use tokenizer::TokenizerData;
