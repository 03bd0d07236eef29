//! What the runtime needs of a machine: memory, streams, events, modules, capture and replay. Each driver implements the
//! traits once; session, graph and memory code above is the same for all of them.

mod buffer;
pub(crate) mod clock;
pub(crate) mod cuda;
mod external;
pub(crate) mod gpu;
pub mod hip;
pub mod host;
mod platform;
pub(crate) mod teardown;

pub use buffer::Buffer;
pub(crate) use buffer::bytes_of;
pub use external::{Allocator, ExternalMemory, ExternalStream};
pub use gpu::api::{FunctionInfo, LoadReport, NodeCounts};
pub use platform::{PLATFORMS, Platform, PlatformReport};

use crate::artifact::{AllReduce, Gemm, GridDim, Target};
use crate::comm::Library;
use crate::comm::cpu_time::Workers;
use crate::error::{Error, Result};
use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What a buffer is for; drivers choose pages and placement by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Intermediates: dense, touched every step.
    Arena,
    /// State that grows with the sequences: touched sparsely, starts as zeros.
    State,
    /// What kernels write and the host then reads; on a GPU in device memory, see [`StreamBackend::download`].
    Output,
    /// What the host reads and writes and copies end in; on a GPU page-locked memory that kernels do not address.
    Pinned,
    /// Weights built in memory: written once, then read.
    Weights,
}

/// A kernel of a code image.
#[derive(Clone, Copy, Debug)]
pub struct KernelEntry<'a> {
    /// Symbol in the image; GPUs find kernels by it.
    pub name: &'a str,
    /// Byte offset of the entry point; the host finds kernels by it.
    pub offset: u64,
    /// Threads of a block on a GPU.
    pub threads: u32,
}

/// Code to load.
#[derive(Clone, Copy, Debug)]
pub struct ModuleSource<'a> {
    /// The image: machine code (host), a linked code object (AMD), PTX text (NVIDIA).
    pub image: &'a [u8],
    /// Its blake3, hex.
    pub hash: &'a str,
    /// Its kernels; launches name them by index.
    pub kernels: &'a [KernelEntry<'a>],
    /// Folder that keeps what the platform's own compiler makes of the image; `None` keeps nothing.
    pub cache: Option<&'a Path>,
}

/// What a capture must know before its first launch.
#[derive(Clone, Copy, Debug)]
pub struct CaptureSpec<'a> {
    /// What is captured, for error texts: `step, variant 2`.
    pub label: &'a str,
    /// The largest value of each symbol, in the order of the dims block. Replays stay within.
    pub max_dims: &'a [i64],
    /// Bytes of each input at these values.
    pub input_bytes: &'a [usize],
}

/// Memory of a device that ranks of one host share with each other, each rank with a device of its own.
pub trait PeerMemory {
    /// Allocates `bytes` zeroed bytes, alone in whole pages, and the message by which other processes import them.
    ///
    /// # Errors
    /// If there is no memory, or the machine cannot share it.
    fn export(&self, bytes: usize) -> Result<(Buffer, Vec<u8>)>;

    /// Maps what another process exports, so that kernels address it.
    ///
    /// # Errors
    /// If the machine refuses.
    fn import(&self, message: &[u8]) -> Result<PeerMapping>;

    /// A word of the host that kernels look at, and its address for them.
    ///
    /// # Errors
    /// If there is no memory.
    fn abort_word(&self) -> Result<(Arc<dyn crate::comm::group::AbortWord>, u64)>;
}

/// Memory of another process, mapped until this drops.
#[derive(Debug)]
pub struct PeerMapping {
    /// Where kernels of this process see it.
    pub address: u64,
    /// Unmaps it.
    pub owner: Box<dyn Debug + Send + Sync>,
}

/// Writes a range of a buffer, its bytes given, where [`Driver::fill`] says.
pub type Filler<'a> = dyn FnMut(Range<usize>, &mut [u8]) -> Result<()> + 'a;

/// A machine that can run programs.
pub trait Driver: Send + Sync + Debug {
    /// Short name: `host`, `hip`, `cuda`.
    fn name(&self) -> &'static str;

    /// Checks that the machine can run code for `target`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming what is missing.
    fn check_target(&self, target: &Target) -> Result<()>;

    /// Allocates `bytes` zeroed bytes, at least 64-byte aligned; from `allocator` if one is given (not for
    /// [`Placement::Pinned`]).
    ///
    /// # Errors
    /// If there is no memory.
    fn allocate(&self, bytes: usize, placement: Placement, allocator: Option<&Arc<dyn Allocator>>) -> Result<Buffer>;

    /// Makes read-only host bytes addressable by kernels: without a copy where the machine allows it.
    ///
    /// # Errors
    /// If there is no memory.
    fn import(&self, bytes: Arc<dyn SharedBytes>, allocator: Option<&Arc<dyn Allocator>>) -> Result<Buffer>;

    /// Memory of an embedding engine as a buffer.
    ///
    /// # Errors
    /// If the address is not 64-byte aligned.
    fn wrap(&self, memory: &ExternalMemory) -> Result<Buffer>;

    /// Fills `buffer`, which no graph uses yet: `fill` is called once with each of `ranges`, in order, and a place for its
    /// bytes. Ranges of about [`Driver::staging_bytes`] are copied while the next is made.
    ///
    /// # Errors
    /// Those of `fill`, or if the machine refuses a copy.
    fn fill(&self, buffer: &mut Buffer, ranges: &[Range<usize>], fill: &mut Filler<'_>) -> Result<()>;

    /// The best size of a range for [`Driver::fill`]; `None` where memory is filled in place.
    fn staging_bytes(&self) -> Option<usize>;

    /// Loads code and resolves its kernels.
    ///
    /// # Errors
    /// If the image does not hash to what is promised, or lacks a kernel.
    fn load_module(&self, source: &ModuleSource<'_>) -> Result<Arc<dyn Module>>;

    /// A new stream, or the embedding engine's.
    ///
    /// # Errors
    /// If the machine refuses.
    fn create_stream(&self, external: Option<&ExternalStream>) -> Result<Box<dyn StreamBackend>>;

    /// The threads that run programs, where those are the host's.
    fn workers(&self) -> Option<Arc<Workers>> {
        None
    }

    /// How ranks share memory, where it is not by a mapping of the host.
    fn peer_memory(&self) -> Option<&dyn PeerMemory> {
        None
    }

    /// Starts recording launches into a graph.
    ///
    /// # Errors
    /// If the machine refuses.
    fn begin_capture(&self, module: Arc<dyn Module>, spec: &CaptureSpec<'_>) -> Result<Box<dyn Capture>>;
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

    /// How it was loaded.
    fn load_report(&self) -> LoadReport {
        LoadReport::default()
    }

    /// What the library says of kernel `index`; `None` where it says nothing.
    fn kernel_info(&self, _index: usize) -> Option<FunctionInfo> {
        None
    }
}

/// An in-order queue of work.
pub trait StreamBackend: Send + Debug {
    /// For the driver that made it.
    fn as_any(&mut self) -> &mut dyn Any;

    /// Waits until everything enqueued so far is done.
    ///
    /// # Errors
    /// If the work failed.
    fn synchronize(&mut self) -> Result<()>;

    /// As [`StreamBackend::synchronize`], but gives up a while after `over` says that what is waited for may never come.
    ///
    /// # Errors
    /// If the work failed or was given up.
    fn synchronize_unless(&mut self, _over: &dyn Fn() -> bool) -> Result<()> {
        self.synchronize()
    }

    /// Marks the current end of the queue.
    ///
    /// # Errors
    /// If the machine refuses.
    fn record(&mut self) -> Result<Event>;

    /// Enqueues a copy of the first `bytes` bytes of `from` to `to`, a host-visible buffer.
    ///
    /// # Errors
    /// If a buffer is too small or not of this machine.
    fn download(&mut self, from: &Buffer, to: &Buffer, bytes: usize) -> Result<()>;

    /// Enqueues a copy of the first `bytes` bytes of `from` to `to`, both in the memory that kernels use.
    ///
    /// # Errors
    /// If a buffer is too small or not of this machine.
    fn copy(&mut self, from: &Buffer, to: &Buffer, bytes: usize) -> Result<()>;
}

/// A point in a stream, for timing.
#[derive(Clone, Debug)]
pub struct Event(EventKind);

#[derive(Clone, Debug)]
enum EventKind {
    Host(Duration),
    Gpu(Arc<gpu::guards::EventGuard>),
}

impl Event {
    pub(crate) fn host(at: Duration) -> Event {
        Event(EventKind::Host(at))
    }

    pub(crate) fn gpu(event: gpu::guards::EventGuard) -> Event {
        Event(EventKind::Gpu(Arc::new(event)))
    }

    /// Time from `earlier` to this event, which is waited for; zero if it is not earlier.
    ///
    /// # Errors
    /// If the events are of different machines, or work before them failed.
    pub fn since(&self, earlier: &Event) -> Result<Duration> {
        match (&self.0, &earlier.0) {
            (EventKind::Host(now), EventKind::Host(then)) => Ok(now.saturating_sub(*then)),
            (EventKind::Gpu(now), EventKind::Gpu(then)) => gpu::stream::elapsed(now, then),
            _ => Err(Error::Driver("the events are of different machines".into())),
        }
    }
}

/// Where a kernel's argument lies.
#[derive(Clone, Copy, Debug)]
pub enum CaptureArg<'a> {
    /// Byte offset in a buffer.
    Buffer(&'a Buffer, usize),
    /// Byte offset in an input of the step, by index.
    Input(usize, usize),
}

/// A launch to record: everything but dims and inputs is fixed.
#[derive(Clone, Copy, Debug)]
pub struct CaptureLaunch<'a> {
    /// Index into the module's kernels.
    pub kernel: usize,
    /// Programs per grid dim, x first, at most 3.
    pub grid: &'a [GridDim],
    /// The arguments, in order.
    pub args: &'a [CaptureArg<'a>],
    /// Waits for all earlier launches.
    pub barrier: bool,
    /// On machines that can: starts before the launch before it has ended, which the kernel waits for itself.
    pub overlap: bool,
}

/// A recording in progress. Dropped before it is finished it leaves nothing behind.
pub trait Capture {
    /// Appends a launch. The graph keeps the buffers alive.
    ///
    /// # Errors
    /// If an index or offset is out of range.
    fn launch(&mut self, launch: CaptureLaunch<'_>) -> Result<()>;

    /// Appends a matrix product by the vendor's library; false, with nothing recorded, if there is none that takes it.
    ///
    /// # Errors
    /// If an offset is out of range or the library fails.
    fn gemm(&mut self, _gemm: &Gemm, _args: &[CaptureArg<'_>]) -> Result<bool> {
        Ok(false)
    }

    /// Appends a sum over ranks by the vendor's library; false, with nothing recorded, if the machine or the library does not.
    ///
    /// # Errors
    /// If an offset is out of range or the library fails.
    fn all_reduce(&mut self, _library: &Arc<Library>, _sum: &AllReduce, _args: &[CaptureArg<'_>]) -> Result<bool> {
        Ok(false)
    }

    /// Ends the recording.
    ///
    /// # Errors
    /// If the machine cannot instantiate the graph.
    fn finish(self: Box<Self>) -> Result<Box<dyn Graph>>;
}

/// A node of a captured graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapturedNode {
    /// The kernel of a launch, counted from 0 in the order of the capture.
    Launch(usize),
    /// A kernel that no launch asked for: a part of a product by the vendor's library.
    Library,
    /// A copy by the machine itself.
    Copy,
    /// A fill by the machine itself.
    Fill,
    /// Anything else.
    Other,
}

/// A captured graph: replayed any number of times, never captured again, never updated.
pub trait Graph: Send + Debug {
    /// Enqueues the launches with these symbol values, in the order of the dims block, and the bytes of each input, which may be
    /// fewer than captured for. Both are copied before the call returns. A graph is replayed on one stream at a time.
    ///
    /// # Errors
    /// If a dim or input is larger than captured for, or the work cannot be enqueued.
    fn replay(&mut self, stream: &mut dyn StreamBackend, dims: &[i64], inputs: &[&[u8]]) -> Result<()>;

    /// Launches in the graph.
    fn len(&self) -> usize;

    /// True if the graph has no launches.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the machine says the graph consists of, node by node.
    fn captured(&self) -> Vec<CapturedNode> {
        (0..self.len()).map(CapturedNode::Launch).collect()
    }

    /// Nodes of the graph by kind.
    fn nodes(&self) -> NodeCounts {
        let mut counts = NodeCounts::default();
        for node in self.captured() {
            match node {
                CapturedNode::Launch(_) | CapturedNode::Library => counts.kernels += 1,
                CapturedNode::Copy => counts.copies += 1,
                CapturedNode::Fill => counts.fills += 1,
                CapturedNode::Other => counts.others += 1,
            }
        }
        counts
    }

    /// Enqueues the last step once more, by a bare copy and a bare launch without any bookkeeping, to measure what that costs;
    /// the stream is synchronized at least every few calls by the caller. False where a machine has no such thing.
    ///
    /// # Errors
    /// If the work cannot be enqueued.
    fn replay_bare(&mut self, _stream: &mut dyn StreamBackend) -> Result<bool> {
        Ok(false)
    }
}
