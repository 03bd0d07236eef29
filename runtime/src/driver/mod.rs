//! What the runtime needs of a machine: memory, streams, events, modules, capture and replay. Each driver implements the
//! traits once; session, graph and memory code above is the same for all of them.

mod buffer;
pub mod host;

pub use buffer::Buffer;

use crate::artifact::{GridDim, Target};
use crate::error::Result;
use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// What a buffer is for; drivers choose pages and placement by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Intermediates: dense, touched every step.
    Arena,
    /// State that grows with the sequences: touched sparsely, starts as zeros.
    State,
    /// Step inputs and outputs: the host reads and writes them.
    Pinned,
    /// Weights built in memory: written once, then read.
    Weights,
}

/// A machine that can run programs.
pub trait Driver: Send + Sync + Debug {
    /// Short name: `host`, `hip`, `cuda`.
    fn name(&self) -> &'static str;

    /// Checks that the machine can run code for `target`.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) naming what is missing.
    fn check_target(&self, target: &Target) -> Result<()>;

    /// Allocates `bytes` zeroed bytes, at least 64-byte aligned.
    ///
    /// # Errors
    /// If there is no memory.
    fn allocate(&self, bytes: usize, placement: Placement) -> Result<Buffer>;

    /// Makes read-only host bytes addressable by kernels: without a copy where the machine allows it.
    ///
    /// # Errors
    /// If there is no memory.
    fn import(&self, bytes: Arc<dyn SharedBytes>) -> Result<Buffer>;

    /// Loads a code image whose blake3 is `hash` (hex) and resolves kernels at the byte offsets `entries`.
    ///
    /// # Errors
    /// If the image as loaded does not hash to `hash`, or an offset lies outside it.
    fn load_module(&self, image: &[u8], hash: &str, entries: &[u64]) -> Result<Arc<dyn Module>>;

    /// A new stream: work on it runs in order.
    ///
    /// # Errors
    /// If the machine refuses.
    fn create_stream(&self) -> Result<Box<dyn StreamBackend>>;

    /// Starts recording launches into a graph.
    ///
    /// # Errors
    /// If the machine refuses.
    fn begin_capture(&self, module: Arc<dyn Module>) -> Result<Box<dyn Capture>>;
}

/// Bytes that stay where they are while shared: file mappings, sections of an artifact.
pub trait SharedBytes: Send + Sync + Debug {
    /// The bytes; the same address and length on every call.
    fn bytes(&self) -> &[u8];
}

/// Loaded code.
pub trait Module: Send + Sync + Debug {
    /// For the driver that made it.
    fn as_any(&self) -> &dyn Any;
}

/// An in-order queue of work.
pub trait StreamBackend: Send + Debug {
    /// Waits until everything enqueued so far is done.
    ///
    /// # Errors
    /// If the work failed.
    fn synchronize(&mut self) -> Result<()>;

    /// Marks the current end of the queue.
    ///
    /// # Errors
    /// If the machine refuses.
    fn record(&mut self) -> Result<Event>;
}

/// A point in a stream, for timing.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub(crate) at: Duration,
}

impl Event {
    /// Time from `earlier` to this event; zero if it is not earlier.
    pub fn since(&self, earlier: &Event) -> Duration {
        self.at.saturating_sub(earlier.at)
    }
}

/// A launch to record: everything but the dims is fixed.
#[derive(Clone, Copy, Debug)]
pub struct CaptureLaunch<'a> {
    /// Index into the module's entries.
    pub kernel: usize,
    /// Programs per grid dim, x first, at most 3.
    pub grid: &'a [GridDim],
    /// `(buffer, byte offset)` for each argument.
    pub args: &'a [(&'a Buffer, usize)],
    /// Waits for all earlier launches.
    pub barrier: bool,
}

/// A recording in progress.
pub trait Capture {
    /// Appends a launch. The graph keeps the buffers alive.
    ///
    /// # Errors
    /// If an index or offset is out of range.
    fn launch(&mut self, launch: CaptureLaunch<'_>) -> Result<()>;

    /// Ends the recording.
    ///
    /// # Errors
    /// If the machine cannot instantiate the graph.
    fn finish(self: Box<Self>) -> Result<Box<dyn Graph>>;
}

/// A captured graph: replayed any number of times, never captured again, never updated.
pub trait Graph: Send + Debug {
    /// Runs the launches with these symbol values, in the order of the dims block.
    ///
    /// # Errors
    /// If the work cannot be enqueued.
    fn replay(&mut self, stream: &mut dyn StreamBackend, dims: &[i64]) -> Result<()>;

    /// Launches in the graph.
    fn len(&self) -> usize;

    /// True if the graph has no launches.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
