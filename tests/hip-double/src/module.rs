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

/// Kernels are symbols `NAME.kd`, each at a descriptor of 64 bytes that begins with bytes of LDS, scratch and arguments.
fn parse_elf(file: &[u8]) -> Option<Module> {
    const AMDGPU: usize = 224;
    const SYMTAB: usize = 2;
    const DYNSYM: usize = 11;
    if number(file, 18, 2)? != AMDGPU {
        return None;
    }
    let arch = match number(file, 48, 4)? & 0xff {
        0x3f => "gfx90a",
        0x4c => "gfx942",
        0x4f => "gfx950",
        _ => return None,
    };
    let (table, entry, count) = (number(file, 40, 8)?, number(file, 58, 2)?, number(file, 60, 2)?);
    let section = |index: usize| table + index * entry;
    let mut kernels: Vec<Kernel> = Vec::new();
    for at in (0..count).map(section).filter(|at| matches!(number(file, at + 4, 4), Some(SYMTAB | DYNSYM))) {
        let names = number(file, section(number(file, at + 40, 4)?) + 24, 8)?;
        let (symbols, bytes) = (number(file, at + 24, 8)?, number(file, at + 32, 8)?);
        for symbol in (symbols..symbols + bytes).step_by(24) {
            let rest = file.get(names + number(file, symbol, 4)?..)?;
            let name = std::str::from_utf8(&rest[..rest.iter().position(|b| *b == 0)?]).ok()?;
            let Some(name) = name.strip_suffix(".kd") else { continue };
            if kernels.iter().any(|k| k.name == name) {
                continue;
            }
            let home = section(number(file, symbol + 6, 2)?);
            let descriptor = number(file, symbol + 8, 8)? - number(file, home + 16, 8)? + number(file, home + 24, 8)?;
            let word = |offset| number(file, descriptor + offset, 4);
            kernels.push(Kernel {
                name: name.to_owned(),
                params: word(8)? / 8,
                shared_bytes: word(0)? as u32,
                scratch_bytes: word(4)? as u32,
                operation: Operation::Nothing,
            });
        }
    }
    Some(Module { arch: arch.to_owned(), kernels })
}
