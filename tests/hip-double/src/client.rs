//! Opens the double's shared library and works its controls.

use libloading::Library;
use std::ffi::{c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The shared library beside the program that runs: cargo builds it with this crate, into the folder of the tests' own
/// executables.
///
/// # Errors
/// If it is not there.
pub fn locate() -> Result<PathBuf, String> {
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    let folder = exe.parent().ok_or("the program has no folder")?;
    let mut found = Vec::new();
    for folder in [folder.to_path_buf(), folder.join("deps")] {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("libhip_double") && name.ends_with(".so") {
                let time = entry.metadata().and_then(|m| m.modified()).map_err(|e| e.to_string())?;
                found.push((time, entry.path()));
            }
        }
    }
    // Several of different builds may lie there; ours is the newest.
    found.into_iter().max().map(|(_, path)| path).ok_or_else(|| format!("no libhip_double*.so in {}", folder.display()))
}

/// The double, held by one test at a time. Dropping it resets everything but what is still allocated.
pub struct Double {
    library: Library,
    path: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Double {
    /// Opens the library, when no other test of this process holds it, and resets it.
    ///
    /// # Errors
    /// If it is not found.
    pub fn open() -> Result<Double, String> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let path = locate()?;
        // SAFETY: our own library, without initialisers.
        let library = unsafe { Library::new(&path) }.map_err(|e| format!("{}: {e}", path.display()))?;
        let double = Double { library, path, _turn: turn };
        double.reset();
        Ok(double)
    }

    /// The library's file, to be opened as HIP.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn control<T: Copy>(&self, name: &str) -> T {
        // SAFETY: the callers below give each control the type that `control.rs` gives it.
        let symbol = unsafe { self.library.get::<T>(name.as_bytes()) };
        *symbol.unwrap_or_else(|e| panic!("{}: {e}", self.path.display()))
    }

    /// Forgets calls, breaches and settings.
    pub fn reset(&self) {
        self.control::<extern "C" fn()>("weldment_double_reset")();
    }

    /// Makes call `index`, counted from the last reset, fail with the `hipError_t` `code`.
    pub fn fail_at(&self, index: u64, code: i32) {
        self.control::<extern "C" fn(u64, c_int)>("weldment_double_fail_at")(index, code);
    }

    /// Makes the kernel that runs as number `index` end in a device fault.
    pub fn fault_at(&self, index: u64, code: i32) {
        self.control::<extern "C" fn(u64, c_int)>("weldment_double_fault_at")(index, code);
    }

    /// Number of calls since the last reset.
    pub fn calls(&self) -> u64 {
        self.control::<extern "C" fn() -> u64>("weldment_double_calls")()
    }

    /// Bytes of device memory; 1 GiB after a reset.
    pub fn set_memory(&self, bytes: u64) {
        self.control::<extern "C" fn(u64)>("weldment_double_set_memory")(bytes);
    }

    /// Number of devices; 1 after a reset.
    pub fn set_devices(&self, devices: i32) {
        self.control::<extern "C" fn(c_int)>("weldment_double_set_devices")(devices);
    }

    /// Whether work waits for somebody who waits for it; true after a reset.
    pub fn set_lazy(&self, lazy: bool) {
        self.control::<extern "C" fn(bool)>("weldment_double_set_lazy")(lazy);
    }

    /// Whether waits and allocations of any thread spoil the captures of all, as with ROCm up to 7.2.0; false after a reset.
    pub fn set_captures_spoil(&self, spoil: bool) {
        self.control::<extern "C" fn(bool)>("weldment_double_set_captures_spoil")(spoil);
    }

    /// The device's processor; `gfx942:sramecc+:xnack-` after a reset.
    ///
    /// # Panics
    /// If the name has more than 200 bytes.
    pub fn set_arch(&self, arch: &str) {
        assert!(arch.len() <= 200, "{arch}");
        self.control::<extern "C" fn(*const u8, usize)>("weldment_double_set_arch")(arch.as_ptr(), arch.len());
    }

    fn lines(&self, what: c_int) -> Vec<String> {
        let get = self.control::<extern "C" fn(c_int, *mut c_char, usize) -> usize>("weldment_double_text");
        let mut room = vec![0u8; 4096];
        loop {
            let bytes = get(what, room.as_mut_ptr().cast(), room.len());
            if bytes <= room.len() {
                let text = String::from_utf8_lossy(&room[..bytes]).into_owned();
                return text.lines().map(str::to_owned).collect();
            }
            room.resize(bytes, 0);
        }
    }

    /// The calls since the last reset, `hipMalloc(64 bytes)`.
    pub fn log(&self) -> Vec<String> {
        self.lines(0)
    }

    /// How often `name` was called since the last reset.
    pub fn count(&self, name: &str) -> usize {
        self.log().iter().filter(|call| call.split('(').next() == Some(name)).count()
    }

    /// What is still allocated.
    pub fn leaks(&self) -> Vec<String> {
        self.lines(1)
    }

    /// Breaches of the protocol since the last reset.
    pub fn violations(&self) -> Vec<String> {
        self.lines(2)
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.reset();
    }
}
