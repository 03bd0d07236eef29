//! Device memory as buffers, and copies between it and the host outside of steps.

use super::api::*;
use super::guards::{DeviceMemory, EventGuard, Pinned, SharedApi, StreamGuard, note};
use crate::driver::buffer::DeviceCopy;
use crate::driver::{Allocator, Buffer, Filler, SharedBytes};
use crate::error::{Error, Result};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes of one staging buffer; there are two.
pub const STAGING_BYTES: usize = 32 << 20;
/// Copies up to this size go without staging: the library's own is as fast.
const DIRECT_BYTES: usize = 1 << 20;

/// What all parts of one GPU driver share: the device and a stream for copies outside of steps.
pub struct Shared {
    pub api: SharedApi,
    copies: Mutex<Copies>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} ({})", self.api.name(), self.api.info().index, self.api.info().name)
    }
}

/// The staging buffers outlive the stream's work: fields drop in order, and the stream is waited for first.
struct Copies {
    stream: StreamGuard,
    staging: Vec<Pages>,
}

struct Pages {
    memory: Pinned,
    copied: EventGuard,
}

impl Drop for Copies {
    fn drop(&mut self) {
        // The device may have failed; nothing is in flight then.
        note("waiting for copies to end", self.stream.synchronize());
    }
}

impl Shared {
    /// Wraps a device.
    pub fn new(api: SharedApi) -> Result<Shared> {
        api.make_current().map_err(|e| e.during("cannot use the device"))?;
        let stream = StreamGuard::new(&api)?;
        Ok(Shared { api, copies: Mutex::new(Copies { stream, staging: Vec::new() }) })
    }

    /// Makes the device current on this thread.
    pub fn current(&self) -> Result<()> {
        self.api.make_current().map_err(|e| e.during("cannot use the device"))
    }

    fn copies(&self) -> Result<MutexGuard<'_, Copies>> {
        self.current()?;
        self.copies.lock().map_err(|_| Error::Driver("an earlier copy panicked".into()))
    }

    /// Allocates `bytes` zeroed bytes, from `allocator` if there is one.
    pub fn allocate(self: &Arc<Self>, bytes: usize, allocator: Option<&Arc<dyn Allocator>>) -> Result<Buffer> {
        if bytes > isize::MAX as usize {
            return Err(Error::Driver(format!("cannot allocate {bytes} bytes on {self:?}: the size overflows")));
        }
        self.current()?;
        let size = bytes.max(64);
        let owner = match allocator {
            Some(allocator) => Memory::External(External::new(allocator, size)?),
            None => {
                let pointer = self.api.allocate(size).map_err(|e| self.no_memory(size, &e))?;
                // SAFETY: just allocated, owned by nobody else.
                Memory::Own(unsafe { DeviceMemory::own(&self.api, pointer) })
            }
        };
        self.zeroed(owner, size, bytes)
    }

    /// Allocates `size` zeroed bytes that other processes may map, of which the buffer is the first `bytes`.
    pub fn allocate_exported(self: &Arc<Self>, bytes: usize, size: usize) -> Result<Buffer> {
        self.current()?;
        let pointer = self.api.allocate_exported(size).map_err(|e| self.no_memory(size, &e))?;
        // SAFETY: just allocated, owned by nobody else.
        let owner = Memory::Own(unsafe { DeviceMemory::own(&self.api, pointer) });
        self.zeroed(owner, size, bytes)
    }

    fn no_memory(&self, size: usize, e: &ApiError) -> Error {
        let free = match self.api.memory_info() {
            Ok((free, total)) => format!("; {free} of {total} bytes are free"),
            Err(_) => String::new(),
        };
        Error::Driver(format!("cannot allocate {size} bytes on {self:?}: {e}{free}"))
    }

    /// Clears the `size` bytes of `owner`, of which the buffer is the first `bytes`.
    fn zeroed(self: &Arc<Self>, owner: Memory, size: usize, bytes: usize) -> Result<Buffer> {
        let address = owner.address();
        let copies = self.copies()?;
        // SAFETY: the range was just allocated with this size.
        unsafe { self.api.fill(address, 0, size, copies.stream.handle()) }
            .and_then(|()| copies.stream.synchronize())
            .map_err(|e| e.during("cannot clear memory"))?;
        drop(copies);
        // SAFETY: the owner keeps the range allocated.
        Ok(unsafe { Buffer::from_device(address, bytes, Arc::clone(self) as Arc<dyn DeviceCopy>, Arc::new(owner)) })
    }

    /// Pinned host memory as a buffer that only the host and copies address.
    pub fn allocate_pinned(self: &Arc<Self>, bytes: usize) -> Result<Buffer> {
        self.current()?;
        let pinned = Pinned::new(&self.api, bytes)?;
        let pointer = pinned.pointer();
        // SAFETY: the pinned range is readable and writable for as long as its owner lives.
        Ok(unsafe { Buffer::from_raw(pointer, bytes, true, Arc::new(pinned)) })
    }

    /// Device memory with the content of `bytes`.
    pub fn import(self: &Arc<Self>, bytes: &dyn SharedBytes, allocator: Option<&Arc<dyn Allocator>>) -> Result<Buffer> {
        let bytes = bytes.bytes();
        let buffer = self.allocate(bytes.len(), allocator)?;
        buffer.put(0, bytes)?;
        Ok(buffer)
    }

    /// Fills `ranges` of device memory from `address` on: each is written by `fill` into a pinned staging buffer and copied
    /// while the next is written.
    pub fn fill(&self, address: DevicePtr, ranges: &[Range<usize>], fill: &mut Filler<'_>) -> Result<()> {
        let mut copies = self.copies()?;
        let largest = ranges.iter().map(Range::len).max().unwrap_or(0);
        copies.reserve(&self.api, largest)?;
        let copies = &mut *copies;
        let failed = |e: ApiError| e.during("cannot copy to the device");
        let mut result = Ok(());
        for (index, range) in ranges.iter().enumerate() {
            let slot = &mut copies.staging[index % 2];
            result = slot.copied.synchronize().map_err(failed).and_then(|()| {
                let Some(bytes) = slot.memory.slice_mut(0, range.len()) else {
                    return Err(Error::Driver("a staging buffer is too small".into()));
                };
                fill(range.clone(), bytes)?;
                let (from, stream) = (slot.memory.pointer(), copies.stream.handle());
                // SAFETY: the caller owns the device range; the staging buffer is not touched before `copied` has come, and it
                // outlives the stream's work.
                unsafe { self.api.copy_to_device(address + range.start as u64, from, range.len(), stream) }
                    .and_then(|()| slot.copied.record(stream))
                    .map_err(failed)
            });
            if result.is_err() {
                break;
            }
        }
        let done = copies.stream.synchronize().map_err(failed);
        result.and(done)
    }
}

impl Copies {
    fn reserve(&mut self, api: &SharedApi, bytes: usize) -> Result<()> {
        if self.staging.len() == 2 && self.staging.iter().all(|slot| slot.memory.size() >= bytes) {
            return Ok(());
        }
        self.staging.clear();
        for _ in 0..2 {
            let memory = Pinned::new(api, bytes)?;
            self.staging.push(Pages { memory, copied: EventGuard::new(api, false)? });
        }
        Ok(())
    }
}

impl DeviceCopy for Shared {
    fn upload(&self, address: u64, data: &[u8]) -> Result<()> {
        if data.len() > DIRECT_BYTES {
            let ranges: Vec<Range<usize>> =
                (0..data.len()).step_by(STAGING_BYTES).map(|at| at..(at + STAGING_BYTES).min(data.len())).collect();
            return self.fill(address, &ranges, &mut |range, out| {
                out.copy_from_slice(&data[range]);
                Ok(())
            });
        }
        let copies = self.copies()?;
        // SAFETY: the buffer that asks owns the range; `data` outlives the wait.
        let enqueued = unsafe { self.api.copy_to_device(address, data.as_ptr(), data.len(), copies.stream.handle()) };
        let done = copies.stream.synchronize();
        enqueued.and(done).map_err(|e| e.during("cannot copy to the device"))
    }

    fn download(&self, address: u64, out: &mut [u8]) -> Result<()> {
        let copies = self.copies()?;
        // SAFETY: the buffer that asks owns the range; `out` outlives the wait.
        let enqueued = unsafe { self.api.copy_to_host(out.as_mut_ptr(), address, out.len(), copies.stream.handle()) };
        let done = copies.stream.synchronize();
        enqueued.and(done).map_err(|e| e.during("cannot copy from the device"))
    }

    fn place(&self) -> String {
        format!("{self:?}")
    }
}

/// Who frees a device range.
enum Memory {
    Own(DeviceMemory),
    External(External),
}

impl Memory {
    fn address(&self) -> DevicePtr {
        match self {
            Memory::Own(memory) => memory.handle(),
            Memory::External(external) => external.address,
        }
    }
}

/// Memory from an embedding engine's allocator.
pub struct External {
    allocator: Arc<dyn Allocator>,
    address: DevicePtr,
    bytes: usize,
}

impl Drop for External {
    fn drop(&mut self) {
        self.allocator.free(self.address, self.bytes);
    }
}

impl External {
    /// Asks `allocator` for `bytes` bytes.
    pub fn new(allocator: &Arc<dyn Allocator>, bytes: usize) -> Result<External> {
        let address = allocator.allocate(bytes)?;
        if address == 0 {
            return Err(Error::Driver(format!("the allocator has no {bytes} bytes")));
        }
        let external = External { allocator: Arc::clone(allocator), address, bytes };
        if !address.is_multiple_of(64) {
            return Err(Error::Driver(format!(
                "the allocator gave address {address:#x}, which is not 64-byte aligned"
            )));
        }
        Ok(external)
    }

    /// The address it gave.
    pub fn address(&self) -> u64 {
        self.address
    }
}
