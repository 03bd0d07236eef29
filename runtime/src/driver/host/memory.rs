//! Anonymous memory of the host, and read-only memory of others.

use crate::driver::{Buffer, Placement, SharedBytes};
use crate::error::{Error, Result};
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
        Placement::State | Placement::Pinned => libc::MADV_NOHUGEPAGE,
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
