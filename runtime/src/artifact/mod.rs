//! The `.weld` file: format, limits, checks. Nothing here is unsafe, and nothing here panics on any bytes.
//!
//! [`write_artifact`] writes one, [`Artifact::open`] maps and checks one.

pub mod check;
pub mod comm_table;
mod compact;
pub mod format;
pub mod layout;
pub mod limits;
pub mod manifest;
mod reader;
mod shards;
mod writer;

pub use layout::{AffineBlocks, Layout, Raw, RowsInterleaved};
pub use manifest::*;
pub use reader::Artifact;
pub use writer::{write_artifact, write_atomically};
