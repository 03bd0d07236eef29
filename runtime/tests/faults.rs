//! One rank of a job is killed, stopped or returns an error, at every point of a job's life: the others say so and end in time, and
//! nothing is left. `make faults` does every case 20 times.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

#[allow(dead_code, reason = "each test binary uses its own part")]
mod common;
#[allow(dead_code, reason = "each test binary uses its own part")]
#[path = "common/ranks.rs"]
mod made;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Marks the processes of one case in their environment.
const MARK: &str = "WELDMENT_TEST_MARK";
const DEADLINE: Duration = Duration::from_millis(1500);
/// What a case may take beside the deadline: the launcher's grace, starting processes, and other work on the machine.
const SLACK: Duration = Duration::from_secs(6);

fn rounds() -> u32 {
    std::env::var("WELDMENT_FAULT_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// A command line that generates 20 tokens with `path`.
fn generate(dir: &Path, path: &Path, mark: &str) -> Command {
    // Written once: ranks that run already may be reading it.
    if !dir.join("ids.json").exists() {
        std::fs::write(dir.join("ids.json"), "[1, 2]").unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_weldment-rt"));
    command.arg("run").arg(path).args([
        "--tokens",
        "ids.json",
        "--ignore-eos",
        "--max-tokens",
        "20",
        "--device",
        "host",
    ]);
    command.arg("--collective-timeout").arg(DEADLINE.as_secs_f32().to_string());
    command.current_dir(dir).env("XDG_CACHE_HOME", dir.join("cache")).env(MARK, mark).env_remove("WELDMENT_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Processes of this machine with `mark` in their environment.
fn left_over(mark: &str) -> Vec<u32> {
    let entry = format!("{MARK}={mark}");
    let process = |entry_name: std::fs::DirEntry| {
        let pid = entry_name.file_name().to_str()?.parse::<u32>().ok()?;
        let environ = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        environ.split(|b| *b == 0).any(|variable| variable == entry.as_bytes()).then_some(pid)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(process).collect()
}

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The tokens that the artifact generates.
fn expected(world: u32) -> String {
    let mut token = 2;
    let tokens: Vec<String> = (0..20)
        .map(|_| {
            token = made::next_of(token, world);
            token.to_string()
        })
        .collect();
    tokens.join(" ") + "\n"
}

#[test]
fn ranks_are_started_and_one_speaks_for_all() {
    let dir = tempfile::tempdir().unwrap();
    for world in [2, 4] {
        let path = made::write(dir.path(), world, 0, 0);
        let output = generate(dir.path(), &path, "whole").output().unwrap();
        let (out, err) = text(&output);
        assert_eq!((output.status.code(), out), (Some(0), expected(world)), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    // A job of another size is told before anybody waits.
    let path = made::write(dir.path(), 4, 0, 0);
    let output = generate(dir.path(), &path, "size").env("RANK", "0").env("WORLD_SIZE", "2").output().unwrap();
    let (_, err) = text(&output);
    assert!(output.status.code() == Some(2) && err.contains("for 4 ranks, this job has 2"), "{err}");
    // A usage error is said once, with its exit code.
    let path = made::write(dir.path(), 2, 0, 0);
    let output =
        generate(dir.path(), &path, "usage").args(["--seed", "1", "--top-p", "7", "--temperature", "1"]).output();
    let output = output.unwrap();
    let (_, err) = text(&output);
    assert_eq!((output.status.code(), err.matches("error: ").count()), (Some(2), 1), "{err}");
}

#[test]
fn eval_and_bench_run_on_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let path = made::write(dir.path(), 2, 0, 0);
    std::fs::write(dir.path().join("ids.json"), "[1, 2, 3]").unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_weldment-rt"))
            .args(arguments)
            .arg(&path)
            .current_dir(dir.path())
            .env("XDG_CACHE_HOME", dir.path().join("cache"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output).1);
        text(&output).0
    };
    run(&["eval", "--tokens", "ids.json", "--logits", "a.safetensors"]);
    run(&["eval", "--tokens", "ids.json", "--logits", "b.safetensors", "--stepwise"]);
    let read = |name| std::fs::read(dir.path().join(name)).unwrap();
    assert_eq!(read("a.safetensors"), read("b.safetensors"));
    let json: serde_json::Value = serde_json::from_str(&run(&["bench", "--json", "--prefill", "10"])).unwrap();
    assert!(json["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    let shown = run(&["inspect"]);
    assert!(shown.contains("ranks     2") && shown.contains("slab      x86-64: 16384 bytes"), "{shown}");
}

/// Every fault of `world` ranks through the command that starts its own ranks.
fn every_fault(world: u32) {
    let dir = tempfile::tempdir().unwrap();
    let path = made::write(dir.path(), world, 0, 0);
    for round in 0..rounds() {
        for (point, at) in
            [("init", "joining"), ("capture", "capture"), ("replay", "step 3"), ("teardown", "teardown after step 20")]
        {
            for kind in ["kill", "stop", "error"] {
                let rank = (round + point.len() as u32) % world;
                let mark = format!("{}.{world}.{round}.{point}.{kind}", std::process::id());
                let began = Instant::now();
                let output = generate(dir.path(), &path, &mark)
                    .env("WELDMENT_FAULT", format!("{rank}:{point}:{kind}:3"))
                    .output()
                    .unwrap();
                let took = began.elapsed();
                let (_, err) = text(&output);
                let case = format!("{world} ranks, rank {rank}, {point} {kind}, after {took:?}: {err}");
                assert_eq!(output.status.code(), Some(2), "{case}");
                assert!(err.contains(&format!("error: rank {rank}, {at}: ")), "{case}");
                assert_eq!(err.matches("error: ").count(), 1, "{case}");
                assert!(took < DEADLINE + SLACK, "{case}");
                assert_eq!(left_over(&mark), [0u32; 0], "{case}");
            }
        }
    }
}

#[test]
fn two_ranks_end_together() {
    every_fault(2);
}

#[test]
fn four_ranks_end_together() {
    every_fault(4);
}

#[test]
fn eight_ranks_end_together() {
    every_fault(8);
}

#[test]
fn every_survivor_says_who_failed() {
    let dir = tempfile::tempdir().unwrap();
    let path = made::write(dir.path(), 4, 0, 0);
    for (kind, cause) in
        [("kill", "has ended"), ("stop", "does not answer"), ("error", "asked for"), ("sleep", "stuck")]
    {
        let mark = format!("{}.survivors.{kind}", std::process::id());
        let ranks: Vec<_> = (0..4)
            .map(|rank: u32| {
                let mut command = generate(dir.path(), &path, &mark);
                command.env("RANK", rank.to_string()).env("WORLD_SIZE", "4").env("LOCAL_RANK", rank.to_string());
                command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", "29500").env("WELDMENT_JOB", &mark);
                command.env("WELDMENT_FAULT", format!("2:replay:{kind}:3")).spawn().unwrap()
            })
            .collect();
        let began = Instant::now();
        let mut ranks: Vec<_> = (0..).zip(ranks).collect();
        // One that sleeps lives on: nobody may kill what may only be slow, but whoever started it.
        let mut failed = (kind != "sleep").then(|| ranks.remove(2));
        if failed.is_none() {
            let (_, mut sleeper) = ranks.remove(2);
            std::thread::sleep(DEADLINE * 2);
            sleeper.kill().unwrap();
            sleeper.wait().unwrap();
        }
        for (rank, child) in ranks {
            let output = child.wait_with_output().unwrap();
            let (_, err) = text(&output);
            assert_eq!(output.status.code(), Some(2), "rank {rank}, {kind}: {err}");
            assert!(err.contains("error: rank 2, step 3: ") && err.contains(cause), "rank {rank}, {kind}: {err}");
        }
        if let Some((_, child)) = failed.take() {
            // A stopped one has been killed by the others.
            child.wait_with_output().unwrap();
        }
        assert!(began.elapsed() < DEADLINE * 2 + SLACK, "{kind} took {:?}", began.elapsed());
        assert_eq!(left_over(&mark), [0u32; 0]);
    }
}

#[test]
fn a_rank_that_computes_for_long_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = made::write(dir.path(), 2, 0, 0);
    let began = Instant::now();
    let output = generate(dir.path(), &path, "work").env("WELDMENT_FAULT", "1:replay:work:3").output().unwrap();
    let (out, err) = text(&output);
    assert_eq!((output.status.code(), out), (Some(0), expected(2)), "{err}");
    assert!(began.elapsed() > DEADLINE, "the rank computed for less than the deadline: {:?}", began.elapsed());
}

#[test]
fn ranks_end_with_the_process_that_started_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = made::write(dir.path(), 4, 0, 0);
    let mark = format!("{}.launcher", std::process::id());
    let mut launcher = generate(dir.path(), &path, &mark);
    // A rank that sleeps keeps the others waiting.
    let mut launcher = launcher.env("WELDMENT_FAULT", "1:replay:sleep:3").spawn().unwrap();
    let until = |count: usize, text: &str| {
        let began = Instant::now();
        while left_over(&mark).len() != count {
            assert!(began.elapsed() < SLACK, "{text}: {:?}", left_over(&mark));
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    until(5, "all have started");
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    until(0, "all have ended");
}
