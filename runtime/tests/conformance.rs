//! The conformance suite on what this machine has: the host always, GPUs where their drivers find one.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

#[allow(dead_code, reason = "each test binary uses its own part")]
mod common;

use weldment_runtime::conformance::{Kit, Outcome, built_in, check_artifact, check_driver};
use weldment_runtime::driver::{KernelEntry, PLATFORMS};
use weldment_runtime::{Artifact, Device, SessionOptions};

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
        all_hold(check_driver(Device::host(threads).unwrap().driver(), &kit));
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
            all_hold(check_driver(Device::gpu(platform.name, index, 1).unwrap().driver(), &kit));
        }
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
