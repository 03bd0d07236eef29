//! AMD GPUs: the calls of [`Api`] named in libamdhip64. Everything that is more than a call is in [`gpu`](super::gpu).

pub mod defects;
mod gate;

use super::gpu::api::*;
use super::gpu::guards::SharedApi;
use super::platform::PlatformReport;
use crate::driver::KernelEntry;
use crate::error::{Error, Result};
use hip_runtime_sys as sys;
use object::elf;
use std::ffi::{CStr, c_int};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Bytes of an ELF file's header.
const SMALLEST_ELF: usize = 64;

/// One device.
#[derive(Debug)]
struct HipDevice {
    hip: Arc<sys::Hip>,
    info: DeviceInfo,
    device: c_int,
}

/// The library as found, once for the process.
fn library() -> std::result::Result<&'static Arc<sys::Hip>, &'static sys::Error> {
    static FOUND: OnceLock<sys::Result<Arc<sys::Hip>>> = OnceLock::new();
    FOUND.get_or_init(|| sys::Hip::open().map(Arc::new)).as_ref()
}

fn unsupported(error: impl std::fmt::Display) -> Error {
    Error::Unsupported(error.to_string())
}

/// Number of devices.
///
/// # Errors
/// If there is no library, naming those that were looked for, or it lacks a call, naming the call.
pub fn device_count() -> Result<usize> {
    count(library().map_err(unsupported)?)
}

fn count(hip: &sys::Hip) -> Result<usize> {
    let missing = hip.missing();
    if !missing.is_empty() {
        return Err(unsupported(format!("the HIP runtime {} lacks {}", hip.library(), missing.join(", "))));
    }
    hip.device_count().map_err(|e| unsupported(format!("the HIP runtime {} cannot start: {e}", hip.library())))
}

/// Opens device `index` of the installed runtime.
///
/// # Errors
/// As [`device_count`], or if there is no such device.
pub fn open(index: usize) -> Result<SharedApi> {
    open_on(library().map_err(unsupported)?, index)
}

/// Opens device `index` of the runtime in the file `library`, whatever is installed.
///
/// # Errors
/// As [`open`].
pub fn open_library(library: &Path, index: usize) -> Result<SharedApi> {
    open_on(&Arc::new(sys::Hip::open_path(library).map_err(unsupported)?), index)
}

fn open_on(hip: &Arc<sys::Hip>, index: usize) -> Result<SharedApi> {
    let count = count(hip)?;
    if index >= count {
        return Err(unsupported(format!("there is no device hip:{index}, {} has {count}", hip.library())));
    }
    let device = c_int::try_from(index).map_err(unsupported)?;
    let info =
        describe(hip, index, device).map_err(|e| api_error(e).during(format_args!("cannot open hip:{index}")))?;
    Ok(Arc::new(HipDevice { hip: Arc::clone(hip), info, device }))
}

fn describe(hip: &sys::Hip, index: usize, device: c_int) -> sys::Result<DeviceInfo> {
    // SAFETY: takes a number.
    unsafe { hip.hipSetDevice(device) }?;
    let arch = hip.arch_name(device)?;
    let (_, memory) = hip.memory_info()?;
    let units = hip.device_attribute(sys::hipDeviceAttributeMultiprocessorCount, device)?;
    let (driver_version, _) = hip.versions()?;
    Ok(DeviceInfo {
        index,
        name: hip.device_name(device)?,
        family: "amdgcn",
        full_arch: arch.to_string(),
        arch: arch.processor,
        memory: memory as u64,
        units: u32::try_from(units).unwrap_or(0),
        driver_version,
    })
}

/// What is found on this machine.
pub fn report() -> PlatformReport {
    let mut report = PlatformReport {
        library: Err(String::new()),
        version: String::new(),
        missing: Vec::new(),
        devices: Err("no HIP runtime".into()),
    };
    let hip = match library() {
        Ok(hip) => hip,
        Err(e) => {
            report.library = Err(e.to_string());
            return report;
        }
    };
    report.library = Ok(hip.library().to_owned());
    report.missing = hip.missing().into_iter().map(str::to_owned).collect();
    if let Ok((runtime, _)) = hip.versions() {
        let (major, minor, build) = sys::version_parts(runtime);
        report.version = format!("{major}.{minor}.{build}");
    }
    report.devices = count(hip).map_err(|e| e.to_string()).and_then(|count| {
        let describe = |index| describe(hip, index, index as c_int).map_err(|e| e.to_string());
        (0..count).map(describe).collect()
    });
    report
}

/// The version of the installed runtime, by which [`defects`] are listed.
pub fn version() -> Option<defects::Version> {
    let (runtime, _) = library().ok()?.versions().ok()?;
    Some(sys::version_parts(runtime))
}

fn api_error(error: sys::Error) -> ApiError {
    match error {
        sys::Error::Call { call, code, name, text } => {
            ApiError { call, code, name, text, out_of_memory: code == sys::hipErrorOutOfMemory }
        }
        sys::Error::MissingSymbol { symbol, .. } => {
            let (name, text) = ("missing symbol".into(), error.to_string());
            ApiError { call: symbol, code: -1, name, text, out_of_memory: false }
        }
        other => {
            let (name, text) = ("no device information".into(), other.to_string());
            ApiError { call: "hipGetDeviceProperties", code: -1, name, text, out_of_memory: false }
        }
    }
}

/// Makes a call of the library: every unsafe call of this file that is not documented by itself goes through here, with the
/// promises that callers of [`Api`] make.
macro_rules! call {
    ($self:ident . $function:ident ($($arg:expr),* $(,)?)) => {
        // SAFETY: out-pointers point to locals of the right type; handles and ranges are live by the promise of `Api`'s callers.
        unsafe { $self.hip.$function($($arg),*) }.map_err(api_error)
    };
}

/// The same, for calls that may disturb captures of other threads: it waits until there are none.
macro_rules! quiet_call {
    ($self:ident . $function:ident ($($arg:expr),* $(,)?)) => {{
        let _call = gate::Call::enter();
        call!($self.$function($($arg),*))
    }};
}

impl Api for HipDevice {
    fn name(&self) -> &'static str {
        "hip"
    }

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn make_current(&self) -> ApiResult<()> {
        call!(self.hipSetDevice(self.device))
    }

    fn synchronize_device(&self) -> ApiResult<()> {
        quiet_call!(self.hipDeviceSynchronize())
    }

    fn memory_info(&self) -> ApiResult<(u64, u64)> {
        let (free, total) = self.hip.memory_info().map_err(api_error)?;
        Ok((free as u64, total as u64))
    }

    fn allocate(&self, bytes: usize) -> ApiResult<DevicePtr> {
        let mut pointer = std::ptr::null_mut();
        quiet_call!(self.hipMalloc(&mut pointer, bytes))?;
        Ok(pointer as u64)
    }

    unsafe fn free(&self, pointer: DevicePtr) -> ApiResult<()> {
        quiet_call!(self.hipFree(pointer as *mut _))
    }

    /// Uncached: the caches of one device are not seen by the others while a kernel runs.
    fn allocate_exported(&self, bytes: usize) -> ApiResult<DevicePtr> {
        let mut pointer = std::ptr::null_mut();
        quiet_call!(self.hipExtMallocWithFlags(&mut pointer, bytes, sys::hipDeviceMallocUncached))?;
        Ok(pointer as u64)
    }

    unsafe fn export(&self, pointer: DevicePtr) -> ApiResult<IpcHandle> {
        let mut handle = sys::hipIpcMemHandle_t::default();
        quiet_call!(self.hipIpcGetMemHandle(&mut handle, pointer as *mut _))?;
        Ok(handle.reserved)
    }

    unsafe fn import(&self, handle: &IpcHandle) -> ApiResult<DevicePtr> {
        let mut pointer = std::ptr::null_mut();
        let handle = sys::hipIpcMemHandle_t { reserved: *handle };
        quiet_call!(self.hipIpcOpenMemHandle(&mut pointer, handle, sys::hipIpcMemLazyEnablePeerAccess))?;
        Ok(pointer as u64)
    }

    unsafe fn close_import(&self, pointer: DevicePtr) -> ApiResult<()> {
        quiet_call!(self.hipIpcCloseMemHandle(pointer as *mut _))
    }

    fn allocate_mapped(&self, bytes: usize) -> ApiResult<*mut u8> {
        let mut pointer = std::ptr::null_mut();
        let flags = sys::hipHostMallocPortable | sys::hipHostMallocMapped | sys::hipHostMallocCoherent;
        quiet_call!(self.hipHostMalloc(&mut pointer, bytes, flags))?;
        Ok(pointer.cast())
    }

    unsafe fn address_of_mapped(&self, pointer: *mut u8) -> ApiResult<DevicePtr> {
        let mut address = std::ptr::null_mut();
        call!(self.hipHostGetDevicePointer(&mut address, pointer.cast(), 0))?;
        Ok(address as u64)
    }

    fn allocate_pinned(&self, bytes: usize) -> ApiResult<*mut u8> {
        let mut pointer = std::ptr::null_mut();
        quiet_call!(self.hipHostMalloc(&mut pointer, bytes, sys::hipHostMallocDefault))?;
        Ok(pointer.cast())
    }

    unsafe fn free_pinned(&self, pointer: *mut u8) -> ApiResult<()> {
        quiet_call!(self.hipHostFree(pointer.cast()))
    }

    unsafe fn copy_to_device(&self, to: DevicePtr, from: *const u8, n: usize, stream: StreamHandle) -> ApiResult<()> {
        call!(self.hipMemcpyAsync(to as *mut _, from.cast(), n, sys::hipMemcpyHostToDevice, stream.as_ptr()))
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: DevicePtr, n: usize, stream: StreamHandle) -> ApiResult<()> {
        call!(self.hipMemcpyAsync(to.cast(), from as *const _, n, sys::hipMemcpyDeviceToHost, stream.as_ptr()))
    }

    unsafe fn copy_on_device(&self, to: DevicePtr, from: DevicePtr, n: usize, stream: StreamHandle) -> ApiResult<()> {
        call!(self.hipMemcpyAsync(to as *mut _, from as *const _, n, sys::hipMemcpyDeviceToDevice, stream.as_ptr()))
    }

    unsafe fn fill(&self, to: DevicePtr, value: u8, n: usize, stream: StreamHandle) -> ApiResult<()> {
        call!(self.hipMemsetAsync(to as *mut _, c_int::from(value), n, stream.as_ptr()))
    }

    fn create_stream(&self) -> ApiResult<StreamHandle> {
        let mut stream = std::ptr::null_mut();
        call!(self.hipStreamCreateWithFlags(&mut stream, sys::hipStreamNonBlocking))?;
        Ok(StreamHandle::from_ptr(stream))
    }

    unsafe fn destroy_stream(&self, stream: StreamHandle) -> ApiResult<()> {
        quiet_call!(self.hipStreamDestroy(stream.as_ptr()))
    }

    unsafe fn synchronize_stream(&self, stream: StreamHandle) -> ApiResult<()> {
        quiet_call!(self.hipStreamSynchronize(stream.as_ptr()))
    }

    unsafe fn query_stream(&self, stream: StreamHandle) -> ApiResult<bool> {
        match quiet_call!(self.hipStreamQuery(stream.as_ptr())) {
            Ok(()) => Ok(true),
            Err(e) if e.code == sys::hipErrorNotReady => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn create_event(&self, timing: bool) -> ApiResult<EventHandle> {
        let mut event = std::ptr::null_mut();
        let flags = if timing { sys::hipEventDefault } else { sys::hipEventDisableTiming };
        call!(self.hipEventCreateWithFlags(&mut event, flags))?;
        Ok(EventHandle::from_ptr(event))
    }

    unsafe fn destroy_event(&self, event: EventHandle) -> ApiResult<()> {
        call!(self.hipEventDestroy(event.as_ptr()))
    }

    unsafe fn record_event(&self, event: EventHandle, stream: StreamHandle) -> ApiResult<()> {
        call!(self.hipEventRecord(event.as_ptr(), stream.as_ptr()))
    }

    unsafe fn synchronize_event(&self, event: EventHandle) -> ApiResult<()> {
        quiet_call!(self.hipEventSynchronize(event.as_ptr()))
    }

    unsafe fn elapsed_ms(&self, from: EventHandle, to: EventHandle) -> ApiResult<f32> {
        let mut ms = 0.0;
        call!(self.hipEventElapsedTime(&mut ms, from.as_ptr(), to.as_ptr()))?;
        Ok(ms)
    }

    /// What is no ELF file the library refuses by itself.
    fn check_image(&self, image: &[u8], kernels: &[KernelEntry<'_>]) -> std::result::Result<(), String> {
        if image.len() >= SMALLEST_ELF && !image.starts_with(&elf::ELFMAG) {
            return Ok(());
        }
        weldment_artifact::code_object::check(image, kernels.iter().map(|kernel| kernel.name))
    }

    /// A code object is machine code: there is nothing to compile or to cache.
    fn load_module(&self, image: &[u8], _cache: Option<&Path>) -> ApiResult<(ModuleHandle, LoadReport)> {
        let mut module = std::ptr::null_mut();
        quiet_call!(self.hipModuleLoadData(&mut module, image.as_ptr().cast()))?;
        Ok((ModuleHandle::from_ptr(module), LoadReport::default()))
    }

    unsafe fn unload_module(&self, module: ModuleHandle) -> ApiResult<()> {
        quiet_call!(self.hipModuleUnload(module.as_ptr()))
    }

    unsafe fn function(&self, module: ModuleHandle, name: &CStr) -> ApiResult<FunctionHandle> {
        let mut function = std::ptr::null_mut();
        call!(self.hipModuleGetFunction(&mut function, module.as_ptr(), name.as_ptr()))?;
        Ok(FunctionHandle::from_ptr(function))
    }

    unsafe fn function_info(&self, function: FunctionHandle) -> ApiResult<FunctionInfo> {
        let get = |attribute| -> ApiResult<u32> {
            let mut value = 0;
            call!(self.hipFuncGetAttribute(&mut value, attribute, function.as_ptr()))?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        Ok(FunctionInfo {
            registers: get(sys::HIP_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: get(sys::HIP_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            shared_bytes: get(sys::HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            max_threads: get(sys::HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        })
    }

    /// HIP has no programmatic dependent launch: `overlap` changes nothing.
    unsafe fn launch(&self, launch: ApiLaunch<'_>) -> ApiResult<()> {
        let ([x, y, z], threads) = (launch.grid, launch.threads);
        let (function, stream, none) = (launch.function.as_ptr(), launch.stream.as_ptr(), std::ptr::null_mut());
        call!(self.hipModuleLaunchKernel(function, x, y, z, threads, 1, 1, 0, stream, launch.params.as_mut_ptr(), none))
    }

    unsafe fn begin_capture(&self, stream: StreamHandle) -> ApiResult<()> {
        gate::begin();
        let result = call!(self.hipStreamBeginCapture(stream.as_ptr(), sys::hipStreamCaptureModeThreadLocal));
        if result.is_err() {
            gate::end();
        }
        result
    }

    unsafe fn end_capture(&self, stream: StreamHandle) -> ApiResult<GraphHandle> {
        let mut graph = std::ptr::null_mut();
        let result = call!(self.hipStreamEndCapture(stream.as_ptr(), &mut graph));
        gate::end();
        result?;
        Ok(GraphHandle::from_ptr(graph))
    }

    unsafe fn nodes(&self, graph: GraphHandle) -> ApiResult<Vec<ApiNode>> {
        let mut count = 0usize;
        call!(self.hipGraphGetNodes(graph.as_ptr(), std::ptr::null_mut(), &mut count))?;
        let mut nodes = vec![std::ptr::null_mut(); count];
        if count > 0 {
            call!(self.hipGraphGetNodes(graph.as_ptr(), nodes.as_mut_ptr(), &mut count))?;
        }
        let named = self.hip.has("hipGraphKernelNodeGetParams");
        let mut out = Vec::with_capacity(count);
        for node in nodes.into_iter().take(count) {
            let mut kind = 0;
            call!(self.hipGraphNodeGetType(node, &mut kind))?;
            out.push(match kind {
                sys::hipGraphNodeTypeKernel if named => {
                    let mut params = sys::hipKernelNodeParams::default();
                    call!(self.hipGraphKernelNodeGetParams(node, &mut params))?;
                    ApiNode::Kernel(Some(FunctionHandle::from_ptr(params.func)))
                }
                sys::hipGraphNodeTypeKernel => ApiNode::Kernel(None),
                sys::hipGraphNodeTypeMemcpy => ApiNode::Copy,
                sys::hipGraphNodeTypeMemset => ApiNode::Fill,
                _ => ApiNode::Other,
            });
        }
        Ok(out)
    }

    unsafe fn destroy_graph(&self, graph: GraphHandle) -> ApiResult<()> {
        call!(self.hipGraphDestroy(graph.as_ptr()))
    }

    unsafe fn instantiate(&self, graph: GraphHandle) -> ApiResult<ExecHandle> {
        // SAFETY: the graph is live by the promise of `Api`'s callers.
        let exec = unsafe { self.hip.graph_instantiate(graph.as_ptr()) }.map_err(api_error)?;
        Ok(ExecHandle::from_ptr(exec))
    }

    unsafe fn upload_exec(&self, exec: ExecHandle, stream: StreamHandle) -> ApiResult<()> {
        if !self.hip.has("hipGraphUpload") {
            return Ok(());
        }
        call!(self.hipGraphUpload(exec.as_ptr(), stream.as_ptr()))
    }

    unsafe fn launch_graph(&self, exec: ExecHandle, stream: StreamHandle) -> ApiResult<()> {
        call!(self.hipGraphLaunch(exec.as_ptr(), stream.as_ptr()))
    }

    unsafe fn destroy_exec(&self, exec: ExecHandle) -> ApiResult<()> {
        call!(self.hipGraphExecDestroy(exec.as_ptr()))
    }
}
