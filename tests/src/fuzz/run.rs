//! Runs of many cases, and what came of them.

use super::batch::{self, Invalid, Outcome};
use super::case::{self, BATCH, Lost};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use weldment_ir::{Graph, OpKind};

/// Drawing, optimising and planning one graph takes milliseconds on an idle machine; longer than this counts as timed out.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which cases.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Draws every case, with its index.
    pub seed: u64,
    /// The first index.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Batches at a time.
    pub jobs: usize,
}

/// What came of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Cases drawn.
    pub graphs: u64,
    /// Cases that were compiled and run.
    pub ran: u64,
    /// Of these, the ones that had to agree bit for bit throughout.
    pub exact: u64,
    /// Output elements compared.
    pub elements: u64,
    /// Of these, the ones without an error bound.
    pub exact_elements: u64,
    /// Draws thrown away: near-ties, bounds that said nothing.
    pub redrawn: u64,
    /// Cases that some stage refused.
    pub invalid: Vec<Invalid>,
    /// Cases that took too long.
    pub slow: Vec<u64>,
    /// Cases whose results are wrong, with what is wrong.
    pub mismatches: Vec<(u64, String)>,
    /// Nodes by op, before any pass.
    pub ops: BTreeMap<String, u64>,
    /// Nodes by op after the passes: what was compiled.
    pub compiled: BTreeMap<String, u64>,
    /// Cases in which a rule fired, by rule.
    pub rules: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.graphs += other.graphs;
        self.ran += other.ran;
        self.exact += other.exact;
        self.elements += other.elements;
        self.exact_elements += other.exact_elements;
        self.redrawn += other.redrawn;
        self.invalid.extend(other.invalid);
        self.slow.extend(other.slow);
        self.mismatches.extend(other.mismatches);
        for (into, from) in [(&mut self.ops, other.ops), (&mut self.compiled, other.compiled)] {
            from.into_iter().for_each(|(op, n)| *into.entry(op).or_default() += n);
        }
        other.rules.into_iter().for_each(|(rule, n)| *self.rules.entry(rule).or_default() += n);
    }

    /// Share of cases that were refused or took too long.
    pub fn invalid_rate(&self) -> f64 {
        (self.invalid.len() + self.slow.len()) as f64 / self.graphs.max(1) as f64
    }
}

fn count_ops(graph: &Graph, into: &mut BTreeMap<String, u64>) {
    for id in graph.ids() {
        *into.entry(graph.node(id).op.kind().info().name.to_owned()).or_default() += 1;
    }
}

/// Runs cases, each batch in a process of `program`, the `fuzz` binary: a crash ends its batch alone, and is found by halving it.
/// `progress` is called after every batch with the tally so far.
///
/// # Errors
/// What no single case is to blame for: a process that cannot be started.
pub fn run(program: &Path, settings: &Settings, progress: &(dyn Fn(&Tally) + Sync)) -> Result<Tally, String> {
    let first = settings.first / BATCH;
    let last = (settings.first + settings.count).div_ceil(BATCH);
    let (next, total, failed) = (AtomicU64::new(first), Mutex::new(Tally::default()), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..settings.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let batch = next.fetch_add(1, Ordering::Relaxed);
                    if batch >= last {
                        return;
                    }
                    let start = (batch * BATCH).max(settings.first);
                    let end = (settings.first + settings.count).min((batch + 1) * BATCH);
                    match run_apart(program, settings.seed, start..end) {
                        Ok(tally) => {
                            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                            total.add(tally);
                            progress(&total);
                        }
                        Err(e) => {
                            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                            failed.get_or_insert(format!("cases {start}..{end} of seed {}: {e}", settings.seed));
                            next.store(last, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    if let Some(e) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(e);
    }
    let mut total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Batches end in any order.
    total.invalid.sort_by_key(|i| i.index);
    total.mismatches.sort();
    total.slow.sort_unstable();
    Ok(total)
}

/// Cases of one batch in a process of their own; those that end it are mismatches.
fn run_apart(program: &Path, seed: u64, indices: Range<u64>) -> Result<Tally, String> {
    let count = indices.end - indices.start;
    let ended = match in_process(program, seed, &indices)? {
        Ok(tally) => return Ok(tally),
        Err(ended) => ended,
    };
    let mut tally = Tally::default();
    if count == 1 {
        tally.graphs = 1;
        tally.mismatches.push((indices.start, ended));
        return Ok(tally);
    }
    let middle = indices.start + count / 2;
    for half in [indices.start..middle, middle..indices.end] {
        tally.add(run_apart(program, seed, half)?);
    }
    Ok(tally)
}

/// The tally of a process that runs these cases, or how it ended.
fn in_process(program: &Path, seed: u64, indices: &Range<u64>) -> Result<Result<Tally, String>, String> {
    let count = indices.end - indices.start;
    let mut command = Command::new(program);
    for (option, value) in [("--seed", seed), ("--first", indices.start), ("--batch", count)] {
        command.arg(option).arg(value.to_string());
    }
    let file = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    let output = file.reopen().map_err(|e| e.to_string())?;
    let mut child =
        command.stdout(output).stderr(Stdio::null()).spawn().map_err(|e| format!("{}: {e}", program.display()))?;
    let deadline = Instant::now() + PATIENCE.mul_f64(2.0 + count as f64 / 4.0);
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().and_then(|()| child.wait()).map_err(|e| e.to_string())?;
            return Ok(Err("the process did not end".to_owned()));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = std::fs::read(file.path()).map_err(|e| e.to_string())?;
    Ok(match serde_json::from_slice(&text) {
        Ok(tally) if status.success() => Ok(tally),
        _ => Err(format!("the process ended: {status}")),
    })
}

/// Cases of one batch, in this process: drawn for [`case::TARGET`], compiled for [`case::compiled`].
///
/// # Errors
/// What no single case is to blame for: LLVM, the linker, the driver.
pub fn run_batch(seed: u64, indices: Range<u64>) -> Result<Tally, String> {
    let mut tally = Tally::default();
    let (drawn, target) = (case::machine()?, case::compiled(seed, indices.start)?);
    // One thread and several alternate.
    let threads = 1 + (indices.start / BATCH % 2) as usize;
    let mut planned = Vec::new();
    for index in indices {
        let started = Instant::now();
        tally.graphs += 1;
        match case::draw(&drawn, seed, index) {
            Err(Lost::Broken(message)) => tally.mismatches.push((index, message)),
            Err(Lost::Undecided { draws }) => {
                tally.redrawn += draws;
                tally.invalid.push(Invalid { index, message: "no draw could be decided".to_owned() });
            }
            Ok(case) => match batch::plan(&target, case, &|graph| graph) {
                Ok(case) => planned.push(case),
                Err(invalid) => tally.invalid.push(invalid),
            },
        }
        if started.elapsed() > PATIENCE {
            tally.slow.push(index);
        }
    }
    let (done, invalid) = batch::run(&target, planned, threads)?;
    tally.invalid.extend(invalid);
    for (planned, outcome) in done {
        let bounds = planned.case.expected.values().flatten();
        let (elements, exact) = bounds.fold((0, 0), |(n, e), b| (n + 1, e + u64::from(b.error == 0.0)));
        tally.ran += 1;
        tally.elements += elements;
        tally.exact_elements += exact;
        tally.exact += u64::from(elements == exact);
        tally.redrawn += planned.case.redrawn;
        count_ops(&planned.case.graph, &mut tally.ops);
        count_ops(&planned.graph, &mut tally.compiled);
        planned.rules.iter().for_each(|rule| *tally.rules.entry(rule.clone()).or_default() += 1);
        if let Outcome::Differs(message) = outcome {
            tally.mismatches.push((planned.case.index, message));
        }
    }
    Ok(tally)
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        writeln!(f, "{:<26}{}", "graphs", self.graphs)?;
        writeln!(f, "{:<26}{}", "compiled and run", self.ran)?;
        writeln!(f, "{:<26}{:.1} % of graphs", "exact throughout", percent(self.exact, self.ran))?;
        let share = percent(self.exact_elements, self.elements);
        writeln!(f, "{:<26}{share:.1} % of {}", "exact elements", self.elements)?;
        writeln!(f, "{:<26}{}", "draws thrown away", self.redrawn)?;
        let (refused, slow) = (self.invalid.len(), self.slow.len());
        writeln!(f, "{:<26}{refused} and {slow} ({:.3} %)", "invalid, timed out", 100.0 * self.invalid_rate())?;
        writeln!(f, "{:<26}{}", "mismatches", self.mismatches.len())?;
        let unmade = OpKind::ALL.iter().map(|k| k.info().name).filter(|name| !self.ops.contains_key(*name));
        let unmade: Vec<&str> = unmade.collect();
        writeln!(f, "{:<26}{} of {}; missing: {unmade:?}", "ops", self.ops.len(), OpKind::ALL.len())?;
        for (op, n) in &self.ops {
            writeln!(f, "  {op:<24}{n:>10}, {} after the passes", self.compiled.get(op).copied().unwrap_or(0))?;
        }
        writeln!(f, "{:<26}{}", "rules that fired", self.rules.len())?;
        for (rule, n) in &self.rules {
            writeln!(f, "  {rule:<26}{n:>8}")?;
        }
        Ok(())
    }
}
