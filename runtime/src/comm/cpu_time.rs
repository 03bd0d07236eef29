//! What a rank's threads work, as the system counts it: a rank that computes is not stuck, however long a launch takes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Numbers of the threads that run a device's programs, 0 where none has begun.
pub type Workers = [AtomicU32];

/// The number that the system knows the calling thread by.
pub fn this_thread() -> u32 {
    // SAFETY: it has no arguments and does not fail.
    let id = unsafe { libc::gettid() };
    u32::try_from(id).unwrap_or(0)
}

/// CPU time of all of `workers` so far; of those that have ended, none.
pub fn of(workers: &Workers) -> Duration {
    workers.iter().map(|id| id.load(Ordering::Relaxed)).filter(|id| *id != 0).filter_map(of_thread).sum()
}

fn of_thread(id: u32) -> Option<Duration> {
    // As clock_getcpuclockid(3) makes it of a number: the clock of one thread (4) of the scheduler's time (2).
    let clock = (!(id as libc::clockid_t) << 3) | 6;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable, and a clock that does not exist is an error.
    let done = unsafe { libc::clock_gettime(clock, &raw mut time) };
    (done == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn work_counts_and_sleep_does_not() {
        let workers = [AtomicU32::new(this_thread()), AtomicU32::new(0)];
        let before = of(&workers);
        std::thread::sleep(Duration::from_millis(30));
        let slept = of(&workers) - before;
        let began = Instant::now();
        while of(&workers) - before < slept + Duration::from_millis(20) {
            assert!(began.elapsed() < Duration::from_secs(20), "work does not count");
        }
        assert!(slept < Duration::from_millis(15), "{slept:?}");
        let ended = std::thread::spawn(this_thread).join().expect("a thread");
        assert_eq!(of(&[AtomicU32::new(ended)]), Duration::ZERO);
    }
}
