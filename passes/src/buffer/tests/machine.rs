//! Plans are run on simulated memory: every byte knows which element of which type it is a part of, garbage lies where nothing was
//! written and in the surplus rows, the steps of an epoch run in either order, and each kernel is the interpreter's.

use super::super::*;
use std::collections::{BTreeMap, BTreeSet};
use weldment_ir::generate::{Random, random_bindings};
use weldment_ir::interpret::{Bindings, Data, F64, Options, Tensor, interpret_all, interpret_node};
use weldment_ir::{Category, DType, Dim, OutputKind};

/// What a byte holds: the elements of one block (one element, of plain dtypes) and which of its bytes this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    /// Bits of a plain element; an index into `Memory::blocks` of a block.
    payload: u64,
    dtype: DType,
    /// Byte of the block; `GARBAGE` where nothing was written.
    part: u16,
}

const GARBAGE: u16 = u16::MAX;

/// A graph's meaning: every value, computed without a plan.
pub struct Pure<'a> {
    pub graph: &'a Graph,
    pub dims: BTreeMap<String, u64>,
    bindings: Bindings,
    options: Options,
    values: Vec<Vec<Tensor<f64>>>,
}

impl<'a> Pure<'a> {
    /// Evaluates `graph` on random inputs.
    pub fn new(graph: &'a Graph, dims: BTreeMap<String, u64>, seed: u64) -> Pure<'a> {
        let bindings = random_bindings(graph, &dims, seed).unwrap_or_else(|e| panic!("{e}\n{graph}"));
        let options = Options::default();
        let values = interpret_all::<F64>(graph, &dims, &bindings, &options).unwrap_or_else(|e| panic!("{e}\n{graph}"));
        Pure { graph, dims, bindings, options, values }
    }

    fn bits(&self, v: Value) -> Vec<u64> {
        bits(&self.values[v.node.index()][v.result as usize])
    }

    fn sizes(&self, ty: &TensorType) -> Vec<u64> {
        let size = |dim: &Dim| match dim {
            Dim::Const(n) => *n,
            Dim::Sym(s) => self.dims[s.as_ref()],
        };
        ty.shape.iter().map(size).collect()
    }
}

fn bits(t: &Tensor<f64>) -> Vec<u64> {
    match t.as_ints() {
        Some(ints) => ints.iter().map(|n| *n as u64).collect(),
        None => t.decoded::<F64>().expect("reals").iter().map(|x| x.to_bits()).collect(),
    }
}

/// One execution of a plan.
pub struct Machine<'a> {
    pure: &'a Pure<'a>,
    plan: &'a BufferPlan,
    needs: &'a dyn KernelNeeds,
    memory: BTreeMap<Region, Vec<Cell>>,
    blocks: Vec<Vec<u64>>,
    garbage: Random,
    /// Every read is compared with the pure value.
    strict: bool,
}

type Outcome = Result<(), String>;

/// Indices of a box, row-major.
fn indices(dims: &[u64], mut visit: impl FnMut(&[u64]) -> Outcome) -> Outcome {
    if dims.contains(&0) {
        return Ok(());
    }
    let mut index = vec![0u64; dims.len()];
    loop {
        visit(&index)?;
        let Some(axis) = (0..dims.len()).rev().find(|k| index[*k] + 1 < dims[*k]) else { return Ok(()) };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}

/// Dims in blocks: of block formats the last one counts blocks.
fn in_blocks(dtype: DType, dims: &[u64]) -> Vec<u64> {
    let mut out = dims.to_vec();
    if let Some(last) = out.last_mut() {
        *last = last.div_ceil(dtype.block_elements() as u64);
    }
    out
}

/// First byte of a block.
fn address(dtype: DType, view: &View, index: &[u64]) -> Option<usize> {
    let (block, bytes) = (dtype.block_elements() as u64, dtype.block_bytes() as u64);
    let mut at = view.offset;
    for (axis, (i, stride)) in index.iter().zip(&view.strides).enumerate() {
        let elements = if axis + 1 == index.len() && block > 1 { i * block * stride } else { i * stride };
        at = at.checked_add((elements / block).checked_mul(bytes)?)?;
    }
    usize::try_from(at).ok()
}

impl<'a> Machine<'a> {
    /// Memory before the first step: inputs, states and static values in place, garbage elsewhere.
    pub fn new(
        pure: &'a Pure<'a>,
        plan: &'a BufferPlan,
        needs: &'a dyn KernelNeeds,
        strict: bool,
    ) -> Result<Self, String> {
        let mut machine =
            Machine { pure, plan, needs, memory: BTreeMap::new(), blocks: Vec::new(), garbage: Random::new(7), strict };
        let graph = pure.graph;
        machine.allocate(Region::Arena, plan.arena_bytes);
        for (list, region) in [
            (&plan.inputs, Region::Input as fn(Arc<str>) -> Region),
            (&plan.states, Region::State),
            (&plan.outputs, Region::Output),
        ] {
            for e in list {
                machine.allocate(region(e.name.clone()), e.bytes);
            }
        }
        for id in graph.ids() {
            let v = Value { node: id, result: 0 };
            let (external, region) = match &graph.node(id).op {
                Op::Input { name, .. } => (plan.inputs.iter().find(|e| e.name == *name), Region::Input(name.clone())),
                Op::State { name, .. } => (plan.states.iter().find(|e| e.name == *name), Region::State(name.clone())),
                _ => continue,
            };
            let external = external.ok_or("an undeclared input or state")?;
            let view = View { region, offset: 0, strides: external.strides.clone() };
            machine.write(graph.type_of(v), &view, &pure.bits(v), false)?;
        }
        for v in &plan.hoisted {
            let ty = graph.type_of(*v);
            let dims = ty.constant_shape().ok_or("a static value of symbolic shape")?;
            machine.allocate(Region::Weights(*v), ty.dtype.byte_size(&dims).map_err(|e| e.to_string())?);
            let mut strides = vec![1; dims.len()];
            (1..dims.len()).rev().for_each(|k| strides[k - 1] = strides[k] * dims[k]);
            let view = View { region: Region::Weights(*v), offset: 0, strides };
            machine.write(ty, &view, &pure.bits(*v), false)?;
        }
        Ok(machine)
    }

    fn allocate(&mut self, region: Region, bytes: u64) {
        let cell = Cell { payload: 0, dtype: DType::U8, part: GARBAGE };
        self.memory.insert(region, vec![cell; bytes as usize]);
    }

    /// Something that no value is, but that every kernel can compute with.
    fn rubbish(&mut self, dtype: DType) -> u64 {
        let n = self.garbage.below(1 << 20);
        if dtype.is_float() { (n as f64 * 1.37 + 1e3).to_bits() } else { n + 1000 }
    }

    /// Fills bytes with garbage.
    fn spoil(&mut self, region: &Region, start: u64, bytes: u64) -> Outcome {
        let memory = self.memory.get_mut(region).ok_or("no such region")?;
        let range = memory.get_mut(start as usize..(start + bytes) as usize).ok_or("outside the region")?;
        range.iter_mut().for_each(|cell| cell.part = GARBAGE);
        Ok(())
    }

    /// Elements at a view; garbage where the bytes are not whole elements of this type, or lie in `torn`.
    fn read(&mut self, ty: &TensorType, view: &View, torn: &BTreeSet<usize>) -> Result<Vec<u64>, String> {
        let dims = self.pure.sizes(ty);
        let (block, bytes) = (ty.dtype.block_elements(), ty.dtype.block_bytes());
        let memory = self.memory.get(&view.region).ok_or("no such region")?;
        let mut found: Vec<Option<u64>> = Vec::new();
        indices(&in_blocks(ty.dtype, &dims), |index| {
            let at = address(ty.dtype, view, index).ok_or("an address overflows")?;
            let cells = memory.get(at..at + bytes).ok_or_else(|| format!("read at {at} outside {:?}", view.region))?;
            let whole = cells.iter().enumerate().all(|(part, cell)| {
                (cell.payload, cell.dtype, cell.part as usize) == (cells[0].payload, ty.dtype, part)
                    && !torn.contains(&(at + part))
            });
            found.push(whole.then_some(cells[0].payload));
            Ok(())
        })?;
        let mut out = Vec::with_capacity(found.len() * block);
        for payload in found {
            match payload {
                Some(payload) if block == 1 => out.push(payload),
                Some(payload) => out.extend_from_slice(&self.blocks[payload as usize]),
                None => (0..block).for_each(|_| out.push(self.rubbish(ty.dtype))),
            }
        }
        Ok(out)
    }

    /// Writes elements, and garbage into the surplus rows.
    fn write(&mut self, ty: &TensorType, view: &View, elements: &[u64], surplus: bool) -> Outcome {
        let dims = in_blocks(ty.dtype, &self.pure.sizes(ty));
        let mut padded = dims.clone();
        for (size, dim) in padded.iter_mut().zip(&ty.shape) {
            if surplus && dim.constant().is_none() {
                *size = size.next_multiple_of(ROW_MULTIPLE);
            }
        }
        let (block, bytes) = (ty.dtype.block_elements(), ty.dtype.block_bytes());
        let memory = self.memory.get_mut(&view.region).ok_or("no such region")?;
        let blocks = &mut self.blocks;
        // Surplus rows first: which rows of two results a kernel writes last is not known.
        for inside in [false, true] {
            let mut next = 0;
            indices(&padded, |index| {
                if index.iter().zip(&dims).all(|(i, d)| i < d) != inside {
                    return Ok(());
                }
                let at = address(ty.dtype, view, index).ok_or("an address overflows")?;
                let cells = memory.get_mut(at..at + bytes);
                let cells = cells.ok_or_else(|| format!("write at {at} outside {:?}", view.region))?;
                let mut payload = 0;
                if inside && block == 1 {
                    payload = elements[next];
                } else if inside {
                    blocks.push(elements[next..next + block].to_vec());
                    payload = blocks.len() as u64 - 1;
                }
                next += if inside { block } else { 0 };
                for (part, cell) in cells.iter_mut().enumerate() {
                    let part = if inside { part as u16 } else { GARBAGE };
                    *cell = Cell { payload, dtype: ty.dtype, part };
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Bytes of a view at the largest of the dims that a kernel may write.
    fn touched(&self, ty: &TensorType, view: &View) -> BTreeSet<usize> {
        let mut out = BTreeSet::new();
        let walked = indices(&in_blocks(ty.dtype, &self.pure.sizes(ty)), |index| {
            let at = address(ty.dtype, view, index).ok_or("an address overflows")?;
            out.extend(at..at + ty.dtype.block_bytes());
            Ok(())
        });
        walked.map_or_else(|_| BTreeSet::new(), |()| out)
    }

    /// What a step may not read: its own results' bytes, unless its kernel is made to share these.
    fn torn(&self, step: &Step, results: &[TensorType], operand: usize) -> BTreeSet<usize> {
        let StepKind::Kernel(id) = &step.kind else { return BTreeSet::new() };
        let read = &step.reads[operand];
        let mut out = BTreeSet::new();
        for (r, (write, ty)) in step.writes.iter().zip(results).enumerate() {
            let write_in_place = self.pure.graph.node(*id).op.kind().info().category == Category::StateWrite;
            let shared = if write_in_place {
                (operand, r) == (0, 0)
            } else {
                self.needs.shares(self.pure.graph, *id, operand, r)
            };
            if write.region == read.region && !(shared && read == write) {
                out.extend(self.touched(ty, write));
            }
        }
        out
    }

    fn step(&mut self, step: &Step) -> Outcome {
        let graph = self.pure.graph;
        let (operands, results): (Vec<Value>, Vec<TensorType>) = match &step.kind {
            StepKind::Kernel(id) => (graph.node(*id).operands.clone(), graph.node(*id).types.clone()),
            StepKind::Copy { value, ty } => (vec![*value], vec![ty.clone()]),
        };
        if (operands.len(), results.len()) != (step.reads.len(), step.writes.len()) {
            return Err("a step with other operands or results than its node".into());
        }
        let scratch = match (&step.kind, step.scratch) {
            (StepKind::Kernel(id), Some(at)) => Some((at, self.needs.scratch(graph, *id))),
            (StepKind::Kernel(id), None) if self.needs.scratch(graph, *id) > 0 => return Err("no scratch".into()),
            _ => None,
        };
        if let Some((at, bytes)) = scratch {
            self.spoil(&Region::Arena, at, bytes)?;
        }
        let mut tensors = Vec::new();
        for (i, (v, view)) in operands.iter().zip(&step.reads).enumerate() {
            let ty = graph.type_of(*v);
            let torn = self.torn(step, &results, i);
            let found = self.read(ty, view, &torn)?;
            if self.strict && found != self.pure.bits(*v) {
                return Err(format!("operand {i} of {:?} is not %{} at {view:?}", step.kind, v.node.index()));
            }
            let shape: Vec<usize> = self.pure.sizes(ty).iter().map(|n| *n as usize).collect();
            tensors.push(match ty.dtype.is_float() {
                true => Tensor::values(ty.dtype, shape, found.into_iter().map(f64::from_bits).collect()),
                false => Tensor::ints(ty.dtype, shape, found.into_iter().map(|n| n as i64).collect()),
            });
        }
        let mut made: Vec<Vec<u64>> = match &step.kind {
            StepKind::Copy { .. } => tensors.iter().map(bits).collect(),
            StepKind::Kernel(id) => {
                let p = self.pure;
                let out = interpret_node::<F64>(graph, &p.dims, &p.bindings, &p.options, *id, tensors);
                out.map_err(|e| e.to_string())?.iter().map(bits).collect()
            }
        };
        if let StepKind::Kernel(id) = &step.kind
            && graph.node(*id).op.kind().info().category == Category::StateWrite
            && step.reads.first() != step.writes.first()
        {
            // Kernels write the rows of the step alone; the rest of the result would have to be there already.
            made = vec![made[0].iter().map(|_| self.rubbish(results[0].dtype)).collect()];
        }
        for ((view, ty), elements) in step.writes.iter().zip(&results).zip(&made) {
            if matches!(view.region, Region::Input(_) | Region::Weights(_)) {
                return Err("a write to memory that is only read".into());
            }
            self.write(ty, view, elements, matches!(view.region, Region::Arena | Region::Output(_)))?;
        }
        if let Some((at, bytes)) = scratch {
            self.spoil(&Region::Arena, at, bytes)?;
        }
        Ok(())
    }

    /// Runs the schedule, each epoch's steps from the last to the first if `backwards`, and compares what the caller finds.
    pub fn run(mut self, backwards: bool) -> Outcome {
        let steps = &self.plan.steps;
        let mut at = 0;
        while at < steps.len() {
            let end = (at + 1..steps.len()).find(|s| steps[*s].barrier).unwrap_or(steps.len());
            let mut order: Vec<usize> = (at..end).collect();
            if backwards {
                order.reverse();
            }
            for s in order {
                self.step(&steps[s]).map_err(|e| format!("step {s}: {e}"))?;
            }
            at = end;
        }
        let graph = self.pure.graph;
        for output in graph.outputs().iter().filter(|o| o.kind == OutputKind::Result) {
            let external = self.plan.outputs.iter().find(|e| e.name == output.name).ok_or("an output is missing")?;
            self.compare(output.value, Region::Output(output.name.clone()), external)?;
        }
        for external in &self.plan.states {
            let last = graph.outputs().iter().find(|o| o.kind == OutputKind::State && o.name == external.name);
            let leaf =
                graph.ids().find(|id| matches!(&graph.node(*id).op, Op::State { name, .. } if *name == external.name));
            let value =
                last.map(|o| o.value).or(leaf.map(|node| Value { node, result: 0 })).ok_or("an unknown state")?;
            self.compare(value, Region::State(external.name.clone()), external)?;
        }
        Ok(())
    }

    fn compare(&mut self, value: Value, region: Region, external: &External) -> Outcome {
        let view = View { region, offset: 0, strides: external.strides.clone() };
        let found = self.read(self.pure.graph.type_of(value), &view, &BTreeSet::new())?;
        if found == self.pure.bits(value) { Ok(()) } else { Err(format!("{} differs", external.name)) }
    }
}

/// Runs `plan` in both orders of every epoch and compares each read and result with the pure value, bit for bit.
pub fn execute(pure: &Pure<'_>, plan: &BufferPlan, needs: &dyn KernelNeeds, strict: bool) -> Outcome {
    for backwards in [false, true] {
        Machine::new(pure, plan, needs, strict)?.run(backwards)?;
    }
    Ok(())
}

/// Every symbol at the end of its range that `end` picks.
pub fn extreme(graph: &Graph, largest: bool) -> BTreeMap<String, u64> {
    graph.symbols().iter().map(|(name, r)| (name.to_string(), if largest { r.max } else { r.min })).collect()
}

#[test]
fn stored_data_is_read_back() {
    let t = Tensor::<f64> { dtype: DType::F32, shape: vec![2], data: Data::Single(Arc::new(vec![1.5, -2.0])) };
    assert_eq!(bits(&t), [1.5f64.to_bits(), (-2.0f64).to_bits()]);
}
