//! The one place of this crate that maps files, and its only `unsafe`.

use super::error::{FrontendError, Place};
use std::fs::File;
use std::path::{Path, PathBuf};

/// A file mapped read-only.
#[derive(Debug)]
pub struct Mapping {
    path: PathBuf,
    map: memmap2::Mmap,
}

impl Mapping {
    /// Maps the regular file at `path`.
    ///
    /// # Errors
    /// If it cannot be opened, is empty or is not a regular file.
    pub fn open(path: &Path) -> Result<Mapping, FrontendError> {
        let file = File::open(path).map_err(|e| FrontendError::io(path, e))?;
        let about = file.metadata().map_err(|e| FrontendError::io(path, e))?;
        if !about.is_file() {
            return Err(FrontendError::invalid(path, Place::File, "not a regular file"));
        }
        if about.len() == 0 {
            return Err(FrontendError::invalid(path, Place::File, "the file is empty"));
        }
        // SAFETY: the map is private and read-only, and is handed out only as `&[u8]` borrowed from the `Mapping`. That no
        // other process truncates or rewrites a model file while it is being compiled is the caller's side of the bargain,
        // as with every mapped file; all offsets are checked against the length taken here.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| FrontendError::io(path, e))?;
        Ok(Mapping { path: path.to_owned(), map })
    }

    /// The file's path, as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}
