//! What AMD's loader asks of a code object. It crashes on some of the files that it does not like (libamdhip64 6.4.3: no `.strtab`),
//! so none is handed to it that breaks a rule; the compiler checks what it linked by the same function.
//!
//! The rules are those of ROCm's ELF reader (names of sections, `.strtab`), of its HSA loader (segments, `NAME` and `NAME.kd`) and of
//! its metadata reader (one note), for the code objects that LLVM's AMDGPU usage guide describes.

use object::LittleEndian;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym};

/// Bytes of a kernel descriptor.
const DESCRIPTOR_BYTES: u64 = 64;
/// `EI_OSABI` of AMD's HSA ABI.
pub const ELFOSABI_AMDGPU_HSA: u8 = 64;
/// Type of the metadata note, whose owner is `AMDGPU`.
pub const NT_AMDGPU_METADATA: u32 = 32;

type Header = FileHeader64<LittleEndian>;
const LE: LittleEndian = LittleEndian;

/// Checks that AMD's loader takes `image` and finds `kernels` in it.
///
/// # Errors
/// The first rule that is broken: what was found and what is accepted.
pub fn check<'k>(image: &[u8], kernels: impl IntoIterator<Item = &'k str>) -> Result<(), String> {
    let header = Header::parse(image).map_err(damaged("the ELF header"))?;
    if header.e_machine.get(LE) != elf::EM_AMDGPU || header.e_ident.os_abi != ELFOSABI_AMDGPU_HSA {
        let (machine, abi) = (header.e_machine.get(LE), header.e_ident.os_abi);
        return Err(format!("an ELF file of machine {machine}, ABI {abi}; AMDGPU (224) and HSA (64) are accepted"));
    }
    let segments = header.program_headers(LE, image).map_err(damaged("the program headers"))?;
    let loaded: Vec<_> = segments.iter().filter(|s| s.p_type(LE) == elf::PT_LOAD).collect();
    if loaded.is_empty() {
        return Err("no segment is loaded; program headers of type LOAD are expected".into());
    }
    for segment in segments {
        let end = segment.p_offset(LE).checked_add(segment.p_filesz(LE));
        if end.is_none_or(|end| end > image.len() as u64) || segment.p_filesz(LE) > segment.p_memsz(LE) {
            return Err("a segment passes the end of the file".into());
        }
    }
    one_note(image, segments)?;
    if header.e_shstrndx.get(LE) == elf::SHN_UNDEF {
        return Err("sections have no names; a table of section names is expected".into());
    }
    let sections = header.sections(LE, image).map_err(damaged("the section headers"))?;
    let named = |name: &str, kind: u32| {
        let found = sections.enumerate().find(|(_, s)| {
            s.sh_type(LE) == kind && sections.section_name(LE, s).is_ok_and(|found| found == name.as_bytes())
        });
        found.ok_or_else(|| {
            format!("there is no {name}; tables of all symbols and their names are expected (no --strip-all)")
        })
    };
    let (strings, table) = named(".strtab", elf::SHT_STRTAB)?;
    let text = table.data(LE, image).map_err(damaged(".strtab"))?;
    if text.last() != Some(&0) {
        return Err("the last name of .strtab does not end".into());
    }
    let (at, table) = named(".symtab", elf::SHT_SYMTAB)?;
    if table.sh_link(LE) as usize != strings.0 {
        return Err(format!("the names of .symtab are in section {}, not in .strtab", table.sh_link(LE)));
    }
    let symbols = sections.symbol_table_by_index(LE, image, at).map_err(damaged(".symtab"))?;
    let within = |sym: &elf::Sym64<LittleEndian>, bytes: u64| {
        let (start, end) = (sym.st_value(LE), sym.st_value(LE).checked_add(bytes));
        loaded.iter().any(|s| {
            let first = s.p_vaddr(LE);
            first <= start && end.zip(first.checked_add(s.p_filesz(LE))).is_some_and(|(end, last)| end <= last)
        })
    };
    for kernel in kernels {
        for (name, kind, what) in
            [(kernel.to_owned(), elf::STT_FUNC, "function"), (format!("{kernel}.kd"), elf::STT_OBJECT, "descriptor")]
        {
            let is = |s: &&elf::Sym64<LittleEndian>| {
                symbols.symbol_name(LE, s).is_ok_and(|found| found == name.as_bytes()) && s.st_bind() == elf::STB_GLOBAL
            };
            let found: Vec<_> = symbols.iter().filter(is).collect();
            let [symbol] = found[..] else {
                return Err(format!("{} global symbols {name}; 1 is accepted", found.len()));
            };
            let size = symbol.st_size(LE);
            if symbol.st_type() != kind || symbol.st_shndx(LE) == elf::SHN_UNDEF {
                return Err(format!("symbol {name} is no {what} of the file"));
            }
            if kind == elf::STT_OBJECT && size != DESCRIPTOR_BYTES {
                return Err(format!("descriptor {name} of {size} bytes; {DESCRIPTOR_BYTES} are accepted"));
            }
            if !within(symbol, size) {
                return Err(format!("symbol {name} lies in no loaded segment"));
            }
        }
    }
    Ok(())
}

/// For what the reader of ELF files refuses.
fn damaged(what: &'static str) -> impl Fn(object::Error) -> String {
    move |e| format!("{what}: {e}")
}

/// The loader reads the first metadata note alone.
fn one_note(image: &[u8], segments: &[elf::ProgramHeader64<LittleEndian>]) -> Result<(), String> {
    let mut count = 0;
    for segment in segments {
        let Some(mut notes) = segment.notes(LE, image).map_err(damaged("a note"))? else { continue };
        while let Some(note) = notes.next().map_err(damaged("a note"))? {
            count += u32::from(note.name() == b"AMDGPU" && note.n_type(LE) == NT_AMDGPU_METADATA);
        }
    }
    if count == 1 { Ok(()) } else { Err(format!("{count} metadata notes; 1 is accepted")) }
}
