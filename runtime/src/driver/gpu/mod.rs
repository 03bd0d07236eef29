//! One driver for GPUs, over the few library calls of [`api::Api`]: memory, streams, modules, capture and replay live here once,
//! and a platform only names its library's functions.

pub mod api;
mod capture;
#[cfg(test)]
mod fake;
mod graph;
pub mod guards;
mod memory;
mod module;
mod peer;
mod ring;
pub mod stream;
#[cfg(test)]
mod tests;

pub use memory::STAGING_BYTES;

use super::{
    Allocator, Buffer, Capture, CaptureSpec, Driver, ExternalMemory, ExternalStream, Filler, Module, ModuleSource,
    PeerMemory, Placement, SharedBytes, StreamBackend,
};
use crate::artifact::Target;
use crate::error::{Error, Result};
use guards::SharedApi;
pub(super) use memory::External;
use memory::Shared;
use std::ops::Range;
use std::sync::Arc;

/// A GPU.
#[derive(Debug)]
pub struct GpuDriver {
    shared: Arc<Shared>,
    peers: peer::GpuPeers,
}

impl GpuDriver {
    /// A driver for the device of `api`.
    ///
    /// # Errors
    /// If the device refuses a stream.
    pub fn new(api: SharedApi) -> Result<GpuDriver> {
        let shared = Arc::new(Shared::new(api)?);
        Ok(GpuDriver { peers: peer::GpuPeers::new(&shared), shared })
    }

    /// The device.
    pub fn info(&self) -> &api::DeviceInfo {
        self.shared.api.info()
    }
}

impl Driver for GpuDriver {
    fn name(&self) -> &'static str {
        self.shared.api.name()
    }

    fn check_target(&self, target: &Target) -> Result<()> {
        let info = self.info();
        // Hopper's own features make `sm_90a` code that runs on sm_90 devices and no others.
        let wanted = target.name.strip_suffix('a').filter(|n| n.starts_with("sm_")).unwrap_or(&target.name);
        if target.arch == info.family && wanted == info.arch {
            return Ok(());
        }
        Err(Error::Unsupported(format!(
            "the artifact is for {} ({}), {}:{} is {} ({})",
            target.name,
            target.arch,
            self.name(),
            info.index,
            info.arch,
            info.name
        )))
    }

    fn allocate(&self, bytes: usize, placement: Placement, allocator: Option<&Arc<dyn Allocator>>) -> Result<Buffer> {
        let result = match placement {
            Placement::Pinned => self.shared.allocate_pinned(bytes),
            _ => self.shared.allocate(bytes, allocator),
        };
        result.map_err(|e| match e {
            Error::Driver(text) => Error::Driver(format!("{placement:?}: {text}")),
            other => other,
        })
    }

    fn import(&self, bytes: Arc<dyn SharedBytes>, allocator: Option<&Arc<dyn Allocator>>) -> Result<Buffer> {
        self.shared.import(&*bytes, allocator)
    }

    fn wrap(&self, memory: &ExternalMemory) -> Result<Buffer> {
        if memory.address == 0 || !memory.address.is_multiple_of(64) {
            return Err(Error::InvalidInput(format!(
                "external memory at {:#x} is not 64-byte aligned",
                memory.address
            )));
        }
        let copies = Arc::clone(&self.shared) as Arc<dyn super::buffer::DeviceCopy>;
        // SAFETY: who made the `ExternalMemory` promised that the range outlives the session.
        Ok(unsafe { Buffer::from_device(memory.address, memory.bytes, copies, Arc::new(())) })
    }

    fn fill(&self, buffer: &mut Buffer, ranges: &[Range<usize>], fill: &mut Filler<'_>) -> Result<()> {
        let ends = ranges.iter().all(|range| range.start <= range.end && range.end <= buffer.len());
        match buffer.device_address(0) {
            Some(address) if ends => self.shared.fill(address, ranges, fill),
            _ => Err(Error::Driver(format!("a range lies outside {buffer:?}"))),
        }
    }

    fn staging_bytes(&self) -> Option<usize> {
        Some(STAGING_BYTES)
    }

    fn load_module(&self, source: &ModuleSource<'_>) -> Result<Arc<dyn Module>> {
        self.shared.current()?;
        Ok(Arc::new(module::GpuModule::load(&self.shared.api, source)?))
    }

    fn create_stream(&self, external: Option<&ExternalStream>) -> Result<Box<dyn StreamBackend>> {
        self.shared.current()?;
        Ok(Box::new(stream::GpuStream::new(&self.shared, external)?))
    }

    fn peer_memory(&self) -> Option<&dyn PeerMemory> {
        Some(&self.peers)
    }

    fn begin_capture(&self, module: Arc<dyn Module>, spec: &CaptureSpec<'_>) -> Result<Box<dyn Capture>> {
        Ok(Box::new(capture::GpuCapture::begin(&self.shared, module, spec)?))
    }
}
