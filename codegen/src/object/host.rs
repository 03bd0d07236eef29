//! Host code: relocatable objects to one position-independent image without imports, relocations or constructors.

use super::run_linker;
use crate::compile::CodegenError;
use indexmap::IndexMap;
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, ObjectSegment, ObjectSymbol};

/// A flat code image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Bytes from address 0.
    pub bytes: Vec<u8>,
    /// Entry offset by kernel name, in ascending name order.
    pub entries: IndexMap<String, u64>,
}

/// Links host objects and flattens the result.
///
/// # Errors
/// If the linker is missing or fails, or its output has imports, relocations or writable data.
pub fn link(objects: &[Vec<u8>]) -> Result<Image, CodegenError> {
    let options = [
        "-pie",
        "--no-dynamic-linker",
        "-z",
        "norelro",
        "-z",
        "nognustack",
        "-z",
        "noseparate-code",
        "--no-rosegment",
        "--image-base=0",
        "--entry=0",
        "--build-id=none",
        "--hash-style=sysv",
        "-z",
        "max-page-size=4096",
    ];
    flatten(&run_linker(objects, &options)?)
}

/// Joins host objects to one that is still relocatable, for people to look at.
///
/// # Errors
/// If the linker is missing or fails.
pub fn link_relocatable(objects: &[Vec<u8>]) -> Result<Vec<u8>, CodegenError> {
    run_linker(objects, &["-r"])
}

fn flatten(elf: &[u8]) -> Result<Image, CodegenError> {
    let bad = |e: object::Error| CodegenError::Link(format!("the linker's output: {e}"));
    let file: ElfFile64<'_, Endianness> = ElfFile64::parse(elf).map_err(bad)?;
    for section in file.sections() {
        let name = section.name().unwrap_or_default();
        let forbidden = matches!(
            name,
            ".data"
                | ".bss"
                | ".tdata"
                | ".tbss"
                | ".init_array"
                | ".fini_array"
                | ".ctors"
                | ".rela.dyn"
                | ".rela.plt"
                | ".got.plt"
        );
        if forbidden && section.size() > 0 {
            return Err(CodegenError::Link(format!(
                "a kernel needs section {name}; code without data, imports and relocations is expected"
            )));
        }
    }
    let mut bytes = Vec::new();
    for segment in file.segments() {
        let (at, data) = (segment.address() as usize, segment.data().map_err(bad)?);
        let end = at + segment.size() as usize;
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[at..at + data.len()].copy_from_slice(data);
    }
    let mut entries: Vec<(String, u64)> = Vec::new();
    for symbol in file.symbols() {
        if symbol.is_undefined() && !symbol.name().unwrap_or_default().is_empty() {
            return Err(CodegenError::Link(format!("undefined symbol {}", symbol.name().unwrap_or_default())));
        }
        if symbol.is_definition() && symbol.kind() == object::SymbolKind::Text {
            entries.push((symbol.name().map_err(bad)?.to_owned(), symbol.address()));
        }
    }
    entries.sort();
    Ok(Image { bytes, entries: entries.into_iter().collect() })
}
