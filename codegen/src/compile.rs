//! From planned graphs to kernels and launches: builds each kernel once and binds every launch to its places. Code is
//! generated from what this leaves by [`crate::generate`].

use crate::channels::Channels;
use crate::generate::{Kernels, generate};
use crate::kernels::collective::all_reduce::form;
use crate::kernels::library;
use crate::llvm::{Emit, LlvmError};
use crate::request::{Argument, Built, Request, RowSpace, Tensor};
use crate::select::build;
use crate::setup::Setup;
use crate::tile::{GridAxis, Kernel, join, joinable};
use indexmap::IndexMap;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use thiserror::Error;
use weldment_artifact as format;
use weldment_artifact::{Layout, PackItem, Raw, Shard};
use weldment_ir::{DType, Dim, Graph, Op, OpKind, TensorType, Value};
use weldment_passes::buffer::{BufferPlan, CopyRecord, Region, Step, StepKind, View};
use weldment_passes::target::Refusal;

/// Why a planned graph did not become code.
#[derive(Debug, Error)]
pub enum CodegenError {
    /// No kernel takes the op in this form.
    #[error("{path}: no kernel for {op}: {refusal}")]
    Unsupported {
        /// Source path.
        path: String,
        /// Op name.
        op: &'static str,
        /// The failing precondition.
        refusal: Refusal,
    },
    /// LLVM.
    #[error(transparent)]
    Llvm(#[from] LlvmError),
    /// The linker.
    #[error("link: {0}")]
    Link(String),
    /// A kernel needs more than its target has, or scratch that was not allowed.
    #[error("{kernel} ({family}, {summary}) for {target}: {message}")]
    Resources {
        /// Name in the code object.
        kernel: String,
        /// Kernel family.
        family: String,
        /// Shapes and dtypes.
        summary: String,
        /// Target name.
        target: String,
        /// Found and accepted.
        message: String,
    },
    /// A static value could not be computed or found.
    #[error("{path}: {message}")]
    Static {
        /// Source path.
        path: String,
        /// What happened.
        message: String,
    },
    /// The plan and the graph disagree: a bug.
    #[error("internal: {0}")]
    Internal(String),
}

/// A variant to be compiled.
#[derive(Debug)]
pub struct VariantPlan<'a> {
    /// For reports.
    pub name: &'a str,
    /// The fused graph.
    pub graph: &'a Graph,
    /// Its buffers and schedule.
    pub plan: &'a BufferPlan,
    /// Machine, choices and symbols.
    pub setup: &'a Setup,
    /// Largest number of tokens.
    pub max_tokens: u64,
    /// Assumptions: (symbol, smallest, largest).
    pub guards: Vec<(String, u64, u64)>,
    /// Where the artifact lists what the graph takes, gives and keeps.
    pub externals: &'a Externals,
}

/// Inputs, outputs and states of an entry among those of an artifact: the artifact's index of each, in the plan's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Externals {
    /// Inputs.
    pub inputs: Vec<u32>,
    /// Outputs.
    pub outputs: Vec<u32>,
    /// States.
    pub states: Vec<u32>,
}

impl Externals {
    /// Of an entry that is alone in its artifact.
    pub fn alone(plan: &BufferPlan) -> Externals {
        let all = |n: usize| (0..n as u32).collect();
        Externals { inputs: all(plan.inputs.len()), outputs: all(plan.outputs.len()), states: all(plan.states.len()) }
    }
}

/// Gives static values their logical tensors.
pub trait Statics {
    /// Index of a checkpoint tensor in the manifest.
    ///
    /// # Errors
    /// If there is none of that name.
    fn weight(&mut self, name: &str) -> Result<u32, String>;

    /// Index of a tensor computed from weights and constants at compile time. A value that differs from rank to rank
    /// ([`by_rank`]) is stored for all of them, joined along the first dim in the order of ranks.
    ///
    /// # Errors
    /// If it cannot be computed.
    fn computed(&mut self, graph: &Graph, value: Value) -> Result<u32, String>;
}

/// Does a static value depend on the rank: is a part of something among what it is computed from?
pub fn by_rank(graph: &Graph, value: Value) -> bool {
    let mut open = vec![value.node];
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            let node = graph.node(id);
            if node.op.kind() == OpKind::Shard {
                return true;
            }
            open.extend(node.operands.iter().map(|v| v.node));
        }
    }
    false
}

/// A logical tensor, and the part of it that a rank takes.
type Part = (u32, Option<Shard>);

/// Code and everything that launches it.
#[derive(Debug)]
pub struct Compiled {
    /// A flat image for the host, a linked code object for AMD, PTX for NVIDIA.
    pub code: Vec<u8>,
    /// Kernels of the image.
    pub kernels: Vec<format::Kernel>,
    /// Launches by variant, in the order given.
    pub variants: Vec<format::Variant>,
    /// Packed weights, placed.
    pub pack: Vec<PackItem>,
    /// Bytes of the pack.
    pub pack_bytes: u64,
    /// Source path sets of launches.
    pub sources: Vec<Vec<String>>,
    /// Bytes of the arena: the largest of the variants.
    pub arena_bytes: u64,
    /// What collectives exchange data through, if there are some.
    pub slab: Option<format::Slab>,
    /// Texts.
    pub emitted: Kernels,
}

/// Families whose independent launches become one on GPUs: what they do takes less time than a launch.
const JOINED: [&str; 2] = ["rope", "cache_write"];

/// A kernel and how its parameters are bound.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) kernel: Kernel,
    arguments: Vec<Argument>,
    pub(crate) summary: String,
    /// The unit that is launched after it.
    then: Option<usize>,
}

/// A program up to its code: kernels are built and launches bound.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) setup: Setup,
    pub(crate) units: Vec<Unit>,
    pub(crate) variants: Vec<format::Variant>,
    /// For each variant, for each launch: the step of the plan that it belongs to. Empty on GPUs, where launches are joined.
    pub(crate) steps: Vec<Vec<usize>>,
    pub(crate) pack: Vec<PackItem>,
    pub(crate) pack_bytes: u64,
    pub(crate) sources: Vec<Vec<String>>,
    pub(crate) arena_bytes: u64,
    pub(crate) slab: Option<format::Slab>,
}

impl Prepared {
    /// Tile programs, in the order that launches number them.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.units.iter().map(|unit| &unit.kernel)
    }

    /// Launches by variant, in the order given.
    pub fn variants(&self) -> &[format::Variant] {
        &self.variants
    }

    /// For each variant, for each launch: the step of the plan that it belongs to. Empty on GPUs, where launches are joined.
    pub fn steps(&self) -> &[Vec<usize>] {
        &self.steps
    }

    /// Packed weights, placed, and the bytes of all of them.
    pub fn pack(&self) -> (&[PackItem], u64) {
        (&self.pack, self.pack_bytes)
    }

    /// Bytes of the arena: the largest of the variants.
    pub fn arena_bytes(&self) -> u64 {
        self.arena_bytes
    }

    /// What collectives exchange data through, if there are some.
    pub fn slab(&self) -> Option<&format::Slab> {
        self.slab.as_ref()
    }
}

struct State<'s, 'v> {
    setup: &'v Setup,
    statics: &'s mut dyn Statics,
    /// Unit by what was asked for.
    requests: HashMap<Request<'v>, usize>,
    /// Units by text of the tile program and its bindings: variants that ask differently may get the same program.
    units: IndexMap<String, Unit>,
    items: IndexMap<(Vec<Part>, Layout), PackItem>,
    pack_bytes: u64,
    sources: IndexMap<Vec<String>, ()>,
    channels: Channels,
}

/// Compiles all variants of all entries for one target, whose symbols are the dims block's slots.
///
/// # Errors
/// See [`CodegenError`].
pub fn compile(variants: &[VariantPlan<'_>], statics: &mut dyn Statics, emit: Emit) -> Result<Compiled, CodegenError> {
    let prepared = prepare(variants, statics)?;
    let compiled = generate(vec![prepared], emit)?.pop();
    compiled.ok_or_else(|| CodegenError::Internal("a program went missing".into()))
}

/// Builds the kernels of all variants for one target and binds their launches. The variants' setups agree on machine, choices and the
/// order of symbols.
///
/// # Errors
/// An op without a kernel, a static value that cannot be had.
pub fn prepare(variants: &[VariantPlan<'_>], statics: &mut dyn Statics) -> Result<Prepared, CodegenError> {
    let setup = variants.first().ok_or_else(|| CodegenError::Internal("no variant".into()))?.setup;
    let moves: Vec<Vec<Option<Op>>> = variants.iter().map(|v| v.plan.steps.iter().map(move_of).collect()).collect();
    let mut state = State {
        setup,
        statics,
        requests: HashMap::new(),
        units: IndexMap::new(),
        items: IndexMap::new(),
        pack_bytes: 0,
        sources: IndexMap::new(),
        channels: Channels::default(),
    };
    let mut bound = Vec::new();
    let mut steps = Vec::new();
    let mut arena_bytes = 0;
    for (variant, moves) in variants.iter().zip(&moves) {
        state.setup = variant.setup;
        arena_bytes = arena_bytes.max(variant.plan.arena_bytes);
        let mut launches: Vec<format::Launch> = Vec::new();
        let mut turns = Vec::new();
        let copies: BTreeMap<usize, &CopyRecord> = variant.plan.copies.iter().map(|c| (c.step, c)).collect();
        for (index, (step, moved)) in variant.plan.steps.iter().zip(moves).enumerate() {
            let first = launches.len();
            launches.extend(state.launch(variant, step, moved.as_ref())?);
            turns.resize(launches.len(), index);
            if let (Some(launch), Some(copy)) = (launches.get_mut(first), copies.get(&index)) {
                let CopyRecord { source, bytes, reason, .. } = (*copy).clone();
                launch.copy = Some(format::LaunchCopy { source, bytes, reason });
            }
        }
        if setup.target.gpu().is_some() {
            launches = state.join_small(launches);
            turns.clear();
        }
        steps.push(turns);
        let guards = variant.guards.iter().map(|(name, min, max)| {
            let symbol = state.symbol(name)?;
            Ok(format::Guard { symbol, min: *min, max: *max })
        });
        let guards = guards.collect::<Result<_, CodegenError>>()?;
        bound.push(format::Variant { name: variant.name.to_owned(), guards, launches });
    }
    // Parts of joined launches are kernels no more.
    let used: BTreeSet<u32> = bound.iter().flat_map(|v: &format::Variant| &v.launches).map(|l| l.kernel).collect();
    let place: BTreeMap<u32, u32> = used.iter().copied().zip(0..).collect();
    for launch in bound.iter_mut().flat_map(|v| &mut v.launches) {
        launch.kernel = place[&launch.kernel];
    }
    let units = state.units.into_values().enumerate().filter(|(i, _)| used.contains(&(*i as u32))).map(|(_, u)| u);
    Ok(Prepared {
        setup: setup.clone(),
        units: units.collect(),
        variants: bound,
        steps,
        pack: state.items.into_values().collect(),
        pack_bytes: state.pack_bytes,
        sources: state.sources.into_keys().collect(),
        arena_bytes,
        slab: state.channels.slab(),
    })
}

impl<'v> State<'_, 'v> {
    fn symbol(&self, name: &str) -> Result<u32, CodegenError> {
        let at = self.setup.symbols.slot(name);
        at.map(|i| i as u32).ok_or_else(|| CodegenError::Internal(format!("symbol {name} has no slot")))
    }

    /// The unit of a built kernel, which gets a name if it is new.
    fn add_unit(&mut self, built: Built) -> usize {
        let then = built.then.map(|then| self.add_unit(*then));
        let body = format!("{} {:?} {then:?}", built.kernel, built.arguments);
        if let Some(index) = self.units.get_index_of(&body) {
            return index;
        }
        let mut kernel = built.kernel;
        kernel.name = format!("k{}_{}", self.units.len(), kernel.family);
        self.units.insert_full(body, Unit { kernel, arguments: built.arguments, summary: built.summary, then }).0
    }

    /// Independent neighbours of the small families become one launch.
    fn join_small(&mut self, launches: Vec<format::Launch>) -> Vec<format::Launch> {
        let mut out: Vec<format::Launch> = Vec::with_capacity(launches.len());
        let mut run: Vec<format::Launch> = Vec::new();
        for launch in launches {
            let joins = !launch.barrier && run.last().is_some_and(|last| self.joins(last, &launch));
            if !joins {
                out.extend(self.joined(std::mem::take(&mut run)));
            }
            run.push(launch);
        }
        out.extend(self.joined(run));
        out
    }

    fn joins(&self, a: &format::Launch, b: &format::Launch) -> bool {
        let kernel = |l: &format::Launch| &self.units[l.kernel as usize].kernel;
        let small = |l: &format::Launch| JOINED.contains(&kernel(l).family);
        small(a) && small(b) && joinable(kernel(a), kernel(b))
    }

    /// One launch for a run of independent ones.
    fn joined(&mut self, mut run: Vec<format::Launch>) -> Option<format::Launch> {
        if run.len() < 2 {
            return run.pop();
        }
        let mut parts = run.iter().map(|l| &self.units[l.kernel as usize]);
        let kernel = join(&parts.clone().map(|u| &u.kernel).collect::<Vec<_>>());
        let summary = parts.clone().map(|u| u.summary.as_str()).collect::<Vec<_>>().join("; ");
        let arguments = parts.by_ref().flat_map(|u| u.arguments.iter().cloned()).collect();
        let mut run = run.into_iter();
        let mut whole = run.next()?;
        let rest: Vec<format::Launch> = run.collect();
        let count = rest.len() as u64 + 1;
        let heads = kernel.grid[1].mul;
        whole.kernel = self.add_unit(Built { kernel, arguments, summary, then: None }) as u32;
        whole.grid.truncate(1);
        whole.grid.extend([format::GridDim::Const(heads), format::GridDim::Const(count)]);
        let mut paths: BTreeSet<String> = BTreeSet::new();
        for launch in std::iter::once(&whole).chain(&rest) {
            paths.extend(
                self.sources.get_index(launch.source as usize).into_iter().flat_map(|(p, ())| p.iter().cloned()),
            );
        }
        whole.source = self.sources.insert_full(paths.into_iter().collect(), ()).0 as u32;
        for launch in rest {
            whole.args.extend(launch.args);
            whole.results.extend(launch.results);
            whole.cost.bytes += launch.cost.bytes;
            whole.cost.bytes_per_token += launch.cost.bytes_per_token;
            whole.cost.flops_per_token += launch.cost.flops_per_token;
        }
        Some(whole)
    }

    /// The launches of a step: one, or several in turn.
    fn launch(
        &mut self,
        variant: &VariantPlan<'v>,
        step: &Step,
        moved: Option<&'v Op>,
    ) -> Result<Vec<format::Launch>, CodegenError> {
        let graph = variant.graph;
        let (node, values) = match &step.kind {
            StepKind::Kernel(id) => (graph.node(*id), &graph.node(*id).operands[..]),
            StepKind::Copy { value, .. } => (graph.node(value.node), std::slice::from_ref(value)),
        };
        let (op, paths): (&'v Op, &BTreeSet<Arc<str>>) = (moved.unwrap_or(&node.op), &node.sources);
        let (operand_types, result_types): (Vec<TensorType>, Vec<TensorType>) = match &step.kind {
            StepKind::Kernel(id) => {
                (values.iter().map(|v| graph.type_of(*v).clone()).collect(), graph.node(*id).types.clone())
            }
            // What moves may be a part of the value.
            StepKind::Copy { ty, .. } => (vec![ty.clone()], vec![ty.clone()]),
        };
        let path = || paths.iter().next().map_or_else(|| graph.name.clone(), |s| s.to_string());
        let is_dense = |region: &Region| match region {
            Region::Input(name) => variant.plan.inputs.iter().any(|input| input.dense && input.name == *name),
            _ => false,
        };
        let tensor = |ty: &TensorType, view: &View| Tensor {
            ty: ty.clone(),
            strides: view.strides.clone(),
            is_static: matches!(view.region, Region::Weights(_)),
            is_constant: matches!(view.region, Region::Weights(_) | Region::Input(_)),
            is_unread: false,
            // Every region starts at a multiple of 64 bytes.
            align: 1 << view.offset.trailing_zeros().min(6),
            is_dense: is_dense(&view.region),
        };
        let request = Request {
            op,
            operands: operand_types.iter().zip(&step.reads).map(|(t, v)| tensor(t, v)).collect(),
            results: (result_types.iter().zip(&step.writes).enumerate())
                .map(|(i, (t, v))| Tensor { is_unread: is_unread(graph, &step.kind, i as u32), ..tensor(t, v) })
                .collect(),
            max_tokens: variant.max_tokens,
            setup: self.setup,
            choices: self.setup.choices_at(node),
        };
        let index = match self.requests.get(&request) {
            Some(index) => *index,
            None => {
                let unsupported =
                    |refusal| CodegenError::Unsupported { path: path(), op: op.kind().info().name, refusal };
                let built = build(&request).map_err(unsupported)?;
                let index = self.add_unit(built);
                self.requests.insert(request.clone(), index);
                index
            }
        };
        let paths: Vec<String> = paths.iter().map(|s| s.to_string()).collect();
        let path = || paths.first().cloned().unwrap_or_else(|| graph.name.clone());
        let source = self.sources.insert_full(paths.clone(), ()).0 as u32;
        let mut cost = cost(&request);
        let mut gemm = self.library_gemm(&request)?;
        let mut sum = self.library_sum(&request)?;
        let mut launches: Vec<format::Launch> = Vec::new();
        let mut next = Some(index);
        while let Some(index) = next {
            let arguments = self.units[index].arguments.clone();
            let mut args = Vec::with_capacity(arguments.len());
            for argument in &arguments {
                args.push(match argument {
                    Argument::Operand(i) => self.place(variant, &step.reads[*i], &path())?,
                    Argument::Result(i) => self.place(variant, &step.writes[*i], &path())?,
                    Argument::Scratch { offset } => {
                        let start =
                            step.scratch.ok_or_else(|| CodegenError::Internal("a step without scratch".into()))?;
                        format::Arg { region: format::Region::Arena, offset: start + offset }
                    }
                    Argument::Channel(channel) => self.channels.place(*channel),
                    Argument::Slab => format::Arg { region: format::Region::Slab, offset: 0 },
                    Argument::Comm => format::Arg { region: format::Region::Comm, offset: 0 },
                    Argument::Packed { operands, layout } => {
                        let mut tensors = Vec::new();
                        for i in operands {
                            self.tensors(graph, values[*i], &path(), &mut tensors)?;
                        }
                        let shapes: Vec<&TensorType> = operands.iter().map(|i| &operand_types[*i]).collect();
                        self.packed(tensors, *layout, &shapes, &path())?
                    }
                });
            }
            launches.push(format::Launch {
                kernel: index as u32,
                grid: self.grid(index)?,
                args,
                barrier: step.barrier || !launches.is_empty(),
                source,
                // Those after the first work on what it left.
                cost: std::mem::take(&mut cost),
                gemm: gemm.take(),
                all_reduce: sum.take(),
                results: Vec::new(),
                copy: None,
            });
            next = self.units[index].then;
        }
        if self.setup.choices.record_results != Some(0)
            && let Some(last) = launches.last_mut()
        {
            for (ty, view) in result_types.iter().zip(&step.writes) {
                last.results.extend(self.result(variant, (ty, view), &path())?);
            }
        }
        Ok(launches)
    }

    /// A result as the runtime may read it: a plain dtype, and no state, which holds far more than one step wrote.
    fn result(
        &mut self,
        variant: &VariantPlan<'_>,
        (ty, view): (&TensorType, &View),
        path: &str,
    ) -> Result<Option<format::LaunchResult>, CodegenError> {
        if matches!(view.region, Region::State(_))
            || !matches!(ty.dtype, DType::F32 | DType::F16 | DType::BF16 | DType::I32)
        {
            return Ok(None);
        }
        let dim = |d: &Dim| match d {
            Dim::Const(n) => format::Dim::Const(*n),
            Dim::Sym(s) => format::Dim::Symbol(s.to_string()),
        };
        let Some(dtype) = Some(ty.dtype).filter(|dtype| dtype.is_external()) else { return Ok(None) };
        let at = self.place(variant, view, path)?;
        let shape = ty.shape.iter().map(dim).collect();
        Ok(Some(format::LaunchResult { at, dtype, shape, strides: view.strides.clone() }))
    }

    /// Programs of a unit's launch.
    fn grid(&self, unit: usize) -> Result<Vec<format::GridDim>, CodegenError> {
        let kernel = &self.units[unit].kernel;
        let mut grid = Vec::new();
        for axis in &kernel.grid {
            grid.push(match axis {
                GridAxis { symbol: None, mul, .. } => format::GridDim::Const(*mul),
                GridAxis { symbol: Some(s), mul, div } => {
                    format::GridDim::Symbol { symbol: self.symbol(&kernel.symbols[*s as usize])?, mul: *mul, div: *div }
                }
            });
        }
        while grid.last() == Some(&format::GridDim::Const(1)) && grid.len() > 1 {
            grid.pop();
        }
        Ok(grid)
    }

    /// `mul`, times the value of a symbol where there is one.
    fn count(&self, symbol: Option<&str>, mul: u64) -> Result<format::GridDim, CodegenError> {
        Ok(match symbol {
            Some(symbol) => format::GridDim::Symbol { symbol: self.symbol(symbol)?, mul, div: 1 },
            None => format::GridDim::Const(mul),
        })
    }

    /// The request as a product for the vendor's library, where the target has one that beats our kernels.
    fn library_gemm(&self, r: &Request<'_>) -> Result<Option<format::Gemm>, CodegenError> {
        let Some(gemm) = library::gemm(r) else { return Ok(None) };
        let rows = self.count(gemm.rows.0.as_deref(), gemm.rows.1)?;
        Ok(Some(format::Gemm {
            rows,
            n: gemm.n,
            k: gemm.k,
            dtype: gemm.dtype,
            x_stride: gemm.x_stride,
            out_stride: gemm.out_stride,
            addend_stride: gemm.addend_stride,
        }))
    }

    /// The request as a sum over ranks for the vendor's library, where the user leaves it to that.
    fn library_sum(&self, r: &Request<'_>) -> Result<Option<format::AllReduce>, CodegenError> {
        let library =
            self.setup.target.gpu().is_some() && form::fixed(&self.setup.choices) == Some(form::Stages::Library);
        if !library || !matches!(r.op, Op::AllReduce { .. }) {
            return Ok(None);
        }
        let (x, out) = (&r.operands[0], &r.results[0]);
        let whole = |t: &Tensor| t.strides == Tensor::contiguous(&t.ty).strides;
        let (Ok(rows), true) = (RowSpace::of(&x.ty.shape), whole(x) && whole(out)) else {
            return Ok(None);
        };
        let elements = self.count(rows.symbol.as_deref(), rows.mul)?;
        Ok(Some(format::AllReduce { elements, dtype: x.ty.dtype }))
    }

    fn place(&mut self, variant: &VariantPlan<'_>, view: &View, path: &str) -> Result<format::Arg, CodegenError> {
        let VariantPlan { graph, plan, externals, .. } = *variant;
        let index = |list: &[weldment_passes::buffer::External], places: &[u32], name: &Arc<str>| {
            let at = list.iter().position(|e| e.name == *name).and_then(|at| places.get(at).copied());
            at.ok_or_else(|| CodegenError::Internal(format!("no external buffer {name}")))
        };
        let region = match &view.region {
            Region::Arena => format::Region::Arena,
            Region::State(name) => format::Region::State(index(&plan.states, &externals.states, name)?),
            Region::Input(name) => format::Region::Input(index(&plan.inputs, &externals.inputs, name)?),
            Region::Output(name) => format::Region::Output(index(&plan.outputs, &externals.outputs, name)?),
            Region::Weights(root) => {
                // A plain static operand: logical rows as they are, at the view's own offset.
                let ty = graph.type_of(*root).clone();
                let mut tensors = Vec::new();
                self.tensors(graph, *root, path, &mut tensors)?;
                let arg = self.packed(tensors, Layout::Raw(Raw { dtype: ty.dtype }), &[&ty], path)?;
                return Ok(format::Arg { offset: arg.offset + view.offset, ..arg });
            }
        };
        Ok(format::Arg { region, offset: view.offset })
    }

    /// Logical tensors that make up a static value, in order along the first dim, with the part of each that a rank takes.
    fn tensors(&mut self, graph: &Graph, value: Value, path: &str, out: &mut Vec<Part>) -> Result<(), CodegenError> {
        let node = graph.node(value.node);
        let failed = |message| CodegenError::Static { path: path.to_owned(), message };
        let narrow = |n: i64| u32::try_from(n).map_err(|e| failed(e.to_string()));
        match (&node.op, node.operands.as_slice()) {
            (Op::Weight { name, .. }, _) => out.push((self.statics.weight(name).map_err(failed)?, None)),
            (Op::Shard { axis, parts, replicas }, [of]) if !by_rank(graph, *of) => {
                let tensor = match &graph.node(of.node).op {
                    Op::Weight { name, .. } => self.statics.weight(name).map_err(failed)?,
                    _ => self.statics.computed(graph, *of).map_err(failed)?,
                };
                let shard = Shard { axis: narrow(*axis)?, parts: narrow(*parts)?, replicas: narrow(*replicas)? };
                out.push((tensor, Some(shard)));
            }
            // Vectors differ in length, and a pack item has one row length: those are joined as constants.
            (Op::Concat { axis: 0 }, parts) if graph.type_of(value).rank() == 2 => {
                for part in parts {
                    self.tensors(graph, *part, path, out)?;
                }
            }
            _ => {
                let shard = by_rank(graph, value).then(|| Shard { axis: 0, parts: graph.world(), replicas: 1 });
                out.push((self.statics.computed(graph, value).map_err(failed)?, shard));
            }
        }
        Ok(())
    }

    /// The pack item of these tensors in this layout, added on first use.
    fn packed(
        &mut self,
        parts: Vec<Part>,
        layout: Layout,
        shapes: &[&TensorType],
        path: &str,
    ) -> Result<format::Arg, CodegenError> {
        if let Some(item) = self.items.get(&(parts.clone(), layout)) {
            return Ok(format::Arg { region: format::Region::Weights, offset: item.offset });
        }
        let failed = |message: String| CodegenError::Static { path: path.to_owned(), message };
        let mut rows = Vec::new();
        let mut k = 1;
        for ty in shapes {
            let shape = ty.constant_shape().ok_or_else(|| failed(format!("a static value {ty} of symbolic shape")))?;
            k = shape.last().copied().unwrap_or(1);
            rows.push(shape.iter().rev().skip(1).product::<u64>());
        }
        let bytes = layout
            .packed_bytes(&rows, k)
            .ok_or_else(|| failed(format!("{layout:?} does not take {rows:?} rows of {k}")))?;
        let offset = self.pack_bytes;
        self.pack_bytes = (offset + bytes).next_multiple_of(64);
        let (tensors, shards): (Vec<u32>, Vec<Option<Shard>>) = parts.iter().copied().unzip();
        let shards = if shards.iter().all(Option::is_none) { Vec::new() } else { shards };
        self.items.insert((parts, layout), PackItem { offset, bytes, layout, tensors, shards });
        Ok(format::Arg { region: format::Region::Weights, offset })
    }
}

/// What moves the elements of a step that is a copy.
fn move_of(step: &Step) -> Option<Op> {
    match &step.kind {
        StepKind::Kernel(_) => None,
        StepKind::Copy { ty, .. } => Some(Op::Reshape { shape: ty.shape.clone() }),
    }
}

/// True for a result of a node that nothing reads, results of the graph included.
fn is_unread(graph: &Graph, kind: &StepKind, result: u32) -> bool {
    let StepKind::Kernel(node) = kind else { return false };
    let value = Value { node: *node, result };
    !graph.outputs().iter().any(|o| o.value == value) && !graph.users(*node).any(|(_, using)| using.result == result)
}

/// Bytes and operations of a launch, for reports and `bench`.
fn cost(r: &Request<'_>) -> format::Cost {
    let per_token = |t: &Tensor| -> (bool, u64) {
        let symbolic = t.ty.shape.iter().any(|d| d.constant().is_none());
        let constant: Vec<u64> = t.ty.shape.iter().map(|d| d.constant().unwrap_or(1)).collect();
        (symbolic, t.ty.dtype.byte_size(&constant).unwrap_or(0))
    };
    let mut out = format::Cost::default();
    let touched = match r.op.kind() {
        // Caches and tables are not read whole: the moved rows stand for them.
        OpKind::CacheWrite | OpKind::RopeCacheWrite => vec![&r.operands[1], &r.operands[1]],
        OpKind::Gather => vec![&r.results[0], &r.results[0]],
        OpKind::Attention => vec![&r.operands[0], &r.results[0]],
        OpKind::SparseAttention => vec![&r.operands[0], &r.operands[3], &r.results[0]],
        OpKind::IndexScores => vec![&r.operands[0], &r.operands[1], &r.results[0]],
        OpKind::Rope => vec![&r.operands[0], &r.results[0]],
        _ => r.operands.iter().chain(&r.results).collect(),
    };
    for t in touched {
        let (symbolic, bytes) = per_token(t);
        let slot = if symbolic { &mut out.bytes_per_token } else { &mut out.bytes };
        *slot = slot.saturating_add(bytes);
    }
    if r.op.kind() == OpKind::ScaledMatmul {
        out.flops_per_token = 2 * r.operands[2].ty.constant_shape().map_or(0, |s| s.iter().product());
    }
    if let OpKind::Matmul | OpKind::MatmulAdd | OpKind::MatmulSiluMul = r.op.kind() {
        let weights = if r.op.kind() == OpKind::MatmulSiluMul { 2 } else { 1 };
        let size: u64 = r.operands[1].ty.constant_shape().map_or(0, |s| s.iter().product());
        out.flops_per_token = 2 * weights * size;
    }
    out
}
