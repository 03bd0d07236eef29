//! Executable graphs: a step is one slot written, one copy and one launch.

use super::api::*;
use super::guards::{ExecGuard, note};
use super::memory::Shared;
use super::ring::Ring;
use super::stream::GpuStream;
use crate::comm::Library;
use crate::driver::{Buffer, CapturedNode, Graph, Module, StreamBackend};
use crate::error::{Error, Result};
use std::fmt;
use std::sync::Arc;

/// True if `WELDMENT_LAUNCH_BLOCKING=1` asks for launches one by one, to find the kernel that fails.
pub fn launch_blocking() -> bool {
    std::env::var_os("WELDMENT_LAUNCH_BLOCKING").is_some_and(|v| v == "1")
}

/// A launch that can be made without the graph.
#[derive(Debug)]
pub struct Eager {
    pub function: FunctionHandle,
    pub name: String,
    pub grid: [u32; 3],
    pub threads: u32,
    pub values: Vec<u64>,
    pub overlap: bool,
}

/// A captured graph with everything it points to. Dropping it waits for the device: fields go in the order written here.
pub struct GpuGraph {
    pub(super) exec: ExecGuard,
    pub(super) ring: Ring,
    pub(super) step: Buffer,
    pub(super) shared: Arc<Shared>,
    pub(super) label: Arc<str>,
    pub(super) max_dims: Vec<i64>,
    pub(super) launches: usize,
    pub(super) captured: Vec<CapturedNode>,
    /// The launches, kept only where they are to be made one by one.
    pub(super) eager: Option<Vec<Eager>>,
    pub(super) _module: Arc<dyn Module>,
    pub(super) _buffers: Vec<Buffer>,
    pub(super) _libraries: Vec<Arc<Library>>,
}

impl fmt::Debug for GpuGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GpuGraph({}, {} launches)", self.label, self.launches)
    }
}

impl Drop for GpuGraph {
    fn drop(&mut self) {
        // A failed device has no work left that could use what goes now.
        note("waiting for a graph to end", self.shared.api.make_current());
        note("waiting for a graph to end", self.shared.api.synchronize_device());
    }
}

impl GpuGraph {
    fn enqueue(&mut self, from: *const u8, bytes: usize, stream: StreamHandle) -> ApiResult<()> {
        let Some(step) = self.step.device_address(0) else { return Ok(()) };
        // SAFETY: the slot lies in the ring's pinned memory and is not written before its copy is done; the step block is as
        // large as a slot; the stream is held by the caller.
        unsafe { self.shared.api.copy_to_device(step, from, bytes, stream) }
    }

    fn launch(&self, stream: StreamHandle) -> Result<(), (Option<&str>, ApiError)> {
        let api = &*self.shared.api;
        let Some(eager) = &self.eager else {
            // SAFETY: the guard keeps the executable graph live; module and buffers are held beside it.
            return unsafe { api.launch_graph(self.exec.handle(), stream) }.map_err(|e| (None, e));
        };
        for launch in eager {
            // SAFETY: the stream is held by the caller.
            let wait = || unsafe { api.synchronize_stream(stream) };
            launch.launch(api, stream).and_then(|()| wait()).map_err(|e| (Some(launch.name.as_str()), e))?;
        }
        Ok(())
    }
}

impl Graph for GpuGraph {
    fn replay(&mut self, stream: &mut dyn StreamBackend, dims: &[i64], inputs: &[&[u8]]) -> Result<()> {
        let stream = GpuStream::of(stream, &self.shared)?;
        if let Some((index, (dim, max))) = dims.iter().zip(&self.max_dims).enumerate().find(|(_, (d, m))| d > m) {
            return Err(Error::Driver(format!("{}: symbol {index} is {dim}, captured for at most {max}", self.label)));
        }
        self.shared.current()?;
        let (from, bytes) = self.ring.write(dims, inputs)?;
        stream.note(&self.label);
        let handle = stream.handle();
        let copied = self.enqueue(from, bytes, handle).and_then(|()| self.ring.copied(handle));
        let result = match copied {
            Ok(()) => self.launch(handle).map_err(|(kernel, e)| match kernel {
                Some(kernel) => e.during(format_args!("{}: kernel {kernel}", self.label)),
                None => e.during(format_args!("{}: cannot launch the graph", self.label)),
            }),
            Err(e) => Err(e.during(format_args!("{}: cannot copy the inputs", self.label))),
        };
        if result.is_err() {
            // Whatever was enqueued must not read a slot that the next step writes.
            let _ = stream.synchronize();
            self.ring.reset();
        }
        result
    }

    fn len(&self) -> usize {
        self.launches
    }

    fn captured(&self) -> Vec<CapturedNode> {
        self.captured.clone()
    }

    fn replay_bare(&mut self, stream: &mut dyn StreamBackend) -> Result<bool> {
        let handle = GpuStream::of(stream, &self.shared)?.handle();
        let (from, bytes) = self.ring.last();
        self.enqueue(from, bytes, handle).map_err(|e| e.during("a bare copy"))?;
        self.launch(handle).map_err(|(_, e)| e.during("a bare launch"))?;
        Ok(true)
    }
}
