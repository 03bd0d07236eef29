//! Bindings of RCCL, and of NCCL, which has the same API, opened at run time: a machine with neither builds and starts the same
//! program.
//!
//! Only the calls that Weldment makes are here. Each symbol is looked up once, when the library is opened, and may be absent: the
//! call then fails with [`Error::MissingSymbol`], and nothing else does. Numbers are those of nccl.h and rccl.h, version 2.

use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::Path;

/// Names under which the library is looked for: AMD's first.
pub const SONAMES: [&str; 4] = ["librccl.so.1", "librccl.so", "libnccl.so.2", "libnccl.so"];

/// The environment variable that names the library to open instead of [`SONAMES`]. PyTorch's `nvidia-nccl` package has one that
/// the loader does not find: `.../nvidia/nccl/lib/libnccl.so.2`.
pub const LIBRARY_VARIABLE: &str = "WELDMENT_RCCL_LIBRARY";

/// Bytes of a [`UniqueId`].
pub const UNIQUE_ID_BYTES: usize = 128;

/// `ncclUniqueId`: made by one rank, given to all, names a communicator.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniqueId(pub [u8; UNIQUE_ID_BYTES]);

/// `ncclComm_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comm(pub usize);

/// `ncclDataType_t`, as far as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum DataType {
    /// `ncclInt8`: any byte, where nothing is added.
    Int8 = 0,
    /// `ncclFloat16`.
    Float16 = 6,
    /// `ncclFloat32`.
    Float32 = 7,
    /// `ncclBfloat16`.
    Bfloat16 = 9,
}

/// `ncclConfig_t` as version 2.14 has it; its own size and version tell later ones what is left at its default.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

impl Config {
    /// Calls return before they are done.
    const NON_BLOCKING: Config =
        Config { size: std::mem::size_of::<Config>(), magic: 0xcafe_beef, version: 21_400, blocking: 0 };
}

/// `ncclSum` of `ncclRedOp_t`.
const SUM: c_int = 0;
/// `ncclSuccess`.
const SUCCESS: c_int = 0;
/// `ncclInProgress`: a call that goes on by itself.
const IN_PROGRESS: c_int = 7;

/// What can go wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No library could be opened.
    #[error("no RCCL and no NCCL ({LIBRARY_VARIABLE} names one): {}", tried.iter().map(|(_, e)| e.as_str()).collect::<Vec<_>>().join("; "))]
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
    #[error("{call}: {text} ({code})")]
    Call {
        /// The call.
        call: &'static str,
        /// Its `ncclResult_t`.
        code: c_int,
        /// The library's explanation, with what it last logged.
        text: String,
    },
}

/// The result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! calls {
    ($($name:ident($($arg:ty),*) -> $out:ty;)*) => {
        /// Every call that this crate looks for.
        pub const SYMBOLS: &[&str] = &[$(stringify!($name)),*];

        #[allow(non_snake_case, reason = "the names of nccl.h, to be searched for")]
        struct Table { $($name: Option<unsafe extern "C" fn($($arg),*) -> $out>,)* }

        impl Table {
            fn load(library: &Library) -> Table {
                Table { $(
                    // SAFETY: the type is that of the function of this name in nccl.h.
                    $name: unsafe { library.get(stringify!($name).as_bytes()) }.ok().map(|symbol| *symbol),
                )* }
            }

            fn missing(&self) -> Vec<&'static str> {
                let mut missing = Vec::new();
                $(if self.$name.is_none() { missing.push(stringify!($name)); })*
                missing
            }
        }
    };
}

calls! {
    ncclGetVersion(*mut c_int) -> c_int;
    ncclGetUniqueId(*mut UniqueId) -> c_int;
    ncclCommInitRankConfig(*mut usize, c_int, UniqueId, c_int, *mut Config) -> c_int;
    ncclCommDestroy(usize) -> c_int;
    ncclCommAbort(usize) -> c_int;
    ncclCommGetAsyncError(usize, *mut c_int) -> c_int;
    ncclAllReduce(*const c_void, *mut c_void, usize, c_int, c_int, usize, *mut c_void) -> c_int;
    ncclReduceScatter(*const c_void, *mut c_void, usize, c_int, c_int, usize, *mut c_void) -> c_int;
    ncclAllGather(*const c_void, *mut c_void, usize, c_int, usize, *mut c_void) -> c_int;
    ncclGetErrorString(c_int) -> *const c_char;
    ncclGetLastError(usize) -> *const c_char;
}

/// An open library.
pub struct Rccl {
    table: Table,
    name: String,
    // Never closed: the library starts threads that would outlive its code.
    _library: ManuallyDrop<Library>,
}

impl fmt::Debug for Rccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rccl({})", self.name)
    }
}

/// A message of `count` elements in device memory, enqueued on `stream`.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// What this rank gives.
    pub from: u64,
    /// Where the result goes; may be `from` for an all-reduce.
    pub to: u64,
    /// Elements: of the whole for an all-reduce, that each rank receives for a reduce-scatter, that each rank sends for an
    /// all-gather.
    pub count: usize,
    /// Their type.
    pub dtype: DataType,
    /// The communicator.
    pub comm: Comm,
    /// The stream, of the communicator's device.
    pub stream: usize,
}

macro_rules! call {
    ($self:ident, $name:ident($($arg:expr),*) $(, $comm:expr)?) => {{
        let call = $self.table.$name.ok_or_else(|| Error::MissingSymbol {
            symbol: stringify!($name),
            library: $self.name.clone(),
        })?;
        // SAFETY: the symbol has this type in C; each method's own requirements are those of the arguments.
        let code = unsafe { call($($arg),*) };
        #[allow(unused_mut, unused_assignments, reason = "calls without a communicator leave it unset")]
        let mut comm = 0;
        $(comm = $comm;)?
        $self.check(stringify!($name), code, comm)
    }};
}

impl Rccl {
    /// Opens the library that `WELDMENT_RCCL_LIBRARY` names, or else the first of [`SONAMES`] that the loader finds.
    ///
    /// # Errors
    /// [`Error::NoLibrary`] with the loader's answer for each name.
    pub fn open() -> Result<Rccl> {
        match std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty()) {
            Some(path) => Rccl::open_any(&[Path::new(&path)]),
            None => Rccl::open_any(&SONAMES.map(Path::new)),
        }
    }

    /// Opens the first of `names`, files or names for the loader to find, that can be.
    ///
    /// # Errors
    /// [`Error::NoLibrary`] with the loader's answers.
    pub fn open_any(names: &[&Path]) -> Result<Rccl> {
        let mut tried = Vec::new();
        for name in names {
            // SAFETY: initialisers of the library run. It is RCCL or NCCL, or what the caller named as such.
            match unsafe { Library::new(name.as_os_str()) } {
                Ok(library) => {
                    let table = Table::load(&library);
                    return Ok(Rccl { table, name: name.display().to_string(), _library: ManuallyDrop::new(library) });
                }
                Err(e) => {
                    let answer = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
                    tried.push((name.display().to_string(), answer));
                }
            }
        }
        Err(Error::NoLibrary { tried })
    }

    /// The library, as it was named to the loader.
    pub fn library(&self) -> &str {
        &self.name
    }

    /// The calls that the library does not have, in the order of [`SYMBOLS`].
    pub fn missing(&self) -> Vec<&'static str> {
        self.table.missing()
    }

    /// Turns an answer into a result.
    fn check(&self, call: &'static str, code: c_int, comm: usize) -> Result<()> {
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: both take any number and any communicator, null too, and give a NUL-terminated text or null.
        let texts =
            unsafe { [self.table.ncclGetErrorString.map(|f| f(code)), self.table.ncclGetLastError.map(|f| f(comm))] };
        let text = texts.into_iter().flatten().filter(|text| !text.is_null());
        // SAFETY: not null, and kept by the library.
        let text: Vec<String> =
            text.map(|t| unsafe { CStr::from_ptr(t) }.to_string_lossy().trim().to_owned()).collect();
        let text = text.into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("; ");
        Err(Error::Call { call, code, text })
    }

    /// The version, `major * 10,000 + minor * 100 + patch`.
    ///
    /// # Errors
    /// As the call.
    pub fn version(&self) -> Result<i32> {
        let mut version = 0;
        call!(self, ncclGetVersion(&mut version))?;
        Ok(version)
    }

    /// A new name for a communicator; one rank makes it and gives it to the others.
    ///
    /// # Errors
    /// As the call.
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; UNIQUE_ID_BYTES]);
        call!(self, ncclGetUniqueId(&mut id))?;
        Ok(id)
    }

    /// Begins to join the communicator `id` of `world` ranks on the thread's current device. Nothing may be sent before
    /// [`Rccl::ready`] says so.
    ///
    /// # Errors
    /// As the call.
    pub fn join(&self, id: UniqueId, rank: u32, world: u32) -> Result<Comm> {
        let (mut comm, mut config) = (0usize, Config::NON_BLOCKING);
        call!(self, ncclCommInitRankConfig(&mut comm, world as c_int, id, rank as c_int, &mut config))?;
        Ok(Comm(comm))
    }

    /// True once what was last asked of a communicator is done or enqueued.
    ///
    /// # Errors
    /// What that ran into, or the call's own.
    ///
    /// # Safety
    /// `comm` is live and of this library.
    pub unsafe fn ready(&self, comm: Comm) -> Result<bool> {
        let mut code = SUCCESS;
        call!(self, ncclCommGetAsyncError(comm.0, &mut code), comm.0)?;
        self.check("ncclCommGetAsyncError", code, comm.0)?;
        Ok(code != IN_PROGRESS)
    }

    /// Frees a communicator once its work is done.
    ///
    /// # Errors
    /// As the call.
    ///
    /// # Safety
    /// `comm` is of this library and not used afterwards.
    pub unsafe fn destroy(&self, comm: Comm) -> Result<()> {
        call!(self, ncclCommDestroy(comm.0))
    }

    /// Ends what a communicator is doing, whatever the other ranks do, and frees it.
    ///
    /// # Errors
    /// As the call.
    ///
    /// # Safety
    /// As [`Rccl::destroy`].
    pub unsafe fn abort(&self, comm: Comm) -> Result<()> {
        call!(self, ncclCommAbort(comm.0))
    }

    /// Sums over all ranks.
    ///
    /// # Errors
    /// As the call.
    ///
    /// # Safety
    /// Memory, stream and communicator of `m` are live until the stream has passed, and every rank makes the same calls.
    pub unsafe fn all_reduce(&self, m: &Message) -> Result<()> {
        let (from, to, stream) = (m.from as *const c_void, m.to as *mut c_void, m.stream as *mut c_void);
        call!(self, ncclAllReduce(from, to, m.count, m.dtype as c_int, SUM, m.comm.0, stream), m.comm.0)
    }

    /// Sums over all ranks; each receives its part.
    ///
    /// # Errors
    /// As the call.
    ///
    /// # Safety
    /// As [`Rccl::all_reduce`].
    pub unsafe fn reduce_scatter(&self, m: &Message) -> Result<()> {
        let (from, to, stream) = (m.from as *const c_void, m.to as *mut c_void, m.stream as *mut c_void);
        call!(self, ncclReduceScatter(from, to, m.count, m.dtype as c_int, SUM, m.comm.0, stream), m.comm.0)
    }

    /// Gives every rank what each has, in the order of ranks.
    ///
    /// # Errors
    /// As the call.
    ///
    /// # Safety
    /// As [`Rccl::all_reduce`].
    pub unsafe fn all_gather(&self, m: &Message) -> Result<()> {
        let (from, to, stream) = (m.from as *const c_void, m.to as *mut c_void, m.stream as *mut c_void);
        call!(self, ncclAllGather(from, to, m.count, m.dtype as c_int, m.comm.0, stream), m.comm.0)
    }
}
