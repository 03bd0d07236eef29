//! What a rank and its watchdog share.

use super::Ranks;
use super::control::{Control, ControlMap, Failure};
use super::cpu_time::Workers;
use super::group::AbortWord;
use crate::error::Error;
use crate::log::{self, Level};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// How it shows that programs wait for other ranks, which tells a rank that is stuck from one that computes for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Waits {
    /// They back off on the host's threads, whose CPU time is known.
    Host,
    /// Programs of a GPU leave counts of their looks beside the abort word.
    Device,
    /// The vendor's collectives do not say: no step may take longer than the deadline.
    Library,
}

/// What the rank and its watchdog share.
#[derive(Debug)]
pub struct Inner {
    pub ranks: Ranks,
    pub deadline: Duration,
    pub peers: Vec<(u32, UnixStream)>,
    /// The watchdog's end of a pair whose other end is shut down to wake it.
    pub wake: UnixStream,
    pub closing: AtomicBool,
    /// How it shows that programs wait, as a number ([`Waits`]).
    pub waits: AtomicU32,
    /// The threads that run this rank's programs, once they are known (host).
    pub workers: OnceLock<Arc<Workers>>,
    /// The control page.
    pub map: ControlMap,
    /// Holds the control page and, on the host, the slabs.
    pub file: OwnedFd,
    /// Handles of the other processes by rank, where they can be had.
    pub processes: Mutex<BTreeMap<u32, OwnedFd>>,
    /// What ends this rank's programs, beside the control page.
    pub words: Mutex<Vec<Arc<dyn AbortWord>>>,
}

impl Inner {
    pub fn control(&self) -> &Control {
        self.map.control()
    }

    /// How it shows that programs wait.
    pub fn waits(&self) -> Waits {
        let set = self.waits.load(Ordering::Acquire);
        [Waits::Device, Waits::Library].into_iter().find(|waits| *waits as u32 == set).unwrap_or(Waits::Host)
    }

    /// The most looks that a waiting program of this rank's GPU says to have taken.
    pub fn looks(&self) -> u32 {
        let words = self.words.lock();
        words.map_or(0, |words| words.iter().map(|word| word.looks()).max().unwrap_or(0))
    }

    /// Records a failure and ends all programs; true if it is the job's first.
    pub fn record(&self, failure: Failure) -> bool {
        let first = self.control().record(&failure);
        self.end_programs();
        if first {
            log::write(Level::Info, format_args!("{}", Error::from(failure)));
        }
        first
    }

    /// Tells the programs of this rank's device that the job is over.
    pub fn end_programs(&self) {
        if let Ok(words) = self.words.lock() {
            words.iter().for_each(|word| word.set());
        }
    }

    /// True if the process of a rank is known to have ended.
    pub fn is_gone(&self, rank: u32) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec};
        let Ok(processes) = self.processes.lock() else { return false };
        let Some(process) = processes.get(&rank) else { return false };
        let mut polled = [PollFd::new(process, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|n| n > 0)
    }

    /// Ends a process that does not answer, so that nothing of the job is left.
    pub fn kill(&self, rank: u32) {
        if let Ok(processes) = self.processes.lock()
            && let Some(process) = processes.get(&rank)
        {
            // It may have gone by itself.
            let _ = rustix::process::pidfd_send_signal(process, Signal::KILL);
        }
    }

    /// Opens handles of the processes that are connected to this one, by what the system says of the connections. Rank 0, which
    /// is connected to all, notes their numbers for the others.
    pub fn note_processes(&self) {
        let control = self.control();
        if self.ranks.rank == 0 {
            control.slot(0).pid.store(number(rustix::process::getpid()), Ordering::Release);
        }
        for (rank, stream) in &self.peers {
            let process = process_of(stream);
            if self.ranks.rank == 0 {
                control.slot(*rank).pid.store(process.map_or(0, number), Ordering::Release);
            }
            self.open_process(*rank, process);
        }
    }

    /// Opens handles of the processes that rank 0 has noted, by numbers that mean the same here if rank 0's does.
    pub fn open_processes(&self) {
        let control = self.control();
        let noted = |rank: u32| control.slot(rank).pid.load(Ordering::Acquire);
        let first = self.peers.first().and_then(|(_, stream)| process_of(stream));
        if self.ranks.rank != 0 && first.is_some_and(|pid| number(pid) == noted(0)) {
            for rank in 1..self.ranks.world {
                self.open_process(rank, i32::try_from(noted(rank)).ok().and_then(Pid::from_raw));
            }
        }
    }

    fn open_process(&self, rank: u32, pid: Option<Pid>) {
        // Ranks may be threads of one process, which is not theirs to end.
        let other = pid.filter(|pid| *pid != rustix::process::getpid());
        let handle = other.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        if let (Some(handle), Ok(mut processes)) = (handle, self.processes.lock()) {
            processes.insert(rank, handle);
        }
    }
}

/// The process at the other end.
fn process_of(stream: &UnixStream) -> Option<Pid> {
    rustix::net::sockopt::socket_peercred(stream).ok().map(|peer| peer.pid)
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get() as u32
}
