//! `doctor`: what this machine offers.

use super::put;
use crate::cpu;
use crate::error::Result;
use crate::weights;
use std::io::Write;

/// Reports CPU, features, threads, memory and cache.
///
/// # Errors
/// If stdout cannot be written.
pub fn doctor(out: &mut dyn Write) -> Result<()> {
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    put(out, &format!("cpu       {}\n", cpu::model_name().unwrap_or_else(|| "unknown".into())))?;
    put(out, &format!("features  {}\n", cpu::detected_features().join(" ")))?;
    let cores = cpu::physical_cores();
    put(out, &format!("threads   {} by default, {} physical cores\n", cpu::default_threads(), cores.len()))?;
    let memory = file("/proc/meminfo");
    for line in memory.lines().filter(|l| l.starts_with("MemTotal") || l.starts_with("MemAvailable")) {
        put(out, &format!("memory    {line}\n"))?;
    }
    let pages = file("/sys/kernel/mm/transparent_hugepage/enabled");
    put(out, &format!("hugepages {}\n", pages.trim()))?;
    let cache = match weights::cache_dir() {
        None => "none: neither XDG_CACHE_HOME nor HOME is set; external weights are packed on every start".into(),
        Some(path) => match writable(&path) {
            Ok(()) => format!("{} (writable)", path.display()),
            Err(e) => format!("{} (not writable: {e})", path.display()),
        },
    };
    put(out, &format!("cache     {cache}\n"))
}

fn writable(folder: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let probe = folder.join(format!(".doctor.{}", std::process::id()));
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(&probe)
}
