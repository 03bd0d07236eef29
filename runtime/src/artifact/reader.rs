//! Opens an artifact: maps it, checks every byte but the weights, and hands out sections.

use super::check;
use super::format::{HEADER_BYTES, Header, section_align};
use super::limits::{MAX_MANIFEST_BYTES, MAX_SECTIONS};
use super::manifest::{CONSTANTS_SECTION, Manifest, Section, WEIGHTS_SECTION};
use crate::error::{Error, Result};
use crate::map::{FileMap, MappedRange};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A mapped, checked artifact.
#[derive(Debug)]
pub struct Artifact {
    path: PathBuf,
    map: Arc<FileMap>,
    manifest: Arc<Manifest>,
}

impl Artifact {
    /// Maps `path` and checks header, manifest, padding and the hash of every section except `weights`, which is hashed when a
    /// session is created.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Version`], [`Error::Corrupt`] or [`Error::Limit`]; never panics, whatever the bytes are.
    pub fn open(path: impl AsRef<Path>) -> Result<Artifact> {
        let path = path.as_ref();
        let map = FileMap::open(path)?;
        let manifest = read_manifest(&map, path)?;
        check_sections(&manifest, &map, path)?;
        let artifact = Artifact { path: path.to_owned(), map: Arc::new(map), manifest: Arc::new(manifest) };
        for section in &artifact.manifest.sections {
            if section.name != WEIGHTS_SECTION {
                artifact.check_hash(section)?;
            }
        }
        check::check_manifest(&artifact.manifest).map_err(|e| Error::of_artifact(path, e))?;
        Ok(artifact)
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest, shared.
    pub fn shared_manifest(&self) -> Arc<Manifest> {
        Arc::clone(&self.manifest)
    }

    /// What tells this artifact from others: a hash of its header, which has that of the manifest, which has those of the sections.
    pub fn identity(&self) -> String {
        crate::blake3_hex(self.map.get(..HEADER_BYTES).unwrap_or_default())
    }

    /// Where the artifact was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// The bytes of the section called `name`.
    pub fn section(&self, name: &str) -> Option<&[u8]> {
        self.manifest.section(name).map(|s| self.section_bytes(s))
    }

    /// A section that stays mapped for as long as the range lives.
    pub fn map_section(&self, section: &Section) -> Option<MappedRange> {
        MappedRange::new(Arc::clone(&self.map), section.offset as usize, section.bytes as usize)
    }

    /// The bytes of constants computed by the compiler; empty if there are none.
    pub fn constants(&self) -> &[u8] {
        self.section(CONSTANTS_SECTION).unwrap_or(&[])
    }

    /// Hashes one section against the manifest.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the hash differs.
    pub fn check_hash(&self, section: &Section) -> Result<()> {
        if blake3::hash(self.section_bytes(section)).to_hex().as_str() == section.blake3 {
            return Ok(());
        }
        Err(Error::corrupt(&self.path, format!("section {}", section.name), "its hash is not the manifest's"))
    }

    /// Hashes every section, weights included.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first section whose hash differs.
    pub fn check_all_hashes(&self) -> Result<()> {
        self.manifest.sections.iter().try_for_each(|s| self.check_hash(s))
    }

    fn section_bytes(&self, section: &Section) -> &[u8] {
        // In range by `check_sections`; the empty slice keeps this total.
        let start = section.offset as usize;
        self.map.get(start..start.saturating_add(section.bytes as usize)).unwrap_or(&[])
    }
}

fn read_manifest(bytes: &[u8], path: &Path) -> Result<Manifest> {
    let header = Header::decode(bytes).map_err(|e| Error::of_artifact(path, e))?;
    if header.file_bytes != bytes.len() as u64 {
        let detail = format!("the file has {} bytes, its header says {}", bytes.len(), header.file_bytes);
        return Err(Error::corrupt(path, "length", detail));
    }
    if header.manifest_bytes > MAX_MANIFEST_BYTES {
        let what = format!("{}: manifest bytes", path.display());
        return Err(Error::Limit { what, found: header.manifest_bytes, limit: MAX_MANIFEST_BYTES });
    }
    let json = HEADER_BYTES
        .checked_add(header.manifest_bytes as usize)
        .and_then(|end| bytes.get(HEADER_BYTES..end))
        .ok_or_else(|| Error::corrupt(path, "manifest", "it passes the end of the file"))?;
    if blake3::hash(json).as_bytes()[..16] != header.manifest_hash {
        return Err(Error::corrupt(path, "manifest", "its hash is not the header's"));
    }
    let manifest: Manifest = serde_json::from_slice(json)
        .map_err(|e| Error::corrupt(path, "manifest", format!("not the JSON this version expects: {e}")))?;
    Ok(manifest)
}

/// Sections ascend, are aligned, do not overlap, are separated by zeros alone, and the last one ends the file.
fn check_sections(manifest: &Manifest, bytes: &[u8], path: &Path) -> Result<()> {
    if manifest.sections.len() > MAX_SECTIONS {
        let what = format!("{}: sections", path.display());
        return Err(Error::Limit { what, found: manifest.sections.len() as u64, limit: MAX_SECTIONS as u64 });
    }
    let header = Header::decode(bytes).map_err(|e| Error::of_artifact(path, e))?;
    let mut end = HEADER_BYTES as u64 + header.manifest_bytes;
    for (index, section) in manifest.sections.iter().enumerate() {
        let bad = |detail: &str| Error::corrupt(path, format!("section table, {:?}", section.name), detail);
        if manifest.sections.iter().take(index).any(|s| s.name == section.name) {
            return Err(bad("listed twice"));
        }
        if !section.offset.is_multiple_of(section_align(&section.name)) || section.offset < end {
            return Err(bad("its offset is unaligned or overlaps"));
        }
        let gap = usize::try_from(end)
            .ok()
            .zip(usize::try_from(section.offset).ok())
            .and_then(|(from, to)| bytes.get(from..to))
            .ok_or_else(|| bad("it passes the end of the file"))?;
        if gap.iter().any(|b| *b != 0) {
            return Err(bad("the padding before it is not zero"));
        }
        end = section
            .offset
            .checked_add(section.bytes)
            .filter(|end| *end <= bytes.len() as u64)
            .ok_or_else(|| bad("it passes the end of the file"))?;
    }
    if end != bytes.len() as u64 {
        return Err(Error::corrupt(path, "length", "bytes follow the last section"));
    }
    Ok(())
}
