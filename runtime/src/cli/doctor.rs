//! `doctor`: what this machine offers, and whether its drivers do what they must.

use super::{SessionArgs, put, put_json};
use crate::artifact::{Artifact, SymbolRole};
use crate::conformance::{Outcome, built_in, check_artifact, check_driver};
use crate::cpu;
use crate::device::Device;
use crate::driver::host::HostOptions;
use crate::driver::{PLATFORMS, PlatformReport, hip};
use crate::error::{Error, Result};
use crate::session::SessionOptions;
use crate::weights;
use serde_json::{Value, json};
use std::io::Write;

/// Options of `doctor`.
#[derive(Clone, Debug, Default)]
pub struct DoctorOptions {
    /// One JSON object instead of lines.
    pub json: bool,
    /// Runs the conformance suite with this artifact, on its device, instead of the report.
    pub conformance: Option<SessionArgs>,
}

/// Reports CPU, features, threads, memory, cache, GPU drivers and devices.
///
/// # Errors
/// If stdout cannot be written.
pub fn doctor(out: &mut dyn Write) -> Result<()> {
    doctor_with(&DoctorOptions::default(), out)
}

/// As [`doctor`], or runs the conformance suite.
///
/// # Errors
/// If stdout cannot be written; with the suite, [`Error::CheckFailed`] if a check does not hold, and whatever keeps it from
/// running.
pub fn doctor_with(options: &DoctorOptions, out: &mut dyn Write) -> Result<()> {
    if let Some(args) = &options.conformance {
        return conformance(args, out);
    }
    let reports: Vec<(&str, PlatformReport)> = PLATFORMS.iter().map(|p| (p.name, (p.report)())).collect();
    if options.json {
        let platforms = reports.iter().map(|(name, report)| ((*name).to_owned(), platform_json(name, report)));
        let platforms: serde_json::Map<String, Value> = platforms.collect();
        return put_json(
            out,
            &json!({
                "cpu": cpu::model_name(),
                "features": cpu::detected_features(),
                "threads": cpu::default_threads(),
                "physical_cores": cpu::physical_cores().len(),
                "cache": weights::cache_dir().map(|path| path.display().to_string()),
                "platforms": platforms,
            }),
        );
    }
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
    put(out, &format!("cache     {cache}\n"))?;
    for (name, report) in &reports {
        platform(name, report, out)?;
    }
    Ok(())
}

/// Defects of the platform's installed release.
fn defects(name: &str, report: &PlatformReport) -> Vec<&'static hip::defects::Defect> {
    let processor = report.devices.as_ref().ok().and_then(|list| list.first()).map(|d| d.arch.as_str());
    match (name, hip::version()) {
        ("hip", Some(version)) => hip::defects::known(version, processor).collect(),
        _ => Vec::new(),
    }
}

fn platform(name: &str, report: &PlatformReport, out: &mut dyn Write) -> Result<()> {
    match &report.library {
        Ok(library) if report.version.is_empty() => put(out, &format!("{name:<9} {library}\n"))?,
        Ok(library) => put(out, &format!("{name:<9} {library}, version {}\n", report.version))?,
        Err(reason) => return put(out, &format!("{name:<9} none: {reason}\n")),
    }
    if !report.missing.is_empty() {
        put(out, &format!("{name:<9} missing: {}\n", report.missing.join(" ")))?;
    }
    match &report.devices {
        Ok(devices) if devices.is_empty() => put(out, &format!("{name:<9} no device\n"))?,
        Ok(devices) => {
            for d in devices {
                let gib = d.memory as f64 / (1u64 << 30) as f64;
                let line =
                    format!("{name}:{:<5} {}, {}, {} units, {gib:.1} GiB\n", d.index, d.name, d.full_arch, d.units);
                put(out, &line)?;
            }
        }
        Err(reason) => put(out, &format!("{name:<9} no device: {reason}\n"))?,
    }
    for defect in defects(name, report) {
        put(out, &format!("{name:<9} known defect {}: {}; {}\n", defect.name, defect.what, defect.answer))?;
    }
    Ok(())
}

fn platform_json(name: &str, report: &PlatformReport) -> Value {
    let device = |d: &crate::driver::gpu::api::DeviceInfo| {
        json!({
            "index": d.index, "name": d.name, "arch": d.full_arch, "units": d.units, "memory_bytes": d.memory,
            "driver_version": d.driver_version,
        })
    };
    let defects = defects(name, report);
    json!({
        "library": report.library.as_ref().ok(),
        "library_error": report.library.as_ref().err(),
        "version": report.version,
        "missing": report.missing,
        "devices": report.devices.as_ref().ok().map(|list| list.iter().map(device).collect::<Vec<_>>()),
        "devices_error": report.devices.as_ref().err(),
        "known_defects": defects.iter().map(|d| json!({ "name": d.name, "what": d.what, "answer": d.answer, "source": d.source }))
            .collect::<Vec<_>>(),
    })
}

fn conformance(args: &SessionArgs, out: &mut dyn Write) -> Result<()> {
    let artifact = Artifact::open(&args.artifact)?;
    let device = Device::open(args.device, &artifact, HostOptions { threads: args.threads, ..HostOptions::default() })?;
    let driver = device.driver();
    let mut failed = 0;
    let mut report = |outcomes: Vec<Outcome>, out: &mut dyn Write| -> Result<()> {
        for Outcome { name, result } in outcomes {
            match result {
                Ok(()) => put(out, &format!("ok      {name}\n"))?,
                Err(e) => {
                    failed += 1;
                    put(out, &format!("FAILED  {name}: {e}\n"))?;
                }
            }
        }
        Ok(())
    };
    match built_in(driver.name()) {
        Some(kit) => report(check_driver(driver, &kit), out)?,
        None => put(out, &format!("skipped the driver's own checks: this binary has no code for {}\n", driver.name()))?,
    }
    // Two sessions at once, each with room for the suite's one sequence.
    let blocks = artifact.manifest().symbol_of(&SymbolRole::POOL).map(|(_, n)| n.max.min(n.min.max(64)) as usize);
    let options =
        SessionOptions { kv_blocks: blocks, weights_file: args.weights_file.clone(), ..SessionOptions::default() };
    report(check_artifact(&artifact, &device, &options)?, out)?;
    if failed == 0 { Ok(()) } else { Err(Error::CheckFailed(format!("{failed} conformance checks"))) }
}

fn writable(folder: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let probe = folder.join(format!(".doctor.{}", std::process::id()));
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(&probe)
}
