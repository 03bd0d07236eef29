//! Stream capture: launches are recorded from a stream of their own and made into an executable graph.

use super::api::*;
use super::graph::{Eager, GpuGraph};
use super::guards::{ExecGuard, GraphGuard, SharedApi, StreamGuard, note};
use super::memory::Shared;
use super::module::GpuModule;
use super::ring::{Ring, StepLayout};
use crate::artifact::{AllReduce, Gemm, GridDim};
use crate::comm::Library;
use crate::driver::{Buffer, Capture, CaptureArg, CaptureLaunch, CaptureSpec, CapturedNode, Graph, Module};
use crate::error::{Error, Result};
use std::ffi::c_void;
use std::sync::Arc;

/// The largest grid in x, and in y and z, that both platforms launch.
const MAX_GRID: [u64; 3] = [(1 << 31) - 1, 65_535, 65_535];

/// A stream that is being captured; dropped, it ends the capture and throws the result away.
#[derive(Debug)]
struct Recording {
    active: bool,
    stream: StreamGuard,
    api: SharedApi,
}

impl Recording {
    fn begin(api: &SharedApi) -> Result<Recording> {
        let stream = StreamGuard::new(api)?;
        let mut recording = Recording { active: false, stream, api: Arc::clone(api) };
        // SAFETY: the guard keeps the stream live.
        unsafe { api.begin_capture(recording.stream.handle()) }.map_err(|e| e.during("cannot start a capture"))?;
        recording.active = true;
        Ok(recording)
    }

    fn end(&mut self) -> ApiResult<GraphGuard> {
        self.active = false;
        // SAFETY: the guard keeps the stream live, and `begin` started a capture that ends here once.
        let graph = unsafe { self.api.end_capture(self.stream.handle()) }?;
        // SAFETY: just made, owned by nobody else.
        Ok(unsafe { GraphGuard::own(&self.api, graph) })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if self.active {
            note("ending a capture", self.api.make_current());
            // An invalid capture ends with an error and no graph: both outcomes leave nothing.
            let _ = self.end();
        }
    }
}

/// A recording in progress. A capture belongs to the thread that began it; the trait object is not `Send`.
pub struct GpuCapture {
    recording: Recording,
    shared: Arc<Shared>,
    module: Arc<dyn Module>,
    label: Arc<str>,
    max_dims: Vec<i64>,
    ring: Ring,
    /// The step block.
    step: Buffer,
    buffers: Vec<Buffer>,
    launches: usize,
    /// The launches that left a node of our own, with their functions.
    recorded: Vec<(usize, FunctionHandle)>,
    eager: Option<Vec<Eager>>,
    /// The vendor's matrix library is ready.
    library: bool,
    /// What other libraries recorded into the graph must stay.
    libraries: Vec<Arc<Library>>,
}

impl GpuCapture {
    /// Starts a recording of kernels of `module`, which a GPU driver must have loaded. Everything is allocated before the
    /// capture starts.
    pub fn begin(shared: &Arc<Shared>, module: Arc<dyn Module>, spec: &CaptureSpec<'_>) -> Result<GpuCapture> {
        if !module.as_any().is::<GpuModule>() {
            return Err(Error::Driver("the module was loaded by another driver".into()));
        }
        shared.current()?;
        let layout = StepLayout::new(spec.max_dims.len(), spec.input_bytes)
            .ok_or_else(|| Error::Driver(format!("{}: the inputs' size overflows", spec.label)))?;
        let step = shared.allocate(layout.bytes(), None)?;
        let ring = Ring::new(&shared.api, layout)?;
        let eager = super::graph::launch_blocking().then(Vec::new);
        let library = shared.api.prepare_gemm();
        Ok(GpuCapture {
            recording: Recording::begin(&shared.api)?,
            shared: Arc::clone(shared),
            module,
            label: spec.label.into(),
            max_dims: spec.max_dims.to_vec(),
            ring,
            step,
            buffers: Vec::new(),
            launches: 0,
            recorded: Vec::new(),
            eager,
            library,
            libraries: Vec::new(),
        })
    }

    /// Blocks of one grid dim at the largest dims.
    fn blocks(&self, dim: &GridDim) -> Result<u64> {
        match *dim {
            GridDim::Const(n) => Ok(n),
            GridDim::Symbol { div: 0, .. } => Err(Error::Driver("a grid divides by zero".into())),
            GridDim::Symbol { symbol, mul, div } => {
                let value = self.max_dims.get(symbol as usize).and_then(|v| u64::try_from(*v).ok());
                let n = value.and_then(|v| v.checked_mul(mul)).map(|n| n.div_ceil(div));
                n.ok_or_else(|| Error::Driver(format!("a grid by symbol {symbol} overflows or names none")))
            }
        }
    }

    /// Keeps what the arguments point to alive.
    fn keep(&mut self, args: &[CaptureArg<'_>]) {
        for arg in args {
            if let CaptureArg::Buffer(buffer, _) = arg
                && !self.buffers.iter().any(|b| b.same_memory(buffer))
            {
                self.buffers.push((*buffer).clone());
            }
        }
    }

    fn address(&self, arg: &CaptureArg<'_>) -> Result<u64> {
        match arg {
            CaptureArg::Buffer(buffer, offset) => buffer
                .device_address(*offset)
                .ok_or_else(|| Error::Driver(format!("argument offset {offset} lies outside {buffer:?}"))),
            CaptureArg::Input(index, offset) => self
                .ring
                .layout()
                .input(*index, *offset)
                .and_then(|at| self.step.device_address(at))
                .ok_or_else(|| Error::Driver(format!("argument offset {offset} lies outside input {index}"))),
        }
    }
}

impl Capture for GpuCapture {
    fn launch(&mut self, launch: CaptureLaunch<'_>) -> Result<()> {
        let module = Arc::clone(&self.module);
        let function = module
            .as_any()
            .downcast_ref::<GpuModule>()
            .and_then(|module| module.function(launch.kernel))
            .ok_or_else(|| Error::Driver(format!("kernel {} is not in the module", launch.kernel)))?;
        let name = &function.name;
        let mut grid = [1u32; 3];
        for ((slot, dim), limit) in grid.iter_mut().zip(launch.grid).zip(MAX_GRID) {
            let blocks = self.blocks(dim)?;
            if blocks > limit {
                return Err(Error::Driver(format!(
                    "{}: kernel {name} needs a grid of {blocks} blocks in one dim, the limit is {limit}",
                    self.label
                )));
            }
            *slot = blocks as u32;
        }
        let mut values = Vec::with_capacity(launch.args.len() + 1);
        for arg in launch.args {
            values.push(self.address(arg)?);
        }
        values.push(self.step.device_address(0).unwrap_or(0));
        self.keep(launch.args);
        self.launches += 1;
        if grid.contains(&0) {
            return Ok(());
        }
        let eager = Eager {
            function: function.handle,
            name: name.clone(),
            grid,
            threads: function.threads,
            values,
            overlap: launch.overlap,
        };
        self.shared.current()?;
        eager
            .launch(&*self.shared.api, self.recording.stream.handle())
            .map_err(|e| e.during(format_args!("{}: launch {} of kernel {name}", self.label, self.launches - 1)))?;
        self.recorded.push((self.launches - 1, eager.function));
        if let Some(list) = &mut self.eager {
            list.push(eager);
        }
        Ok(())
    }

    fn gemm(&mut self, gemm: &Gemm, args: &[CaptureArg<'_>]) -> Result<bool> {
        // A graph that is run launch by launch, to find a faulty kernel, keeps to our own.
        if !self.library || self.eager.is_some() {
            return Ok(false);
        }
        let rows = self.blocks(&gemm.rows)?;
        let addresses = args.iter().map(|a| self.address(a)).collect::<Result<Vec<_>>>()?;
        let (x, w, addend, out) = match (&addresses[..], gemm.addend_stride) {
            (&[x, w, out], None) => (x, w, None, out),
            (&[x, w, addend, out], Some(stride)) => (x, w, Some((addend, stride)), out),
            _ => return Err(Error::Driver(format!("{} arguments of a matrix product", args.len()))),
        };
        let Gemm { n, k, dtype, x_stride, out_stride, .. } = *gemm;
        let call = GemmCall { rows, n, k, dtype, x, x_stride, w, addend, out, out_stride };
        self.shared.current()?;
        // SAFETY: the stream is being captured and live; the operands lie in buffers that the graph keeps, whose sizes the
        // artifact's compiler laid out for the largest dims.
        let taken = unsafe { self.shared.api.gemm(&call, self.recording.stream.handle()) }
            .map_err(|e| e.during(format_args!("{}: a matrix product of {rows} x {n} x {k}", self.label)))?;
        if taken {
            self.keep(args);
            self.launches += 1;
        }
        Ok(taken)
    }

    fn all_reduce(&mut self, library: &Arc<Library>, sum: &AllReduce, args: &[CaptureArg<'_>]) -> Result<bool> {
        if self.eager.is_some() {
            return Ok(false);
        }
        let [x, out, ..] = args else {
            return Err(Error::Driver(format!("{} arguments of a sum over ranks", args.len())));
        };
        let (from, to) = (self.address(x)?, self.address(out)?);
        let count = usize::try_from(self.blocks(&sum.elements)?).map_err(|e| Error::Driver(e.to_string()))?;
        self.shared.current()?;
        // SAFETY: the stream is being captured and live; the operands lie in buffers that the graph keeps, whose sizes the
        // artifact's compiler laid out for the largest dims; every rank captures the same launches.
        let taken = unsafe { library.all_reduce(from, to, count, sum.dtype, self.recording.stream.handle().0) }?;
        if taken {
            self.keep(args);
            self.libraries.push(Arc::clone(library));
            self.launches += 1;
        }
        Ok(taken)
    }

    fn finish(mut self: Box<Self>) -> Result<Box<dyn Graph>> {
        self.shared.current()?;
        let api = &self.shared.api;
        let graph = self.recording.end().map_err(|e| e.during(format_args!("{}: the capture failed", self.label)))?;
        // SAFETY: the guard keeps the graph live.
        let nodes = unsafe { api.nodes(graph.handle()) }
            .map_err(|e| e.during(format_args!("{}: cannot list the graph's nodes", self.label)))?;
        // SAFETY: as above.
        let exec = unsafe { api.instantiate(graph.handle()) }
            .map_err(|e| e.during(format_args!("{}: cannot instantiate the graph", self.label)))?;
        // SAFETY: just made, owned by nobody else.
        let exec = unsafe { ExecGuard::own(api, exec) };
        Ok(Box::new(GpuGraph {
            exec,
            ring: self.ring,
            step: self.step,
            shared: self.shared,
            label: self.label,
            max_dims: self.max_dims,
            launches: self.launches,
            captured: identify(&nodes, &self.recorded),
            eager: self.eager,
            _module: self.module,
            _buffers: self.buffers,
            _libraries: self.libraries,
        }))
    }
}

/// Which launch each node is. A function's nodes are its launches, one for one; a library that does not say which function a node
/// runs has recorded our launches alone, if it has recorded as many kernels.
fn identify(nodes: &[ApiNode], recorded: &[(usize, FunctionHandle)]) -> Vec<CapturedNode> {
    let known = |f: &FunctionHandle| recorded.iter().any(|(_, own)| own == f);
    let kernels = nodes.iter().filter(|n| matches!(n, ApiNode::Kernel(_))).count();
    let named = nodes.iter().any(|n| matches!(n, ApiNode::Kernel(Some(f)) if known(f)));
    let mut left: Vec<(usize, FunctionHandle)> = recorded.to_vec();
    let mut take = |function: Option<FunctionHandle>| {
        let at = match function {
            Some(f) if named => left.iter().position(|(_, own)| *own == f),
            _ if !named && kernels == recorded.len() => Some(0).filter(|_| !left.is_empty()),
            _ => None,
        };
        at.map_or(CapturedNode::Library, |at| CapturedNode::Launch(left.remove(at).0))
    };
    let node = |node: &ApiNode| match node {
        ApiNode::Kernel(function) => take(*function),
        ApiNode::Copy => CapturedNode::Copy,
        ApiNode::Fill => CapturedNode::Fill,
        ApiNode::Other => CapturedNode::Other,
    };
    nodes.iter().map(node).collect()
}

impl Eager {
    /// Enqueues the launch.
    pub fn launch(&self, api: &dyn Api, stream: StreamHandle) -> ApiResult<()> {
        let mut params: Vec<*mut c_void> =
            self.values.iter().map(|value| std::ptr::from_ref(value).cast_mut().cast()).collect();
        // SAFETY: function and stream are live (the module and stream guards are held by callers); the parameters are the
        // addresses of the kernel's arguments and of the dims, by the compiler's ABI, which reads them before returning.
        unsafe {
            api.launch(ApiLaunch {
                function: self.function,
                grid: self.grid,
                threads: self.threads,
                params: &mut params,
                stream,
                overlap: self.overlap,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_matched_to_launches_by_their_functions() {
        let f = FunctionHandle;
        let recorded = [(0, f(1)), (1, f(2)), (3, f(1))];
        let kernel = |n| ApiNode::Kernel(Some(f(n)));
        let nodes = [kernel(2), kernel(9), kernel(1), ApiNode::Copy, kernel(1), kernel(1), ApiNode::Fill];
        use CapturedNode::{Copy, Fill, Launch, Library};
        assert_eq!(identify(&nodes, &recorded), [Launch(1), Library, Launch(0), Copy, Launch(3), Library, Fill]);
        // A library that names no functions: all of the kernels are ours, or none can be told.
        let silent = [ApiNode::Kernel(None), ApiNode::Kernel(Some(f(0))), ApiNode::Kernel(None)];
        assert_eq!(identify(&silent, &recorded), [Launch(0), Launch(1), Launch(3)]);
        assert_eq!(identify(&silent[..2], &recorded), [Library, Library]);
    }
}
