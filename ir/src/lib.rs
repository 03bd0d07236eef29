//! The graph IR of Weldment: op table, dtypes, dims, graph, text form, verifier and reference interpreters.
#![forbid(unsafe_code)]

pub mod attr;
pub mod codec;
mod collective;
pub mod docs;
pub mod effort;
pub mod error;
pub mod generate;
pub mod graph;
pub mod indices;
pub mod inferred_roles;
pub mod interpret;
pub mod op;
pub mod paged;
mod shape_rules;
pub mod signature;
pub mod text;
pub mod types;
pub mod verify;

pub use attr::{Attr, AttrKind, Real};
pub use error::IrError;
pub use graph::{Graph, Node, NodeId, Output, OutputKind, Range, Value};
pub use op::{Category, Op, OpInfo, OpKind};
pub use types::{Dim, MAX_RANK, Shape, TensorType};
pub use verify::verify;
pub use weldment_artifact::DType;
pub use weldment_artifact::error::SizeError;
