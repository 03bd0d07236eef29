//! Random graphs, compiled for the host and run beside the interpreter: `make fuzz`.
//!
//! `fuzz [--count N] [--seed S] [--first I] [--jobs J]` runs a range, a process a batch, so that a crash is one more mismatch;
//! `fuzz --seed S --index I` runs one graph again and prints the smallest graph that still fails, as a filetest. Exit 1 on a
//! mismatch or where 0.1 % of the graphs cannot be run, 2 on bad usage. `--batch N` is what those processes are told.

use std::io::Write;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use weldment_tests::fuzz::case::{self, machine};
use weldment_tests::fuzz::minimise::{failure, filetest, minimise};
use weldment_tests::fuzz::run::{Settings, Tally, run, run_batch};

/// A batch takes seconds; a run that finishes none for so long hangs.
const STALLED: Duration = Duration::from_secs(900);
/// Share of graphs that stages may refuse or that may time out.
const MOST_INVALID: f64 = 0.001;
/// Mismatches that are minimised at the end of a run.
const SHOWN: usize = 5;

fn main() -> ExitCode {
    match arguments().and_then(|(settings, what)| match what {
        What::One(index) => one(settings.seed, index),
        What::Batch(count) => batch(settings.seed, settings.first..settings.first + count),
        What::Range => many(&settings),
    }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(2)
        }
    }
}

/// What to run.
enum What {
    Range,
    One(u64),
    Batch(u64),
}

fn arguments() -> Result<(Settings, What), String> {
    let mut settings = Settings { seed: 1, first: 0, count: 2000, jobs: 2 };
    let mut what = What::Range;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a number"))?;
        let number: u64 = value.parse().map_err(|_| format!("{word} {value}: a number is expected"))?;
        match word.as_str() {
            "--count" => settings.count = number,
            "--seed" => settings.seed = number,
            "--first" => settings.first = number,
            "--jobs" => settings.jobs = number as usize,
            "--index" => what = What::One(number),
            "--batch" => what = What::Batch(number),
            _ => return Err(format!("{word}; --count, --seed, --first, --jobs or --index is accepted")),
        }
    }
    Ok((settings, what))
}

/// Runs cases in this process and prints their tally for the process that asked.
fn batch(seed: u64, indices: std::ops::Range<u64>) -> Result<bool, String> {
    let tally = run_batch(seed, indices)?;
    serde_json::to_writer(std::io::stdout(), &tally).map_err(|e| e.to_string())?;
    Ok(true)
}

/// Runs one case again; false if it fails.
fn one(seed: u64, index: u64) -> Result<bool, String> {
    let target = case::compiled(seed, index)?;
    let case = case::draw(&machine()?, seed, index).map_err(|lost| format!("{lost:?}"))?;
    let Some(message) = failure(&target, &case, &|graph| graph) else {
        println!("seed {seed}, index {index} agrees\n{}", case.graph);
        return Ok(true);
    };
    let smallest = minimise(&target, &case, &|graph| graph);
    let message = failure(&target, &smallest, &|graph| graph).unwrap_or(message);
    println!("{}", filetest(&smallest, &message));
    Ok(false)
}

/// Runs a range; false if a case fails.
fn many(settings: &Settings) -> Result<bool, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let start = Instant::now();
    let last = Mutex::new((Instant::now(), 0, 0));
    let range = settings.first..settings.first + settings.count;
    println!("seed {}, graphs {}..{}", settings.seed, range.start, range.end);
    let progress = |tally: &Tally| {
        if let Ok(mut last) = last.lock() {
            for (index, message) in &tally.mismatches[last.1..] {
                eprintln!("\nmismatch: seed {} index {index}: {message}", settings.seed);
            }
            for invalid in &tally.invalid[last.2..] {
                eprintln!("\ninvalid: seed {} index {}: {}", settings.seed, invalid.index, invalid.message);
            }
            *last = (Instant::now(), tally.mismatches.len(), tally.invalid.len());
        }
        let rate = tally.graphs as f64 / start.elapsed().as_secs_f64();
        let rest = Duration::from_secs_f64((settings.count - tally.graphs) as f64 / rate);
        let (bad, invalid) = (tally.mismatches.len(), tally.invalid.len());
        eprint!(
            "\r{} of {} graphs, {bad} mismatches, {invalid} invalid, {rate:.0}/s, {} min left   ",
            tally.graphs,
            settings.count,
            rest.as_secs() / 60
        );
        let _ = std::io::stderr().flush();
    };
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&program, settings, &progress));
        while !running.is_finished() {
            std::thread::sleep(Duration::from_millis(100));
            if last.lock().is_ok_and(|last| last.0.elapsed() > STALLED) {
                eprintln!("\nno batch has finished for {} s", STALLED.as_secs());
                std::process::exit(1);
            }
        }
        let tally = running.join().map_err(|_| "a batch panicked")??;
        eprintln!();
        print!("{tally}");
        println!("{:<26}{} s", "took", start.elapsed().as_secs());
        for (index, _) in tally.mismatches.iter().take(SHOWN) {
            // Apart, for it may crash.
            let (seed, index) = (settings.seed.to_string(), index.to_string());
            let shown = Command::new(&program).args(["--seed", &seed, "--index", &index]).status();
            println!("seed {seed}, index {index}: {}", shown.map_err(|e| e.to_string())?);
        }
        if tally.invalid_rate() >= MOST_INVALID {
            println!("more than {} % of the graphs could not be run", 100.0 * MOST_INVALID);
        }
        Ok(tally.mismatches.is_empty() && tally.invalid_rate() < MOST_INVALID)
    })
}
