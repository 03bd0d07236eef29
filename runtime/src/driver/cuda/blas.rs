//! cuBLASLt, if the machine has it: large matrix products go to it, captured in the same graph. Opened with the first product.

use super::Handle;
use crate::DType;
use crate::driver::gpu::api::{ApiError, ApiResult, DevicePtr, GemmCall};
use libloading::Library;
use std::ffi::{c_int, c_void};

/// Names under which the library is looked for; `WELDMENT_CUBLASLT_LIBRARY` names one instead.
const LIBRARIES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];
/// Bytes of device memory that algorithms may use (NVIDIA's advice for Hopper).
pub const WORKSPACE_BYTES: usize = 32 << 20;

// Values of cublasLt.h and library_types.h.
const COMPUTE_32F: c_int = 68;
const R_32F: c_int = 0;
const R_16F: c_int = 2;
const R_16BF: c_int = 14;
const DESC_TRANSA: c_int = 3;
const OP_T: c_int = 1;
const PREF_MAX_WORKSPACE_BYTES: c_int = 1;

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

macro_rules! functions {
    ($($name:ident $symbol:literal ($($arg:ty),*);)*) => {
        /// The library's functions.
        #[derive(Debug)]
        struct Functions {
            $($name: unsafe extern "C" fn($($arg),*) -> c_int,)*
            _library: Library,
        }

        fn resolve(library: Library) -> Option<Functions> {
            $(
                // SAFETY: the type is that of the function of this name in cublasLt.h.
                let $name = *unsafe { library.get::<unsafe extern "C" fn($($arg),*) -> c_int>($symbol) }.ok()?;
            )*
            Some(Functions { $($name,)* _library: library })
        }
    };
}

functions! {
    create b"cublasLtCreate" (*mut Handle);
    destroy b"cublasLtDestroy" (Handle);
    desc_create b"cublasLtMatmulDescCreate" (*mut Handle, c_int, c_int);
    desc_set b"cublasLtMatmulDescSetAttribute" (Handle, c_int, *const c_void, usize);
    desc_destroy b"cublasLtMatmulDescDestroy" (Handle);
    layout_create b"cublasLtMatrixLayoutCreate" (*mut Handle, c_int, u64, u64, i64);
    layout_destroy b"cublasLtMatrixLayoutDestroy" (Handle);
    preference_create b"cublasLtMatmulPreferenceCreate" (*mut Handle);
    preference_set b"cublasLtMatmulPreferenceSetAttribute" (Handle, c_int, *const c_void, usize);
    preference_destroy b"cublasLtMatmulPreferenceDestroy" (Handle);
    heuristic b"cublasLtMatmulAlgoGetHeuristic"
        (Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Heuristic, *mut c_int);
    matmul b"cublasLtMatmul"
        (Handle, Handle, *const c_void, u64, Handle, u64, Handle, *const c_void, u64, Handle, u64, Handle,
         *const Heuristic, u64, usize, Handle);
}

/// The library and its handle, of one device.
#[derive(Debug)]
pub struct Blas {
    functions: Functions,
    handle: usize,
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: created by `open`, destroyed here alone.
        unsafe { (self.functions.destroy)(self.handle as Handle) };
    }
}

/// An object of the library, destroyed on drop.
struct Owned {
    handle: Handle,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
}

impl Owned {
    fn new(
        call: &'static str,
        destroy: unsafe extern "C" fn(Handle) -> c_int,
        create: impl FnOnce(*mut Handle) -> c_int,
    ) -> ApiResult<Owned> {
        let mut handle: Handle = std::ptr::null_mut();
        check(call, create(&mut handle))?;
        Ok(Owned { handle, destroy })
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed here alone.
        unsafe { (self.destroy)(self.handle) };
    }
}

fn check(call: &'static str, code: c_int) -> ApiResult<()> {
    if code == 0 {
        return Ok(());
    }
    // CUBLAS_STATUS_ALLOC_FAILED is 3.
    let (name, text) = (format!("CUBLAS_STATUS {code}"), "the library refuses".to_owned());
    Err(ApiError { call, code, name, text, out_of_memory: code == 3 })
}

impl Blas {
    /// The library for the current device; `None` if there is none or it does not start.
    pub fn open() -> Option<Blas> {
        let named = std::env::var("WELDMENT_CUBLASLT_LIBRARY").ok();
        let names = named.as_deref().map_or(LIBRARIES.to_vec(), |name| vec![name]);
        for name in names {
            // SAFETY: the library's initialisers have no requirements.
            let Ok(library) = (unsafe { Library::new(name) }) else { continue };
            let Some(functions) = resolve(library) else { continue };
            let mut handle: Handle = std::ptr::null_mut();
            // SAFETY: writes one handle.
            if unsafe { (functions.create)(&mut handle) } == 0 {
                return Some(Blas { functions, handle: handle as usize });
            }
        }
        None
    }

    /// Enqueues a product; false if no algorithm takes it.
    ///
    /// # Safety
    /// The ranges are device memory of the sizes that the strides say, and stay until the stream has passed.
    pub unsafe fn gemm(&self, call: &GemmCall, workspace: DevicePtr, stream: Handle) -> ApiResult<bool> {
        let f = &self.functions;
        let kind = match call.dtype {
            DType::BF16 => R_16BF,
            DType::F16 => R_16F,
            _ => return Ok(false),
        };
        // The library counts columns first: it is asked for out^T [n, rows] = w x^T, w lying transposed.
        // SAFETY: writes one handle.
        let desc = Owned::new("cublasLtMatmulDescCreate", f.desc_destroy, |h| unsafe {
            (f.desc_create)(h, COMPUTE_32F, R_32F)
        })?;
        let transposed = OP_T;
        // SAFETY: the attribute's value is a 32-bit number.
        let set = unsafe { (f.desc_set)(desc.handle, DESC_TRANSA, (&raw const transposed).cast(), 4) };
        check("cublasLtMatmulDescSetAttribute", set)?;
        let layout = |rows: u64, columns: u64, stride: u64| {
            // SAFETY: writes one handle.
            Owned::new("cublasLtMatrixLayoutCreate", f.layout_destroy, |h| unsafe {
                (f.layout_create)(h, kind, rows, columns, stride as i64)
            })
        };
        let (a, b) = (layout(call.k, call.n, call.k)?, layout(call.k, call.rows, call.x_stride)?);
        let d = layout(call.n, call.rows, call.out_stride)?;
        let c = layout(call.n, call.rows, call.addend.map_or(call.out_stride, |(_, stride)| stride))?;
        // SAFETY: writes one handle.
        let preference = Owned::new("cublasLtMatmulPreferenceCreate", f.preference_destroy, |h| unsafe {
            (f.preference_create)(h)
        })?;
        let limit = WORKSPACE_BYTES as u64;
        // SAFETY: the attribute's value is a 64-bit number.
        let set =
            unsafe { (f.preference_set)(preference.handle, PREF_MAX_WORKSPACE_BYTES, (&raw const limit).cast(), 8) };
        check("cublasLtMatmulPreferenceSetAttribute", set)?;
        let mut best = Heuristic { algorithm: [0; 8], workspace: 0, state: 0, waves: 0.0, reserved: [0; 4] };
        let mut found = 0;
        let library = self.handle as Handle;
        // SAFETY: live objects; writes at most one result and the count.
        let code = unsafe {
            (f.heuristic)(
                library,
                desc.handle,
                a.handle,
                b.handle,
                c.handle,
                d.handle,
                preference.handle,
                1,
                &mut best,
                &mut found,
            )
        };
        if code != 0 || found == 0 {
            return Ok(false);
        }
        let (one, beta) = (1f32, if call.addend.is_some() { 1f32 } else { 0f32 });
        let addend = call.addend.map_or(call.out, |(pointer, _)| pointer);
        // SAFETY: live objects, scalars read before the call returns, ranges by the promise of the caller.
        let code = unsafe {
            (f.matmul)(
                library,
                desc.handle,
                (&raw const one).cast(),
                call.w,
                a.handle,
                call.x,
                b.handle,
                (&raw const beta).cast(),
                addend,
                c.handle,
                call.out,
                d.handle,
                &best,
                workspace,
                WORKSPACE_BYTES,
                stream,
            )
        };
        check("cublasLtMatmul", code)?;
        Ok(true)
    }
}
