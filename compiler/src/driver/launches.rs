//! An artifact's step beside the interpreter, and, where they differ, launch by launch: the first launch whose results are not
//! what the interpreter makes of that launch's own operands.

use super::one_sequence::OneSequence;
use super::statics::Collector;
use super::{CompileError, Planned, PlannedTarget, Reference};
use crate::checkpoint::Checkpoint;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weldment_artifact::SymbolRole;
use weldment_codegen::{VariantPlan, prepare};
use weldment_ir::interpret::{Binding, Bindings, F64, Options, Tensor, interpret_ranks};
use weldment_ir::{DType, Dim, Graph, IrError, Op, OutputKind, Real, TensorType, Value, codec};
use weldment_passes::buffer::{External, Region, StepKind, View};
use weldment_runtime::StepInput;
use weldment_runtime::artifact::{Artifact, Region as Place};
use weldment_runtime::device::Device;
use weldment_runtime::graph::{SingleSteps, Step};
use weldment_runtime::weights::WeightOptions;

/// A launch that does not do what its op says.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Variant of the step.
    pub variant: String,
    /// The launch's place in the variant, and how many do this op's work.
    pub launch: usize,
    /// See `launch`.
    pub launches: usize,
    /// Kernel name, family and summary.
    pub kernel: String,
    /// Source paths.
    pub paths: Vec<String>,
    /// Op, or `copy`.
    pub op: String,
    /// Types of operands and results.
    pub types: String,
    /// The first rank on which it differs.
    pub rank: usize,
    /// Which result, and the index of its first element that differs by more than the bound.
    pub result: usize,
    /// See `result`.
    pub element: Vec<usize>,
    /// The interpreter's value.
    pub expected: f64,
    /// The artifact's.
    pub found: f64,
    /// The largest difference over the largest value, and what is accepted.
    pub apart: f64,
    /// See `apart`.
    pub bound: f64,
}

/// A step of the artifact beside the interpreter's.
#[derive(Clone, Debug, PartialEq)]
pub struct StepDifference {
    /// Variant that ran.
    pub variant: String,
    /// Tokens of the step.
    pub tokens: usize,
    /// Largest difference of a logit over the largest logit.
    pub apart: f64,
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Every step.
    pub steps: Vec<StepDifference>,
    /// What the outputs may differ by.
    pub bound: f64,
    /// Launches that were compared, if any were.
    pub compared: usize,
    /// The first that differs.
    pub first: Option<Difference>,
}

impl Comparison {
    /// True if an output differs by more than the bound.
    pub fn outputs_differ(&self) -> bool {
        self.steps.iter().any(|s| s.apart > self.bound)
    }
}

/// Everything that a comparison needs.
pub struct Subject<'a> {
    /// The artifact.
    pub artifact: &'a Artifact,
    /// The entry that is run, by its place.
    pub entry: usize,
    /// The graph that it was compiled from, before any rule.
    pub graph: &'a Graph,
    /// Its targets, planned as they were.
    pub planned: &'a [PlannedTarget],
    /// Its weights.
    pub checkpoint: &'a Checkpoint,
    /// Where the packed weights come from.
    pub weights: WeightOptions,
}

/// Spacing of a dtype's numbers over their size, where results are rounded to it.
fn spacing(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1.0 / 1024.0,
        DType::BF16 => 1.0 / 128.0,
        DType::Q8A => 1.0 / 8192.0,
        _ => 0.0,
    }
}

/// What a whole step may differ by: sums in f32 over all layers, or the coarsest rounding on the way.
fn step_bound(graphs: &[&Graph]) -> f64 {
    let types = graphs.iter().flat_map(|g| g.ids().flat_map(|id| g.node(id).types.iter().map(|t| t.dtype)));
    types.map(spacing).fold(1e-3, |most, s| if s > 0.0 { most.max((32.0 * s).min(0.1)) } else { most })
}

/// Runs `tokens` on `device`, as prefills of all but the last and a step of that one; compares the logits of all with the
/// interpreter's, and every launch if they differ or `every` is set.
///
/// # Errors
/// If the artifact is for other machines, was not compiled from `entry` as planned, or cannot be run.
pub fn compare_artifact(
    subject: &Subject<'_>,
    device: &Device,
    tokens: &[u32],
    every: bool,
) -> Result<Comparison, CompileError> {
    if tokens.is_empty() {
        return Err(CompileError::option("--tokens", "no tokens; one or more are expected"));
    }
    let (head, last) = tokens.split_at(tokens.len() - 1);
    let most =
        |role: &SymbolRole| subject.artifact.manifest().symbol_of(role).map_or(1, |(_, s)| s.max.max(1) as usize);
    let most = most(&SymbolRole::Tokens).min(most(&SymbolRole::LogitRows));
    let parts: Vec<&[u32]> = head.chunks(most).chain([last]).collect();
    let graphs: Vec<&Graph> = subject.planned.iter().flat_map(|t| &t.variants).map(|v| &v.graph).collect();
    let mut out = Comparison { steps: Vec::new(), bound: step_bound(&graphs), compared: 0, first: None };
    run(subject, device, (&parts, tokens.len()), false, &mut out)?;
    if every || out.outputs_differ() {
        run(subject, device, (&parts, tokens.len()), true, &mut out)?;
    }
    Ok(out)
}

/// Runs all parts of a sequence of `total` positions from the start; fills `steps`, or, when `launches` are compared, `first`.
fn run(
    subject: &Subject<'_>,
    device: &Device,
    (parts, total): (&[&[u32]], usize),
    launches: bool,
    out: &mut Comparison,
) -> Result<(), CompileError> {
    let manifest = subject.artifact.manifest();
    let block = manifest.block_positions().max(1) as usize;
    let blocks = total.div_ceil(block).max(manifest.symbol_of(&SymbolRole::POOL).map_or(1, |(_, s)| s.min as usize));
    let mut steps = SingleSteps::open(subject.artifact, device, blocks, &subject.weights)?;
    let program = steps.program();
    let target = subject.planned.get(program).ok_or_else(|| other("it has more programs than targets"))?;
    let turns = turns(subject, target, program)?;
    let own: Vec<&Planned> = target.variants.iter().filter(|planned| planned.entry == subject.entry).collect();
    let mut reference = match launches {
        true => None,
        false => Some(Reference::of_graph(subject.graph.clone(), subject.checkpoint)?),
    };
    let mut position = 0;
    for part in parts {
        let sizes = OneSequence { first: position, count: part.len(), blocks, block_positions: block };
        let dims = sizes.dims(subject.graph)?;
        let used = sizes.used();
        let count = part.len() as i32;
        let tokens: Vec<i32> = part.iter().map(|t| *t as i32).collect();
        let positions: Vec<i32> = (position as i32..position as i32 + count).collect();
        let rows: Vec<i32> = (0..count).collect();
        let tables: Vec<i32> = (0..used as i32).collect();
        position += part.len();
        let mut step = steps.begin(&StepInput {
            tokens: &tokens,
            positions: &positions,
            seq_starts: &[0, count],
            block_tables: &tables,
            logit_rows: &rows,
        })?;
        let planned = own.get(step.variant).ok_or_else(|| other("it has more variants than planned"))?;
        let check = Launches { subject, planned, turns: &turns[step.variant], program, dims };
        if launches {
            out.compared += step.len();
            out.first = check.first_difference(&mut step)?;
            if out.first.is_some() {
                return Ok(());
            }
            continue;
        }
        for index in 0..step.len() {
            step.launch(index)?;
        }
        let Some(reference) = &mut reference else { continue };
        let expected = reference.step(part)?;
        let logits = check.logits(&step)?;
        out.steps.push(StepDifference {
            variant: planned.name.clone(),
            tokens: part.len(),
            apart: if logits.len() == expected.len() { apart(&expected, &logits) } else { f64::INFINITY },
        });
    }
    Ok(())
}

fn other(what: &str) -> CompileError {
    let message = format!("the artifact was not compiled from this model by this compiler on this machine: {what}");
    CompileError::option("verify", message)
}

/// For each variant, for each launch, the step of the plan that it belongs to.
fn turns(subject: &Subject<'_>, target: &PlannedTarget, program: usize) -> Result<Vec<Vec<usize>>, CompileError> {
    let plans: Vec<VariantPlan<'_>> = target.variants.iter().map(Planned::variant).collect();
    let prepared = prepare(&plans, &mut Collector::new(subject.checkpoint))?;
    let entry = subject.artifact.manifest().programs.get(program).and_then(|p| p.entries.get(subject.entry));
    let found: Vec<usize> = entry.map_or(Vec::new(), |e| e.variants.iter().map(|v| v.launches.len()).collect());
    let own = target.variants.iter().zip(prepared.steps()).filter(|(planned, _)| planned.entry == subject.entry);
    let steps: Vec<Vec<usize>> = own.map(|(_, steps)| steps.clone()).collect();
    let expected: Vec<usize> = steps.iter().map(Vec::len).collect();
    match found == expected {
        true => Ok(steps),
        false => Err(other(&format!("it has {found:?} launches, {expected:?} are planned"))),
    }
}

fn apart(expected: &[f64], found: &[f64]) -> f64 {
    let scale = expected.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
    expected.iter().zip(found).fold(0.0, |worst: f64, (x, y)| {
        let d = (x - y).abs() / scale;
        worst.max(if d.is_nan() { f64::INFINITY } else { d })
    })
}

/// The type of a result, and its values on each rank.
type Expected = (TensorType, Vec<Vec<f64>>);

/// The launches of one step.
struct Launches<'a> {
    subject: &'a Subject<'a>,
    planned: &'a Planned,
    turns: &'a [usize],
    program: usize,
    dims: BTreeMap<String, u64>,
}

impl Launches<'_> {
    /// Runs the launches, each step of the plan compared with the interpreter, until one differs.
    fn first_difference(&self, step: &mut Step<'_>) -> Result<Option<Difference>, CompileError> {
        let mut at = 0;
        while at < self.turns.len() {
            let turn = self.turns[at];
            let count = self.turns[at..].iter().take_while(|t| **t == turn).count();
            let expected = self.expected(turn, step)?;
            for index in at..at + count {
                step.launch(index)?;
            }
            for (result, (ty, values)) in expected.iter().enumerate() {
                let view = &self.planned.plan.steps[turn].writes[result];
                for (rank, values) in values.iter().enumerate() {
                    let found = self.load(step, rank, ty, view)?;
                    let which = (rank, turn, result);
                    if let Some(difference) = self.differs((at, count), which, ty, values, &found) {
                        return Ok(Some(difference));
                    }
                }
            }
            at += count;
        }
        Ok(None)
    }

    /// What the interpreter makes of a step's operands as they are in memory: of each result its type and the values on each rank.
    fn expected(&self, turn: usize, step: &Step<'_>) -> Result<Vec<Expected>, CompileError> {
        let planned = &self.planned.plan.steps[turn];
        let graph = &self.planned.graph;
        let id = match &planned.kind {
            StepKind::Kernel(id) => *id,
            StepKind::Copy { ty, .. } => {
                let moved = (0..step.world()).map(|rank| self.load(step, rank, ty, &planned.reads[0]));
                return Ok(vec![(ty.clone(), moved.collect::<Result<_, _>>()?)]);
            }
        };
        let node = graph.node(id);
        let (mut part, mut bindings) = (Graph::new("launch"), Bindings::new());
        for (name, value) in &self.dims {
            part.declare_symbol(name, *value, *value);
        }
        let mut operands = Vec::with_capacity(node.operands.len());
        for (i, (value, view)) in node.operands.iter().zip(&planned.reads).enumerate() {
            if matches!(view.region, Region::Weights(_)) {
                operands.push(self.fixed(*value, &mut part, &mut bindings)?);
                continue;
            }
            let ty = graph.type_of(*value);
            let name: Arc<str> = format!("operand{i}").into();
            let shape = self.shape(ty);
            for rank in 0..step.world() {
                let held = binding(ty.dtype, &shape, self.load(step, rank, ty, view)?);
                match step.world() {
                    1 => bindings.insert(&name, held),
                    _ => bindings.insert_on_rank(&name, rank, held),
                }
            }
            let op = Op::input(&name, ty.dtype, ty.shape.clone());
            operands.push(Value { node: part.add(op, &[], BTreeSet::new())?, result: 0 });
        }
        let copy = part.add(node.op.clone(), &operands, node.sources.clone())?;
        for result in 0..node.types.len() as u32 {
            part.output(&format!("result{result}"), OutputKind::Result, Value { node: copy, result });
        }
        part = spread_over(part, step.world())?;
        let outputs = interpret_ranks::<F64>(&part, &self.dims, &bindings, &Options::default())?;
        let of =
            |result: usize| outputs.iter().map(|rank| rank.values().nth(result).map_or(Vec::new(), reals)).collect();
        Ok(node.types.iter().cloned().enumerate().map(|(result, ty)| (ty, of(result))).collect())
    }

    /// Copies what computes a static value, and binds the weights it reads.
    fn fixed(&self, value: Value, part: &mut Graph, bindings: &mut Bindings) -> Result<Value, CompileError> {
        let node = self.planned.graph.node(value.node);
        if let Op::Weight { name, dtype, .. } = &node.op {
            let bytes = self.subject.checkpoint.shared_bytes(name);
            let missing = || CompileError::option(name.to_string(), "there is no tensor of this name");
            let shape: Vec<usize> = node.types.first().map(|t| self.shape(t)).unwrap_or_default();
            bindings.insert(name, Binding::encoded(&shape, *dtype, bytes.ok_or_else(missing)?));
        }
        let operands = node.operands.iter().map(|v| self.fixed(*v, part, bindings)).collect::<Result<Vec<_>, _>>()?;
        Ok(Value { node: part.add(node.op.clone(), &operands, node.sources.clone())?, ..value })
    }

    fn shape(&self, ty: &TensorType) -> Vec<usize> {
        let size = |d: &Dim| match d {
            Dim::Const(n) => *n as usize,
            Dim::Sym(s) => self.dims.get(&**s).copied().unwrap_or(1) as usize,
        };
        ty.shape.iter().map(size).collect()
    }

    /// The values of a view on a rank, row-major.
    fn load(&self, step: &Step<'_>, rank: usize, ty: &TensorType, view: &View) -> Result<Vec<f64>, CompileError> {
        let (plan, externals) = (&self.planned.plan, &self.planned.externals);
        let index = |list: &[External], places: &[u32], name: &Arc<str>| {
            let at = list.iter().position(|e| e.name == *name).and_then(|at| places.get(at).copied());
            at.ok_or_else(|| other(&format!("there is no buffer {name}")))
        };
        let region = match &view.region {
            Region::Arena => Place::Arena,
            Region::State(name) => Place::State(index(&plan.states, &externals.states, name)?),
            Region::Input(name) => Place::Input(index(&plan.inputs, &externals.inputs, name)?),
            Region::Output(name) => Place::Output(index(&plan.outputs, &externals.outputs, name)?),
            Region::Weights(_) => return Err(other("a kernel writes to weights")),
        };
        let size = ty.dtype.block_bytes();
        let mut packed = Vec::new();
        for offset in offsets(ty.dtype, &self.shape(ty), &self.strides(view, ty)) {
            packed.extend_from_slice(step.read(rank, region, view.offset as usize + offset, size)?);
        }
        decode(ty.dtype, &packed)
    }

    /// Strides of a view; inputs lie as the caller gave them, without room for their dims' maximum.
    fn strides(&self, view: &View, ty: &TensorType) -> Vec<u64> {
        if !matches!(view.region, Region::Input(_)) {
            return view.strides.clone();
        }
        let shape = self.shape(ty);
        let mut strides = vec![1u64; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i] as u64;
        }
        strides
    }

    /// The logits of the step, by the plan's first output.
    fn logits(&self, step: &Step<'_>) -> Result<Vec<f64>, CompileError> {
        let Some(output) = self.planned.plan.outputs.first() else { return Ok(Vec::new()) };
        let view = View { region: Region::Output(output.name.clone()), offset: 0, strides: output.strides.clone() };
        self.load(step, 0, &output.ty, &view)
    }

    fn differs(
        &self,
        (launch, launches): (usize, usize),
        (rank, turn, result): (usize, usize, usize),
        ty: &TensorType,
        expected: &[f64],
        found: &[f64],
    ) -> Option<Difference> {
        // f32 sums in any order and polynomials of f32, beside one rounding to the result's dtype.
        let bound = if ty.dtype.is_float() { 1e-4 + 2.0 * spacing(ty.dtype) } else { 0.0 };
        let scale = expected.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
        let beyond = |(x, y): (&f64, &f64)| {
            let d = (x - y).abs() / scale;
            d.is_nan() || d > bound
        };
        let at = expected.iter().zip(found).position(beyond)?;
        let mut rest = at;
        let mut element: Vec<usize> = Vec::new();
        for size in self.shape(ty).iter().rev() {
            element.insert(0, rest % size);
            rest /= size;
        }
        let graph = &self.planned.graph;
        let (op, operands, results, paths) = match &self.planned.plan.steps[turn].kind {
            StepKind::Kernel(id) => {
                let node = graph.node(*id);
                let operands = node.operands.iter().map(|v| graph.type_of(*v).to_string()).collect::<Vec<_>>();
                (node.op.kind().to_string(), operands, node.types.clone(), &node.sources)
            }
            StepKind::Copy { value, ty } => {
                ("copy".to_owned(), vec![ty.to_string()], vec![ty.clone()], &graph.node(value.node).sources)
            }
        };
        let results: Vec<String> = results.iter().map(ToString::to_string).collect();
        let program = self.subject.artifact.manifest().programs.get(self.program);
        let variants = program.and_then(|p| p.entries.get(self.subject.entry)).map_or(&[][..], |e| &e.variants);
        let launched = variants.iter().find(|v| v.launches.len() == self.turns.len() && v.name == self.planned.name);
        let kernel =
            launched.and_then(|v| v.launches.get(launch)).and_then(|l| program?.kernels.get(l.kernel as usize));
        Some(Difference {
            variant: self.planned.name.clone(),
            launch,
            launches,
            kernel: kernel.map_or_else(String::new, |k| format!("{} ({})", k.name, k.summary)),
            paths: paths.iter().map(ToString::to_string).collect(),
            op,
            types: format!("{} -> {}", operands.join(", "), results.join(", ")),
            rank,
            result,
            element,
            expected: expected.get(at).copied().unwrap_or(f64::NAN),
            found: found.get(at).copied().unwrap_or(f64::NAN),
            apart: apart(expected, found),
            bound,
        })
    }
}

/// The part as a graph of `world` ranks, where no op of it says so: a value that nothing needs does.
fn spread_over(mut part: Graph, world: usize) -> Result<Graph, IrError> {
    if part.world() as usize != world {
        let op = Op::Constant { value: Real(0.0), dtype: DType::F32 };
        let zero = Value { node: part.add(op, &[], BTreeSet::new())?, result: 0 };
        let world = i64::try_from(world).unwrap_or(i64::MAX);
        part.add(Op::AllReduce { world }, &[zero], BTreeSet::new())?;
    }
    Ok(part)
}

fn reals(tensor: &Tensor<f64>) -> Vec<f64> {
    match tensor.as_ints() {
        Some(ints) => ints.iter().map(|n| *n as f64).collect(),
        None => tensor.as_values().unwrap_or(&[]).to_vec(),
    }
}

fn binding(dtype: DType, shape: &[usize], values: Vec<f64>) -> Binding {
    match dtype.is_float() {
        true => Binding::f64(shape, values),
        false => Binding::ints(shape, values.iter().map(|v| *v as i64).collect()),
    }
}

/// Byte offsets of the elements, or blocks, of a physical buffer, row-major.
fn offsets(dtype: DType, shape: &[usize], strides: &[u64]) -> Vec<usize> {
    let block = dtype.block_elements();
    let mut at = vec![0usize];
    for (i, (size, stride)) in shape.iter().zip(strides).enumerate() {
        let (size, stride) = match i + 1 == shape.len() {
            true => (size.div_ceil(block), *stride as usize * block),
            false => (*size, *stride as usize),
        };
        at = at.iter().flat_map(|base| (0..size).map(move |n| base + n * stride)).collect();
    }
    at.into_iter().map(|element| element / block * dtype.block_bytes()).collect()
}

/// Stored elements as reals.
fn decode(dtype: DType, bytes: &[u8]) -> Result<Vec<f64>, CompileError> {
    let size = dtype.block_bytes();
    if !dtype.is_float() {
        let signed = matches!(dtype, DType::I8 | DType::I32);
        let int = |b: &[u8]| {
            let word = b.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
            let unused = 64 - 8 * b.len() as u32;
            if signed { (((word << unused) as i64) >> unused) as f64 } else { word as f64 }
        };
        return Ok(bytes.chunks_exact(size).map(int).collect());
    }
    let elements = bytes.len() / size * dtype.block_elements();
    let broken = |e: codec::CodecError| IrError::InvalidGraph { path: "launch".into(), message: e.to_string() };
    Ok(codec::decode_vec(dtype, bytes, elements).map_err(broken)?.into_iter().map(f64::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_follow_strides_and_blocks() {
        assert_eq!(offsets(DType::F32, &[2, 3], &[8, 2]), [0, 8, 16, 32, 40, 48]);
        assert_eq!(offsets(DType::F32, &[], &[]), [0]);
        let block = DType::Q8A.block_bytes();
        assert_eq!(offsets(DType::Q8A, &[2, 64], &[128, 1]), [0, block, 4 * block, 5 * block]);
    }

    #[test]
    fn integers_keep_their_sign() {
        assert_eq!(decode(DType::I32, &(-3i32).to_le_bytes()).unwrap(), [-3.0]);
        assert_eq!(decode(DType::U8, &[250]).unwrap(), [250.0]);
    }
}
