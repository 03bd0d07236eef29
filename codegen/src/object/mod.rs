//! Linking, and reading back what was linked: a flat image for the host, a code object for AMD, PTX for NVIDIA.

pub mod amdgpu;
mod host;
mod msgpack;
pub mod ptx;

pub use host::{Image, link, link_relocatable};

use crate::compile::CodegenError;
use std::path::Path;
use std::process::Command;

/// Name of the linker.
pub const LINKER: &str = "ld.lld-22";

fn linker() -> String {
    let beside = Path::new("/usr/lib/llvm-22/bin/ld.lld");
    if beside.exists() { beside.to_string_lossy().into_owned() } else { LINKER.to_owned() }
}

/// Runs the linker on `objects` with `options` and gives what it wrote.
///
/// # Errors
/// If the linker is missing or fails; with its own words.
fn run_linker(objects: &[Vec<u8>], options: &[&str]) -> Result<Vec<u8>, CodegenError> {
    let dir = tempfile::tempdir().map_err(|e| CodegenError::Link(format!("no temporary directory: {e}")))?;
    let mut command = Command::new(linker());
    command.args(options);
    for (i, object) in objects.iter().enumerate() {
        let path = dir.path().join(format!("{i}.o"));
        std::fs::write(&path, object).map_err(|e| CodegenError::Link(format!("{}: {e}", path.display())))?;
        command.arg(&path);
    }
    let out = dir.path().join("image");
    let run = command.arg("-o").arg(&out).output();
    let run = run
        .map_err(|e| CodegenError::Link(format!("{} did not start: {e}; Debian's package lld-22 has it", linker())))?;
    if !run.status.success() {
        return Err(CodegenError::Link(String::from_utf8_lossy(&run.stderr).trim().to_owned()));
    }
    std::fs::read(&out).map_err(|e| CodegenError::Link(e.to_string()))
}
