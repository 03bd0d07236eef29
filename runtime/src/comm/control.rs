//! The control page: what the ranks of a job say of themselves to each other. Each rank writes its own slot; the record of the first
//! failure is written by whoever claims it. Everything is an atomic word, all zero at the start.

use crate::artifact::limits::MAX_WORLD;
use crate::error::{Error, Result};
use memmap2::{MmapOptions, MmapRaw};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a message that a rank leaves for the others.
pub const MESSAGE_BYTES: usize = 256;
/// Bytes of the text of a failure.
const CAUSE_BYTES: usize = 512;
/// Steps whose signatures are kept.
const SIGNATURES: usize = 16;
/// What the control page takes of the shared file; slabs follow.
pub const CONTROL_BYTES: u64 = 128 << 10;

/// What a rank is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Phase {
    /// Finds the others.
    Joining = 0,
    /// Opens the artifact and the device.
    Opening = 1,
    /// Brings the weights in.
    Weights = 2,
    /// Exchanges slabs.
    Exchange = 3,
    /// Captures.
    Capture = 4,
    /// Runs steps.
    Steps = 5,
    /// Closes a session.
    Closing = 6,
    /// Has left the group in order.
    Left = 7,
}

impl Phase {
    const ALL: [Phase; 8] = [
        Phase::Joining,
        Phase::Opening,
        Phase::Weights,
        Phase::Exchange,
        Phase::Capture,
        Phase::Steps,
        Phase::Closing,
        Phase::Left,
    ];

    fn from_code(code: u32) -> Phase {
        Phase::ALL.get(code as usize).copied().unwrap_or(Phase::Left)
    }

    /// What an error says of a rank in this phase that has begun `step` steps.
    pub fn at(self, step: u64) -> String {
        match self {
            Phase::Joining => "joining".into(),
            Phase::Opening => "opening the artifact".into(),
            Phase::Weights => "loading weights".into(),
            Phase::Exchange => "exchanging slabs".into(),
            Phase::Capture => "capture".into(),
            Phase::Steps => format!("step {step}"),
            Phase::Closing | Phase::Left => format!("teardown after step {step}"),
        }
    }
}

/// What one rank says of itself.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Slot {
    /// Process id, as the rank itself sees it.
    pub pid: AtomicU32,
    phase: AtomicU32,
    /// Barriers arrived at.
    pub barriers: AtomicU32,
    /// Times that the rank let go of the others' slabs.
    pub released: AtomicU32,
    message_bytes: AtomicU32,
    /// Counts up while the rank's watchdog runs.
    pub heartbeat: AtomicU64,
    /// Twice the steps begun, plus 1 while the rank waits for a step.
    progress: AtomicU64,
    /// Counts up while a program of the rank backs off because something has not arrived (host).
    pub backoffs: AtomicU64,
    /// Counts the times that a program of the rank began to back off (host).
    pub waits: AtomicU64,
    /// CPU time of the threads that run the rank's programs, in hundredths of a second (host).
    pub worked: AtomicU64,
    /// Steps that the rank's device has been given.
    pub given: AtomicU64,
    /// Steps that the device is known to have ended.
    pub done: AtomicU64,
    /// Milliseconds for which programs of the rank's device have waited for one thing (GPU).
    pub waited: AtomicU64,
    signatures: [[AtomicU64; 2]; SIGNATURES],
    message: [AtomicU8; MESSAGE_BYTES],
}

impl Slot {
    /// What the rank is doing.
    pub fn phase(&self) -> Phase {
        Phase::from_code(self.phase.load(Ordering::Acquire))
    }

    /// Says what the rank is doing.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u32, Ordering::Release);
    }

    /// Steps begun, and whether the rank waits for one.
    pub fn progress(&self) -> (u64, bool) {
        let progress = self.progress.load(Ordering::Acquire);
        (progress >> 1, progress & 1 == 1)
    }

    /// Says how many steps have begun and whether one is waited for.
    pub fn set_progress(&self, step: u64, waiting: bool) {
        self.progress.store(step << 1 | u64::from(waiting), Ordering::Release);
    }

    /// Says what step `step` is.
    pub fn sign(&self, step: u64, signature: u64) {
        if let Some([at, value]) = self.signatures.get(step as usize % SIGNATURES) {
            // Readers that see the old step, or 0, skip the entry.
            at.store(0, Ordering::SeqCst);
            value.store(signature, Ordering::SeqCst);
            at.store(step, Ordering::SeqCst);
        }
    }

    /// What step `step` was, if the rank has begun it and not forgotten it.
    pub fn signature(&self, step: u64) -> Option<u64> {
        let [at, value] = self.signatures.get(step as usize % SIGNATURES)?;
        let before = at.load(Ordering::SeqCst);
        let signature = value.load(Ordering::SeqCst);
        (before == step && at.load(Ordering::SeqCst) == step).then_some(signature)
    }

    /// Leaves a message; the next barrier makes it visible.
    ///
    /// # Errors
    /// If it is longer than [`MESSAGE_BYTES`].
    pub fn leave(&self, message: &[u8]) -> Result<()> {
        if message.len() > MESSAGE_BYTES {
            return Err(Error::Driver(format!("a message of {} bytes between ranks", message.len())));
        }
        store(&self.message, message);
        self.message_bytes.store(message.len() as u32, Ordering::Release);
        Ok(())
    }

    /// The message last left.
    pub fn message(&self) -> Vec<u8> {
        load(&self.message, self.message_bytes.load(Ordering::Acquire) as usize)
    }
}

fn store(to: &[AtomicU8], bytes: &[u8]) {
    for (to, byte) in to.iter().zip(bytes) {
        to.store(*byte, Ordering::Relaxed);
    }
}

fn load(from: &[AtomicU8], bytes: usize) -> Vec<u8> {
    from.iter().take(bytes).map(|byte| byte.load(Ordering::Relaxed)).collect()
}

/// The first failure of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Who failed.
    pub rank: u32,
    /// What it was doing.
    pub phase: Phase,
    /// Steps that it had begun.
    pub step: u64,
    /// What happened.
    pub cause: String,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        let at = failure.phase.at(failure.step);
        Error::Rank { rank: failure.rank, at, cause: failure.cause }
    }
}

/// Nothing has failed.
const NONE: u32 = 0;
/// Somebody writes the record.
const CLAIMED: u32 = 1;
/// The record is whole.
const WRITTEN: u32 = 2;

/// The control page.
#[derive(Debug)]
#[repr(C)]
pub struct Control {
    /// Not 0 once the job is over: what waiting programs of the host look at.
    pub abort: AtomicU32,
    failure: AtomicU32,
    rank: AtomicU32,
    phase: AtomicU32,
    step: AtomicU64,
    cause_bytes: AtomicU32,
    cause: [AtomicU8; CAUSE_BYTES],
    slots: [Slot; MAX_WORLD as usize],
}

const _: () = assert!(std::mem::size_of::<Control>() as u64 <= CONTROL_BYTES);

impl Control {
    /// The slot of a rank.
    pub fn slot(&self, rank: u32) -> &Slot {
        let last = self.slots.len() - 1;
        &self.slots[(rank as usize).min(last)]
    }

    /// Records a failure unless there is one, and ends the job; true if this one is the first.
    pub fn record(&self, failure: &Failure) -> bool {
        let first = self.failure.compare_exchange(NONE, CLAIMED, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if first {
            let mut end = failure.cause.len().min(CAUSE_BYTES);
            while !failure.cause.is_char_boundary(end) {
                end -= 1;
            }
            self.rank.store(failure.rank, Ordering::Relaxed);
            self.phase.store(failure.phase as u32, Ordering::Relaxed);
            self.step.store(failure.step, Ordering::Relaxed);
            store(&self.cause, &failure.cause.as_bytes()[..end]);
            self.cause_bytes.store(end as u32, Ordering::Relaxed);
            self.failure.store(WRITTEN, Ordering::SeqCst);
        }
        self.abort.store(1, Ordering::SeqCst);
        first
    }

    /// The first failure of the job.
    pub fn failure(&self) -> Option<Failure> {
        if self.failure.load(Ordering::Acquire) == NONE {
            return None;
        }
        // Who claimed the record writes it at once, unless it died in between.
        let began = Instant::now();
        while self.failure.load(Ordering::Acquire) == CLAIMED && began.elapsed() < Duration::from_millis(200) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.failure.load(Ordering::Acquire) != WRITTEN {
            let cause = "a rank died while it reported a failure".into();
            return Some(Failure { rank: 0, phase: Phase::Left, step: 0, cause });
        }
        let cause = load(&self.cause, self.cause_bytes.load(Ordering::Relaxed) as usize);
        Some(Failure {
            rank: self.rank.load(Ordering::Relaxed),
            phase: Phase::from_code(self.phase.load(Ordering::Relaxed)),
            step: self.step.load(Ordering::Relaxed),
            cause: String::from_utf8_lossy(&cause).into_owned(),
        })
    }

    /// True if the job is over.
    pub fn failed(&self) -> bool {
        self.failure.load(Ordering::Acquire) != NONE
    }
}

/// The control page in the shared file, mapped.
pub struct ControlMap {
    map: MmapRaw,
}

impl fmt::Debug for ControlMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ControlMap")
    }
}

impl ControlMap {
    /// Maps the first [`CONTROL_BYTES`] of `file`, which holds them.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new(file: &OwnedFd) -> Result<ControlMap> {
        let map = MmapOptions::new().len(CONTROL_BYTES as usize).map_raw(file);
        Ok(ControlMap { map: map.map_err(|e| Error::Driver(format!("cannot map the control page: {e}")))? })
    }

    /// The page.
    pub fn control(&self) -> &Control {
        // SAFETY: the mapping is page-aligned, larger than `Control` (checked at compile time) and lives as long as `self`; every
        // field is an atomic, for which any bits are valid, and no rank writes the page by other means.
        unsafe { &*self.map.as_mut_ptr().cast::<Control>() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_stays() {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, CONTROL_BYTES).unwrap();
        let (one, other) = (ControlMap::new(&file).unwrap(), ControlMap::new(&file).unwrap());
        assert!(other.control().failure().is_none() && !other.control().failed());
        let cause = "ä".repeat(400);
        let first = Failure { rank: 3, phase: Phase::Steps, step: 12, cause };
        assert!(one.control().record(&first));
        assert!(!other.control().record(&Failure { rank: 1, ..first.clone() }));
        let read = other.control().failure().unwrap();
        assert_eq!((read.rank, read.step, read.cause.len()), (3, 12, CAUSE_BYTES));
        assert!(Error::from(read).to_string().starts_with("rank 3, step 12: ää"));
    }

    #[test]
    fn signatures_are_of_their_step() {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, CONTROL_BYTES).unwrap();
        let map = ControlMap::new(&file).unwrap();
        let slot = map.control().slot(5);
        for step in 1..40 {
            slot.sign(step, step * 7);
        }
        assert_eq!((slot.signature(39), slot.signature(24), slot.signature(23)), (Some(273), Some(168), None));
        slot.leave(b"hello").unwrap();
        assert_eq!(slot.message(), b"hello");
        assert!(slot.leave(&[0; MESSAGE_BYTES + 1]).is_err());
    }
}
