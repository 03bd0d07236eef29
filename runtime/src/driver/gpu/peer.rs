//! Device memory that ranks share, each with a GPU of its own, and the word that ends programs that wait for others.

use super::api::*;
use super::guards::{ImportedMemory, Pinned, SharedApi};
use super::memory::Shared;
use crate::comm::group::AbortWord;
use crate::driver::{Buffer, PeerMapping, PeerMemory};
use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Exported memory comes in whole pages of its own: 2 MiB, the largest page of either platform.
const EXPORT_MULTIPLE: usize = 2 << 20;

/// A word in page-locked host memory that the device addresses too.
#[derive(Debug)]
struct MappedWord(Pinned);

impl MappedWord {
    /// The abort word and the word of looks after it.
    fn words(&self) -> &[AtomicU32; 2] {
        // SAFETY: the pinned memory is at least eight bytes, aligned and zeroed, and lives as long as `self`; host and device access
        // it by whole words only.
        unsafe { &*self.0.pointer().cast::<[AtomicU32; 2]>() }
    }
}

impl AbortWord for MappedWord {
    fn set(&self) {
        self.words()[0].store(1, Ordering::SeqCst);
    }

    fn looks(&self) -> u32 {
        self.words()[1].load(Ordering::Relaxed)
    }
}

/// The memory that a device shares with the devices of other ranks.
#[derive(Debug)]
pub struct GpuPeers {
    shared: Arc<Shared>,
}

impl GpuPeers {
    /// The memory of the device behind `shared`.
    pub fn new(shared: &Arc<Shared>) -> GpuPeers {
        GpuPeers { shared: Arc::clone(shared) }
    }

    fn api(&self) -> Result<&SharedApi> {
        self.shared.current()?;
        Ok(&self.shared.api)
    }
}

impl PeerMemory for GpuPeers {
    fn export(&self, bytes: usize) -> Result<(Buffer, Vec<u8>)> {
        let size = bytes.max(1).checked_next_multiple_of(EXPORT_MULTIPLE);
        let size = size.ok_or_else(|| Error::Driver(format!("a slab of {bytes} bytes overflows")))?;
        let buffer = self.shared.allocate_exported(bytes, size)?;
        let address = buffer.device_address(0).ok_or_else(|| Error::Driver("the slab is not on the device".into()))?;
        // SAFETY: the start of memory that was just allocated for this.
        let handle = unsafe { self.api()?.export(address) }.map_err(|e| e.during("cannot export the slab"))?;
        Ok((buffer, handle.to_vec()))
    }

    fn import(&self, message: &[u8]) -> Result<PeerMapping> {
        let handle: &IpcHandle = message
            .try_into()
            .map_err(|_| Error::Driver(format!("a handle of {} bytes, not {IPC_HANDLE_BYTES}", message.len())))?;
        let api = self.api()?;
        // SAFETY: another rank exported the memory and keeps it until this one has let go of it.
        let address = unsafe { api.import(handle) }.map_err(|e| e.during("cannot map the memory of another GPU"))?;
        // SAFETY: just mapped, unmapped by nobody else.
        let owner = unsafe { ImportedMemory::own(api, address) };
        Ok(PeerMapping { address, owner: Box::new(owner) })
    }

    fn abort_word(&self) -> Result<(Arc<dyn AbortWord>, u64)> {
        let api = self.api()?;
        let word = Pinned::mapped(api, 64)?;
        // SAFETY: page-locked memory of this device, just allocated as mapped.
        let address = unsafe { api.address_of_mapped(word.pointer()) };
        let address = address.map_err(|e| e.during("cannot map the abort word"))?;
        Ok((Arc::new(MappedWord(word)), address))
    }
}
