//! `bench`: decode and prefill speed beside the memory bandwidth of the same run.

use super::gpu_bench::{self, GpuResult};
use super::workload::{self, DecodeStep, Shape};
use super::{SessionArgs, put, put_json};
use crate::error::Result;
use crate::graph::CapturedCopy;
use crate::pack::for_each_parallel;
use crate::session::{Session, load_code};
use crate::weights;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time spent on each measurement, about.
const BUDGET: Duration = Duration::from_millis(1500);
/// Steps measured, at most and at least.
const STEPS: std::ops::RangeInclusive<usize> = 3..=400;
/// Bytes that the bandwidth probe reads, at most.
const PROBE_BYTES: usize = 256 << 20;

/// Options of `bench`.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// What to run.
    pub session: SessionArgs,
    /// Sequences that decode together.
    pub batch: usize,
    /// Positions that each has; `None` means 1024, or the compiled maximum if less.
    pub context: Option<usize>,
    /// Tokens of the prefill; `None` means 512, or the compiled maximum if less.
    pub prefill: Option<usize>,
    /// One JSON object instead of a table.
    pub json: bool,
}

/// What `bench` measured.
#[derive(Clone, Debug)]
pub struct BenchResult {
    /// Where it ran: `host`, `cuda`, `hip`.
    pub device: &'static str,
    /// Time from the artifact's file to a session.
    pub open: Duration,
    /// Sequences, positions, prefill tokens as run.
    pub shape: (usize, usize, usize),
    /// Median wall time of a decode step; on a GPU of several back to back.
    pub step: Duration,
    /// Median time of a prefill.
    pub prefill: Duration,
    /// Bytes that one decode step moves, by the artifact's own estimate.
    pub bytes_per_step: u64,
    /// Read bandwidth of the device, or of all threads together, bytes per second.
    pub read_bandwidth: f64,
    /// Copies in the captured graph of a decode step, counted from its nodes.
    pub copies: Vec<CapturedCopy>,
    /// What only a GPU has.
    pub gpu: Option<GpuResult>,
    /// This process speaks for all ranks.
    pub reports: bool,
}

/// Measures and reports.
///
/// # Errors
/// Bad input of any kind.
pub fn bench(options: &BenchOptions, out: &mut dyn Write) -> Result<()> {
    let started = Instant::now();
    let artifact = crate::Artifact::open(&options.session.artifact)?;
    if options.session.launched(&artifact)? {
        return Ok(());
    }
    let r = measure_opened(&artifact, options, started)?;
    if !r.reports {
        return Ok(());
    }
    let (batch, context, prefill) = r.shape;
    let decode = batch as f64 / r.step.as_secs_f64();
    let prefill_speed = prefill as f64 / r.prefill.as_secs_f64();
    let achieved = r.bytes_per_step as f64 / r.step.as_secs_f64();
    let copied_bytes: u64 = r.copies.iter().map(|c| c.bytes).sum();
    if options.json {
        let mut report = json!({
            "device": r.device,
            "batch": batch, "context": context, "prefill": prefill,
            "decode_tokens_per_second": decode,
            "prefill_tokens_per_second": prefill_speed,
            "ms_per_step": r.step.as_secs_f64() * 1e3,
            "ms_per_prefill": r.prefill.as_secs_f64() * 1e3,
            "bytes_per_step": r.bytes_per_step,
            "copies": r.copies.len(),
            "copied_bytes": copied_bytes,
            "copy_list": r.copies,
            "read_bandwidth_gbps": r.read_bandwidth / 1e9,
            "open_ms": r.open.as_secs_f64() * 1e3,
        });
        if let (Some(object), Some(Value::Object(gpu))) = (report.as_object_mut(), r.gpu.map(|gpu| gpu.json())) {
            object.extend(gpu);
        }
        return put_json(out, &report);
    }
    put(
        out,
        &format!(
            "decode   batch {batch}, context {context}: {decode:.1} tokens/s, {:.3} ms a step\n\
             prefill  {prefill} tokens: {prefill_speed:.1} tokens/s, {:.2} ms\n\
             memory   {:.1} MB a step, {:.1} GB/s of {:.1} GB/s ({:.0} %)\n\
             copies   {} in the graph of a decode step, {copied_bytes} bytes\n",
            r.step.as_secs_f64() * 1e3,
            r.prefill.as_secs_f64() * 1e3,
            r.bytes_per_step as f64 / 1e6,
            achieved / 1e9,
            r.read_bandwidth / 1e9,
            100.0 * achieved / r.read_bandwidth,
            r.copies.len(),
        ),
    )?;
    for copy in &r.copies {
        put(out, &format!("         {} bytes, {}: {} ({})\n", copy.bytes, copy.source, copy.reason, copy.by))?;
    }
    let Some(gpu) = r.gpu else { return Ok(()) };
    let us = |d: Duration| d.as_secs_f64() * 1e6;
    let jit = gpu.jit.map_or_else(|| "cached".to_owned(), |d| format!("{:.0} ms", us(d) / 1e3));
    put(
        out,
        &format!(
            "device   {:.3} ms a step by events, {:.3} ms waited for singly, {} launches ({} copies, {} fills)\n\
             host     {:.1} us CPU a step, bare copy and launch {:.1} us\n\
             load     {:.0} ms, JIT {jit}, code again {:.0} ms; bandwidth by {}\n",
            us(gpu.device_step) / 1e3,
            us(gpu.single_step) / 1e3,
            gpu.launches,
            gpu.nodes.copies,
            gpu.nodes.fills,
            us(gpu.host_work.0),
            us(gpu.bare_host_work.0),
            us(r.open) / 1e3,
            us(gpu.reload) / 1e3,
            gpu.probe,
        ),
    )
}

/// Measures.
///
/// # Errors
/// [`Error::InvalidInput`] naming the compiled range if batch, context or prefill is outside.
pub fn measure(options: &BenchOptions) -> Result<BenchResult> {
    let started = Instant::now();
    measure_opened(&crate::Artifact::open(&options.session.artifact)?, options, started)
}

fn measure_opened(artifact: &crate::Artifact, options: &BenchOptions, started: Instant) -> Result<BenchResult> {
    let shape = Shape::within(artifact.manifest(), options.batch, options.context, options.prefill)?;
    let Shape { batch, context, prefill } = shape;
    let mut session = options.session.session(artifact, batch, Some(context.max(prefill)))?;
    let open = started.elapsed();
    let jit = session.module().load_report().jit;
    let decoded = decode(&mut session, shape)?;
    let prompt = workload::tokens(&session, prefill);
    let prefill_time = repeat(&mut session, |session| workload::prefill(session, &prompt))?;
    let device = session.device().driver().name();
    let Decoded { step, bytes: bytes_per_step, copies, gpu } = decoded;
    let mut result = BenchResult {
        device,
        open,
        shape: (batch, context, prefill),
        step,
        prefill: prefill_time,
        bytes_per_step,
        read_bandwidth: 0.0,
        copies,
        gpu: None,
        reports: session.reports(),
    };
    let Some(gpu) = gpu else {
        result.read_bandwidth = probe(session.weights().len(), session.threads());
        session.close()?;
        return Ok(result);
    };
    let driver = session.device().driver();
    let (read_bandwidth, probe) = gpu_bench::bandwidth(driver)?;
    let at = Instant::now();
    load_code(artifact, session.program(), driver, weights::cache_dir().as_deref())?;
    result.read_bandwidth = read_bandwidth;
    result.gpu = Some(GpuResult { jit, reload: at.elapsed(), probe, ..gpu });
    session.close()?;
    Ok(result)
}

struct Decoded {
    step: Duration,
    bytes: u64,
    copies: Vec<CapturedCopy>,
    gpu: Option<GpuResult>,
}

/// Times decode steps of `shape`.
fn decode(session: &mut Session, shape: Shape) -> Result<Decoded> {
    let decode = DecodeStep::new(session, shape)?;
    let input = decode.input();
    let single = repeat(session, |session| session.step(&input).map(|_| ()))?;
    let Shape { batch, context, .. } = shape;
    let bytes = session.bytes_per_step(batch, context);
    let mut decoded = Decoded { step: single, bytes, copies: session.last_copies(), gpu: None };
    if session.device().driver().name() != "host" {
        let (step, device_step) = gpu_bench::back_to_back(session, &input, BUDGET)?;
        let (host_work, bare_host_work) = gpu_bench::host_work(session, &input)?;
        let (launches, nodes) = session.last_graph().map(|(g, _)| (g.len(), g.nodes())).unwrap_or_default();
        decoded.step = step;
        decoded.gpu = Some(GpuResult {
            device_step,
            single_step: single,
            launches,
            nodes,
            host_work,
            bare_host_work,
            jit: None,
            reload: Duration::ZERO,
            probe: "",
        });
    }
    decode.release(session);
    Ok(decoded)
}

/// The median time of `body`, after one run to warm up. All ranks run it as often as rank 0 says.
fn repeat(session: &mut Session, mut body: impl FnMut(&mut Session) -> Result<()>) -> Result<Duration> {
    body(session)?;
    let at = Instant::now();
    body(session)?;
    let rounds = gpu_bench::rounds(session, at.elapsed(), BUDGET, &STEPS)?;
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let at = Instant::now();
        body(session)?;
        times.push(at.elapsed());
    }
    Ok(gpu_bench::median(&mut times))
}

/// Read bandwidth in bytes per second: every thread sums its share of fresh memory as large as the weights, the best of
/// several passes. Fresh, because the machine's limit is asked for: a file mapping reads slower, page by small page.
pub fn probe(weights: usize, threads: usize) -> f64 {
    let bytes = vec![1u8; weights.clamp(64 << 20, PROBE_BYTES)];
    let threads = threads.max(1);
    let share = (bytes.len() / threads).next_multiple_of(4096).max(4096);
    let shares: Vec<&[u8]> = bytes.chunks(share).collect();
    let total = AtomicU64::new(0);
    let mut best = f64::MAX;
    for _ in 0..6 {
        let started = Instant::now();
        for_each_parallel(shares.len(), threads, |index| {
            total.fetch_add(sum(shares[index]), Ordering::Relaxed);
        });
        best = best.min(started.elapsed().as_secs_f64());
    }
    std::hint::black_box(total.into_inner());
    bytes.len() as f64 / best
}

/// A sum that touches every byte; 16 lanes of 64 bits fit the vector registers of every x86-64.
fn sum(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 16];
    for chunk in bytes.chunks_exact(128) {
        for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(8)) {
            let mut raw = [0u8; 8];
            raw.copy_from_slice(word);
            *lane = lane.wrapping_add(u64::from_le_bytes(raw));
        }
    }
    lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
}
