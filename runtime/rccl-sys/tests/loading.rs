//! Libraries that are absent or lack calls are clean errors.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use rccl_sys::{Error, Rccl, SYMBOLS};
use std::path::Path;

#[test]
fn a_missing_library_is_an_error_that_names_it() {
    let error = Rccl::open_any(&[Path::new("/nowhere/librccl.so.1")]).unwrap_err();
    assert!(matches!(&error, Error::NoLibrary { tried } if tried.len() == 1), "{error:?}");
    assert!(error.to_string().contains("/nowhere/librccl.so.1"), "{error}");
    assert!(error.to_string().contains("WELDMENT_RCCL_LIBRARY"), "{error}");
}

#[test]
fn a_missing_symbol_is_an_error_that_names_it_and_the_library() {
    let rccl = Rccl::open_any(&[Path::new("libm.so.6")]).unwrap();
    assert_eq!(rccl.missing(), SYMBOLS);
    let error = rccl.unique_id().unwrap_err();
    assert_eq!(error, Error::MissingSymbol { symbol: "ncclGetUniqueId", library: "libm.so.6".into() });
    assert_eq!(error.to_string(), "libm.so.6 has no ncclGetUniqueId");
}

/// Runs where some release of the library is installed, and says so where none is.
#[test]
fn the_installed_library_answers() {
    match Rccl::open() {
        Ok(rccl) => {
            assert_eq!(rccl.missing(), [] as [&str; 0], "{}", rccl.library());
            assert!(rccl.version().unwrap() >= 20_000);
        }
        Err(error) => {
            assert!(matches!(&error, Error::NoLibrary { .. }), "{error:?}");
            eprintln!("not run: {error}");
        }
    }
}
