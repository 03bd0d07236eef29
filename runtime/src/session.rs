//! From an artifact to logits: a device, a stream, and a session that captures once and replays.

mod check;
mod sequences;
mod tables;

use crate::DType;
use crate::artifact::{Artifact, Dim, Manifest, Model, Program, SymbolRole};
use crate::comm::control::MESSAGE_BYTES;
use crate::comm::group::step_signature;
use crate::comm::member::Member;
use crate::comm::{DEFAULT_DEADLINE, Group};
use crate::device::Device;
use crate::driver::{
    Allocator, Buffer, Driver, Event, ExternalMemory, ExternalStream, Graph, KernelEntry, Module, ModuleSource,
    NodeCounts, Placement, StreamBackend, teardown,
};
use crate::error::{Error, Result};
use crate::graph::{Between, CapturedCopy, Capturing, Regions, StepGraph, copies};
use crate::log::{self, Level};
use crate::memory::BlockPool;
use crate::shapes::ShapeLog;
use crate::values::ValueLog;
use crate::weights::{self, WeightOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use check::{Checked, MAX_INPUTS};

/// An in-order queue of work on a device.
#[derive(Debug)]
pub struct Stream {
    backend: Box<dyn StreamBackend>,
}

impl Stream {
    /// A new stream on `device`.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn new(device: &Device) -> Result<Stream> {
        Ok(Stream { backend: device.driver().create_stream(None)? })
    }

    /// The driver's stream.
    pub(crate) fn backend(&mut self) -> &mut (dyn StreamBackend + 'static) {
        &mut *self.backend
    }

    /// Waits until everything enqueued so far is done.
    ///
    /// # Errors
    /// If the work failed.
    pub fn synchronize(&mut self) -> Result<()> {
        self.backend.synchronize()
    }

    /// Marks the current end of the queue.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn record(&mut self) -> Result<Event> {
        self.backend.record()
    }
}

/// How a session is set up.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// KV blocks in the pool (symbol N); `None` gives every sequence the longest context.
    pub kv_blocks: Option<usize>,
    /// The checkpoint's file or folder, for external weights.
    pub weights_file: Option<PathBuf>,
    /// Cache folder for packs and compiled code; `None` uses none.
    pub cache: Option<PathBuf>,
    /// Gives the memory of arena, weights, states and outputs; `None` asks the driver.
    pub allocator: Option<Arc<dyn Allocator>>,
    /// The stream that steps run on; `None` makes one.
    pub stream: Option<ExternalStream>,
    /// Memory of the states (KV caches), in the manifest's order; it is used as it is, not zeroed. `None` allocates.
    pub states: Option<Vec<ExternalMemory>>,
    /// Block tables are the caller's business: sequences may share blocks (a common prefix, a fork), and blocks may hold what something
    /// else than this session's steps put there. Without it a step is refused that attends to a position which was not computed,
    /// or whose sequences share a block.
    pub trusts_tables: bool,
    /// Where a histogram of the steps' shapes is written when the session closes ([`crate::shapes`]); the variable
    /// `WELDMENT_SHAPES` by default.
    pub shapes: Option<PathBuf>,
    /// Where statistics of every launch's results are written when the session closes ([`crate::values`]); for the host,
    /// and only with `captured` off.
    pub values: Option<PathBuf>,
    /// Captures a step as one graph. Off, for the host, its launches run one by one.
    pub captured: bool,
    /// The ranks that run the artifact together; `None` joins those that the environment names, where the artifact is for several.
    pub group: Option<Arc<Group>>,
    /// How long a rank may be missing, silent or behind before all ranks end with an error.
    pub collective_timeout: Duration,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            kv_blocks: None,
            weights_file: None,
            cache: weights::cache_dir(),
            allocator: None,
            stream: None,
            states: None,
            trusts_tables: false,
            shapes: std::env::var_os("WELDMENT_SHAPES").filter(|v| !v.is_empty()).map(PathBuf::from),
            values: None,
            captured: true,
            group: None,
            collective_timeout: DEFAULT_DEADLINE,
        }
    }
}

/// One ragged step: T tokens of B sequences.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    /// `[T]` token ids.
    pub tokens: &'a [i32],
    /// `[T]` positions; those of a sequence follow each other, and what it has computed before.
    pub positions: &'a [i32],
    /// `[B + 1]`: sequence b owns tokens `seq_starts[b]..seq_starts[b + 1]`; starts at 0, ends at T.
    pub seq_starts: &'a [i32],
    /// `[B, P]` KV block ids, row-major, P as wide as the step needs; -1 where unused.
    pub block_tables: &'a [i32],
    /// `[R]` token indices whose logits come back.
    pub logit_rows: &'a [i32],
}

/// An artifact on a device: weights in place, graph captured, KV cache empty.
///
/// Fields drop in this order: graph and stream first, then the membership, which waits until no other rank maps the slab.
#[derive(Debug)]
pub struct Session {
    graph: StepGraph,
    stream: Stream,
    member: Option<Member>,
    manifest: Arc<Manifest>,
    regions: Regions,
    /// Where the host reads output 0, if not in place.
    logits: Option<Buffer>,
    /// Rows of logits of the last step.
    rows: usize,
    pool: BlockPool,
    checked: Checked,
    shapes: Option<ShapeLog>,
    values: Option<ValueLog>,
    program: usize,
    variant: usize,
    threads: usize,
    module: Arc<dyn Module>,
    device: Device,
}

impl Session {
    /// Brings the weights in, loads the code and captures the step.
    ///
    /// # Errors
    /// If no program of the artifact runs on the device, the weights are not found or differ, or there is no memory.
    pub fn new(artifact: &Artifact, device: &Device, options: SessionOptions) -> Result<Session> {
        let mut member = Member::of(artifact.manifest(), &options)?;
        let opened = teardown::listen(|| Session::open(artifact, device, options, member.as_mut()));
        // What fails on one rank fails on all, and is known to have failed before the rank leaves.
        let mut session = match &member {
            None => opened?,
            Some(member) => member.group().share(opened)?,
        };
        session.member = member;
        Ok(session)
    }

    /// Waits for what is under way and gives everything back. Dropping the session does the same, but then failures are only
    /// logged.
    ///
    /// # Errors
    /// A failed step's, and the driver's, if it refuses to destroy something.
    pub fn close(mut self) -> Result<()> {
        let done = self.wait();
        let closed = teardown::listen(|| self.give_back());
        if let (Err(_), Err(e)) = (&done, &closed) {
            log::write(Level::Warn, format_args!("closing a session: {e}"));
        }
        done.and(closed)
    }

    /// Drops everything, in the order of the fields, and says how leaving the group went.
    fn give_back(self) -> Result<()> {
        let Session { graph, stream, member, regions: _regions, .. } = self;
        drop((graph, stream));
        member.map_or(Ok(()), Member::close)
    }

    fn open(
        artifact: &Artifact,
        device: &Device,
        options: SessionOptions,
        mut member: Option<&mut Member>,
    ) -> Result<Session> {
        let manifest = artifact.shared_manifest();
        let device = match &member {
            Some(member) => member.device(device)?,
            None => device.clone(),
        };
        let driver = device.driver();
        let (index, program) = choose_program(&manifest, driver)?;
        if options.values.is_some() && options.captured {
            let message =
                "values are read between launches, which a captured step does not have: run uncaptured (--uncaptured)";
            return Err(Error::InvalidInput(message.into()));
        }
        if !options.captured && driver.name() != "host" {
            let message =
                "a step runs uncaptured on the host only (WELDMENT_LAUNCH_BLOCKING=1 runs a GPU's launches one by one)";
            return Err(Error::Unsupported(message.into()));
        }
        let rank = member.as_ref().map_or(0, |member| member.group().ranks().rank);
        let values =
            options.values.filter(|_| rank == 0).map(|path| ValueLog::new(path, &manifest, program)).transpose()?;
        check_output(&manifest)?;
        let blocks = kv_blocks(&manifest, options.kv_blocks)?;
        let checked = Checked::new(&manifest, blocks, options.trusts_tables)?;
        if let Some(member) = &member {
            member.agree(artifact, index, blocks)?;
        }
        let module = load_code(artifact, program, driver, options.cache.as_deref())?;
        let allocator = options.allocator.as_ref();
        let weight_options =
            WeightOptions { weights_file: options.weights_file, cache: options.cache, threads: device.threads(), rank };
        let allocate = |bytes: Option<u64>, placement| driver.allocate(size(bytes)?, placement, allocator);
        let states = match &options.states {
            Some(given) => external_states(&manifest, driver, given, blocks)?,
            None => manifest
                .states
                .iter()
                .map(|s| allocate(s.unit_bytes.checked_mul(blocks as u64), Placement::State))
                .collect::<Result<Vec<_>>>()?,
        };
        let mut regions = Regions {
            arena: allocate(Some(program.arena_bytes), Placement::Arena)?,
            weights: weights::load(artifact, program, driver, &weight_options, allocator)?,
            states,
            outputs: manifest
                .outputs
                .iter()
                .map(|b| allocate(manifest.max_bytes(b), Placement::Output))
                .collect::<Result<Vec<_>>>()?,
            slab: None,
            comm: None,
            library: None,
        };
        if let Some(member) = &mut member {
            (regions.slab, regions.comm) = member.attach(driver, program, device.threads())?;
            regions.library = member.library(program)?;
        }
        let capturing = if options.captured { Capturing::Step } else { Capturing::Launches };
        let graph = StepGraph::capture(driver, &manifest, program, &module, &regions, (blocks, capturing))?;
        let logits = match regions.outputs.first() {
            Some(output) if !output.is_host_visible() => {
                Some(driver.allocate(output.len(), Placement::Pinned, None)?)
            }
            _ => None,
        };
        let pool = BlockPool::new(blocks);
        let stream = Stream { backend: driver.create_stream(options.stream.as_ref())? };
        let threads = device.threads();
        // Files are written by one rank for all.
        let shapes = options.shapes.filter(|_| rank == 0).map(|path| ShapeLog::new(path, &manifest, program));
        if let Some(member) = &member {
            member.ready()?;
        }
        Ok(Session {
            graph,
            stream,
            member: None,
            manifest,
            regions,
            logits,
            rows: 0,
            pool,
            checked,
            shapes,
            values,
            program: index,
            variant: 0,
            threads,
            module,
            device,
        })
    }

    /// The manifest of the artifact.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The program that was chosen for the device.
    pub fn program(&self) -> &Program {
        &self.manifest.programs[self.program]
    }

    /// Facts about the model.
    pub fn model(&self) -> &Model {
        &self.manifest.model
    }

    /// Threads that run kernels on the host.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The packed weights.
    pub fn weights(&self) -> &Buffer {
        &self.regions.weights
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The loaded code.
    pub(crate) fn module(&self) -> &dyn Module {
        &*self.module
    }

    /// The captured graph that the last step replayed and the stream it runs on.
    pub(crate) fn last_graph(&mut self) -> Option<(&mut (dyn Graph + 'static), &mut Stream)> {
        Some((self.graph.variant(self.variant)?, &mut self.stream))
    }

    /// Launches of the captured graph that the last step replayed, and its nodes by kind as the machine counts them.
    pub fn last_nodes(&mut self) -> (usize, NodeCounts) {
        self.last_graph().map(|(graph, _)| (graph.len(), graph.nodes())).unwrap_or_default()
    }

    /// Copies in the captured graph that the last step replayed, counted from the graph's nodes. The copy of the step's inputs
    /// to the device is no part of that graph.
    pub fn last_copies(&mut self) -> Vec<CapturedCopy> {
        let nodes = self.graph.variant(self.variant).map(|graph| graph.captured()).unwrap_or_default();
        let entry = self.program().entries.first();
        let variant = entry.and_then(|e| e.variants.get(self.variant));
        variant.map(|v| copies(&self.manifest, self.program(), v, &nodes)).unwrap_or_default()
    }

    /// Bytes that the last step moved by the artifact's own estimate, with `tokens` tokens of sequences of `context` positions
    /// each (one token a sequence): weights, intermediates and KV blocks read.
    pub fn bytes_per_step(&self, tokens: usize, context: usize) -> u64 {
        let entry = self.program().entries.first();
        let launches = entry.and_then(|e| e.variants.get(self.variant)).map_or(&[][..], |v| &v.launches);
        let tokens = tokens as u64;
        let launched: u64 = launches
            .iter()
            .map(|l| l.cost.bytes.saturating_add(l.cost.bytes_per_token.saturating_mul(tokens)))
            .fold(0, u64::saturating_add);
        let blocks = context.div_ceil(self.manifest.block_positions().max(1) as usize) as u64;
        let unit: u64 = self.manifest.states.iter().map(|s| s.unit_bytes).fold(0, u64::saturating_add);
        launched.saturating_add(unit.saturating_mul(blocks).saturating_mul(tokens))
    }

    /// The session's stream.
    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// The sequences' KV blocks. An engine that owns its block tables may ignore it.
    pub fn block_pool(&self) -> &BlockPool {
        &self.pool
    }

    /// As [`SessionOptions::trusts_tables`], from now on: for steps at positions that only their time matters of.
    pub(crate) fn trust_tables(&mut self) {
        self.checked.trust_tables();
    }

    /// The compiled range of the symbol of a role like this one; `(1, 1)` if the artifact has none.
    pub fn range(&self, role: &SymbolRole) -> (usize, usize) {
        self.manifest.symbol_of(role).map_or((1, 1), |(_, s)| (s.min as usize, s.max as usize))
    }

    /// Positions that a sequence may have.
    pub fn max_positions(&self) -> usize {
        let model = &self.manifest.model;
        let block = u64::from(self.manifest.block_positions());
        let paged = self.manifest.symbol_of(&SymbolRole::BLOCKS).map_or(u64::MAX, |(_, s)| s.max.saturating_mul(block));
        paged.min(u64::from(model.max_seq)) as usize
    }

    /// Runs one step and returns logits `[R, vocab]`, row-major f32. Allocates nothing.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the value that is outside its range; nothing was run then. [`Error::Driver`] if the device
    /// failed.
    pub fn step(&mut self, input: &StepInput<'_>) -> Result<&[f32]> {
        self.enqueue(input)?;
        self.logits()
    }

    /// Enqueues one step without waiting for it; the values of `input` are copied. Steps run in the order of the calls.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn enqueue(&mut self, input: &StepInput<'_>) -> Result<()> {
        self.checked.check(&self.manifest, input)?;
        if let Some(member) = &self.member {
            let StepInput { tokens, positions, seq_starts, logit_rows, .. } = *input;
            let signature = step_signature(self.checked.dims().values(), &[tokens, positions, seq_starts, logit_rows]);
            member.group().enter(signature)?;
        }
        let inputs = self.checked.bytes(input);
        let inputs = &inputs[..self.manifest.inputs.len().min(MAX_INPUTS)];
        let (manifest, dims, regions) = (&*self.manifest, self.checked.dims(), &self.regions);
        let mut note = self
            .values
            .as_mut()
            .map(|values| |variant: usize, launch: usize| values.record((variant, launch), manifest, dims, regions));
        let between: Option<Between<'_>> = match &mut note {
            Some(note) => Some(note),
            None => None,
        };
        let replayed = self.graph.replay(manifest, &mut *self.stream.backend, dims, inputs, between);
        self.variant = match &self.member {
            None => replayed?,
            Some(member) => member.replayed(replayed)?,
        };
        self.checked.begun(input);
        self.rows = input.logit_rows.len();
        if let Some(shapes) = &mut self.shapes {
            let [tokens, sequences, rows] =
                [input.tokens.len(), input.seq_starts.len().saturating_sub(1), self.rows].map(|n| n as u64);
            let width = (input.block_tables.len() as u64).checked_div(sequences).unwrap_or_default();
            let last = input.positions.iter().copied().max().unwrap_or_default();
            shapes.record(self.variant, [tokens, sequences, width, rows, u64::from(last.unsigned_abs()) + 1]);
        }
        Ok(())
    }

    /// Waits until every enqueued step is done.
    ///
    /// # Errors
    /// If one of them failed.
    pub fn wait(&mut self) -> Result<()> {
        match &self.member {
            None => self.stream.synchronize(),
            Some(member) => member.wait(&mut *self.stream.backend),
        }
    }

    /// The ranks that run the artifact together; none for an artifact of one.
    pub fn group(&self) -> Option<&Arc<Group>> {
        self.member.as_ref().map(Member::group)
    }

    /// True if this process speaks for the session: it is rank 0, or the only one.
    pub fn reports(&self) -> bool {
        self.group().is_none_or(|group| group.ranks().rank == 0)
    }

    /// What rank 0 says, on all ranks: for decisions that depend on the time. All ranks call this together.
    ///
    /// # Errors
    /// [`Error::Rank`] if the job is over.
    pub fn as_on_rank_0(&self, value: u64) -> Result<u64> {
        let Some(member) = &self.member else { return Ok(value) };
        let messages = member.group().exchange("exchange of a number", &value.to_le_bytes())?;
        let first = messages.first().and_then(|message| message.first_chunk());
        first.map(|bytes| u64::from_le_bytes(*bytes)).ok_or_else(|| Error::Driver("rank 0 left no number".into()))
    }

    /// Makes each time the longest of all ranks', on all ranks. All ranks call this together, with as many times.
    ///
    /// # Errors
    /// [`Error::Rank`] if the job is over.
    pub fn slowest(&self, times: &mut [Duration]) -> Result<()> {
        let Some(member) = &self.member else { return Ok(()) };
        for times in times.chunks_mut(MESSAGE_BYTES / 8) {
            let nanos = times.iter().map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            let message: Vec<u8> = nanos.flat_map(u64::to_le_bytes).collect();
            for message in member.group().exchange("exchange of times", &message)? {
                for (time, bytes) in times.iter_mut().zip(message.as_chunks().0) {
                    *time = (*time).max(Duration::from_nanos(u64::from_le_bytes(*bytes)));
                }
            }
        }
        Ok(())
    }

    /// Waits for the last step and returns its logits `[R, vocab]`, row-major f32; none before the first step.
    ///
    /// # Errors
    /// If a step failed.
    pub fn logits(&mut self) -> Result<&[f32]> {
        let count = self.rows * self.manifest.model.vocab_size as usize;
        let Some(output) = self.regions.outputs.first() else { return Ok(&[]) };
        if let (Some(host), true) = (&self.logits, count > 0) {
            self.stream.backend.download(output, host, count * 4)?;
        }
        match &self.member {
            None => self.stream.synchronize()?,
            Some(member) => member.wait(&mut *self.stream.backend)?,
        }
        self.logits.as_ref().unwrap_or(output).as_f32(count)
    }
}

/// Loads the code of `program`.
///
/// # Errors
/// If the artifact has none, or the driver refuses it.
pub(crate) fn load_code(
    artifact: &Artifact,
    program: &Program,
    driver: &dyn Driver,
    cache: Option<&Path>,
) -> Result<Arc<dyn Module>> {
    let section = artifact.manifest().section(&program.code);
    let code = section.and_then(|section| Some((artifact.section(&section.name)?, &section.blake3)));
    let (image, hash) = code.ok_or_else(|| Error::Unsupported("the program has no code".into()))?;
    let kernels: Vec<KernelEntry<'_>> =
        program.kernels.iter().map(|k| KernelEntry { name: &k.name, offset: k.entry, threads: k.threads }).collect();
    driver.load_module(&ModuleSource { image, hash, kernels: &kernels, cache })
}

/// The first program the device can run; the reasons of all if none.
fn choose_program<'a>(manifest: &'a Manifest, driver: &dyn Driver) -> Result<(usize, &'a Program)> {
    let mut reasons = Vec::new();
    for (index, program) in manifest.programs.iter().enumerate() {
        match driver.check_target(&program.target) {
            Ok(()) => return Ok((index, program)),
            Err(Error::Unsupported(reason)) => reasons.push(reason),
            Err(e) => return Err(e),
        }
    }
    Err(Error::Unsupported(if reasons.is_empty() { "the artifact has no program".into() } else { reasons.join("; ") }))
}

fn size(bytes: Option<u64>) -> Result<usize> {
    let bytes = bytes.and_then(|n| usize::try_from(n).ok());
    bytes.ok_or_else(|| Error::Unsupported("an allocation's size overflows".into()))
}

/// The embedding engine's memory as states, checked against what the states need.
fn external_states(
    manifest: &Manifest,
    driver: &dyn Driver,
    given: &[ExternalMemory],
    blocks: usize,
) -> Result<Vec<Buffer>> {
    if given.len() != manifest.states.len() {
        let (given, states) = (given.len(), manifest.states.len());
        return Err(Error::InvalidInput(format!("memory for {given} states was given, the artifact has {states}")));
    }
    let wrap = |(memory, state): (&ExternalMemory, &crate::artifact::State)| {
        let needed = size(state.unit_bytes.checked_mul(blocks as u64))?;
        if memory.len() < needed {
            let (name, given) = (&state.name, memory.len());
            return Err(Error::InvalidInput(format!("state {name} needs {needed} bytes, {given} were given")));
        }
        driver.wrap(memory)
    };
    given.iter().zip(&manifest.states).map(wrap).collect()
}

fn check_output(manifest: &Manifest) -> Result<()> {
    let vocab = u64::from(manifest.model.vocab_size);
    let ok = manifest.outputs.first().is_some_and(|output| {
        let rows = manifest.symbol_of(&SymbolRole::LogitRows).map(|(_, symbol)| Dim::Symbol(symbol.name.clone()));
        output.dtype == DType::F32 && rows.is_some_and(|rows| output.shape == [rows, Dim::Const(vocab)])
    });
    if ok { Ok(()) } else { Err(Error::Unsupported(format!("output 0 must be logits f32 [R, {vocab}]"))) }
}

/// KV blocks of the pool: as asked, else the longest context for every sequence, within the compiled range.
fn kv_blocks(manifest: &Manifest, asked: Option<usize>) -> Result<usize> {
    let max = |role| manifest.symbol_of(role).map_or(1, |(_, s)| s.max);
    let Some((_, symbol)) = manifest.symbol_of(&SymbolRole::POOL) else { return Ok(asked.unwrap_or(0)) };
    let blocks = match asked {
        Some(blocks) => blocks as u64,
        None => max(&SymbolRole::Sequences).saturating_mul(max(&SymbolRole::BLOCKS)).clamp(symbol.min, symbol.max),
    };
    if blocks < symbol.min || blocks > symbol.max {
        return Err(Error::InvalidInput(format!(
            "{blocks} KV blocks are outside the compiled range {}..={}",
            symbol.min, symbol.max
        )));
    }
    usize::try_from(blocks).map_err(|_| Error::InvalidInput("too many KV blocks".into()))
}
