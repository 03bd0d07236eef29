//! A model on four ranks, step after step, with collectives whose epochs wrap on the way: nothing hangs and no sum changes. `make soak`
//! runs a million steps.

mod tiny_llama;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use weldment_runtime::cli::launch::launch;
use weldment_runtime::{Artifact, Device, Result, Session, SessionOptions, StepInput};

/// Set for the processes that are ranks.
const ARTIFACT: &str = "WELDMENT_SOAK_ARTIFACT";

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

fn steps() -> u64 {
    setting("WELDMENT_SOAK_STEPS", 5_000)
}

#[test]
fn sums_stay_right_while_epochs_wrap() {
    if let Some(artifact) = std::env::var_os(ARTIFACT) {
        return soak(&PathBuf::from(artifact)).expect("a rank of the soak");
    }
    let world = u32::try_from(setting("WELDMENT_SOAK_RANKS", 4)).expect("a number of ranks");
    // Every step uses each channel several times, so that counters wrap early in a short run and well within a long one.
    let first = setting("WELDMENT_FIRST_EPOCH", u64::from(u32::MAX) - steps() / 2);
    let dir = tempfile::tempdir().expect("a folder");
    let artifact = tiny_llama::artifact_of_ranks(dir.path(), world);
    let arguments = ["sums_stay_right_while_epochs_wrap", "--exact", "--nocapture"].map(OsString::from);
    let variables = [(ARTIFACT, artifact.path().display().to_string()), ("WELDMENT_FIRST_EPOCH", first.to_string())];
    let variables: Vec<(OsString, OsString)> = variables.into_iter().map(|(n, v)| (n.into(), v.into())).collect();
    launch(&arguments, &variables, world, Duration::from_secs(10)).expect("every rank ends well");
}

/// The steps of one rank: the logits of a token are the same whenever they are computed, and on all ranks.
fn soak(artifact: &PathBuf) -> Result<()> {
    let artifact = Artifact::open(artifact)?;
    let device = Device::host(1)?;
    let weights_file = Some(tiny_llama::folder());
    let options = SessionOptions { cache: None, kv_blocks: Some(2), weights_file, ..SessionOptions::default() };
    let mut session = Session::new(&artifact, &device, options)?;
    let mut first: Vec<Vec<f32>> = Vec::new();
    let began = Instant::now();
    for step in 0..steps() as usize {
        let token = [(step % 7) as i32 * 31 + 1];
        let input =
            StepInput { tokens: &token, positions: &[0], seq_starts: &[0, 1], block_tables: &[0], logit_rows: &[0] };
        let logits = session.step(&input)?;
        match first.get(step % 7) {
            None => first.push(logits.to_vec()),
            Some(known) => {
                let same = known.iter().zip(logits).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "step {step}: the logits of token {} are others than before", token[0]);
            }
        }
    }
    let bytes: Vec<u8> = first.iter().flatten().flat_map(|x| x.to_bits().to_le_bytes()).collect();
    assert!(first.iter().flatten().all(|x| x.is_finite()) && first[0] != first[1]);
    let group = session.group().expect("ranks").clone();
    group.agree("set of logits", weldment_runtime::blake3_hex(&bytes).as_bytes())?;
    if session.reports() {
        eprintln!("{} steps, {:?} each", steps(), began.elapsed() / steps() as u32);
    }
    session.close()
}
