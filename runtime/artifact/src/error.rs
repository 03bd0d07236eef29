//! What can be wrong with an artifact. The caller knows the file.

use crate::DType;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault of an artifact, or of what somebody wants to write into one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Bytes are not what was promised.
    #[error("corrupt {place}: {detail}")]
    Corrupt {
        /// Where in the file.
        place: String,
        /// What was found and what would be accepted.
        detail: String,
    },
    /// Another format version.
    #[error("artifact format version {found}, this runtime accepts {accepted}; compile the model again")]
    Version {
        /// The version found.
        found: u32,
        /// The version this crate reads.
        accepted: u32,
    },
    /// A count or size passes a declared limit (`limits.rs`).
    #[error("{what} is {found}, the limit is {limit}")]
    Limit {
        /// The quantity.
        what: String,
        /// Its value.
        found: u64,
        /// The largest accepted value.
        limit: u64,
    },
}

impl Error {
    /// Corruption at `place`.
    pub fn corrupt(place: impl Into<String>, detail: impl Into<String>) -> Error {
        Error::Corrupt { place: place.into(), detail: detail.into() }
    }
}

/// Why a tensor has no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It does not fit in 63 bits.
    #[error("a {dtype} tensor of shape {shape:?} is larger than 2^63 bytes")]
    Overflow {
        /// Element type.
        dtype: DType,
        /// The shape.
        shape: Vec<u64>,
    },
    /// The last dim cuts a block.
    #[error("{dtype} stores blocks of {} elements; a last dim of {last} is not a multiple", dtype.block_elements())]
    PartialBlock {
        /// Element type.
        dtype: DType,
        /// The last dim.
        last: u64,
    },
}

/// A name that no dtype has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown dtype `{0}`; one of f32, f16, bf16, i32, q4_1, ... is expected (see docs/ops.md)")]
pub struct UnknownDType(pub String);
