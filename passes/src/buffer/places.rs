//! Destinations, from the outputs back: each consumer that owns a slot (a graph result, a part of a concat) offers it to
//! the producer of its value, through the views in between. What is left gets a fresh arena buffer.

use super::layout::{self, Padding};
use super::{BufferError, External, KernelNeeds, Region, StepKind};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weldment_ir::{Category, Dim, Graph, IrError, NodeId, Op, OutputKind, SizeError, TensorType, Value};

/// A place whose arena offset is not known yet.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub buffer: usize,
    pub offset: u64,
    pub strides: Vec<u64>,
}

/// Memory of one lifetime. `region` is `Arena` for all that the arena pass places.
#[derive(Clone, Debug)]
pub(super) struct Buffer {
    pub region: Region,
    pub bytes: u64,
}

/// An operand as a step reads it.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub value: Value,
    pub ty: TensorType,
    pub slot: Slot,
    /// The state version whose memory this is.
    pub version: Option<Value>,
}

/// A step before scheduling.
#[derive(Clone, Debug)]
pub(super) struct DraftStep {
    pub kind: StepKind,
    pub reads: Vec<Read>,
    pub writes: Vec<Slot>,
    /// Steps that come first.
    pub after: BTreeSet<usize>,
    /// Scratch buffer.
    pub scratch: Option<usize>,
    /// Source path, reason and bytes, of copies.
    pub copy: Option<(String, String, u64)>,
}

/// A slot whose producer could not take it.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub value: Value,
    pub slot: Slot,
    pub source: String,
    pub reason: String,
}

/// Everything the stages of this pass share.
pub(super) struct Draft<'a> {
    pub graph: &'a Graph,
    pub needs: &'a dyn KernelNeeds,
    pub live: Vec<bool>,
    /// Static values of constant shape: computed before the first step.
    pub fixed: Vec<bool>,
    pub buffers: Vec<Buffer>,
    pub places: Vec<Vec<Option<Slot>>>,
    /// State writes on the way to their state's final version.
    pub spine: BTreeSet<NodeId>,
    /// Concat parts that need a copy, by concat and operand.
    pub parts: BTreeMap<(NodeId, usize), Refused>,
    /// Graph results that need a copy.
    pub results: Vec<Refused>,
    /// Final state values that are not the last in-place version: (value, state's slot).
    pub finals: Vec<Refused>,
    /// First leaf of each state name.
    pub leaves: BTreeMap<Arc<str>, Value>,
    pub inputs: Vec<External>,
    pub outputs: Vec<External>,
    pub states: Vec<External>,
    pub steps: Vec<DraftStep>,
    /// (state write step, the version it overwrites).
    pub in_place: Vec<(usize, Value)>,
}

impl Draft<'_> {
    /// First source path of a node, or its op's name.
    pub fn source(&self, id: NodeId) -> String {
        let node = self.graph.node(id);
        node.sources.first().map_or_else(|| node.op.kind().to_string(), ToString::to_string)
    }

    /// A new buffer for `ty`, with its row-major slot.
    pub fn buffer(&mut self, region: Region, ty: &TensorType, padding: Padding) -> Result<Slot, BufferError> {
        let dims = layout::physical_dims(self.graph, ty, padding)?;
        let bytes = ty.dtype.byte_size(&dims).map_err(|e| match e {
            SizeError::Overflow { .. } => BufferError::TooLarge(ty.to_string()),
            other => IrError::from(other).into(),
        })?;
        self.buffers.push(Buffer { region, bytes });
        Ok(Slot { buffer: self.buffers.len() - 1, offset: 0, strides: layout::contiguous(&dims) })
    }

    pub fn place_mut(&mut self, v: Value) -> &mut Option<Slot> {
        &mut self.places[v.node.index()][v.result as usize]
    }

    pub fn place(&self, v: Value) -> Option<&Slot> {
        self.places[v.node.index()][v.result as usize].as_ref()
    }

    /// Slot of part `operand` of the concat `id`, whose own slot is `whole`.
    fn part_slot(&self, id: NodeId, axis: usize, operand: usize, whole: &Slot) -> Result<Slot, BufferError> {
        let node = self.graph.node(id);
        let before = node.operands[..operand]
            .iter()
            .filter_map(|v| self.graph.type_of(*v).shape.get(axis).and_then(Dim::constant))
            .fold(0u64, u64::saturating_add);
        let dtype = node.types[0].dtype;
        let bytes = whole.strides.get(axis).and_then(|s| s.checked_mul(before));
        let bytes = bytes.and_then(|elements| layout::byte_offset(dtype, elements));
        let offset = bytes.and_then(|b| b.checked_add(whole.offset));
        let offset = offset.ok_or_else(|| IrError::from(SizeError::PartialBlock { dtype, last: before }))?;
        Ok(Slot { offset, ..whole.clone() })
    }

    /// Offers `slot` to the producer of `v`; on success `v` and the views on the way live there.
    fn offer(&mut self, v: Value, slot: &Slot) -> Result<(), String> {
        let mut chain: Vec<(Value, Slot)> = Vec::new();
        let (mut v, mut slot) = (v, slot.clone());
        loop {
            let (node, ty) = (self.graph.node(v.node), self.graph.type_of(v));
            match &node.op {
                _ if self.fixed[v.node.index()] => return Err("a static value".into()),
                Op::Input { .. } => return Err("a step input".into()),
                Op::Slice { .. } => return Err("a part of a larger value".into()),
                Op::Broadcast { .. } => return Err("a repeated value".into()),
                op if matches!(op, Op::State { .. }) || op.kind().info().category == Category::StateWrite => {
                    return Err("it lives in a state".into());
                }
                _ if self.place(v).is_some() => return Err("its producer already writes to another slot".into()),
                _ => {}
            }
            if !layout::whole_blocks(ty.dtype, &ty.shape, &slot.strides) {
                return Err(format!("{} blocks would be split", ty.dtype));
            }
            chain.push((v, slot.clone()));
            let operand_strides = match &node.op {
                Op::Concat { .. } => break,
                Op::Reshape { .. } => {
                    let operand = self.graph.type_of(node.operands[0]);
                    layout::reshape(&ty.shape, &slot.strides, &operand.shape)
                        .ok_or("the reshape before it cannot be expressed by strides")?
                }
                Op::Transpose { permutation } => {
                    layout::transpose_back(&slot.strides, permutation).ok_or("a bad permutation")?
                }
                op => {
                    self.needs.write(op, v.result as usize, ty, &slot.strides)?;
                    break;
                }
            };
            v = node.operands[0];
            slot.strides = operand_strides;
        }
        for (v, slot) in chain {
            *self.place_mut(v) = Some(slot);
        }
        Ok(())
    }
}

/// Static values of constant shape: functions of weights and constants alone. A value whose shape holds a symbol
/// (a broadcast scalar) depends on the step and is a view or a step.
fn fixed(graph: &Graph) -> Vec<bool> {
    let mut fixed: Vec<bool> = Vec::with_capacity(graph.len());
    for id in graph.ids() {
        let node = graph.node(id);
        let from_step = matches!(node.op, Op::Input { .. } | Op::State { .. })
            || node.op.kind().info().category == Category::StateWrite
            || node.op.communicates()
            || node.types.iter().any(|t| t.constant_shape().is_none());
        fixed.push(!from_step && node.operands.iter().all(|v| fixed[v.node.index()]));
    }
    fixed
}

/// Declares inputs and states: all of them, so that the signature does not depend on optimisation.
fn externals(draft: &mut Draft<'_>) -> Result<(), BufferError> {
    let graph = draft.graph;
    for id in graph.ids() {
        let v = Value { node: id, result: 0 };
        let ty = graph.type_of(v).clone();
        match &graph.node(id).op {
            Op::Input { name, .. } => {
                let slot = draft.buffer(Region::Input(name.clone()), &ty, Padding::Leading)?;
                let dense = layout::is_dense_input(graph, id);
                let external = External { dense, ..draft.external(name, ty, &slot) };
                draft.inputs.push(external);
                *draft.place_mut(v) = Some(slot);
            }
            Op::State { name, .. } => {
                let slot = match draft.leaves.get(name).and_then(|leaf| draft.place(*leaf)) {
                    Some(slot) => slot.clone(),
                    None => {
                        let mut slot = draft.buffer(Region::State(name.clone()), &ty, Padding::None)?;
                        if let Some(order) = draft.needs.state_order(graph, name) {
                            slot.strides = layout::reordered(&ty, &order)
                                .ok_or_else(|| BufferError::StateOrder(name.to_string(), order))?;
                        }
                        let external = draft.external(name, ty, &slot);
                        draft.states.push(external);
                        draft.leaves.insert(name.clone(), v);
                        slot
                    }
                };
                *draft.place_mut(v) = Some(slot);
            }
            Op::Weight { .. } if ty.constant_shape().is_none() => {
                let message = format!("weight of shape {ty}; constant dims are expected");
                return Err(IrError::InvalidGraph { path: draft.source(id), message }.into());
            }
            _ => {}
        }
    }
    Ok(())
}

impl Draft<'_> {
    fn external(&self, name: &Arc<str>, ty: TensorType, slot: &Slot) -> External {
        let (strides, bytes) = (slot.strides.clone(), self.buffers[slot.buffer].bytes);
        External { name: name.clone(), ty, strides, bytes, dense: false }
    }

    /// The in-place writes that lead from the state's leaf to its final value, or `None` if it comes from elsewhere.
    fn spine_of(&self, state: &str, value: Value) -> Option<Vec<NodeId>> {
        let mut writes = Vec::new();
        let mut at = value;
        loop {
            let node = self.graph.node(at.node);
            match &node.op {
                Op::State { name, .. } if **name == *state => return Some(writes),
                op if op.kind().info().category == Category::StateWrite && at.result == 0 => {
                    writes.push(at.node);
                    at = node.operands[0];
                }
                _ => return None,
            }
        }
    }

    fn outputs(&mut self) -> Result<(), BufferError> {
        let mut names = BTreeSet::new();
        for output in self.graph.outputs() {
            if !names.insert((output.kind == OutputKind::State, output.name.clone())) {
                return Err(BufferError::DuplicateOutput(output.name.to_string()));
            }
            let ty = self.graph.type_of(output.value).clone();
            let mut refused = Refused {
                value: output.value,
                slot: Slot { buffer: 0, offset: 0, strides: Vec::new() },
                source: output.name.to_string(),
                reason: String::new(),
            };
            if output.kind == OutputKind::Result {
                let slot = self.buffer(Region::Output(output.name.clone()), &ty, Padding::Every)?;
                let external = self.external(&output.name, ty, &slot);
                self.outputs.push(external);
                if let Err(reason) = self.offer(output.value, &slot) {
                    refused.reason = format!("result `{}`: {reason}", output.name);
                    refused.slot = slot;
                    self.results.push(refused);
                }
                continue;
            }
            let state = self.leaves.get(&output.name).copied();
            let (Some(leaf), Some(slot)) = (state, state.and_then(|leaf| self.place(leaf)).cloned()) else {
                let message = "an output of kind state without a state of that name".to_owned();
                return Err(IrError::InvalidGraph { path: output.name.to_string(), message }.into());
            };
            if *self.graph.type_of(leaf) != ty {
                let message = format!("final version is {ty}; {} is expected", self.graph.type_of(leaf));
                return Err(IrError::InvalidGraph { path: output.name.to_string(), message }.into());
            }
            if let Some(writes) = self.spine_of(&output.name, output.value) {
                self.spine.extend(writes);
            } else {
                refused.reason = format!("state `{}`: its final value is not a write to it", output.name);
                refused.slot = slot;
                self.finals.push(refused);
            }
        }
        Ok(())
    }
}

/// Chooses a place for every live value that a kernel or concat makes; states and views follow in `build`.
pub(super) fn assign<'a>(graph: &'a Graph, needs: &'a dyn KernelNeeds) -> Result<Draft<'a>, BufferError> {
    let mut draft = Draft {
        graph,
        needs,
        live: graph.live(),
        fixed: fixed(graph),
        buffers: Vec::new(),
        places: graph.ids().map(|id| vec![None; graph.node(id).types.len()]).collect(),
        spine: BTreeSet::new(),
        parts: BTreeMap::new(),
        results: Vec::new(),
        finals: Vec::new(),
        leaves: BTreeMap::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        states: Vec::new(),
        steps: Vec::new(),
        in_place: Vec::new(),
    };
    externals(&mut draft)?;
    draft.outputs()?;
    for id in graph.ids().rev() {
        if !draft.live[id.index()] || draft.fixed[id.index()] {
            continue;
        }
        let node = graph.node(id);
        let concat = match &node.op {
            Op::Concat { axis } => usize::try_from(*axis).ok(),
            op => match op.kind().info().category {
                Category::View | Category::StateWrite => continue,
                Category::Leaf if node.operands.is_empty() => continue,
                _ => None,
            },
        };
        for (result, ty) in node.types.iter().enumerate() {
            let v = Value { node: id, result: result as u32 };
            if draft.place(v).is_none() {
                let slot = draft.buffer(Region::Arena, ty, Padding::Every)?;
                *draft.place_mut(v) = Some(slot);
            }
        }
        let (Some(axis), Some(whole)) = (concat, draft.place(Value { node: id, result: 0 }).cloned()) else { continue };
        for (operand, v) in node.operands.iter().enumerate() {
            let slot = draft.part_slot(id, axis, operand, &whole)?;
            if let Err(reason) = draft.offer(*v, &slot) {
                let source = draft.source(id);
                let reason = format!("part {operand} of a concat: {reason}");
                draft.parts.insert((id, operand), Refused { value: *v, slot, source, reason });
            }
        }
    }
    Ok(draft)
}
