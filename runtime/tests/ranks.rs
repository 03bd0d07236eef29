//! Ranks as threads of one process, each with a session of its own: what a group does while nothing fails, and when something does.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

#[allow(dead_code, reason = "each test binary uses its own part")]
mod common;
#[allow(dead_code, reason = "each test binary uses its own part")]
#[path = "common/ranks.rs"]
mod made;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use weldment_runtime::comm::{Group, GroupOptions, Ranks};
use weldment_runtime::{Artifact, Device, Error, Result, Session, SessionOptions, StepInput};

/// A name that no other job of this machine has.
fn job() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test {} {}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Runs `body` as each of `world` ranks, with a session on `path`.
fn ranks<T: Send>(
    path: &Path,
    world: u32,
    deadline: Duration,
    body: impl Fn(u32, Session) -> Result<T> + Sync,
) -> Vec<Result<T>> {
    let job = job();
    let run = |rank| {
        let group = Group::join(Ranks::local(rank, world, job.as_str()), GroupOptions { deadline })?;
        let artifact = Artifact::open(path)?;
        let options = SessionOptions { group: Some(group), cache: None, ..SessionOptions::default() };
        body(rank, Session::new(&artifact, &Device::host(1)?, options)?)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world).map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn one(token: &[i32; 1]) -> StepInput<'_> {
    StepInput { tokens: token, positions: &[0], seq_starts: &[0, 1], block_tables: &[0], logit_rows: &[0] }
}

#[test]
fn ranks_compute_the_same_sums_over_many_steps() {
    let steps: u32 = std::env::var("WELDMENT_RANK_STEPS").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    let dir = tempfile::tempdir().unwrap();
    for world in [1, 2, 4, 8] {
        // The epochs wrap on the way.
        let path = made::write(dir.path(), world, u32::MAX - 50, 0);
        let began = Instant::now();
        let results = ranks(&path, world, Duration::from_secs(5), |_, mut session| {
            let mut token = [1];
            for step in 0..steps {
                token = [(token[0] + step as i32) & 7];
                let logits = session.step(&one(&token))?;
                let next = made::next_of(token[0], world);
                assert_eq!(logits[next as usize], made::sum_of(token[0], world), "step {step}");
                token = [next];
            }
            session.close()
        });
        let each = began.elapsed() / steps;
        eprintln!("{world} ranks: {each:?} a step");
        results.into_iter().for_each(|result| result.unwrap());
    }
}

#[test]
fn a_rank_packs_its_part_of_random_weights() {
    let dir = tempfile::tempdir().unwrap();
    let whole = &ranks(&made::write(dir.path(), 1, 0, 0), 1, Duration::from_secs(5), |_, s| s.weights().to_vec())[0];
    let whole = whole.as_ref().unwrap();
    for world in [2, 4] {
        for axis in [0, 1] {
            let path = made::write(dir.path(), world, 0, axis);
            let parts = ranks(&path, world, Duration::from_secs(5), |_, s| s.weights().to_vec());
            for (rank, part) in parts.into_iter().enumerate() {
                let part = part.unwrap();
                let rows: Vec<&[u8]> = whole.chunks(128).collect();
                let (n, k) = (16 / world as usize, 128 / world as usize);
                let expected: Vec<u8> = match axis {
                    0 => rows[rank * n..(rank + 1) * n].concat(),
                    _ => rows.iter().flat_map(|row| row[rank * k..(rank + 1) * k].to_vec()).collect(),
                };
                assert!(part == expected, "rank {rank} of {world}, axis {axis}");
            }
        }
    }
}

fn cause_of(error: &Error) -> (u32, String, String) {
    match error {
        Error::Rank { rank, at, cause } => (*rank, at.clone(), cause.clone()),
        other => panic!("{other} names no rank"),
    }
}

#[test]
fn a_rank_that_stays_behind_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = made::write(dir.path(), 4, 0, 0);
    let began = Instant::now();
    let results = ranks(&path, 4, Duration::from_secs(1), |rank, mut session| {
        for step in 1..=5 {
            if rank == 2 && step == 4 {
                std::thread::sleep(Duration::from_secs(3));
            }
            session.step(&one(&[1]))?;
        }
        Ok(())
    });
    assert!(began.elapsed() < Duration::from_secs(8));
    for result in results {
        let (rank, at, cause) = cause_of(&result.unwrap_err());
        assert_eq!((rank, at.as_str()), (2, "step 3"), "{cause}");
        assert!(cause.contains("stuck"), "{cause}");
    }
}

#[test]
fn a_rank_that_does_something_else_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = made::write(dir.path(), 2, 0, 0);
    let results = ranks(&path, 2, Duration::from_secs(2), |rank, mut session| {
        session.step(&one(&[1]))?;
        session.step(&one(&[1 + rank as i32]))?;
        session.step(&one(&[1]))?;
        session.step(&one(&[1])).map(|_| ())
    });
    for result in results {
        let (_, at, cause) = cause_of(&result.unwrap_err());
        assert!(cause.contains("another") && at.starts_with("step"), "{at}: {cause}");
    }
}

#[test]
fn a_rank_that_leaves_early_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = made::write(dir.path(), 2, 0, 0);
    let began = Instant::now();
    let results = ranks(&path, 2, Duration::from_secs(3), |rank, mut session| {
        session.step(&one(&[1]))?;
        if rank == 1 { session.close() } else { session.step(&one(&[1])).map(|_| ()) }
    });
    assert!(began.elapsed() < Duration::from_secs(3));
    for result in results {
        let (rank, _, cause) = cause_of(&result.unwrap_err());
        assert!(rank == 1 && cause.contains("ended its session"), "{cause}");
    }
}

#[test]
fn ranks_that_open_different_artifacts_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let paths = [made::write(dir.path(), 2, 0, 0), made::write(dir.path(), 2, 0, 1)];
    let job = job();
    let open = |rank: u32| {
        let group = Group::join(Ranks::local(rank, 2, job.as_str()), GroupOptions::default())?;
        let options = SessionOptions { group: Some(group), cache: None, ..SessionOptions::default() };
        Session::new(&Artifact::open(&paths[rank as usize])?, &Device::host(1)?, options).map(|_| ())
    };
    let open = &open;
    std::thread::scope(|scope| {
        for thread in [0, 1].map(|rank| scope.spawn(move || open(rank))) {
            let (rank, _, cause) = cause_of(&thread.join().unwrap().unwrap_err());
            assert!(rank == 1 && cause.contains("another artifact"), "{cause}");
        }
    });
}

#[test]
fn missing_and_misfit_ranks_are_named() {
    let deadline = Duration::from_millis(800);
    let join = |rank, world, job: &str| Group::join(Ranks::local(rank, world, job), GroupOptions { deadline });
    let join = &join;
    // Rank 2 never comes; then rank 0 does not.
    for (present, missing) in [([0, 1], 2), ([1, 2], 0)] {
        let job = job();
        let job = job.as_str();
        std::thread::scope(|scope| {
            for thread in present.map(|rank| scope.spawn(move || join(rank, 3, job))) {
                let (rank, at, cause) = cause_of(&thread.join().unwrap().unwrap_err());
                assert_eq!((rank, at.as_str()), (missing, "joining"), "{cause}");
            }
        });
    }
    let job = job();
    let job = job.as_str();
    std::thread::scope(|scope| {
        let first = scope.spawn(move || join(0, 2, job));
        let other = scope.spawn(move || join(1, 3, job));
        for error in [first.join().unwrap().unwrap_err(), other.join().unwrap().unwrap_err()] {
            let (rank, _, cause) = cause_of(&error);
            assert!(rank == 1 && cause.contains("3 ranks"), "{cause}");
        }
    });
}

#[test]
fn an_artifact_of_several_ranks_says_how_to_launch_it() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = Artifact::open(made::write(dir.path(), 2, 0, 0)).unwrap();
    let device = Device::host(1).unwrap();
    let error = Session::new(&artifact, &device, SessionOptions::default()).unwrap_err().to_string();
    assert!(error.contains("for 2 ranks") && error.contains("torchrun --nproc-per-node 2"), "{error}");
    let group = Group::join(Ranks::local(0, 1, job()), GroupOptions::default()).unwrap();
    let options = SessionOptions { group: Some(Arc::clone(&group)), ..SessionOptions::default() };
    assert!(Session::new(&artifact, &device, options).unwrap_err().to_string().contains("this job has 1"));
}

#[test]
fn a_refused_step_is_no_failure_of_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let path = made::write(dir.path(), 2, 0, 0);
    let results = ranks(&path, 2, Duration::from_secs(2), |_, mut session| {
        assert!(matches!(session.step(&one(&[99])), Err(Error::InvalidInput(_))));
        // No variant has as many tokens.
        let positions: Vec<i32> = (0..13).collect();
        let many = StepInput { tokens: &[1; 13], positions: &positions, seq_starts: &[0, 13], ..one(&[1]) };
        assert!(matches!(session.step(&many), Err(Error::InvalidInput(_))));
        session.step(&one(&[1]))?;
        session.close()
    });
    results.into_iter().for_each(|result| result.unwrap());
}
