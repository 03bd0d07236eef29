//! The GPU platforms that this runtime knows. Their libraries are opened when a device is asked for, not before.

use super::{Driver, cuda, gpu, hip};
use crate::error::Result;
use gpu::api::DeviceInfo;
use std::sync::Arc;

/// What `doctor` says about a platform.
#[derive(Clone, Debug)]
pub struct PlatformReport {
    /// The library that was opened, or why none was.
    pub library: std::result::Result<String, String>,
    /// Version of the driver as people write it; empty if unknown.
    pub version: String,
    /// Functions that the library lacks.
    pub missing: Vec<String>,
    /// The devices, or why none can be used.
    pub devices: std::result::Result<Vec<DeviceInfo>, String>,
}

/// A GPU platform.
#[derive(Debug)]
pub struct Platform {
    /// Short name: `cuda`, `hip`.
    pub name: &'static str,
    /// `arch` of the targets that its devices run: `nvptx64`, `amdgcn`.
    pub family: &'static str,
    /// Number of devices.
    ///
    /// # Errors
    /// If the library cannot be opened or lacks a function, naming it.
    pub count: fn() -> Result<usize>,
    /// Opens a device.
    ///
    /// # Errors
    /// As `count`, or if there is no such device.
    pub(crate) open: fn(usize) -> Result<gpu::guards::SharedApi>,
    /// What is found on this machine. Never fails.
    pub report: fn() -> PlatformReport,
}

/// All platforms, the product's own first.
pub static PLATFORMS: &[Platform] = &[
    Platform { name: "hip", family: "amdgcn", count: hip::device_count, open: hip::open, report: hip::report },
    Platform { name: "cuda", family: "nvptx64", count: cuda::device_count, open: cuda::open, report: cuda::report },
];

impl Platform {
    /// The platform called `name`.
    pub fn named(name: &str) -> Option<&'static Platform> {
        PLATFORMS.iter().find(|p| p.name == name)
    }

    /// A driver for device `index`.
    ///
    /// # Errors
    /// As [`Platform::arch`].
    pub(crate) fn driver(&self, index: usize) -> Result<Arc<dyn Driver>> {
        Ok(Arc::new(gpu::GpuDriver::new((self.open)(index)?)?))
    }
    /// The architecture of device `index`, as LLVM spells it: `gfx942`, `sm_90`.
    ///
    /// # Errors
    /// If there is no driver, naming the library, or no such device.
    pub fn arch(&self, index: usize) -> Result<String> {
        Ok((self.open)(index)?.info().arch.clone())
    }
}
