//! The watchdog of a rank: a thread that says that its process lives and looks whether the others do and keep up.
//!
//! A process that is gone shows by the end of its connection; a stopped one by a heartbeat that does not change; one that has fallen
//! behind by steps that others wait in. Who sees one of these records it as the job's failure, which ends every rank's pending call.

use super::control::{Control, Failure, Phase, Slot};
use super::group::Inner;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// When something was seen to change last.
struct Watched<T> {
    value: T,
    since: Instant,
}

impl<T: PartialEq> Watched<T> {
    /// Looks again; how long it has been the same.
    fn look(&mut self, value: T, now: Instant) -> Duration {
        if self.value != value {
            (self.value, self.since) = (value, now);
        }
        now.saturating_duration_since(self.since)
    }
}

/// How often the watchdog looks, for a deadline.
pub fn tick(deadline: Duration) -> Duration {
    (deadline / 20).clamp(Duration::from_millis(5), Duration::from_millis(100))
}

/// What a watchdog remembers between two looks.
struct Watch {
    heartbeats: Vec<Watched<u64>>,
    own: Watched<(u64, bool)>,
    rests: Vec<Watched<(u64, u64)>>,
    /// When every rank was first seen to rest in one step.
    all_rest: Option<Instant>,
}

/// Watches until the group is closed.
pub fn run(inner: &Inner) {
    let tick = tick(inner.deadline);
    let now = Instant::now();
    let world = inner.ranks.world;
    let mut watch = Watch {
        heartbeats: (0..world).map(|_| Watched { value: 0, since: now }).collect(),
        own: Watched { value: (0, false), since: now },
        rests: (0..world).map(|_| Watched { value: (0, 0), since: now }).collect(),
        all_rest: None,
    };
    let mut open: Vec<&(u32, UnixStream)> = inner.peers.iter().collect();
    let control = inner.control();
    let own = control.slot(inner.ranks.rank);
    let mut last = now;
    while !inner.closing.load(Ordering::Acquire) {
        own.heartbeat.fetch_add(1, Ordering::Release);
        ended_connections(inner, &mut open, tick);
        let now = Instant::now();
        // After a pause of our own nobody's silence counts: look afresh.
        let paused = now.saturating_duration_since(last) > inner.deadline / 2;
        last = now;
        if paused {
            for seen in &mut watch.heartbeats {
                seen.since = now;
            }
            watch.own.since = now;
            watch.all_rest = None;
        }
        if !control.failed() {
            watch.look(inner, control, now);
        }
        if control.failed() {
            inner.end_programs();
        }
    }
}

/// Waits at most `tick` for a connection to end; one that did is a process that is gone.
fn ended_connections(inner: &Inner, open: &mut Vec<&(u32, UnixStream)>, tick: Duration) {
    use rustix::event::{PollFd, PollFlags, Timespec};
    let wake = std::iter::once(PollFd::from_borrowed_fd(inner.wake.as_fd(), PollFlags::IN));
    let mut polled: Vec<PollFd<'_>> =
        wake.chain(open.iter().map(|(_, stream)| PollFd::new(stream, PollFlags::IN))).collect();
    let timeout = Timespec { tv_sec: 0, tv_nsec: tick.subsec_nanos().into() };
    if rustix::event::poll(&mut polled, Some(&timeout)).is_err() {
        // Interrupted: looked again at the next tick, which must not come at once.
        std::thread::sleep(Duration::from_millis(1));
        return;
    }
    let ended: Vec<bool> = polled.iter().skip(1).map(|fd| !fd.revents().is_empty()).collect();
    drop(polled);
    let mut ended = ended.into_iter();
    open.retain(|(rank, _)| {
        // Nothing is ever sent after the greeting, so whatever happens is the end.
        let gone = ended.next().unwrap_or(false);
        let slot = inner.control().slot(*rank);
        if gone && slot.phase() != Phase::Left {
            inner.record(failure(slot, *rank, "its process has ended".into()));
        }
        !gone
    });
}

fn failure(slot: &Slot, rank: u32, cause: String) -> Failure {
    Failure { rank, phase: slot.phase(), step: slot.progress().0, cause }
}

impl Watch {
    fn look(&mut self, inner: &Inner, control: &Control, now: Instant) {
        let (me, deadline) = (inner.ranks.rank, inner.deadline);
        let seconds = deadline.as_secs_f32();
        let own = control.slot(me);
        let (step, waiting) = own.progress();
        let waited = self.own.look((step, waiting), now);
        let late = waiting && waited > deadline;
        for (rank, seen) in (0..inner.ranks.world).zip(&mut self.heartbeats) {
            let slot = control.slot(rank);
            let silent = seen.look(slot.heartbeat.load(Ordering::Acquire), now);
            let (theirs, _) = slot.progress();
            let phase = slot.phase();
            if rank == me || (phase == Phase::Left && !waiting) {
                continue;
            }
            if phase == Phase::Left || (phase == Phase::Closing && waiting && theirs < step) {
                inner.record(failure(slot, rank, format!("it ended its session while rank {me} waits in step {step}")));
            } else if silent > deadline {
                let first = inner.record(failure(slot, rank, format!("it does not answer for {seconds} s (stopped?)")));
                if first {
                    inner.kill(rank);
                }
            } else if let Some(common) = Some(step.min(theirs)).filter(|s| *s > 0)
                && let (Some(mine), Some(other)) = (own.signature(common), slot.signature(common))
                && mine != other
            {
                inner.record(diverged(slot, rank, common, me));
            } else if late && theirs < step {
                let cause = format!("it is stuck: rank {me} waits in step {step} for {seconds} s");
                inner.record(failure(slot, rank, cause));
            }
        }
        if late && !inner.by_host.load(Ordering::Acquire) {
            let cause = format!("the step has not ended after {seconds} s on any rank");
            inner.record(Failure { rank: me, phase: Phase::Steps, step, cause });
        }
        self.deadlock(inner, control, now);
    }

    /// On the host a step may take as long as it likes, unless every rank only waits for others.
    fn deadlock(&mut self, inner: &Inner, control: &Control, now: Instant) {
        let step = control.slot(inner.ranks.rank).progress().0;
        let mut all = inner.ranks.world > 1;
        for (rank, seen) in (0..inner.ranks.world).zip(&mut self.rests) {
            let slot = control.slot(rank);
            let (theirs, waiting) = slot.progress();
            let rests = slot.rests.load(Ordering::Relaxed);
            let resting = seen.value != (theirs, rests) && seen.value.0 == theirs;
            seen.look((theirs, rests), now);
            all &= waiting && theirs == step && resting;
        }
        if !all {
            self.all_rest = None;
            return;
        }
        let since = *self.all_rest.get_or_insert(now);
        if now.saturating_duration_since(since) > inner.deadline * 2 {
            let cause = format!("all ranks wait for each other for {} s", (inner.deadline * 2).as_secs_f32());
            inner.record(Failure { rank: inner.ranks.rank, phase: Phase::Steps, step, cause });
        }
    }
}

/// The failure of a rank whose step is another than ours.
pub fn diverged(slot: &Slot, rank: u32, step: u64, me: u32) -> Failure {
    let cause = format!("its step is another than that of rank {me}: dims or inputs differ");
    Failure { rank, phase: slot.phase(), step, cause }
}
