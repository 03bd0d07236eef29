//! The conformance suite on what this machine has: the host always, GPUs where their drivers find one.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

#[allow(dead_code, reason = "each test binary uses its own part")]
mod common;

use weldment_runtime::conformance::{Kit, Outcome, built_in, check_artifact, check_driver};
use weldment_runtime::driver::{Driver, KernelEntry, ModuleSource, PLATFORMS};
use weldment_runtime::{Artifact, Device, SessionOptions};

/// The driver, for kernels of this file.
fn raw(device: &Device) -> &dyn Driver {
    // SAFETY: the suite binds what its two kernels address.
    unsafe { device.raw_driver() }
}

fn all_hold(outcomes: Vec<Outcome>) {
    for Outcome { name, result } in outcomes {
        assert!(result.is_ok(), "{name}: {}", result.unwrap_err());
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_host_driver_conforms() {
    let entry = |i: usize| KernelEntry { name: "", offset: common::ENTRIES[i], threads: 0 };
    let kit = Kit { image: &common::CODE, kernels: [entry(1), entry(2)] };
    for threads in [1, 2, 5] {
        all_hold(check_driver(raw(&Device::host(threads).unwrap()), &kit));
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn sessions_on_the_host_conform() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.weld");
    common::write_tiny(&path);
    let artifact = Artifact::open(&path).unwrap();
    let options = SessionOptions { cache: None, ..SessionOptions::default() };
    all_hold(check_artifact(&artifact, &Device::host(2).unwrap(), &options).unwrap());
}

#[test]
fn gpu_drivers_conform_where_there_are_devices() {
    for platform in PLATFORMS {
        let (Ok(count), Some(kit)) = ((platform.count)(), built_in(platform.name)) else { continue };
        for index in 0..count {
            all_hold(check_driver(raw(&Device::gpu(platform.name, index, 1).unwrap()), &kit));
        }
    }
}

#[test]
fn code_that_a_driver_compiles_is_cached() {
    let Ok(device) = Device::cuda(0) else { return };
    let kit = built_in("cuda").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let hash = weldment_runtime::blake3_hex(kit.image);
    let source = ModuleSource { image: kit.image, hash: &hash, kernels: &kit.kernels, cache: Some(dir.path()) };
    let report = || raw(&device).load_module(&source).unwrap().load_report();
    let first = report();
    assert!(first.jit.is_some() && !first.cached);
    let second = report();
    assert!(second.jit.is_none() && second.cached);
    let file = std::fs::read_dir(dir.path().join("jit")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert!(report().jit.is_some(), "a damaged file is made again");
    assert!(report().cached);
    let bad = b".version 7.8\n.target sm_80\n.address_size 64\n.visible .entry broken() { nonsense; }\n";
    let source = ModuleSource { image: bad, hash: &weldment_runtime::blake3_hex(bad), ..source };
    let error = raw(&device).load_module(&source).unwrap_err().to_string();
    assert!(error.contains("nonsense") || error.contains("line 4"), "{error}");
}

#[test]
fn bandwidth_of_gpus_is_measured() {
    for platform in PLATFORMS.iter().filter(|p| (p.count)().is_ok_and(|n| n > 0)) {
        let device = Device::gpu(platform.name, 0, 1).unwrap();
        let (bandwidth, by) = weldment_runtime::cli::gpu_bench::bandwidth(raw(&device)).unwrap();
        println!("{}: {:.0} GB/s by {by}", platform.name, bandwidth / 1e9);
        assert!((1e9..1e14).contains(&bandwidth), "{bandwidth}");
    }
}

#[test]
fn an_absent_driver_is_named() {
    for platform in PLATFORMS {
        if let Err(e) = (platform.count)() {
            let text = e.to_string();
            assert!(text.contains("lib") && text.contains(".so"), "{}: {text}", platform.name);
            assert!(Device::gpu(platform.name, 0, 1).unwrap_err().to_string().contains("lib"));
        }
    }
}
