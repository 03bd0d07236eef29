//! Kernels and code: the tile IR, one file per kernel family, the LLVM lowering, kernel selection and linking.

pub mod channel;
mod channels;
pub mod choices;
mod compile;
mod cost;
pub mod family;
mod generate;
pub mod kernels;
pub mod llvm;
pub mod object;
pub mod request;
pub mod select;
pub mod setup;
pub mod target;
pub mod tile;

pub use compile::{CodegenError, Compiled, Externals, Prepared, Statics, VariantPlan, by_rank, compile, prepare};
pub use generate::{Kernels, generate};
