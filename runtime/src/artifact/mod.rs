//! The `.weld` file: [`write_artifact`] writes one, [`Artifact::open`] maps and checks one. What it says is declared by
//! [`weldment_artifact`], which the compiler shares.

mod reader;
mod writer;

pub use reader::Artifact;
pub use weldment_artifact::manifest::*;
pub use weldment_artifact::{
    AffineBlocks, InputRole, Layout, Raw, RowsInterleaved, SymbolRole, block, check, comm_table, format, layout,
    layout_for, limits, manifest, role,
};
pub use writer::{write_artifact, write_atomically};
