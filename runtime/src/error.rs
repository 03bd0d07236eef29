//! What can go wrong, sorted by whose fault it is.

use std::path::{Path, PathBuf};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the runtime. Each names the file or the place and what would have been accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{path}: {what}: {source}")]
    Io {
        /// The file concerned.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A file's bytes are not what its header promised.
    #[error("{path}: corrupt {place}: {detail}")]
    Corrupt {
        /// The file concerned.
        path: PathBuf,
        /// Where in the file.
        place: String,
        /// What was found and what would be accepted.
        detail: String,
    },
    /// The artifact was written for another format version.
    #[error("{path}: artifact format version {found}, this runtime accepts {accepted}; compile the model again")]
    Version {
        /// The file concerned.
        path: PathBuf,
        /// The version in the file.
        found: u32,
        /// The version this runtime reads.
        accepted: u32,
    },
    /// A count or size passes a declared limit ([`weldment_artifact::limits`]).
    #[error("{what} is {found}, the limit is {limit}")]
    Limit {
        /// The quantity.
        what: String,
        /// Its value.
        found: u64,
        /// The largest accepted value.
        limit: u64,
    },
    /// The machine cannot run the artifact.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// An argument from the caller is outside what the artifact was compiled for.
    #[error("{0}")]
    InvalidInput(String),
    /// Weights were not found or are not those the artifact was compiled for.
    #[error("weights: {0}")]
    Weights(String),
    /// A driver call failed.
    #[error("driver: {0}")]
    Driver(String),
    /// A rank of the job failed: what every rank's pending call returns, the failed one's included.
    #[error("rank {rank}, {at}: {cause}")]
    Rank {
        /// The rank that failed.
        rank: u32,
        /// Where it was: `step 12`, `capture`, ...
        at: String,
        /// What happened to it.
        cause: String,
    },
    /// Ranks that the command started have failed; the first failure.
    #[error("{text}")]
    Ranks {
        /// What the rank said, or what became of it.
        text: String,
        /// The exit code of the ranks.
        code: u8,
    },
    /// A check that the user asked for did not hold (exit code 1).
    #[error("check failed: {0}")]
    CheckFailed(String),
}

impl Error {
    /// An I/O error on `path` while doing `what`.
    pub fn io(path: &Path, what: &'static str, source: std::io::Error) -> Self {
        Error::Io { path: path.to_owned(), what, source }
    }

    /// Corruption of `path` at `place`.
    pub fn corrupt(path: &Path, place: impl Into<String>, detail: impl Into<String>) -> Self {
        Error::Corrupt { path: path.to_owned(), place: place.into(), detail: detail.into() }
    }

    /// A fault of the artifact at `path`.
    pub fn of_artifact(path: &Path, fault: weldment_artifact::Error) -> Self {
        use weldment_artifact::Error as Fault;
        match fault {
            Fault::Corrupt { place, detail } => Error::Corrupt { path: path.to_owned(), place, detail },
            Fault::Version { found, accepted } => Error::Version { path: path.to_owned(), found, accepted },
            Fault::Limit { what, found, limit } => {
                Error::Limit { what: format!("{}: {what}", path.display()), found, limit }
            }
        }
    }

    /// The exit code of the command line: 1 for a failed check, 2 for everything else; that of the ranks where these failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::CheckFailed(_) => 1,
            Error::Ranks { code, .. } => *code,
            _ => 2,
        }
    }
}
