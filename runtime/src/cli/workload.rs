//! A fixed workload on an artifact: a decode step of several sequences at one context, and a prefill. Everything that is
//! compared runs this, so that it is the same work.

use super::SessionArgs;
use super::gpu_bench::{back_to_back, median, rounds};
use crate::artifact::{Artifact, Manifest, SymbolRole};
use crate::error::{Error, Result};
use crate::memory::Sequence;
use crate::session::{Session, StepInput};
use std::time::{Duration, Instant};

/// Sizes of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sequences that decode together.
    pub batch: usize,
    /// Positions that each has.
    pub context: usize,
    /// Tokens of the prefill.
    pub prefill: usize,
}

impl Shape {
    /// The shape asked for; 1024 positions and 512 tokens, or the compiled maximum if less, where nothing is.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the compiled range if a size is outside.
    pub fn within(manifest: &Manifest, batch: usize, context: Option<usize>, prefill: Option<usize>) -> Result<Shape> {
        if batch == 0 {
            return Err(Error::InvalidInput("--batch must be at least 1".into()));
        }
        let most = |role| manifest.symbol_of(&role).map_or(u64::MAX, |(_, symbol)| symbol.max);
        let most = [SymbolRole::Tokens, SymbolRole::Sequences, SymbolRole::LogitRows]
            .map(most)
            .into_iter()
            .fold(u64::MAX, u64::min);
        let range = |name: &str, n: usize, most: u64| {
            let fits = (1..=most).contains(&(n as u64));
            let refused = || Error::InvalidInput(format!("--{name} {n} is outside the compiled range 1..={most}"));
            fits.then_some(n).ok_or_else(refused)
        };
        let batch = range("batch", batch, most)?;
        let width = manifest.symbol_of(&SymbolRole::BLOCKS).map_or(1, |(_, p)| p.max);
        let positions = width.saturating_mul(u64::from(manifest.block_positions()));
        let limit = positions.min(u64::from(manifest.model.max_seq));
        let within = |asked: Option<usize>, default: u64, name: &str| {
            asked.map_or(Ok(default.min(limit) as usize), |n| range(name, n, limit))
        };
        Ok(Shape { batch, context: within(context, 1024, "context")?, prefill: within(prefill, 512, "prefill")? })
    }
}

/// The inputs of a decode step: one token for each of `batch` sequences at position `context - 1`.
#[derive(Debug)]
pub struct DecodeStep {
    /// Whose blocks the tables name.
    _sequences: Vec<Sequence>,
    tokens: Vec<i32>,
    positions: Vec<i32>,
    seq_starts: Vec<i32>,
    block_tables: Vec<i32>,
    logit_rows: Vec<i32>,
}

impl DecodeStep {
    /// Takes the KV blocks of the sequences from the session's pool. What they hold is of no matter, and no step has put it there.
    ///
    /// # Errors
    /// If there are not enough.
    pub fn new(session: &mut Session, shape: Shape) -> Result<DecodeStep> {
        let Shape { batch, context, .. } = shape;
        session.trust_tables();
        let kv_block = session.manifest().block_positions() as usize;
        let width = context.div_ceil(kv_block).max(session.range(&SymbolRole::BLOCKS).0);
        let mut sequences: Vec<_> = (0..batch).map(|_| session.new_sequence()).collect();
        let mut block_tables = Vec::with_capacity(batch * width);
        for sequence in &mut sequences {
            session.reserve(sequence, context)?;
            block_tables.extend_from_slice(sequence.blocks());
            block_tables.resize(block_tables.len().next_multiple_of(width), -1);
        }
        Ok(DecodeStep {
            _sequences: sequences,
            tokens: tokens(session, batch),
            positions: vec![context as i32 - 1; batch],
            seq_starts: (0..=batch as i32).collect(),
            block_tables,
            logit_rows: (0..batch as i32).collect(),
        })
    }

    /// The step.
    pub fn input(&self) -> StepInput<'_> {
        StepInput {
            tokens: &self.tokens,
            positions: &self.positions,
            seq_starts: &self.seq_starts,
            block_tables: &self.block_tables,
            logit_rows: &self.logit_rows,
        }
    }
}

/// `count` token ids, the same for every artifact of a vocabulary.
pub fn tokens(session: &Session, count: usize) -> Vec<i32> {
    let vocab = session.model().vocab_size as usize;
    (0..count).map(|i| (i * 7919 % vocab) as i32).collect()
}

/// Prefills a new sequence with `tokens` and lets it go.
///
/// # Errors
/// If the step is refused or fails.
pub fn prefill(session: &mut Session, tokens: &[i32]) -> Result<()> {
    let mut sequence = session.new_sequence();
    session.extend(&mut sequence, tokens).map(drop)
}

/// A session that is ready to run a workload again and again.
#[derive(Debug)]
pub struct Workload {
    session: Session,
    shape: Shape,
    step: DecodeStep,
    prompt: Vec<i32>,
}

impl Workload {
    /// Opens an artifact and runs each part once.
    ///
    /// # Errors
    /// If a size is outside the compiled range, or opening or a step fails.
    pub fn open(args: &SessionArgs, batch: usize, context: Option<usize>, prompt: Option<usize>) -> Result<Workload> {
        let artifact = Artifact::open(&args.artifact)?;
        let shape = Shape::within(artifact.manifest(), batch, context, prompt)?;
        // One sequence more than decode: the prefill's.
        let mut session = args.session(&artifact, shape.batch + 1, Some(shape.context.max(shape.prefill)))?;
        let step = DecodeStep::new(&mut session, shape)?;
        let prompt = tokens(&session, shape.prefill);
        prefill(&mut session, &prompt)?;
        session.step(&step.input())?;
        Ok(Workload { session, shape, step, prompt })
    }

    /// What it runs.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Where it runs: `host`, `cuda`, `hip`.
    pub fn device(&self) -> &'static str {
        self.session.device().driver().name()
    }

    /// Median time of decode steps for about `budget`, at least three; on a GPU of several back to back.
    ///
    /// # Errors
    /// If a step fails.
    pub fn decode(&mut self, budget: Duration) -> Result<Duration> {
        let input = self.step.input();
        if self.session.device().driver().name() != "host" {
            return back_to_back(&mut self.session, &input, budget).map(|(wall, _)| wall);
        }
        self.session.step(&input)?;
        let at = Instant::now();
        self.session.step(&input)?;
        let rounds = rounds(&self.session, at.elapsed(), budget, &(3..=100_000))?;
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let at = Instant::now();
            self.session.step(&input)?;
            times.push(at.elapsed());
        }
        Ok(median(&mut times))
    }

    /// Time of one prefill.
    ///
    /// # Errors
    /// If a step fails.
    pub fn prefill(&mut self) -> Result<Duration> {
        let at = Instant::now();
        prefill(&mut self.session, &self.prompt)?;
        Ok(at.elapsed())
    }

    /// Launches of the graph that a decode step replays, and bytes that it moves by the artifact's own estimate.
    ///
    /// # Errors
    /// If the step fails.
    pub fn decode_counts(&mut self) -> Result<(usize, u64)> {
        self.session.step(&self.step.input())?;
        let launches = self.session.last_nodes().0;
        Ok((launches, self.session.bytes_per_step(self.shape.batch, self.shape.context)))
    }
}
