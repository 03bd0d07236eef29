//! Formats of model files: what Hugging Face directories and GGUF files hold, before any of it is a model.

mod error;
pub mod gguf;
pub mod hf;
mod json;
mod mapped_file;
mod quantization;
mod tokenizer;

pub(crate) use error::shown;
pub use error::{FrontendError, Place};
pub use json::Object;
pub use mapped_file::Mapping;
pub use quantization::{ActivationScales, Quantization, WeightScales, is_code};
pub use tokenizer::TokenizerData;
