//! A device in memory, for tests of what lives above [`Api`]: streams run as late as they may, every handle is counted, and any
//! call can be made to fail.

use super::api::*;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a stream has yet to do.
#[derive(Clone, Debug)]
enum Work {
    Copy { to: u64, from: u64, bytes: usize },
    Fill { to: u64, value: u8, bytes: usize },
    Event(usize),
    Launch(Call),
    Graph(usize),
}

/// A launch: the values of its parameters, the last of which is the address of the dims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub values: Vec<u64>,
    pub grid: [u32; 3],
    pub threads: u32,
}

#[derive(Debug, Default)]
struct State {
    next: usize,
    /// Live handles by number, with their kind.
    live: BTreeMap<usize, &'static str>,
    /// Memory by address; boxes do not move.
    memory: BTreeMap<u64, Box<[u64]>>,
    queues: BTreeMap<usize, VecDeque<Work>>,
    capturing: Option<(usize, Vec<Call>)>,
    graphs: BTreeMap<usize, Vec<Call>>,
    calls: Vec<&'static str>,
    fail_at: Option<usize>,
    /// Of every launch that ran: the dims and what each argument pointed to, 8 bytes each.
    ran: Vec<Vec<i64>>,
}

/// The device.
#[derive(Debug)]
pub struct Fake {
    info: DeviceInfo,
    state: Mutex<State>,
}

impl Fake {
    /// A device of generation gfx942.
    pub fn new() -> Arc<Fake> {
        let info = DeviceInfo {
            index: 0,
            name: "fake".into(),
            family: "amdgcn",
            arch: "gfx942".into(),
            full_arch: "gfx942:sramecc+:xnack-".into(),
            memory: 1 << 30,
            units: 1,
            driver_version: 1,
        };
        Arc::new(Fake { info, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes call number `index` fail, counted from now.
    pub fn fail_at(&self, index: Option<usize>) {
        let mut state = self.state();
        state.calls.clear();
        state.fail_at = index;
    }

    /// The calls since `fail_at`.
    pub fn calls(&self) -> Vec<&'static str> {
        self.state().calls.clone()
    }

    /// Kinds of live handles and memory, and whether a capture is open.
    pub fn live(&self) -> Vec<&'static str> {
        let state = self.state();
        let capture = state.capturing.iter().map(|_| "capture");
        state.live.values().copied().chain(capture).collect()
    }

    /// Dims and arguments of every launch that ran, in order.
    pub fn ran(&self) -> Vec<Vec<i64>> {
        self.state().ran.clone()
    }

    /// Counts the call, which may be the one that fails. Destructions are called, and done, in any case.
    fn enter(&self, call: &'static str) -> ApiResult<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.calls.push(call);
        if state.fail_at == Some(state.calls.len() - 1) && !call.starts_with("destroy") {
            let (name, text) = ("FAKE".into(), "told to fail".into());
            return Err(ApiError { call, code: 7, name, text, out_of_memory: false });
        }
        Ok(state)
    }

    /// Frees memory after everything that was enqueued, as both platforms do.
    fn free(&self, call: &'static str, kind: &'static str, address: u64) -> ApiResult<()> {
        self.state().run_all();
        self.destroy(call, kind, address as usize)?;
        self.state().memory.remove(&address);
        Ok(())
    }

    fn destroy(&self, call: &'static str, kind: &'static str, handle: usize) -> ApiResult<()> {
        let mut state = self.enter(call)?;
        assert_eq!(state.live.remove(&handle), Some(kind), "{call} of a handle that is not live");
        Ok(())
    }

    fn allocate(&self, call: &'static str, kind: &'static str, bytes: usize) -> ApiResult<u64> {
        let mut state = self.enter(call)?;
        assert!(state.capturing.is_none(), "an allocation in a capture");
        // Twice what is asked for, to align to 64; 0xAA everywhere: nothing may rely on zeros.
        let memory = vec![0xAAAA_AAAA_AAAA_AAAA_u64; bytes.div_ceil(8) + 8].into_boxed_slice();
        let address = (memory.as_ptr() as u64).next_multiple_of(64);
        state.memory.insert(address, memory);
        state.live.insert(address as usize, kind);
        Ok(address)
    }
}

impl State {
    fn make(&mut self, kind: &'static str) -> usize {
        self.next += 1;
        self.live.insert(self.next, kind);
        self.next
    }

    fn assert_live(&self, handle: usize, kind: &'static str) {
        assert_eq!(self.live.get(&handle), Some(&kind), "a {kind} that is not live");
    }

    fn push(&mut self, stream: StreamHandle, work: Work) {
        self.assert_live(stream.0, "stream");
        match (&mut self.capturing, work) {
            (Some((capturing, list)), Work::Launch(call)) if *capturing == stream.0 => list.push(call),
            (Some((capturing, _)), work) if *capturing == stream.0 => panic!("{work:?} in a capture"),
            (_, work) => self.queues.entry(stream.0).or_default().push_back(work),
        }
    }

    fn in_memory(&self, address: u64, bytes: usize) {
        let found = self.memory.range(..=address).next_back();
        let inside = found.is_some_and(|(start, m)| address + bytes as u64 <= start + (m.len() as u64 - 8) * 8 + 64);
        assert!(inside, "{bytes} bytes at {address:#x} are not allocated");
    }

    fn run_all(&mut self) {
        let streams: Vec<usize> = self.queues.keys().copied().collect();
        streams.into_iter().for_each(|stream| self.run(stream, None));
    }

    /// Runs the stream's work up to `last`, or all of it.
    fn run(&mut self, stream: usize, last: Option<usize>) {
        let mut queue = self.queues.remove(&stream).unwrap_or_default();
        if last.is_some_and(|event| !queue.iter().any(|work| matches!(work, Work::Event(e) if *e == event))) {
            self.queues.insert(stream, queue);
            return;
        }
        while let Some(work) = queue.pop_front() {
            match work {
                Work::Copy { to, from, bytes } => {
                    // SAFETY: tests keep both ranges allocated until the stream was waited for; freeing waits too.
                    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
                }
                Work::Fill { to, value, bytes } => {
                    self.in_memory(to, bytes);
                    // SAFETY: allocated (checked above).
                    unsafe { std::ptr::write_bytes(to as *mut u8, value, bytes) };
                }
                Work::Event(event) if Some(event) == last => break,
                Work::Event(_) => {}
                Work::Launch(call) => self.call(&call),
                Work::Graph(exec) => {
                    self.assert_live(exec, "exec");
                    for call in self.graphs.get(&exec).cloned().unwrap_or_default() {
                        self.call(&call);
                    }
                }
            }
        }
        self.queues.insert(stream, queue);
    }

    fn call(&mut self, call: &Call) {
        let read = |address: &u64| {
            self.in_memory(*address, 8);
            // SAFETY: allocated (checked above), initialised when allocated.
            unsafe { (*address as *const i64).read_unaligned() }
        };
        let (dims, args) = call.values.split_last().expect("a launch has dims");
        let ran = std::iter::once(dims).chain(args).map(read).collect();
        self.ran.push(ran);
    }
}

impl Api for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn make_current(&self) -> ApiResult<()> {
        Ok(())
    }

    fn synchronize_device(&self) -> ApiResult<()> {
        self.enter("synchronize_device")?.run_all();
        Ok(())
    }

    fn memory_info(&self) -> ApiResult<(u64, u64)> {
        Ok((1, 2))
    }

    fn allocate(&self, bytes: usize) -> ApiResult<DevicePtr> {
        self.allocate("allocate", "memory", bytes)
    }

    unsafe fn free(&self, pointer: DevicePtr) -> ApiResult<()> {
        self.free("destroy memory", "memory", pointer)
    }

    fn allocate_exported(&self, bytes: usize) -> ApiResult<DevicePtr> {
        assert!(bytes.is_multiple_of(4096), "{bytes} bytes are no whole pages");
        self.allocate("allocate_exported", "memory", bytes)
    }

    unsafe fn export(&self, pointer: DevicePtr) -> ApiResult<IpcHandle> {
        let state = self.enter("export")?;
        state.assert_live(pointer as usize, "memory");
        assert!(state.capturing.is_none(), "an export in a capture");
        let mut handle = [0; IPC_HANDLE_BYTES];
        handle[..8].copy_from_slice(&pointer.to_le_bytes());
        Ok(handle)
    }

    /// Memory of this process, which is the only one: another handle of the same bytes.
    unsafe fn import(&self, handle: &IpcHandle) -> ApiResult<DevicePtr> {
        let mut state = self.enter("import")?;
        let address = u64::from_le_bytes(handle[..8].try_into().expect("eight bytes"));
        state.assert_live(address as usize, "memory");
        // Mappings are told apart from the memory itself by an odd number.
        let mapping = address + 1;
        state.live.insert(mapping as usize, "import");
        Ok(mapping)
    }

    unsafe fn close_import(&self, pointer: DevicePtr) -> ApiResult<()> {
        self.state().assert_live(pointer as usize - 1, "memory");
        self.destroy("destroy import", "import", pointer as usize)
    }

    fn allocate_mapped(&self, bytes: usize) -> ApiResult<*mut u8> {
        Ok(self.allocate("allocate_mapped", "pinned", bytes)? as *mut u8)
    }

    unsafe fn address_of_mapped(&self, pointer: *mut u8) -> ApiResult<DevicePtr> {
        self.enter("address_of_mapped")?.assert_live(pointer as usize, "pinned");
        Ok(pointer as u64)
    }

    fn allocate_pinned(&self, bytes: usize) -> ApiResult<*mut u8> {
        Ok(self.allocate("allocate_pinned", "pinned", bytes)? as *mut u8)
    }

    unsafe fn free_pinned(&self, pointer: *mut u8) -> ApiResult<()> {
        self.free("destroy pinned", "pinned", pointer as u64)
    }

    unsafe fn copy_to_device(&self, to: DevicePtr, from: *const u8, n: usize, stream: StreamHandle) -> ApiResult<()> {
        let mut state = self.enter("copy_to_device")?;
        state.in_memory(to, n);
        state.push(stream, Work::Copy { to, from: from as u64, bytes: n });
        Ok(())
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: DevicePtr, n: usize, stream: StreamHandle) -> ApiResult<()> {
        let mut state = self.enter("copy_to_host")?;
        state.in_memory(from, n);
        state.push(stream, Work::Copy { to: to as u64, from, bytes: n });
        Ok(())
    }

    unsafe fn copy_on_device(&self, to: DevicePtr, from: DevicePtr, n: usize, stream: StreamHandle) -> ApiResult<()> {
        let mut state = self.enter("copy_on_device")?;
        state.in_memory(to, n);
        state.in_memory(from, n);
        state.push(stream, Work::Copy { to, from, bytes: n });
        Ok(())
    }

    unsafe fn fill(&self, to: DevicePtr, value: u8, n: usize, stream: StreamHandle) -> ApiResult<()> {
        self.enter("fill")?.push(stream, Work::Fill { to, value, bytes: n });
        Ok(())
    }

    fn create_stream(&self) -> ApiResult<StreamHandle> {
        Ok(StreamHandle(self.enter("create_stream")?.make("stream")))
    }

    unsafe fn destroy_stream(&self, stream: StreamHandle) -> ApiResult<()> {
        let capturing = self.state().capturing.as_ref().is_some_and(|(s, _)| *s == stream.0);
        assert!(!capturing, "the stream is still capturing");
        self.destroy("destroy stream", "stream", stream.0)
    }

    unsafe fn synchronize_stream(&self, stream: StreamHandle) -> ApiResult<()> {
        let mut state = self.enter("synchronize_stream")?;
        state.assert_live(stream.0, "stream");
        state.run(stream.0, None);
        Ok(())
    }

    unsafe fn query_stream(&self, stream: StreamHandle) -> ApiResult<bool> {
        let state = self.enter("query_stream")?;
        Ok(state.queues.get(&stream.0).is_none_or(VecDeque::is_empty))
    }

    fn create_event(&self, _timing: bool) -> ApiResult<EventHandle> {
        Ok(EventHandle(self.enter("create_event")?.make("event")))
    }

    unsafe fn destroy_event(&self, event: EventHandle) -> ApiResult<()> {
        self.destroy("destroy event", "event", event.0)
    }

    unsafe fn record_event(&self, event: EventHandle, stream: StreamHandle) -> ApiResult<()> {
        let mut state = self.enter("record_event")?;
        state.assert_live(event.0, "event");
        state.push(stream, Work::Event(event.0));
        Ok(())
    }

    unsafe fn synchronize_event(&self, event: EventHandle) -> ApiResult<()> {
        let mut state = self.enter("synchronize_event")?;
        state.assert_live(event.0, "event");
        let streams: Vec<usize> = state.queues.keys().copied().collect();
        streams.into_iter().for_each(|stream| state.run(stream, Some(event.0)));
        Ok(())
    }

    unsafe fn elapsed_ms(&self, _from: EventHandle, _to: EventHandle) -> ApiResult<f32> {
        self.enter("elapsed_ms").map(|_| 1.0)
    }

    fn load_module(&self, _image: &[u8], _cache: Option<&Path>) -> ApiResult<(ModuleHandle, LoadReport)> {
        Ok((ModuleHandle(self.enter("load_module")?.make("module")), LoadReport::default()))
    }

    unsafe fn unload_module(&self, module: ModuleHandle) -> ApiResult<()> {
        self.destroy("destroy module", "module", module.0)
    }

    unsafe fn function(&self, module: ModuleHandle, _name: &CStr) -> ApiResult<FunctionHandle> {
        self.enter("function")?.assert_live(module.0, "module");
        Ok(FunctionHandle(module.0))
    }

    unsafe fn function_info(&self, _function: FunctionHandle) -> ApiResult<FunctionInfo> {
        self.enter("function_info").map(|_| FunctionInfo { max_threads: 1024, ..FunctionInfo::default() })
    }

    unsafe fn launch(&self, launch: ApiLaunch<'_>) -> ApiResult<()> {
        let mut state = self.enter("launch")?;
        state.assert_live(launch.function.0, "module");
        // SAFETY: each parameter is 8 bytes.
        let value = |p: &*mut c_void| unsafe { p.cast::<u64>().read() };
        let values = launch.params.iter().map(value).collect();
        state.push(launch.stream, Work::Launch(Call { values, grid: launch.grid, threads: launch.threads }));
        Ok(())
    }

    unsafe fn begin_capture(&self, stream: StreamHandle) -> ApiResult<()> {
        let mut state = self.enter("begin_capture")?;
        assert!(state.capturing.is_none(), "two captures");
        state.capturing = Some((stream.0, Vec::new()));
        Ok(())
    }

    unsafe fn end_capture(&self, stream: StreamHandle) -> ApiResult<GraphHandle> {
        let result = self.enter("end_capture").map(drop);
        let mut state = self.state();
        let (capturing, calls) = state.capturing.take().expect("a capture to end");
        assert_eq!(capturing, stream.0);
        result?;
        let graph = state.make("graph");
        state.graphs.insert(graph, calls);
        Ok(GraphHandle(graph))
    }

    unsafe fn nodes(&self, graph: GraphHandle) -> ApiResult<Vec<ApiNode>> {
        let state = self.enter("nodes")?;
        let kernels = state.graphs.get(&graph.0).map_or(0, Vec::len);
        Ok(vec![ApiNode::Kernel(None); kernels])
    }

    unsafe fn destroy_graph(&self, graph: GraphHandle) -> ApiResult<()> {
        self.destroy("destroy graph", "graph", graph.0)
    }

    unsafe fn instantiate(&self, graph: GraphHandle) -> ApiResult<ExecHandle> {
        let mut state = self.enter("instantiate")?;
        state.assert_live(graph.0, "graph");
        let exec = state.make("exec");
        let calls = state.graphs.get(&graph.0).cloned().unwrap_or_default();
        state.graphs.insert(exec, calls);
        Ok(ExecHandle(exec))
    }

    unsafe fn upload_exec(&self, exec: ExecHandle, _stream: StreamHandle) -> ApiResult<()> {
        self.enter("upload_exec")?.assert_live(exec.0, "exec");
        Ok(())
    }

    unsafe fn launch_graph(&self, exec: ExecHandle, stream: StreamHandle) -> ApiResult<()> {
        let mut state = self.enter("launch_graph")?;
        state.assert_live(exec.0, "exec");
        state.push(stream, Work::Graph(exec.0));
        Ok(())
    }

    unsafe fn destroy_exec(&self, exec: ExecHandle) -> ApiResult<()> {
        self.destroy("destroy exec", "exec", exec.0)
    }
}
