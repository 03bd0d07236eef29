//! AMD code objects: linking, and what their metadata says of each kernel.
//!
//! Facts about the format are those of LLVM's AMDGPU usage guide ("Code Object Metadata", "ELF Header") and of the occupancy
//! functions in LLVM's `AMDGPUBaseInfo.cpp`.

use super::msgpack::Value;
use super::run_linker;
use crate::compile::CodegenError;
use crate::target::GpuArch;
use indexmap::IndexMap;
use object::elf::{EM_AMDGPU, FileHeader64, PT_NOTE, SHT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadRef};
use std::ops::Range;
use weldment_artifact::Resources;
use weldment_artifact::code_object::{self, ELFOSABI_AMDGPU_HSA, NT_AMDGPU_METADATA};

/// `EI_ABIVERSION` of code object versions 5 and 6.
const ABI_VERSIONS: std::ops::RangeInclusive<u8> = 3..=4;
/// Bytes of a note before its owner's name.
const NOTE_HEADER: usize = 12;
/// The owner's name with its padding.
const OWNER: &[u8; 8] = b"AMDGPU\0\0";

/// A linked code object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeObject {
    /// The ELF file that the HIP runtime loads.
    pub bytes: Vec<u8>,
    /// Kernels by name, in the order of the metadata.
    pub kernels: IndexMap<String, Metadata>,
}

/// What the metadata says of one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Vector registers of a thread, accumulation registers included.
    pub vgprs: u32,
    /// Accumulation registers among them.
    pub agprs: u32,
    /// Scalar registers of a wave.
    pub sgprs: u32,
    /// Bytes of LDS of a block.
    pub lds_bytes: u32,
    /// Bytes of scratch of a thread.
    pub scratch_bytes: u32,
    /// Vector registers spilled.
    pub vgpr_spills: u32,
    /// Scalar registers spilled, to lanes of vector registers where there is no scratch.
    pub sgpr_spills: u32,
    /// Bytes of the kernel's arguments.
    pub kernarg_bytes: u32,
    /// Most threads of a block.
    pub max_threads: u32,
}

/// Links relocatable objects to a code object and reads back its metadata.
///
/// # Errors
/// If the linker is missing or fails, or its output is not a code object of version 5 or 6 for `arch`.
pub fn link(objects: &[Vec<u8>], arch: GpuArch) -> Result<CodeObject, CodegenError> {
    let options = ["-shared", "--no-undefined", "--build-id=none", "-z", "max-page-size=4096"];
    let bytes = merge_metadata(run_linker(objects, &options)?).map_err(CodegenError::Link)?;
    let kernels = read(&bytes, arch).map_err(CodegenError::Link)?;
    code_object::check(&bytes, kernels.keys().map(String::as_str)).map_err(CodegenError::Link)?;
    Ok(CodeObject { bytes, kernels })
}

/// Kernels of a code object by name.
///
/// # Errors
/// If it is malformed, of another version, or not for `arch`; names what was found and what is accepted.
pub fn read(elf: &[u8], arch: GpuArch) -> Result<IndexMap<String, Metadata>, String> {
    let bad = |e: object::Error| format!("the code object: {e}");
    let header = FileHeader64::<Endianness>::parse(elf).map_err(bad)?;
    let endian = header.endian().map_err(bad)?;
    let ident = header.e_ident();
    if header.e_machine(endian) != EM_AMDGPU || ident.os_abi != ELFOSABI_AMDGPU_HSA {
        return Err("the code object is not one of the AMD HSA ABI".to_owned());
    }
    if !ABI_VERSIONS.contains(&ident.abi_version) {
        return Err(format!("code object ABI version {}; 3 or 4 (code object 5 or 6) is accepted", ident.abi_version));
    }
    let notes = metadata_notes(elf)?;
    let [note] = notes.as_slice() else { return Err(format!("{} metadata notes; 1 is accepted", notes.len())) };
    let metadata = Value::read(elf.get(note.description.clone()).unwrap_or_default())?;
    let target = metadata.text("amdhsa.target").ok_or("the metadata names no target")?;
    let wanted = format!("amdgcn-amd-amdhsa--{}", arch.cpu());
    if target != wanted && !target.starts_with(&format!("{wanted}:")) {
        return Err(format!("a code object for {target}; {wanted} is accepted"));
    }
    let mut kernels = IndexMap::new();
    for kernel in metadata.list("amdhsa.kernels").ok_or("the metadata lists no kernels")? {
        let name = kernel.text(".name").ok_or("a kernel without a name")?;
        let count = |key: &str| kernel.count(key).ok_or_else(|| format!("kernel {name}: no {key} in its metadata"));
        let optional = |key: &str| kernel.count(key).unwrap_or(0);
        let found = Metadata {
            vgprs: count(".vgpr_count")?,
            agprs: optional(".agpr_count"),
            sgprs: count(".sgpr_count")?,
            lds_bytes: count(".group_segment_fixed_size")?,
            scratch_bytes: count(".private_segment_fixed_size")?,
            vgpr_spills: optional(".vgpr_spill_count"),
            sgpr_spills: optional(".sgpr_spill_count"),
            kernarg_bytes: count(".kernarg_segment_size")?,
            max_threads: count(".max_flat_workgroup_size")?,
        };
        if count(".wavefront_size")? != arch.wave() {
            return Err(format!(
                "kernel {name}: waves of {}; {} is accepted",
                optional(".wavefront_size"),
                arch.wave()
            ));
        }
        if kernels.insert(name.to_owned(), found).is_some() {
            return Err(format!("kernel {name} is listed twice"));
        }
    }
    Ok(kernels)
}

impl Metadata {
    /// The report of a kernel that is launched with blocks of `threads`.
    pub fn resources(&self, arch: GpuArch, threads: u32) -> Resources {
        Resources {
            vgprs: self.vgprs.saturating_sub(self.agprs),
            agprs: self.agprs,
            sgprs: self.sgprs,
            lds_bytes: self.lds_bytes,
            scratch_bytes: self.scratch_bytes,
            vgpr_spills: self.vgpr_spills,
            sgpr_spills: self.sgpr_spills,
            occupancy: occupancy(arch, self, threads),
        }
    }
}

/// Waves that one SIMD unit holds at once. Registers: on gfx90a and later, vector and accumulation registers share 512 a
/// lane, given out in eights, and a unit holds 8 waves at most; more than 100 scalar registers leave 7
/// (`getNumWavesPerEUWithNumVGPRs`, `getOccupancyWithNumSGPRs`). LDS: of a compute unit of 4 SIMD units, given out in
/// granules (`getLdsDwGranularity`).
fn occupancy(arch: GpuArch, kernel: &Metadata, threads: u32) -> u32 {
    const UNITS: u32 = 4;
    const MAX_WAVES: u32 = 8;
    let registers = kernel.vgprs.max(1).next_multiple_of(8);
    let by_registers = (512 / registers).min(if kernel.sgprs > 100 { 7 } else { MAX_WAVES });
    let granule = if arch == GpuArch::Gfx950 { 1280 } else { 512 };
    let waves_of_block = threads.max(1).div_ceil(arch.wave());
    let by_lds = match kernel.lds_bytes.checked_next_multiple_of(granule) {
        Some(0) => MAX_WAVES,
        Some(lds) => (arch.shared_bytes() / lds).saturating_mul(waves_of_block).div_ceil(UNITS),
        None => 0,
    };
    // A block's waves run together: its compute unit must hold all of them.
    let blocks = (by_registers * UNITS) / waves_of_block;
    by_registers.min(by_lds).min((blocks * waves_of_block).div_ceil(UNITS))
}

/// A metadata note: the whole, and its MessagePack.
struct Note {
    whole: Range<usize>,
    description: Range<usize>,
}

/// Metadata notes of all note segments, in file order.
fn metadata_notes(elf: &[u8]) -> Result<Vec<Note>, String> {
    let bad = |e: object::Error| format!("the code object: {e}");
    let header = FileHeader64::<Endianness>::parse(elf).map_err(bad)?;
    let endian = header.endian().map_err(bad)?;
    let mut notes = Vec::new();
    for segment in header.program_headers(endian, elf).map_err(bad)? {
        if segment.p_type(endian) != PT_NOTE {
            continue;
        }
        let start = segment.p_offset(endian) as usize;
        let data = elf.read_bytes_at(segment.p_offset(endian), segment.p_filesz(endian));
        let data = data.map_err(|()| "the code object: a note segment passes the end".to_owned())?;
        let mut at = 0usize;
        while at + NOTE_HEADER <= data.len() {
            let word = |i: usize| data.get(at + i..at + i + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let (Some(owner), Some(size), Some(kind)) = (word(0), word(4), word(8)) else { break };
            let (owner, size) = (owner as usize, size as usize);
            let name = at + NOTE_HEADER;
            let description = name.saturating_add(owner.saturating_add(3) & !3);
            let end = description.saturating_add(size);
            let owner = data.get(name..name.saturating_add(owner)).ok_or("the code object: a note passes the end")?;
            if end > data.len() {
                return Err("the code object: a note passes the end".to_owned());
            }
            let next = (end.saturating_add(3) & !3).min(data.len());
            if kind == NT_AMDGPU_METADATA && owner == b"AMDGPU\0" {
                notes.push(Note { whole: start + at..start + next, description: start + description..start + end });
            }
            at = next;
        }
    }
    Ok(notes)
}

/// Makes one metadata note of those of all linked objects: the linker places them one after another, and the runtime
/// reads the first alone. The file keeps its layout; the rest of the old notes becomes padding.
fn merge_metadata(mut elf: Vec<u8>) -> Result<Vec<u8>, String> {
    let notes = metadata_notes(&elf)?;
    let (Some(first), Some(last)) = (notes.first(), notes.last()) else {
        return Err("the code object has no metadata".to_owned());
    };
    let span = first.whole.start..last.whole.end;
    if notes.len() == 1 {
        return Ok(elf);
    }
    if notes.windows(2).any(|w| w[0].whole.end != w[1].whole.start) {
        return Err("the code object's metadata notes do not follow each other".to_owned());
    }
    let mut kernels = Vec::new();
    let mut count = 0u32;
    let mut target = None;
    for note in &notes {
        let bytes = elf.get(note.description.clone()).unwrap_or_default();
        let metadata = Value::read(bytes)?;
        let named = metadata.text("amdhsa.target").ok_or("the metadata names no target")?.to_owned();
        if *target.get_or_insert_with(|| named.clone()) != named {
            return Err("objects for different targets are linked together".to_owned());
        }
        for kernel in metadata.list("amdhsa.kernels").ok_or("the metadata lists no kernels")? {
            kernels.extend_from_slice(bytes.get(kernel.at.clone()).unwrap_or_default());
            count += 1;
        }
    }
    let target = target.unwrap_or_default();
    let text = |s: &str| [&[0xd9, s.len().min(255) as u8], s.as_bytes()].concat();
    let mut merged = vec![0x83];
    merged.extend(text("amdhsa.kernels"));
    merged.push(0xdd);
    merged.extend(count.to_be_bytes());
    merged.extend(kernels);
    merged.extend(text("amdhsa.target"));
    merged.extend(text(&target));
    merged.extend(text("amdhsa.version"));
    merged.extend([0x92, 1, 2]);
    let mut note = Vec::new();
    for word in [7u32, merged.len() as u32, NT_AMDGPU_METADATA] {
        note.extend(word.to_le_bytes());
    }
    note.extend(OWNER);
    note.extend(merged);
    note.resize(note.len().next_multiple_of(4), 0);
    let place = elf.get_mut(span.clone()).ok_or("the code object's notes pass its end")?;
    if note.len() > place.len() {
        return Err("the merged metadata does not fit".to_owned());
    }
    place.fill(0);
    place[..note.len()].copy_from_slice(&note);
    shrink(&mut elf, &span, note.len() as u64)?;
    Ok(elf)
}

/// A header table of an ELF file: places of fields in the file header and in an entry.
struct Table {
    at: usize,
    count: usize,
    bytes: usize,
    kind: (usize, u32),
    offset: usize,
    sizes: &'static [usize],
}

/// Gives the note segment and the note section that start with `span` the size `size`.
fn shrink(elf: &mut [u8], span: &Range<usize>, size: u64) -> Result<(), String> {
    let field = |elf: &[u8], at: usize, n: usize| -> Option<u64> {
        Some(elf.get(at..at.checked_add(n)?)?.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b)))
    };
    let segments = Table { at: 32, count: 56, bytes: 56, kind: (0, PT_NOTE), offset: 8, sizes: &[32, 40] };
    let sections = Table { at: 40, count: 60, bytes: 64, kind: (4, SHT_NOTE), offset: 24, sizes: &[32] };
    for table in [segments, sections] {
        let malformed = || "the code object's headers pass its end".to_owned();
        let start = field(elf, table.at, 8).ok_or_else(malformed)? as usize;
        let count = field(elf, table.count, 2).ok_or_else(malformed)? as usize;
        for entry in (0..count).map(|i| start.saturating_add(i * table.bytes)) {
            let of = |at: usize, n: usize| field(elf, entry.saturating_add(at), n);
            let kind = of(table.kind.0, 4) == Some(u64::from(table.kind.1));
            if kind && of(table.offset, 8) == Some(span.start as u64) {
                for at in table.sizes {
                    let place = entry.checked_add(*at).and_then(|at| elf.get_mut(at..at + 8)).ok_or_else(malformed)?;
                    place.copy_from_slice(&size.to_le_bytes());
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(vgprs: u32, lds_bytes: u32) -> Metadata {
        Metadata {
            vgprs,
            agprs: 0,
            sgprs: 20,
            lds_bytes,
            scratch_bytes: 0,
            vgpr_spills: 0,
            sgpr_spills: 0,
            kernarg_bytes: 8,
            max_threads: 1024,
        }
    }

    #[test]
    fn waves_by_registers_and_lds() {
        let of = |arch, vgprs, lds, threads| occupancy(arch, &kernel(vgprs, lds), threads);
        assert_eq!(of(GpuArch::Gfx942, 64, 0, 256), 8);
        assert_eq!(of(GpuArch::Gfx942, 65, 0, 256), 7);
        assert_eq!(of(GpuArch::Gfx942, 128, 0, 256), 4);
        assert_eq!(of(GpuArch::Gfx942, 512, 0, 64), 1);
        // One block of 4 waves fills the LDS: one wave a unit.
        assert_eq!(of(GpuArch::Gfx942, 32, 64 << 10, 256), 1);
        assert_eq!(of(GpuArch::Gfx950, 32, 64 << 10, 256), 2);
        assert_eq!(of(GpuArch::Gfx90a, 32, 33 << 10, 256), 1);
        // 16 waves of 256 registers do not fit on 4 units.
        assert_eq!(of(GpuArch::Gfx942, 256, 0, 1024), 0);
        let scalar = Metadata { sgprs: 104, ..kernel(8, 0) };
        assert_eq!(occupancy(GpuArch::Gfx942, &scalar, 64), 7);
    }

    #[test]
    fn damage_is_an_error() {
        assert!(read(b"", GpuArch::Gfx942).is_err());
        assert!(read(&[0x7f; 128], GpuArch::Gfx942).is_err());
        assert!(merge_metadata(vec![0; 64]).is_err());
    }
}
