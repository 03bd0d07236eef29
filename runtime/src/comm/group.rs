//! A rank's membership in its job.

use super::control::{Control, ControlMap, Failure, Phase};
use super::cpu_time::Workers;
use super::fault::{Fault, Point};
use super::inner::{Inner, Waits};
use super::{DEFAULT_DEADLINE, Ranks, rendezvous, watchdog};
use crate::driver::Buffer;
use crate::driver::host::{affinity, memory};
use crate::error::{Error, Result};
use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Deadlines that others may take to bring weights in, beside which everything else at set-up is quick.
const WEIGHTS_DEADLINES: u32 = 120;
/// Deadlines that others may take for everything else at set-up, and at the end, as long as their processes live.
const SETUP_DEADLINES: u32 = 12;

/// How a rank joins.
#[derive(Clone, Copy, Debug)]
pub struct GroupOptions {
    /// How long a rank may be missing, silent or behind.
    pub deadline: Duration,
}

impl Default for GroupOptions {
    fn default() -> Self {
        GroupOptions { deadline: DEFAULT_DEADLINE }
    }
}

/// A word that tells waiting programs of a device that the job is over, and another by which they tell that they wait.
pub trait AbortWord: Send + Sync + fmt::Debug {
    /// Sets it; may be called any number of times from any thread.
    fn set(&self);

    /// How often a program had looked at what it waits for when it last asked.
    fn looks(&self) -> u32;
}

/// A rank that has joined the others of its job. Dropping it leaves.
pub struct Group {
    inner: Arc<Inner>,
    waker: UnixStream,
    watchdog: Option<JoinHandle<()>>,
    fault: Fault,
    /// Steps begun.
    step: AtomicU64,
    /// Of all steps so far.
    signature: AtomicU64,
    /// Bytes of the shared file in use.
    used: AtomicU64,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group(rank {} of {})", self.ranks().rank, self.ranks().world)
    }
}

impl Group {
    /// Meets the other ranks of the job and starts the watchdog. Ranks may be processes or, for tests, threads of one.
    ///
    /// # Errors
    /// [`Error::Rank`] naming a rank that is missing after the deadline, or does not fit; [`Error::InvalidInput`] where `ranks`
    /// make no sense.
    pub fn join(ranks: Ranks, options: GroupOptions) -> Result<Arc<Group>> {
        ranks.check()?;
        let deadline = options.deadline.max(Duration::from_millis(50));
        let fault = Fault::from_env(ranks.rank)?;
        fault.at(Point::Init).map_err(|e| {
            Error::from(Failure { rank: ranks.rank, phase: Phase::Joining, step: 0, cause: e.to_string() })
        })?;
        let met = rendezvous::meet(&ranks, deadline)?;
        let map = ControlMap::new(&met.file)?;
        let socket = |e: std::io::Error| Error::Driver(format!("no socket for the watchdog: {e}"));
        let (wake, waker) = UnixStream::pair().map_err(socket)?;
        let inner = Inner {
            processes: Mutex::default(),
            ranks,
            deadline,
            peers: met.peers,
            wake,
            closing: AtomicBool::new(false),
            workers: OnceLock::new(),
            waits: AtomicU32::new(Waits::Host as u32),
            map,
            file: met.file,
            words: Mutex::default(),
        };
        let rank = inner.ranks.rank;
        inner.note_processes();
        let inner = Arc::new(inner);
        let watched = Arc::clone(&inner);
        let watchdog = std::thread::Builder::new()
            .name(format!("weldment-watch-{rank}"))
            .spawn(move || {
                affinity::unpin();
                watchdog::run(&watched);
            })
            .map_err(|e| Error::Driver(format!("cannot start the watchdog: {e}")))?;
        let group = Group {
            inner,
            waker,
            watchdog: Some(watchdog),
            fault,
            step: AtomicU64::new(0),
            signature: AtomicU64::new(0),
            used: AtomicU64::new(super::control::CONTROL_BYTES),
        };
        group.wait_for_all("join", SETUP_DEADLINES)?;
        group.inner.open_processes();
        group.phase(Phase::Opening);
        Ok(Arc::new(group))
    }

    /// Which rank this is.
    pub fn ranks(&self) -> &Ranks {
        &self.inner.ranks
    }

    /// How long a rank may be silent or behind.
    pub fn deadline(&self) -> Duration {
        self.inner.deadline
    }

    fn control(&self) -> &Control {
        self.inner.control()
    }

    /// What the rank does now, for the others' error texts.
    pub fn phase(&self, phase: Phase) {
        self.control().slot(self.ranks().rank).set_phase(phase);
    }

    /// The fault that was asked for, if it is time for it.
    ///
    /// # Errors
    /// Where it is an error.
    pub fn fault(&self, point: Point) -> Result<()> {
        self.fault.at(point)
    }

    /// The job's failure, if there is one.
    ///
    /// # Errors
    /// [`Error::Rank`].
    pub fn check(&self) -> Result<()> {
        self.control().failure().map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// True if the job is over.
    pub fn failed(&self) -> bool {
        self.control().failed()
    }

    /// A result of this rank alone, made the job's: an error ends all ranks, and is the job's first failure on each.
    ///
    /// # Errors
    /// [`Error::Rank`] if the result is an error.
    pub fn share<T>(&self, result: Result<T>) -> Result<T> {
        let error = match result {
            Ok(value) => return Ok(value),
            Err(error @ Error::Rank { .. }) => return Err(error),
            Err(error) => error,
        };
        let rank = self.ranks().rank;
        let phase = self.control().slot(rank).phase();
        let step = self.step.load(Ordering::Relaxed);
        self.inner.record(Failure { rank, phase, step, cause: error.to_string() });
        self.check().and(Err(error))
    }

    /// Waits until all ranks have called this as often as this one.
    ///
    /// # Errors
    /// [`Error::Rank`] if the job fails meanwhile, or a rank does not come although it lives.
    pub fn barrier(&self, what: &str) -> Result<()> {
        self.wait_for_all(what, SETUP_DEADLINES)
    }

    /// As [`Group::barrier`], after work whose duration differs widely.
    ///
    /// # Errors
    /// As [`Group::barrier`].
    pub fn patient_barrier(&self, what: &str) -> Result<()> {
        self.wait_for_all(what, WEIGHTS_DEADLINES)
    }

    fn wait_for_all(&self, what: &str, deadlines: u32) -> Result<()> {
        let (control, me, world) = (self.control(), self.ranks().rank, self.ranks().world);
        let mine = control.slot(me).barriers.fetch_add(1, Ordering::SeqCst) + 1;
        let began = Instant::now();
        let mut looks = 0u32;
        loop {
            let missing = (0..world).find(|rank| control.slot(*rank).barriers.load(Ordering::SeqCst) < mine);
            // Ranks that leave after a failure pass here too.
            self.check()?;
            let Some(missing) = missing else { return Ok(()) };
            if began.elapsed() > self.inner.deadline * deadlines {
                let slot = control.slot(missing);
                let cause = format!("it did not come to the {what} within {} s", began.elapsed().as_secs());
                let (phase, step) = (slot.phase(), slot.progress().0);
                self.inner.record(Failure { rank: missing, phase, step, cause });
                continue;
            }
            looks += 1;
            match looks {
                0..64 => std::thread::yield_now(),
                64..1024 => std::thread::sleep(Duration::from_micros(50)),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Says that this rank has let go of the others' slabs, and waits until all have. Once the job has failed it waits for no rank
    /// that is gone, and for none longer than the deadline.
    ///
    /// # Errors
    /// [`Error::Rank`] if the job has failed or fails meanwhile.
    pub fn release(&self) -> Result<()> {
        let (control, me, world) = (self.control(), self.ranks().rank, self.ranks().world);
        let mine = control.slot(me).released.fetch_add(1, Ordering::SeqCst) + 1;
        if self.barrier("release of slabs").is_ok() {
            return Ok(());
        }
        let began = Instant::now();
        let holds = |rank: &u32| {
            let slot = control.slot(*rank);
            let gone = slot.phase() == Phase::Left || self.inner.is_gone(*rank);
            *rank != me && slot.released.load(Ordering::SeqCst) < mine && !gone
        };
        while (0..world).any(|rank| holds(&rank)) && began.elapsed() < self.inner.deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.check()
    }

    /// Gives every rank the message of each, by rank.
    ///
    /// # Errors
    /// As [`Group::barrier`], and if the message is longer than [`MESSAGE_BYTES`](super::control::MESSAGE_BYTES).
    pub fn exchange(&self, what: &str, message: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (control, world) = (self.control(), self.ranks().world);
        self.share(control.slot(self.ranks().rank).leave(message))?;
        self.barrier(what)?;
        let messages = (0..world).map(|rank| control.slot(rank).message()).collect();
        // Nobody leaves the next message before all have read this one.
        self.barrier(what)?;
        Ok(messages)
    }

    /// Checks that all ranks say the same.
    ///
    /// # Errors
    /// [`Error::Rank`] naming a rank that says something else than rank 0, and as [`Group::exchange`].
    pub fn agree(&self, what: &str, message: &[u8]) -> Result<()> {
        let messages = self.exchange(what, message)?;
        let other = messages.iter().position(|theirs| messages.first() != Some(theirs));
        let Some(rank) = other else { return Ok(()) };
        let rank = u32::try_from(rank).unwrap_or_default();
        let phase = self.control().slot(rank).phase();
        self.inner.record(Failure { rank, phase, step: 0, cause: format!("it has another {what} than rank 0") });
        self.check()
    }

    /// Begins a step. `signature` is a hash of what the step is, which must be the same on all ranks.
    ///
    /// # Errors
    /// [`Error::Rank`] if the job is over, or a rank's step before this one was another.
    pub fn enter(&self, signature: u64) -> Result<()> {
        self.check()?;
        let (control, me, world) = (self.control(), self.ranks().rank, self.ranks().world);
        let own = control.slot(me);
        let before = self.step.load(Ordering::Relaxed);
        let step = before + 1;
        // Of all steps so far, so that a difference stays one.
        let old = self.signature.load(Ordering::Relaxed);
        let all = mix(old ^ signature);
        self.step.store(step, Ordering::Relaxed);
        self.signature.store(all, Ordering::Relaxed);
        own.sign(step, all);
        own.set_progress(step, true);
        for rank in (0..world).filter(|rank| *rank != me && before > 0) {
            let slot = control.slot(rank);
            if slot.signature(before).is_some_and(|theirs| theirs != old) {
                self.inner.record(watchdog::diverged(slot, rank, before, me));
            }
        }
        self.share(self.fault.at(Point::Replay(step)))?;
        self.check()
    }

    /// Says that nothing is waited for now.
    ///
    /// # Errors
    /// [`Error::Rank`] if the job is over: what was waited for may be wrong.
    pub fn leave(&self) -> Result<()> {
        self.control().slot(self.ranks().rank).set_progress(self.step.load(Ordering::Relaxed), false);
        self.check()
    }

    /// Says that the device has been given the last step begun.
    pub fn given(&self) {
        let step = self.step.load(Ordering::Relaxed);
        self.control().slot(self.ranks().rank).given.store(step, Ordering::Release);
    }

    /// Says that the device has ended all steps that it was given.
    pub fn done(&self) {
        let slot = self.control().slot(self.ranks().rank);
        slot.done.store(slot.given.load(Ordering::Acquire), Ordering::Release);
    }

    /// Says that the last step begun is waited for.
    pub fn wait(&self) {
        self.control().slot(self.ranks().rank).set_progress(self.step.load(Ordering::Relaxed), true);
    }

    /// Says where steps run, and by whom their ranks wait.
    pub fn set_waits(&self, waits: Waits) {
        self.inner.waits.store(waits as u32, Ordering::Release);
    }

    /// Says which threads run steps on the host: a rank whose threads work is not stuck.
    pub(crate) fn watch(&self, workers: Arc<Workers>) {
        // A group is one session's, whose device has the same threads to the end.
        let _ = self.inner.workers.set(workers);
    }

    /// Has `word` set once the job is over.
    pub fn add_abort_word(&self, word: Arc<dyn AbortWord>) {
        if let Ok(mut words) = self.inner.words.lock() {
            words.push(word);
        }
        if self.failed() {
            self.inner.end_programs();
        }
    }

    /// Forgets a word.
    pub fn remove_abort_word(&self, word: &Arc<dyn AbortWord>) {
        if let Ok(mut words) = self.inner.words.lock() {
            words.retain(|other| !Arc::ptr_eq(other, word));
        }
    }

    /// Memory of `bytes` bytes on every rank, all in one mapping: this rank's, and the distance from each rank's to the next one's.
    /// Every rank calls this, with the same size.
    ///
    /// # Errors
    /// If there is no memory, and as [`Group::barrier`].
    pub fn host_slab(&self, bytes: u64) -> Result<(Buffer, u64)> {
        let Ranks { rank, world, .. } = *self.ranks();
        let overflow = || Error::Driver(format!("{world} slabs of {bytes} bytes overflow"));
        let stride = bytes.max(1).checked_next_multiple_of(4096).ok_or_else(overflow)?;
        let total = stride.checked_mul(world.into()).ok_or_else(overflow)?;
        let at = self.used.load(Ordering::Relaxed);
        let end = at.checked_add(total).filter(|end| *end < i64::MAX as u64).ok_or_else(overflow)?;
        self.used.store(end, Ordering::Relaxed);
        if rank == 0 {
            // Reserved, not only sized: where there is no memory this says so, and nobody meets a bus error later.
            let reserved = rustix::fs::fallocate(&self.inner.file, rustix::fs::FallocateFlags::empty(), at, total);
            self.share(
                reserved.map_err(|e| Error::Driver(format!("no memory for {world} slabs of {bytes} bytes: {e}"))),
            )?;
        }
        self.barrier("slab")?;
        let buffer = memory::map_shared(&self.inner.file, at, total, stride * u64::from(rank), bytes);
        Ok((self.share(buffer)?, stride))
    }

    /// The address of the word that waiting programs of the host look at, and of the counters that show that they back off.
    pub(super) fn host_words(&self) -> (*const AtomicU32, [*const AtomicU64; 2]) {
        let slot = self.control().slot(self.ranks().rank);
        (&raw const self.control().abort, [&raw const slot.backoffs, &raw const slot.waits])
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.phase(Phase::Left);
        self.inner.closing.store(true, Ordering::Release);
        // The watchdog looks at the flag at its next tick anyway.
        let _ = self.waker.shutdown(std::net::Shutdown::Both);
        if let Some(watchdog) = self.watchdog.take() {
            let _ = watchdog.join();
        }
    }
}

/// The finaliser of SplitMix64.
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A hash of what a step of entry number `entry` is: equal inputs give equal hashes on all ranks.
pub fn step_signature(entry: usize, dims: &[i64], inputs: &[&[i32]]) -> u64 {
    let mut hash = 0x9e37_79b9_7f4a_7c15_u64;
    let mut take = |word: u64| hash = mix(hash ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    take(entry as u64);
    dims.iter().for_each(|dim| take(*dim as u64));
    for input in inputs {
        take(input.len() as u64);
        for pair in input.chunks(2) {
            let second = pair.get(1).copied().unwrap_or(-1);
            take(u64::from(pair[0] as u32) | u64::from(second as u32) << 32);
        }
    }
    hash
}
