//! Streams, events and graphs: what is enqueued, and running it.

use crate::module::Kernel;
use crate::state::{Answer, CAPTURE_INVALIDATED, Capture, ILLEGAL_ADDRESS, INVALID_VALUE, State};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Work in a stream, and a node of a graph.
#[derive(Clone, Debug)]
pub enum Op {
    Copy { to: usize, from: usize, bytes: usize },
    Fill { to: usize, value: u8, bytes: usize },
    Kernel(Arc<Launch>),
    Record { event: usize, generation: u64 },
    Wait { event: usize, generation: u64 },
    Graph(Graph),
}

/// A kernel launch with its arguments, which were copied when it was enqueued.
#[derive(Clone, Debug)]
pub struct Launch {
    pub module: usize,
    pub function: usize,
    pub kernel: Kernel,
    pub args: Vec<u64>,
    pub grid: [u32; 3],
}

/// Nodes in order.
pub type Graph = Arc<Vec<Op>>;

/// A stream.
#[derive(Debug, Default)]
pub struct Stream {
    pub queue: VecDeque<Op>,
    pub capture: Option<Capture>,
}

/// An event.
#[derive(Debug)]
pub struct Event {
    pub timing: bool,
    /// Records that were enqueued, and the last that was reached.
    pub recorded: u64,
    pub reached: u64,
    pub stream: usize,
    pub at: Option<Instant>,
}

impl State {
    /// Enqueues `op`, or records it if the stream is captured.
    pub fn enqueue(&mut self, stream: usize, op: Op) -> Answer {
        self.healthy()?;
        let lazy = self.settings.lazy;
        let Some(entry) = self.streams.get_mut(&stream) else { return Err(self.bad_handle(stream, "stream")) };
        if let Some(capture) = &mut entry.capture {
            if capture.invalid {
                return Err(CAPTURE_INVALIDATED);
            }
            capture.nodes.push(op);
            return Ok(());
        }
        entry.queue.push_back(op);
        if !lazy {
            self.drain(stream);
        }
        Ok(())
    }

    /// Runs everything in `stream`.
    pub fn drain(&mut self, stream: usize) {
        while self.advance(stream) {}
    }

    /// Runs the next thing in `stream`; false if there is none.
    pub fn advance(&mut self, stream: usize) -> bool {
        let Some(op) = self.streams.get_mut(&stream).and_then(|s| s.queue.pop_front()) else { return false };
        if let Err(code) = self.run(&op) {
            self.fault.get_or_insert(code);
        }
        true
    }

    /// Runs streams until `event` has reached record `generation`.
    pub fn reach(&mut self, event: usize, generation: u64) {
        while let Some(e) = self.events.get(&event) {
            if e.reached >= generation || !self.advance(e.stream) {
                return;
            }
        }
    }

    fn run(&mut self, op: &Op) -> Answer {
        match op {
            Op::Copy { to, from, bytes } => self.copy(*to, *from, *bytes),
            Op::Fill { to, value, bytes } => {
                let Some((at, _)) = self.memory.resolve(*to, *bytes) else {
                    return Err(self.stray("a fill", *to, *bytes));
                };
                // SAFETY: the range lies in a live allocation.
                unsafe { at.write_bytes(*value, *bytes) };
                Ok(())
            }
            Op::Kernel(launch) => self.kernel(launch),
            Op::Record { event, generation } => {
                if let Some(event) = self.events.get_mut(event) {
                    event.reached = event.reached.max(*generation);
                    event.at = Some(Instant::now());
                }
                Ok(())
            }
            Op::Wait { event, generation } => {
                self.reach(*event, *generation);
                Ok(())
            }
            Op::Graph(nodes) => nodes.iter().try_for_each(|node| self.run(node)),
        }
    }

    /// Copies; an address outside all allocations is memory of the process.
    fn copy(&mut self, to: usize, from: usize, bytes: usize) -> Answer {
        let mut place = |address: usize| match self.memory.resolve(address, bytes) {
            Some((at, _)) => Ok(at),
            None if self.memory.is_device(address) || self.memory.is_pinned(address) => Err(address),
            None => Ok(address as *mut u8),
        };
        match place(to).and_then(|to| Ok((to, place(from)?))) {
            Ok((to, from)) => {
                // SAFETY: ranges of live allocations, or host memory that the caller of the copy answers for until the stream
                // has passed it.
                unsafe { std::ptr::copy(from, to, bytes) };
                Ok(())
            }
            Err(address) => Err(self.stray("a copy", address, bytes)),
        }
    }

    fn stray(&mut self, what: &str, address: usize, bytes: usize) -> i32 {
        self.violation(format!("{what} of {bytes} bytes at {address:#x} leaves its allocation"));
        ILLEGAL_ADDRESS
    }

    fn kernel(&mut self, launch: &Launch) -> Answer {
        let index = self.kernels_run;
        self.kernels_run += 1;
        if let Some((at, code)) = self.settings.fault_at
            && at == index
        {
            return Err(code);
        }
        let name = &launch.kernel.name;
        if !self.modules.contains_key(&launch.module) {
            self.violation(format!("kernel {name} runs after its module was unloaded"));
            return Err(ILLEGAL_ADDRESS);
        }
        for (index, arg) in launch.args.iter().enumerate() {
            if self.memory.resolve(*arg as usize, 0).is_none() {
                self.violation(format!("kernel {name}: parameter {index} is {arg:#x}, which is no device address"));
                return Err(ILLEGAL_ADDRESS);
            }
        }
        let programs = launch.grid.iter().map(|n| u64::from(*n)).product();
        let answer = launch.kernel.operation.run(&mut self.memory, &launch.args, programs);
        if answer.is_err() {
            self.violation(format!("kernel {name} leaves its allocations"));
        }
        answer
    }

    /// Checks a copy's direction; what is not pinned cannot be copied behind the caller's back, so HIP waits.
    pub fn enqueue_copy(&mut self, stream: usize, to: usize, from: usize, bytes: usize, kind: i32) -> Answer {
        let (to_device, from_device) = (self.memory.is_device(to), self.memory.is_device(from));
        let fits = match kind {
            1 => to_device && !from_device,
            2 => !to_device && from_device,
            3 => to_device && from_device,
            4 => true,
            _ => return Err(INVALID_VALUE),
        };
        if !fits {
            self.violation(format!("a copy of kind {kind} from {from:#x} to {to:#x} goes another way"));
            return Err(INVALID_VALUE);
        }
        for address in [to, from] {
            let known = self.memory.is_device(address) || self.memory.is_pinned(address);
            if known && self.memory.resolve(address, bytes).is_none() {
                return Err(self.stray("a copy", address, bytes));
            }
        }
        let host = if to_device { from } else { to };
        let pageable = to_device != from_device && !self.memory.is_pinned(host);
        let captured = self.streams.get(&stream).is_some_and(|s| s.capture.is_some());
        self.enqueue(stream, Op::Copy { to, from, bytes })?;
        if pageable && !captured {
            self.drain(stream);
        }
        Ok(())
    }
}
