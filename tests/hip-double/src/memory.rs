//! Allocations: device memory that only the double can touch, and pinned memory between guard zones.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;

/// Bytes before and after pinned memory that must stay as they are.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xc5;
/// What fresh memory holds: nobody may count on zeros.
const FRESH_BYTE: u8 = 0xa5;

/// Where the bytes are.
#[derive(Debug)]
enum Place {
    /// The address range is reserved without access; the bytes are here.
    Device { bytes: Vec<u8>, reserved: usize, uncached: bool },
    /// Another process's mapping of the device memory that begins at `of`.
    Import { of: usize, reserved: usize },
    /// The address is that of the bytes, `GUARD` bytes into this allocation.
    Pinned { base: usize, bytes: usize },
}

/// All allocations, by address.
#[derive(Debug, Default)]
pub struct Memory {
    allocations: BTreeMap<usize, Place>,
    /// Bytes of device memory in use.
    pub device_bytes: u64,
}

impl Place {
    fn len(&self) -> usize {
        match self {
            Place::Device { bytes, .. } => bytes.len(),
            Place::Pinned { bytes, .. } => *bytes,
            Place::Import { .. } => 0,
        }
    }
}

fn pinned_layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.checked_add(2 * GUARD)?, GUARD).ok()
}

impl Memory {
    pub fn addresses(&self) -> impl Iterator<Item = &usize> {
        self.allocations.keys()
    }

    /// Reserves an address range for `bytes` bytes of device memory; `None` if the process has no room.
    pub fn device(&mut self, bytes: usize, uncached: bool) -> Option<usize> {
        let (address, reserved) = reserve(bytes)?;
        self.allocations.insert(address, Place::Device { bytes: vec![FRESH_BYTE; bytes], reserved, uncached });
        self.device_bytes += bytes as u64;
        Some(address)
    }

    /// Why the memory at `address` must not be exported; `None` if it may be.
    pub fn not_exportable(&self, address: usize) -> Option<String> {
        match self.allocations.get(&address) {
            Some(Place::Device { uncached: false, .. }) => {
                Some("caches keep what other devices write into this memory: it must be allocated as uncached".into())
            }
            Some(Place::Device { bytes, .. }) if !bytes.len().is_multiple_of(4096) => {
                Some(format!("{} bytes are no whole pages of 4096 bytes: others would see more", bytes.len()))
            }
            Some(Place::Device { .. }) => None,
            _ => Some(format!("{address:#x} is not the start of device memory")),
        }
    }

    /// Maps exported memory once more, as another process does.
    pub fn import(&mut self, of: usize) -> Option<usize> {
        let Some(Place::Device { bytes, .. }) = self.allocations.get(&of) else { return None };
        let (address, reserved) = reserve(bytes.len())?;
        self.allocations.insert(address, Place::Import { of, reserved });
        Some(address)
    }

    /// Unmaps what `import` mapped; false if it did not.
    pub fn close_import(&mut self, address: usize) -> bool {
        let Some(Place::Import { reserved, .. }) = self.allocations.get(&address) else { return false };
        // SAFETY: the range was reserved by `import`. Nothing of ours points into it.
        unsafe { libc::munmap(address as *mut libc::c_void, *reserved) };
        self.allocations.remove(&address);
        true
    }

    /// Mappings of the memory at `address` that other processes hold.
    pub fn imports_of(&self, address: usize) -> usize {
        self.allocations.values().filter(|place| matches!(place, Place::Import { of, .. } if *of == address)).count()
    }
}

/// Reserves addresses for `bytes` bytes without access; the address and how many were reserved.
fn reserve(bytes: usize) -> Option<(usize, usize)> {
    let reserved = bytes.max(1).checked_next_multiple_of(4096)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh mapping without access, at an address that the system chooses.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), reserved, libc::PROT_NONE, flags, -1, 0) };
    (address != libc::MAP_FAILED).then_some((address as usize, reserved))
}

impl Memory {
    /// Allocates pinned memory; `None` if the process has no room.
    pub fn pinned(&mut self, bytes: usize) -> Option<usize> {
        let layout = pinned_layout(bytes)?;
        // SAFETY: the size is not zero, for the guards.
        let base = unsafe { alloc(layout) };
        if base.is_null() {
            return None;
        }
        // SAFETY: three ranges of the fresh allocation.
        unsafe {
            base.write_bytes(GUARD_BYTE, layout.size());
            base.add(GUARD).write_bytes(FRESH_BYTE, bytes);
        }
        let address = base as usize + GUARD;
        self.allocations.insert(address, Place::Pinned { base: base as usize, bytes });
        Some(address)
    }

    /// Frees memory of the given kind; `Err` says what is wrong with it.
    pub fn free(&mut self, address: usize, pinned: bool) -> Result<(), String> {
        match self.allocations.remove(&address) {
            Some(Place::Device { bytes, reserved, .. }) if !pinned => {
                self.device_bytes -= bytes.len() as u64;
                // SAFETY: the range was reserved by `device`. Nothing of ours points into it.
                unsafe { libc::munmap(address as *mut libc::c_void, reserved) };
                Ok(())
            }
            Some(Place::Pinned { base, bytes }) if pinned => {
                let layout = pinned_layout(bytes).ok_or("no layout")?;
                // SAFETY: the guards are parts of the allocation and were written when it was made.
                let intact = unsafe {
                    let zone = |start: usize| std::slice::from_raw_parts(start as *const u8, GUARD);
                    zone(base).iter().chain(zone(base + GUARD + bytes)).all(|b| *b == GUARD_BYTE)
                };
                // SAFETY: allocated by `pinned` with this layout.
                unsafe { dealloc(base as *mut u8, layout) };
                if intact { Ok(()) } else { Err(format!("{bytes} pinned bytes were written outside their ends")) }
            }
            Some(place) => {
                self.allocations.insert(address, place);
                Err(format!("{address:#x} is memory of the other kind"))
            }
            None => Err(format!("{address:#x} is not the start of an allocation")),
        }
    }

    /// Where the `bytes` bytes at `address` really are, if they lie in one allocation. `Some(true)` for device memory.
    pub fn resolve(&mut self, address: usize, bytes: usize) -> Option<(*mut u8, bool)> {
        let (start, place) = self.allocations.range_mut(..=address).next_back()?;
        let offset = address - start;
        if offset.checked_add(bytes)? > place.len() {
            return None;
        }
        match place {
            Place::Device { bytes, .. } => Some((bytes.as_mut_ptr().wrapping_add(offset), true)),
            Place::Import { .. } => None,
            Place::Pinned { .. } => Some((address as *mut u8, false)),
        }
    }

    /// True if `address` lies in a device allocation.
    pub fn is_device(&self, address: usize) -> bool {
        let below = self.allocations.range(..=address).next_back();
        below.is_some_and(
            |(start, place)| matches!(place, Place::Device { reserved, .. } | Place::Import { reserved, .. } if address - start < *reserved),
        )
    }

    /// True if `address` lies in pinned memory.
    pub fn is_pinned(&self, address: usize) -> bool {
        let below = self.allocations.range(..=address).next_back();
        below.is_some_and(|(start, place)| matches!(place, Place::Pinned { bytes, .. } if address - start < *bytes))
    }
}
