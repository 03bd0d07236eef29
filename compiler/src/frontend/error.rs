//! What a front end can find wrong with a model file: always the file, the place in it, what was found, what is accepted.

use std::fmt;
use std::path::{Path, PathBuf};
use thiserror::Error;
use weldment_ir::IrError;

/// A place inside a model file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    File,
    /// A byte offset.
    Offset(u64),
    /// A metadata or JSON key.
    Key(String),
    /// A tensor, by the name the file gives it.
    Tensor(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File => Ok(()),
            Place::Offset(at) => write!(f, " at byte {at}"),
            Place::Key(key) => write!(f, " at key `{}`", shown(key)),
            Place::Tensor(name) => write!(f, " at tensor `{}`", shown(name)),
        }
    }
}

/// A name from outside, escaped and cut to a length that fits an error line.
pub(crate) fn shown(name: &str) -> String {
    let cut: String = name.chars().take(120).flat_map(char::escape_debug).collect();
    if name.chars().nth(120).is_some() { cut + "..." } else { cut }
}

/// Why a model cannot be read.
#[derive(Debug, Error)]
pub enum FrontendError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not what its format asks for.
    #[error("{}{place}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: Place,
        /// Found and accepted.
        message: String,
    },
    /// The file is sound but asks for something there is no implementation of.
    #[error("{}{place}: unsupported: {message}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: Place,
        /// Found and accepted.
        message: String,
    },
    /// Building the graph of a model failed.
    #[error("{}: {source}", path.display())]
    Graph {
        /// The model's file or directory.
        path: PathBuf,
        /// The node and reason.
        source: IrError,
    },
}

impl FrontendError {
    pub(crate) fn invalid(path: &Path, place: Place, message: impl Into<String>) -> FrontendError {
        FrontendError::Invalid { path: path.to_owned(), place, message: message.into() }
    }

    pub(crate) fn unsupported(path: &Path, place: Place, message: impl Into<String>) -> FrontendError {
        FrontendError::Unsupported { path: path.to_owned(), place, message: message.into() }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> FrontendError {
        FrontendError::Io { path: path.to_owned(), source }
    }
}
