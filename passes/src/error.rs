//! Errors of the passes.

use thiserror::Error;
use weldment_ir::IrError;

/// What optimisation can refuse.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PassError {
    /// A graph or type rule.
    #[error(transparent)]
    Ir(#[from] IrError),
    /// A rule said that values of different types are equal: a bug in the compiler.
    #[error("a rewrite is unsound: {message}; please report it")]
    Unsound {
        /// What was merged.
        message: String,
    },
    /// A name given to `--disable` that is neither a rule nor a fusion.
    #[error("`{name}` is neither a rule nor a fusion; accepted: {accepted}")]
    UnknownName {
        /// The name given.
        name: String,
        /// Names accepted.
        accepted: String,
    },
    /// A value has no form that can be extracted.
    #[error("{path}: no acyclic form was found; please report it")]
    NoForm {
        /// Where.
        path: String,
    },
    /// A graph that cannot be spread over so many ranks.
    #[error("{path}: {message}")]
    Shard {
        /// Where.
        path: String,
        /// Found and accepted.
        message: String,
    },
    /// A `--require` that does not parse.
    #[error("`{0}`; FUSION=N, FUSION>=N, FUSION=all or FUSION=none is accepted")]
    BadRequirement(String),
    /// A `--require` that does not hold.
    #[error("required {required}, found {found}")]
    Required {
        /// As given.
        required: String,
        /// The coverage line.
        found: String,
    },
}

impl PassError {
    /// A requirement that does not hold, with the variant in which it does not.
    #[must_use]
    pub fn in_variant(self, name: &str) -> PassError {
        match self {
            PassError::Required { required, found } => {
                PassError::Required { required, found: format!("{found}, in variant {name}") }
            }
            other => other,
        }
    }
}
