//! Anonymous memory of the host, and read-only memory of others.

use crate::driver::gpu::External;
use crate::driver::{Buffer, Placement, SharedBytes};
use crate::error::{Error, Result};
use memmap2::MmapOptions;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Anonymous pages, unmapped on drop.
struct Pages {
    address: *mut libc::c_void,
    bytes: usize,
}

// SAFETY: the range is only unmapped here, once; accesses go through `Buffer`.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `allocate` with this size and nothing uses it any more.
        unsafe { libc::munmap(self.address, self.bytes) };
    }
}

/// Maps `bytes` zeroed bytes. Untouched pages cost nothing, so caches may be sized for the longest sequence.
pub fn allocate(bytes: usize, placement: Placement) -> Result<Buffer> {
    let size = bytes.max(1).checked_next_multiple_of(4096).filter(|n| *n < isize::MAX as usize);
    let failed = |reason: String| Error::Driver(format!("cannot allocate {bytes} bytes for {placement:?}: {reason}"));
    let size = size.ok_or_else(|| failed("size overflows".into()))?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh anonymous mapping at an address the system chooses.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(failed(std::io::Error::last_os_error().to_string()));
    }
    // Dense memory wants huge pages. A paged cache and outputs at their maximum are touched sparsely: zeroing 2 MiB for each
    // first touch would cost more than it brings.
    let advice = match placement {
        Placement::Arena | Placement::Weights => libc::MADV_HUGEPAGE,
        Placement::State | Placement::Output | Placement::Pinned => libc::MADV_NOHUGEPAGE,
    };
    // SAFETY: the range is ours; advice does not change its contents. A refusal is harmless.
    unsafe { libc::madvise(address, size, advice) };
    let owner = Arc::new(Pages { address, bytes: size });
    // SAFETY: the pages are readable and writable until `owner` drops.
    Ok(unsafe { Buffer::from_raw(address.cast(), bytes, true, owner) })
}

/// Wraps shared read-only bytes: the host needs no copy.
pub fn import(bytes: Arc<dyn SharedBytes>) -> Buffer {
    let slice = bytes.bytes();
    let (address, len) = (slice.as_ptr().cast_mut(), slice.len());
    // SAFETY: `SharedBytes` promises a fixed address and length while it lives, and the Arc keeps it alive; not writable.
    unsafe { Buffer::from_raw(address, len, false, Arc::new(bytes)) }
}

/// Memory of an embedding engine's allocator, zeroed.
pub fn external(memory: External, bytes: usize) -> Buffer {
    let address = std::ptr::with_exposed_provenance_mut::<u8>(memory.address() as usize);
    // SAFETY: `Allocator` promises that many writable bytes that nobody else uses.
    unsafe { std::ptr::write_bytes(address, 0, bytes) };
    // SAFETY: as above, until the owner gives them back.
    unsafe { Buffer::from_raw(address, bytes, true, Arc::new(memory)) }
}

/// Memory of an embedding engine.
pub fn wrap(address: u64, bytes: usize) -> Result<Buffer> {
    if address == 0 || !address.is_multiple_of(64) {
        return Err(Error::InvalidInput(format!("external memory at {address:#x} is not 64-byte aligned")));
    }
    let address = std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
    // SAFETY: who made the `ExternalMemory` promised that the range stays readable and writable while it is used.
    Ok(unsafe { Buffer::from_raw(address, bytes, true, Arc::new(())) })
}

/// `total` bytes of a shared file from `at` on, all mapped; the buffer is the `bytes` bytes `own` bytes in.
pub fn map_shared(file: &OwnedFd, at: u64, total: u64, own: u64, bytes: u64) -> Result<Buffer> {
    let failed = |reason: String| Error::Driver(format!("cannot map {total} bytes of shared memory: {reason}"));
    let [Ok(length), Ok(own), Ok(bytes)] = [total, own, bytes].map(usize::try_from) else {
        return Err(failed("the size overflows".into()));
    };
    if own.checked_add(bytes).is_none_or(|end| end > length) {
        return Err(failed(format!("{bytes} bytes at {own} lie outside")));
    }
    let map = MmapOptions::new().offset(at).len(length).map_raw(file).map_err(|e| failed(e.to_string()))?;
    let address = map.as_mut_ptr().wrapping_add(own);
    // SAFETY: in the mapping (checked above), which the owner keeps; the file is as large, and no rank makes it smaller.
    Ok(unsafe { Buffer::from_raw(address, bytes, true, Arc::new(map)) })
}
