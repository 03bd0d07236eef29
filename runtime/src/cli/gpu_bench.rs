//! The part of `bench` that only a GPU has: device time, host work beside bare calls, and bandwidth measured on the device.

use crate::artifact::GridDim;
use crate::driver::clock::thread_cpu_time;
use crate::driver::gpu::api::NodeCounts;
use crate::driver::{CaptureArg, CaptureLaunch, CaptureSpec, Driver, KernelEntry, ModuleSource, Placement};
use crate::error::Result;
use crate::session::{Session, StepInput};
use serde_json::{Value, json};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// Steps enqueued before one wait.
pub const IN_FLIGHT: usize = 10;
/// Steps between two waits while host work is measured: few enough that no call waits for room in a queue.
const HOST_STEPS: usize = 4;
/// Blocks and threads of the bandwidth probe: eight blocks for each multiprocessor of the largest parts.
const PROBE_BLOCKS: u64 = 132 * 8;
const PROBE_THREADS: u64 = 256;
/// Bytes that the probe reads, about: many times any cache.
const PROBE_BYTES: u64 = 2 << 30;
const PROBE_REPEATS: usize = 10;

/// What is measured of a step on a GPU beside the rest.
#[derive(Clone, Debug)]
pub struct GpuStep {
    /// Median time of a step between events, [`IN_FLIGHT`] back to back, each time on the slowest rank.
    pub device_step: Duration,
    /// Median wall time of one step that is waited for.
    pub single_step: Duration,
    /// Launches in the graph of a step.
    pub launches: usize,
    /// Nodes of that graph.
    pub nodes: NodeCounts,
    /// CPU and wall time of enqueueing a step.
    pub host_work: (Duration, Duration),
    /// The same of a bare copy of that size and a bare launch of that graph.
    pub bare_host_work: (Duration, Duration),
}

impl GpuStep {
    /// As fields of the report.
    pub fn json(&self) -> Value {
        json!({
            "device_ms_per_step": us(self.device_step) / 1e3,
            "single_ms_per_step": us(self.single_step) / 1e3,
            "launches": self.launches,
            "graph_kernel_nodes": self.nodes.kernels,
            "graph_copy_nodes": self.nodes.copies,
            "graph_fill_nodes": self.nodes.fills,
            "graph_other_nodes": self.nodes.others,
            "host_work_us": us(self.host_work.0),
            "host_wall_us": us(self.host_work.1),
            "bare_host_work_us": us(self.bare_host_work.0),
            "bare_host_wall_us": us(self.bare_host_work.1),
        })
    }
}

/// What is measured of a GPU and of loading code there.
#[derive(Clone, Debug)]
pub struct GpuLoad {
    /// Time of the driver's compiler when the session was opened; `None` if the result was cached or none was needed.
    pub jit: Option<Duration>,
    /// Time to load the code again, compiled code cached.
    pub reload: Duration,
    /// What the bandwidth was measured by.
    pub probe: &'static str,
}

impl GpuLoad {
    /// As fields of the report.
    pub fn json(&self) -> Value {
        json!({
            "jit_ms": self.jit.map(|d| us(d) / 1e3),
            "cached_load_ms": us(self.reload) / 1e3,
            "bandwidth_probe": self.probe,
        })
    }
}

fn us(d: Duration) -> f64 {
    d.as_secs_f64() * 1e6
}

/// Steps in flight: median wall and device time of one of `IN_FLIGHT`.
pub fn back_to_back(session: &mut Session, input: &StepInput<'_>, budget: Duration) -> Result<(Duration, Duration)> {
    let (mut wall, mut device) = (Vec::new(), Vec::new());
    session.step(input)?;
    let at = Instant::now();
    session.step(input)?;
    let rounds = rounds(session, at.elapsed() * IN_FLIGHT as u32, budget, &(5..=200))?;
    for _ in 0..rounds {
        let at = Instant::now();
        let first = session.stream().record()?;
        for _ in 0..IN_FLIGHT {
            session.enqueue(input)?;
        }
        let last = session.stream().record()?;
        session.wait()?;
        wall.push(at.elapsed() / IN_FLIGHT as u32);
        device.push(last.since(&first)? / IN_FLIGHT as u32);
    }
    // Asked for after the last was measured: ranks that meet would start apart.
    session.slowest(&mut wall)?;
    session.slowest(&mut device)?;
    Ok((median(&mut wall), median(&mut device)))
}

/// How often something that takes `one` is done to fill `budget`, within `limits`; as rank 0 says, on all ranks.
pub fn rounds(session: &Session, one: Duration, budget: Duration, limits: &RangeInclusive<usize>) -> Result<usize> {
    let filled = (budget.as_secs_f64() / one.as_secs_f64().max(1e-9)) as usize;
    let rounds = session.as_on_rank_0(filled.clamp(*limits.start(), *limits.end()) as u64)?;
    Ok(usize::try_from(rounds).unwrap_or(*limits.start()).clamp(*limits.start(), *limits.end()))
}

/// The middle one of `times`.
pub fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

type Work = (Duration, Duration);

/// CPU and wall time of an enqueue, and of the bare calls on the same graph; measured in turn. CPU time is a mean, as the
/// system may count it in coarse steps; wall time is a median.
pub fn host_work(session: &mut Session, input: &StepInput<'_>, budget: Duration) -> Result<(Work, Work)> {
    let at = Instant::now();
    session.step(input)?;
    let pairs = rounds(session, at.elapsed() * (2 * HOST_STEPS) as u32, budget, &(10..=250))?;
    let (mut cpu, mut wall) = ([Duration::ZERO; 2], [Vec::new(), Vec::new()]);
    for round in 0..pairs * 2 {
        let which = round % 2;
        session.wait()?;
        let (cpu_start, wall_start) = (thread_cpu_time(), Instant::now());
        for _ in 0..HOST_STEPS {
            match (which, session.last_graph()) {
                (1, Some((graph, stream))) => graph.replay_bare(stream.backend()).map(drop)?,
                _ => session.enqueue(input)?,
            }
        }
        let (cpu_end, wall_end) = (thread_cpu_time(), wall_start.elapsed());
        cpu[which] += cpu_end.saturating_sub(cpu_start);
        wall[which].push(wall_end / HOST_STEPS as u32);
    }
    session.wait()?;
    let steps = (pairs * HOST_STEPS) as u32;
    let [mut ours, mut bare] = wall;
    Ok(((cpu[0] / steps, median(&mut ours)), (cpu[1] / steps, median(&mut bare))))
}

/// Read bandwidth of the device, bytes per second, the best of several passes; and what it was measured by.
///
/// # Errors
/// If the device refuses memory or the probe.
pub fn bandwidth(driver: &dyn Driver) -> Result<(f64, &'static str)> {
    if driver.name() != "cuda" {
        return Ok((copy_bandwidth(driver)?, "device copy, bytes read plus bytes written"));
    }
    let pass = PROBE_BLOCKS * PROBE_THREADS * 64;
    let passes = PROBE_BYTES / pass;
    let (from, to) = (
        driver.allocate((passes * pass) as usize, Placement::Arena, None)?,
        driver.allocate(64, Placement::Arena, None)?,
    );
    let image = include_bytes!("bandwidth.ptx");
    let kernels = [KernelEntry { name: "read", offset: 0, threads: PROBE_THREADS as u32 }];
    let hash = crate::blake3_hex(image);
    let module = driver.load_module(&ModuleSource { image, hash: &hash, kernels: &kernels, cache: None })?;
    let spec = CaptureSpec { label: "bandwidth probe", max_dims: &[passes as i64], input_bytes: &[] };
    let mut capture = driver.begin_capture(module, &spec)?;
    let args = [CaptureArg::Buffer(&to, 0), CaptureArg::Buffer(&from, 0)];
    let grid = [GridDim::Const(PROBE_BLOCKS)];
    capture.launch(CaptureLaunch { kernel: 0, grid: &grid, args: &args, barrier: true, overlap: false })?;
    let mut graph = capture.finish()?;
    let mut stream = driver.create_stream(None)?;
    let mut best = Duration::MAX;
    for _ in 0..PROBE_REPEATS {
        let first = stream.record()?;
        graph.replay(&mut *stream, &[passes as i64], &[])?;
        let last = stream.record()?;
        best = best.min(last.since(&first)?);
    }
    stream.synchronize()?;
    Ok(((passes * pass) as f64 / best.as_secs_f64(), "read-only kernel"))
}

fn copy_bandwidth(driver: &dyn Driver) -> Result<f64> {
    let bytes = (PROBE_BYTES / 2) as usize;
    let (from, to) = (driver.allocate(bytes, Placement::Arena, None)?, driver.allocate(bytes, Placement::Arena, None)?);
    let mut stream = driver.create_stream(None)?;
    let mut best = Duration::MAX;
    for _ in 0..PROBE_REPEATS {
        let first = stream.record()?;
        stream.copy(&from, &to, bytes)?;
        let last = stream.record()?;
        best = best.min(last.since(&first)?);
    }
    stream.synchronize()?;
    Ok((2 * bytes) as f64 / best.as_secs_f64())
}
