//! The table of calls: each declared once, with the type it has in C.
#![allow(non_snake_case, reason = "the names of hip_runtime_api.h, to be searched for")]

use crate::types::*;
use crate::{Hip, Result};
use libloading::Library;
use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};

/// `hipGetErrorName` and `hipGetErrorString`.
pub(crate) type TextOf = unsafe extern "C" fn(hipError_t) -> *const c_char;

fn find<T: Copy>(library: &Library, name: &str) -> Option<T> {
    // SAFETY: T is the type that hip_runtime_api.h gives this name; the callers below pair the two.
    unsafe { library.get::<T>(name.as_bytes()) }.ok().map(|symbol| *symbol)
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*);)*) => {
        /// What was found in a library.
        #[derive(Clone, Copy)]
        pub(crate) struct Table {
            $($name: Option<unsafe extern "C" fn($($ty),*) -> hipError_t>,)*
            pub(crate) error_name: Option<TextOf>,
            pub(crate) error_string: Option<TextOf>,
            pub(crate) last_error: Option<unsafe extern "C" fn() -> hipError_t>,
        }

        /// Every call that this crate looks for.
        pub const SYMBOLS: &[&str] =
            &[$(stringify!($name),)* "hipGetErrorName", "hipGetErrorString", "hipGetLastError"];

        impl Table {
            pub(crate) fn load(library: &Library) -> Table {
                Table {
                    $($name: find(library, stringify!($name)),)*
                    error_name: find(library, "hipGetErrorName"),
                    error_string: find(library, "hipGetErrorString"),
                    last_error: find(library, "hipGetLastError"),
                }
            }

            pub(crate) fn missing(&self) -> Vec<&'static str> {
                let mut missing = Vec::new();
                $(if self.$name.is_none() { missing.push(stringify!($name)); })*
                if self.error_name.is_none() { missing.push("hipGetErrorName"); }
                if self.error_string.is_none() { missing.push("hipGetErrorString"); }
                if self.last_error.is_none() { missing.push("hipGetLastError"); }
                missing
            }
        }

        /// The calls, as hip_runtime_api.h declares them.
        impl Hip {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// HIP's own, or the library lacks the call.
                ///
                /// # Safety
                /// Pointers and handles are what HIP's documentation of the call asks for.
                #[allow(clippy::too_many_arguments, reason = "as many as the call has in C")]
                pub unsafe fn $name(&self, $($arg: $ty),*) -> Result<()> {
                    let call = self.table.$name.ok_or_else(|| self.absent(stringify!($name)))?;
                    // SAFETY: the symbol has this type in C; the caller answers for the arguments.
                    self.check(stringify!($name), unsafe { call($($arg),*) })
                }
            )*
        }
    };
}

calls! {
    /// Initialises the runtime; `flags` is 0.
    hipInit(flags: c_uint);
    /// The version of the runtime.
    hipRuntimeGetVersion(version: *mut c_int);
    /// The version of the driver.
    hipDriverGetVersion(version: *mut c_int);
    /// Devices that this process sees.
    hipGetDeviceCount(count: *mut c_int);
    /// Makes `device` the current one of this thread.
    hipSetDevice(device: c_int);
    /// One number about a device.
    hipDeviceGetAttribute(value: *mut c_int, attribute: hipDeviceAttribute_t, device: c_int);
    /// Fills a `hipDeviceProp_t` as ROCm 5 had it (792 bytes).
    hipGetDeviceProperties(properties: *mut c_void, device: c_int);
    /// Fills a `hipDeviceProp_t` as ROCm 6 and later have it (1,472 bytes).
    hipGetDevicePropertiesR0600(properties: *mut c_void, device: c_int);
    /// The product name, NUL-terminated, cut at `bytes`.
    hipDeviceGetName(name: *mut c_char, bytes: c_int, device: c_int);
    /// Waits for all work of the current device.
    hipDeviceSynchronize();
    /// `(free, total)` bytes of the current device.
    hipMemGetInfo(free: *mut usize, total: *mut usize);

    /// Device memory, not initialised.
    hipMalloc(address: *mut *mut c_void, bytes: usize);
    /// Device memory with a caching policy (`hipDeviceMallocUncached`, ...).
    hipExtMallocWithFlags(address: *mut *mut c_void, bytes: usize, flags: c_uint);
    /// Frees device memory; waits for work that uses it.
    hipFree(address: *mut c_void);
    /// Pinned host memory that devices can address.
    hipHostMalloc(address: *mut *mut c_void, bytes: usize, flags: c_uint);
    /// The address at which the current device sees mapped pinned memory; `flags` is 0.
    hipHostGetDevicePointer(device: *mut *mut c_void, host: *mut c_void, flags: c_uint);
    /// A handle by which other processes map an allocation, of which `address` is the start.
    hipIpcGetMemHandle(handle: *mut hipIpcMemHandle_t, address: *mut c_void);
    /// Maps an allocation of another process.
    hipIpcOpenMemHandle(address: *mut *mut c_void, handle: hipIpcMemHandle_t, flags: c_uint);
    /// Unmaps it. Its owner may free it once all who mapped it have done so.
    hipIpcCloseMemHandle(address: *mut c_void);
    /// Frees pinned host memory.
    hipHostFree(address: *mut c_void);
    /// Copies in stream order.
    hipMemcpyAsync(to: *mut c_void, from: *const c_void, bytes: usize, kind: hipMemcpyKind, stream: hipStream_t);
    /// Copies from the host in stream order.
    hipMemcpyHtoDAsync(to: hipDeviceptr_t, from: *mut c_void, bytes: usize, stream: hipStream_t);
    /// Copies to the host in stream order.
    hipMemcpyDtoHAsync(to: *mut c_void, from: hipDeviceptr_t, bytes: usize, stream: hipStream_t);
    /// Fills with a byte in stream order.
    hipMemsetAsync(to: *mut c_void, value: c_int, bytes: usize, stream: hipStream_t);

    /// A new stream.
    hipStreamCreateWithFlags(stream: *mut hipStream_t, flags: c_uint);
    /// Destroys a stream; work on it is done first.
    hipStreamDestroy(stream: hipStream_t);
    /// Waits for a stream.
    hipStreamSynchronize(stream: hipStream_t);
    /// `hipErrorNotReady` while work is under way.
    hipStreamQuery(stream: hipStream_t);
    /// Makes a stream wait for an event; `flags` is 0.
    hipStreamWaitEvent(stream: hipStream_t, event: hipEvent_t, flags: c_uint);

    /// A new event.
    hipEventCreateWithFlags(event: *mut hipEvent_t, flags: c_uint);
    /// Destroys an event.
    hipEventDestroy(event: hipEvent_t);
    /// Marks the current end of a stream.
    hipEventRecord(event: hipEvent_t, stream: hipStream_t);
    /// Waits for the last record.
    hipEventSynchronize(event: hipEvent_t);
    /// `hipErrorNotReady` while the last record is ahead.
    hipEventQuery(event: hipEvent_t);
    /// Milliseconds between two records.
    hipEventElapsedTime(milliseconds: *mut f32, from: hipEvent_t, to: hipEvent_t);

    /// Loads a code object from memory.
    hipModuleLoadData(module: *mut hipModule_t, image: *const c_void);
    /// Unloads a code object.
    hipModuleUnload(module: hipModule_t);
    /// Finds a kernel by its NUL-terminated name.
    hipModuleGetFunction(function: *mut hipFunction_t, module: hipModule_t, name: *const c_char);
    /// One number about a kernel.
    hipFuncGetAttribute(value: *mut c_int, attribute: hipFunction_attribute, function: hipFunction_t);
    /// Launches blocks of threads; `params` points to a pointer to each argument, which are copied before the call returns.
    hipModuleLaunchKernel(function: hipFunction_t, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint,
        block_y: c_uint, block_z: c_uint, shared_bytes: c_uint, stream: hipStream_t, params: *mut *mut c_void,
        extra: *mut *mut c_void);

    /// Starts recording a stream.
    hipStreamBeginCapture(stream: hipStream_t, mode: hipStreamCaptureMode);
    /// Ends recording a stream.
    hipStreamEndCapture(stream: hipStream_t, graph: *mut hipGraph_t);
    /// Whether a stream is being recorded.
    hipStreamIsCapturing(stream: hipStream_t, status: *mut hipStreamCaptureStatus);
    /// Makes a graph ready to launch.
    hipGraphInstantiate(exec: *mut hipGraphExec_t, graph: hipGraph_t, error_node: *mut hipGraphNode_t, log: *mut c_char,
        log_bytes: usize);
    /// Makes a graph ready to launch; `flags` is 0.
    hipGraphInstantiateWithFlags(exec: *mut hipGraphExec_t, graph: hipGraph_t, flags: c_ulonglong);
    /// Brings what the first launch needs to the device (ROCm 5.3 and later).
    hipGraphUpload(exec: hipGraphExec_t, stream: hipStream_t);
    /// Launches a graph in stream order.
    hipGraphLaunch(exec: hipGraphExec_t, stream: hipStream_t);
    /// Destroys what was made ready.
    hipGraphExecDestroy(exec: hipGraphExec_t);
    /// Destroys a graph.
    hipGraphDestroy(graph: hipGraph_t);
    /// The nodes of a graph; with null `nodes`, their count.
    hipGraphGetNodes(graph: hipGraph_t, nodes: *mut hipGraphNode_t, count: *mut usize);
    /// What a node does.
    hipGraphNodeGetType(node: hipGraphNode_t, kind: *mut hipGraphNodeType);
    /// What a kernel node launches.
    hipGraphKernelNodeGetParams(node: hipGraphNode_t, params: *mut hipKernelNodeParams);
}
