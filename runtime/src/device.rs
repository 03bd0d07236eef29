//! Devices by name.

use crate::artifact::{Artifact, Manifest};
use crate::cpu;
use crate::driver::host::{HostDriver, HostOptions};
use crate::driver::{Driver, PLATFORMS, Platform, teardown};
use crate::error::{Error, Result};
use crate::log::{self, Level};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A machine that runs artifacts.
#[derive(Clone, Debug)]
pub struct Device {
    driver: Arc<dyn Driver>,
    threads: usize,
    /// As asked for on the host, where the session of a rank makes a pool of its own.
    host: HostOptions,
}

/// A device by name: `auto`, `host`, `cuda`, `cuda:1`, `hip`, `hip:0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// What runs the artifact's first program that something here can run, GPUs before the host.
    #[default]
    Auto,
    /// This machine's CPU.
    Host,
    /// A device of a GPU platform, by the platform's name and the device's index; the first without one, or that of the rank.
    Gpu(&'static str, Option<usize>),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeviceChoice> {
        let (name, index) = text.split_once(':').map_or((text, None), |(name, index)| (name, Some(index)));
        let platform = Platform::named(name).map(|p| p.name);
        match (name, platform, index.map(str::parse::<usize>).transpose()) {
            ("auto", ..) if text == "auto" => Ok(DeviceChoice::Auto),
            ("host", ..) if text == "host" => Ok(DeviceChoice::Host),
            (_, Some(name), Ok(index)) => Ok(DeviceChoice::Gpu(name, index)),
            _ => {
                let gpus: Vec<String> = PLATFORMS.iter().map(|p| format!("{0}, {0}:INDEX", p.name)).collect();
                Err(Error::InvalidInput(format!("device {text:?} is not one of auto, host, {}", gpus.join(", "))))
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Host => f.write_str("host"),
            DeviceChoice::Gpu(name, Some(index)) => write!(f, "{name}:{index}"),
            DeviceChoice::Gpu(name, None) => f.write_str(name),
        }
    }
}

impl Device {
    /// This machine's CPU with `threads` threads, the caller included; 0 means one per physical core.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn host(threads: usize) -> Result<Device> {
        Device::host_with(HostOptions { threads, ..HostOptions::default() })
    }

    /// This machine's CPU with all options.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn host_with(options: HostOptions) -> Result<Device> {
        let driver = HostDriver::start(options)?;
        let threads = driver.threads();
        Ok(Device { driver: Arc::new(driver), threads, host: options })
    }

    /// NVIDIA GPU `index`.
    ///
    /// # Errors
    /// If there is no driver, naming the library, or no such device.
    pub fn cuda(index: usize) -> Result<Device> {
        Device::gpu("cuda", index, 0)
    }

    /// AMD GPU `index`.
    ///
    /// # Errors
    /// If there is no driver, naming the library, or no such device.
    pub fn hip(index: usize) -> Result<Device> {
        Device::gpu("hip", index, 0)
    }

    /// Device `index` of the GPU platform called `platform`, with `threads` host threads (0: one per physical core) to make
    /// weights.
    ///
    /// # Errors
    /// If there is no such platform, driver or device.
    pub fn gpu(platform: &str, index: usize, threads: usize) -> Result<Device> {
        let platform = Platform::named(platform)
            .ok_or_else(|| Error::InvalidInput(format!("there is no platform called {platform}")))?;
        let threads = if threads == 0 { cpu::default_threads() } else { threads };
        teardown::listen(|| Ok(Device { driver: platform.driver(index)?, threads, host: HostOptions::default() }))
    }

    /// Gives the device back, unless sessions or clones still hold it; they do when they go. Dropping it does the same, but then
    /// failures are only logged.
    ///
    /// # Errors
    /// The driver's, if it refuses to destroy something.
    pub fn close(self) -> Result<()> {
        teardown::listen(|| {
            drop(self);
            Ok(())
        })
    }

    /// The device that `choice` names, for `artifact`.
    ///
    /// # Errors
    /// If it is not there, or nothing here can run a program of the artifact; the reasons of all are given.
    pub fn open(choice: DeviceChoice, artifact: &Artifact, host: HostOptions) -> Result<Device> {
        match choice {
            DeviceChoice::Auto => Device::auto(artifact, host),
            DeviceChoice::Host => Device::host_with(host),
            DeviceChoice::Gpu(name, index) => {
                let index = index.or(host.local_rank.map(|(rank, _)| rank)).unwrap_or(0);
                Device::gpu(name, index, host.threads)
            }
        }
    }

    /// The first device that can run a program of `artifact`: of each GPU platform that a program is for, in the artifact's
    /// order, then the host. No GPU library is opened for an artifact without a program for it. A rank takes the GPU of its number.
    ///
    /// # Errors
    /// If there is none; the reasons of all are given.
    pub fn auto(artifact: &Artifact, host: HostOptions) -> Result<Device> {
        let manifest = artifact.manifest();
        let mut reasons: Vec<String> = Vec::new();
        let mut refused = |e: Error| {
            log::write(Level::Info, format_args!("{e}"));
            let text = e.to_string();
            if !reasons.contains(&text) {
                reasons.push(text);
            }
        };
        for program in &manifest.programs {
            let Some(platform) = PLATFORMS.iter().find(|p| p.family == program.target.arch) else { continue };
            let count = match (platform.count)() {
                Ok(count) => count,
                Err(e) => {
                    refused(e);
                    continue;
                }
            };
            let indices = match host.local_rank {
                Some((rank, _)) => rank..(rank + 1).min(count),
                None => 0..count,
            };
            if indices.is_empty() && count > 0 {
                let rank = indices.start;
                refused(Error::Unsupported(format!("{} has {count} devices, none for rank {rank}", platform.name)));
            }
            for index in indices {
                match Device::gpu(platform.name, index, host.threads) {
                    Ok(device) => match device.driver.check_target(&program.target) {
                        Ok(()) => return Ok(device),
                        Err(e) => refused(e),
                    },
                    Err(e) => refused(e),
                }
            }
            if count == 0 {
                refused(Error::Unsupported(format!("{} has no device", platform.name)));
            }
        }
        if runs_on_host(manifest) || reasons.is_empty() {
            return Device::host_with(host);
        }
        Err(Error::Unsupported(reasons.join("; ")))
    }

    /// As [`Device::host_with`] was asked for this device.
    pub(crate) fn host_options(&self) -> HostOptions {
        self.host
    }

    /// The driver, for programs that load code and bind memory by themselves, as tests of compiled code do.
    ///
    /// # Safety
    /// What is loaded through it is trusted code; what is bound to its launches is as large as they address, and their dims and inputs
    /// are those that it was compiled for. A session checks all that.
    pub unsafe fn raw_driver(&self) -> &dyn Driver {
        self.driver()
    }

    /// The driver.
    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// Threads that run kernels on the host, and make weights for any device.
    pub fn threads(&self) -> usize {
        self.threads
    }
}

fn runs_on_host(manifest: &Manifest) -> bool {
    manifest.programs.iter().any(|program| program.target.arch == std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("host", DeviceChoice::Host),
            ("cuda", DeviceChoice::Gpu("cuda", None)),
            ("cuda:3", DeviceChoice::Gpu("cuda", Some(3))),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
        }
        for text in ["", "gpu", "host:1", "cuda:", "cuda:x", "cuda:-1", "auto:0"] {
            let error = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(error.contains("cuda:INDEX"), "{error}");
        }
    }
}
