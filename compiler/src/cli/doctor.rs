//! `targets` and `doctor`.

use super::put;
use crate::driver::CompileError;
use std::process::Command;

/// Targets that code can be made for, with what each needs.
const TARGETS: [(&str, &str); 6] = [
    ("host", "this machine's CPU with all its features; AVX2, FMA and F16C at least"),
    ("x86-64-v3", "any CPU with AVX2, FMA and F16C"),
    ("x86-64-v4", "any CPU with AVX-512 F, BW, CD, DQ and VL"),
    ("icelake-server", "x86-64-v4 with AVX-512 VNNI"),
    ("sapphirerapids", "x86-64-v4 with AVX-512 VNNI and BF16"),
    ("znver4", "x86-64-v4 with AVX-512 VNNI and BF16"),
];

/// Linker of code images.
const LINKER: &str = "ld.lld-22";

/// `weldment targets`.
pub fn targets() -> Result<(), CompileError> {
    let lines = TARGETS.map(|(name, needs)| format!("{name:12} {needs}\n"));
    put(&lines.concat())
}

/// `weldment doctor`: the runtime's report, then what the compiler needs.
pub fn doctor() -> Result<(), CompileError> {
    weldment_runtime::cli::doctor::doctor(&mut std::io::stdout())?;
    let found = Command::new(LINKER).arg("--version").output();
    match found {
        Ok(out) if out.status.success() => {
            put(&format!("linker    {}\n", String::from_utf8_lossy(&out.stdout).lines().next().unwrap_or(LINKER)))
        }
        _ => Err(CompileError::Check(format!("{LINKER} was not found on PATH; install Debian's package lld-22"))),
    }
}
