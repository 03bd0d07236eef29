//! Everything the double knows, behind one lock.

use crate::memory::Memory;
use crate::module::Module;
use crate::stream::{Event, Graph, Stream};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

pub const INVALID_VALUE: i32 = 1;
pub const OUT_OF_MEMORY: i32 = 2;
pub const INVALID_CONFIGURATION: i32 = 9;
pub const INVALID_POINTER: i32 = 17;
pub const NO_DEVICE: i32 = 100;
pub const INVALID_DEVICE: i32 = 101;
pub const INVALID_IMAGE: i32 = 200;
pub const NO_BINARY: i32 = 209;
pub const INVALID_HANDLE: i32 = 400;
pub const NOT_FOUND: i32 = 500;
pub const NOT_READY: i32 = 600;
pub const ILLEGAL_ADDRESS: i32 = 700;
pub const CAPTURE_UNSUPPORTED: i32 = 900;
pub const CAPTURE_INVALIDATED: i32 = 901;
pub const CAPTURE_UNMATCHED: i32 = 903;
pub const CAPTURE_WRONG_THREAD: i32 = 908;

/// The answer of a call: `Err` is a `hipError_t`.
pub type Answer<T = ()> = Result<T, i32>;

/// How calls go: what fails, what the device is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `(index of the call, hipError_t)`.
    pub fail_at: Option<(u64, i32)>,
    /// `(index of the kernel that runs, hipError_t)`: a device fault, seen by whoever waits next.
    pub fault_at: Option<(u64, i32)>,
    /// Work runs when somebody waits for it, not when it is enqueued.
    pub lazy: bool,
    /// Waits and allocations of any thread spoil captures of all, as with ROCm up to 7.2.0.
    pub captures_spoil: bool,
    pub devices: i32,
    pub arch: String,
    /// Bytes of device memory.
    pub memory: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let arch = "gfx942:sramecc+:xnack-".into();
        Settings { fail_at: None, fault_at: None, lazy: true, captures_spoil: false, devices: 1, arch, memory: 1 << 30 }
    }
}

/// One call as it was made.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: &'static str,
    pub detail: String,
}

#[derive(Default)]
pub struct State {
    pub settings: Settings,
    pub log: Vec<Call>,
    /// Breaches of the protocol: a correct program has none, whatever fails.
    pub violations: Vec<String>,
    /// The first device fault; every later wait returns it.
    pub fault: Option<i32>,
    pub kernels_run: u64,
    pub last_error: i32,
    pub memory: Memory,
    pub streams: BTreeMap<usize, Stream>,
    pub events: BTreeMap<usize, Event>,
    pub modules: BTreeMap<usize, Arc<Module>>,
    /// Function handle -> (module, index of the kernel).
    pub functions: BTreeMap<usize, (usize, usize)>,
    pub graphs: BTreeMap<usize, Graph>,
    pub execs: BTreeMap<usize, Graph>,
    /// Node handle -> (kind, function of a kernel node).
    pub nodes: BTreeMap<usize, (i32, usize)>,
    /// What destroyed handles were.
    pub dead: BTreeMap<usize, &'static str>,
    /// Where each live handle was made.
    pub made: BTreeMap<usize, u64>,
    next_handle: usize,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// The state, locked.
pub struct Locked(MutexGuard<'static, Option<State>>);

impl Locked {
    pub fn get(&mut self) -> &mut State {
        self.0.get_or_insert_with(State::default)
    }
}

pub fn lock() -> Locked {
    Locked(STATE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What an injected failure does to a call's effect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It does not happen: a call that makes or enqueues something.
    Makes,
    /// It happens all the same: a call that destroys or waits, and reports what went wrong before.
    Ends,
}

/// Makes a call: counts it, fails it if it shall fail, else answers with `body`.
pub fn call(name: &'static str, kind: Kind, detail: String, body: impl FnOnce(&mut State) -> Answer) -> i32 {
    let mut locked = lock();
    let state = locked.get();
    let index = state.log.len() as u64;
    state.log.push(Call { name, detail });
    let injected = state.settings.fail_at.filter(|(at, _)| *at == index).map(|(_, code)| code);
    let answer = match (injected, kind) {
        (Some(code), Kind::Makes) => Err(code),
        (Some(code), Kind::Ends) => body(state).and(Err(code)),
        (None, _) => body(state),
    };
    let code = answer.err().unwrap_or(0);
    if code != 0 {
        state.last_error = code;
    }
    code
}

impl State {
    /// A handle that was never used before.
    pub fn handle(&mut self) -> usize {
        self.next_handle += 1;
        let handle = 0x4849_5000_0000 + self.next_handle * 64;
        self.made.insert(handle, self.log.len().saturating_sub(1) as u64);
        handle
    }

    pub fn violation(&mut self, text: String) {
        let at = self.log.last().map_or_else(String::new, |c| format!("{}({}): ", c.name, c.detail));
        self.violations.push(format!("{at}{text}"));
    }

    /// The answer to a handle that is not one of `kind`.
    pub fn bad_handle(&mut self, handle: usize, kind: &str) -> i32 {
        match self.dead.get(&handle) {
            Some(was) => self.violation(format!("{kind} {handle:#x}: a {was} that was destroyed")),
            None => self.violation(format!("{kind} {handle:#x} is no such handle")),
        }
        INVALID_HANDLE
    }

    /// Forgets a handle for good.
    pub fn bury(&mut self, handle: usize, kind: &'static str) {
        self.made.remove(&handle);
        self.dead.insert(handle, kind);
    }

    /// Refuses a call that allocates, frees or waits while this thread captures (or any thread does so in global mode), and
    /// spoils that capture, as HIP does. HIP allows some of it in relaxed mode; Weldment does none of it.
    pub fn outside_capture(&mut self) -> Answer {
        let here = std::thread::current().id();
        let mut spoilt = false;
        for stream in self.streams.values_mut() {
            if let Some(capture) = &mut stream.capture
                && (capture.mode == 0 || capture.thread == here || self.settings.captures_spoil)
            {
                capture.invalid = true;
                spoilt = true;
            }
        }
        if spoilt {
            self.violation("not permitted while a stream is being captured".into());
            return Err(CAPTURE_UNSUPPORTED);
        }
        Ok(())
    }

    /// Refuses a call that makes memory known to other processes while any thread captures: what a graph uses was known before.
    pub fn outside_any_capture(&mut self) -> Answer {
        if self.streams.values().any(|stream| stream.capture.is_some()) {
            self.violation("memory is shared with other processes before any capture, not during one".into());
            return Err(CAPTURE_UNSUPPORTED);
        }
        Ok(())
    }

    /// The device fault, if one happened.
    pub fn healthy(&self) -> Answer {
        self.fault.map_or(Ok(()), Err)
    }

    /// Forgets what happened and what shall go wrong. What is allocated stays, so that leaks stay seen.
    pub fn reset(&mut self) {
        self.settings = Settings::default();
        self.log.clear();
        self.violations.clear();
        self.fault = None;
        self.kernels_run = 0;
        self.last_error = 0;
        for made in self.made.values_mut() {
            *made = u64::MAX;
        }
    }

    /// Live objects, in words.
    pub fn leaks(&self) -> Vec<String> {
        let origin = |handle: &usize| match self.made.get(handle) {
            Some(&u64::MAX) | None => "made before the last reset".to_owned(),
            Some(index) => {
                let call = self.log.get(*index as usize);
                call.map_or_else(String::new, |c| format!("call {index}: {}({})", c.name, c.detail))
            }
        };
        let mut leaks = Vec::new();
        let mut list = |kind: &str, handles: Vec<&usize>| {
            leaks.extend(handles.iter().map(|h| format!("{kind}, {}", origin(h))));
        };
        list("memory", self.memory.addresses().collect());
        list("stream", self.streams.keys().collect());
        list("event", self.events.keys().collect());
        list("module", self.modules.keys().collect());
        list("graph", self.graphs.keys().collect());
        list("executable graph", self.execs.keys().collect());
        leaks
    }
}

/// A capture under way.
#[derive(Debug)]
pub struct Capture {
    pub thread: ThreadId,
    pub mode: i32,
    pub invalid: bool,
    pub nodes: Vec<crate::stream::Op>,
}
