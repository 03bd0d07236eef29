//! The lock file of `make emulate`: every code object of every case was witnessed in the emulator, or says why not.

use std::collections::BTreeSet;
use weldment_tests::cases::cases;
use weldment_tests::emulate::{TARGETS, llvm_version, lock_path, object};

#[test]
fn every_code_object_is_in_the_lock() {
    let lock = std::fs::read_to_string(lock_path()).expect("tests/emulated.lock");
    let lock: serde_json::Value = serde_json::from_str(&lock).expect("JSON");
    let version = llvm_version().expect("a version");
    // Another LLVM makes other code: the cases must compile, and their hashes say nothing.
    let same = lock["llvm"] == version.as_str();
    let cases = cases();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let missing = std::sync::Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    for target in TARGETS {
                        let found = match object(case, target) {
                            Ok(object) => !same || lock["objects"].get(&object.hash).is_some(),
                            Err(e) => panic!("{target} {}: {e}", case.name),
                        };
                        if !found {
                            missing.lock().expect("no panic").insert(format!("{target} {}", case.name));
                        }
                    }
                }
            });
        }
    });
    let missing = missing.into_inner().expect("no panic");
    assert!(missing.is_empty(), "{} objects changed; run `make emulate`:\n{missing:#?}", missing.len());
}

#[test]
fn every_family_is_witnessed_on_every_target() {
    let lock = std::fs::read_to_string(lock_path()).expect("tests/emulated.lock");
    let lock: serde_json::Value = serde_json::from_str(&lock).expect("JSON");
    let objects: Vec<&serde_json::Value> = lock["objects"].as_object().expect("objects").values().collect();
    let families = |target: &str, only_run: bool| -> BTreeSet<String> {
        let of = objects.iter().filter(|o| o["target"] == target && (!only_run || o["result"] == "emulated"));
        let names = of.flat_map(|o| o["families"].as_array().into_iter().flatten());
        names.filter_map(|f| f.as_str().map(str::to_owned)).collect()
    };
    for target in TARGETS {
        assert_eq!(families(target, true), families(target, false), "{target}: a family never ran");
        assert!(families(target, true).len() >= 6, "{:?}", families(target, true));
    }
    for object in &objects {
        let reason = object["result"].as_str().expect("a result");
        let listed = reason == "emulated" || (reason.starts_with("not emulatable: ") && object["static"].is_object());
        assert!(listed, "{object}");
    }
}
