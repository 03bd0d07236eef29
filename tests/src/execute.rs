//! Runs any graph through bufferisation, code generation and the host driver, and the same graph through the f64
//! interpreter, on the same stored bytes.

use crate::host::Loaded;
use indexmap::IndexMap;
use std::collections::BTreeMap;
use std::sync::Arc;
use weldment_codegen::llvm::Emit;
use weldment_codegen::select::KernelLibrary;
use weldment_codegen::setup::Setup;
use weldment_codegen::target::Target as Machine;
use weldment_codegen::tile::Kernel;
use weldment_codegen::{Compiled, Externals, Prepared, Statics, VariantPlan, generate, prepare};
use weldment_ir::generate::{Random, random_bindings};
use weldment_ir::interpret::{Binding, BindingData, Bindings, Bytes, F64, Options, interpret};
use weldment_ir::{DType, Dim, Graph, Op, TensorType, Value, codec};
use weldment_passes::buffer::{BufferPlan, External, bufferise};
use weldment_runtime::artifact::{
    Manifest, Model, Pack, PackItem, Program, Symbol, Target, Tensor, TensorPlace, WeightMode, Weights,
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

    /// Integers of any width; each is cut to `dtype`.
    pub fn integers(dtype: DType, shape: &[u64], values: &[i64]) -> Stored {
        let width = dtype.block_bytes();
        let bytes = values.iter().flat_map(|n| n.to_le_bytes().into_iter().take(width)).collect();
        Stored { dtype, shape: shape.to_vec(), bytes }
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
            for at in Stored::scale_offsets(dtype) {
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

    /// Elements as numbers.
    pub fn decoded(&self) -> Vec<f64> {
        if self.dtype.is_float() {
            let elements = self.shape.iter().product::<u64>() as usize;
            let values = codec::decode_vec(self.dtype, &self.bytes, elements).unwrap_or_default();
            return values.into_iter().map(f64::from).collect();
        }
        self.bytes.chunks(self.dtype.block_bytes()).map(|b| integer(self.dtype, b) as f64).collect()
    }

    /// Where the f16 scales of a block lie.
    pub(crate) fn scale_offsets(dtype: DType) -> &'static [usize] {
        match dtype {
            DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
            DType::Q6K => &[208],
            DType::MxFp4 => &[],
            _ => &[0],
        }
    }

    /// For the interpreter.
    pub fn binding(&self) -> Binding {
        let shape: Vec<usize> = self.shape.iter().map(|d| *d as usize).collect();
        let n = self.bytes.len();
        let owner: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(self.bytes.clone());
        Binding::encoded(&shape, self.dtype, Bytes::new(owner, 0..n).expect("a range inside the bytes"))
    }
}

/// Weights of the graphs that share a pack.
pub(crate) struct Static<'a> {
    values: &'a Values,
    tensors: Vec<Tensor>,
    bytes: Vec<Vec<u8>>,
}

impl<'a> Static<'a> {
    /// Weights by name; those of different graphs have different names.
    pub(crate) fn new(values: &'a Values) -> Static<'a> {
        Static { values, tensors: Vec::new(), bytes: Vec::new() }
    }

    fn add(&mut self, name: &str, stored: &Stored) -> Result<u32, String> {
        if let Some(i) = self.tensors.iter().position(|t| t.name == name) {
            return Ok(i as u32);
        }
        let shape = stored.shape.clone();
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dtype: stored.dtype,
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
        let mut bindings = Bindings::new();
        for id in only.ids() {
            if let Op::Weight { name, .. } = &only.node(id).op
                && let Some(stored) = self.values.get(&**name)
            {
                bindings.insert(name, stored.binding());
            }
        }
        let out = interpret::<F64>(&only, &dims, &bindings, &Options::default()).map_err(|e| e.to_string())?;
        let tensor = &out["value"];
        let (dtype, shape): (DType, Vec<u64>) = (tensor.dtype, tensor.shape.iter().map(|d| *d as u64).collect());
        let stored = match (tensor.as_values(), tensor.as_ints()) {
            (Some(reals), _) => Stored::floats(dtype, &shape, &reals.iter().map(|v| *v as f32).collect::<Vec<_>>()),
            (_, Some(ints)) => Stored::integers(dtype, &shape, ints),
            _ => return Err("a value in its stored form".into()),
        };
        // Several graphs may share a pack.
        self.add(&format!("{} computes {value:?}", graph.name), &stored)
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

/// Byte offsets of elements, or of blocks of them, in a physical buffer, row-major over the resolved shape.
pub(crate) fn element_offsets(external: &External, shape: &[u64]) -> Vec<usize> {
    let dtype = external.ty.dtype;
    let block = dtype.block_elements() as u64;
    let mut at = vec![0u64];
    let dense: Vec<u64> = (1..=shape.len()).map(|next| shape[next..].iter().product()).collect();
    let strides = if external.dense { &dense } else { &external.strides };
    for (axis, (size, stride)) in shape.iter().zip(strides).enumerate() {
        // Blocks run along the last dim.
        let (size, stride) = if axis + 1 == shape.len() { (size / block, stride * block) } else { (*size, *stride) };
        at = at.iter().flat_map(|base| (0..size).map(move |i| base + i * stride)).collect();
    }
    at.into_iter().map(|e| (e / block) as usize * dtype.block_bytes()).collect()
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
    if !external.ty.dtype.is_float() {
        return Ok(packed.chunks(size).map(|b| integer(external.ty.dtype, b) as f64).collect());
    }
    let elements = packed.len() / size * external.ty.dtype.block_elements();
    Ok(codec::decode_vec(external.ty.dtype, &packed, elements)
        .map_err(|e| e.to_string())?
        .into_iter()
        .map(f64::from)
        .collect())
}

/// A little-endian integer as wide as `bytes`.
fn integer(dtype: DType, bytes: &[u8]) -> i64 {
    let unsigned = bytes.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
    let unused = 64 - 8 * bytes.len() as u32;
    match dtype {
        DType::I8 | DType::I32 | DType::I64 => (unsigned << unused) as i64 >> unused,
        _ => unsigned as i64,
    }
}

/// A graph compiled for one target.
pub(crate) struct Build<'a> {
    pub(crate) setup: Setup,
    pub(crate) plan: BufferPlan,
    pub(crate) compiled: Compiled,
    pub(crate) statics: Static<'a>,
}

/// A graph's kernels as tile programs, its launches, and what they were made from.
pub(crate) type Planned<'a> = (Setup, BufferPlan, Prepared, Static<'a>);

/// What kernels of `graph` are built for. After the target's name, choices may be fixed: `sm_90a all_reduce=2`.
///
/// # Errors
/// If there is no such target or choice.
pub fn setup(graph: &Graph, target: &str) -> Result<Setup, String> {
    let mut words = target.split(' ');
    let mut setup = Setup::of(Machine::named(words.next().unwrap_or_default())?, graph);
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("`{word}`; key=value is expected"))?;
        setup.choices.set(key, value)?;
    }
    Ok(setup)
}

/// A graph up to its tile programs, for a target as in [`setup`].
pub(crate) fn plan<'a>(graph: &Graph, values: &'a Values, target: &str) -> Result<Planned<'a>, String> {
    let setup = setup(graph, target)?;
    let library = library(graph, &setup);
    let plan = bufferise(graph, &library).map_err(|e| e.to_string())?;
    let mut statics = Static::new(values);
    let externals = Externals::alone(&plan);
    let variant = VariantPlan {
        name: "all",
        graph,
        plan: &plan,
        setup: &setup,
        max_tokens: library.max_tokens,
        guards: Vec::new(),
        externals: &externals,
    };
    let prepared = prepare(&[variant], &mut statics).map_err(|e| e.to_string())?;
    Ok((setup, plan, prepared, statics))
}

pub(crate) fn build<'a>(graph: &Graph, values: &'a Values, target: &str) -> Result<Build<'a>, String> {
    let (setup, plan, prepared, statics) = plan(graph, values, target)?;
    let compiled = generate(vec![prepared], Emit::default()).map_err(|e| e.to_string())?.pop();
    let compiled = compiled.ok_or("the program went missing")?;
    Ok(Build { setup, plan, compiled, statics })
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
    let symbol = |(name, r): (&Arc<str>, &weldment_ir::Range)| Symbol {
        name: name.to_string(),
        min: r.min,
        max: r.max,
        role: graph.role(name).clone(),
    };
    let program = Program {
        target: Target {
            name: target.name().to_owned(),
            arch: target.arch_name().into(),
            features: target.feature_list(),
        },
        code: "code.0".into(),
        kernels: Vec::new(),
        arena_bytes: 0,
        slab: None,
        pack: Pack { bytes, key: String::new(), items: items.to_vec() },
        entries: Vec::new(),
    };
    let manifest = Manifest {
        world: 1,
        weldment_version: String::new(),
        model: Model {
            architecture: "test".into(),
            name: None,
            vocab_size: 1,
            bos_id: None,
            eos_ids: Vec::new(),
            max_seq: 1,
        },
        symbols: graph.symbols().iter().map(symbol).collect(),
        entries: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        states: Vec::new(),
        weights: Weights { mode: WeightMode::External, files: Vec::new(), tensors: statics.tensors.clone() },
        sources: Vec::new(),
        programs: Vec::new(),
        options: Vec::new(),
        chat_template: None,
        special_tokens: Default::default(),
        sections: Vec::new(),
    };
    let mut pack = vec![0u8; bytes as usize];
    pack_all(&manifest, &program, 0, statics, &mut pack, 1).map_err(|e| e.to_string())?;
    Ok(pack)
}

impl Build<'_> {
    /// The weights as the kernels want them.
    ///
    /// # Errors
    /// If a layout and its tensors do not fit together.
    pub(crate) fn pack(&self, graph: &Graph) -> Result<Vec<u8>, String> {
        packed(graph, &self.setup.target, &self.statics, (&self.compiled.pack, self.compiled.pack_bytes))
    }
}

/// The kernels of `target` for the tokens that `graph` may have.
pub fn library(graph: &Graph, setup: &Setup) -> KernelLibrary {
    KernelLibrary { setup: setup.clone(), max_tokens: graph.row_symbol().map_or(1, |(_, range)| range.max) }
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

/// Assembly of a graph's kernels for a GPU: GCN, or PTX.
///
/// # Errors
/// Any stage's, as text; a kernel that needs scratch among them.
pub fn gpu_text(graph: &Graph, target: &str) -> Result<String, String> {
    let least = graph.symbols().iter().map(|(name, range)| (name.to_string(), range.min)).collect();
    let values = random_values(graph, &least, Values::new(), 0)?;
    let (_, _, prepared, _) = plan(graph, &values, target)?;
    let emit = Emit { llvm: false, asm: true };
    let compiled = generate(vec![prepared], emit).map_err(|e| e.to_string())?.pop();
    compiled.and_then(|c| c.emitted.asm).ok_or_else(|| "no assembly".to_owned())
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
    let loaded = Loaded::new(graph, &built.setup.target, &built.compiled, &built.statics, threads)?;
    loaded.run((&built.compiled, 0), (graph, &built.plan), dims, values, None)
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
