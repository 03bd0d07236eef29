//! The watchdog of a rank: a thread that says that its process lives and looks whether the others do and keep up.
//!
//! A process that is gone shows by the end of its connection; a stopped one by a heartbeat that does not change; one that has fallen
//! behind by steps that others wait in. Who sees one of these records it as the job's failure, which ends every rank's pending call.

use super::control::{Control, Failure, Phase, Slot};
use super::cpu_time;
use super::inner::{Inner, Waits};
use super::looks::Looks;
use crate::log::{self, Level};
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
    /// Looks again.
    fn look(&mut self, value: T, now: Instant) {
        if self.value != value {
            (self.value, self.since) = (value, now);
        }
    }

    /// How long it has been the same.
    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

/// How often the watchdog looks, for a deadline.
pub fn tick(deadline: Duration) -> Duration {
    (deadline / 20).clamp(Duration::from_millis(5), Duration::from_millis(100))
}

/// CPU time that counts as work: far more than programs that back off take in a deadline.
const WORK_MILLIS: u64 = 10;

/// What a watchdog remembers of a rank, its own included.
struct Seen {
    heartbeat: Watched<u64>,
    /// Steps begun, and whether one is waited for.
    progress: Watched<(u64, bool)>,
    /// The step and the wait in it that its programs back off in (host).
    wait: Watched<(u64, u64)>,
    /// What its threads have worked (host).
    work: Watched<u64>,
    /// Its device has been given the steps that it has begun, and is not known to have ended them.
    on_device: bool,
    /// How long its programs have waited for one thing (GPU).
    waited: Duration,
    backoffs: u64,
    /// Its programs have rested since the last look.
    backing_off: bool,
}

/// Watches until the group is closed.
pub fn run(inner: &Inner) {
    let tick = tick(inner.deadline);
    let mut last = Instant::now();
    let seen = || Seen {
        heartbeat: Watched { value: 0, since: last },
        progress: Watched { value: (0, false), since: last },
        wait: Watched { value: (0, 0), since: last },
        work: Watched { value: 0, since: last },
        on_device: false,
        waited: Duration::ZERO,
        backoffs: 0,
        backing_off: false,
    };
    let mut ranks: Vec<Seen> = (0..inner.ranks.world).map(|_| seen()).collect();
    let mut open: Vec<&(u32, UnixStream)> = inner.peers.iter().collect();
    let control = inner.control();
    let own = control.slot(inner.ranks.rank);
    let mut looks = Looks::new(last);
    let mut told = 0;
    while !inner.closing.load(Ordering::Acquire) {
        own.heartbeat.fetch_add(1, Ordering::Release);
        if let Some(workers) = inner.workers.get() {
            let worked = cpu_time::of(workers).as_millis() as u64 / WORK_MILLIS;
            own.worked.store(worked, Ordering::Release);
        }
        ended_connections(inner, &mut open, tick);
        let now = Instant::now();
        let waited = looks.see(inner.looks(), now, inner.deadline / 4);
        own.waited.store(waited.as_millis() as u64, Ordering::Release);
        // After a pause of our own nobody's silence counts: look afresh.
        if now.saturating_duration_since(last) > inner.deadline / 2 {
            for seen in &mut ranks {
                (seen.heartbeat.since, seen.progress.since, seen.wait.since, seen.work.since) = (now, now, now, now);
            }
        }
        last = now;
        if !control.failed() {
            look(inner, control, &mut ranks, now);
            tell_of_long_steps(inner, &ranks, &mut told, now);
        }
        if control.failed() {
            inner.end_programs();
            end_stopped(inner, control, &mut ranks);
        }
    }
    if control.failed() {
        end_stopped(inner, control, &mut ranks);
    }
}

/// Kills the rank that failed if it has not answered for about the deadline: whoever saw it first may not know its process.
fn end_stopped(inner: &Inner, control: &Control, ranks: &mut [Seen]) {
    let Some(rank) = control.failure().map(|failure| failure.rank).filter(|rank| *rank != inner.ranks.rank) else {
        return;
    };
    let Some(seen) = ranks.get_mut(rank as usize) else { return };
    let now = Instant::now();
    let slot = control.slot(rank);
    seen.heartbeat.look(slot.heartbeat.load(Ordering::Acquire), now);
    // The one that declared it silent may have seen its last heartbeat a look earlier than this one.
    if seen.heartbeat.age(now) > inner.deadline / 2 && slot.phase() != Phase::Left {
        inner.kill(rank);
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

/// Looks at every rank once and records what is wrong.
fn look(inner: &Inner, control: &Control, ranks: &mut [Seen], now: Instant) {
    let (me, deadline) = (inner.ranks.rank, inner.deadline);
    for (rank, seen) in (0..).zip(&mut *ranks) {
        let slot = control.slot(rank);
        let backoffs = slot.backoffs.load(Ordering::Relaxed);
        seen.heartbeat.look(slot.heartbeat.load(Ordering::Acquire), now);
        seen.progress.look(slot.progress(), now);
        seen.wait.look((slot.progress().0, slot.waits.load(Ordering::Relaxed)), now);
        seen.work.look(slot.worked.load(Ordering::Acquire), now);
        let (begun, _) = seen.progress.value;
        let [given, done] = [&slot.given, &slot.done].map(|steps| steps.load(Ordering::Acquire));
        seen.on_device = given >= begun && done < begun;
        seen.waited = Duration::from_millis(slot.waited.load(Ordering::Acquire));
        (seen.backing_off, seen.backoffs) = (backoffs != seen.backoffs, backoffs);
    }
    let seconds = deadline.as_secs_f32();
    let own = control.slot(me);
    let Some(mine) = ranks.get(me as usize) else { return };
    let (step, waiting) = mine.progress.value;
    let late = waiting && mine.progress.age(now) > deadline;
    let waits = inner.waits();
    let backs_off = |seen: &Seen| match waits {
        Waits::Host => seen.backing_off,
        Waits::Device => seen.waited > deadline,
        Waits::Library => true,
    };
    // A rank that computes is on its way, however long that takes.
    let idle = |seen: &Seen| match waits {
        Waits::Host => backs_off(seen) || seen.work.age(now) > deadline,
        Waits::Device => backs_off(seen) || (!seen.on_device && seen.progress.age(now) > deadline),
        Waits::Library => true,
    };
    let others = || (0..).zip(&*ranks).filter(|(rank, _)| *rank != me);
    for (rank, seen) in others() {
        let slot = control.slot(rank);
        let (theirs, they_wait) = seen.progress.value;
        let phase = slot.phase();
        let common = step.min(theirs);
        // A rank that enqueued a step and does not wait for it yet has not ended it, as far as anybody knows.
        let under_way = they_wait || (waits == Waits::Device && seen.on_device);
        let ended = theirs > step || !under_way;
        let same = common == 0 || own.signature(common).zip(slot.signature(common)).is_none_or(|(a, b)| a == b);
        if phase == Phase::Left && !waiting {
            continue;
        }
        if phase == Phase::Left || (phase == Phase::Closing && waiting && theirs < step) {
            inner.record(failure(slot, rank, format!("it ended its session while rank {me} waits in step {step}")));
        } else if seen.heartbeat.age(now) > deadline {
            inner.record(failure(slot, rank, format!("it does not answer for {seconds} s (stopped?)")));
        } else if !same {
            inner.record(diverged(slot, rank, common, me));
        } else if late && theirs < step && idle(seen) {
            let cause = format!("it is stuck: rank {me} waits in step {step} for {seconds} s");
            inner.record(failure(slot, rank, cause));
        } else if late && idle(mine) && ended && seen.progress.age(now) > deadline {
            let cause = format!("it is stuck: rank {rank} has ended step {step} for {seconds} s");
            inner.record(failure(own, me, cause));
        }
    }
    if late && waits == Waits::Library {
        let cause = format!("the step has not ended after {seconds} s on any rank");
        inner.record(Failure { rank: me, phase: Phase::Steps, step, cause });
    }
    // A step may take as long as it likes, but nobody may wait so long for one thing.
    let long = match waits {
        Waits::Host => mine.backing_off && mine.wait.age(now) > deadline,
        Waits::Device => mine.waited > deadline,
        Waits::Library => false,
    };
    if waiting && long {
        let awaited = others().find(|(_, seen)| !backs_off(seen));
        let failed = match awaited {
            Some((_, seen)) if !idle(seen) => None,
            Some((rank, _)) => {
                Some((rank, format!("it is stuck: rank {me} waits for it in step {step} for {seconds} s")))
            }
            None => Some((me, format!("all ranks wait for each other for {seconds} s"))),
        };
        if let Some((rank, cause)) = failed {
            inner.record(failure(control.slot(rank), rank, cause));
        }
    }
}

/// Says once of a step that it takes long, so that who watches knows that it was not forgotten.
fn tell_of_long_steps(inner: &Inner, ranks: &[Seen], told: &mut u64, now: Instant) {
    let Some(mine) = ranks.get(inner.ranks.rank as usize) else { return };
    let (step, waiting) = mine.progress.value;
    if waiting && step != *told && mine.progress.age(now) > inner.deadline {
        *told = step;
        let (rank, seconds) = (inner.ranks.rank, inner.deadline.as_secs_f32());
        log::write(Level::Info, format_args!("rank {rank}: step {step} takes longer than {seconds} s; ranks compute"));
    }
}

/// The failure of a rank whose step is another than ours.
pub fn diverged(slot: &Slot, rank: u32, step: u64, me: u32) -> Failure {
    let cause = format!("its step is another than that of rank {me}: dims or inputs differ");
    Failure { rank, phase: slot.phase(), step, cause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::group::{AbortWord, Group, GroupOptions};
    use crate::comm::ranks::Ranks;
    use crate::error::{Error, Result};
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    const DEADLINE: Duration = Duration::from_millis(400);

    #[derive(Debug, Default)]
    struct Word(AtomicU32);

    impl AbortWord for Word {
        fn set(&self) {}

        fn looks(&self) -> u32 {
            self.0.load(Ordering::Relaxed)
        }
    }

    /// What rank 1 does while rank 0's programs wait in step 1.
    #[derive(Clone, Copy, PartialEq)]
    enum Other {
        Computes,
        Waits,
        HasNotBegun,
        HangsBeforeItsLaunch,
        Ended,
    }

    /// What becomes of a job of two ranks on GPUs within six deadlines.
    fn outcome(waits: Waits, other: Other) -> Result<()> {
        static JOBS: AtomicU32 = AtomicU32::new(0);
        let job = format!("watchdog {} {}", std::process::id(), JOBS.fetch_add(1, Ordering::Relaxed));
        let run = |rank: u32| {
            let group = Group::join(Ranks::local(rank, 2, job.as_str()), GroupOptions { deadline: DEADLINE })?;
            let word = Arc::new(Word::default());
            group.set_waits(waits);
            group.add_abort_word(word.clone());
            group.barrier("start")?;
            group.phase(Phase::Steps);
            let does = if rank == 0 { Other::Waits } else { other };
            if does != Other::HasNotBegun {
                group.enter(7)?;
            }
            if !matches!(does, Other::HasNotBegun | Other::HangsBeforeItsLaunch) {
                group.given();
            }
            if does == Other::Ended {
                group.done();
                group.leave()?;
            }
            let began = Instant::now();
            while began.elapsed() < 6 * DEADLINE {
                if does == Other::Waits {
                    word.0.fetch_add(1000, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(5));
                group.check()?;
            }
            group.leave()?;
            group.barrier("end")
        };
        std::thread::scope(|scope| {
            let ranks = [0, 1].map(|rank| scope.spawn(move || run(rank)));
            ranks.into_iter().try_for_each(|rank| rank.join().expect("no panic"))
        })
    }

    #[test]
    fn a_gpu_that_computes_is_waited_for_and_one_that_is_stuck_is_not() {
        let error = |waits, other| outcome(waits, other).map_err(|e: Error| e.to_string()).unwrap_err();
        outcome(Waits::Device, Other::Computes).expect("a step may take as long as it likes");
        assert!(error(Waits::Device, Other::Waits).contains("all ranks wait for each other"));
        for other in [Other::HasNotBegun, Other::HangsBeforeItsLaunch] {
            let said = error(Waits::Device, other);
            assert!(said.contains("rank 1, step") && said.contains("stuck: rank 0 waits"), "{said}");
        }
        let said = error(Waits::Device, Other::Ended);
        assert!(said.contains("rank 1 has ended step 1") || said.contains("waits for it"), "{said}");
        assert!(error(Waits::Library, Other::Computes).contains("has not ended after"));
    }
}
