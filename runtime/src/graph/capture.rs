//! Captures every variant of an entry and dispatches to the one whose guards accept.

use super::dims::Dims;
use crate::artifact::{Arg, Guard, Manifest, Program, Region};
use crate::driver::{Buffer, CaptureLaunch, Driver, Graph, Module, StreamBackend};
use crate::error::{Error, Result};
use std::sync::Arc;

/// The allocations that launches address.
#[derive(Debug)]
pub struct Regions {
    /// Intermediates.
    pub arena: Buffer,
    /// The pack.
    pub weights: Buffer,
    /// States by index.
    pub states: Vec<Buffer>,
    /// Inputs by index.
    pub inputs: Vec<Buffer>,
    /// Outputs by index.
    pub outputs: Vec<Buffer>,
}

impl Regions {
    fn resolve(&self, arg: &Arg) -> Result<(&Buffer, usize)> {
        let buffer = match arg.region {
            Region::Arena => Some(&self.arena),
            Region::Weights => Some(&self.weights),
            Region::State(i) => self.states.get(i as usize),
            Region::Input(i) => self.inputs.get(i as usize),
            Region::Output(i) => self.outputs.get(i as usize),
        };
        let buffer = buffer.ok_or_else(|| Error::Driver(format!("{:?} does not exist", arg.region)))?;
        let offset = usize::try_from(arg.offset).map_err(|_| Error::Driver("an offset overflows".into()))?;
        Ok((buffer, offset))
    }
}

/// The captured variants of one entry.
#[derive(Debug)]
pub struct StepGraph {
    variants: Vec<(Vec<Guard>, Box<dyn Graph>)>,
}

impl StepGraph {
    /// Captures entry `name` of `program`.
    ///
    /// # Errors
    /// If the entry is missing or the driver refuses a launch.
    pub fn capture(
        driver: &dyn Driver,
        program: &Program,
        name: &str,
        module: &Arc<dyn Module>,
        regions: &Regions,
    ) -> Result<StepGraph> {
        let entry = program
            .entries
            .iter()
            .find(|entry| entry.name == name)
            .ok_or_else(|| Error::Unsupported(format!("the artifact has no entry called {name}")))?;
        let mut variants = Vec::with_capacity(entry.variants.len());
        for variant in &entry.variants {
            let mut capture = driver.begin_capture(Arc::clone(module))?;
            for launch in &variant.launches {
                let args = launch.args.iter().map(|arg| regions.resolve(arg)).collect::<Result<Vec<_>>>()?;
                let (kernel, grid, barrier) = (launch.kernel as usize, launch.grid.as_slice(), launch.barrier);
                capture.launch(CaptureLaunch { kernel, grid, args: &args, barrier })?;
            }
            variants.push((variant.guards.clone(), capture.finish()?));
        }
        Ok(StepGraph { variants })
    }

    /// Replays the first variant whose guards accept `dims` and returns its index. Allocates nothing.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if no variant accepts, naming the symbol, its value and what would be accepted.
    pub fn replay(&mut self, manifest: &Manifest, stream: &mut dyn StreamBackend, dims: &Dims) -> Result<usize> {
        let accepts = |guards: &[Guard]| {
            guards.iter().all(|g| {
                let value = dims.get(g.symbol as usize);
                value >= 0 && (g.min..=g.max).contains(&(value as u64))
            })
        };
        match self.variants.iter_mut().enumerate().find(|(_, (guards, _))| accepts(guards)) {
            Some((index, (_, graph))) => {
                graph.replay(stream, dims.values())?;
                Ok(index)
            }
            None => Err(self.refusal(manifest, dims)),
        }
    }

    fn refusal(&self, manifest: &Manifest, dims: &Dims) -> Error {
        let mut reasons = Vec::new();
        for (index, symbol) in manifest.symbols.iter().enumerate() {
            let value = dims.get(index);
            let ranges: Vec<String> = self
                .variants
                .iter()
                .flat_map(|(guards, _)| guards)
                .filter(|g| g.symbol as usize == index)
                .map(|g| format!("{}..={}", g.min, g.max))
                .collect();
            if !ranges.is_empty() {
                reasons.push(format!("{} = {value} (accepted: {})", symbol.name, ranges.join(", ")));
            }
        }
        Error::InvalidInput(format!("no variant of the step accepts {}", reasons.join("; ")))
    }
}
