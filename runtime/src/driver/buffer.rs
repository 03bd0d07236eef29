//! Memory that kernels address. A buffer is a range of an owner that keeps it mapped.

use crate::error::{Error, Result};
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// How the bytes of a device-only buffer get there and back.
pub(super) trait DeviceCopy: Send + Sync {
    /// Copies `data` to the device address; returns when it is there.
    fn upload(&self, address: u64, data: &[u8]) -> Result<()>;

    /// Copies from the device address; returns when it is here.
    fn download(&self, address: u64, out: &mut [u8]) -> Result<()>;

    /// The device, for error texts.
    fn place(&self) -> String;
}

/// Who can touch the bytes.
#[derive(Clone)]
enum Access {
    /// The host reads them.
    ReadOnly,
    /// The host reads and writes them.
    Writable,
    /// Only the device touches them; the host copies.
    Device(Arc<dyn DeviceCopy>),
}

/// A shared handle to memory that kernels read and write. The last handle frees it.
#[derive(Clone)]
pub struct Buffer {
    address: *mut u8,
    bytes: usize,
    access: Access,
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the address is only dereferenced through the methods below and by kernels; the owner is Send + Sync and keeps the
// range mapped. The runtime orders accesses: the host touches a buffer only while no graph that uses it is being replayed.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.access {
            Access::ReadOnly => write!(f, "Buffer({} bytes, read-only)", self.bytes),
            Access::Writable => write!(f, "Buffer({} bytes)", self.bytes),
            Access::Device(device) => write!(f, "Buffer({} bytes on {})", self.bytes, device.place()),
        }
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
        let access = if writable { Access::Writable } else { Access::ReadOnly };
        Buffer { address, bytes, access, owner }
    }

    /// A buffer over `bytes` bytes at a device address that the host cannot touch.
    ///
    /// # Safety
    /// The range must stay allocated on the device that `copies` copies to for as long as `owner` lives.
    pub(super) unsafe fn from_device(
        address: u64,
        bytes: usize,
        copies: Arc<dyn DeviceCopy>,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let address = std::ptr::without_provenance_mut(address as usize);
        Buffer { address, bytes, access: Access::Device(copies), owner }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// True if the buffer has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The host address `offset` bytes in; `None` past the end or for device memory.
    pub(crate) fn address(&self, offset: usize) -> Option<*mut u8> {
        (offset <= self.bytes && self.is_host_visible()).then(|| self.address.wrapping_add(offset))
    }

    /// The device address `offset` bytes in; `None` past the end or for host memory.
    pub(crate) fn device_address(&self, offset: usize) -> Option<u64> {
        let device = matches!(self.access, Access::Device(_));
        (device && offset <= self.bytes).then(|| self.address.wrapping_add(offset) as u64)
    }

    /// The address of at least `bytes` bytes of device memory.
    pub(super) fn device_range(&self, bytes: usize) -> Option<u64> {
        self.device_address(0).filter(|_| bytes <= self.bytes)
    }

    /// The address of at least `bytes` writable bytes of host memory.
    pub(super) fn host_range_mut(&self, bytes: usize) -> Option<*mut u8> {
        (matches!(self.access, Access::Writable) && bytes <= self.bytes).then_some(self.address)
    }

    /// True if both are handles to the same allocation.
    pub(super) fn same_memory(&self, other: &Buffer) -> bool {
        self.address == other.address && Arc::ptr_eq(&self.owner, &other.owner)
    }

    /// True if the host can read the bytes where they are.
    pub fn is_host_visible(&self) -> bool {
        !matches!(self.access, Access::Device(_))
    }

    fn range(&self, offset: usize, bytes: usize) -> Result<()> {
        if offset.checked_add(bytes).is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        Err(Error::Driver(format!("{bytes} bytes at {offset} do not fit {self:?}")))
    }

    /// Copies `data` to byte `offset`.
    ///
    /// # Errors
    /// If the buffer is read-only or too small, or the device refuses the copy.
    ///
    /// # Safety
    /// No graph that uses the buffer is running, and no thread reads or writes it meanwhile, through whatever handle.
    pub unsafe fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.put(offset, data)
    }

    /// As [`Buffer::write`], whose promise the crate keeps: sessions touch their buffers between steps alone.
    ///
    /// # Errors
    /// As [`Buffer::write`].
    pub(crate) fn put(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.range(offset, data.len())?;
        let to = self.address.wrapping_add(offset);
        match &self.access {
            Access::ReadOnly => Err(Error::Driver(format!("{self:?} cannot be written"))),
            Access::Device(device) => device.upload(to as u64, data),
            Access::Writable => {
                // SAFETY: the destination is in range and writable (checked above), `data` is a live borrow, and the two
                // cannot overlap because no safe reference to the buffer's memory exists while it is written (see `bytes`).
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
                Ok(())
            }
        }
    }

    /// Copies from byte `offset` to `out`. No graph that writes the buffer may be running.
    ///
    /// # Errors
    /// If the buffer is too small, or the device refuses the copy.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.range(offset, out.len())?;
        match &self.access {
            Access::Device(device) => device.download(self.address.wrapping_add(offset) as u64, out),
            Access::ReadOnly | Access::Writable => {
                let end = offset + out.len();
                out.copy_from_slice(self.bytes()?.get(offset..end).unwrap_or_default());
                Ok(())
            }
        }
    }

    /// A copy of the bytes. No graph that writes the buffer may be running.
    ///
    /// # Errors
    /// If the device refuses the copy.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let mut out = vec![0; self.bytes];
        self.read(0, &mut out)?;
        Ok(out)
    }

    /// The bytes of a host-visible buffer. No graph that writes the buffer may run while the slice lives: sessions tie it to
    /// their own borrow.
    pub(crate) fn bytes(&self) -> Result<&[u8]> {
        if !self.is_host_visible() {
            return Err(Error::Driver(format!("the host cannot address {self:?}")));
        }
        // SAFETY: the range is readable for as long as the owner lives, which `self` keeps; callers keep graphs idle.
        Ok(unsafe { std::slice::from_raw_parts(self.address, self.bytes) })
    }

    /// The first `count` values as f32.
    pub(crate) fn as_f32(&self, count: usize) -> Result<&[f32]> {
        let fits = count.checked_mul(4).is_some_and(|n| n <= self.bytes);
        if !fits || !(self.address as usize).is_multiple_of(4) || !self.is_host_visible() {
            return Err(Error::Driver(format!("{count} f32 do not fit {self:?}")));
        }
        // SAFETY: host memory in range and aligned (checked above); every bit pattern is an f32; see `bytes` for aliasing.
        Ok(unsafe { std::slice::from_raw_parts(self.address.cast::<f32>(), count) })
    }

    /// The whole buffer for filling before any graph uses it.
    pub(crate) fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        if !matches!(self.access, Access::Writable) || Arc::strong_count(&self.owner) != 1 {
            return Err(Error::Driver("the buffer is shared, read-only or on a device".into()));
        }
        // SAFETY: writable, in range, and this is the only handle (checked above), so no other reference exists.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) })
    }
}

/// The bytes of `values`, in memory order.
pub(crate) fn bytes_of(values: &[i32]) -> &[u8] {
    // SAFETY: every byte of an i32 slice is initialised, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), std::mem::size_of_val(values)) }
}
