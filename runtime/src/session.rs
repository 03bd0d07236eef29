//! From an artifact to logits: a device, a stream, and a session that captures once and replays.

mod call;
mod check;
mod layout;
mod open;
mod report;
mod sequences;
mod step;
mod tables;

use crate::artifact::{Artifact, Manifest, Model, Program, SymbolRole};
use crate::comm::control::MESSAGE_BYTES;
use crate::comm::member::Member;
use crate::comm::{DEFAULT_DEADLINE, Group};
use crate::device::Device;
use crate::driver::{Allocator, Buffer, Event, ExternalMemory, ExternalStream, Module, StreamBackend, teardown};
use crate::error::{Error, Result};
use crate::graph::{EntryGraph, Regions};
use crate::log::{self, Level};
use crate::memory::BlockPool;
use crate::shapes::ShapeLog;
use crate::values::ValueLog;
use crate::weights;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use call::{Call, TensorBuf, TensorView};
pub(crate) use check::Checked;
pub(crate) use open::load_code;

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
    /// Captured entries, in the manifest's order.
    entries: Vec<EntryGraph>,
    stream: Stream,
    member: Option<Member>,
    manifest: Arc<Manifest>,
    regions: Regions,
    /// The entry that takes steps of sequences.
    step: Option<StepEntry>,
    /// Rows of logits of the last step.
    rows: usize,
    pool: BlockPool,
    checked: Checked,
    shapes: Option<ShapeLog>,
    values: Option<ValueLog>,
    program: usize,
    /// The entry and the variant that ran last.
    last: (usize, usize),
    threads: usize,
    module: Arc<dyn Module>,
    device: Device,
}

/// The entry that takes steps of sequences.
#[derive(Debug)]
struct StepEntry {
    /// Its place.
    entry: usize,
    /// Its first output.
    output: usize,
    /// Where the host reads that, if not in place.
    logits: Option<Buffer>,
    /// Columns of a row of logits.
    columns: usize,
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
        let Session { entries, stream, member, regions: _regions, .. } = self;
        drop((entries, stream));
        member.map_or(Ok(()), Member::close)
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
}
