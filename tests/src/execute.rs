//! Runs any graph through bufferisation, code generation and the host driver, and the same graph through the f64
//! interpreter, on the same stored bytes.

use indexmap::IndexMap;
use std::collections::BTreeMap;
use std::sync::Arc;
use weldment_codegen::llvm::Emit;
use weldment_codegen::select::KernelLibrary;
use weldment_codegen::target::Target as Machine;
use weldment_codegen::tile::Kernel;
use weldment_codegen::{Compiled, Prepared, Statics, VariantPlan, generate, prepare};
use weldment_ir::generate::{Random, random_bindings};
use weldment_ir::interpret::{Binding, BindingData, Bindings, Bytes, F64, Options, interpret};
use weldment_ir::{DType, Dim, Graph, Op, TensorType, Value, codec};
use weldment_passes::buffer::{BufferPlan, External, bufferise};
use weldment_runtime::artifact::{
    Arg, Manifest, Model, Pack, PackItem, Program, Region, Symbol, Target, Tensor, TensorPlace, WeightMode, Weights,
};
use weldment_runtime::driver::{
    Buffer, CaptureArg, CaptureLaunch, CaptureSpec, Driver, KernelEntry, ModuleSource, Placement, SharedBytes, host,
};
use weldment_runtime::pack::{TensorSource, pack_all};

/// Stored bytes of an input, weight or state.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Element type.
    pub dtype: DType,
    /// Dims with symbols resolved.
    pub shape: Vec<u64>,
    /// Row-major.
    pub bytes: Vec<u8>,
}

/// Everything a graph needs, by name.
pub type Values = BTreeMap<String, Stored>;

impl Stored {
    /// Reals rounded to `dtype`.
    pub fn floats(dtype: DType, shape: &[u64], values: &[f32]) -> Stored {
        let bytes = codec::encode(dtype, values, codec::Overflow::Ieee).unwrap_or_default();
        Stored { dtype, shape: shape.to_vec(), bytes }
    }

    /// i32 values.
    pub fn ints(shape: &[u64], values: &[i32]) -> Stored {
        Stored {
            dtype: DType::I32,
            shape: shape.to_vec(),
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    /// Random values: normal reals, or random quants with scales of the order of 1/64.
    pub fn random(dtype: DType, shape: &[u64], seed: u64) -> Stored {
        let mut random = Random::new(seed);
        let elements: u64 = shape.iter().product();
        if !dtype.is_block() {
            let values: Vec<f32> =
                (0..elements).map(|_| (0..4).map(|_| random.small() as f32).sum::<f32>() / 4.0).collect();
            return Stored::floats(dtype, shape, &values);
        }
        let blocks = elements as usize / dtype.block_elements();
        let mut bytes = Vec::new();
        for _ in 0..blocks {
            let mut block: Vec<u8> = (0..dtype.block_bytes()).map(|_| random.bits() as u8).collect();
            // f16 scales between 2^-8 and 2^-5, either sign; an e8m0 scale near 2^-6.
            for at in scale_offsets(dtype) {
                let scale = half::f16::from_f32(
                    (1.0 + random.below(7) as f32) / 256.0 * if random.one_in(3) { -1.0 } else { 1.0 },
                );
                block[*at..*at + 2].copy_from_slice(&scale.to_le_bytes());
            }
            if dtype == DType::MxFp4 {
                block[0] = 120 + random.below(4) as u8;
            }
            bytes.extend(block);
        }
        Stored { dtype, shape: shape.to_vec(), bytes }
    }

    fn binding(&self) -> Binding {
        let shape: Vec<usize> = self.shape.iter().map(|d| *d as usize).collect();
        let n = self.bytes.len();
        let owner: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(self.bytes.clone());
        Binding::encoded(&shape, self.dtype, Bytes::new(owner, 0..n).expect("a range inside the bytes"))
    }
}

/// Where the f16 scales of a block lie.
fn scale_offsets(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q6K => &[208],
        DType::MxFp4 => &[],
        _ => &[0],
    }
}

#[derive(Debug)]
struct Owned(Vec<u8>);

impl SharedBytes for Owned {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

pub(crate) struct Static<'a> {
    values: &'a Values,
    tensors: Vec<Tensor>,
    bytes: Vec<Vec<u8>>,
}

impl Static<'_> {
    fn add(&mut self, name: &str, stored: &Stored) -> Result<u32, String> {
        if let Some(i) = self.tensors.iter().position(|t| t.name == name) {
            return Ok(i as u32);
        }
        let dtype = weldment_runtime::DType::from_name(stored.dtype.name()).ok_or("a dtype the runtime lacks")?;
        let shape = stored.shape.clone();
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dtype,
            shape,
            at: TensorPlace::Constant(0),
            blake3: String::new(),
        });
        self.bytes.push(stored.bytes.clone());
        Ok(self.tensors.len() as u32 - 1)
    }
}

impl Statics for Static<'_> {
    fn weight(&mut self, name: &str) -> Result<u32, String> {
        let stored = self.values.get(name).ok_or_else(|| format!("no weight {name}"))?.clone();
        self.add(name, &stored)
    }

    fn computed(&mut self, graph: &Graph, value: Value) -> Result<u32, String> {
        let mut only = graph.clone();
        only.clear_outputs();
        only.output("value", weldment_ir::OutputKind::Result, value);
        let only = only.compact().map_err(|e| e.to_string())?;
        let dims = only.symbols().iter().map(|(n, r)| (n.to_string(), r.min)).collect();
        let out =
            interpret::<F64>(&only, &dims, &bindings(self.values), &Options::default()).map_err(|e| e.to_string())?;
        let tensor = &out["value"];
        let shape: Vec<u64> = tensor.shape.iter().map(|d| *d as u64).collect();
        if let Some(ints) = tensor.as_ints().filter(|_| tensor.dtype == DType::I32) {
            let ints: Vec<i32> = ints.iter().map(|n| *n as i32).collect();
            return self.add(&format!("computed {value:?}"), &Stored::ints(&shape, &ints));
        }
        let values: Vec<f32> = tensor.as_values().ok_or("not real")?.iter().map(|v| *v as f32).collect();
        self.add(&format!("computed {value:?}"), &Stored::floats(graph.type_of(value).dtype, &shape, &values))
    }
}

impl TensorSource for Static<'_> {
    fn tensor(&self, index: u32) -> weldment_runtime::Result<&[u8]> {
        Ok(&self.bytes[index as usize])
    }
}

fn bindings(values: &Values) -> Bindings {
    let mut out = Bindings::new();
    for (name, stored) in values {
        out.insert(name, stored.binding());
    }
    out
}

/// Resolved dims of a type.
pub fn resolve(ty: &TensorType, dims: &BTreeMap<String, u64>) -> Vec<u64> {
    ty.shape
        .iter()
        .map(|d| match d {
            Dim::Const(n) => *n,
            Dim::Sym(s) => dims[&**s],
        })
        .collect()
}

/// Random values for every leaf that `given` lacks.
pub fn fill(graph: &Graph, dims: &BTreeMap<String, u64>, given: Values, seed: u64) -> Values {
    let mut values = given;
    for id in graph.ids() {
        if let Op::Input { name, .. } | Op::Weight { name, .. } | Op::State { name, .. } = &graph.node(id).op {
            let ty = &graph.node(id).types[0];
            let shape = resolve(ty, dims);
            values.entry(name.to_string()).or_insert_with(|| {
                Stored::random(ty.dtype, &shape, seed.wrapping_mul(31).wrapping_add(id.index() as u64))
            });
        }
    }
    values
}

/// Random values for every leaf that `given` lacks; integers are valid for the ops that read them.
///
/// # Errors
/// If a symbol has no size or a leaf is too large.
pub fn random_values(
    graph: &Graph,
    dims: &BTreeMap<String, u64>,
    mut given: Values,
    seed: u64,
) -> Result<Values, String> {
    for (name, binding) in random_bindings(graph, dims, seed).map_err(|e| e.to_string())?.iter() {
        if let BindingData::Ints(ints) = &binding.data
            && !given.contains_key(name)
        {
            let shape: Vec<u64> = binding.shape.iter().map(|d| *d as u64).collect();
            let ints: Vec<i32> = ints.iter().map(|n| *n as i32).collect();
            given.insert(name.to_owned(), Stored::ints(&shape, &ints));
        }
    }
    Ok(fill(graph, dims, given, seed))
}

/// Outputs by the f64 interpreter.
///
/// # Errors
/// The interpreter's.
pub fn reference(
    graph: &Graph,
    dims: &BTreeMap<String, u64>,
    values: &Values,
) -> Result<IndexMap<String, Vec<f64>>, String> {
    let outputs = interpret::<F64>(graph, dims, &bindings(values), &Options::default()).map_err(|e| e.to_string())?;
    Ok(outputs
        .into_iter()
        .map(|(name, t)| {
            let flat = t
                .as_values()
                .map(<[f64]>::to_vec)
                .or_else(|| t.as_ints().map(|v| v.iter().map(|n| *n as f64).collect()));
            (name, flat.unwrap_or_default())
        })
        .collect())
}

/// Byte offsets of elements in a physical buffer, row-major over the resolved shape.
pub(crate) fn element_offsets(external: &External, shape: &[u64]) -> Vec<usize> {
    let mut at = vec![0u64];
    for (size, stride) in shape.iter().zip(&external.strides) {
        at = at.iter().flat_map(|base| (0..*size).map(move |i| base + i * stride)).collect();
    }
    at.into_iter().map(|e| e as usize * external.ty.dtype.block_bytes()).collect()
}

pub(crate) fn spread(external: &External, stored: &Stored) -> Vec<u8> {
    let mut bytes = vec![0u8; external.bytes as usize];
    let size = external.ty.dtype.block_bytes();
    for (piece, at) in stored.bytes.chunks(size).zip(element_offsets(external, &stored.shape)) {
        bytes[at..at + size].copy_from_slice(piece);
    }
    bytes
}

pub(crate) fn collect(external: &External, bytes: &[u8], shape: &[u64]) -> Result<Vec<f64>, String> {
    let size = external.ty.dtype.block_bytes();
    let packed: Vec<u8> =
        element_offsets(external, shape).into_iter().flat_map(|at| bytes[at..at + size].to_vec()).collect();
    if external.ty.dtype == DType::I32 {
        return Ok(packed.chunks(4).map(|b| f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect());
    }
    let elements = packed.len() / size;
    Ok(codec::decode_vec(external.ty.dtype, &packed, elements)
        .map_err(|e| e.to_string())?
        .into_iter()
        .map(f64::from)
        .collect())
}

/// A graph compiled for one target.
pub(crate) struct Build<'a> {
    pub(crate) target: Machine,
    pub(crate) plan: BufferPlan,
    pub(crate) compiled: Compiled,
    pub(crate) statics: Static<'a>,
}

/// A graph's kernels as tile programs, its launches, and what they were made from.
pub(crate) type Planned<'a> = (Machine, BufferPlan, Prepared, Static<'a>);

/// A graph up to its tile programs.
pub(crate) fn plan<'a>(graph: &Graph, values: &'a Values, target: &str) -> Result<Planned<'a>, String> {
    let symbols: Vec<String> = graph.symbols().keys().map(|s| s.to_string()).collect();
    let target = Machine::named(target, &symbols)?;
    let library = library(graph, &target);
    let plan = bufferise(graph, &library).map_err(|e| e.to_string())?;
    let mut statics = Static { values, tensors: Vec::new(), bytes: Vec::new() };
    let variant = VariantPlan {
        name: "step",
        graph,
        plan: &plan,
        max_tokens: library.max_tokens,
        guards: Vec::new(),
    };
    let prepared = prepare(&[variant], &target, &mut statics).map_err(|e| e.to_string())?;
    Ok((target, plan, prepared, statics))
}

pub(crate) fn build<'a>(graph: &Graph, values: &'a Values, target: &str) -> Result<Build<'a>, String> {
    let (target, plan, prepared, statics) = plan(graph, values, target)?;
    let compiled = generate(vec![prepared], Emit::default()).map_err(|e| e.to_string())?.pop();
    let compiled = compiled.ok_or("the program went missing")?;
    Ok(Build { target, plan, compiled, statics })
}

/// The weights as the kernels want them: `items` of a pack of `bytes`.
///
/// # Errors
/// If a layout and its tensors do not fit together.
pub(crate) fn packed(
    graph: &Graph,
    target: &Machine,
    statics: &Static<'_>,
    (items, bytes): (&[PackItem], u64),
) -> Result<Vec<u8>, String> {
    let symbol =
        |(name, r): (&Arc<str>, &weldment_ir::Range)| Symbol { name: name.to_string(), min: r.min, max: r.max };
    let program = Program {
        target: Target {
            name: target.name().to_owned(),
            arch: target.arch_name().into(),
            features: target.feature_list(),
        },
        code: "code.0".into(),
        kernels: Vec::new(),
        arena_bytes: 0,
        pack: Pack { bytes, key: String::new(), items: items.to_vec() },
        entries: Vec::new(),
    };
    let manifest = Manifest {
        weldment_version: String::new(),
        model: Model {
            architecture: "test".into(),
            name: None,
            vocab_size: 1,
            bos_id: None,
            eos_ids: Vec::new(),
            max_seq: 1,
            kv_block: 16,
        },
        symbols: graph.symbols().iter().map(symbol).collect(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        states: Vec::new(),
        weights: Weights { mode: WeightMode::External, files: Vec::new(), tensors: statics.tensors.clone() },
        sources: Vec::new(),
        programs: Vec::new(),
        options: Vec::new(),
        chat_template: None,
        sections: Vec::new(),
    };
    let mut pack = vec![0u8; bytes as usize];
    pack_all(&manifest, &program, statics, &mut pack, 1).map_err(|e| e.to_string())?;
    Ok(pack)
}

impl Build<'_> {
    /// The weights as the kernels want them.
    ///
    /// # Errors
    /// If a layout and its tensors do not fit together.
    pub(crate) fn pack(&self, graph: &Graph) -> Result<Vec<u8>, String> {
        packed(graph, &self.target, &self.statics, (&self.compiled.pack, self.compiled.pack_bytes))
    }
}

/// The kernels of `target` for the tokens that `graph` may have.
pub fn library(graph: &Graph, target: &Machine) -> KernelLibrary {
    KernelLibrary { target: target.clone(), max_tokens: graph.symbols().get("T").map_or(1, |r| r.max) }
}

/// Tile programs of a graph's kernels for `target`.
///
/// # Errors
/// Any stage's, as text.
pub fn tile_programs(graph: &Graph, target: &str) -> Result<String, String> {
    // Weights computed at compile time need values, though code does not depend on them.
    let least = graph.symbols().iter().map(|(name, range)| (name.to_string(), range.min)).collect();
    let values = random_values(graph, &least, Values::new(), 0)?;
    let (_, _, prepared, _) = plan(graph, &values, target)?;
    Ok(prepared.kernels().map(Kernel::to_string).collect::<Vec<_>>().join("\n"))
}

/// Outputs by compiled host code for `target`, with `threads` threads.
///
/// # Errors
/// Any stage's, as text.
pub fn execute(
    graph: &Graph,
    dims: &BTreeMap<String, u64>,
    values: &Values,
    target: &str,
    threads: usize,
) -> Result<IndexMap<String, Vec<f64>>, String> {
    let built = build(graph, values, target)?;
    let pack = built.pack(graph)?;
    let Build { plan, compiled, .. } = built;
    let text = |e: weldment_runtime::Error| e.to_string();
    let driver = host::HostDriver::new(host::HostOptions { threads, ..host::HostOptions::default() }).map_err(text)?;
    let kernels: Vec<KernelEntry<'_>> =
        compiled.kernels.iter().map(|k| KernelEntry { name: &k.name, offset: k.entry, threads: k.threads }).collect();
    let hash = weldment_runtime::blake3_hex(&compiled.code);
    let source = ModuleSource { image: &compiled.code, hash: &hash, kernels: &kernels, cache: None };
    let module = driver.load_module(&source).map_err(text)?;
    let import = |bytes: Vec<u8>| driver.import(Arc::new(Owned(bytes)), None).map_err(text);
    let allocate = |bytes: u64| driver.allocate(bytes.max(64) as usize, Placement::Arena, None).map_err(text);
    let arena = allocate(compiled.arena_bytes)?;
    // Stale bytes in the arena must not matter: NaN everywhere.
    arena.write(0, &vec![0xff; compiled.arena_bytes as usize]).map_err(text)?;
    let weights = import(pack)?;
    let missing = |name: &str| format!("no value for {name}");
    let mut inputs = Vec::new();
    for e in &plan.inputs {
        inputs.push(spread(e, values.get(&*e.name).ok_or_else(|| missing(&e.name))?));
    }
    let outputs = plan.outputs.iter().map(|e| allocate(e.bytes)).collect::<Result<Vec<Buffer>, _>>()?;
    let mut states = Vec::new();
    for e in &plan.states {
        let buffer = allocate(e.bytes)?;
        buffer.write(0, &spread(e, values.get(&*e.name).ok_or_else(|| missing(&e.name))?)).map_err(text)?;
        states.push(buffer);
    }
    let resolve_arg = |arg: &Arg| -> CaptureArg<'_> {
        let buffer = match arg.region {
            Region::Arena => &arena,
            Region::Weights => &weights,
            Region::State(i) => &states[i as usize],
            Region::Input(i) => return CaptureArg::Input(i as usize, arg.offset as usize),
            Region::Output(i) => &outputs[i as usize],
        };
        CaptureArg::Buffer(buffer, arg.offset as usize)
    };
    let block: Vec<i64> = graph.symbols().keys().map(|s| dims[&**s] as i64).collect();
    let input_bytes: Vec<usize> = inputs.iter().map(Vec::len).collect();
    let spec = CaptureSpec { label: "step", max_dims: &block, input_bytes: &input_bytes };
    let mut capture = driver.begin_capture(module, &spec).map_err(text)?;
    for launch in &compiled.variants[0].launches {
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
            weldment_ir::OutputKind::Result => (&plan.outputs, &outputs),
            weldment_ir::OutputKind::State => (&plan.states, &states),
        };
        let i = list.iter().position(|e| e.name == o.name).ok_or_else(|| missing(&o.name))?;
        out.insert(o.name.to_string(), collect(&list[i], &buffers[i].to_vec().map_err(text)?, &shape)?);
    }
    Ok(out)
}

/// Largest difference over the largest reference magnitude (at least 1) of each output: for quantised arithmetic, whose
/// error does not shrink with a result that cancels.
pub fn difference_of_scale(a: &IndexMap<String, Vec<f64>>, b: &IndexMap<String, Vec<f64>>) -> f64 {
    let mut worst: f64 = 0.0;
    for (name, reference) in a {
        let Some(found) = b.get(name).filter(|f| f.len() == reference.len()) else { return f64::INFINITY };
        let scale = reference.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        for (x, y) in reference.iter().zip(found) {
            let d = (x - y).abs() / scale;
            worst = worst.max(if d.is_nan() { f64::INFINITY } else { d });
        }
    }
    worst
}

/// Largest difference over the scale max(1, |reference|) of corresponding outputs; infinite where one is NaN or missing.
pub fn difference(a: &IndexMap<String, Vec<f64>>, b: &IndexMap<String, Vec<f64>>) -> f64 {
    let mut worst: f64 = 0.0;
    for (name, reference) in a {
        let Some(found) = b.get(name).filter(|f| f.len() == reference.len()) else { return f64::INFINITY };
        for (x, y) in reference.iter().zip(found) {
            let d = if x == y { 0.0 } else { (x - y).abs() / x.abs().max(1.0) };
            worst = worst.max(if d.is_nan() { f64::INFINITY } else { d });
        }
    }
    worst
}
