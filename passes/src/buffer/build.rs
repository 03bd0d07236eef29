//! Steps, from the leaves on: views become strides, kernels become steps, and slots that were refused become copies.

use super::layout::{self, Padding};
use super::places::{Draft, DraftStep, Read, Refused, Slot};
use super::{BufferError, Region, StepKind};
use std::collections::{BTreeMap, BTreeSet};
use weldment_ir::{Category, IrError, NodeId, Op, TensorType, Value};

/// State of the forward walk.
struct StepMaker<'d, 'a> {
    draft: &'d mut Draft<'a>,
    /// For each node, the steps after which its results are complete.
    providers: Vec<BTreeSet<usize>>,
    /// For each node, the state version whose memory its result is.
    versions: Vec<Option<Value>>,
    /// Contiguous copies made for kernels that refuse a view, with their steps.
    materialised: BTreeMap<Value, (Read, usize)>,
    /// Versions that a write has already taken over.
    taken: BTreeSet<Value>,
    /// States that get their final value by a copy.
    trades: BTreeSet<usize>,
}

/// Fills `draft.steps`, with read-after-write order.
pub(super) fn steps(draft: &mut Draft<'_>) -> Result<(), BufferError> {
    let graph = draft.graph;
    let count = graph.len();
    let mut b = StepMaker {
        draft,
        providers: vec![BTreeSet::new(); count],
        versions: vec![None; count],
        materialised: BTreeMap::new(),
        taken: BTreeSet::new(),
        trades: BTreeSet::new(),
    };
    for id in graph.ids() {
        if !b.draft.live[id.index()] || b.draft.fixed[id.index()] {
            continue;
        }
        let op = &graph.node(id).op;
        match (op, op.kind().info().category) {
            (Op::State { name, .. }, _) => b.versions[id.index()] = b.draft.leaves.get(name).copied(),
            // A leaf with operands is as good as its operands: a rope table by factors of the step is computed in the step.
            (_, Category::Leaf) if graph.node(id).operands.is_empty() => {}
            (Op::Concat { .. }, _) => b.concat(id)?,
            (_, Category::View) => b.view(id)?,
            (_, Category::StateWrite) => b.state_write(id)?,
            _ => {
                b.kernel(id, None)?;
            }
        }
    }
    for refused in std::mem::take(&mut b.draft.results) {
        b.copy_refused(&refused)?;
    }
    b.trades = b.draft.finals.iter().map(|refused| refused.slot.buffer).collect();
    for refused in std::mem::take(&mut b.draft.finals) {
        b.final_state(&refused)?;
    }
    Ok(())
}

impl StepMaker<'_, '_> {
    /// How a step reads `v`; a static value gets its place in the weights here.
    fn read(&mut self, v: Value) -> Result<Read, BufferError> {
        let ty = self.draft.graph.type_of(v).clone();
        let slot = match self.draft.place(v) {
            Some(slot) => slot.clone(),
            None => {
                let slot = self.draft.buffer(Region::Weights(v), &ty, Padding::None)?;
                *self.draft.place_mut(v) = Some(slot.clone());
                slot
            }
        };
        Ok(Read { value: v, ty, slot, version: self.versions[v.node.index()] })
    }

    fn push(&mut self, kind: StepKind, reads: Vec<Read>, writes: Vec<Slot>) -> usize {
        let after = reads.iter().flat_map(|r| self.providers[r.value.node.index()].iter().copied()).collect();
        self.draft.steps.push(DraftStep { kind, reads, writes, after, scratch: None, copy: None });
        self.draft.steps.len() - 1
    }

    /// A counted copy of `read` to `slot`.
    fn copy(&mut self, read: Read, slot: Slot, source: String, reason: String) -> Result<usize, BufferError> {
        let bytes = self.draft.bytes(&read.ty)?;
        let kind = StepKind::Copy { value: read.value, ty: read.ty.clone() };
        let step = self.push(kind, vec![read], vec![slot]);
        self.draft.steps[step].copy = Some((source, reason, bytes));
        Ok(step)
    }

    fn copy_refused(&mut self, refused: &Refused) -> Result<usize, BufferError> {
        let read = self.read(refused.value)?;
        self.copy(read, refused.slot.clone(), refused.source.clone(), refused.reason.clone())
    }

    fn concat(&mut self, id: NodeId) -> Result<(), BufferError> {
        let operands = self.draft.graph.node(id).operands.clone();
        for (operand, v) in operands.iter().enumerate() {
            match self.draft.parts.get(&(id, operand)).cloned() {
                Some(refused) => {
                    let step = self.copy_refused(&refused)?;
                    self.providers[id.index()].insert(step);
                }
                None => {
                    let from = self.providers[v.node.index()].clone();
                    self.providers[id.index()].extend(from);
                }
            }
        }
        Ok(())
    }

    fn view(&mut self, id: NodeId) -> Result<(), BufferError> {
        let graph = self.draft.graph;
        let (node, v) = (graph.node(id), Value { node: id, result: 0 });
        let (operand, ty) = (node.operands[0], &node.types[0]);
        if self.draft.place(v).is_some() {
            // The operand's producer took the slot that this view was offered.
            self.providers[id.index()] = self.providers[operand.node.index()].clone();
            return Ok(());
        }
        let from = self.read(operand)?;
        if let Some(slot) = alias(&node.op, &from, ty) {
            self.providers[id.index()] = self.providers[operand.node.index()].clone();
            self.versions[id.index()] = from.version;
            *self.draft.place_mut(v) = Some(slot);
            return Ok(());
        }
        let slot = self.draft.buffer(Region::Arena, ty, Padding::Every)?;
        *self.draft.place_mut(v) = Some(slot.clone());
        let reason = format!("{} of a view that no strides express", node.op.kind());
        let source = self.draft.source(id);
        let step = match layout::reshape(&ty.shape, &slot.strides, &from.ty.shape) {
            Some(strides) => self.copy(from, Slot { strides, ..slot }, source, reason)?,
            None => {
                // A symbol moves across constants: only the op itself knows the order of elements.
                let bytes = self.draft.bytes(ty)?;
                let step = self.push(StepKind::Kernel(id), vec![from], vec![slot]);
                self.draft.steps[step].copy = Some((source, reason, bytes));
                step
            }
        };
        self.providers[id.index()].insert(step);
        Ok(())
    }

    /// A step for node `id`; `first` stands for operand 0 where that is a state version.
    fn kernel(&mut self, id: NodeId, first: Option<Read>) -> Result<usize, BufferError> {
        let graph = self.draft.graph;
        let node = graph.node(id);
        let mut reads = Vec::with_capacity(node.operands.len());
        let mut copies = BTreeSet::new();
        for (i, v) in node.operands.iter().enumerate() {
            if let (0, Some(read)) = (i, &first) {
                reads.push(read.clone());
                continue;
            }
            let read = self.read(*v)?;
            let plain = self.draft.fixed[v.node.index()];
            match self.draft.needs.read(&node.op, i, &read.ty, &read.slot.strides) {
                Err(reason) if !plain => {
                    let (read, step) = self.materialise(id, i, read, &reason)?;
                    copies.insert(step);
                    reads.push(read);
                }
                _ => reads.push(read),
            }
        }
        let writes = (0..node.types.len())
            .filter_map(|result| self.draft.place(Value { node: id, result: result as u32 }).cloned())
            .collect();
        let step = self.push(StepKind::Kernel(id), reads, writes);
        self.draft.steps[step].after.extend(copies);
        let scratch = self.draft.needs.scratch(graph, id);
        if scratch > 0 {
            self.draft.buffers.push(super::places::Buffer { region: Region::Arena, bytes: scratch });
            self.draft.steps[step].scratch = Some(self.draft.buffers.len() - 1);
        }
        self.providers[id.index()].insert(step);
        Ok(step)
    }

    /// A contiguous copy of `read` for a kernel that cannot address its strides; shared by later readers.
    fn materialise(
        &mut self,
        id: NodeId,
        operand: usize,
        read: Read,
        reason: &str,
    ) -> Result<(Read, usize), BufferError> {
        if let Some(known) = self.materialised.get(&read.value) {
            return Ok(known.clone());
        }
        let slot = self.draft.buffer(Region::Arena, &read.ty, Padding::Every)?;
        let copied = Read { slot: slot.clone(), version: None, ..read.clone() };
        let source = self.draft.source(id);
        let step = self.copy(read, slot, source, format!("operand {operand}: {reason}"))?;
        self.materialised.insert(copied.value, (copied.clone(), step));
        Ok((copied, step))
    }

    fn state_write(&mut self, id: NodeId) -> Result<(), BufferError> {
        let operand = self.draft.graph.node(id).operands[0];
        let v = Value { node: id, result: 0 };
        let from = self.read(operand)?;
        // Only the state itself or another write's result can be written in place, not a view of one.
        let op = &self.draft.graph.node(operand.node).op;
        let whole = matches!(op, Op::State { .. }) || op.kind().info().category == Category::StateWrite;
        let version = from.version.filter(|_| whole);
        let owned = version.filter(|version| {
            let in_state = matches!(self.draft.buffers[from.slot.buffer].region, Region::State(_));
            let mine = if in_state { self.draft.spine.contains(&id) } else { !self.taken.contains(version) };
            mine && !self.taken.contains(version)
        });
        if let Some(version) = owned {
            self.taken.insert(version);
            *self.draft.place_mut(v) = Some(from.slot.clone());
            let step = self.kernel(id, Some(from))?;
            self.draft.in_place.push((step, version));
        } else {
            let slot = self.draft.buffer(Region::Arena, &from.ty, Padding::Every)?;
            let copied = Read { slot: slot.clone(), version: None, ..from.clone() };
            let reason = match version {
                Some(_) => "a state version with a second writer, or not on the way to the final version",
                None => "a write to a value that is not a state",
            };
            let source = self.draft.source(id);
            let copy = self.copy(from, slot.clone(), source, reason.to_owned())?;
            *self.draft.place_mut(v) = Some(slot);
            let step = self.kernel(id, Some(copied))?;
            self.draft.steps[step].after.insert(copy);
        }
        self.versions[id.index()] = Some(v);
        Ok(())
    }

    /// Copies a final value into its state, after all that touches the state's memory.
    fn final_state(&mut self, refused: &Refused) -> Result<(), BufferError> {
        let mut read = self.read(refused.value)?;
        let mut first = None;
        if self.trades.contains(&read.slot.buffer) {
            // By way of the arena, so that states may trade places.
            let slot = self.draft.buffer(Region::Arena, &read.ty, Padding::Every)?;
            let copied = Read { slot: slot.clone(), version: None, ..read.clone() };
            first = Some(self.copy(read, slot, refused.source.clone(), refused.reason.clone())?);
            read = copied;
        }
        let last = self.copy(read, refused.slot.clone(), refused.source.clone(), refused.reason.clone())?;
        self.draft.steps[last].after.extend(first);
        Ok(())
    }
}

/// The slot of a view op's result over its operand's bytes.
fn alias(op: &Op, from: &Read, ty: &TensorType) -> Option<Slot> {
    let strides = &from.slot.strides;
    let (offset, strides) = match op {
        Op::Reshape { .. } => (0, layout::reshape(&from.ty.shape, strides, &ty.shape)?),
        Op::Transpose { permutation } => (0, layout::transpose(strides, permutation)?),
        Op::Broadcast { .. } => (0, layout::broadcast(&from.ty.shape, strides, &ty.shape)?),
        Op::Slice { axis, start, .. } => {
            let stride = strides.get(usize::try_from(*axis).ok()?)?;
            let elements = stride.checked_mul(u64::try_from(*start).ok()?)?;
            (layout::byte_offset(ty.dtype, elements)?, strides.clone())
        }
        _ => return None,
    };
    let offset = from.slot.offset.checked_add(offset)?;
    layout::whole_blocks(ty.dtype, &ty.shape, &strides).then_some(Slot { buffer: from.slot.buffer, offset, strides })
}

impl Draft<'_> {
    /// Bytes of `ty` at the maximum of its dims.
    pub fn bytes(&self, ty: &TensorType) -> Result<u64, BufferError> {
        let dims = layout::physical_dims(self.graph, ty, Padding::None)?;
        Ok(ty.dtype.byte_size(&dims).map_err(IrError::from)?)
    }
}
