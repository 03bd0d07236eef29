//! What the compiler writes and the runtime reads, declared once: element types ([`DType`]), weight layouts ([`layout`]), the [roles](role) of an entry's symbols and inputs,
//! the [`manifest`], its [`limits`] and its [checks](check::check_manifest), the file's [`format`], the table that kernels of collectives
//! read ([`comm_table`]), and what AMD's loader asks of a code object ([`code_object`]).
//!
//! The crate opens no file and drives no device. Nothing here is unsafe, and nothing panics on any bytes.

pub mod block;
pub mod check;
pub mod code_object;
pub mod comm_table;
mod compact;
pub mod dtype;
pub mod error;
pub mod format;
pub mod layout;
pub mod limits;
pub mod manifest;
pub mod role;
mod shards;

pub use block::layout_for;
pub use dtype::DType;
pub use error::{Error, Result};
pub use layout::{AffineBlocks, Layout, Raw, RowsInterleaved};
pub use manifest::*;
pub use role::{InputRole, SymbolRole};
