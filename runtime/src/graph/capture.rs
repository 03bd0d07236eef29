//! Captures every variant of an entry and dispatches to the one whose guards accept.

use super::dims::Dims;
use crate::artifact::limits::ROW_MULTIPLE;
use crate::artifact::{Arg, Binding, Dim, EntryPoint, Guard, Manifest, Program, Region, SymbolRole, Variant};
use crate::comm::Library;
use crate::driver::{Buffer, CaptureArg, CaptureLaunch, CaptureSpec, Driver, Graph, Module, StreamBackend};
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
    /// Outputs by index.
    pub outputs: Vec<Buffer>,
    /// The symmetric slab, where there are collectives.
    pub slab: Option<Buffer>,
    /// The comm table, where there are collectives.
    pub comm: Option<Buffer>,
    /// The vendor's collectives, where the artifact asks for them and all ranks have them.
    pub library: Option<Arc<Library>>,
}

impl Regions {
    pub(super) fn resolve(&self, entry: &EntryPoint, arg: &Arg) -> Result<CaptureArg<'_>> {
        let offset = usize::try_from(arg.offset).map_err(|_| Error::Driver("an offset overflows".into()))?;
        // A captured graph has the inputs of its entry alone.
        if let Region::Input(i) = arg.region {
            let own = entry.inputs.iter().position(|input| *input == i);
            let own = own.ok_or_else(|| Error::Driver(format!("{:?} is not of entry {}", arg.region, entry.name)))?;
            return Ok(CaptureArg::Input(own, offset));
        }
        let buffer = self.buffer(arg.region);
        let buffer = buffer.ok_or_else(|| Error::Driver(format!("{:?} does not exist", arg.region)))?;
        Ok(CaptureArg::Buffer(buffer, offset))
    }

    /// The allocation of a region; none for inputs, which each captured graph has of its own.
    pub fn buffer(&self, region: Region) -> Option<&Buffer> {
        match region {
            Region::Arena => Some(&self.arena),
            Region::Weights => Some(&self.weights),
            Region::State(i) => self.states.get(i as usize),
            Region::Input(_) => None,
            Region::Output(i) => self.outputs.get(i as usize),
            Region::Slab => self.slab.as_ref(),
            Region::Comm => self.comm.as_ref(),
        }
    }
}

/// How a variant's launches are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capturing {
    /// All in one graph.
    Step,
    /// Each in a graph of its own, so that something can be done between them.
    Launches,
}

/// What is done after each graph of a step that is captured by [`Capturing::Launches`], given variant and launch.
pub type Between<'a> = &'a mut dyn FnMut(usize, usize) -> Result<()>;

/// The captured variants of one entry.
#[derive(Debug)]
pub struct EntryGraph {
    variants: Vec<Captured>,
}

/// One variant: what it assumes, and its graphs in order: one, unless launches are captured apart.
#[derive(Debug)]
struct Captured {
    guards: Vec<Guard>,
    graphs: Vec<Box<dyn Graph>>,
}

impl EntryGraph {
    /// Captures entry number `entry` of `program` as `capturing` says. `blocks` is the value that symbol N has in every step.
    ///
    /// # Errors
    /// If the entry is missing or the driver refuses a launch.
    pub fn capture(
        driver: &dyn Driver,
        manifest: &Manifest,
        (program, entry): (&Program, usize),
        module: &Arc<dyn Module>,
        regions: &Regions,
        (blocks, capturing): (usize, Capturing),
    ) -> Result<EntryGraph> {
        let found = program.entries.get(entry).zip(manifest.entries.get(entry));
        let (entry, point) = found.ok_or_else(|| Error::Unsupported(format!("the artifact has no entry {entry}")))?;
        let mut variants = Vec::with_capacity(entry.variants.len());
        for (index, variant) in entry.variants.iter().enumerate() {
            let max_dims = max_dims(manifest, variant, blocks);
            let input_bytes = manifest
                .inputs_of(point)
                .map(|input| {
                    padded_bytes(manifest, input, &max_dims)
                        .and_then(|n| usize::try_from(n).ok())
                        .ok_or_else(|| Error::Unsupported(format!("the size of input {} overflows", input.name)))
                })
                .collect::<Result<Vec<_>>>()?;
            let label = format!("entry {}, variant {index}", point.name);
            let spec = CaptureSpec { label: &label, max_dims: &max_dims, input_bytes: &input_bytes };
            let mut graphs = Vec::new();
            let mut capture = driver.begin_capture(Arc::clone(module), &spec)?;
            for (at, launch) in variant.launches.iter().enumerate() {
                if capturing == Capturing::Launches && at > 0 {
                    let next = driver.begin_capture(Arc::clone(module), &spec)?;
                    graphs.push(std::mem::replace(&mut capture, next).finish()?);
                }
                let args = launch.args.iter().map(|arg| regions.resolve(point, arg)).collect::<Result<Vec<_>>>()?;
                let (kernel, grid, barrier) = (launch.kernel as usize, launch.grid.as_slice(), launch.barrier);
                if let Some(gemm) = &launch.gemm
                    && capture.gemm(gemm, &args)?
                {
                    continue;
                }
                if let (Some(sum), Some(library)) = (&launch.all_reduce, &regions.library)
                    && capture.all_reduce(library, sum, &args)?
                {
                    continue;
                }
                // Kernels for machines with dependent launches wait for what they need themselves.
                capture.launch(CaptureLaunch { kernel, grid, args: &args, barrier, overlap: true })?;
            }
            graphs.push(capture.finish()?);
            variants.push(Captured { guards: variant.guards.clone(), graphs });
        }
        Ok(EntryGraph { variants })
    }

    /// The captured graph of variant `index`; the first, if launches are captured apart.
    pub fn variant(&mut self, index: usize) -> Option<&mut (dyn Graph + 'static)> {
        self.variants.get_mut(index).and_then(|v| v.graphs.first_mut()).map(|graph| &mut **graph)
    }

    /// Replays the first variant whose guards accept `dims` and returns its index. Allocates nothing. Given something to do
    /// between launches, it waits for each graph and does it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if no variant accepts, naming the symbol, its value and what would be accepted.
    pub fn replay(
        &mut self,
        manifest: &Manifest,
        stream: &mut dyn StreamBackend,
        dims: &Dims,
        inputs: &[&[u8]],
        mut between: Option<Between<'_>>,
    ) -> Result<usize> {
        let accepts = |guards: &[Guard]| {
            guards.iter().all(|g| {
                let value = dims.get(g.symbol as usize);
                value >= 0 && (g.min..=g.max).contains(&(value as u64))
            })
        };
        match self.variants.iter_mut().enumerate().find(|(_, v)| accepts(&v.guards)) {
            Some((index, variant)) => {
                for (launch, graph) in variant.graphs.iter_mut().enumerate() {
                    graph.replay(stream, dims.values(), inputs)?;
                    if let Some(between) = &mut between {
                        stream.synchronize()?;
                        between(index, launch)?;
                    }
                }
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
                .flat_map(|v| &v.guards)
                .filter(|g| g.symbol as usize == index)
                .map(|g| format!("{}..={}", g.min, g.max))
                .collect();
            if !ranges.is_empty() {
                reasons.push(format!("{} = {value} (accepted: {})", symbol.name, ranges.join(", ")));
            }
        }
        Error::InvalidInput(format!("no variant of the entry accepts {}", reasons.join("; ")))
    }
}

/// The largest value of every symbol in `variant`: its guards narrow the compiled ranges, and a pool is what the session has.
pub(super) fn max_dims(manifest: &Manifest, variant: &Variant, blocks: usize) -> Vec<i64> {
    let mut max: Vec<u64> = manifest
        .symbols
        .iter()
        .map(|s| if s.role.is_like(&SymbolRole::POOL) { s.max.min(blocks as u64) } else { s.max })
        .collect();
    for guard in &variant.guards {
        if let Some(value) = max.get_mut(guard.symbol as usize) {
            *value = guard.max.min(*value);
        }
    }
    max.into_iter().map(|n| i64::try_from(n).unwrap_or(i64::MAX)).collect()
}

/// Bytes of a binding at these dims, symbols rounded up as [`Manifest::max_bytes`] does. `None` on overflow.
pub(super) fn padded_bytes(manifest: &Manifest, binding: &Binding, dims: &[i64]) -> Option<u64> {
    let elements = binding.shape.iter().try_fold(1u64, |n, dim| {
        let dim = match dim {
            Dim::Const(n) => *n,
            Dim::Symbol(name) => {
                let (index, _) = manifest.symbol(name)?;
                u64::try_from(*dims.get(index)?).ok()?.checked_next_multiple_of(ROW_MULTIPLE)?
            }
        };
        n.checked_mul(dim)
    })?;
    binding.dtype.byte_size(&[elements]).ok()
}
