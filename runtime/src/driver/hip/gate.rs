//! Keeps waits, allocations and frees of other threads out of captures.
//!
//! A thread-local capture should not mind what other threads do. HIP up to ROCm 7.2.0 lets a wait for an event in any thread
//! spoil it (see [`defects`](super::defects)), and releases differ on what else does. A capture takes milliseconds, so the calls
//! in question wait until no other thread captures; those of a capturing thread pass, for they fail by themselves.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// The thread of each capture under way in this process.
static CAPTURING: Mutex<Vec<ThreadId>> = Mutex::new(Vec::new());
static ENDED: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Vec<ThreadId>> {
    CAPTURING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This thread starts a capture.
pub fn begin() {
    lock().push(thread::current().id());
}

/// This thread's capture is over, or did not start.
pub fn end() {
    let here = thread::current().id();
    let mut capturing = lock();
    if let Some(index) = capturing.iter().position(|thread| *thread == here) {
        capturing.swap_remove(index);
    }
    ENDED.notify_all();
}

/// Waits until no thread captures, unless this one does.
pub fn wait() {
    let here = thread::current().id();
    let mut capturing = lock();
    while !capturing.is_empty() && !capturing.contains(&here) {
        capturing = ENDED.wait(capturing).unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[test]
    fn others_wait_for_the_end_of_a_capture() {
        wait();
        begin();
        wait(); // its own
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                wait();
                ended.load(Ordering::SeqCst)
            });
            thread::sleep(Duration::from_millis(20));
            ended.store(true, Ordering::SeqCst);
            end();
            assert!(other.join().is_ok_and(|after| after), "the other thread went ahead");
        });
        end(); // one too many does nothing
        wait();
    }
}
