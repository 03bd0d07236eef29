//! The host driver: kernels are functions in an anonymous executable image, run by a pinned thread pool.

pub mod affinity;
mod futex;
mod graph;
mod image;
mod memory;
pub mod pool;

use super::{Buffer, Capture, Driver, Event, Module, Placement, SharedBytes, StreamBackend};
use crate::artifact::Target;
use crate::artifact::limits::MAX_THREADS;
use crate::cpu;
use crate::error::{Error, Result};
use pool::Pool;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// How the host driver runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostOptions {
    /// Threads, the caller included; 0 means one per physical core.
    pub threads: usize,
    /// Pins the calling thread too. For programs that own the process; an embedding engine leaves it off.
    pub pin_caller: bool,
}

/// The host driver.
#[derive(Debug)]
pub struct HostDriver {
    pool: Arc<Mutex<Pool>>,
    threads: usize,
    started: Instant,
}

impl HostDriver {
    /// Starts the pool. The thread that replays graphs is one of its threads.
    ///
    /// # Errors
    /// If a thread cannot be started or more are asked for than `limits.rs` allows.
    pub fn new(options: HostOptions) -> Result<HostDriver> {
        let cores = cpu::physical_cores();
        let threads = if options.threads == 0 { cpu::default_threads() } else { options.threads };
        if threads > MAX_THREADS {
            return Err(Error::Limit { what: "threads".into(), found: threads as u64, limit: MAX_THREADS as u64 });
        }
        let pool = Pool::new(threads, &cores, options.pin_caller)?;
        Ok(HostDriver { pool: Arc::new(Mutex::new(pool)), threads, started: Instant::now() })
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.threads
    }
}

impl Driver for HostDriver {
    fn name(&self) -> &'static str {
        "host"
    }

    fn check_target(&self, target: &Target) -> Result<()> {
        if target.arch != std::env::consts::ARCH {
            let here = std::env::consts::ARCH;
            return Err(Error::Unsupported(format!(
                "the artifact is for {} ({}), this machine is {here}",
                target.name, target.arch
            )));
        }
        for feature in &target.features {
            match cpu::has_feature(feature) {
                Some(true) => {}
                Some(false) => {
                    return Err(Error::Unsupported(format!(
                        "the artifact is for {}, which needs the CPU feature {feature}; this CPU ({}) lacks it: compile with \
                         --target x86-64-v3 or on this machine",
                        target.name,
                        cpu::model_name().unwrap_or_else(|| "unknown".into())
                    )));
                }
                None => {
                    return Err(Error::Unsupported(format!(
                        "the artifact needs the CPU feature {feature}, which this runtime cannot check"
                    )));
                }
            }
        }
        Ok(())
    }

    fn allocate(&self, bytes: usize, placement: Placement) -> Result<Buffer> {
        memory::allocate(bytes, placement)
    }

    fn import(&self, bytes: Arc<dyn SharedBytes>) -> Result<Buffer> {
        Ok(memory::import(bytes))
    }

    fn load_module(&self, image: &[u8], hash: &str, entries: &[u64]) -> Result<Arc<dyn Module>> {
        Ok(Arc::new(image::Image::load(image, hash, entries)?))
    }

    fn create_stream(&self) -> Result<Box<dyn StreamBackend>> {
        Ok(Box::new(HostStream { started: self.started }))
    }

    fn begin_capture(&self, module: Arc<dyn Module>) -> Result<Box<dyn Capture>> {
        graph::HostCapture::begin(module, Arc::clone(&self.pool))
    }
}

/// The host runs a graph on the calling thread and its pool, so a stream is always idle between calls.
#[derive(Debug)]
struct HostStream {
    started: Instant,
}

impl StreamBackend for HostStream {
    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn record(&mut self) -> Result<Event> {
        Ok(Event { at: self.started.elapsed() })
    }
}
