//! `eval` and `bench` of any entry: tensors in by name, tensors out.

use super::{SessionArgs, files, put, tensors};
use crate::DType;
use crate::artifact::{Artifact, Dim, EntryPoint, Manifest, SymbolRole};
use crate::error::{Error, Result};
use crate::session::{Call, Session, StepInput, TensorBuf, TensorView};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A call as a command line gives it.
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    /// What to run.
    pub session: SessionArgs,
    /// The entry; the only one that takes the inputs given, if none is named.
    pub entry: Option<String>,
    /// Tokens of one sequence from its first position on, for entries that take steps of sequences.
    pub tokens: Option<PathBuf>,
    /// Files of inputs by name.
    pub inputs: Vec<(String, PathBuf)>,
    /// Where outputs go, by name.
    pub outputs: Vec<(String, PathBuf)>,
    /// Sizes that no input says.
    pub sizes: Vec<(String, u64)>,
    /// How often: each time must give the same bits.
    pub repeat: u64,
}

/// The step of one sequence of `ids`, from its first position on.
struct Batch {
    ids: Vec<i32>,
    positions: Vec<i32>,
    starts: [i32; 2],
    table: Vec<i32>,
}

impl Batch {
    fn new(session: &Session, ids: Vec<i32>) -> Batch {
        let count = ids.len() as i32;
        let blocks = ids.len().div_ceil(session.manifest().block_positions().max(1) as usize);
        let width = blocks.max(session.range(&SymbolRole::BLOCKS).0);
        Batch { positions: (0..count).collect(), starts: [0, count], table: (0..width as i32).collect(), ids }
    }

    fn input(&self) -> StepInput<'_> {
        StepInput {
            tokens: &self.ids,
            positions: &self.positions,
            seq_starts: &self.starts,
            block_tables: &self.table,
            logit_rows: &self.positions,
        }
    }
}

/// The entry that a call is for.
fn entry<'m>(manifest: &'m Manifest, options: &CallOptions) -> Result<&'m EntryPoint> {
    let names = || manifest.entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(name) = &options.entry {
        let found = manifest.entry(name).and_then(|at| manifest.entries.get(at));
        return found.ok_or_else(|| Error::InvalidInput(format!("--entry {name}: the artifact has [{}]", names())));
    }
    let takes = |entry: &&EntryPoint| {
        options.inputs.iter().all(|(name, _)| manifest.inputs_of(entry).any(|input| input.name == *name))
            && options.outputs.iter().all(|(name, _)| manifest.outputs_of(entry).any(|output| output.name == *name))
    };
    let mut found = manifest.entries.iter().filter(takes);
    match (found.next(), found.next()) {
        (Some(entry), None) => Ok(entry),
        (Some(_), Some(_)) => Err(Error::InvalidInput(format!("--entry is needed: one of [{}]", names()))),
        (None, _) => Err(Error::InvalidInput(format!("no entry of [{}] has these inputs and outputs", names()))),
    }
}

/// Calls an entry and writes its outputs; those that no file is named for are described on `out`.
///
/// # Errors
/// Bad input of any kind; [`Error::CheckFailed`] if a repetition gives other bits.
pub fn eval(options: &CallOptions, out: &mut dyn Write) -> Result<()> {
    let artifact = Artifact::open(&options.session.artifact)?;
    if options.session.launched(&artifact)? {
        return Ok(());
    }
    let manifest = artifact.manifest();
    let point = entry(manifest, options)?;
    if let Some((name, _)) =
        options.outputs.iter().find(|(name, _)| !manifest.outputs_of(point).any(|o| o.name == *name))
    {
        let names: Vec<&str> = manifest.outputs_of(point).map(|o| o.name.as_str()).collect();
        return Err(Error::InvalidInput(format!("--output {name}: entry {} gives [{}]", point.name, names.join(", "))));
    }
    let given = options.inputs.iter().map(|(name, path)| Ok((name.as_str(), tensors::read(path, name)?)));
    let given = given.collect::<Result<Vec<(&str, TensorBuf)>>>()?;
    let ids = options.tokens.as_deref().map(files::read_tokens).transpose()?;
    let ids = ids.map(|ids| ids.into_iter().map(|id| i32::try_from(id).unwrap_or(-1)).collect::<Vec<i32>>());
    let mut session = options.session.session(&artifact, 1, ids.as_ref().map(Vec::len))?;
    let step = ids.map(|ids| Batch::new(&session, ids));
    let inputs: Vec<(&str, TensorView<'_>)> = given.iter().map(|(name, tensor)| (*name, tensor.view())).collect();
    let dims: Vec<(&str, u64)> = options.sizes.iter().map(|(name, n)| (name.as_str(), *n)).collect();
    let call = Call { step: step.as_ref().map(Batch::input), inputs: &inputs, dims: &dims };
    let outputs = session.call(&point.name, &call)?;
    for time in 1..options.repeat.max(1) {
        if session.call(&point.name, &call)? != outputs {
            return Err(Error::CheckFailed(format!("call {} gave other outputs than the first", time + 1)));
        }
    }
    let reports = session.reports();
    session.close()?;
    for (name, tensor) in outputs.iter().filter(|_| reports) {
        match options.outputs.iter().find(|(wanted, _)| wanted == name) {
            Some((_, path)) => tensors::write(path, name, tensor.view())?,
            None => put(out, &format!("{name}: {}{:?}\n", tensor.dtype, tensor.shape))?,
        }
    }
    Ok(())
}

/// A measurement of any entry.
#[derive(Clone, Debug)]
pub struct EntryBench {
    /// What to run.
    pub session: SessionArgs,
    /// The entry.
    pub entry: String,
    /// Sizes of its symbols; those that are not given are as large as they may be.
    pub sizes: Vec<(String, u64)>,
    /// Time spent, about.
    pub budget: Duration,
    /// One JSON object instead of a line.
    pub json: bool,
}

/// Floats near 1, and zeros, which are indices of anything.
fn filled(dtype: DType, shape: &[u64]) -> Result<TensorBuf> {
    let bytes = dtype.byte_size(shape).ok().and_then(|n| usize::try_from(n).ok());
    let mut bytes = vec![0u8; bytes.ok_or_else(|| Error::InvalidInput(format!("{dtype}{shape:?} is too large")))?];
    let element: &[u8] = match dtype {
        DType::F32 => &[0, 0, 0x80, 0x3f],
        DType::F16 => &[0, 0x3c],
        DType::BF16 => &[0x80, 0x3f],
        _ => &[],
    };
    if !element.is_empty() {
        bytes.chunks_exact_mut(element.len()).for_each(|chunk| chunk.copy_from_slice(element));
    }
    Ok(TensorBuf { dtype, shape: shape.to_vec(), bytes })
}

/// Measures calls of an entry with made-up inputs: the time of a call, copies of inputs and outputs included.
///
/// # Errors
/// Bad input of any kind.
pub fn bench(options: &EntryBench, out: &mut dyn Write) -> Result<()> {
    let artifact = Artifact::open(&options.session.artifact)?;
    if options.session.launched(&artifact)? {
        return Ok(());
    }
    let manifest = artifact.manifest();
    let named = CallOptions { entry: Some(options.entry.clone()), ..CallOptions::default() };
    let point = entry(manifest, &named)?;
    if let Some(input) = manifest.inputs_of(point).find(|input| !input.role.is_plain()) {
        let message = format!(
            "--entry {}: input {} has the role {} in a step; bench without --entry measures steps",
            point.name, input.name, input.role
        );
        return Err(Error::InvalidInput(message));
    }
    let own = point.symbols.iter().filter_map(|index| manifest.symbols.get(*index as usize));
    let mut sizes: BTreeMap<&str, u64> = own.map(|symbol| (symbol.name.as_str(), symbol.max)).collect();
    for (name, size) in &options.sizes {
        let known = sizes.get_mut(name.as_str());
        *known
            .ok_or_else(|| Error::InvalidInput(format!("--size {name}: entry {} has no such symbol", point.name)))? =
            *size;
    }
    let shape = |dims: &[Dim]| -> Vec<u64> {
        let size = |dim: &Dim| match dim {
            Dim::Const(n) => *n,
            Dim::Symbol(name) => sizes.get(name.as_str()).copied().unwrap_or(1),
        };
        dims.iter().map(size).collect()
    };
    let made = manifest.inputs_of(point).map(|i| Ok((i.name.as_str(), filled(i.dtype, &shape(&i.shape))?)));
    let made = made.collect::<Result<Vec<(&str, TensorBuf)>>>()?;
    let inputs: Vec<(&str, TensorView<'_>)> = made.iter().map(|(name, tensor)| (*name, tensor.view())).collect();
    let pools = manifest.symbols.iter().filter(|symbol| symbol.role.is_like(&SymbolRole::POOL));
    let pools: Vec<&str> = pools.map(|symbol| symbol.name.as_str()).collect();
    let dims: Vec<(&str, u64)> =
        sizes.iter().filter(|(name, _)| !pools.contains(name)).map(|(n, s)| (*n, *s)).collect();
    let call = Call { step: None, inputs: &inputs, dims: &dims };
    let mut session = options.session.session(&artifact, 1, None)?;
    session.call(&point.name, &call)?;
    let at = Instant::now();
    session.call(&point.name, &call)?;
    let rounds = super::gpu_bench::rounds(&session, at.elapsed(), options.budget, &(3..=100_000))?;
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let at = Instant::now();
        session.call(&point.name, &call)?;
        times.push(at.elapsed());
    }
    session.slowest(&mut times)?;
    let (device, launches, reports) = (session.device().driver().name(), session.last_nodes().0, session.reports());
    session.close()?;
    if !reports {
        return Ok(());
    }
    let ms = super::gpu_bench::median(&mut times).as_secs_f64() * 1e3;
    if options.json {
        let value = json!({
            "entry": point.name, "device": device, "sizes": sizes, "ms_per_call": ms, "launches": launches,
        });
        return put(out, &format!("{value}\n"));
    }
    let sizes: Vec<String> = sizes.iter().map(|(name, n)| format!("{name} = {n}")).collect();
    put(out, &format!("{} on {device}, {}: {ms:.3} ms a call, {launches} launches\n", point.name, sizes.join(", ")))
}
