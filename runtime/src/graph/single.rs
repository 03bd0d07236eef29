//! The launches of a step one at a time, with memory that can be read in between: how a compiler finds the launch at which an
//! artifact goes wrong. For the host, whose memory is at hand.

use super::capture::{Regions, max_dims, padded_bytes};
use super::dims::Dims;
use crate::artifact::{Artifact, Guard, Manifest, Program, Region, Variant};
use crate::device::Device;
use crate::driver::{CaptureLaunch, CaptureSpec, Module, Placement, StreamBackend};
use crate::error::{Error, Result};
use crate::session::load_code;
use crate::weights::{self, WeightOptions};
use std::sync::Arc;

/// An artifact's program in memory, ready to be stepped through.
#[derive(Debug)]
pub struct SingleSteps {
    manifest: Arc<Manifest>,
    device: Device,
    program: usize,
    module: Arc<dyn Module>,
    regions: Regions,
    stream: Box<dyn StreamBackend>,
    blocks: usize,
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
    /// Loads the first program of `artifact` that the host runs, with `blocks` units of every state (symbol N), all zero.
    ///
    /// # Errors
    /// If no program runs on this host, the weights are not found or differ, or there is no memory.
    pub fn open(artifact: &Artifact, device: &Device, blocks: usize, options: &WeightOptions) -> Result<SingleSteps> {
        let manifest = artifact.shared_manifest();
        if manifest.world > 1 {
            let message =
                format!("stepping through launches is for artifacts of one rank; this is for {}", manifest.world);
            return Err(Error::Unsupported(message));
        }
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
        let program = &manifest.programs[index];
        let size = |bytes: Option<u64>| {
            let bytes = bytes.and_then(|n| usize::try_from(n).ok());
            bytes.ok_or_else(|| Error::Unsupported("a buffer is larger than this machine addresses".into()))
        };
        let allocate = |bytes: Option<u64>, placement| driver.allocate(size(bytes)?, placement, None);
        let units = |bytes: u64| bytes.checked_mul(blocks as u64);
        let regions = Regions {
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
        let module = load_code(artifact, program, driver, options.cache.as_deref())?;
        let stream = driver.create_stream(None)?;
        Ok(SingleSteps { manifest, device: device.clone(), program: index, module, regions, stream, blocks })
    }

    /// The program's place in the manifest.
    pub fn program(&self) -> usize {
        self.program
    }

    /// Begins a step: `dims` by symbol (N is known), and the bytes of every input of the manifest, in its order.
    ///
    /// # Errors
    /// If a value is outside its compiled range or no variant accepts them.
    pub fn begin(&mut self, dims: &[(&str, usize)], inputs: Vec<Vec<u8>>) -> Result<Step<'_>> {
        let mut block = Dims::new(&self.manifest.symbols);
        for (name, value) in dims.iter().copied().chain([("N", self.blocks)]) {
            block.set(&self.manifest, name, value)?;
        }
        let accepts = |guards: &[Guard]| {
            guards.iter().all(|g| {
                let value = block.get(g.symbol as usize);
                value >= 0 && (g.min..=g.max).contains(&(value as u64))
            })
        };
        let variant = variants(&self.manifest, self.program).iter().position(|v| accepts(&v.guards));
        let variant = variant.ok_or_else(|| Error::InvalidInput(format!("no variant of the step accepts {dims:?}")))?;
        Ok(Step { steps: self, variant, dims: block.values().to_vec(), inputs })
    }

    /// Bytes of a region from `offset`; inputs are what the caller gave.
    ///
    /// # Errors
    /// If the region has no such bytes.
    pub fn read(&self, region: Region, offset: usize, bytes: usize) -> Result<&[u8]> {
        let buffer = match region {
            Region::Arena => Some(&self.regions.arena),
            Region::Weights => Some(&self.regions.weights),
            Region::State(i) => self.regions.states.get(i as usize),
            Region::Output(i) => self.regions.outputs.get(i as usize),
            Region::Input(_) | Region::Slab | Region::Comm => None,
        };
        let all = buffer.map(|b| b.bytes()).transpose()?;
        let found = all.and_then(|all| all.get(offset..offset.checked_add(bytes)?));
        found.ok_or_else(|| Error::Driver(format!("{region:?} has no {bytes} bytes at {offset}")))
    }
}

fn variants(manifest: &Manifest, program: usize) -> &[Variant] {
    let entry = manifest.programs.get(program).and_then(|p| p.entries.iter().find(|e| e.name == "step"));
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

    fn variant(&self) -> Option<&Variant> {
        variants(&self.steps.manifest, self.steps.program).get(self.variant)
    }

    /// Runs launch `index` and waits for it. The caller runs them in order, each once.
    ///
    /// # Errors
    /// If there is no such launch or the driver refuses it.
    pub fn launch(&mut self, index: usize) -> Result<()> {
        let manifest = Arc::clone(&self.steps.manifest);
        let missing = || Error::InvalidInput(format!("the step has no launch {index}"));
        let variant = variants(&manifest, self.steps.program).get(self.variant).ok_or_else(missing)?;
        let launch = variant.launches.get(index).ok_or_else(missing)?;
        let most = max_dims(&manifest, variant, self.steps.blocks);
        let input_bytes = manifest.inputs.iter().zip(&self.inputs).map(|(binding, given)| {
            let padded = padded_bytes(&manifest, binding, &most).and_then(|n| usize::try_from(n).ok());
            padded
                .filter(|n| *n >= given.len())
                .ok_or_else(|| Error::InvalidInput(format!("input {} has no such size", binding.name)))
        });
        let input_bytes = input_bytes.collect::<Result<Vec<_>>>()?;
        let spec = CaptureSpec { label: "one launch", max_dims: &most, input_bytes: &input_bytes };
        let mut capture = self.steps.device.driver().begin_capture(Arc::clone(&self.steps.module), &spec)?;
        let args = launch.args.iter().map(|arg| self.steps.regions.resolve(arg)).collect::<Result<Vec<_>>>()?;
        let (kernel, grid) = (launch.kernel as usize, launch.grid.as_slice());
        capture.launch(CaptureLaunch { kernel, grid, args: &args, barrier: false, overlap: false })?;
        let mut graph = capture.finish()?;
        let inputs: Vec<&[u8]> = self.inputs.iter().map(Vec::as_slice).collect();
        graph.replay(&mut *self.steps.stream, &self.dims, &inputs)?;
        self.steps.stream.synchronize()
    }

    /// Bytes of a region, as it is now.
    ///
    /// # Errors
    /// If the region has no such bytes.
    pub fn read(&self, region: Region, offset: usize, bytes: usize) -> Result<&[u8]> {
        match region {
            Region::Input(i) => {
                let all = self.inputs.get(i as usize);
                let found = all.and_then(|all| all.get(offset..offset.checked_add(bytes)?));
                found.ok_or_else(|| Error::InvalidInput(format!("input {i} has no {bytes} bytes at {offset}")))
            }
            other => self.steps.read(other, offset, bytes),
        }
    }

    /// Units of every state: the value of symbol N.
    pub fn blocks(&self) -> usize {
        self.steps.blocks
    }
}
