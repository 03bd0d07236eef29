//! The driver: a model file in, an artifact out. Stages run in one order, each with a name, a time and a form that can be written.

mod compile;
mod launches;
mod manifest;
mod one_sequence;
mod plan;
mod reference;
mod statics;

pub use compile::{Compilation, CompileOptions, PlannedTarget, bisect_targets, build_artifact, plan_targets, reports};
pub use launches::{Comparison, Difference, StepDifference, Subject, compare_artifact};
pub use manifest::{ModelWeights, Signature, model_facts};
pub use one_sequence::block_positions;
pub use plan::{FusionOptions, Planned, bisect_entry, plan_entry};
pub use reference::Reference;

use crate::checkpoint::{Checkpoint, WeightSource, build_step};
use crate::frontend::FrontendError;
use crate::models::{KV_BLOCK, StepOptions};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;
use weldment_artifact::limits::MAX_WORLD;
use weldment_artifact::role::check_roles;
use weldment_ir::{DType, Graph, IrError};
use weldment_passes::buffer::BufferError;
use weldment_passes::error::PassError;
use weldment_passes::shard::shard;

/// Why a model was not compiled.
#[derive(Debug, Error)]
pub enum CompileError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The model's files.
    #[error(transparent)]
    Frontend(#[from] FrontendError),
    /// A graph.
    #[error(transparent)]
    Ir(#[from] IrError),
    /// Memory planning.
    #[error(transparent)]
    Buffer(#[from] BufferError),
    /// Rules and fusions.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// Kernels and code.
    #[error(transparent)]
    Codegen(#[from] weldment_codegen::CodegenError),
    /// Reading or writing artifacts.
    #[error(transparent)]
    Runtime(#[from] weldment_runtime::Error),
    /// An option that does not fit the model or this build.
    #[error("{option}: {message}")]
    Option {
        /// As typed.
        option: String,
        /// Found and accepted.
        message: String,
    },
    /// A check that the user asked for does not hold.
    #[error("check failed: {0}")]
    Check(String),
}

impl CompileError {
    /// An option's error.
    pub fn option(option: impl Into<String>, message: impl Into<String>) -> CompileError {
        CompileError::Option { option: option.into(), message: message.into() }
    }

    /// 1 for a failed check, 2 for bad input.
    pub fn exit_code(&self) -> u8 {
        match self {
            CompileError::Check(_) | CompileError::Pass(PassError::Required { .. }) => 1,
            CompileError::Runtime(e) => e.exit_code(),
            _ => 2,
        }
    }
}

/// Ranges and dtype of the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryOptions {
    /// Arithmetic and cache dtype; the checkpoint's if none.
    pub dtype: Option<DType>,
    /// Most tokens in a step.
    pub max_tokens: u64,
    /// Most sequences in a step.
    pub max_seqs: u64,
    /// Most positions of a sequence; 4096 or the model's limit if none.
    pub max_seq: Option<u64>,
    /// Positions in a KV block.
    pub kv_block: u64,
}

impl Default for EntryOptions {
    fn default() -> EntryOptions {
        EntryOptions { dtype: None, max_tokens: 512, max_seqs: 16, max_seq: None, kv_block: KV_BLOCK }
    }
}

/// Told what the driver is at; a command line shows it, a library need not.
pub trait Progress {
    /// Stage `name` begins.
    fn begin(&mut self, name: &'static str);
    /// The current stage has done `done` of `total` units.
    fn advance(&mut self, done: u64, total: u64);
}

/// Shows nothing.
#[derive(Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn begin(&mut self, _: &'static str) {}
    fn advance(&mut self, _: u64, _: u64) {}
}

/// Times of stages, in order.
#[derive(Debug, Default)]
pub struct Timeline {
    stages: Vec<(&'static str, Duration)>,
}

impl Timeline {
    /// Runs `work` as stage `name`.
    pub fn stage<T>(&mut self, progress: &mut dyn Progress, name: &'static str, work: impl FnOnce() -> T) -> T {
        progress.begin(name);
        let start = Instant::now();
        let out = work();
        let time = start.elapsed();
        match self.stages.iter_mut().find(|(n, _)| *n == name) {
            Some((_, sum)) => *sum += time,
            None => self.stages.push((name, time)),
        }
        out
    }

    /// Stages so far; one that ran several times has the sum.
    pub fn stages(&self) -> &[(&'static str, Duration)] {
        &self.stages
    }

    /// Sum of all stages.
    pub fn total(&self) -> Duration {
        self.stages.iter().map(|(_, d)| *d).sum()
    }
}

/// The graph of `step` for a checkpoint.
///
/// # Errors
/// If a tensor is missing or misshapen, or a range is not accepted.
pub fn model_graph(checkpoint: &Checkpoint, options: &EntryOptions) -> Result<Graph, CompileError> {
    let step = StepOptions {
        dtype: options.dtype.unwrap_or(checkpoint.config.dtype),
        max_tokens: options.max_tokens,
        max_seqs: options.max_seqs,
        max_seq_len: max_seq(checkpoint, options)?,
        kv_block: options.kv_block,
    };
    Ok(build_step(checkpoint, &step)?)
}

/// The graph that each of `tp` ranks runs.
///
/// # Errors
/// If something does not divide by the number of ranks; the error names its source path.
pub fn shard_graph(graph: Graph, tp: u32) -> Result<Graph, CompileError> {
    match tp {
        1 => Ok(graph),
        _ => shard(&graph, tp).map_err(|e| match e {
            PassError::Shard { .. } => CompileError::option(format!("--tp {tp}"), e.to_string()),
            other => other.into(),
        }),
    }
}

/// Positions a sequence may have.
///
/// # Errors
/// If more are asked for than the model was made for.
pub fn max_seq(checkpoint: &Checkpoint, options: &EntryOptions) -> Result<u64, CompileError> {
    let limit = checkpoint.config.max_positions;
    match options.max_seq {
        None => Ok(checkpoint.config.positions.min(4096)),
        Some(n) if (1..=limit).contains(&n) => Ok(n),
        Some(n) => {
            Err(CompileError::option("--max-seq", format!("{n}; the model was made for 1 to {limit} positions")))
        }
    }
}

/// Opens a model.
///
/// # Errors
/// See [`Checkpoint::open`].
pub fn open(model: &Path, weights: WeightSource) -> Result<Checkpoint, CompileError> {
    Ok(Checkpoint::open(model, weights)?)
}

/// Refuses entries that no artifact can declare together.
///
/// # Errors
/// Names the symbol, its range and what is accepted; and see [`Signature::of`].
pub fn check_signature(graphs: &[Graph]) -> Result<(), CompileError> {
    use weldment_artifact::limits::{MAX_SYMBOL_VALUE, MAX_SYMBOLS};
    let wide = |graph: &Graph| {
        let found = graph.symbols().iter().find(|(_, range)| range.max > MAX_SYMBOL_VALUE);
        found.map(|(name, r)| format!("{name}: {}..{}; dims up to {MAX_SYMBOL_VALUE} are accepted", r.min, r.max))
    };
    let names: BTreeSet<&Arc<str>> = graphs.iter().flat_map(|graph| graph.symbols().keys()).collect();
    let many =
        (names.len() > MAX_SYMBOLS).then(|| format!("{} symbolic dims; up to {MAX_SYMBOLS} are accepted", names.len()));
    if let Some(message) = many.or_else(|| graphs.iter().find_map(wide)) {
        return Err(CompileError::option("symbols", message));
    }
    let signature = Signature::of(graphs)?;
    let symbols: Vec<_> = signature.symbols.iter().map(|s| (s.name.as_str(), &s.role)).collect();
    check_roles(&symbols, &[]).map_err(|(_, message)| CompileError::option("symbols", message))
}

/// Most positions of a KV block.
const MOST_KV_BLOCK: u64 = 1 << 16;

/// Checks options that this build accepts within limits only.
///
/// # Errors
/// Names the option and what is accepted.
pub fn check_limits(tp: u32, kv_block: u64) -> Result<(), CompileError> {
    if !(1..=MAX_WORLD).contains(&tp) {
        return Err(CompileError::option("--tp", format!("{tp}; 1 to {MAX_WORLD} ranks are accepted")));
    }
    if !(1..=MOST_KV_BLOCK).contains(&kv_block) {
        return Err(CompileError::option(
            "--kv-block",
            format!("{kv_block}; 1 to {MOST_KV_BLOCK} positions are accepted"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use weldment_passes::buffer::{AnyStrides, bufferise};

    fn tiny() -> Checkpoint {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/llama");
        open(&path, WeightSource::Files).unwrap()
    }

    fn planned(most: u64, target: &str) -> Vec<Planned> {
        let graph = model_graph(&tiny(), &EntryOptions { max_tokens: most, ..EntryOptions::default() }).unwrap();
        let (fusion, mut timeline) = (FusionOptions::default(), Timeline::default());
        let mut out = plan_targets(&[graph], &[target.to_owned()], &fusion, &mut timeline, &mut Quiet).unwrap();
        out.remove(0).variants
    }

    #[test]
    fn variants_share_external_layouts() {
        let plans = planned(512, "x86-64-v3");
        assert_eq!(plans.len(), 2);
        let strides = |list: &[weldment_passes::buffer::External]| {
            list.iter().map(|e| (e.name.clone(), e.strides.clone())).collect::<Vec<_>>()
        };
        assert_eq!(strides(&plans[0].plan.inputs), strides(&plans[1].plan.inputs));
        assert_eq!(strides(&plans[0].plan.outputs), strides(&plans[1].plan.outputs));
        assert_eq!(plans[0].plan.states, plans[1].plan.states);
    }

    #[test]
    fn variants_cover_every_number_of_tokens_once() {
        for (most, count) in [(1, 1), (2, 2), (16, 2), (17, 3), (256, 5), (512, 6)] {
            let split = planned(most, "gfx942");
            assert_eq!(split.len(), count, "{most}");
            let mut next = 0;
            for variant in &split {
                let range = variant.graph.symbols()["T"];
                assert_eq!(range.min, next, "{most} {}", variant.name);
                next = range.max + 1;
            }
            assert_eq!(next, most + 1);
            assert_eq!(planned(most, "x86-64-v3").len(), count.min(2));
        }
    }

    #[test]
    fn a_model_step_has_no_copies() {
        for variant in planned(512, "gfx942") {
            let plan = bufferise(&variant.before, &AnyStrides).unwrap();
            assert!(plan.copies.is_empty(), "{}: {:?}", variant.name, plan.copies);
            assert!(plan.arena_bytes <= plan.arena_lower_bound + plan.arena_lower_bound / 4);
        }
    }

    #[test]
    fn sequences_are_bounded_by_the_model() {
        let checkpoint = tiny();
        let limit = checkpoint.config.max_positions;
        let options = EntryOptions { max_seq: Some(limit + 1), ..EntryOptions::default() };
        assert_eq!(max_seq(&checkpoint, &options).unwrap_err().exit_code(), 2);
        assert_eq!(max_seq(&checkpoint, &EntryOptions::default()).unwrap(), limit.min(4096));
    }
}
