//! Ranks of one host started by the command itself: as many processes of the same command line as the artifact has ranks. They end
//! with this process, and it ends with them: one that fails ends all, and the first failure is the command's.

use crate::error::{Error, Result};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Names the process that started a rank, which ends when that one does.
const LAUNCHER: &str = "WELDMENT_LAUNCHER";
/// How often the ranks are looked at.
const TICK: Duration = Duration::from_millis(5);
/// What ranks get beside the deadline to end by themselves once one has failed.
const GRACE: Duration = Duration::from_secs(1);

/// What a rank that was started here must do first: it is killed when the process that started it ends.
///
/// # Errors
/// If that process has ended already.
pub fn follow_launcher() -> Result<()> {
    let Ok(launcher) = std::env::var(LAUNCHER) else { return Ok(()) };
    let failed = |text: String| Error::Driver(format!("following the process that started this rank: {text}"));
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|e| failed(e.to_string()))?;
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if parent.to_string() == launcher { Ok(()) } else { Err(failed("it has ended".into())) }
}

/// Runs the command line `arguments` of this program, with `variables` in its environment, as `world` ranks and waits for them.
/// Rank 0 has this process's output.
///
/// # Errors
/// [`Error::Ranks`] with the first failure of a rank.
pub fn launch(
    arguments: &[OsString],
    variables: &[(OsString, OsString)],
    world: u32,
    deadline: Duration,
) -> Result<()> {
    let exe = std::env::current_exe().map_err(|e| Error::Driver(format!("this program's file is unknown: {e}")))?;
    let own = std::process::id();
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let job = format!("{own}.{}", clock.as_nanos());
    let errors: Mutex<Vec<(u32, String)>> = Mutex::default();
    let mut ranks = Ranks(Vec::new());
    std::thread::scope(|scope| {
        for rank in 0..world {
            let mut command = Command::new(&exe);
            command
                .args(arguments)
                .envs(variables.iter().cloned())
                .env("WELDMENT_JOB", &job)
                .env(LAUNCHER, own.to_string());
            for (name, value) in
                [("RANK", rank), ("WORLD_SIZE", world), ("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", world)]
            {
                command.env(name, value.to_string());
            }
            command.stdin(Stdio::null()).stderr(Stdio::piped());
            command.stdout(if rank == 0 { Stdio::inherit() } else { Stdio::null() });
            let mut child =
                command.spawn().map_err(|e| Error::Driver(format!("rank {rank} cannot be started: {e}")))?;
            if let Some(messages) = child.stderr.take() {
                let errors = &errors;
                scope.spawn(move || forward(rank, messages, errors));
            }
            ranks.0.push((child, None));
        }
        ranks.wait(deadline + GRACE)
    })?;
    let outcome = ranks.outcome();
    let errors = errors.into_inner().unwrap_or_default();
    match outcome {
        None => Ok(()),
        Some((text, code)) => Err(Error::Ranks { text: first_of(&errors, world).unwrap_or(text), code }),
    }
}

/// The first error, with the rank that it is of, unless it says so or all ranks say the same.
fn first_of(errors: &[(u32, String)], world: u32) -> Option<String> {
    let (rank, text) = errors.first()?;
    let common = errors.iter().filter(|(_, other)| other == text).count() == world as usize;
    Some(if common || text.starts_with("rank ") { text.clone() } else { format!("rank {rank}: {text}") })
}

/// Passes the messages of a rank on, and keeps its errors for later.
fn forward(rank: u32, messages: impl Read, errors: &Mutex<Vec<(u32, String)>>) {
    for line in BufReader::new(messages).split(b'\n') {
        // A rank that was killed may leave half a line; what is no text is shown as well as it can be.
        let Ok(line) = line else { return };
        let line = String::from_utf8_lossy(&line);
        match (line.strip_prefix("error: "), errors.lock()) {
            (Some(error), Ok(mut errors)) => errors.push((rank, error.to_owned())),
            (_, held) => {
                drop(held);
                if rank == 0 { eprintln!("{line}") } else { eprintln!("rank {rank}: {line}") }
            }
        }
    }
}

/// The processes in the order of ranks, with what became of them. Those that run when this drops are killed.
struct Ranks(Vec<(Child, Option<ExitStatus>)>);

impl Ranks {
    /// Waits until all have ended; `grace` after one has failed, the rest is killed.
    fn wait(&mut self, grace: Duration) -> Result<()> {
        let mut failed: Option<Instant> = None;
        loop {
            for (child, status) in &mut self.0 {
                if status.is_none() {
                    *status = child.try_wait().map_err(|e| Error::Driver(format!("waiting for a rank: {e}")))?;
                }
            }
            if self.0.iter().all(|(_, status)| status.is_some()) {
                return Ok(());
            }
            if failed.is_none() && self.0.iter().any(|(_, status)| status.is_some_and(|s| !s.success())) {
                failed = Some(Instant::now());
            }
            if failed.is_some_and(|since| since.elapsed() > grace) {
                self.kill();
            }
            std::thread::sleep(TICK);
        }
    }

    fn kill(&mut self) {
        for (child, status) in &mut self.0 {
            if status.is_none() {
                // One that has just ended cannot be killed, nor need it.
                let _ = child.kill();
            }
        }
    }

    /// What the first rank that failed says by its status, and the exit code of all; `None` if none failed. A rank that was killed
    /// comes before those that say of it that it has ended, whose code is theirs.
    fn outcome(&self) -> Option<(String, u8)> {
        use std::os::unix::process::ExitStatusExt;
        let failures: Vec<(usize, ExitStatus)> = self
            .0
            .iter()
            .enumerate()
            .filter_map(|(rank, (_, status))| Some((rank, (*status)?)))
            .filter(|(_, status)| !status.success())
            .collect();
        let signalled = failures.iter().find_map(|(rank, status)| Some((*rank, status.signal()?)));
        let code = failures.iter().find_map(|(_, status)| status.code());
        let text = match (signalled, failures.first()) {
            (Some((rank, signal)), _) => format!("rank {rank} was ended by signal {signal}"),
            (None, Some((rank, status))) => format!("rank {rank} ended with {status}"),
            (None, None) => return None,
        };
        Some((text, code.and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.kill();
        for (child, status) in &mut self.0 {
            if status.is_none() {
                // Killed above: this reaps it.
                let _ = child.wait();
            }
        }
    }
}
