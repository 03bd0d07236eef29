//! The thread pool: the caller and its workers walk one list of launches in lock step.
//!
//! Of each launch every thread has a first chunk of its own; the rest is handed out in ascending chunks by one counter. A thread publishes how far it has come
//! only where a later launch asks for a barrier, and waits there for the slowest of the others: two threads meet in one cache
//! line each way. Launches without a barrier overlap. A launch of one program runs on the caller, and nobody else waits for it
//! until the next barrier. Between steps workers spin for a while, then park on a futex.

use super::affinity;
use super::futex;
use super::image::KernelFn;
use crate::comm::cpu_time::{self, Workers};
use crate::error::{Error, Result};
use std::cell::UnsafeCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A launch is cut into this many chunks per thread, half of which are its own from the start: enough to even out, few enough
/// that the counter stays quiet.
const CHUNKS_PER_THREAD: i64 = 8;
/// Polls before a waiting thread yields, where every thread has a core: some tens of microseconds.
const SPINS: u32 = 1500;
/// The same where threads outnumber cores.
const SPINS_OVERSUBSCRIBED: u32 = 32;
/// Polls between steps before a worker parks, where every thread has a core: sampling a token takes less.
const IDLE_SPINS: u32 = 8000;
/// Yields before a thread that waits inside a step sleeps.
const YIELDS: u32 = 256;
/// How long it sleeps between looks.
const NAP: Duration = Duration::from_micros(50);

/// `ceil(dims[symbol] * mul / div)`; a symbol of `usize::MAX` counts as 1.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Index into the dims block.
    pub symbol: usize,
    /// Multiplier.
    pub mul: i64,
    /// Divisor, positive.
    pub div: i64,
}

impl Grid {
    /// One program.
    pub const ONE: Grid = Grid { symbol: usize::MAX, mul: 1, div: 1 };

    #[inline]
    fn count(&self, dims: &[i64]) -> i64 {
        let dim = dims.get(self.symbol).copied().unwrap_or(1);
        let n = dim.saturating_mul(self.mul);
        if self.div == 1 { n } else { (n / self.div) + i64::from(n % self.div > 0) }
    }
}

/// A launch with everything resolved but the dims.
#[derive(Clone, Debug)]
pub struct PoolLaunch {
    /// Entry point.
    pub kernel: KernelFn,
    /// Index of its first pointer in the argument list.
    pub first_arg: usize,
    /// Programs per dim.
    pub grid: [Grid; 3],
    /// Waits for all earlier launches.
    pub barrier: bool,
}

/// Keeps a value on cache lines of its own (two, as adjacent lines are prefetched in pairs).
#[repr(align(128))]
#[derive(Debug, Default)]
struct Padded<T>(T);

/// A list of launches and what their replay needs; made once, replayed without allocating.
#[derive(Debug)]
pub struct Work {
    launches: Vec<PoolLaunch>,
    args: Vec<*mut u8>,
    counters: Vec<Padded<AtomicI64>>,
}

// SAFETY: the pointers go to buffers that the owning graph keeps alive; `Pool::run` has exclusive access to the work.
unsafe impl Send for Work {}

impl Work {
    /// A list of launches over `args`.
    pub fn new(launches: Vec<PoolLaunch>, args: Vec<*mut u8>) -> Work {
        let counters = launches.iter().map(|_| Padded::default()).collect();
        Work { launches, args, counters }
    }

    /// Launches in the list.
    pub fn len(&self) -> usize {
        self.launches.len()
    }
}

/// What a step runs; written by the caller before the epoch is published, read by workers after.
#[derive(Clone, Copy)]
struct Turn {
    work: *const Work,
    dims: *const [i64],
    /// Progress of every thread when the step begins.
    base: u64,
}

struct Shared {
    /// Advances with every step; workers park on it.
    epoch: Padded<AtomicU32>,
    sleepers: Padded<AtomicU32>,
    stop: AtomicBool,
    step: UnsafeCell<Turn>,
    /// `progress[t]`: thread t has finished every launch below this count (over all steps).
    progress: Vec<Padded<AtomicU64>>,
    spins: u32,
    idle_spins: u32,
}

// SAFETY: `step` is written only by `Pool::run` while every worker waits for the epoch, and read only after acquiring it.
unsafe impl Sync for Shared {}
// SAFETY: its raw pointers are only followed during a step, while `Pool::run` holds the borrows they came from.
unsafe impl Send for Shared {}

/// A caller and its workers.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The threads as the system knows them, the caller of the last step first.
    threads: Arc<Workers>,
    base: u64,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} threads)", self.workers.len() + 1)
    }
}

impl Pool {
    /// A pool of `threads`, the caller included. Worker t is pinned to `cores[t]` where there are that many; `pin_caller` pins
    /// the calling thread to `cores[0]`. A refused pin is not an error. `ranks` processes like this one share the machine.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn new(threads: usize, cores: &[usize], pin_caller: bool, ranks: usize) -> Result<Pool> {
        let threads = threads.max(1);
        let available = crate::cpu::available_threads();
        let oversubscribed = threads.saturating_mul(ranks) > available;
        let idle = Turn { work: std::ptr::null(), dims: &[], base: 0 };
        let shared = Arc::new(Shared {
            epoch: Padded::default(),
            sleepers: Padded::default(),
            stop: AtomicBool::new(false),
            step: UnsafeCell::new(idle),
            progress: (0..threads).map(|_| Padded::default()).collect(),
            spins: if oversubscribed { SPINS_OVERSUBSCRIBED } else { SPINS },
            idle_spins: if oversubscribed { SPINS_OVERSUBSCRIBED } else { IDLE_SPINS },
        });
        let pin = threads > 1 && threads <= cores.len() && !oversubscribed;
        let known: Arc<Workers> = (0..threads).map(|_| AtomicU32::new(0)).collect();
        let mut pool = Pool { shared, workers: Vec::with_capacity(threads - 1), threads: known, base: 0 };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let threads = Arc::clone(&pool.threads);
            let core = if pin { cores.get(index).copied() } else { None };
            let worker = std::thread::Builder::new()
                .name(format!("weldment-{index}"))
                .spawn(move || {
                    threads[index].store(cpu_time::this_thread(), Ordering::Relaxed);
                    match core {
                        Some(core) => affinity::pin_to(core),
                        None => affinity::unpin(),
                    };
                    work_loop(&shared, index);
                })
                .map_err(|e| Error::Driver(format!("cannot start thread {index}: {e}")))?;
            pool.workers.push(worker);
        }
        if let (true, true, Some(core)) = (pin, pin_caller, cores.first()) {
            affinity::pin_to(*core);
        }
        Ok(pool)
    }

    /// Its threads, for who wants to know whether they work.
    pub fn threads(&self) -> Arc<Workers> {
        Arc::clone(&self.threads)
    }

    /// Runs every launch of `work` with the dims block `dims`; returns when all are done.
    pub fn run(&mut self, work: &mut Work, dims: &[i64]) {
        self.threads[0].store(cpu_time::this_thread(), Ordering::Relaxed);
        for counter in &work.counters {
            counter.0.store(0, Ordering::Relaxed);
        }
        let step = Turn { work: &raw const *work, dims, base: self.base };
        self.base += work.len() as u64;
        let shared = &*self.shared;
        if !self.workers.is_empty() {
            // SAFETY: every worker has published the end of the last step and waits for the epoch: nobody reads `step`.
            unsafe { *shared.step.get() = step };
            shared.epoch.0.fetch_add(1, Ordering::SeqCst);
            if shared.sleepers.0.load(Ordering::SeqCst) != 0 {
                futex::wake_all(&shared.epoch.0);
            }
        }
        walk(shared, 0, step);
        wait_for_others(shared, 0, self.base);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        futex::wake_all(&self.shared.epoch.0);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn work_loop(shared: &Shared, index: usize) {
    let mut seen = 0u32;
    loop {
        let mut spins = 0u32;
        while shared.epoch.0.load(Ordering::Acquire) == seen {
            spins += 1;
            if spins < shared.idle_spins {
                std::hint::spin_loop();
                continue;
            }
            // Announce, look again, sleep: the caller publishes the epoch before it looks for sleepers (both SeqCst), so
            // either it sees this announcement or the futex sees the new epoch.
            shared.sleepers.0.fetch_add(1, Ordering::SeqCst);
            if shared.epoch.0.load(Ordering::SeqCst) == seen {
                futex::wait(&shared.epoch.0, seen, None);
            }
            shared.sleepers.0.fetch_sub(1, Ordering::SeqCst);
        }
        // The caller waits for every worker before it advances again, so no epoch is skipped.
        seen = seen.wrapping_add(1);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the epoch was acquired after the caller wrote `step`, and the caller does not write it again before this
        // thread has published the end of the step.
        let step = unsafe { *shared.step.get() };
        walk(shared, index, step);
    }
}

/// Walks the launches of `step` as thread `index`.
fn walk(shared: &Shared, index: usize, step: Turn) {
    // SAFETY: `Pool::run` holds a borrow of the work and the dims until every thread has published the end of the step.
    let (work, dims) = unsafe { (&*step.work, &*step.dims) };
    let threads = shared.progress.len() as i64;
    let (mut needed, mut met) = (step.base, step.base);
    for (at, (launch, counter)) in work.launches.iter().zip(&work.counters).enumerate() {
        if launch.barrier {
            needed = step.base + at as u64;
            publish(shared, index, needed);
        }
        let [x, y, z] = &launch.grid;
        let total = x.count(dims).saturating_mul(y.count(dims)).saturating_mul(z.count(dims));
        if total <= 0 || (total == 1 && index != 0) {
            continue;
        }
        if needed > met {
            wait_for_others(shared, index, needed);
            met = needed;
        }
        let args = work.args.as_ptr().wrapping_add(launch.first_arg);
        if total == 1 || threads == 1 {
            // SAFETY: capture resolved kernel and arguments of one artifact, and the graph keeps what they point to alive.
            unsafe { (launch.kernel)(args, dims.as_ptr(), 0, total) };
            continue;
        }
        // The first chunk is the thread's own: no contended counter for small launches, and the same rows on the same core at
        // every step. Every thread passes here before the next barrier opens, so none is left out.
        let own = (total / (threads * 2)).max(1);
        let chunk = (total / (threads * CHUNKS_PER_THREAD)).max(1);
        let shared_from = own.saturating_mul(threads);
        let (mut begin, mut end) = (own.saturating_mul(index as i64), own.saturating_mul(index as i64 + 1));
        while begin < total {
            // SAFETY: as above; own chunks do not overlap, and the counter hands out each range past them once.
            unsafe { (launch.kernel)(args, dims.as_ptr(), begin, end.min(total)) };
            if shared_from >= total {
                break;
            }
            begin = shared_from + counter.0.fetch_add(chunk, Ordering::Relaxed);
            end = begin + chunk;
        }
    }
    publish(shared, index, step.base + work.len() as u64);
}

/// Says that thread `index` has finished every launch below `count`, and makes its writes visible to who sees it.
#[inline]
fn publish(shared: &Shared, index: usize, count: u64) {
    shared.progress[index].0.store(count, Ordering::Release);
}

/// Waits until every other thread has finished every launch below `count`.
#[inline]
fn wait_for_others(shared: &Shared, index: usize, count: u64) {
    for (other, progress) in shared.progress.iter().enumerate() {
        if other != index && progress.0.load(Ordering::Acquire) < count {
            wait_for(shared, &progress.0, count);
        }
    }
}

#[cold]
fn wait_for(shared: &Shared, progress: &AtomicU64, count: u64) {
    let never = AtomicU32::new(0);
    let mut polls = 0u32;
    while progress.load(Ordering::Acquire) < count {
        polls += 1;
        if polls < shared.spins {
            std::hint::spin_loop();
        } else if polls < shared.spins + YIELDS {
            std::thread::yield_now();
        } else {
            // The thread we wait for has no core: leave it ours. Nobody wakes this word; the nap ends by itself.
            futex::wait(&never, 0, Some(NAP));
        }
    }
}
