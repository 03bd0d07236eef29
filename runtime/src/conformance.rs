//! What every driver must do, as checks that run anywhere: in `cargo test`, and on a GPU host by `weldment-rt doctor
//! --conformance`. [`check_driver`] works on raw memory, streams and graphs with two tiny kernels; [`check_artifact`] on
//! sessions of a real artifact.

mod batches;

use crate::artifact::{Artifact, GridDim};
use crate::device::Device;
use crate::driver::{
    Buffer, CaptureArg, CaptureLaunch, CaptureSpec, Driver, Graph, KernelEntry, Module, ModuleSource, Placement,
};
use crate::error::{Error, Result};
use crate::session::{Session, SessionOptions, StepInput};
use std::sync::Arc;

/// Two kernels over arrays of i64, one element a program; programs past the grid's live part, `dims[0]`, do nothing.
///
/// * `add1(out, in)`: `out[i] = in[i] + 1`
/// * `rev1(out, in)`: `out[i] = in[dims[0] - 1 - i] + 1`
#[derive(Clone, Copy, Debug)]
pub struct Kit<'a> {
    /// The code image, of whatever kind the driver loads.
    pub image: &'a [u8],
    /// `add1` and `rev1`.
    pub kernels: [KernelEntry<'a>; 2],
}

/// The kit for the driver called `name`, where this crate carries one.
pub fn built_in(name: &str) -> Option<Kit<'static>> {
    let entry = |name| KernelEntry { name, offset: 0, threads: 32 };
    let kernels = [entry("add1"), entry("rev1")];
    (name == "cuda").then_some(Kit { image: include_bytes!("conformance.ptx"), kernels })
}

const ADD1: usize = 0;
const REV1: usize = 1;
/// Elements of the arrays.
const MAX: usize = 1000;
/// How far logits may differ, as a part of the largest, where other kernels sum in another order: in bf16 at worst, 8 bits of each of a
/// few hundred roundings.
const OTHER_SUMS: f32 = 0.05;

/// What a check found.
#[derive(Debug)]
pub struct Outcome {
    /// The check.
    pub name: &'static str,
    /// Nothing, or what was wrong.
    pub result: Result<()>,
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::CheckFailed(what())) }
}

/// Checks `driver` with the kernels of `kit`.
pub fn check_driver(driver: &dyn Driver, kit: &Kit<'_>) -> Vec<Outcome> {
    type Check = fn(&Bench<'_>) -> Result<()>;
    let checks: [(&'static str, Check); 7] = [
        ("memory", memory),
        ("order", order),
        ("dims", dims),
        ("inputs", inputs),
        ("events", events),
        ("threads", threads),
        ("errors", errors),
    ];
    let bench = Bench { driver, kit };
    checks.map(|(name, check)| Outcome { name, result: check(&bench) }).into()
}

struct Bench<'a> {
    driver: &'a dyn Driver,
    kit: &'a Kit<'a>,
}

impl Bench<'_> {
    fn load(&self) -> Result<Arc<dyn Module>> {
        let hash = crate::blake3_hex(self.kit.image);
        let source = ModuleSource { image: self.kit.image, hash: &hash, kernels: &self.kit.kernels, cache: None };
        self.driver.load_module(&source)
    }

    fn array(&self, value: i64, count: usize) -> Result<Buffer> {
        let buffer = self.driver.allocate(count * 8, Placement::Arena, None)?;
        buffer.put(0, &value.to_le_bytes().repeat(count))?;
        Ok(buffer)
    }

    /// A graph of launches over one symbol, which is at most [`MAX`].
    fn capture(&self, input_bytes: &[usize], launches: &[(usize, &Buffer, CaptureArg<'_>)]) -> Result<Box<dyn Graph>> {
        let spec = CaptureSpec { label: "conformance", max_dims: &[MAX as i64], input_bytes };
        let mut capture = self.driver.begin_capture(self.load()?, &spec)?;
        let grid = [GridDim::Symbol { symbol: 0, mul: 1, div: 1 }];
        for (kernel, to, from) in launches {
            let args = [CaptureArg::Buffer(to, 0), *from];
            capture.launch(CaptureLaunch {
                kernel: *kernel,
                grid: &grid,
                args: &args,
                barrier: true,
                overlap: false,
            })?;
        }
        capture.finish()
    }
}

fn values(buffer: &Buffer) -> Result<Vec<i64>> {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0i64, |n, b| (n << 8) | i64::from(*b));
    Ok(buffer.to_vec()?.chunks_exact(8).map(word).collect())
}

/// Memory starts as zeros, keeps what is written where it is written, and is filled in ranges.
fn memory(b: &Bench<'_>) -> Result<()> {
    for placement in
        [Placement::Arena, Placement::State, Placement::Output, Placement::Pinned, Placement::Weights, Placement::Arena]
    {
        for bytes in [0usize, 1, 63, 4097, 5 << 20] {
            let buffer = b.driver.allocate(bytes, placement, None)?;
            let mut expected = vec![0u8; bytes];
            ensure(buffer.to_vec()? == expected, || format!("{bytes} fresh bytes for {placement:?} are not zero"))?;
            for (at, n) in [(0, 1), (7, 33), (bytes / 2, bytes / 3), (bytes.saturating_sub(1), 1)] {
                let data: Vec<u8> = (0..n).map(|i| (i * 7 + at) as u8 | 1).collect();
                let fits = at + n <= bytes;
                ensure(buffer.put(at, &data).is_ok() == fits, || format!("a write of {n} at {at} of {bytes}"))?;
                if fits {
                    expected[at..at + n].copy_from_slice(&data);
                }
            }
            ensure(buffer.to_vec()? == expected, || format!("{bytes} bytes for {placement:?} changed elsewhere"))?;
        }
    }
    let mut buffer = b.driver.allocate(3000, Placement::Weights, None)?;
    let ranges = [0..1000, 1000..1001, 1001..3000];
    b.driver.fill(&mut buffer, &ranges, &mut |range, out| {
        range.zip(out).for_each(|(i, o)| *o = (i * 13) as u8);
        Ok(())
    })?;
    let expected: Vec<u8> = (0..3000).map(|i| (i * 13) as u8).collect();
    ensure(buffer.to_vec()? == expected, || "ranges were not filled as asked".into())?;
    let refused = b.driver.fill(&mut buffer, &ranges, &mut |_, _| Err(Error::InvalidInput("no".into())));
    ensure(refused.is_err(), || "a failure while filling was lost".into())?;
    let (to, host) = (b.array(0, 375)?, b.driver.allocate(3000, Placement::Pinned, None)?);
    let mut stream = b.driver.create_stream(None)?;
    stream.copy(&buffer, &to, 2999)?;
    stream.download(&to, &host, 3000)?;
    stream.synchronize()?;
    let found = host.to_vec()?;
    ensure(found[..2999] == expected[..2999] && found[2999] == 0, || "copies in a stream".into())?;
    ensure(stream.copy(&buffer, &to, 3001).is_err(), || "a copy past the end was accepted".into())
}

/// Each launch reads the mirror image of what the last wrote: a launch that starts early shows at once.
fn order(b: &Bench<'_>) -> Result<()> {
    let (x, y) = (b.array(0, MAX)?, b.array(0, MAX)?);
    let launches: Vec<_> = (0..301)
        .map(|i| {
            let (to, from) = if i % 2 == 0 { (&y, &x) } else { (&x, &y) };
            (if i % 3 == 1 { ADD1 } else { REV1 }, to, CaptureArg::Buffer(from, 0))
        })
        .collect();
    let mut graph = b.capture(&[], &launches)?;
    ensure(graph.len() == 301, || format!("{} launches of 301", graph.len()))?;
    let nodes = graph.nodes();
    ensure(nodes.kernels == 301 && nodes.copies + nodes.fills + nodes.others == 0, || format!("captured {nodes:?}"))?;
    let mut stream = b.driver.create_stream(None)?;
    for replay in 0..20 {
        graph.replay(&mut *stream, &[MAX as i64], &[])?;
        if replay % 7 == 6 {
            stream.synchronize()?;
        }
    }
    stream.synchronize()?;
    let expected = 301 + 19 * 300;
    ensure(values(&y)?.iter().all(|n| *n == expected), || format!("not every element is {expected}"))
}

/// Replays with other dims, many in flight: programs past the dims leave their elements alone.
fn dims(b: &Bench<'_>) -> Result<()> {
    let (x, y) = (b.array(0, MAX + 8)?, b.array(-5, MAX + 8)?);
    let mut graph = b.capture(&[], &[(ADD1, &y, CaptureArg::Buffer(&x, 0)), (ADD1, &x, CaptureArg::Buffer(&y, 0))])?;
    let mut stream = b.driver.create_stream(None)?;
    let sizes: Vec<i64> = (0..200i64).map(|i| [0, 1, 3, 31, 32, 33, 500, 999, 1000][i as usize % 9]).collect();
    for n in &sizes {
        graph.replay(&mut *stream, &[*n], &[])?;
    }
    stream.synchronize()?;
    let (x, y) = (values(&x)?, values(&y)?);
    for i in 0..MAX + 8 {
        let steps = sizes.iter().filter(|n| **n > i as i64).count() as i64;
        let expected = (2 * steps, if steps > 0 { 2 * steps - 1 } else { -5 });
        ensure((x[i], y[i]) == expected, || format!("element {i} is {:?}, not {expected:?}", (x[i], y[i])))?;
    }
    let refused = graph.replay(&mut *stream, &[MAX as i64 + 1], &[]);
    ensure(refused.is_err(), || "dims past the captured maximum were accepted".into())?;
    graph.replay(&mut *stream, &[1], &[])?;
    stream.synchronize()
}

/// Inputs are copied when the step is enqueued, however many steps are in flight.
fn inputs(b: &Bench<'_>) -> Result<()> {
    let y = b.array(0, MAX)?;
    let mut graph = b.capture(&[64, MAX * 8], &[(ADD1, &y, CaptureArg::Input(1, 8))])?;
    let mut stream = b.driver.create_stream(None)?;
    let results = (0..50).map(|_| b.array(0, MAX)).collect::<Result<Vec<_>>>()?;
    for (step, result) in results.iter().enumerate() {
        let mut input: Vec<u8> = (0..100u64).flat_map(|i| (i * 1000 + step as u64).to_le_bytes()).collect();
        graph.replay(&mut *stream, &[99], &[&[], &input])?;
        input.fill(0xEE);
        stream.copy(&y, result, 99 * 8)?;
    }
    stream.synchronize()?;
    for (step, result) in results.iter().enumerate() {
        let found = values(result)?;
        let right = (0..99).all(|i| found[i] == (i as i64 + 1) * 1000 + step as i64 + 1);
        ensure(right, || format!("step {step} of 50 in flight read another's inputs"))?;
    }
    let long = vec![0u8; MAX * 8 + 1];
    ensure(graph.replay(&mut *stream, &[1], &[&[], &long]).is_err(), || "too long an input was accepted".into())?;
    ensure(graph.replay(&mut *stream, &[1], &[&[]]).is_err(), || "a missing input was accepted".into())
}

/// Time does not run backwards, and work takes some.
fn events(b: &Bench<'_>) -> Result<()> {
    let (x, y) = (b.array(0, MAX)?, b.array(0, MAX)?);
    let mut graph = b.capture(&[], &[(REV1, &y, CaptureArg::Buffer(&x, 0))])?;
    let mut stream = b.driver.create_stream(None)?;
    let first = stream.record()?;
    for _ in 0..20 {
        graph.replay(&mut *stream, &[MAX as i64], &[])?;
    }
    let second = stream.record()?;
    let took = second.since(&first)?;
    ensure(!took.is_zero() && first.since(&second)?.is_zero(), || format!("20 replays took {took:?}"))
}

/// Threads with streams and graphs of their own capture and replay at the same time.
fn threads(b: &Bench<'_>) -> Result<()> {
    let work = |_: usize| -> Result<()> {
        for _ in 0..3 {
            let (x, y) = (b.array(0, MAX)?, b.array(0, MAX)?);
            let pair = [(REV1, &y, CaptureArg::Buffer(&x, 0)), (REV1, &x, CaptureArg::Buffer(&y, 0))];
            let mut graph = b.capture(&[], &pair)?;
            let mut stream = b.driver.create_stream(None)?;
            for _ in 0..25 {
                graph.replay(&mut *stream, &[MAX as i64], &[])?;
            }
            stream.synchronize()?;
            let found = values(&x)?;
            ensure(found.iter().all(|n| *n == 50), || format!("50 launches gave {}", found[0]))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|i| scope.spawn(move || work(i))).collect();
        let ends = all.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(Error::Driver("a thread panicked".into()))));
        ends.fold(Ok(()), Result::and)
    })
}

/// What cannot be done is an error, and the next graph works.
fn errors(b: &Bench<'_>) -> Result<()> {
    let refused = |what: &str, failed: bool| ensure(failed, || format!("{what} was accepted"));
    for bytes in [usize::MAX, 1 << 60] {
        refused("an allocation of everything", b.driver.allocate(bytes, Placement::State, None).is_err())?;
    }
    let hash = crate::blake3_hex(b.kit.image);
    let zeros = "0".repeat(64);
    let source = ModuleSource { image: b.kit.image, hash: &zeros, kernels: &b.kit.kernels, cache: None };
    refused("an image of another hash", b.driver.load_module(&source).is_err())?;
    let absent = [KernelEntry { name: "absent", offset: b.kit.image.len() as u64, threads: 32 }];
    let source = ModuleSource { hash: &hash, kernels: &absent, ..source };
    refused("a kernel that is not there", b.driver.load_module(&source).is_err())?;
    if b.driver.name() != "host" {
        let noise = b"no code at all";
        let source = ModuleSource { image: noise, hash: &crate::blake3_hex(noise), kernels: &[], cache: None };
        refused("noise as code", b.driver.load_module(&source).is_err())?;
    }
    let x = b.array(0, MAX)?;
    let spec = CaptureSpec { label: "conformance", max_dims: &[1], input_bytes: &[8] };
    let mut capture = b.driver.begin_capture(b.load()?, &spec)?;
    let one = [GridDim::Const(1)];
    let args = [CaptureArg::Buffer(&x, 0), CaptureArg::Buffer(&x, 0)];
    let launch = CaptureLaunch { kernel: ADD1, grid: &one, args: &args, barrier: true, overlap: false };
    capture.launch(launch)?;
    refused("a kernel past the last", capture.launch(CaptureLaunch { kernel: 2, ..launch }).is_err())?;
    for arg in [CaptureArg::Buffer(&x, MAX * 8 + 1), CaptureArg::Input(0, 9), CaptureArg::Input(1, 0)] {
        refused("an argument outside", capture.launch(CaptureLaunch { args: &[arg, arg], ..launch }).is_err())?;
    }
    let by_zero = [GridDim::Symbol { symbol: 0, mul: 1, div: 0 }];
    refused("a division by zero", capture.launch(CaptureLaunch { grid: &by_zero, ..launch }).is_err())?;
    drop(capture); // abandoned half way
    order(b)
}

/// Checks that batches give each of their sequences what it gets alone, with tables of every width, prompts beside single tokens, and
/// other sequences' blocks behind a sequence's own; as many sequences at once as the artifact takes, up to 16.
///
/// # Errors
/// [`Error::CheckFailed`] if logits differ: in any bit on the host, by more than other kernels' roundings on a GPU; a step that fails.
pub fn check_batches(session: &mut Session) -> Result<()> {
    batches::check(session)
}

/// Checks sessions of `artifact` on `device`; tokens are arbitrary.
///
/// # Errors
/// If a session cannot be set up or a step fails; checks that do not hold are in the outcomes.
pub fn check_artifact(artifact: &Artifact, device: &Device, options: &SessionOptions) -> Result<Vec<Outcome>> {
    let mut session = Session::new(artifact, device, options.clone())?;
    let vocab = session.model().vocab_size as usize;
    let count = 10.min(session.max_positions());
    let tokens: Vec<i32> = (0..count).map(|i| (i * 7919 % vocab) as i32).collect();
    let prefill = session.eval(&tokens, false)?;
    let mut outcomes = Vec::new();
    let mut push = |name, result| outcomes.push(Outcome { name, result });

    let finite = prefill.iter().all(|x| x.is_finite()) && prefill.iter().any(|x| *x != 0.0);
    push("logits are numbers", ensure(finite, || "a logit is not finite, or all are zero".into()));

    let stepwise = session.eval(&tokens, true)?;
    let scale = prefill.iter().fold(0f32, |m, x| m.max(x.abs()));
    let worst = prefill.iter().zip(&stepwise).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    let close = ensure(worst <= OTHER_SUMS * scale, || format!("differ by {worst} of {scale}"));
    push("one prefill and single steps agree", close);

    let mut same = Ok(());
    for replay in 0..50 {
        if session.eval(&tokens, replay % 2 == 1)? != if replay % 2 == 1 { &*stepwise } else { &*prefill } {
            same = Err(Error::CheckFailed(format!("replay {replay} gave other bits")));
            break;
        }
    }
    push("replays are identical", same);

    push("batches give what their sequences get alone", batches::check(&mut session));
    push("steps of nothing give nothing and change nothing", batches::check_nothing(&mut session));

    let table = [0];
    let good = StepInput { tokens: &[1], positions: &[0], seq_starts: &[0, 1], block_tables: &table, logit_rows: &[0] };
    let first = session.step(&good).map(<[f32]>::to_vec)?;
    let bad = session.step(&StepInput { tokens: &[-1], ..good }).is_err()
        && session.step(&StepInput { positions: &[i32::MAX], ..good }).is_err()
        && session.step(&StepInput { block_tables: &[i32::MAX], ..good }).is_err();
    let after = session.step(&good)? == first;
    push("bad steps are refused, the next one works", ensure(bad && after, || format!("{bad}, {after}")));

    for _ in 0..100 {
        session.enqueue(&good)?;
    }
    let flight = session.logits()? == first;
    push("a hundred steps in flight", ensure(flight, || "other logits than of one step".into()));

    let evaluate = || -> Result<Vec<f32>> {
        let mut session = Session::new(artifact, device, options.clone())?;
        session.eval(&tokens, true)?;
        session.eval(&tokens, false)
    };
    let both = std::thread::scope(|scope| {
        let threads = [scope.spawn(evaluate), scope.spawn(evaluate)];
        threads.map(|t| t.join().unwrap_or_else(|_| Err(Error::Driver("a thread panicked".into()))))
    });
    let mut concurrent = Ok(());
    for result in both {
        let equal = result.map(|logits| logits == prefill);
        concurrent = concurrent.and(equal.and_then(|equal| ensure(equal, || "a session gave other logits".into())));
    }
    push("sessions on two threads", concurrent);
    Ok(outcomes)
}
