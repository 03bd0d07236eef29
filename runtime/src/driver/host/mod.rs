//! The host driver: kernels are functions in an anonymous executable image, run by a pinned thread pool.

pub mod affinity;
mod futex;
mod graph;
mod image;
pub(crate) mod memory;
pub(crate) mod pool;

use super::gpu::External;
use super::{
    Allocator, Buffer, Capture, CaptureSpec, Driver, Event, ExternalMemory, ExternalStream, Filler, Module,
    ModuleSource, Placement, SharedBytes, StreamBackend,
};
use crate::artifact::Target;
use crate::artifact::limits::MAX_THREADS;
use crate::comm::cpu_time::Workers;
use crate::cpu;
use crate::error::{Error, Result};
use pool::Pool;
use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// How the host driver runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostOptions {
    /// Threads, the caller included; 0 means one per physical core.
    pub threads: usize,
    /// Pins the calling thread too. For programs that own the process; an embedding engine leaves it off.
    pub pin_caller: bool,
    /// Which of how many ranks of this machine this is: each has its part of the cores, and of the devices.
    pub local_rank: Option<(usize, usize)>,
}

/// The host driver.
#[derive(Debug)]
pub struct HostDriver {
    pool: Arc<Mutex<Pool>>,
    threads: usize,
    workers: Arc<Workers>,
    started: Instant,
}

impl HostDriver {
    /// As [`crate::Device::host_with`], for programs that load code and bind memory by themselves.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As of [`crate::Device::raw_driver`].
    pub unsafe fn new(options: HostOptions) -> Result<HostDriver> {
        HostDriver::start(options)
    }

    /// Starts the pool. The thread that replays graphs is one of its threads.
    ///
    /// # Errors
    /// If a thread cannot be started or more are asked for than `limits.rs` allows.
    pub(crate) fn start(options: HostOptions) -> Result<HostDriver> {
        let cores = cpu::physical_cores();
        let (rank, ranks) = options.local_rank.unwrap_or((0, 1));
        let ranks = ranks.max(1);
        let threads = match options.threads {
            0 => (cpu::default_threads() / ranks).max(1),
            threads => threads,
        };
        if threads > MAX_THREADS {
            return Err(Error::Limit { what: "threads".into(), found: threads as u64, limit: MAX_THREADS as u64 });
        }
        // Ranks that together have more threads than there are cores are not pinned: there is no core of their own.
        let first = rank.saturating_mul(threads);
        let own = if threads.saturating_mul(ranks) <= cores.len() { cores.get(first..first + threads) } else { None };
        let own = if ranks == 1 { &cores } else { own.unwrap_or_default() };
        let pool = Pool::new(threads, own, options.pin_caller, ranks)?;
        let workers = pool.threads();
        Ok(HostDriver { pool: Arc::new(Mutex::new(pool)), threads, workers, started: Instant::now() })
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

    fn allocate(&self, bytes: usize, placement: Placement, allocator: Option<&Arc<dyn Allocator>>) -> Result<Buffer> {
        match allocator {
            Some(allocator) if placement != Placement::Pinned => {
                Ok(memory::external(External::new(allocator, bytes.max(64))?, bytes))
            }
            _ => memory::allocate(bytes, placement),
        }
    }

    fn import(&self, bytes: Arc<dyn SharedBytes>, _allocator: Option<&Arc<dyn Allocator>>) -> Result<Buffer> {
        Ok(memory::import(bytes))
    }

    fn wrap(&self, memory: &ExternalMemory) -> Result<Buffer> {
        memory::wrap(memory.address, memory.bytes)
    }

    fn fill(&self, buffer: &mut Buffer, ranges: &[Range<usize>], fill: &mut Filler<'_>) -> Result<()> {
        let bytes = buffer.bytes_mut()?;
        for range in ranges {
            let out = bytes.get_mut(range.clone());
            fill(range.clone(), out.ok_or_else(|| Error::Driver(format!("{range:?} lies outside the buffer")))?)?;
        }
        Ok(())
    }

    fn staging_bytes(&self) -> Option<usize> {
        None
    }

    fn load_module(&self, source: &ModuleSource<'_>) -> Result<Arc<dyn Module>> {
        let entries: Vec<u64> = source.kernels.iter().map(|kernel| kernel.offset).collect();
        Ok(Arc::new(image::Image::load(source.image, source.hash, &entries)?))
    }

    fn create_stream(&self, external: Option<&ExternalStream>) -> Result<Box<dyn StreamBackend>> {
        match external {
            Some(_) => Err(Error::Unsupported("the host has no streams to share".into())),
            None => Ok(Box::new(HostStream { started: self.started })),
        }
    }

    fn workers(&self) -> Option<Arc<Workers>> {
        Some(Arc::clone(&self.workers))
    }

    fn begin_capture(&self, module: Arc<dyn Module>, spec: &CaptureSpec<'_>) -> Result<Box<dyn Capture>> {
        graph::HostCapture::begin(module, Arc::clone(&self.pool), spec)
    }
}

/// The host runs a graph on the calling thread and its pool, so a stream is always idle between calls.
#[derive(Debug)]
struct HostStream {
    started: Instant,
}

impl StreamBackend for HostStream {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn record(&mut self) -> Result<Event> {
        Ok(Event::host(self.started.elapsed()))
    }

    fn download(&mut self, from: &Buffer, to: &Buffer, bytes: usize) -> Result<()> {
        self.copy(from, to, bytes)
    }

    fn copy(&mut self, from: &Buffer, to: &Buffer, bytes: usize) -> Result<()> {
        let source =
            from.bytes()?.get(..bytes).ok_or_else(|| Error::Driver(format!("{bytes} bytes are not in {from:?}")))?;
        to.put(0, source)
    }
}
