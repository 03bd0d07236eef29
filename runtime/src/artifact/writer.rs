//! Writes an artifact: to a temporary file beside the target, then renamed over it. Nothing partial is ever left.

use super::check;
use super::format::{HEADER_BYTES, Header, align_up, section_align};
use super::manifest::{Manifest, Section};
use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes `manifest` with `sections` (name, bytes; in this order) to `path` and returns the file's size. The manifest's own
/// section table is filled here. The bytes depend on the arguments alone.
///
/// # Errors
/// [`Error::InvalidInput`] if the manifest would not pass the reader's checks; [`Error::Io`] if the disk is full or the
/// target cannot be written, in which case no file is left behind.
pub fn write_artifact(path: &Path, mut manifest: Manifest, sections: &[(&str, &[u8])]) -> Result<u64> {
    let (json, file_bytes) = lay_out(&mut manifest, sections)?;
    check::check_manifest(&manifest).map_err(|e| Error::of_artifact(path, e))?;
    write_atomically(path, |out| {
        let mut at = 0u64;
        let mut put = |out: &mut dyn Write, bytes: &[u8]| {
            at += bytes.len() as u64;
            out.write_all(bytes).map(|()| at)
        };
        let mut manifest_hash = [0u8; 16];
        manifest_hash.copy_from_slice(&blake3::hash(&json).as_bytes()[..16]);
        let header = Header { manifest_bytes: json.len() as u64, file_bytes, manifest_hash };
        put(out, &header.encode())?;
        let mut end = put(out, &json)?;
        for (section, (_, bytes)) in manifest.sections.iter().zip(sections) {
            let mut gap = section.offset - end;
            while gap > 0 {
                let n = gap.min(4096);
                put(out, &[0u8; 4096][..n as usize])?;
                gap -= n;
            }
            end = put(out, bytes)?;
        }
        Ok(())
    })?;
    Ok(file_bytes)
}

/// Fills the section table and returns the manifest's JSON and the file's size. Section offsets depend on the manifest's
/// length and are part of it, so the layout is repeated until it stands still: lengths only grow, a few rounds suffice.
fn lay_out(manifest: &mut Manifest, sections: &[(&str, &[u8])]) -> Result<(Vec<u8>, u64)> {
    manifest.sections = sections
        .iter()
        .map(|(name, bytes)| Section {
            name: (*name).to_owned(),
            offset: 0,
            bytes: bytes.len() as u64,
            blake3: blake3::hash(bytes).to_hex().to_string(),
        })
        .collect();
    let mut reserved = 0u64;
    for _ in 0..16 {
        let overflow = || Error::InvalidInput("the artifact's size overflows".into());
        let mut end = HEADER_BYTES as u64 + reserved;
        for section in &mut manifest.sections {
            section.offset = align_up(end, section_align(&section.name)).ok_or_else(overflow)?;
            end = section.offset.checked_add(section.bytes).ok_or_else(overflow)?;
        }
        let json = serde_json::to_vec(&*manifest)
            .map_err(|e| Error::InvalidInput(format!("the manifest cannot be written as JSON: {e}")))?;
        if json.len() as u64 == reserved {
            return Ok((json, end));
        }
        if json.len() as u64 > reserved {
            reserved = json.len() as u64;
        } else {
            // An offset lost a digit again: pad with trailing spaces, which JSON ignores.
            let mut json = json;
            json.resize(reserved as usize, b' ');
            return Ok((json, end));
        }
    }
    Err(Error::InvalidInput("the artifact's layout does not settle".into()))
}

/// Removes the temporary file unless the rename happened.
struct Temporary {
    path: PathBuf,
    done: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.done {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Calls `fill` on a new file beside `path`, flushes it and renames it to `path`.
///
/// # Errors
/// Any failure of the system; the temporary file is removed and an older `path` is left as it was.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let failed = |e| Error::io(path, "cannot write", e);
    let name = path
        .file_name()
        .ok_or_else(|| failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, "the output needs a file name")))?;
    if path.is_dir() {
        return Err(failed(std::io::Error::new(std::io::ErrorKind::IsADirectory, "the output is a directory")));
    }
    let (file, mut temporary) = create_beside(path, name).map_err(failed)?;
    let mut out = BufWriter::with_capacity(1 << 16, file);
    fill(&mut out).map_err(failed)?;
    out.flush().map_err(failed)?;
    drop(out);
    std::fs::rename(&temporary.path, path).map_err(failed)?;
    temporary.done = true;
    Ok(())
}

/// A new file `.NAME.PID.N.tmp` in the folder of `path`; `create_new`, so two writers never share one.
fn create_beside(path: &Path, name: &std::ffi::OsStr) -> std::io::Result<(File, Temporary)> {
    let mut attempt = 0u32;
    loop {
        let mut temporary_name = std::ffi::OsString::from(".");
        temporary_name.push(name);
        temporary_name.push(format!(".{}.{attempt}.tmp", std::process::id()));
        let temporary = path.with_file_name(temporary_name);
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((file, Temporary { path: temporary, done: false })),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && attempt < 1000 => attempt += 1,
            Err(e) => return Err(e),
        }
    }
}
