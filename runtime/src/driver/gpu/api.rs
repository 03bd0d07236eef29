//! The calls that the GPU driver makes, one to one with the functions of libcuda and libamdhip64. Handles are plain numbers and
//! nothing here owns anything: lifetimes, order of destruction and error texts live once, in the modules beside this one.

use crate::DType;
use crate::driver::KernelEntry;
use crate::error::Error;
use std::ffi::{CStr, c_void};
use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub usize);

        impl $name {
            /// The handle as the library's pointer type.
            pub fn as_ptr<T>(self) -> *mut T {
                self.0 as *mut T
            }

            /// A handle from the library's pointer type.
            pub fn from_ptr<T>(pointer: *mut T) -> Self {
                $name(pointer as usize)
            }
        }
    )*};
}

handles! {
    /// `CUstream`, `hipStream_t`.
    StreamHandle;
    /// `CUevent`, `hipEvent_t`.
    EventHandle;
    /// `CUmodule`, `hipModule_t`.
    ModuleHandle;
    /// `CUfunction`, `hipFunction_t`.
    FunctionHandle;
    /// `CUgraph`, `hipGraph_t`.
    GraphHandle;
    /// `CUgraphExec`, `hipGraphExec_t`.
    ExecHandle;
}

/// An address in device memory.
pub type DevicePtr = u64;

/// A library call that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {name} ({code}): {text}")]
pub struct ApiError {
    /// The library's function, `cuMemAlloc_v2`.
    pub call: &'static str,
    /// The library's code.
    pub code: i32,
    /// The library's name of the code, `CUDA_ERROR_OUT_OF_MEMORY`.
    pub name: String,
    /// The library's text, and what its log said where it has one.
    pub text: String,
    /// True if memory ran out.
    pub out_of_memory: bool,
}

/// The result of a library call.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// The error of the runtime, saying what was being done.
    pub fn during(self, what: impl std::fmt::Display) -> Error {
        Error::Driver(format!("{what}: {self}"))
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Index among the platform's devices.
    pub index: usize,
    /// `NVIDIA H200`.
    pub name: String,
    /// As in a manifest's target: `nvptx64`, `amdgcn`.
    pub family: &'static str,
    /// Generation without feature suffixes: `sm_90`, `gfx942`.
    pub arch: String,
    /// Everything the library says about the generation: `gfx942:sramecc+:xnack-`; as `arch` where there is no more.
    pub full_arch: String,
    /// Bytes of device memory.
    pub memory: u64,
    /// Multiprocessors or compute units.
    pub units: u32,
    /// Version of the driver, as the library counts it.
    pub driver_version: i32,
}

/// Bytes of a handle by which processes share device memory: `CUipcMemHandle`, `hipIpcMemHandle_t`.
pub const IPC_HANDLE_BYTES: usize = 64;
/// Such a handle.
pub type IpcHandle = [u8; IPC_HANDLE_BYTES];

/// A launch of a function.
#[derive(Debug)]
pub struct ApiLaunch<'a> {
    /// The function.
    pub function: FunctionHandle,
    /// Blocks, x first.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// For each kernel parameter the address of its value. Each parameter has 8 bytes.
    pub params: &'a mut [*mut c_void],
    /// Where it runs.
    pub stream: StreamHandle,
    /// May start before the launch before it in the stream has ended, which the kernel waits for itself (programmatic dependent
    /// launch). A platform that knows no such thing ignores it.
    pub overlap: bool,
}

/// `out [rows, n] = x [rows, k] w [n, k]^T (+ addend)`, row-major, strides in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmCall {
    /// Rows of x and of the result.
    pub rows: u64,
    /// Columns of the result.
    pub n: u64,
    /// Length of the sums.
    pub k: u64,
    /// Of every matrix.
    pub dtype: DType,
    /// Left operand.
    pub x: DevicePtr,
    /// Its row stride.
    pub x_stride: u64,
    /// Weights, rows at a stride of k.
    pub w: DevicePtr,
    /// What is added and its row stride.
    pub addend: Option<(DevicePtr, u64)>,
    /// Result.
    pub out: DevicePtr,
    /// Its row stride.
    pub out_stride: u64,
}

/// What a function needs, as the library says after loading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionInfo {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of scratch (local memory) of a thread.
    pub local_bytes: u32,
    /// Bytes of static shared memory of a block.
    pub shared_bytes: u32,
    /// Threads that a block may have at most.
    pub max_threads: u32,
}

/// Nodes of a captured graph by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCounts {
    /// Kernel launches.
    pub kernels: usize,
    /// Copies.
    pub copies: usize,
    /// Fills.
    pub fills: usize,
    /// Everything else.
    pub others: usize,
}

/// A node of a captured graph, as the library describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiNode {
    /// A kernel; its function where the library says.
    Kernel(Option<FunctionHandle>),
    /// A copy of any direction.
    Copy,
    /// A fill.
    Fill,
    /// Anything else.
    Other,
}

/// How a module was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Time that the library's compiler took; `None` if it was not needed.
    pub jit: Option<Duration>,
    /// The compiler's result came from the cache.
    pub cached: bool,
}

/// One device of a platform. All calls may come from any thread; [`Api::make_current`] was called on that thread before.
///
/// # Safety
/// Callers of the unsafe methods promise that handles come from the same object and are not yet destroyed, that device ranges were
/// allocated (or are otherwise known to the device), and that host ranges stay valid until the stream has passed the copy.
pub trait Api: Send + Sync + Debug {
    /// Short name of the platform: `cuda`, `hip`.
    fn name(&self) -> &'static str;

    /// The device.
    fn info(&self) -> &DeviceInfo;

    /// Makes the device current on the calling thread.
    ///
    /// # Errors
    /// The library's.
    fn make_current(&self) -> ApiResult<()>;

    /// Waits for everything on the device.
    ///
    /// # Errors
    /// The library's, that of work that failed before included.
    fn synchronize_device(&self) -> ApiResult<()>;

    /// Free and total bytes of device memory.
    ///
    /// # Errors
    /// The library's.
    fn memory_info(&self) -> ApiResult<(u64, u64)>;

    /// Allocates device memory, not zeroed; `bytes` is not 0.
    ///
    /// # Errors
    /// The library's.
    fn allocate(&self, bytes: usize) -> ApiResult<DevicePtr>;

    /// Frees device memory.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn free(&self, pointer: DevicePtr) -> ApiResult<()>;

    /// Allocates device memory, not zeroed, that [`Api::export`] takes: on platforms whose caches other devices do not see,
    /// memory that is not cached. `bytes` is a multiple of 4096; freed by [`Api::free`].
    ///
    /// # Errors
    /// The library's.
    fn allocate_exported(&self, bytes: usize) -> ApiResult<DevicePtr>;

    /// A handle by which other processes map the memory at `pointer`.
    ///
    /// # Errors
    /// The library's, also where it has no such function.
    ///
    /// # Safety
    /// See the trait; `pointer` is from [`Api::allocate_exported`], and not freed before all who imported it have closed it.
    unsafe fn export(&self, pointer: DevicePtr) -> ApiResult<IpcHandle>;

    /// Maps memory of another process, of this or another device.
    ///
    /// # Errors
    /// The library's, also where it has no such function or the devices cannot address each other.
    ///
    /// # Safety
    /// See the trait; the handle is from [`Api::export`] of a live process.
    unsafe fn import(&self, handle: &IpcHandle) -> ApiResult<DevicePtr>;

    /// Unmaps memory of another process.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait; `pointer` is from [`Api::import`].
    unsafe fn close_import(&self, pointer: DevicePtr) -> ApiResult<()>;

    /// Allocates page-locked host memory that kernels address, not zeroed; `bytes` is not 0. Freed by [`Api::free_pinned`].
    ///
    /// # Errors
    /// The library's.
    fn allocate_mapped(&self, bytes: usize) -> ApiResult<*mut u8>;

    /// The address at which kernels see memory from [`Api::allocate_mapped`].
    ///
    /// # Errors
    /// The library's, also where it has no such function.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn address_of_mapped(&self, pointer: *mut u8) -> ApiResult<DevicePtr>;

    /// Allocates page-locked host memory, not zeroed; `bytes` is not 0.
    ///
    /// # Errors
    /// The library's.
    fn allocate_pinned(&self, bytes: usize) -> ApiResult<*mut u8>;

    /// Frees page-locked host memory.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn free_pinned(&self, pointer: *mut u8) -> ApiResult<()>;

    /// Enqueues a copy to the device.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn copy_to_device(
        &self,
        to: DevicePtr,
        from: *const u8,
        bytes: usize,
        stream: StreamHandle,
    ) -> ApiResult<()>;

    /// Enqueues a copy to the host.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn copy_to_host(&self, to: *mut u8, from: DevicePtr, bytes: usize, stream: StreamHandle) -> ApiResult<()>;

    /// Enqueues a copy within the device.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn copy_on_device(
        &self,
        to: DevicePtr,
        from: DevicePtr,
        bytes: usize,
        stream: StreamHandle,
    ) -> ApiResult<()>;

    /// Enqueues filling device memory with a byte.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn fill(&self, to: DevicePtr, value: u8, bytes: usize, stream: StreamHandle) -> ApiResult<()>;

    /// A new stream that does not wait for the default stream.
    ///
    /// # Errors
    /// The library's.
    fn create_stream(&self) -> ApiResult<StreamHandle>;

    /// Destroys a stream.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn destroy_stream(&self, stream: StreamHandle) -> ApiResult<()>;

    /// Waits until everything in the stream is done.
    ///
    /// # Errors
    /// The library's, that of work that failed before included.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn synchronize_stream(&self, stream: StreamHandle) -> ApiResult<()>;

    /// True if everything in the stream is done.
    ///
    /// # Errors
    /// The library's, that of work that failed before included.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn query_stream(&self, stream: StreamHandle) -> ApiResult<bool>;

    /// A new event, with a time stamp if `timing`.
    ///
    /// # Errors
    /// The library's.
    fn create_event(&self, timing: bool) -> ApiResult<EventHandle>;

    /// Destroys an event.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn destroy_event(&self, event: EventHandle) -> ApiResult<()>;

    /// Enqueues an event.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn record_event(&self, event: EventHandle, stream: StreamHandle) -> ApiResult<()>;

    /// Waits until an event has come; at once if it was never recorded.
    ///
    /// # Errors
    /// The library's, that of work that failed before included.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn synchronize_event(&self, event: EventHandle) -> ApiResult<()>;

    /// Milliseconds between two recorded events with timing that have come.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn elapsed_ms(&self, from: EventHandle, to: EventHandle) -> ApiResult<f32>;

    /// Checks that the library can be handed `image`, in which it is to find `kernels`.
    ///
    /// # Errors
    /// What the image lacks, in words.
    fn check_image(&self, _image: &[u8], _kernels: &[KernelEntry<'_>]) -> std::result::Result<(), String> {
        Ok(())
    }

    /// Loads a code image: a linked AMD code object, or PTX text (not terminated by a zero). The result of a compilation that the
    /// library does may be kept below the folder `cache`; a cache that cannot be used is not an error.
    ///
    /// # Errors
    /// The library's, with its log in the text.
    fn load_module(&self, image: &[u8], cache: Option<&Path>) -> ApiResult<(ModuleHandle, LoadReport)>;

    /// Unloads a module.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait. No work that uses its functions is in flight.
    unsafe fn unload_module(&self, module: ModuleHandle) -> ApiResult<()>;

    /// The function called `name`.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn function(&self, module: ModuleHandle, name: &CStr) -> ApiResult<FunctionHandle>;

    /// What a function needs.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn function_info(&self, function: FunctionHandle) -> ApiResult<FunctionInfo>;

    /// Enqueues a launch.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait. The parameters are those that the function declares.
    unsafe fn launch(&self, launch: ApiLaunch<'_>) -> ApiResult<()>;

    /// Prepares the vendor's matrix library for use in captures of this device; false if there is none.
    fn prepare_gemm(&self) -> bool {
        false
    }

    /// Enqueues a matrix product by the vendor's library; false, with nothing enqueued, if it does not take it.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait. [`Api::prepare_gemm`] was called before any capture that this is part of.
    unsafe fn gemm(&self, _call: &GemmCall, _stream: StreamHandle) -> ApiResult<bool> {
        Ok(false)
    }

    /// Starts recording what the calling thread enqueues in the stream. Other threads may go on making any call.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn begin_capture(&self, stream: StreamHandle) -> ApiResult<()>;

    /// Ends recording.
    ///
    /// # Errors
    /// The library's, also where something that was enqueued made the recording invalid.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn end_capture(&self, stream: StreamHandle) -> ApiResult<GraphHandle>;

    /// Nodes of a graph, in any order.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn nodes(&self, graph: GraphHandle) -> ApiResult<Vec<ApiNode>>;

    /// Destroys a graph. What was instantiated from it stays.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn destroy_graph(&self, graph: GraphHandle) -> ApiResult<()>;

    /// Makes a graph executable.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn instantiate(&self, graph: GraphHandle) -> ApiResult<ExecHandle>;

    /// Brings what the first launch of an executable graph needs to the device, where the platform can do it apart from a launch.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn upload_exec(&self, exec: ExecHandle, stream: StreamHandle) -> ApiResult<()>;

    /// Enqueues an executable graph.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn launch_graph(&self, exec: ExecHandle, stream: StreamHandle) -> ApiResult<()>;

    /// Destroys an executable graph.
    ///
    /// # Errors
    /// The library's.
    ///
    /// # Safety
    /// See the trait. It is not in flight.
    unsafe fn destroy_exec(&self, exec: ExecHandle) -> ApiResult<()>;
}
