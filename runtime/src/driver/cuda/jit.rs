//! PTX to machine code by the driver's own compiler, kept in the cache: the result depends on the text, the driver, the device's
//! generation and nothing else.

use super::{Cuda, Handle};
use crate::artifact::write_atomically;
use crate::driver::gpu::api::{ApiError, ApiResult, LoadReport};
use crate::log::{self, Level};
use cudarc::driver::sys::{CUjit_option_enum as Option_, CUjitInputType_enum};
use std::ffi::{CStr, c_void};
use std::path::{Path, PathBuf};
use std::time::Instant;

const MAGIC: &[u8; 8] = b"WELDJIT1";
/// Magic and blake3 of what follows.
const HEADER_BYTES: usize = 8 + 32;
const LOG_BYTES: usize = 16 << 10;
/// The driver's optimisation level; part of the key.
const OPTIMISATION_LEVEL: usize = 4;

/// Machine code for the device, compiled or from the cache. An image that is machine code already comes back as it is.
pub fn cubin(cuda: &Cuda, image: &[u8], cache: Option<&Path>) -> ApiResult<(Vec<u8>, LoadReport)> {
    if image.starts_with(b"\x7fELF") {
        return Ok((image.to_vec(), LoadReport::default()));
    }
    let path = cache.map(|folder| path(cuda, image, folder));
    if let Some(cubin) = path.as_deref().and_then(read) {
        return Ok((cubin, LoadReport { jit: None, cached: true }));
    }
    let started = Instant::now();
    let cubin = compile(cuda, image)?;
    let jit = started.elapsed();
    if let Some(path) = path
        && let Err(e) = write(&path, &cubin)
    {
        // The code is at hand: a cache that cannot be written costs the next start, nothing else.
        log::write(Level::Warn, format_args!("compiled code is not cached: {e}"));
    }
    Ok((cubin, LoadReport { jit: Some(jit), cached: false }))
}

fn path(cuda: &Cuda, image: &[u8], folder: &Path) -> PathBuf {
    let mut key = blake3::Hasher::new();
    key.update(blake3::hash(image).as_bytes());
    key.update(&cuda.info.driver_version.to_le_bytes());
    key.update(&cuda.capability.to_le_bytes());
    key.update(&OPTIMISATION_LEVEL.to_le_bytes());
    folder.join("jit").join(format!("{}.cubin", key.finalize().to_hex()))
}

/// The code in a cache file; `None` if it is missing or damaged.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(path).ok()?;
    let (header, code) = bytes.split_at_checked(HEADER_BYTES)?;
    let (magic, hash) = header.split_at(MAGIC.len());
    if magic != MAGIC || blake3::hash(code).as_bytes() != hash {
        log::write(Level::Warn, format_args!("{} is damaged; compiling again", path.display()));
        return None;
    }
    bytes.drain(..HEADER_BYTES);
    Some(bytes)
}

fn write(path: &Path, code: &[u8]) -> crate::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| crate::Error::io(folder, "cannot create", e))?;
    }
    write_atomically(path, |out| {
        out.write_all(MAGIC)?;
        out.write_all(blake3::hash(code).as_bytes())?;
        out.write_all(code)
    })
}

/// A linker of the driver, destroyed with what it gave.
struct Linker<'a> {
    cuda: &'a Cuda,
    state: Handle,
}

impl Drop for Linker<'_> {
    fn drop(&mut self) {
        // SAFETY: created by `compile`, destroyed here alone.
        unsafe { (self.cuda.functions.link_destroy)(self.state) };
    }
}

fn compile(cuda: &Cuda, text: &[u8]) -> ApiResult<Vec<u8>> {
    let f = cuda.functions;
    let mut terminated = Vec::with_capacity(text.len() + 1);
    terminated.extend_from_slice(text);
    terminated.push(0);
    let mut log = vec![0u8; LOG_BYTES];
    let mut options = [
        Option_::CU_JIT_ERROR_LOG_BUFFER as u32,
        Option_::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES as u32,
        Option_::CU_JIT_OPTIMIZATION_LEVEL as u32,
    ];
    // Numbers travel as the value of a pointer.
    let number = std::ptr::without_provenance_mut::<c_void>;
    let mut values = [log.as_mut_ptr().cast::<c_void>(), number(LOG_BYTES), number(OPTIMISATION_LEVEL)];
    let count = options.len() as u32;
    let mut state: Handle = std::ptr::null_mut();
    // SAFETY: three options with their values; the log outlives the linker, which is destroyed before this function returns.
    let code = unsafe { (f.link_create)(count, options.as_mut_ptr(), values.as_mut_ptr(), &mut state) };
    f.check("cuLinkCreate", code)?;
    let linker = Linker { cuda, state };
    let (data, size) = (terminated.as_mut_ptr().cast::<c_void>(), terminated.len());
    let (kind, none) = (CUjitInputType_enum::CU_JIT_INPUT_PTX as u32, std::ptr::null_mut());
    let name = c"weldment".as_ptr();
    // SAFETY: terminated text of that size, copied by the call; no further options.
    let code = unsafe { (f.link_add)(linker.state, kind, data, size, name, 0, none, std::ptr::null_mut()) };
    let mut result = f.check("cuLinkAddData", code);
    let (mut cubin, mut bytes) = (std::ptr::null_mut::<c_void>(), 0usize);
    if result.is_ok() {
        // SAFETY: writes a pointer to memory of the linker, and its size.
        result = f.check("cuLinkComplete", unsafe { (f.link_complete)(linker.state, &mut cubin, &mut bytes) });
    }
    let code = match result {
        // SAFETY: the linker holds `bytes` bytes there until it is destroyed, after the copy.
        Ok(()) => Ok(unsafe { std::slice::from_raw_parts(cubin.cast::<u8>(), bytes) }.to_vec()),
        Err(e) => Err(e),
    };
    drop(linker);
    code.map_err(|e| {
        let said =
            CStr::from_bytes_until_nul(&log).map_or_else(|_| String::new(), |l| l.to_string_lossy().into_owned());
        ApiError { text: if said.trim().is_empty() { e.text } else { format!("{}\n{}", e.text, said.trim()) }, ..e }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_cache_file_is_no_code() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jit").join("a.cubin");
        assert_eq!(read(&path), None);
        write(&path, b"code").unwrap();
        assert_eq!(read(&path).as_deref(), Some(&b"code"[..]));
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(read(&path), None, "byte {at}");
        }
        std::fs::write(&path, &whole[..20]).unwrap();
        assert_eq!(read(&path), None);
    }
}
