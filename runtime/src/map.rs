//! The one place that maps files: read-only, private.

use crate::driver::SharedBytes;
use crate::error::{Error, Result};
use std::fs::File;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

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

/// A range of a shared mapping.
#[derive(Clone, Debug)]
pub struct MappedRange {
    map: Arc<FileMap>,
    start: usize,
    bytes: usize,
}

impl MappedRange {
    /// `bytes` bytes of `map` from `start`; `None` if they pass its end.
    pub fn new(map: Arc<FileMap>, start: usize, bytes: usize) -> Option<MappedRange> {
        let fits = start.checked_add(bytes).is_some_and(|end| end <= map.len());
        fits.then_some(MappedRange { map, start, bytes })
    }

    /// The first `count` bytes of the file the range lies in, or all of them.
    pub fn header(&self, count: usize) -> &[u8] {
        &self.map[..count.min(self.map.len())]
    }
}

impl SharedBytes for MappedRange {
    fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.start + self.bytes]
    }
}
