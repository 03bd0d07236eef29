//! The fixed part of the file: a 64-byte header, then the manifest, then the sections.
//!
//! ```text
//! 0   magic "WELDART\0"          8   format version u32      12  flags u32 (0)
//! 16  manifest offset u64 (64)  24   manifest bytes u64      32  file bytes u64
//! 40  blake3 of the manifest, first 16 bytes                 56  blake3 of header bytes 0..56, first 8 bytes
//! ```
//! All integers are little-endian. Sections start at multiples of 64 (`weights`: 4096); the bytes between are zero, the last
//! section ends the file. So every byte of a file is hashed, or zero by rule.

use crate::error::{Error, Result};

/// First bytes of every artifact.
pub const MAGIC: [u8; 8] = *b"WELDART\0";
/// The format version this crate writes and reads.
pub const FORMAT_VERSION: u32 = 3;
/// Bytes of the header, and the offset of the manifest.
pub const HEADER_BYTES: usize = 64;
/// Alignment of sections.
pub const SECTION_ALIGN: u64 = 64;
/// Alignment of the `weights` section: a page, so that it can be mapped by itself.
pub const WEIGHTS_ALIGN: u64 = 4096;

/// The decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the manifest, which starts at [`HEADER_BYTES`].
    pub manifest_bytes: u64,
    /// Bytes of the whole file.
    pub file_bytes: u64,
    /// First half of the manifest's blake3.
    pub manifest_hash: [u8; 16],
}

impl Header {
    /// The 64 bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0u8; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&(HEADER_BYTES as u64).to_le_bytes());
        bytes[24..32].copy_from_slice(&self.manifest_bytes.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.file_bytes.to_le_bytes());
        bytes[40..56].copy_from_slice(&self.manifest_hash);
        let check = blake3::hash(&bytes[..56]);
        bytes[56..64].copy_from_slice(&check.as_bytes()[..8]);
        bytes
    }

    /// Reads and checks the header at the start of `bytes`.
    ///
    /// # Errors
    /// [`Error::Version`] for another format version, [`Error::Corrupt`] for anything else that is off.
    pub fn decode(bytes: &[u8]) -> Result<Header> {
        let corrupt = |detail: &str| Error::corrupt("header", detail);
        let header: &[u8; HEADER_BYTES] =
            bytes.first_chunk().ok_or_else(|| corrupt("the file is shorter than the 64-byte header"))?;
        if header[0..8] != MAGIC {
            return Err(corrupt("not a Weldment artifact (magic is not WELDART)"));
        }
        let check = blake3::hash(&header[..56]);
        let version = u32_at(header, 8);
        // Versions keep the first 16 bytes and the checksum's place, so that a stranger's version can be told from damage.
        if check.as_bytes()[..8] != header[56..64] {
            return Err(corrupt("checksum mismatch"));
        }
        if version != FORMAT_VERSION {
            return Err(Error::Version { found: version, accepted: FORMAT_VERSION });
        }
        if u32_at(header, 12) != 0 || u64_at(header, 16) != HEADER_BYTES as u64 {
            return Err(corrupt("unknown flags or manifest offset"));
        }
        let mut manifest_hash = [0u8; 16];
        manifest_hash.copy_from_slice(&header[40..56]);
        Ok(Header { manifest_bytes: u64_at(header, 24), file_bytes: u64_at(header, 32), manifest_hash })
    }
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut raw = [0u8; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut raw = [0u8; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

/// `value` rounded up to a multiple of `align` (a power of two); `None` on overflow.
pub fn align_up(value: u64, align: u64) -> Option<u64> {
    Some(value.checked_add(align - 1)? & !(align - 1))
}

/// Alignment of the section called `name`.
pub fn section_align(name: &str) -> u64 {
    if name == crate::manifest::WEIGHTS_SECTION { WEIGHTS_ALIGN } else { SECTION_ALIGN }
}
