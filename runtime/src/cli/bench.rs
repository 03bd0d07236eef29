//! `bench`: decode and prefill speed beside the memory bandwidth of the same run.

use super::gpu_bench::{self, GpuLoad, GpuStep};
use super::workload::{self, DecodeStep, Shape};
use super::{SessionArgs, put};
use crate::artifact::Artifact;
use crate::error::Result;
use crate::graph::CapturedCopy;
use crate::pack::for_each_parallel;
use crate::session::{Session, load_code};
use crate::weights;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time spent on each measurement, about, unless another is asked for.
pub const BUDGET: Duration = Duration::from_millis(1500);
/// Steps measured, at most and at least.
const STEPS: std::ops::RangeInclusive<usize> = 3..=400;
/// Bytes that the bandwidth probe reads, at most.
const PROBE_BYTES: usize = 256 << 20;

/// Options of `bench`.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// What to run.
    pub session: SessionArgs,
    /// Sequences that decode together, of each measurement in turn; at least one.
    pub batches: Vec<usize>,
    /// Positions that each has; `None` means 1024, or the compiled maximum if less.
    pub context: Option<usize>,
    /// Tokens of the prefill; `None` means 512, or the compiled maximum if less.
    pub prefill: Option<usize>,
    /// Time spent on each measurement, about.
    pub budget: Duration,
    /// One JSON object a batch, each on a line, instead of a table.
    pub json: bool,
}

/// What `bench` measured.
#[derive(Debug)]
struct Measured {
    /// Where it ran: `host`, `cuda`, `hip`.
    device: &'static str,
    /// Time from the artifact's file to a session.
    open: Duration,
    /// Positions of a decode step, and tokens of a prefill, as run.
    context: usize,
    prompt: usize,
    /// A decode step of each batch.
    decodes: Vec<Decoded>,
    /// Median time of a prefill.
    prefill: Duration,
    /// Read bandwidth of the device, or of all threads together, bytes per second.
    read_bandwidth: f64,
    gpu: Option<GpuLoad>,
    /// This process speaks for all ranks.
    reports: bool,
}

/// A decode step.
#[derive(Debug)]
struct Decoded {
    /// Sequences that decode together.
    batch: usize,
    /// Median wall time; on a GPU of several steps back to back.
    step: Duration,
    /// Bytes that a step moves, by the artifact's own estimate.
    bytes: u64,
    /// Copies in the captured graph, counted from its nodes.
    copies: Vec<CapturedCopy>,
    gpu: Option<GpuStep>,
}

/// Measures and reports.
///
/// # Errors
/// Bad input of any kind.
pub fn bench(options: &BenchOptions, out: &mut dyn Write) -> Result<()> {
    let started = Instant::now();
    let artifact = Artifact::open(&options.session.artifact)?;
    if options.session.launched(&artifact)? {
        return Ok(());
    }
    let measured = measure(&artifact, options, started)?;
    if !measured.reports {
        return Ok(());
    }
    if options.json {
        return measured.decodes.iter().try_for_each(|d| put(out, &format!("{}\n", measured.json(d))));
    }
    measured.table(out)
}

impl Decoded {
    fn tokens_per_second(&self) -> f64 {
        self.batch as f64 / self.step.as_secs_f64()
    }

    fn copied_bytes(&self) -> u64 {
        self.copies.iter().map(|c| c.bytes).sum()
    }
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

impl Measured {
    fn prefill_tokens_per_second(&self) -> f64 {
        self.prompt as f64 / self.prefill.as_secs_f64()
    }

    fn json(&self, d: &Decoded) -> Value {
        let mut report = json!({
            "device": self.device,
            "batch": d.batch, "context": self.context, "prefill": self.prompt,
            "decode_tokens_per_second": d.tokens_per_second(),
            "prefill_tokens_per_second": self.prefill_tokens_per_second(),
            "ms_per_step": ms(d.step),
            "ms_per_prefill": ms(self.prefill),
            "bytes_per_step": d.bytes,
            "copies": d.copies.len(),
            "copied_bytes": d.copied_bytes(),
            "copy_list": d.copies,
            "read_bandwidth_gbps": self.read_bandwidth / 1e9,
            "open_ms": ms(self.open),
        });
        let gpu = [d.gpu.as_ref().map(GpuStep::json), self.gpu.as_ref().map(GpuLoad::json)];
        for fields in gpu.into_iter().flatten() {
            if let (Some(object), Value::Object(fields)) = (report.as_object_mut(), fields) {
                object.extend(fields);
            }
        }
        report
    }

    fn table(&self, out: &mut dyn Write) -> Result<()> {
        for d in &self.decodes {
            self.decode_lines(d, out)?;
        }
        put(
            out,
            &format!(
                "prefill  {} tokens: {:.1} tokens/s, {:.2} ms\n",
                self.prompt,
                self.prefill_tokens_per_second(),
                ms(self.prefill),
            ),
        )?;
        let Some(gpu) = &self.gpu else { return Ok(()) };
        let jit = gpu.jit.map_or_else(|| "cached".to_owned(), |d| format!("{:.0} ms", ms(d)));
        put(
            out,
            &format!(
                "load     {:.0} ms, JIT {jit}, code again {:.0} ms; bandwidth by {}\n",
                ms(self.open),
                ms(gpu.reload),
                gpu.probe,
            ),
        )
    }

    fn decode_lines(&self, d: &Decoded, out: &mut dyn Write) -> Result<()> {
        let achieved = d.bytes as f64 / d.step.as_secs_f64();
        put(
            out,
            &format!(
                "decode   batch {}, context {}: {:.1} tokens/s, {:.3} ms a step\n\
                 memory   {:.1} MB a step, {:.1} GB/s of {:.1} GB/s ({:.0} %)\n\
                 copies   {} in the graph of a decode step, {} bytes\n",
                d.batch,
                self.context,
                d.tokens_per_second(),
                ms(d.step),
                d.bytes as f64 / 1e6,
                achieved / 1e9,
                self.read_bandwidth / 1e9,
                100.0 * achieved / self.read_bandwidth,
                d.copies.len(),
                d.copied_bytes(),
            ),
        )?;
        for copy in &d.copies {
            put(out, &format!("         {} bytes, {}: {} ({})\n", copy.bytes, copy.source, copy.reason, copy.by))?;
        }
        let Some(gpu) = &d.gpu else { return Ok(()) };
        put(
            out,
            &format!(
                "device   {:.3} ms a step by events, {:.3} ms waited for singly, {} launches ({} copies, {} fills)\n\
                 host     {:.1} us CPU a step, bare copy and launch {:.1} us\n",
                ms(gpu.device_step),
                ms(gpu.single_step),
                gpu.launches,
                gpu.nodes.copies,
                gpu.nodes.fills,
                1e3 * ms(gpu.host_work.0),
                1e3 * ms(gpu.bare_host_work.0),
            ),
        )
    }
}

fn measure(artifact: &Artifact, options: &BenchOptions, started: Instant) -> Result<Measured> {
    let (context, prefill, budget) = (options.context, options.prefill, options.budget);
    let shape = |batch: usize| Shape::within(artifact.manifest(), batch, context, prefill);
    let shapes = options.batches.iter().map(|batch| shape(*batch)).collect::<Result<Vec<_>>>()?;
    let most = options.batches.iter().copied().max().unwrap_or(1);
    let Shape { context, prefill: prompt, .. } = shape(most)?;
    let mut session = options.session.session(artifact, most, Some(context.max(prompt)))?;
    let open = started.elapsed();
    let jit = session.module().load_report().jit;
    let decodes = shapes.into_iter().map(|shape| decode(&mut session, shape, budget)).collect::<Result<Vec<_>>>()?;
    let tokens = workload::tokens(&session, prompt);
    let prefill = repeat(&mut session, budget, |session| workload::prefill(session, &tokens))?;
    let driver = session.device().driver();
    let device = driver.name();
    let (read_bandwidth, gpu) = if device == "host" {
        (probe(session.weights().len(), session.threads()), None)
    } else {
        let (read_bandwidth, probe) = gpu_bench::bandwidth(driver)?;
        let at = Instant::now();
        load_code(artifact, session.program(), driver, weights::cache_dir().as_deref())?;
        (read_bandwidth, Some(GpuLoad { jit, reload: at.elapsed(), probe }))
    };
    let reports = session.reports();
    session.close()?;
    Ok(Measured { device, open, context, prompt, decodes, prefill, read_bandwidth, gpu, reports })
}

/// Times decode steps of `shape`.
fn decode(session: &mut Session, shape: Shape, budget: Duration) -> Result<Decoded> {
    let decode = DecodeStep::new(session, shape)?;
    let input = decode.input();
    let single = repeat(session, budget, |session| session.step(&input).map(|_| ()))?;
    let Shape { batch, context, .. } = shape;
    let bytes = session.bytes_per_step(batch, context);
    let mut decoded = Decoded { batch, step: single, bytes, copies: session.last_copies(), gpu: None };
    if session.device().driver().name() != "host" {
        let (step, device_step) = gpu_bench::back_to_back(session, &input, budget)?;
        let (host_work, bare_host_work) = gpu_bench::host_work(session, &input, budget)?;
        let (launches, nodes) = session.last_nodes();
        decoded.step = step;
        decoded.gpu = Some(GpuStep { device_step, single_step: single, launches, nodes, host_work, bare_host_work });
    }
    drop(decode);
    Ok(decoded)
}

/// The median time of `body` on the slowest rank, after one run to warm up. All ranks run it as often as rank 0 says.
fn repeat(
    session: &mut Session,
    budget: Duration,
    mut body: impl FnMut(&mut Session) -> Result<()>,
) -> Result<Duration> {
    body(session)?;
    let at = Instant::now();
    body(session)?;
    let rounds = gpu_bench::rounds(session, at.elapsed(), budget, &STEPS)?;
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let at = Instant::now();
        body(session)?;
        times.push(at.elapsed());
    }
    session.slowest(&mut times)?;
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
