//! `targets` and `doctor`.

use super::put;
use crate::driver::CompileError;
use std::process::Command;

/// Targets that code can be made for, with what each needs.
const TARGETS: [(&str, &str); 10] = [
    ("host", "this machine's CPU with all its features; AVX2, FMA and F16C at least"),
    ("x86-64-v3", "any CPU with AVX2, FMA and F16C"),
    ("x86-64-v4", "any CPU with AVX-512 F, BW, CD, DQ and VL"),
    ("icelake-server", "x86-64-v4 with AVX-512 VNNI"),
    ("sapphirerapids", "x86-64-v4 with AVX-512 VNNI and BF16"),
    ("znver4", "x86-64-v4 with AVX-512 VNNI and BF16"),
    ("gfx90a", "AMD CDNA 2 (Instinct MI200 series), ROCm 6 or later"),
    ("gfx942", "AMD CDNA 3 (Instinct MI300 series), ROCm 6 or later"),
    ("gfx950", "AMD CDNA 4 (Instinct MI350 series), ROCm 7 or later"),
    ("sm_90a", "NVIDIA Hopper (H100, H200; sm_90 is taken for it), a driver that takes PTX of this LLVM"),
];

/// How a list of targets is given.
const MIXED: &str = "Several targets, separated by commas, give one artifact with a program for each.\n";

/// Linker of code images.
const LINKER: &str = "ld.lld-22";

/// `weldment targets`.
pub fn targets() -> Result<(), CompileError> {
    let lines = TARGETS.map(|(name, needs)| format!("{name:12} {needs}\n"));
    put(&(lines.concat() + MIXED))
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

#[cfg(test)]
mod tests {
    use super::TARGETS;
    use weldment_codegen::target::{GpuArch, Target};

    #[test]
    fn every_listed_target_is_known() {
        for (name, _) in TARGETS {
            assert!(Target::named(name).is_ok(), "{name}");
        }
        assert!(GpuArch::ALL.iter().all(|arch| TARGETS.iter().any(|(name, _)| *name == arch.cpu())));
        assert_eq!(Target::named("sm_90").map(|t| t.name().to_owned()), Ok("sm_90a".to_owned()));
    }
}
