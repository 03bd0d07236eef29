//! Errors of the IR: each names what was found and what would be accepted.

use thiserror::Error;
use weldment_artifact::error::{SizeError, UnknownDType};

/// Anything that can be wrong with a type, an op or a graph.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IrError {
    /// A dtype name that is not in the table.
    #[error(transparent)]
    UnknownDType(#[from] UnknownDType),
    /// A tensor without a size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// An op name that is not in the table.
    #[error("unknown op `{0}`; docs/ops.md lists every op")]
    UnknownOp(String),
    /// Operand or attribute count, operand type or attribute value is not what the op's table row says.
    #[error("{op}: {message}")]
    InvalidOp {
        /// Op name.
        op: &'static str,
        /// Found and accepted.
        message: String,
    },
    /// A graph-level rule is broken.
    #[error("{path}: {message}")]
    InvalidGraph {
        /// Source path of the node, or the graph's name.
        path: String,
        /// Found and accepted.
        message: String,
    },
    /// Text IR that does not parse.
    #[error("line {line}, column {column}: {message}")]
    Parse {
        /// 1-based line.
        line: usize,
        /// 1-based column.
        column: usize,
        /// Found and accepted.
        message: String,
    },
    /// A value cannot be computed by the interpreter (out-of-range index, wrong input shape).
    #[error("{path}: {message}")]
    Interpret {
        /// Source path of the node.
        path: String,
        /// Found and accepted.
        message: String,
    },
    /// The ring met a divisor without an inverse: draw the case again.
    #[error("{path}: a zero divisor in the ring; draw other values")]
    ZeroDivisor {
        /// Source path of the node.
        path: String,
    },
}
