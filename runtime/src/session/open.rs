//! Opening: weights in place, code loaded, every entry captured.

use super::check::Checked;
use super::{Session, SessionOptions, StepEntry, Stream};
use crate::artifact::{Artifact, Dim, Manifest, Program, SymbolRole};
use crate::comm::member::Member;
use crate::device::Device;
use crate::driver::{Buffer, Driver, ExternalMemory, KernelEntry, Module, ModuleSource, Placement};
use crate::error::{Error, Result};
use crate::graph::{Capturing, EntryGraph, Regions};
use crate::memory::BlockPool;
use crate::shapes::ShapeLog;
use crate::values::ValueLog;
use crate::weights::{self, WeightOptions};
use std::path::Path;
use std::sync::Arc;

impl Session {
    pub(super) fn open(
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
        let capture =
            |entry| EntryGraph::capture(driver, &manifest, (program, entry), &module, &regions, (blocks, capturing));
        let entries = (0..program.entries.len()).map(capture).collect::<Result<Vec<_>>>()?;
        let step = manifest.step().map(|entry| step_entry(&manifest, entry, driver, &regions)).transpose()?;
        let pool = BlockPool::new(blocks);
        let stream = Stream { backend: driver.create_stream(options.stream.as_ref())? };
        let threads = device.threads();
        // Files are written by one rank for all.
        let shapes = options.shapes.filter(|_| rank == 0).map(|path| ShapeLog::new(path, &manifest, program));
        if let Some(member) = &member {
            member.ready()?;
        }
        Ok(Session {
            entries,
            stream,
            member: None,
            manifest,
            regions,
            step,
            rows: 0,
            pool,
            checked,
            shapes,
            values,
            program: index,
            last: (0, 0),
            threads,
            module,
            device,
        })
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

fn step_entry(manifest: &Manifest, entry: usize, driver: &dyn Driver, regions: &Regions) -> Result<StepEntry> {
    let point = manifest.entries.get(entry);
    let output = point.and_then(|point| point.outputs.first()).map_or(0, |i| *i as usize);
    let columns = manifest.outputs.get(output).and_then(|binding| match binding.shape.last() {
        Some(Dim::Const(n)) => usize::try_from(*n).ok(),
        _ => None,
    });
    let logits = match regions.outputs.get(output) {
        Some(buffer) if !buffer.is_host_visible() => Some(driver.allocate(buffer.len(), Placement::Pinned, None)?),
        _ => None,
    };
    Ok(StepEntry { entry, output, logits, columns: columns.unwrap_or(0) })
}

/// KV blocks of the pool: as asked, else the longest context for every sequence, within the compiled range.
fn kv_blocks(manifest: &Manifest, asked: Option<usize>) -> Result<usize> {
    let max = |role| manifest.symbol_of(role).map_or(1, |(_, s)| s.max);
    let Some((_, symbol)) = manifest.symbol_of(&SymbolRole::POOL) else { return Ok(0) };
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
