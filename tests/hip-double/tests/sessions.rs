//! The HIP driver on the double of libamdhip64: the whole life of a session, and the same life with each of its calls failing in
//! turn. The library is opened once per process and named by the environment, so each test runs in a process of its own.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

mod tiny;

use hip_double::{Double, locate};
use std::path::Path;
use std::process::Command;
use tiny::{History, write_tiny, write_tiny_of};
use weldment_runtime::comm::{Group, GroupOptions, Ranks};
use weldment_runtime::{Artifact, Device, Error, Session, SessionOptions, StepInput};

const OUT_OF_MEMORY: i32 = 2;
const ILLEGAL_ADDRESS: i32 = 700;
const UNKNOWN: i32 = 999;

/// Runs `body` with the double, in a child process, and returns what it wrote to stderr; nothing in the child.
fn in_child(test: &str, environment: &[(&str, &str)], body: impl FnOnce(Double, &Path)) -> Option<String> {
    const CHILD: &str = "WELDMENT_DOUBLE_CHILD";
    if std::env::var_os(CHILD).is_some_and(|name| name == test) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.weld");
        write_tiny(&path);
        body(Double::open().unwrap(), &path);
        return None;
    }
    let library = locate().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, test)
        .env("WELDMENT_HIP_LIBRARY", library)
        .env("WELDMENT_LOG", "warn")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}{errors}", String::from_utf8_lossy(&output.stdout));
    Some(errors)
}

fn options() -> SessionOptions {
    SessionOptions { cache: None, ..SessionOptions::default() }
}

/// The life of a session: device, weights, capture, steps of both variants, logits, and its end.
fn life(path: &Path) -> Result<(), Error> {
    let artifact = Artifact::open(path)?;
    let device = Device::hip(0)?;
    let mut session = Session::new(&artifact, &device, options())?;
    let mut history = History::default();
    let mut sequence = session.new_sequence();
    let prompt: Vec<i32> = (0..20).map(|i| i % 8).collect();
    let logits = session.extend(&mut sequence, &prompt)?.to_vec();
    assert_eq!(logits, history.last_of(&prompt));
    // Enough steps for the ring to come round.
    for token in [3, 1, 4, 1, 5, 2, 6, 5, 3, 5] {
        let logits = session.extend(&mut sequence, &[token])?.to_vec();
        assert_eq!(logits, history.last_of(&[token]));
    }
    drop(sequence);
    session.close()?;
    device.close()
}

fn assert_clean(double: &Double, what: &str) {
    assert_eq!(double.leaks(), [] as [&str; 0], "{what}");
    assert_eq!(double.violations(), [] as [&str; 0], "{what}");
}

/// The life of a session as rank `rank` of two, each on a device of its own.
fn life_of_rank(path: &Path, rank: u32, job: &str) -> Result<(), Error> {
    let group = Group::join(Ranks::local(rank, 2, job), GroupOptions::default())?;
    let artifact = Artifact::open(path)?;
    let device = group.share(Device::hip(rank as usize))?;
    let mut session = Session::new(&artifact, &device, SessionOptions { group: Some(group), ..options() })?;
    let mut history = History::default();
    let mut sequence = session.new_sequence();
    for token in [3, 1, 4, 1, 5, 2, 6, 5, 3, 5] {
        let logits = session.extend(&mut sequence, &[token])?.to_vec();
        assert_eq!(logits, history.last_of(&[token]));
    }
    drop(sequence);
    session.close()?;
    device.close()
}

/// Two ranks as threads: the double is the machine that both are on.
fn two_ranks(path: &Path, job: &str) -> [Result<(), Error>; 2] {
    std::thread::scope(|scope| {
        [0, 1].map(|rank| scope.spawn(move || life_of_rank(path, rank, job))).map(|thread| thread.join().unwrap())
    })
}

#[test]
fn ranks_share_uncached_pages_before_any_capture() {
    in_child("ranks_share_uncached_pages_before_any_capture", &[], |double, path| {
        let path = path.with_file_name("two.weld");
        write_tiny_of(&path, 2);
        double.set_devices(2);
        let job = format!("double {}", std::process::id());
        two_ranks(&path, &job).into_iter().for_each(|result| result.unwrap());
        assert_clean(&double, "two ranks");
        for (call, times) in [
            ("hipExtMallocWithFlags", 2),
            ("hipIpcGetMemHandle", 2),
            ("hipIpcOpenMemHandle", 2),
            ("hipIpcCloseMemHandle", 2),
        ] {
            assert_eq!(double.count(call), times, "{call}");
        }
        let log = double.log();
        let last = |call: &str| log.iter().rposition(|line| line.starts_with(call)).unwrap();
        let first = |call: &str| log.iter().position(|line| line.starts_with(call)).unwrap();
        assert!(last("hipIpcOpenMemHandle") < first("hipStreamBeginCapture"), "shared before capture");
        // What cannot be shared fails both ranks, and leaves nothing.
        for (call, name) in ["hipExtMallocWithFlags", "hipIpcGetMemHandle", "hipIpcOpenMemHandle"].iter().zip(0..) {
            let index = log.iter().position(|line| line.starts_with(call)).unwrap();
            double.reset();
            double.set_devices(2);
            double.fail_at(index as u64, OUT_OF_MEMORY);
            for result in two_ranks(&path, &format!("{job} {name}")) {
                assert!(result.is_err(), "{call} failed");
            }
            assert_clean(&double, call);
        }
    });
}

#[test]
fn two_thousand_tokens_capture_once() {
    in_child("two_thousand_tokens_capture_once", &[], |double, path| {
        let artifact = Artifact::open(path).unwrap();
        let device = Device::hip(0).unwrap();
        let mut session = Session::new(&artifact, &device, options()).unwrap();
        assert_eq!(double.count("hipStreamBeginCapture"), 2, "one for each variant");
        assert_eq!(double.count("hipGraphInstantiateWithFlags"), 2);
        let mut history = History::default();
        let mut sequence = session.new_sequence();
        let before = double.calls() as usize;
        for i in 0..2000 {
            let token = i * 5 % 8;
            let logits = session.extend(&mut sequence, &[token]).unwrap().to_vec();
            assert_eq!(logits, history.last_of(&[token]), "step {i}");
        }
        let log = double.log().split_off(before);
        let count = |name: &str, detail: &str| {
            log.iter().filter(|c| c.split('(').next() == Some(name) && c.contains(detail)).count()
        };
        assert_eq!(count("hipGraphLaunch", ""), 2000);
        assert_eq!(count("hipMemcpyAsync", "kind 1"), 2000, "dims and inputs are one copy");
        assert_eq!(count("hipMemcpyAsync", "kind 2"), 2000, "logits");
        for never in ["hipStreamBeginCapture", "hipGraphExecUpdate", "hipGraphExecKernelNodeSetParams", "hipMalloc"] {
            assert_eq!(count(never, ""), 0, "{never}");
        }
        assert!(count("hipGraphInstantiate", "") + count("hipGraphInstantiateWithFlags", "") == 0);
        assert!(count("hipModuleLaunchKernel", "") + count("hipHostMalloc", "") == 0);
        drop(sequence);
        drop((session, device));
        assert_clean(&double, "the end");
    });
}

#[test]
fn steps_overlap_and_no_slot_is_written_too_early() {
    in_child("steps_overlap_and_no_slot_is_written_too_early", &[], |double, path| {
        let artifact = Artifact::open(path).unwrap();
        let device = Device::hip(0).unwrap();
        let mut session = Session::new(&artifact, &device, options()).unwrap();
        let mut history = History::default();
        let before = double.calls() as usize;
        let mut expected = Vec::new();
        // The double runs nothing until somebody waits, so only the ring's events keep slots apart.
        for i in 0..1000 {
            let tokens = [i * 7 % 8, i % 5, 2, i % 3];
            let tokens = &tokens[..1 + i as usize % 4];
            let positions: Vec<i32> = (0..tokens.len() as i32).collect();
            let rows: Vec<i32> = positions.iter().rev().copied().collect();
            let input = StepInput {
                tokens,
                positions: &positions,
                seq_starts: &[0, tokens.len() as i32],
                block_tables: &[0],
                logit_rows: &rows,
            };
            session.enqueue(&input).unwrap();
            let in_order: Vec<i32> = rows.iter().map(|r| tokens[*r as usize]).collect();
            expected = history.all_of(&in_order);
        }
        let log = double.log().split_off(before);
        let count = |name: &str| log.iter().filter(|c| c.split('(').next() == Some(name)).count();
        assert_eq!((count("hipMemcpyAsync"), count("hipGraphLaunch")), (1000, 1000));
        assert_eq!(count("hipStreamSynchronize") + count("hipDeviceSynchronize"), 0, "the host runs ahead");
        let rest = log.len() - 2000 - count("hipSetDevice");
        assert_eq!(rest, count("hipEventRecord") + count("hipEventSynchronize"), "nothing else is called");
        assert!(count("hipEventRecord") <= 1000 && count("hipEventSynchronize") <= 1000);
        assert_eq!(session.logits().unwrap(), expected);
        drop((session, device));
        assert_clean(&double, "the end");
    });
}

/// The bar: whichever call fails, there is an error that names it, nothing leaks, and the next session works.
#[test]
fn every_call_fails_in_turn() {
    in_child("every_call_fails_in_turn", &[], |double, path| {
        life(path).unwrap();
        let clean = double.log();
        assert_clean(&double, "without a fault");
        let mut launches = 0;
        for (index, call) in clean.iter().enumerate() {
            let name = call.split('(').next().unwrap_or_default();
            double.reset();
            double.fail_at(index as u64, if name.contains("Malloc") { OUT_OF_MEMORY } else { UNKNOWN });
            let result = life(path);
            let what = format!("call {index}, {call}: {result:?}");
            // The runs agree up to the fault, but for addresses.
            assert_eq!(double.log()[index].split('(').next(), Some(name), "{what}");
            assert_clean(&double, &what);
            let Err(error) = result else { panic!("nothing was returned: {what}") };
            let text = error.to_string();
            assert!(text.contains(&format!("{name}: hipError")), "{what}");
            if name == "hipModuleLaunchKernel" || name == "hipGraphLaunch" {
                assert!(text.contains("entry step, variant "), "{what}");
                launches += 1;
            }
            if name == "hipModuleLaunchKernel" {
                assert!(text.contains("kernel mix") || text.contains("kernel one_hot"), "{what}");
            }
            if name.contains("Malloc") {
                let bytes = call.split_once('(').unwrap().1.split(' ').next().unwrap();
                assert!(text.contains(&format!("{bytes} bytes")), "{what}");
            }
            double.reset();
            life(path).unwrap_or_else(|e| panic!("after {what}: {e}"));
            assert_clean(&double, &format!("the session after {what}"));
        }
        assert_eq!(launches, 2 * 2 + 11, "each kernel of each variant, and each step");
        assert!(clean.len() > 150, "{}", clean.len());
    });
}

#[test]
fn running_out_of_memory_names_the_sizes() {
    in_child("running_out_of_memory_names_the_sizes", &[], |double, path| {
        double.set_memory(3000);
        let error = life(path).unwrap_err().to_string();
        assert!(error.contains("hipMalloc: hipErrorOutOfMemory (2)"), "{error}");
        assert!(error.contains("of 3000 bytes are free") && error.contains("cannot allocate "), "{error}");
        assert_clean(&double, "out of memory");
        double.reset();
        life(path).unwrap();
    });
}

#[test]
fn a_device_fault_names_the_entry() {
    in_child("a_device_fault_names_the_entry", &[], |double, path| {
        for kernel in [0, 1, 2, 7] {
            double.fault_at(kernel, ILLEGAL_ADDRESS);
            let error = life(path).unwrap_err().to_string();
            assert!(
                error.contains("hipErrorIllegalAddress (700)") && error.contains("entry step, variant "),
                "{error}"
            );
            assert_clean(&double, &error);
            double.reset();
        }
        life(path).unwrap();
    });
}

#[test]
fn launches_one_by_one_name_the_kernel() {
    let environment = [("WELDMENT_LAUNCH_BLOCKING", "1")];
    in_child("launches_one_by_one_name_the_kernel", &environment, |double, path| {
        for (kernel, name) in [(0, "mix"), (1, "one_hot"), (4, "mix")] {
            double.fault_at(kernel, ILLEGAL_ADDRESS);
            let error = life(path).unwrap_err().to_string();
            assert!(error.contains(&format!("kernel {name}")) && error.contains("entry step"), "{error}");
            assert_clean(&double, &error);
            double.reset();
        }
        life(path).unwrap();
    });
}

#[test]
fn devices_that_do_not_fit_are_refused() {
    in_child("devices_that_do_not_fit_are_refused", &[], |double, path| {
        double.set_devices(0);
        let error = Device::hip(0).unwrap_err();
        assert!(matches!(&error, Error::Unsupported(text) if text.contains("there is no device hip:0")), "{error}");
        double.set_devices(2);
        Device::hip(1).unwrap();
        let error = Device::hip(2).unwrap_err().to_string();
        assert!(error.contains("hip:2"), "{error}");
        double.set_arch("gfx950:sramecc+:xnack-");
        let artifact = Artifact::open(path).unwrap();
        let device = Device::hip(0).unwrap();
        let error = Session::new(&artifact, &device, options()).unwrap_err().to_string();
        assert!(error.contains("gfx942") && error.contains("gfx950"), "{error}");
        drop(device);
        assert_clean(&double, "refusals");
    });
}

/// Up to ROCm 7.2.0 a wait in any thread spoils captures in all: sessions of one process keep out of each other's way.
#[test]
fn concurrent_sessions_do_not_spoil_captures() {
    in_child("concurrent_sessions_do_not_spoil_captures", &[], |double, path| {
        double.set_captures_spoil(true);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..15).for_each(|_| life(path).unwrap()));
            }
        });
        assert_clean(&double, "concurrent sessions");
    });
}
