//! HIP's numbers and handles, under HIP's names.
#![allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    reason = "the names of hip_runtime_api.h, to be searched for"
)]

use std::ffi::{c_int, c_uint, c_void};

/// `hipError_t`; 0 is success.
pub type hipError_t = c_int;
/// `hipDeviceAttribute_t`.
pub type hipDeviceAttribute_t = c_int;
/// `hipFunction_attribute`.
pub type hipFunction_attribute = c_int;
/// `hipMemcpyKind`.
pub type hipMemcpyKind = c_int;
/// `hipStreamCaptureMode`.
pub type hipStreamCaptureMode = c_int;
/// `hipStreamCaptureStatus`.
pub type hipStreamCaptureStatus = c_int;
/// `hipGraphNodeType`.
pub type hipGraphNodeType = c_int;
/// A device address.
pub type hipDeviceptr_t = *mut c_void;

macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident = $opaque:ident;)*) => {$(
        #[doc(hidden)]
        pub enum $opaque {}
        $(#[$doc])*
        pub type $name = *mut $opaque;
    )*};
}

handles! {
    /// A stream; null is the legacy default stream, which Weldment never uses.
    hipStream_t = ihipStream_t;
    /// An event.
    hipEvent_t = ihipEvent_t;
    /// A loaded code object.
    hipModule_t = ihipModule_t;
    /// A kernel of a module; lives as long as the module.
    hipFunction_t = ihipModuleSymbol_t;
    /// A recorded graph.
    hipGraph_t = ihipGraph;
    /// A graph made ready to launch.
    hipGraphExec_t = hipGraphExec;
    /// A node of a graph; lives as long as the graph.
    hipGraphNode_t = hipGraphNode;
}

/// `dim3`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct dim3 {
    /// Fastest.
    pub x: c_uint,
    /// Second.
    pub y: c_uint,
    /// Slowest.
    pub z: c_uint,
}

/// `hipKernelNodeParams`: what a kernel node launches.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct hipKernelNodeParams {
    /// Threads of a block.
    pub blockDim: dim3,
    /// Not used by launches with `kernelParams`.
    pub extra: *mut *mut c_void,
    /// The `hipFunction_t` of a captured `hipModuleLaunchKernel`.
    pub func: *mut c_void,
    /// Blocks.
    pub gridDim: dim3,
    /// A pointer to each argument.
    pub kernelParams: *mut *mut c_void,
    /// Bytes of dynamic LDS.
    pub sharedMemBytes: c_uint,
}

impl Default for hipKernelNodeParams {
    fn default() -> Self {
        let null = std::ptr::null_mut();
        let (extra, func, kernel_params) = (null, std::ptr::null_mut(), std::ptr::null_mut());
        let (block, grid) = (dim3::default(), dim3::default());
        hipKernelNodeParams {
            blockDim: block,
            extra,
            func,
            gridDim: grid,
            kernelParams: kernel_params,
            sharedMemBytes: 0,
        }
    }
}

/// Success.
pub const hipSuccess: hipError_t = 0;
/// An argument is wrong.
pub const hipErrorInvalidValue: hipError_t = 1;
/// No memory.
pub const hipErrorOutOfMemory: hipError_t = 2;
/// A launch exceeds a limit.
pub const hipErrorInvalidConfiguration: hipError_t = 9;
/// A pointer is not device memory.
pub const hipErrorInvalidDevicePointer: hipError_t = 17;
/// No device.
pub const hipErrorNoDevice: hipError_t = 100;
/// No such device.
pub const hipErrorInvalidDevice: hipError_t = 101;
/// A code object cannot be read.
pub const hipErrorInvalidImage: hipError_t = 200;
/// A code object is for another processor.
pub const hipErrorNoBinaryForGpu: hipError_t = 209;
/// A handle is not one, or is no longer one.
pub const hipErrorInvalidHandle: hipError_t = 400;
/// No such kernel.
pub const hipErrorNotFound: hipError_t = 500;
/// Work is still under way: an answer, not a failure.
pub const hipErrorNotReady: hipError_t = 600;
/// A kernel addressed memory that is not mapped.
pub const hipErrorIllegalAddress: hipError_t = 700;
/// A kernel failed.
pub const hipErrorLaunchFailure: hipError_t = 719;
/// A call is not permitted while a stream is being captured.
pub const hipErrorStreamCaptureUnsupported: hipError_t = 900;
/// An earlier call spoilt the capture.
pub const hipErrorStreamCaptureInvalidated: hipError_t = 901;
/// The stream is not being captured.
pub const hipErrorStreamCaptureUnmatched: hipError_t = 903;
/// A query of an event that was recorded into a capture.
pub const hipErrorCapturedEvent: hipError_t = 907;
/// Ended by a thread that did not begin it.
pub const hipErrorStreamCaptureWrongThread: hipError_t = 908;
/// Anything else.
pub const hipErrorUnknown: hipError_t = 999;

/// Clock in kHz.
pub const hipDeviceAttributeClockRate: hipDeviceAttribute_t = 5;
/// Bytes of level 2 cache.
pub const hipDeviceAttributeL2CacheSize: hipDeviceAttribute_t = 19;
/// Largest grid, x (blocks).
pub const hipDeviceAttributeMaxGridDimX: hipDeviceAttribute_t = 29;
/// Largest grid, y (blocks).
pub const hipDeviceAttributeMaxGridDimY: hipDeviceAttribute_t = 30;
/// Largest grid, z (blocks).
pub const hipDeviceAttributeMaxGridDimZ: hipDeviceAttribute_t = 31;
/// Threads a block may have.
pub const hipDeviceAttributeMaxThreadsPerBlock: hipDeviceAttribute_t = 56;
/// Compute units.
pub const hipDeviceAttributeMultiprocessorCount: hipDeviceAttribute_t = 63;
/// PCI bus.
pub const hipDeviceAttributePciBusId: hipDeviceAttribute_t = 67;
/// PCI slot.
pub const hipDeviceAttributePciDeviceId: hipDeviceAttribute_t = 68;
/// PCI domain.
pub const hipDeviceAttributePciDomainId: hipDeviceAttribute_t = 69;
/// Bytes of LDS of a block.
pub const hipDeviceAttributeMaxSharedMemoryPerBlock: hipDeviceAttribute_t = 74;
/// Threads of a wave.
pub const hipDeviceAttributeWarpSize: hipDeviceAttribute_t = 87;

/// Largest block of a kernel.
pub const HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: hipFunction_attribute = 0;
/// Static LDS of a kernel, bytes.
pub const HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: hipFunction_attribute = 1;
/// Scratch of a thread, bytes.
pub const HIP_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: hipFunction_attribute = 3;
/// Vector registers of a thread.
pub const HIP_FUNC_ATTRIBUTE_NUM_REGS: hipFunction_attribute = 4;

/// Host to device.
pub const hipMemcpyHostToDevice: hipMemcpyKind = 1;
/// Device to host.
pub const hipMemcpyDeviceToHost: hipMemcpyKind = 2;
/// Device to device.
pub const hipMemcpyDeviceToDevice: hipMemcpyKind = 3;
/// By the addresses.
pub const hipMemcpyDefault: hipMemcpyKind = 4;

/// No unsafe call in any thread of the process while capturing.
pub const hipStreamCaptureModeGlobal: hipStreamCaptureMode = 0;
/// No unsafe call in the capturing thread.
pub const hipStreamCaptureModeThreadLocal: hipStreamCaptureMode = 1;
/// Unsafe calls are the caller's business.
pub const hipStreamCaptureModeRelaxed: hipStreamCaptureMode = 2;

/// Not capturing.
pub const hipStreamCaptureStatusNone: hipStreamCaptureStatus = 0;
/// Capturing.
pub const hipStreamCaptureStatusActive: hipStreamCaptureStatus = 1;
/// Capturing, but spoilt.
pub const hipStreamCaptureStatusInvalidated: hipStreamCaptureStatus = 2;

/// A kernel.
pub const hipGraphNodeTypeKernel: hipGraphNodeType = 0;
/// A copy.
pub const hipGraphNodeTypeMemcpy: hipGraphNodeType = 1;
/// A fill.
pub const hipGraphNodeTypeMemset: hipGraphNodeType = 2;

/// A stream that does not wait for the default stream.
pub const hipStreamNonBlocking: c_uint = 1;
/// An event that keeps time.
pub const hipEventDefault: c_uint = 0;
/// An event without a time stamp: cheaper to record and to wait for.
pub const hipEventDisableTiming: c_uint = 2;
/// Pinned memory, mapped and coherent.
pub const hipHostMallocDefault: c_uint = 0;
/// Device memory that no cache keeps, for flags that other devices write.
pub const hipDeviceMallocUncached: c_uint = 3;
/// Pinned memory that every device of the process can use.
pub const hipHostMallocPortable: c_uint = 1;
/// Pinned memory that devices address.
pub const hipHostMallocMapped: c_uint = 2;
/// Pinned memory that no cache of a device keeps while a kernel runs.
pub const hipHostMallocCoherent: c_uint = 0x4000_0000;
/// Lets the devices address each other, if they do not yet, when memory of another process is mapped.
pub const hipIpcMemLazyEnablePeerAccess: c_uint = 1;

/// A handle by which other processes map an allocation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct hipIpcMemHandle_t {
    /// What it is made of is the library's own business.
    pub reserved: [u8; 64],
}

impl Default for hipIpcMemHandle_t {
    fn default() -> Self {
        hipIpcMemHandle_t { reserved: [0; 64] }
    }
}
