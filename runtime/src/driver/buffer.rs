//! Memory that kernels address. A buffer is a range of an owner that keeps it mapped.

use crate::error::{Error, Result};
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// A shared handle to memory that kernels read and write. The last handle frees it.
#[derive(Clone)]
pub struct Buffer {
    address: *mut u8,
    bytes: usize,
    writable: bool,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the address is only dereferenced through the methods below and by kernels; the owner is Send + Sync and keeps the
// range mapped. The runtime orders accesses: the host touches a buffer only while no graph that uses it is being replayed.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes{})", self.bytes, if self.writable { "" } else { ", read-only" })
    }
}

impl Buffer {
    /// A buffer over `bytes` bytes at `address`.
    ///
    /// # Safety
    /// The range must stay readable (and writable if `writable`) by this process for as long as `owner` lives.
    pub(super) unsafe fn from_raw(
        address: *mut u8,
        bytes: usize,
        writable: bool,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Buffer { address, bytes, writable, _owner: owner }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// True if the buffer has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The address `offset` bytes in, as kernels see it; `None` past the end.
    pub(crate) fn address(&self, offset: usize) -> Option<*mut u8> {
        (offset <= self.bytes).then(|| self.address.wrapping_add(offset))
    }

    /// Copies `data` to byte `offset`. No graph that uses the buffer may be running.
    ///
    /// # Errors
    /// If the buffer is read-only or too small.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        let fits = offset.checked_add(data.len()).is_some_and(|end| end <= self.bytes);
        if !fits || !self.writable {
            return Err(Error::Driver(format!("{} bytes at {offset} do not fit {self:?}", data.len())));
        }
        // SAFETY: the destination is in range and writable (checked above), `data` is a live borrow, and the two cannot
        // overlap because no safe reference to the buffer's memory exists while it is written (see `bytes`).
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.address.wrapping_add(offset), data.len()) };
        Ok(())
    }

    /// Copies `values` to the start. No graph that uses the buffer may be running.
    pub(crate) fn write_i32(&self, values: &[i32]) -> Result<()> {
        let bytes = std::mem::size_of_val(values);
        if bytes > self.bytes || !self.writable {
            return Err(Error::Driver(format!("{bytes} bytes do not fit {self:?}")));
        }
        // SAFETY: the destination is in range and writable (checked above), `values` is a live borrow, and the two cannot
        // overlap because no safe reference to the buffer's memory exists while it is written (see `bytes`).
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), self.address, bytes) };
        Ok(())
    }

    /// A copy of the bytes. No graph that writes the buffer may be running.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes().to_vec()
    }

    /// The bytes. No graph that writes the buffer may run while the slice lives: sessions tie it to their own borrow.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the range is readable for as long as the owner lives, which `self` keeps; callers keep graphs idle.
        unsafe { std::slice::from_raw_parts(self.address, self.bytes) }
    }

    /// The first `count` values as f32.
    pub(crate) fn as_f32(&self, count: usize) -> Result<&[f32]> {
        let fits = count.checked_mul(4).is_some_and(|n| n <= self.bytes);
        if !fits || !(self.address as usize).is_multiple_of(4) {
            return Err(Error::Driver(format!("{count} f32 do not fit {self:?}")));
        }
        // SAFETY: in range and aligned (checked above); every bit pattern is an f32; see `bytes` for aliasing.
        Ok(unsafe { std::slice::from_raw_parts(self.address.cast::<f32>(), count) })
    }

    /// The whole buffer for filling before any graph uses it.
    pub(crate) fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        if !self.writable || Arc::strong_count(&self._owner) != 1 {
            return Err(Error::Driver("the buffer is shared or read-only".into()));
        }
        // SAFETY: writable, in range, and this is the only handle (checked above), so no other reference exists.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) })
    }
}
