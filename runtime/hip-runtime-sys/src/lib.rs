//! Bindings of the HIP runtime (libamdhip64), opened at run time: a machine without ROCm builds and starts the same program.
//!
//! Only the calls that Weldment makes are here. Each symbol is looked up once, when the library is opened, and may be absent:
//! the call then fails with [`Error::MissingSymbol`], and nothing else does. Numbers and structure layouts are those of ROCm
//! 5.2 to 7.x, which agree on all that is used; the one structure that changed between them is read by [`Hip::arch_name`].

mod arch;
mod symbols;
mod types;

pub use arch::Arch;
pub use symbols::SYMBOLS;
pub use types::*;

use libloading::Library;
use std::ffi::{CStr, c_int, c_uint};
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::Path;

/// Names under which the library is looked for, the newest ABI first.
pub const SONAMES: [&str; 4] = ["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so"];

/// The environment variable that names the library to open instead of [`SONAMES`].
pub const LIBRARY_VARIABLE: &str = "WELDMENT_HIP_LIBRARY";

/// What can go wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No library could be opened.
    #[error("no HIP runtime: {}", tried.iter().map(|(_, e)| e.as_str()).collect::<Vec<_>>().join("; "))]
    NoLibrary {
        /// Each name that was tried, and the loader's answer.
        tried: Vec<(String, String)>,
    },
    /// The library does not have a call.
    #[error("{library} has no {symbol}")]
    MissingSymbol {
        /// The call.
        symbol: &'static str,
        /// The library, as it was named to the loader.
        library: String,
    },
    /// A call failed.
    #[error("{call}: {name} ({code}): {text}")]
    Call {
        /// The call.
        call: &'static str,
        /// Its `hipError_t`.
        code: c_int,
        /// The error's name (`hipErrorOutOfMemory`).
        name: String,
        /// HIP's explanation.
        text: String,
    },
    /// A device does not say which processor it is.
    #[error("device {device}: no processor name in {call}'s answer")]
    NoArch {
        /// The device.
        device: c_int,
        /// The call that was asked.
        call: &'static str,
    },
}

impl Error {
    /// The `hipError_t` of a failed call.
    pub fn code(&self) -> Option<c_int> {
        match self {
            Error::Call { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// The result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An open HIP runtime. The calls are methods with HIP's own names; they are `unsafe` because they take raw pointers and
/// handles, whose validity only the caller knows.
pub struct Hip {
    table: symbols::Table,
    name: String,
    // Never closed: the HIP runtime starts threads and registers exit handlers that would outlive its code.
    _library: ManuallyDrop<Library>,
}

impl fmt::Debug for Hip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hip({})", self.name)
    }
}

impl Hip {
    /// Opens the library that `WELDMENT_HIP_LIBRARY` names, or else the first of [`SONAMES`] that the loader finds.
    ///
    /// # Errors
    /// [`Error::NoLibrary`] with the loader's answer for each name.
    pub fn open() -> Result<Hip> {
        match std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty()) {
            Some(path) => Hip::open_path(Path::new(&path)),
            None => Hip::open_any(&SONAMES.map(Path::new)),
        }
    }

    /// Opens `path`, a file or a name for the loader to find.
    ///
    /// # Errors
    /// [`Error::NoLibrary`] with the loader's answer.
    pub fn open_path(path: &Path) -> Result<Hip> {
        Hip::open_any(&[path])
    }

    fn open_any(names: &[&Path]) -> Result<Hip> {
        let mut tried = Vec::new();
        for name in names {
            // SAFETY: initialisers of the library run. It is the HIP runtime, or what the caller named as such.
            match unsafe { Library::new(name.as_os_str()) } {
                Ok(library) => {
                    let table = symbols::Table::load(&library);
                    let name = name.display().to_string();
                    return Ok(Hip { table, name, _library: ManuallyDrop::new(library) });
                }
                Err(e) => tried.push((name.display().to_string(), loader_answer(&e))),
            }
        }
        Err(Error::NoLibrary { tried })
    }

    /// The library, as it was named to the loader.
    pub fn library(&self) -> &str {
        &self.name
    }

    /// The calls that the library does not have and that something needs, in the order of [`SYMBOLS`]. One of the two forms of
    /// `hipGetDeviceProperties` is enough, and of `hipGraphInstantiate` too; nothing needs `hipGraphUpload`, which old
    /// releases lack, or `hipGraphKernelNodeGetParams`, and only ranks that share memory `hipExtMallocWithFlags`,
    /// `hipHostGetDevicePointer` and `hipIpc...`.
    pub fn missing(&self) -> Vec<&'static str> {
        let missing = self.table.missing();
        let has = |name: &str| !missing.contains(&name);
        let spare = |name: &str| match name {
            "hipGetDevicePropertiesR0600" => has("hipGetDeviceProperties"),
            "hipGetDeviceProperties" => has("hipGetDevicePropertiesR0600"),
            "hipGraphInstantiateWithFlags" => has("hipGraphInstantiate"),
            "hipGraphInstantiate" => has("hipGraphInstantiateWithFlags"),
            "hipGraphUpload"
            | "hipExtMallocWithFlags"
            | "hipGraphKernelNodeGetParams"
            | "hipHostGetDevicePointer"
            | "hipIpcGetMemHandle"
            | "hipIpcOpenMemHandle"
            | "hipIpcCloseMemHandle" => SYMBOLS.iter().any(|name| has(name)),
            _ => false,
        };
        missing.iter().copied().filter(|name| !spare(name)).collect()
    }

    /// True if the library has the call `name`.
    pub fn has(&self, name: &str) -> bool {
        SYMBOLS.contains(&name) && !self.table.missing().contains(&name)
    }

    /// `hipGetErrorName`, or the number where the library cannot tell.
    pub fn error_name(&self, code: c_int) -> String {
        self.text_of(self.table.error_name, code).unwrap_or_else(|| format!("hipError {code}"))
    }

    /// `hipGetErrorString`, or nothing where the library cannot tell.
    pub fn error_text(&self, code: c_int) -> String {
        self.text_of(self.table.error_string, code).unwrap_or_default()
    }

    fn text_of(&self, call: Option<symbols::TextOf>, code: c_int) -> Option<String> {
        // SAFETY: both calls take any number and return a static NUL-terminated text or null.
        let text = unsafe { call?(code) };
        if text.is_null() {
            return None;
        }
        // SAFETY: not null, and static as above.
        Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    /// Turns an answer into a result. HIP keeps the last error of a thread until it is read; it is taken out here, so that an
    /// engine in the same process does not find ours.
    fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        if code == hipSuccess {
            return Ok(());
        }
        if let Some(last) = self.table.last_error {
            // SAFETY: takes nothing and returns a number.
            unsafe { last() };
        }
        Err(Error::Call { call, code, name: self.error_name(code), text: self.error_text(code) })
    }

    fn absent(&self, symbol: &'static str) -> Error {
        Error::MissingSymbol { symbol, library: self.name.clone() }
    }

    /// `(hipRuntimeGetVersion, hipDriverGetVersion)`: on ROCm both are `major * 10,000,000 + minor * 100,000 + build`.
    ///
    /// # Errors
    /// As the calls.
    pub fn versions(&self) -> Result<(c_int, c_int)> {
        let (mut runtime, mut driver) = (0, 0);
        // SAFETY: the out pointers are live.
        unsafe {
            self.hipRuntimeGetVersion(&mut runtime)?;
            self.hipDriverGetVersion(&mut driver)?;
        }
        Ok((runtime, driver))
    }

    /// `hipInit`, then `hipGetDeviceCount`; no device is 0, not an error.
    ///
    /// # Errors
    /// As the calls, apart from the ways in which they say that there is no device.
    pub fn device_count(&self) -> Result<usize> {
        let mut count = 0;
        // ROCm 5 answers hipErrorInvalidDevice to hipInit without a device, later ones hipErrorNoDevice.
        let none = |e: &Error| e.code().is_some_and(|code| [hipErrorNoDevice, hipErrorInvalidDevice].contains(&code));
        // SAFETY: hipInit takes a number; the out pointer is live.
        let answer = unsafe { self.hipInit(0).and_then(|()| self.hipGetDeviceCount(&mut count)) };
        match answer {
            Ok(()) => Ok(usize::try_from(count).unwrap_or(0)),
            Err(e) if none(&e) => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// One attribute of a device.
    ///
    /// # Errors
    /// As `hipDeviceGetAttribute`.
    pub fn device_attribute(&self, attribute: hipDeviceAttribute_t, device: c_int) -> Result<c_int> {
        let mut value = 0;
        // SAFETY: the out pointer is live.
        unsafe { self.hipDeviceGetAttribute(&mut value, attribute, device) }?;
        Ok(value)
    }

    /// The product name of a device.
    ///
    /// # Errors
    /// As `hipDeviceGetName`.
    pub fn device_name(&self, device: c_int) -> Result<String> {
        let mut name = [0u8; 256];
        // SAFETY: the buffer has the length that is passed.
        unsafe { self.hipDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, device) }?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        Ok(String::from_utf8_lossy(&name[..end]).into_owned())
    }

    /// The processor of a device with its features, as `gfx942:sramecc+:xnack-`.
    ///
    /// `hipDeviceProp_t` has two layouts. ROCm 6 and later export `hipGetDevicePropertiesR0600` for the new one beside the old
    /// name for the old one. The call writes into a buffer larger than either; where the name is not at the place this crate
    /// knows, the buffer is searched.
    ///
    /// # Errors
    /// As the call, or [`Error::NoArch`].
    pub fn arch_name(&self, device: c_int) -> Result<Arch> {
        const BYTES: usize = 16 << 10;
        let mut answer = vec![0u64; BYTES / 8];
        let into = answer.as_mut_ptr().cast();
        let (call, offset) = if self.has("hipGetDevicePropertiesR0600") {
            // SAFETY: the buffer is aligned for and several times as large as the structure (1,472 bytes).
            unsafe { self.hipGetDevicePropertiesR0600(into, device) }?;
            ("hipGetDevicePropertiesR0600", 1160)
        } else {
            // SAFETY: as above (792 bytes).
            unsafe { self.hipGetDeviceProperties(into, device) }?;
            ("hipGetDeviceProperties", 396)
        };
        let bytes: Vec<u8> = answer.iter().flat_map(|word| word.to_ne_bytes()).collect();
        arch::find(&bytes, offset).ok_or(Error::NoArch { device, call })
    }

    /// `(free, total)` bytes of the current device.
    ///
    /// # Errors
    /// As `hipMemGetInfo`.
    pub fn memory_info(&self) -> Result<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the out pointers are live.
        unsafe { self.hipMemGetInfo(&mut free, &mut total) }?;
        Ok((free, total))
    }

    /// An executable form of `graph`, by whichever of the two calls the library has.
    ///
    /// # Errors
    /// As the call.
    ///
    /// # Safety
    /// `graph` is a graph of this runtime that was not destroyed.
    pub unsafe fn graph_instantiate(&self, graph: hipGraph_t) -> Result<hipGraphExec_t> {
        let mut exec: hipGraphExec_t = std::ptr::null_mut();
        if self.has("hipGraphInstantiateWithFlags") {
            // SAFETY: the out pointer is live; the caller answers for the graph.
            unsafe { self.hipGraphInstantiateWithFlags(&mut exec, graph, 0) }?;
        } else {
            let none = std::ptr::null_mut();
            // SAFETY: as above; no node or log is asked for.
            unsafe { self.hipGraphInstantiate(&mut exec, graph, none, std::ptr::null_mut(), 0) }?;
        }
        Ok(exec)
    }
}

/// The loader's own words; libloading keeps them below its own.
fn loader_answer(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// `hipRuntimeGetVersion`'s number as `(major, minor, build)`.
pub fn version_parts(version: c_int) -> (c_uint, c_uint, c_uint) {
    let version = c_uint::try_from(version).unwrap_or(0);
    (version / 10_000_000, version / 100_000 % 100, version % 100_000)
}
