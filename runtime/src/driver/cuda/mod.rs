//! CUDA: NVIDIA's driver under the GPU driver. The device's primary context is used, so that an embedding engine's streams and
//! pointers are valid here.

mod blas;
mod functions;
mod jit;

use super::PlatformReport;
use super::gpu::api::*;
use super::gpu::guards::SharedApi;
use crate::error::{Error, Result};
use cudarc::driver::sys::{
    CUDA_KERNEL_NODE_PARAMS_v2, CUdevice_attribute_enum as DeviceAttribute,
    CUfunction_attribute_enum as FunctionAttribute, CUgraphNodeType_enum, CUlaunchAttribute, CUlaunchAttributeID_enum,
    CUlaunchAttributeValue, CUlaunchConfig, CUstreamCaptureMode_enum,
};
use functions::{Absent, Functions, Handle, MemHandle, NOT_READY, functions, library};
use std::ffi::{CStr, c_int};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;
/// `CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP`.
const MAPPED: u32 = 1 | 2;
/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`.
const LAZY_PEER_ACCESS: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: u32 = 2;

/// One device and its primary context.
#[derive(Debug)]
struct Cuda {
    functions: &'static Functions,
    info: DeviceInfo,
    device: c_int,
    /// Compute capability times ten.
    capability: i32,
    context: usize,
    /// The matrix library and its workspace, once a capture has asked for them.
    blas: OnceLock<Option<(blas::Blas, DevicePtr)>>,
}

/// Number of devices.
///
/// # Errors
/// If there is no driver, naming the library that was looked for.
pub fn device_count() -> Result<usize> {
    count(functions()?).map_err(|e| Error::Unsupported(e.to_string()))
}

fn count(f: &Functions) -> ApiResult<usize> {
    let mut count = 0;
    // SAFETY: writes one int.
    f.check("cuDeviceGetCount", unsafe { (f.device_count)(&mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Opens device `index`.
///
/// # Errors
/// If there is no driver or no such device.
pub fn open(index: usize) -> Result<SharedApi> {
    let functions = functions()?;
    let count = count(functions).map_err(|e| Error::Unsupported(e.to_string()))?;
    if index >= count {
        return Err(Error::Unsupported(format!("there is no device cuda:{index}, the driver has {count}")));
    }
    let failed = |e: ApiError| e.during(format_args!("cannot open cuda:{index}"));
    let (info, device, capability) = describe(functions, index).map_err(failed)?;
    let mut context: Handle = std::ptr::null_mut();
    // SAFETY: writes one handle; released when the object drops.
    let code = unsafe { (functions.context_retain)(&mut context, device) };
    functions.check("cuDevicePrimaryCtxRetain", code).map_err(failed)?;
    Ok(Arc::new(Cuda { functions, info, device, capability, context: context as usize, blas: OnceLock::new() }))
}

fn describe(f: &Functions, index: usize) -> ApiResult<(DeviceInfo, c_int, i32)> {
    let (mut device, mut memory, mut driver_version) = (0, 0usize, 0);
    let mut name = [0u8; 256];
    // SAFETY: writes one int.
    f.check("cuDeviceGet", unsafe { (f.device_get)(&mut device, index as c_int) })?;
    // SAFETY: writes at most 256 bytes, terminated.
    f.check("cuDeviceGetName", unsafe { (f.device_name)(name.as_mut_ptr().cast(), 256, device) })?;
    // SAFETY: writes one size.
    f.check("cuDeviceTotalMem", unsafe { (f.device_memory)(&mut memory, device) })?;
    // SAFETY: writes one int.
    f.check("cuDriverGetVersion", unsafe { (f.driver_version)(&mut driver_version) })?;
    let attribute = |attribute: DeviceAttribute| -> ApiResult<i32> {
        let mut value = 0;
        // SAFETY: writes one int.
        f.check("cuDeviceGetAttribute", unsafe { (f.device_attribute)(&mut value, attribute as u32, device) })?;
        Ok(value)
    };
    let major = attribute(DeviceAttribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(DeviceAttribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let units = attribute(DeviceAttribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let arch = format!("sm_{major}{minor}");
    let name = CStr::from_bytes_until_nul(&name).map_or_else(|_| String::new(), |n| n.to_string_lossy().into_owned());
    let info = DeviceInfo {
        index,
        name,
        family: "nvptx64",
        full_arch: arch.clone(),
        arch,
        memory: memory as u64,
        units: u32::try_from(units).unwrap_or(0),
        driver_version,
    };
    Ok((info, device, major * 10 + minor))
}

/// What is found on this machine.
pub fn report() -> PlatformReport {
    let mut report = PlatformReport {
        library: Err(String::new()),
        version: String::new(),
        missing: Vec::new(),
        devices: Err("no driver".into()),
    };
    match library() {
        Ok((name, _)) => report.library = Ok(name.clone()),
        Err(Absent::Library(text)) => report.library = Err(text.clone()),
        Err(Absent::Symbols(name, missing)) => {
            report.library = Ok(name.clone());
            report.missing.clone_from(missing);
        }
    }
    let devices = functions().and_then(|f| {
        let list = count(f).and_then(|n| (0..n).map(|i| Ok(describe(f, i)?.0)).collect::<ApiResult<Vec<_>>>());
        list.map_err(|e| Error::Unsupported(e.to_string()))
    });
    if let Ok(Some(device)) = devices.as_ref().map(|list| list.first()) {
        report.version = format!("{}.{}", device.driver_version / 1000, device.driver_version % 1000 / 10);
    }
    report.devices = devices.map_err(|e| e.to_string());
    report
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if let Some(Some((_, workspace))) = self.blas.take() {
            // SAFETY: allocated by `prepare_gemm`; no graph that uses it is left, for each keeps this object.
            unsafe { (self.functions.memory_free)(workspace) };
        }
        // SAFETY: retained once in `open`; every handle of the context keeps this object.
        unsafe { (self.functions.context_release)(self.device) };
    }
}

impl Cuda {
    fn check(&self, call: &'static str, code: c_int) -> ApiResult<()> {
        self.functions.check(call, code)
    }
}

/// Calls a function of the library: every unsafe call of this file that is not documented by itself goes through here, with the
/// promises that callers of [`Api`] make.
macro_rules! call {
    ($self:ident . $function:ident ($($arg:expr),* $(,)?), $name:literal) => {
        // SAFETY: out-pointers point to locals of the right type; handles and ranges are live by the promise of `Api`'s callers.
        $self.check($name, unsafe { ($self.functions.$function)($($arg),*) })
    };
}

/// The same, for functions that a driver may lack.
macro_rules! spare_call {
    ($self:ident . $function:ident ($($arg:expr),* $(,)?), $name:literal) => {
        match $self.functions.$function {
            // SAFETY: as in `call`.
            Some(function) => $self.check($name, unsafe { function($($arg),*) }),
            None => Err($self.functions.absent($name)),
        }
    };
}

impl Cuda {
    /// The function of a kernel node; `None` for kernels of libraries that have none in this context.
    fn node_function(&self, node: Handle) -> ApiResult<Option<FunctionHandle>> {
        let mut params = std::mem::MaybeUninit::<CUDA_KERNEL_NODE_PARAMS_v2>::zeroed();
        call!(self.kernel_node_params(node, params.as_mut_ptr()), "cuGraphKernelNodeGetParams_v2")?;
        // SAFETY: numbers and pointers, for which zeros are valid, filled in by the call.
        let params = unsafe { params.assume_init() };
        Ok(Some(FunctionHandle::from_ptr(params.func)).filter(|f| f.0 != 0))
    }
}

impl Api for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn make_current(&self) -> ApiResult<()> {
        call!(self.context_set(self.context as Handle), "cuCtxSetCurrent")
    }

    fn synchronize_device(&self) -> ApiResult<()> {
        call!(self.context_synchronize(), "cuCtxSynchronize")
    }

    fn memory_info(&self) -> ApiResult<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        call!(self.memory_info(&mut free, &mut total), "cuMemGetInfo")?;
        Ok((free as u64, total as u64))
    }

    fn allocate(&self, bytes: usize) -> ApiResult<DevicePtr> {
        let mut pointer = 0;
        call!(self.memory_allocate(&mut pointer, bytes), "cuMemAlloc")?;
        Ok(pointer)
    }

    unsafe fn free(&self, pointer: DevicePtr) -> ApiResult<()> {
        call!(self.memory_free(pointer), "cuMemFree")
    }

    fn allocate_exported(&self, bytes: usize) -> ApiResult<DevicePtr> {
        self.allocate(bytes)
    }

    unsafe fn export(&self, pointer: DevicePtr) -> ApiResult<IpcHandle> {
        let mut handle = MemHandle([0; IPC_HANDLE_BYTES]);
        spare_call!(self.ipc_export(&mut handle, pointer), "cuIpcGetMemHandle")?;
        Ok(handle.0)
    }

    unsafe fn import(&self, handle: &IpcHandle) -> ApiResult<DevicePtr> {
        let mut pointer = 0;
        spare_call!(self.ipc_import(&mut pointer, MemHandle(*handle), LAZY_PEER_ACCESS), "cuIpcOpenMemHandle")?;
        Ok(pointer)
    }

    unsafe fn close_import(&self, pointer: DevicePtr) -> ApiResult<()> {
        spare_call!(self.ipc_close(pointer), "cuIpcCloseMemHandle")
    }

    fn allocate_mapped(&self, bytes: usize) -> ApiResult<*mut u8> {
        let mut pointer = std::ptr::null_mut();
        call!(self.pinned_allocate(&mut pointer, bytes, MAPPED), "cuMemHostAlloc")?;
        Ok(pointer.cast())
    }

    unsafe fn address_of_mapped(&self, pointer: *mut u8) -> ApiResult<DevicePtr> {
        let mut address = 0;
        spare_call!(self.pinned_address(&mut address, pointer.cast(), 0), "cuMemHostGetDevicePointer")?;
        Ok(address)
    }

    fn allocate_pinned(&self, bytes: usize) -> ApiResult<*mut u8> {
        let mut pointer = std::ptr::null_mut();
        call!(self.pinned_allocate(&mut pointer, bytes, 0), "cuMemHostAlloc")?;
        Ok(pointer.cast())
    }

    unsafe fn free_pinned(&self, pointer: *mut u8) -> ApiResult<()> {
        call!(self.pinned_free(pointer.cast()), "cuMemFreeHost")
    }

    unsafe fn copy_to_device(&self, to: DevicePtr, from: *const u8, n: usize, stream: StreamHandle) -> ApiResult<()> {
        call!(self.copy_to_device(to, from.cast(), n, stream.as_ptr()), "cuMemcpyHtoDAsync")
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: DevicePtr, n: usize, stream: StreamHandle) -> ApiResult<()> {
        call!(self.copy_to_host(to.cast(), from, n, stream.as_ptr()), "cuMemcpyDtoHAsync")
    }

    unsafe fn copy_on_device(&self, to: DevicePtr, from: DevicePtr, n: usize, stream: StreamHandle) -> ApiResult<()> {
        call!(self.copy_on_device(to, from, n, stream.as_ptr()), "cuMemcpyDtoDAsync")
    }

    unsafe fn fill(&self, to: DevicePtr, value: u8, n: usize, stream: StreamHandle) -> ApiResult<()> {
        call!(self.fill(to, value, n, stream.as_ptr()), "cuMemsetD8Async")
    }

    fn create_stream(&self) -> ApiResult<StreamHandle> {
        let mut stream: Handle = std::ptr::null_mut();
        call!(self.stream_create(&mut stream, NON_BLOCKING), "cuStreamCreate")?;
        Ok(StreamHandle::from_ptr(stream))
    }

    unsafe fn destroy_stream(&self, stream: StreamHandle) -> ApiResult<()> {
        call!(self.stream_destroy(stream.as_ptr()), "cuStreamDestroy")
    }

    unsafe fn synchronize_stream(&self, stream: StreamHandle) -> ApiResult<()> {
        call!(self.stream_synchronize(stream.as_ptr()), "cuStreamSynchronize")
    }

    unsafe fn query_stream(&self, stream: StreamHandle) -> ApiResult<bool> {
        // SAFETY: the stream is live by the promise of `Api`'s callers.
        match unsafe { (self.functions.stream_query)(stream.as_ptr()) } {
            NOT_READY => Ok(false),
            code => self.check("cuStreamQuery", code).map(|()| true),
        }
    }

    fn create_event(&self, timing: bool) -> ApiResult<EventHandle> {
        let mut event: Handle = std::ptr::null_mut();
        call!(self.event_create(&mut event, if timing { 0 } else { DISABLE_TIMING }), "cuEventCreate")?;
        Ok(EventHandle::from_ptr(event))
    }

    unsafe fn destroy_event(&self, event: EventHandle) -> ApiResult<()> {
        call!(self.event_destroy(event.as_ptr()), "cuEventDestroy")
    }

    unsafe fn record_event(&self, event: EventHandle, stream: StreamHandle) -> ApiResult<()> {
        call!(self.event_record(event.as_ptr(), stream.as_ptr()), "cuEventRecord")
    }

    unsafe fn synchronize_event(&self, event: EventHandle) -> ApiResult<()> {
        call!(self.event_synchronize(event.as_ptr()), "cuEventSynchronize")
    }

    unsafe fn elapsed_ms(&self, from: EventHandle, to: EventHandle) -> ApiResult<f32> {
        let mut ms = 0.0;
        call!(self.event_elapsed(&mut ms, from.as_ptr(), to.as_ptr()), "cuEventElapsedTime")?;
        Ok(ms)
    }

    fn load_module(&self, image: &[u8], cache: Option<&Path>) -> ApiResult<(ModuleHandle, LoadReport)> {
        let (cubin, report) = jit::cubin(self, image, cache)?;
        let mut module: Handle = std::ptr::null_mut();
        call!(self.module_load(&mut module, cubin.as_ptr().cast()), "cuModuleLoadData")?;
        Ok((ModuleHandle::from_ptr(module), report))
    }

    unsafe fn unload_module(&self, module: ModuleHandle) -> ApiResult<()> {
        call!(self.module_unload(module.as_ptr()), "cuModuleUnload")
    }

    unsafe fn function(&self, module: ModuleHandle, name: &CStr) -> ApiResult<FunctionHandle> {
        let mut function: Handle = std::ptr::null_mut();
        call!(self.module_function(&mut function, module.as_ptr(), name.as_ptr()), "cuModuleGetFunction")?;
        Ok(FunctionHandle::from_ptr(function))
    }

    unsafe fn function_info(&self, function: FunctionHandle) -> ApiResult<FunctionInfo> {
        let get = |attribute: FunctionAttribute| -> ApiResult<u32> {
            let mut value = 0;
            call!(self.function_attribute(&mut value, attribute as u32, function.as_ptr()), "cuFuncGetAttribute")?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        Ok(FunctionInfo {
            registers: get(FunctionAttribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: get(FunctionAttribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            shared_bytes: get(FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            max_threads: get(FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        })
    }

    unsafe fn launch(&self, launch: ApiLaunch<'_>) -> ApiResult<()> {
        let mut overlap = CUlaunchAttribute {
            id: CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let [x, y, z] = launch.grid;
        let config = CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: launch.stream.as_ptr(),
            attrs: &mut overlap,
            numAttrs: u32::from(launch.overlap),
        };
        let (function, params) = (launch.function.as_ptr(), launch.params.as_mut_ptr());
        call!(self.launch(&config, function, params, std::ptr::null_mut()), "cuLaunchKernelEx")
    }

    fn prepare_gemm(&self) -> bool {
        let open = || Some((blas::Blas::open()?, self.allocate(blas::WORKSPACE_BYTES).ok()?));
        self.blas.get_or_init(open).is_some()
    }

    unsafe fn gemm(&self, call: &GemmCall, stream: StreamHandle) -> ApiResult<bool> {
        let Some(Some((blas, workspace))) = self.blas.get() else { return Ok(false) };
        // SAFETY: by the promise of `Api`'s callers. One workspace serves all products of a stream, which runs them in order.
        unsafe { blas.gemm(call, *workspace, stream.as_ptr()) }
    }

    unsafe fn begin_capture(&self, stream: StreamHandle) -> ApiResult<()> {
        let mode = CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as u32;
        call!(self.capture_begin(stream.as_ptr(), mode), "cuStreamBeginCapture")
    }

    unsafe fn end_capture(&self, stream: StreamHandle) -> ApiResult<GraphHandle> {
        let mut graph: Handle = std::ptr::null_mut();
        call!(self.capture_end(stream.as_ptr(), &mut graph), "cuStreamEndCapture")?;
        Ok(GraphHandle::from_ptr(graph))
    }

    unsafe fn nodes(&self, graph: GraphHandle) -> ApiResult<Vec<ApiNode>> {
        let mut count = 0usize;
        call!(self.graph_nodes(graph.as_ptr(), std::ptr::null_mut(), &mut count), "cuGraphGetNodes")?;
        let mut nodes: Vec<Handle> = vec![std::ptr::null_mut(); count];
        if count > 0 {
            call!(self.graph_nodes(graph.as_ptr(), nodes.as_mut_ptr(), &mut count), "cuGraphGetNodes")?;
        }
        let mut out = Vec::with_capacity(count);
        for node in nodes.into_iter().take(count) {
            let mut kind = 0;
            call!(self.graph_node_type(node, &mut kind), "cuGraphNodeGetType")?;
            let kinds = [
                (CUgraphNodeType_enum::CU_GRAPH_NODE_TYPE_KERNEL, ApiNode::Kernel(None)),
                (CUgraphNodeType_enum::CU_GRAPH_NODE_TYPE_MEMCPY, ApiNode::Copy),
                (CUgraphNodeType_enum::CU_GRAPH_NODE_TYPE_MEMSET, ApiNode::Fill),
            ];
            let kind = kinds.into_iter().find(|(known, _)| *known as u32 == kind).map_or(ApiNode::Other, |(_, n)| n);
            out.push(if kind == ApiNode::Kernel(None) { ApiNode::Kernel(self.node_function(node)?) } else { kind });
        }
        Ok(out)
    }

    unsafe fn destroy_graph(&self, graph: GraphHandle) -> ApiResult<()> {
        call!(self.graph_destroy(graph.as_ptr()), "cuGraphDestroy")
    }

    unsafe fn instantiate(&self, graph: GraphHandle) -> ApiResult<ExecHandle> {
        let mut exec: Handle = std::ptr::null_mut();
        call!(self.graph_instantiate(&mut exec, graph.as_ptr(), 0), "cuGraphInstantiate")?;
        Ok(ExecHandle::from_ptr(exec))
    }

    unsafe fn upload_exec(&self, exec: ExecHandle, stream: StreamHandle) -> ApiResult<()> {
        call!(self.graph_upload(exec.as_ptr(), stream.as_ptr()), "cuGraphUpload")
    }

    unsafe fn launch_graph(&self, exec: ExecHandle, stream: StreamHandle) -> ApiResult<()> {
        call!(self.graph_launch(exec.as_ptr(), stream.as_ptr()), "cuGraphLaunch")
    }

    unsafe fn destroy_exec(&self, exec: ExecHandle) -> ApiResult<()> {
        call!(self.exec_destroy(exec.as_ptr()), "cuGraphExecDestroy")
    }
}
