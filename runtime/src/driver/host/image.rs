//! Code: copied into anonymous memory, hashed there, then made read-execute. Never writable and executable at once.

use crate::driver::Module;
use crate::error::{Error, Result};
use std::any::Any;

/// The host's kernel ABI: runs programs `begin..end` of the launch's linear grid (x fastest). `args` are the launch's
/// pointers, `dims` the dims block.
pub type KernelFn = unsafe extern "C" fn(args: *const *mut u8, dims: *const i64, begin: i64, end: i64);

/// A loaded, executable code image.
#[derive(Debug)]
pub struct Image {
    address: *mut libc::c_void,
    bytes: usize,
    entries: Vec<KernelFn>,
}

// SAFETY: the image is immutable once loaded.
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: mapped by `load` with this size; graphs hold the image, so no kernel runs any more.
        unsafe { libc::munmap(self.address, self.bytes) };
    }
}

impl Image {
    /// Loads `code`, whose blake3 must be `hash`, with kernels at the byte offsets `entries`.
    pub fn load(code: &[u8], hash: &str, entries: &[u64]) -> Result<Image> {
        if let Some(entry) = entries.iter().find(|entry| **entry >= code.len() as u64) {
            return Err(Error::Driver(format!("kernel entry {entry} lies outside the image of {} bytes", code.len())));
        }
        let bytes = code.len().max(1).next_multiple_of(4096);
        let failed = |what| Error::Driver(format!("{what} the code image: {}", std::io::Error::last_os_error()));
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh anonymous mapping at an address the system chooses.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(failed("cannot map"));
        }
        let mut image = Image { address, bytes, entries: Vec::with_capacity(entries.len()) };
        // SAFETY: the mapping is fresh, writable, at least `code.len()` long and referenced by nobody else.
        let copy = unsafe { std::slice::from_raw_parts_mut(address.cast::<u8>(), code.len()) };
        copy.copy_from_slice(code);
        if blake3::hash(copy).to_hex().as_str() != hash {
            return Err(Error::Driver("the code image does not hash to what the manifest says".into()));
        }
        // SAFETY: the whole mapping is ours, and no reference to it is used after this call.
        if unsafe { libc::mprotect(address, bytes, libc::PROT_READ | libc::PROT_EXEC) } != 0 {
            return Err(failed("cannot protect"));
        }
        for entry in entries {
            // SAFETY: the offset lies in the image (checked above), which is executable from here on; that a kernel of the
            // ABI starts there is what the hash vouches for: a compiled artifact is code.
            let kernel = unsafe { std::mem::transmute::<*mut u8, KernelFn>(address.cast::<u8>().add(*entry as usize)) };
            image.entries.push(kernel);
        }
        Ok(image)
    }

    /// The kernel at index `index`.
    pub fn kernel(&self, index: usize) -> Option<KernelFn> {
        self.entries.get(index).copied()
    }
}

impl Module for Image {
    fn as_any(&self) -> &dyn Any {
        self
    }
}
