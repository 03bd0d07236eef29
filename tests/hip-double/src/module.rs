//! Code images: AMD code objects, read as far as a launch can be checked against them, and texts.
//!
//! A text image is `weldment-double BYTES\n` followed by `BYTES` bytes of lines: `arch gfx942` first, then a kernel a line,
//! `kernel NAME OPERATION NUMBERS...`. The operations are in `kernels`.

use crate::kernels::Operation;
use crate::state::{Answer, INVALID_IMAGE};

/// A kernel of a module.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub name: String,
    /// Parameters, 8 bytes each, the dims block included.
    pub params: usize,
    pub shared_bytes: u32,
    pub scratch_bytes: u32,
    pub operation: Operation,
}

/// A loaded image.
#[derive(Clone, Debug)]
pub struct Module {
    /// `gfx942`.
    pub arch: String,
    pub kernels: Vec<Kernel>,
}

const TEXT: &[u8] = b"weldment-double ";

/// A text image: `lines` are `kernel NAME OPERATION NUMBERS...`.
pub fn text_image(arch: &str, lines: &[&str]) -> Vec<u8> {
    let body = format!("arch {arch}\n{}\n", lines.join("\n"));
    format!("weldment-double {}\n{body}", body.len()).into_bytes()
}

/// Reads the image at `image`, which says itself how long it is.
///
/// # Safety
/// `image` points to a code object or a text image.
pub unsafe fn load(image: *const u8) -> Answer<Module> {
    // SAFETY: both kinds are longer than this.
    let head = unsafe { std::slice::from_raw_parts(image, TEXT.len()) };
    if head == TEXT {
        let mut length = 0usize;
        let mut at = TEXT.len();
        // SAFETY: the header ends with a newline, which ends this.
        while let digit @ b'0'..=b'9' = unsafe { *image.add(at) } {
            length = length * 10 + usize::from(digit - b'0');
            at += 1;
        }
        // SAFETY: the header says that this many bytes follow.
        let body = unsafe { std::slice::from_raw_parts(image.add(at + 1), length) };
        return std::str::from_utf8(body).ok().and_then(parse_text).ok_or(INVALID_IMAGE);
    }
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return Err(INVALID_IMAGE);
    }
    // SAFETY: the header of an ELF file has 64 bytes.
    let header = unsafe { std::slice::from_raw_parts(image, 64) };
    let sections = number(header, 40, 8).zip(number(header, 58, 2)).zip(number(header, 60, 2));
    let ((table, entry), count) = sections.ok_or(INVALID_IMAGE)?;
    let end = table + entry * count;
    // SAFETY: linkers write the section table last, so the file reaches to its end.
    let file = unsafe { std::slice::from_raw_parts(image, end) };
    parse_elf(file).ok_or(INVALID_IMAGE)
}

/// Would the library load these bytes as a code object?
pub fn accepts(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF\x02\x01") && parse_elf(image).is_some()
}

fn parse_text(body: &str) -> Option<Module> {
    let mut lines = body.lines();
    let arch = lines.next()?.strip_prefix("arch ")?.to_owned();
    let kernel = |line: &str| {
        let mut words = line.strip_prefix("kernel ")?.split_whitespace();
        let name = words.next()?.to_owned();
        let operation = words.next()?;
        let numbers = words.map(|w| w.parse().ok()).collect::<Option<Vec<usize>>>()?;
        let (operation, params) = Operation::parse(operation, &numbers)?;
        Some(Kernel { name, params, shared_bytes: 0, scratch_bytes: 0, operation })
    };
    Some(Module { arch, kernels: lines.map(kernel).collect::<Option<_>>()? })
}

/// The little-endian number of `bytes` bytes at `offset`.
fn number(file: &[u8], offset: usize, bytes: usize) -> Option<usize> {
    let mut word = [0; 8];
    word[..bytes].copy_from_slice(file.get(offset..offset.checked_add(bytes)?)?);
    usize::try_from(u64::from_le_bytes(word)).ok()
}

/// A table of an ELF file: where it starts, bytes of an entry, entries.
struct Table {
    at: usize,
    entry: usize,
    count: usize,
}

impl Table {
    /// The table whose place, size of entries and number the ELF header says at these offsets.
    fn of_header(file: &[u8], [at, entry, count]: [usize; 3]) -> Option<Table> {
        let table = Table { at: number(file, at, 8)?, entry: number(file, entry, 2)?, count: number(file, count, 2)? };
        let end = table.entry.checked_mul(table.count)?.checked_add(table.at)?;
        (end <= file.len()).then_some(table)
    }

    fn entries(&self) -> impl Iterator<Item = usize> {
        let (at, entry) = (self.at, self.entry);
        (0..self.count).map(move |index| at + index * entry)
    }

    fn get(&self, index: usize) -> Option<usize> {
        (index < self.count).then(|| self.at + index * self.entry)
    }
}

/// The name at `offset` of the table of strings `from`.
fn text(from: &[u8], offset: usize) -> Option<&str> {
    let rest = from.get(offset..)?;
    std::str::from_utf8(&rest[..rest.iter().position(|b| *b == 0)?]).ok()
}

/// Bytes of a section or segment whose offset and size are at these places of its header.
fn bytes_of(file: &[u8], offset: usize, size: usize) -> Option<&[u8]> {
    let start = number(file, offset, 8)?;
    file.get(start..start.checked_add(number(file, size, 8)?)?)
}

/// Reads a code object, if ROCm's loader would: sections have names and one of them is `.strtab`; something is loaded, from within the
/// file; there is one metadata note; each kernel is a global function NAME and a global object NAME.kd, a descriptor of 64 bytes that
/// begins with bytes of LDS, scratch and arguments.
fn parse_elf(file: &[u8]) -> Option<Module> {
    const AMDGPU: usize = 224;
    const HSA: u8 = 64;
    if number(file, 18, 2)? != AMDGPU || *file.get(7)? != HSA {
        return None;
    }
    let arch = match number(file, 48, 4)? & 0xff {
        0x3f => "gfx90a",
        0x4c => "gfx942",
        0x4f => "gfx950",
        _ => return None,
    };
    let segments = Table::of_header(file, [32, 54, 56])?;
    let of_type = |kind: usize| segments.entries().filter(move |at| number(file, *at, 4) == Some(kind));
    let loaded: Vec<&[u8]> = of_type(1).map(|at| bytes_of(file, at + 8, at + 32)).collect::<Option<_>>()?;
    let notes: usize = of_type(4).map(|at| count_notes(bytes_of(file, at + 8, at + 32)?)).sum::<Option<_>>()?;
    if loaded.is_empty() || notes != 1 {
        return None;
    }
    let sections = Table::of_header(file, [40, 58, 60])?;
    let names = sections.get(number(file, 62, 2).filter(|index| *index > 0)?)?;
    let names = bytes_of(file, names + 24, names + 32)?;
    let named = |wanted: &str, kind: usize| {
        let is = |at: &usize| {
            number(file, *at, 4).and_then(|n| text(names, n)) == Some(wanted) && number(file, at + 4, 4) == Some(kind)
        };
        sections.entries().find(is)
    };
    let (strings, symbols) = (named(".strtab", 3)?, named(".symtab", 2)?);
    if sections.get(number(file, symbols + 40, 4)?)? != strings {
        return None;
    }
    let strings = bytes_of(file, strings + 24, strings + 32)?;
    let symbols = bytes_of(file, symbols + 24, symbols + 32)?.as_chunks::<24>().0;
    // Global symbols that the file defines: name, type, section, address, size.
    let global = symbols.iter().filter(|s| s[4] >> 4 == 1 && s[6..8] != [0, 0]);
    let global: Vec<_> = global
        .map(|s| {
            Some((text(strings, number(s, 0, 4)?)?, s[4] & 15, number(s, 6, 2)?, number(s, 8, 8)?, number(s, 16, 8)?))
        })
        .collect::<Option<_>>()?;
    let mut kernels = Vec::new();
    for (name, kind, section, address, size) in &global {
        let Some(name) = name.strip_suffix(".kd") else { continue };
        let code = global.iter().filter(|(function, kind, ..)| *function == name && *kind == 2).count();
        if (*kind, *size, code) != (1, 64, 1) {
            return None;
        }
        let home = sections.get(*section)?;
        let descriptor = address.checked_sub(number(file, home + 16, 8)?)?.checked_add(number(file, home + 24, 8)?)?;
        let word = |offset| number(file, descriptor + offset, 4);
        kernels.push(Kernel {
            name: name.to_owned(),
            params: word(8)? / 8,
            shared_bytes: word(0)? as u32,
            scratch_bytes: word(4)? as u32,
            operation: Operation::Nothing,
        });
    }
    let functions = global.iter().filter(|(_, kind, ..)| *kind == 2).count();
    (functions == kernels.len()).then(|| Module { arch: arch.to_owned(), kernels })
}

/// Metadata notes among the notes of a segment; `None` if one passes its end.
fn count_notes(notes: &[u8]) -> Option<usize> {
    const METADATA: usize = 32;
    let (mut at, mut count) = (0usize, 0);
    while at + 12 <= notes.len() {
        let [name, description, kind] = [number(notes, at, 4)?, number(notes, at + 4, 4)?, number(notes, at + 8, 4)?];
        let owner = notes.get(at + 12..(at + 12).checked_add(name)?)?;
        let after = (at + 12).checked_add(name.checked_next_multiple_of(4)?)?;
        let end = after.checked_add(description)?;
        notes.get(after..end)?;
        count += usize::from(kind == METADATA && owner == b"AMDGPU\0");
        at = end.checked_next_multiple_of(4)?;
    }
    Some(count)
}
