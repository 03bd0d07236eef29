//! Keeps waits, allocations and frees of other threads out of captures.
//!
//! A thread-local capture should not mind what other threads do. HIP up to ROCm 7.2.0 lets a wait for an event in any thread
//! spoil it (see [`defects`](super::defects)), and releases differ on what else does. A capture takes milliseconds, so the calls
//! in question wait until no other thread captures; those of a capturing thread pass, for they fail by themselves.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

/// How long a capture waits for calls under way. HIP looks for captures when a call begins: those that take longer are past it,
/// and may be waiting for work that this thread has yet to enqueue.
const PATIENCE: Duration = Duration::from_millis(20);

struct Gate {
    /// The thread of each capture under way in this process.
    capturing: Vec<ThreadId>,
    /// Calls under way that may disturb captures.
    calls: usize,
}

static GATE: Mutex<Gate> = Mutex::new(Gate { capturing: Vec::new(), calls: 0 });
static CHANGED: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Gate> {
    GATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This thread starts a capture: holds back such calls of other threads, and lets those under way get past their beginning.
pub fn begin() {
    let mut gate = lock();
    gate.capturing.push(thread::current().id());
    drop(CHANGED.wait_timeout_while(gate, PATIENCE, |gate| gate.calls > 0));
}

/// This thread's capture is over, or did not start.
pub fn end() {
    let here = thread::current().id();
    let mut gate = lock();
    if let Some(index) = gate.capturing.iter().position(|thread| *thread == here) {
        gate.capturing.swap_remove(index);
    }
    CHANGED.notify_all();
}

/// A call that may disturb captures, until it is dropped.
pub struct Call(());

impl Call {
    /// Waits until no thread captures, unless this one does.
    pub fn enter() -> Call {
        let here = thread::current().id();
        let busy = |gate: &mut Gate| !gate.capturing.is_empty() && !gate.capturing.contains(&here);
        let mut gate = CHANGED.wait_while(lock(), busy).unwrap_or_else(PoisonError::into_inner);
        gate.calls += 1;
        Call(())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        lock().calls -= 1;
        CHANGED.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[test]
    fn others_wait_for_the_end_of_a_capture() {
        drop(Call::enter());
        begin();
        drop(Call::enter()); // its own
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                let _call = Call::enter();
                ended.load(Ordering::SeqCst)
            });
            thread::sleep(Duration::from_millis(20));
            ended.store(true, Ordering::SeqCst);
            end();
            assert!(other.join().is_ok_and(|after| after), "the other thread went ahead");
        });
        end(); // one too many does nothing
        let call = Call::enter();
        begin(); // in spite of a call that does not return
        end();
        drop(call);
    }
}
