//! `make emulate`: every case for every emulated target, in the emulator of a tinygrad checkout (TINYGRAD_PATH), against the
//! interpreter. Writes tests/emulated.lock when all agree. An argument keeps the cases whose name contains it, and then
//! nothing is written. WELDMENT_KEEP names a folder in which objects and buffers stay.

use serde_json::{Map, Value as Json, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use weldment_tests::cases::{Case, cases};
use weldment_tests::emulate::{Job, TARGETS, llvm_version, lock_path, static_evidence, write_job};

/// Emulators side by side.
const WORKERS: usize = 2;

/// What came of a case on a target: hash and lock entry, or why it failed.
type Outcome = Result<(String, Json), String>;

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("{failed} cases failed; the lock file is as it was");
            ExitCode::FAILURE
        }
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<usize, String> {
    let path = std::env::var("TINYGRAD_PATH").map_err(|_| "TINYGRAD_PATH is not set to a tinygrad checkout")?;
    let commit = Command::new("git").args(["-C", &path, "rev-parse", "HEAD"]).output().map_err(|e| e.to_string())?;
    let commit = String::from_utf8_lossy(&commit.stdout).trim().to_owned();
    let only = std::env::args().nth(1);
    let work: Vec<(Case, &str)> = cases()
        .into_iter()
        .filter(|c| only.as_ref().is_none_or(|o| c.name.contains(o)))
        .flat_map(|c| TARGETS.map(|target| (c.clone(), target)))
        .collect();
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let keep = std::env::var_os("WELDMENT_KEEP").map(std::path::PathBuf::from);
    let base = keep.as_deref().unwrap_or(dir.path());
    let next = AtomicUsize::new(0);
    let outcomes: Mutex<Vec<Option<Outcome>>> = Mutex::new(work.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let mut emulator = Emulator::start();
                while let Some((index, (case, target))) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| work.get(i).map(|w| (i, w)))
                {
                    let place = base.join(format!("{index}.{target}"));
                    let outcome = match &mut emulator {
                        Ok(emulator) => emulator.run(case, target, &place),
                        Err(e) => Err(e.clone()),
                    };
                    let shown = match &outcome {
                        Ok((_, entry)) => entry["result"].to_string() + " " + &entry["max_error"].to_string(),
                        Err(e) => format!("FAILED {e}"),
                    };
                    println!("{target} {}: {shown}", case.name);
                    if let Ok(mut outcomes) = outcomes.lock() {
                        outcomes[index] = Some(outcome);
                    }
                    // Buffers of a finished case are only in the way; an error is the temporary folder's to clean up.
                    if keep.is_none() {
                        let _ = std::fs::remove_dir_all(&place);
                    }
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().map_err(|e| e.to_string())?;
    let failed = outcomes.iter().filter(|o| !matches!(o, Some(Ok(_)))).count();
    if failed > 0 || only.is_some() {
        return Ok(failed);
    }
    let mut entries: Vec<(String, Json)> = outcomes.into_iter().flatten().flatten().collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    entries.dedup_by(|a, b| a.0 == b.0);
    let lock = json!({
        "about": "Code objects that ran in the emulator and agreed with the interpreter; written by `make emulate`.",
        "llvm": llvm_version()?,
        "emulator": { "repository": "https://github.com/tinygrad/tinygrad", "commit": commit },
        "objects": entries.into_iter().collect::<Map<String, Json>>(),
    });
    let text = serde_json::to_string_pretty(&lock).map_err(|e| e.to_string())?;
    std::fs::write(lock_path(), text + "\n").map_err(|e| e.to_string())?;
    Ok(0)
}

/// A running emulator process: job files in, a line of JSON for each out.
struct Emulator {
    input: std::process::ChildStdin,
    output: BufReader<std::process::ChildStdout>,
    child: std::process::Child,
}

impl Emulator {
    fn start() -> Result<Emulator, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("emulate/run.py");
        let python = std::env::var("WELDMENT_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let mut command = Command::new(&python);
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{python}: {e}"))?;
        let input = child.stdin.take().ok_or("no pipe to the emulator")?;
        let output = BufReader::new(child.stdout.take().ok_or("no pipe from the emulator")?);
        Ok(Emulator { input, output, child })
    }

    fn run(&mut self, case: &Case, target: &str, dir: &Path) -> Outcome {
        let job = write_job(case, target, dir)?;
        writeln!(self.input, "{}", job.path.display()).map_err(|e| e.to_string())?;
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(|e| e.to_string())?;
        if line.is_empty() {
            *self = Emulator::start()?;
            return Err("the emulator died".to_owned());
        }
        let answer: Json = serde_json::from_str(&line).map_err(|e| format!("{e}: {line}"))?;
        let reason = answer["reason"].as_str().unwrap_or_default();
        let entry = match answer["status"].as_str() {
            Some("done") => emulated(case, target, &job)?,
            Some("refused") => json!({
                "target": target,
                "case": case.name,
                "families": job.object.families(),
                "result": format!("not emulatable: {reason}"),
                "static": static_evidence(&dir.join("object.hsaco"), &job.object)?,
            }),
            _ => return Err(reason.to_owned()),
        };
        Ok((job.object.hash, entry))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It ends when its input closes; one that hangs is stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn emulated(case: &Case, target: &str, job: &Job) -> Result<Json, String> {
    let (apart, shown) = job.difference(case)?;
    if apart > case.tolerance {
        return Err(format!("{apart} from the interpreter; {} is accepted{shown}", case.tolerance));
    }
    Ok(json!({
        "target": target,
        "case": case.name,
        "families": job.object.families(),
        "result": "emulated",
        "max_error": apart,
        "tolerance": case.tolerance,
    }))
}
