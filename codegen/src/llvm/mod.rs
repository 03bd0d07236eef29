//! Lowering of tile programs to LLVM IR and objects. All of inkwell lives in this folder.

mod dot;
mod elementwise;
mod exchange;
mod gpu;
mod host;
mod lower;
mod memory;
mod ops;

use crate::setup::Symbols;

pub use gpu::{GpuObject, compile_gpu};
pub use host::{Emit, HostObject, HostTarget, compile_host};

use inkwell::builder::BuilderError;
use thiserror::Error;

/// Failures of the LLVM lowering: each is a bug of ours or a broken LLVM installation, never bad user input.
#[derive(Debug, Error)]
pub enum LlvmError {
    /// inkwell refused to build an instruction.
    #[error("LLVM IR builder: {0}")]
    Builder(#[from] BuilderError),
    /// A tile program is malformed.
    #[error("{0}")]
    Tile(String),
    /// LLVM reports a problem (verifier, target machine, emission).
    #[error("LLVM: {0}")]
    Llvm(String),
    /// An intrinsic outside the allow list, or one that LLVM does not have.
    #[error("LLVM intrinsic {0} is not available")]
    Intrinsic(String),
}

/// The place of a symbol in the dims block, which all kernels share, in bytes over 8.
fn slot(symbols: &Symbols, name: &str) -> Result<i64, LlvmError> {
    let slot = symbols.slot(name).and_then(|slot| i64::try_from(slot).ok());
    slot.ok_or_else(|| LlvmError::Tile(format!("symbol {name} has no slot in the dims block")))
}
