//! Compiled host code, loaded once and run for any of the graphs that it was compiled from.

use crate::execute::{Static, Values, collect, packed, resolve, spread};
use crate::ranks::Place;
use indexmap::IndexMap;
use std::collections::BTreeMap;
use std::sync::Arc;
use weldment_codegen::Compiled;
use weldment_codegen::target::Target as Machine;
use weldment_ir::{Graph, OutputKind};
use weldment_passes::buffer::BufferPlan;
use weldment_runtime::artifact::{Arg, Region};
use weldment_runtime::driver::{
    Buffer, CaptureArg, CaptureLaunch, CaptureSpec, Driver, KernelEntry, Module, ModuleSource, Placement, SharedBytes,
    host,
};

#[derive(Debug)]
struct Owned(Vec<u8>);

impl SharedBytes for Owned {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// One module with the packed weights and the arena of all its variants.
pub(crate) struct Loaded {
    driver: host::HostDriver,
    module: Arc<dyn Module>,
    arena: Buffer,
    weights: Buffer,
    arena_bytes: usize,
}

fn text(e: weldment_runtime::Error) -> String {
    e.to_string()
}

impl Loaded {
    /// Loads `compiled`, to be run with `threads` threads. The symbols of `graph` are those of all variants.
    ///
    /// # Errors
    /// The driver's and the packer's, as text.
    pub(crate) fn new(
        graph: &Graph,
        target: &Machine,
        compiled: &Compiled,
        statics: &Static<'_>,
        threads: usize,
    ) -> Result<Loaded, String> {
        let pack = packed(graph, target, statics, (&compiled.pack, compiled.pack_bytes))?;
        let options = host::HostOptions { threads, ..host::HostOptions::default() };
        // SAFETY: the code is what the compiler just made of the graph, and `run` binds what its plan and its dims say.
        let driver = unsafe { host::HostDriver::new(options) }.map_err(text)?;
        let kernels = compiled.kernels.iter();
        let kernels: Vec<KernelEntry<'_>> =
            kernels.map(|k| KernelEntry { name: &k.name, offset: k.entry, threads: k.threads }).collect();
        let hash = weldment_runtime::blake3_hex(&compiled.code);
        let source = ModuleSource { image: &compiled.code, hash: &hash, kernels: &kernels, cache: None };
        let module = driver.load_module(&source).map_err(text)?;
        let weights = driver.import(Arc::new(Owned(pack)), None).map_err(text)?;
        let arena_bytes = compiled.arena_bytes as usize;
        let arena = driver.allocate(arena_bytes.max(64), Placement::Arena, None).map_err(text)?;
        Ok(Loaded { driver, module, arena, weights, arena_bytes })
    }

    /// Outputs of variant `variant` of `compiled`, made from `graph` and `plan`.
    ///
    /// # Errors
    /// The driver's, as text; a value that is missing.
    pub(crate) fn run(
        &self,
        (compiled, variant): (&Compiled, usize),
        (graph, plan): (&Graph, &BufferPlan),
        dims: &BTreeMap<String, u64>,
        values: &Values,
        place: Option<&Place<'_>>,
    ) -> Result<IndexMap<String, Vec<f64>>, String> {
        let driver = &self.driver;
        let allocate = |bytes: u64| driver.allocate(bytes.max(64) as usize, Placement::Arena, None).map_err(text);
        // Stale bytes in the arena must not matter: NaN everywhere.
        // SAFETY: nothing runs between the graphs of a test.
        unsafe { self.arena.write(0, &vec![0xff; self.arena_bytes]) }.map_err(text)?;
        let missing = |name: &str| format!("no value for {name}");
        let mut inputs = Vec::new();
        for e in &plan.inputs {
            inputs.push(spread(e, values.get(&*e.name).ok_or_else(|| missing(&e.name))?));
        }
        let outputs = plan.outputs.iter().map(|e| allocate(e.bytes)).collect::<Result<Vec<Buffer>, _>>()?;
        let mut states = Vec::new();
        for e in &plan.states {
            let buffer = allocate(e.bytes)?;
            let bytes = spread(e, values.get(&*e.name).ok_or_else(|| missing(&e.name))?);
            // SAFETY: as above.
            unsafe { buffer.write(0, &bytes) }.map_err(text)?;
            states.push(buffer);
        }
        let resolve_arg = |arg: &Arg| -> CaptureArg<'_> {
            let buffer = match arg.region {
                Region::Arena => &self.arena,
                Region::Weights => &self.weights,
                Region::State(i) => &states[i as usize],
                Region::Input(i) => return CaptureArg::Input(i as usize, arg.offset as usize),
                Region::Output(i) => &outputs[i as usize],
                Region::Slab | Region::Comm => {
                    let place = place.expect("ranks know where slabs lie");
                    let (buffer, start) =
                        if arg.region == Region::Comm { (place.comm, 0) } else { (place.slabs, place.start) };
                    return CaptureArg::Buffer(buffer, start + arg.offset as usize);
                }
            };
            CaptureArg::Buffer(buffer, arg.offset as usize)
        };
        let block: Vec<i64> = graph.symbols().keys().map(|s| dims[&**s] as i64).collect();
        let input_bytes: Vec<usize> = inputs.iter().map(Vec::len).collect();
        let spec = CaptureSpec { label: "step", max_dims: &block, input_bytes: &input_bytes };
        let mut capture = driver.begin_capture(Arc::clone(&self.module), &spec).map_err(text)?;
        for launch in &compiled.variants[variant].launches {
            let args: Vec<CaptureArg<'_>> = launch.args.iter().map(resolve_arg).collect();
            let (kernel, grid, barrier) = (launch.kernel as usize, launch.grid.as_slice(), launch.barrier);
            capture.launch(CaptureLaunch { kernel, grid, args: &args, barrier, overlap: false }).map_err(text)?;
        }
        let mut captured = capture.finish().map_err(text)?;
        let mut stream = driver.create_stream(None).map_err(text)?;
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        captured.replay(stream.as_mut(), &block, &inputs).map_err(text)?;
        stream.synchronize().map_err(text)?;

        let mut out = IndexMap::new();
        for o in graph.outputs() {
            let shape = resolve(graph.type_of(o.value), dims);
            let (list, buffers) = match o.kind {
                OutputKind::Result => (&plan.outputs, &outputs),
                OutputKind::State => (&plan.states, &states),
            };
            let i = list.iter().position(|e| e.name == o.name).ok_or_else(|| missing(&o.name))?;
            out.insert(o.name.to_string(), collect(&list[i], &buffers[i].to_vec().map_err(text)?, &shape)?);
        }
        Ok(out)
    }
}
