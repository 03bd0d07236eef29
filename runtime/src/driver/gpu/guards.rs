//! Owners of raw handles: each destroys its own, once, and keeps what must outlive it. A failed destruction goes to
//! [`teardown`], which knows whether somebody listens.

use super::api::*;
use crate::driver::teardown;
use crate::error::Result;
use std::fmt;
use std::sync::Arc;

/// The library's device, shared by everything that holds a handle of it.
pub type SharedApi = Arc<dyn Api>;

/// Reports a failure of a destructor.
pub(super) fn note(what: &str, result: ApiResult<()>) {
    if let Err(e) = result {
        teardown::report(format_args!("{what}: {e}"));
    }
}

/// Makes the device current and destroys; where the one fails the other is tried all the same, for most handles know their device.
fn destroy(api: &SharedApi, what: &str, call: impl FnOnce(&dyn Api) -> ApiResult<()>) {
    note(what, api.make_current());
    note(what, call(&**api));
}

macro_rules! guard {
    ($(#[$doc:meta])* $name:ident($handle:ty), $destroy:ident, $what:literal) => {
        $(#[$doc])*
        pub struct $name {
            api: SharedApi,
            handle: $handle,
        }

        impl $name {
            /// Takes over `handle`.
            ///
            /// # Safety
            /// The handle is live, from `api`, and destroyed by nobody else.
            pub unsafe fn own(api: &SharedApi, handle: $handle) -> Self {
                $name { api: Arc::clone(api), handle }
            }

            /// The handle, live as long as `self`.
            #[allow(dead_code, reason = "some are only owned")]
            pub fn handle(&self) -> $handle {
                self.handle
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: `own` was promised a live handle that only this guard destroys.
                destroy(&self.api, $what, |api| unsafe { api.$destroy(self.handle) });
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:?})"), self.handle)
            }
        }
    };
}

guard!(
    /// A stream of our own.
    StreamGuard(StreamHandle), destroy_stream, "destroying a stream"
);
guard!(
    /// An event.
    EventGuard(EventHandle), destroy_event, "destroying an event"
);
guard!(
    /// A loaded module.
    ModuleGuard(ModuleHandle), unload_module, "unloading a module"
);
guard!(
    /// A captured graph, needed until it is instantiated.
    GraphGuard(GraphHandle), destroy_graph, "destroying a graph"
);
guard!(
    /// An executable graph.
    ExecGuard(ExecHandle), destroy_exec, "destroying an executable graph"
);
guard!(
    /// Device memory.
    DeviceMemory(DevicePtr), free, "freeing device memory"
);

guard!(
    /// Memory of another process, mapped.
    ImportedMemory(DevicePtr), close_import, "unmapping memory of another rank"
);

impl StreamGuard {
    /// A new stream.
    pub fn new(api: &SharedApi) -> Result<StreamGuard> {
        let handle = api.create_stream().map_err(|e| e.during("cannot create a stream"))?;
        // SAFETY: just created, owned by nobody else.
        Ok(unsafe { StreamGuard::own(api, handle) })
    }

    /// Waits until everything in the stream is done.
    pub fn synchronize(&self) -> ApiResult<()> {
        // SAFETY: the guard keeps the stream live.
        unsafe { self.api.synchronize_stream(self.handle) }
    }
}

impl EventGuard {
    /// A new event.
    pub fn new(api: &SharedApi, timing: bool) -> Result<EventGuard> {
        let handle = api.create_event(timing).map_err(|e| e.during("cannot create an event"))?;
        // SAFETY: just created, owned by nobody else.
        Ok(unsafe { EventGuard::own(api, handle) })
    }

    /// Enqueues the event.
    pub fn record(&self, stream: StreamHandle) -> ApiResult<()> {
        // SAFETY: the guard keeps the event live; callers hold the stream.
        unsafe { self.api.record_event(self.handle, stream) }
    }

    /// Waits until the event has come.
    pub fn synchronize(&self) -> ApiResult<()> {
        // SAFETY: the guard keeps the event live.
        unsafe { self.api.synchronize_event(self.handle) }
    }

    /// Milliseconds from `earlier` to this event, both of which have come.
    pub fn elapsed_ms(&self, earlier: &EventGuard) -> ApiResult<f32> {
        // SAFETY: both guards keep their events live.
        unsafe { self.api.elapsed_ms(earlier.handle, self.handle) }
    }
}

/// Page-locked host memory, zeroed when made.
pub struct Pinned {
    api: SharedApi,
    pointer: *mut u8,
    bytes: usize,
}

// SAFETY: the range is plain memory that this guard alone owns; methods that touch it borrow the guard.
unsafe impl Send for Pinned {}
// SAFETY: as above; shared borrows only read.
unsafe impl Sync for Pinned {}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({} bytes)", self.bytes)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, freed here alone.
        destroy(&self.api, "freeing pinned memory", |api| unsafe { api.free_pinned(self.pointer) });
    }
}

impl Pinned {
    /// Allocates and zeroes `bytes` bytes (at least one).
    pub fn new(api: &SharedApi, bytes: usize) -> Result<Pinned> {
        Pinned::zeroed(api, bytes, |bytes| api.allocate_pinned(bytes))
    }

    /// The same, of memory that kernels address too.
    pub fn mapped(api: &SharedApi, bytes: usize) -> Result<Pinned> {
        Pinned::zeroed(api, bytes, |bytes| api.allocate_mapped(bytes))
    }

    fn zeroed(api: &SharedApi, bytes: usize, allocate: impl FnOnce(usize) -> ApiResult<*mut u8>) -> Result<Pinned> {
        let bytes = bytes.max(1);
        let failed = |e: ApiError| e.during(format_args!("cannot allocate {bytes} bytes of pinned memory"));
        let pointer = allocate(bytes).map_err(failed)?;
        // SAFETY: a fresh allocation of that size.
        unsafe { std::ptr::write_bytes(pointer, 0, bytes) };
        Ok(Pinned { api: Arc::clone(api), pointer, bytes })
    }

    /// The address.
    pub fn pointer(&self) -> *mut u8 {
        self.pointer
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.bytes
    }

    /// Bytes `start..start + bytes` for writing; `None` past the end. No copy from or to them is in flight.
    pub fn slice_mut(&mut self, start: usize, bytes: usize) -> Option<&mut [u8]> {
        if start.checked_add(bytes)? > self.bytes {
            return None;
        }
        // SAFETY: in range (checked above), initialised by `new`, exclusively borrowed; callers wait for copies first.
        Some(unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), bytes) })
    }
}
