//! What an embedding engine hands in: its allocator, its memory, its stream.

use crate::error::Result;
use std::fmt::Debug;

/// Gives memory that kernels of the session's device address. Calls come from any thread.
///
/// # Safety
/// `allocate` returns the address of `bytes` bytes, 64-byte aligned, that nobody else uses, readable and writable by the device
/// (on the host: by the process) until `free` is called with it.
pub unsafe trait Allocator: Send + Sync + Debug {
    /// Allocates; the bytes need not be zero.
    ///
    /// # Errors
    /// If there is no memory.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Takes back what `allocate` gave for `bytes` bytes. The device no longer uses it.
    fn free(&self, address: u64, bytes: usize);
}

/// Memory of an embedding engine: a KV cache that it shares between sessions, say.
#[derive(Clone, Copy, Debug)]
pub struct ExternalMemory {
    pub(super) address: u64,
    pub(super) bytes: usize,
}

impl ExternalMemory {
    /// `bytes` bytes at `address`, a device pointer (on the host: a pointer), 64-byte aligned.
    ///
    /// # Safety
    /// The range stays readable and writable by the device for as long as a session uses it.
    pub unsafe fn from_raw(address: u64, bytes: usize) -> Self {
        ExternalMemory { address, bytes }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// True if there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

/// A stream of an embedding engine (`CUstream`, `hipStream_t`).
#[derive(Clone, Copy, Debug)]
pub struct ExternalStream {
    pub(super) handle: usize,
}

impl ExternalStream {
    /// The stream with the library's handle `handle`, of the device's primary context.
    ///
    /// # Safety
    /// The stream stays live for as long as a session uses it, and is not capturing while the session steps.
    pub unsafe fn from_raw(handle: usize) -> Self {
        ExternalStream { handle }
    }
}
