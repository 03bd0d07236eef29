//! libcuda, opened when a device is first asked for. cudarc gives types and constants; the functions are resolved here, because
//! cudarc's own panic where a driver lacks one, and return a Rust enum, which a newer driver's error codes would not be values of.

use crate::driver::gpu::api::{ApiError, ApiResult};
use crate::error::{Error, Result};
use cudarc::driver::sys::{CUDA_KERNEL_NODE_PARAMS_v2, CUlaunchConfig};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: c_int = 2;
/// `CUDA_ERROR_NOT_READY`.
pub const NOT_READY: c_int = 600;

/// Any handle: the library's are all pointers to types that nobody knows.
pub type Handle = *mut c_void;

/// `CUipcMemHandle`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MemHandle(pub [u8; 64]);

macro_rules! functions {
    (
        needed { $($name:ident $symbol:literal ($($arg:ty),*);)* }
        optional { $($spare:ident $spare_symbol:literal ($($spare_arg:ty),*);)* }
    ) => {
        /// The functions, each with the library's name.
        #[derive(Debug)]
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($arg),*) -> c_int,)*
            /// What only some uses need; absent where the driver lacks it.
            $(pub $spare: Option<unsafe extern "C" fn($($spare_arg),*) -> c_int>,)*
            _library: Library,
        }

        /// Names of all functions.
        const SYMBOLS: &[&str] = &[$($symbol),*];

        impl Functions {
            /// Resolves every function; the names of those that are missing otherwise.
            fn resolve(library: Library) -> std::result::Result<Functions, Vec<String>> {
                // SAFETY: looking a symbol up does not use it.
                let absent = |symbol: &&&str| unsafe { library.get::<*const c_void>(symbol.as_bytes()) }.is_err();
                let missing: Vec<String> = SYMBOLS.iter().filter(absent).map(|s| (*s).to_owned()).collect();
                $(
                    // SAFETY: the type is that of the function of this name in the CUDA driver API.
                    let $name = unsafe { library.get::<unsafe extern "C" fn($($arg),*) -> c_int>($symbol.as_bytes()) };
                    let Ok($name) = $name.map(|symbol| *symbol) else { return Err(missing) };
                )*
                $(
                    // SAFETY: as above.
                    let $spare = unsafe { library.get::<unsafe extern "C" fn($($spare_arg),*) -> c_int>($spare_symbol.as_bytes()) };
                    let $spare = $spare.ok().map(|symbol| *symbol);
                )*
                Ok(Functions { $($name,)* $($spare,)* _library: library })
            }
        }
    };
}

functions! {
    needed {
        init "cuInit" (c_uint);
        driver_version "cuDriverGetVersion" (*mut c_int);
        error_name "cuGetErrorName" (c_int, *mut *const c_char);
        error_string "cuGetErrorString" (c_int, *mut *const c_char);
        device_count "cuDeviceGetCount" (*mut c_int);
        device_get "cuDeviceGet" (*mut c_int, c_int);
        device_name "cuDeviceGetName" (*mut c_char, c_int, c_int);
        device_memory "cuDeviceTotalMem_v2" (*mut usize, c_int);
        device_attribute "cuDeviceGetAttribute" (*mut c_int, c_uint, c_int);
        context_retain "cuDevicePrimaryCtxRetain" (*mut Handle, c_int);
        context_release "cuDevicePrimaryCtxRelease_v2" (c_int);
        context_set "cuCtxSetCurrent" (Handle);
        context_synchronize "cuCtxSynchronize" ();
        memory_info "cuMemGetInfo_v2" (*mut usize, *mut usize);
        memory_allocate "cuMemAlloc_v2" (*mut u64, usize);
        memory_free "cuMemFree_v2" (u64);
        pinned_allocate "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
        pinned_free "cuMemFreeHost" (*mut c_void);
        copy_to_device "cuMemcpyHtoDAsync_v2" (u64, *const c_void, usize, Handle);
        copy_to_host "cuMemcpyDtoHAsync_v2" (*mut c_void, u64, usize, Handle);
        copy_on_device "cuMemcpyDtoDAsync_v2" (u64, u64, usize, Handle);
        fill "cuMemsetD8Async" (u64, u8, usize, Handle);
        stream_create "cuStreamCreate" (*mut Handle, c_uint);
        stream_destroy "cuStreamDestroy_v2" (Handle);
        stream_synchronize "cuStreamSynchronize" (Handle);
        stream_query "cuStreamQuery" (Handle);
        event_create "cuEventCreate" (*mut Handle, c_uint);
        event_destroy "cuEventDestroy_v2" (Handle);
        event_record "cuEventRecord" (Handle, Handle);
        event_synchronize "cuEventSynchronize" (Handle);
        event_elapsed "cuEventElapsedTime" (*mut f32, Handle, Handle);
        link_create "cuLinkCreate_v2" (c_uint, *mut c_uint, *mut *mut c_void, *mut Handle);
        link_add "cuLinkAddData_v2"
            (Handle, c_uint, *mut c_void, usize, *const c_char, c_uint, *mut c_uint, *mut *mut c_void);
        link_complete "cuLinkComplete" (Handle, *mut *mut c_void, *mut usize);
        link_destroy "cuLinkDestroy" (Handle);
        module_load "cuModuleLoadData" (*mut Handle, *const c_void);
        module_unload "cuModuleUnload" (Handle);
        module_function "cuModuleGetFunction" (*mut Handle, Handle, *const c_char);
        function_attribute "cuFuncGetAttribute" (*mut c_int, c_uint, Handle);
        launch "cuLaunchKernelEx" (*const CUlaunchConfig, Handle, *mut *mut c_void, *mut *mut c_void);
        capture_begin "cuStreamBeginCapture_v2" (Handle, c_uint);
        capture_end "cuStreamEndCapture" (Handle, *mut Handle);
        graph_nodes "cuGraphGetNodes" (Handle, *mut Handle, *mut usize);
        graph_node_type "cuGraphNodeGetType" (Handle, *mut c_uint);
        kernel_node_params "cuGraphKernelNodeGetParams_v2" (Handle, *mut CUDA_KERNEL_NODE_PARAMS_v2);
        graph_destroy "cuGraphDestroy" (Handle);
        graph_instantiate "cuGraphInstantiateWithFlags" (*mut Handle, Handle, u64);
        graph_upload "cuGraphUpload" (Handle, Handle);
        graph_launch "cuGraphLaunch" (Handle, Handle);
        exec_destroy "cuGraphExecDestroy" (Handle);
    }
    optional {
        ipc_export "cuIpcGetMemHandle" (*mut MemHandle, u64);
        ipc_import "cuIpcOpenMemHandle_v2" (*mut u64, MemHandle, c_uint);
        ipc_close "cuIpcCloseMemHandle" (u64);
        pinned_address "cuMemHostGetDevicePointer_v2" (*mut u64, *mut c_void, c_uint);
    }
}

/// Names under which the library is looked for; `WELDMENT_CUDA_LIBRARY` names one instead.
const LIBRARIES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// Why there are no functions.
#[derive(Clone, Debug)]
pub enum Absent {
    /// No library was found.
    Library(String),
    /// The library lacks these.
    Symbols(String, Vec<String>),
}

/// The library as found: the name that was opened and its functions.
pub type Found = std::result::Result<(String, Functions), Absent>;

/// Opens the library, once for the process.
pub fn library() -> &'static Found {
    static FOUND: OnceLock<Found> = OnceLock::new();
    FOUND.get_or_init(|| {
        let named = std::env::var("WELDMENT_CUDA_LIBRARY").ok();
        let names = named.as_deref().map_or(LIBRARIES.to_vec(), |name| vec![name]);
        let mut reason = String::new();
        for name in &names {
            // SAFETY: the CUDA driver's initialisers have no requirements.
            match unsafe { Library::new(*name) } {
                Ok(library) => {
                    let name = (*name).to_owned();
                    return match Functions::resolve(library) {
                        Ok(functions) => Ok((name, functions)),
                        Err(missing) => Err(Absent::Symbols(name, missing)),
                    };
                }
                Err(e) if reason.is_empty() => {
                    // libloading says what failed; why is in the source.
                    reason = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
                }
                Err(_) => {}
            }
        }
        Err(Absent::Library(format!("{} cannot be opened: {reason}", names.join(", "))))
    })
}

/// The functions, initialised.
pub fn functions() -> Result<&'static Functions> {
    let (name, functions) = library().as_ref().map_err(|absent| {
        Error::Unsupported(match absent {
            Absent::Library(text) => format!("no CUDA driver: {text}"),
            Absent::Symbols(name, missing) => {
                format!("the CUDA driver {name} is too old: it lacks {}", missing.join(", "))
            }
        })
    })?;
    static INITIALISED: OnceLock<c_int> = OnceLock::new();
    // SAFETY: may be called any number of times, from any thread.
    let code = *INITIALISED.get_or_init(|| unsafe { (functions.init)(0) });
    functions
        .check("cuInit", code)
        .map_err(|e| Error::Unsupported(format!("the CUDA driver {name} cannot start: {e}")))?;
    Ok(functions)
}

impl Functions {
    /// The error of a call that the driver lacks.
    pub fn absent(&self, call: &'static str) -> ApiError {
        let (name, text) = ("missing function".to_owned(), "the CUDA driver is too old to have it".to_owned());
        ApiError { call, code: -1, name, text, out_of_memory: false }
    }

    /// An error unless `code` says success.
    pub fn check(&self, call: &'static str, code: c_int) -> ApiResult<()> {
        if code == 0 {
            return Ok(());
        }
        let text = |get: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut pointer: *const c_char = std::ptr::null();
            // SAFETY: gives a pointer to a static string, or null for a code it does not know.
            unsafe { get(code, &mut pointer) };
            if pointer.is_null() {
                return "unknown".to_owned();
            }
            // SAFETY: a static, terminated string (see above).
            unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
        };
        let (name, text) = (text(self.error_name), text(self.error_string));
        Err(ApiError { call, code, name, text, out_of_memory: code == OUT_OF_MEMORY })
    }
}
