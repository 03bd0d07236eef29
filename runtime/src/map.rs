//! The one place that maps files: read-only, private.

use crate::error::{Error, Result};
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

/// A read-only mapping of a whole file.
#[derive(Debug)]
pub struct FileMap {
    map: Option<memmap2::Mmap>,
}

impl FileMap {
    /// Maps `path`. An empty file maps to an empty slice.
    ///
    /// # Errors
    /// If the file cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<FileMap> {
        let file = File::open(path).map_err(|e| Error::io(path, "cannot open", e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, "cannot stat", e))?;
        if !metadata.is_file() {
            let kind = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
            return Err(Error::io(path, "cannot map", kind));
        }
        if metadata.len() == 0 {
            return Ok(FileMap { map: None });
        }
        // SAFETY: the mapping is read-only and private. As with every mapped model file, the user must not truncate it while
        // it is in use; changed bytes can only change what is read, and everything read is length-checked first.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, "cannot map", e))?;
        Ok(FileMap { map: Some(map) })
    }

    /// Tells the kernel that the whole file will be read soon. A hint: failure is ignored.
    pub fn will_need(&self) {
        if let Some(map) = &self.map {
            let _ = map.advise(memmap2::Advice::WillNeed);
        }
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}
