//! The launches of a step one at a time, on all ranks, with memory that can be read in between: how a compiler finds the launch at
//! which an artifact goes wrong. For the host, whose memory is at hand; ranks are threads of this process.

use super::capture::{Regions, max_dims, padded_bytes};
use crate::artifact::{Artifact, EntryPoint, Guard, Launch, Manifest, Program, Region, Variant};
use crate::comm::member::Member;
use crate::comm::{DEFAULT_DEADLINE, Group, GroupOptions, Ranks};
use crate::device::Device;
use crate::driver::{Buffer, CaptureLaunch, CaptureSpec, Module, Placement, StreamBackend};
use crate::error::{Error, Result};
use crate::session::{Checked, SessionOptions, StepInput, load_code};
use crate::weights::{self, WeightOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// An artifact's program in memory, ready to be stepped through.
#[derive(Debug)]
pub struct SingleSteps {
    manifest: Arc<Manifest>,
    program: usize,
    /// The entry that takes steps of sequences.
    entry: usize,
    ranks: Vec<Rank>,
    checked: Checked,
    blocks: usize,
}

/// What a rank has. Fields drop in this order: the membership last.
#[derive(Debug)]
struct Rank {
    stream: Box<dyn StreamBackend>,
    regions: Regions,
    module: Arc<dyn Module>,
    device: Device,
    member: Option<Member>,
}

/// A step under way: its launches have not run until [`Step::launch`] runs them.
pub struct Step<'a> {
    steps: &'a mut SingleSteps,
    /// The variant whose guards accept the step.
    pub variant: usize,
    dims: Vec<i64>,
    inputs: Vec<Vec<u8>>,
}

impl SingleSteps {
    /// Loads the first program of `artifact` that the host runs on every rank, with `blocks` units of every state (symbol N), all zero.
    ///
    /// # Errors
    /// If no program runs on this host, the weights are not found or differ, or there is no memory.
    pub fn open(artifact: &Artifact, device: &Device, blocks: usize, options: &WeightOptions) -> Result<SingleSteps> {
        let manifest = artifact.shared_manifest();
        let driver = device.driver();
        let runs = |p: &Program| !p.target.is_gpu() && driver.check_target(&p.target).is_ok();
        let index = manifest.programs.iter().position(runs);
        let index = index.ok_or_else(|| {
            let names: Vec<&str> = manifest.programs.iter().map(|p| p.target.name.as_str()).collect();
            let message = format!(
                "stepping through launches is for programs of this host; the artifact has {}",
                names.join(", ")
            );
            Error::Unsupported(message)
        })?;
        let entry = manifest
            .step()
            .ok_or_else(|| Error::Unsupported("the artifact has no entry that takes a step of sequences".into()))?;
        let checked = Checked::new(&manifest, blocks, false)?;
        let world = manifest.world;
        let ranks = match world {
            1 => vec![Rank::open(artifact, device, (index, blocks), options, None)?],
            _ => {
                let job = job();
                let open = |rank| {
                    let options = WeightOptions { rank, ..options.clone() };
                    let group =
                        Group::join(Ranks::local(rank, world, &job), GroupOptions { deadline: DEFAULT_DEADLINE })?;
                    Rank::open(artifact, device, (index, blocks), &options, Some(group))
                };
                on_all((0..world).map(|rank| move || open(rank)))?
            }
        };
        Ok(SingleSteps { manifest, program: index, entry, ranks, checked, blocks })
    }

    /// The program's place in the manifest.
    pub fn program(&self) -> usize {
        self.program
    }

    /// Ranks that run it.
    pub fn world(&self) -> usize {
        self.ranks.len()
    }

    /// Begins a step.
    ///
    /// # Errors
    /// If a value is outside its compiled range or no variant accepts them.
    pub fn begin(&mut self, input: &StepInput<'_>) -> Result<Step<'_>> {
        let point = self.manifest.entries.get(self.entry);
        let point = point.ok_or_else(|| Error::Unsupported("the artifact has no such entry".into()))?;
        self.checked.check(&self.manifest, point, input)?;
        let dims = self.checked.dims();
        let accepts = |guards: &[Guard]| {
            guards.iter().all(|g| {
                let value = dims.get(g.symbol as usize);
                value >= 0 && (g.min..=g.max).contains(&(value as u64))
            })
        };
        let variant = variants(&self.manifest, self.program, self.entry).iter().position(|v| accepts(&v.guards));
        let variant = variant
            .ok_or_else(|| Error::InvalidInput(format!("no variant of the step accepts {:?}", dims.values())))?;
        let dims = dims.values().to_vec();
        self.checked.begun(point, input);
        let (bytes, count) = self.checked.bytes(&self.manifest, self.entry, input);
        let inputs = bytes[..count].iter().map(|bytes| bytes.to_vec()).collect();
        Ok(Step { steps: self, variant, dims, inputs })
    }
}

impl Drop for SingleSteps {
    /// A rank that leaves waits for the others.
    fn drop(&mut self) {
        std::thread::scope(|scope| {
            for rank in self.ranks.drain(..) {
                scope.spawn(move || drop(rank));
            }
        });
    }
}

/// A job of this process alone.
fn job() -> String {
    static JOBS: AtomicU32 = AtomicU32::new(0);
    format!("single steps {} of {}", JOBS.fetch_add(1, Ordering::Relaxed), std::process::id())
}

/// Runs each on a thread of its own, since collectives of one wait for those of the others.
fn on_all<T: Send, F: FnOnce() -> Result<T> + Send>(work: impl Iterator<Item = F>) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = work.map(|work| scope.spawn(work)).collect();
        let joined =
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(Error::Driver("a rank panicked".into()))));
        joined.collect()
    })
}

impl Rank {
    fn open(
        artifact: &Artifact,
        device: &Device,
        (program, blocks): (usize, usize),
        options: &WeightOptions,
        group: Option<Arc<Group>>,
    ) -> Result<Rank> {
        let manifest = artifact.manifest();
        let program = &manifest.programs[program];
        let mut member = match group {
            None => None,
            Some(group) => Member::of(manifest, &SessionOptions { group: Some(group), ..SessionOptions::default() })?,
        };
        let device = match &member {
            Some(member) => member.device(device)?,
            None => device.clone(),
        };
        let driver = device.driver();
        let size = |bytes: Option<u64>| {
            let bytes = bytes.and_then(|n| usize::try_from(n).ok());
            bytes.ok_or_else(|| Error::Unsupported("a buffer is larger than this machine addresses".into()))
        };
        let allocate = |bytes: Option<u64>, placement| driver.allocate(size(bytes)?, placement, None);
        let units = |bytes: u64| bytes.checked_mul(blocks as u64);
        let mut regions = Regions {
            arena: allocate(Some(program.arena_bytes), Placement::Arena)?,
            weights: weights::load(artifact, program, driver, options, None)?,
            states: manifest
                .states
                .iter()
                .map(|s| allocate(units(s.unit_bytes), Placement::State))
                .collect::<Result<_>>()?,
            outputs: manifest
                .outputs
                .iter()
                .map(|b| allocate(manifest.max_bytes(b), Placement::Output))
                .collect::<Result<_>>()?,
            slab: None,
            comm: None,
            library: None,
        };
        if let Some(member) = &mut member {
            (regions.slab, regions.comm) = member.attach(driver, program, device.threads())?;
            member.ready()?;
        }
        let module = load_code(artifact, program, driver, options.cache.as_deref())?;
        let stream = driver.create_stream(None)?;
        Ok(Rank { stream, regions, module, device, member })
    }

    /// Runs one launch and waits for it.
    fn launch(
        &mut self,
        (entry, launch): (&EntryPoint, &Launch),
        spec: &CaptureSpec<'_>,
        dims: &[i64],
        inputs: &[&[u8]],
    ) -> Result<()> {
        let mut capture = self.device.driver().begin_capture(Arc::clone(&self.module), spec)?;
        let args = launch.args.iter().map(|arg| self.regions.resolve(entry, arg)).collect::<Result<Vec<_>>>()?;
        let (kernel, grid) = (launch.kernel as usize, launch.grid.as_slice());
        capture.launch(CaptureLaunch { kernel, grid, args: &args, barrier: false, overlap: false })?;
        let mut graph = capture.finish()?;
        let Some(member) = &self.member else {
            graph.replay(&mut *self.stream, dims, inputs)?;
            return self.stream.synchronize();
        };
        member.group().enter(0)?;
        member.replayed(graph.replay(&mut *self.stream, dims, inputs))?;
        member.wait(&mut *self.stream)
    }
}

fn variants(manifest: &Manifest, program: usize, entry: usize) -> &[Variant] {
    let entry = manifest.programs.get(program).and_then(|p| p.entries.get(entry));
    entry.map_or(&[], |e| &e.variants)
}

impl Step<'_> {
    /// Number of launches.
    pub fn len(&self) -> usize {
        self.variant().map_or(0, |v| v.launches.len())
    }

    /// True for a step without launches.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ranks that run it.
    pub fn world(&self) -> usize {
        self.steps.world()
    }

    fn variant(&self) -> Option<&Variant> {
        variants(&self.steps.manifest, self.steps.program, self.steps.entry).get(self.variant)
    }

    /// Runs launch `index` on all ranks and waits for it. The caller runs them in order, each once.
    ///
    /// # Errors
    /// If there is no such launch or the driver refuses it.
    pub fn launch(&mut self, index: usize) -> Result<()> {
        let manifest = Arc::clone(&self.steps.manifest);
        let missing = || Error::InvalidInput(format!("the step has no launch {index}"));
        let variant =
            variants(&manifest, self.steps.program, self.steps.entry).get(self.variant).ok_or_else(missing)?;
        let launch = variant.launches.get(index).ok_or_else(missing)?;
        let most = max_dims(&manifest, variant, self.steps.blocks);
        let point = manifest.entries.get(self.steps.entry).ok_or_else(missing)?;
        let input_bytes = manifest.inputs_of(point).zip(&self.inputs).map(|(binding, given)| {
            let padded = padded_bytes(&manifest, binding, &most).and_then(|n| usize::try_from(n).ok());
            padded
                .filter(|n| *n >= given.len())
                .ok_or_else(|| Error::InvalidInput(format!("input {} has no such size", binding.name)))
        });
        let input_bytes = input_bytes.collect::<Result<Vec<_>>>()?;
        let spec = CaptureSpec { label: "one launch", max_dims: &most, input_bytes: &input_bytes };
        let inputs: Vec<&[u8]> = self.inputs.iter().map(Vec::as_slice).collect();
        let (dims, spec, inputs) = (&self.dims, &spec, &inputs);
        match &mut self.steps.ranks[..] {
            [only] => only.launch((point, launch), spec, dims, inputs),
            ranks => {
                on_all(ranks.iter_mut().map(|rank| move || rank.launch((point, launch), spec, dims, inputs))).map(drop)
            }
        }
    }

    /// Bytes of a region of a rank, as it is now.
    ///
    /// # Errors
    /// If the region has no such bytes.
    pub fn read(&self, rank: usize, region: Region, offset: usize, bytes: usize) -> Result<&[u8]> {
        let none = || Error::Driver(format!("{region:?} of rank {rank} has no {bytes} bytes at {offset}"));
        let all = match region {
            Region::Input(i) => {
                let point = self.steps.manifest.entries.get(self.steps.entry);
                let own = point.and_then(|point| point.inputs.iter().position(|input| *input == i));
                own.and_then(|own| self.inputs.get(own)).map(Vec::as_slice)
            }
            Region::Slab | Region::Comm => None,
            other => {
                let regions = &self.steps.ranks.get(rank).ok_or_else(none)?.regions;
                regions.buffer(other).map(Buffer::bytes).transpose()?
            }
        };
        all.and_then(|all| all.get(offset..offset.checked_add(bytes)?)).ok_or_else(none)
    }
}
