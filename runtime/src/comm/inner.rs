//! What a rank and its watchdog share.

use super::Ranks;
use super::control::{Control, ControlMap, Failure};
use super::group::AbortWord;
use crate::error::Error;
use crate::log::{self, Level};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// What the rank and its watchdog share.
#[derive(Debug)]
pub struct Inner {
    pub ranks: Ranks,
    pub deadline: Duration,
    pub peers: Vec<(u32, UnixStream)>,
    /// The watchdog's end of a pair whose other end is shut down to wake it.
    pub wake: UnixStream,
    pub closing: AtomicBool,
    /// Steps run on the host's threads, which take as long as they take.
    pub by_host: AtomicBool,
    /// The control page.
    pub map: ControlMap,
    /// Holds the control page and, on the host, the slabs.
    pub file: OwnedFd,
    /// Handles of the other processes by rank, where they can be had.
    pub processes: OnceLock<Vec<Option<OwnedFd>>>,
    /// What ends this rank's programs, beside the control page.
    pub words: Mutex<Vec<Arc<dyn AbortWord>>>,
}

impl Inner {
    pub fn control(&self) -> &Control {
        self.map.control()
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
        let processes = self.processes.get().map_or(&[][..], Vec::as_slice);
        let Some(Some(process)) = processes.get(rank as usize) else { return false };
        let mut polled = [PollFd::new(process, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|n| n > 0)
    }

    /// Ends a process that does not answer, so that nothing of the job is left.
    pub fn kill(&self, rank: u32) {
        let processes = self.processes.get().map_or(&[][..], Vec::as_slice);
        if let Some(Some(process)) = processes.get(rank as usize) {
            // It may have gone by itself.
            let _ = rustix::process::pidfd_send_signal(process, Signal::KILL);
        }
    }

    /// Rank 0 notes which processes the others are, as the system says of their connections.
    pub fn note_processes(&self) {
        if self.ranks.rank != 0 {
            return;
        }
        let control = self.control();
        control.slot(0).pid.store(number(rustix::process::getpid()), Ordering::Release);
        for (rank, stream) in &self.peers {
            control.slot(*rank).pid.store(process_of(stream).map_or(0, number), Ordering::Release);
        }
    }

    /// Opens handles of the other processes, once rank 0 has noted them: by numbers that mean the same here if rank 0's does.
    pub fn open_processes(&self) {
        let control = self.control();
        let noted = |rank: u32| control.slot(rank).pid.load(Ordering::Acquire);
        let first = self.peers.first().and_then(|(_, stream)| process_of(stream));
        let same = self.ranks.rank == 0 || first.is_some_and(|pid| number(pid) == noted(0));
        let open = |rank: u32| {
            let pid = Pid::from_raw(i32::try_from(noted(rank)).ok()?)?;
            let other = same && pid != rustix::process::getpid();
            if other { rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok() } else { None }
        };
        // Set once: a group joins once.
        let _ = self.processes.set((0..self.ranks.world).map(open).collect());
    }
}

/// The process at the other end.
fn process_of(stream: &UnixStream) -> Option<Pid> {
    rustix::net::sockopt::socket_peercred(stream).ok().map(|peer| peer.pid)
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get() as u32
}
