//! Libraries that are absent, are not HIP, or are HIP without a device: each is a clean error.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use hip_runtime_sys::{Error, Hip, SYMBOLS, version_parts};
use std::path::Path;

#[test]
fn a_missing_library_is_an_error_that_names_it() {
    let error = Hip::open_path(Path::new("/nowhere/libamdhip64.so.7")).unwrap_err();
    assert!(matches!(&error, Error::NoLibrary { tried } if tried.len() == 1), "{error:?}");
    assert!(error.to_string().contains("/nowhere/libamdhip64.so.7"), "{error}");
}

#[test]
fn a_missing_symbol_is_an_error_that_names_it_and_the_library() {
    // A library that is there and has none of the calls.
    let hip = Hip::open_path(Path::new("libm.so.6")).unwrap();
    assert_eq!(hip.missing(), SYMBOLS);
    let error = hip.device_count().unwrap_err();
    assert_eq!(error, Error::MissingSymbol { symbol: "hipInit", library: "libm.so.6".into() });
    assert_eq!(error.to_string(), "libm.so.6 has no hipInit");
    assert!(hip.arch_name(0).unwrap_err().to_string().contains("hipGetDeviceProperties"));
    assert_eq!(hip.error_name(2), "hipError 2");
}

#[test]
fn versions_are_read() {
    assert_eq!(version_parts(50_221_153), (5, 2, 21153));
    assert_eq!(version_parts(70_226_015), (7, 2, 26015));
    assert_eq!(version_parts(-1), (0, 0, 0));
}

/// Runs where some release of the library is installed, and says so where none is.
#[test]
fn the_installed_runtime_answers() {
    let hip = match Hip::open() {
        Ok(hip) => hip,
        Err(error) => {
            assert!(matches!(&error, Error::NoLibrary { .. }), "{error:?}");
            eprintln!("not run: {error}");
            return;
        }
    };
    assert_eq!(hip.missing(), [] as [&str; 0], "{}", hip.library());
    let (runtime, _) = hip.versions().unwrap();
    assert!(version_parts(runtime).0 >= 5, "{runtime}");
    assert_eq!(hip.error_name(2), "hipErrorOutOfMemory");
    let devices = hip.device_count().unwrap();
    eprintln!("{} {:?}, {devices} devices", hip.library(), version_parts(runtime));
    if devices == 0 {
        let mut address = std::ptr::null_mut();
        // SAFETY: the out pointer is live.
        let error = unsafe { hip.hipMalloc(&mut address, 64) }.unwrap_err();
        assert!(matches!(error.code(), Some(100 | 101)), "{error}");
        assert!(error.to_string().starts_with("hipMalloc: hipError"), "{error}");
    }
    for device in 0..devices {
        let arch = hip.arch_name(device as i32).unwrap();
        eprintln!("device {device}: {} {arch}", hip.device_name(device as i32).unwrap());
    }
}
