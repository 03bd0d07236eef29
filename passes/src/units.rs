//! Stamping: layers of the same shape are optimised once.
//!
//! The graph is cut into units at its borders ([`crate::cut`]). A unit refers to weights, states, inputs and other units'
//! values by slot; units that are equal as such are solved once.
//! Units are solved last to first: what a unit does first to a value it is given (a cast) becomes a demand on the unit
//! that computes it, so casts fuse into their producers across a border as they do within a unit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weldment_ir::{DType, Graph, NodeId, Op, OpKind, Range, TensorType, Value};

/// The form in which a value crosses a border.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Carried {
    /// As computed.
    Plain,
    /// Cast to this dtype.
    Cast(DType),
}

/// What a unit knows of a value that it does not compute.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Its type.
    pub ty: TensorType,
    /// `input`, `weight`, `state`, or `None` for a value of another unit.
    pub leaf: Option<OpKind>,
    /// True if it depends on weights and constants alone.
    pub fixed: bool,
    /// True if the unit that computes it can round it to q8a at no cost.
    pub rounds: bool,
}

/// An operand within a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operand {
    /// A slot, by index.
    Slot(u32),
    /// A result of a node of the unit.
    Local(u32, u32),
}

/// A node of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LocalNode {
    /// Op.
    pub op: Op,
    /// Operands.
    pub operands: Vec<Operand>,
}

/// A unit without names: what makes two units equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    /// Slots, in order of first use.
    pub slots: Vec<Slot>,
    /// Nodes, in topological order.
    pub nodes: Vec<LocalNode>,
    /// Values that leave the unit, and how.
    pub outputs: Vec<(Operand, Carried)>,
    /// Ranges of the graph's symbols.
    pub ranges: BTreeMap<Arc<str>, Range>,
}

/// A unit in its place.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The unit.
    pub unit: Unit,
    /// The original value of each slot.
    pub slots: Vec<Value>,
    /// The original node of each local node.
    pub nodes: Vec<NodeId>,
    /// The original value of each output.
    pub outputs: Vec<(Value, Carried)>,
}

/// Leaves are shared by all units and belong to none.
pub(crate) fn is_shared_leaf(op: &Op) -> bool {
    matches!(op, Op::Input { .. } | Op::Weight { .. } | Op::State { .. })
}

/// Describes the unit of `nodes`, whose values `demands` wants carried out of it.
pub fn describe(
    graph: &Graph,
    nodes: &[NodeId],
    fixed: &[bool],
    rounds: &dyn Fn(Value) -> bool,
    demands: &BTreeMap<Value, BTreeSet<Carried>>,
) -> Instance {
    let mut local: BTreeMap<NodeId, u32> = BTreeMap::new();
    let mut slot_of: BTreeMap<Value, u32> = BTreeMap::new();
    let (mut slots, mut values) = (Vec::new(), Vec::new());
    let mut out_nodes: Vec<LocalNode> = Vec::with_capacity(nodes.len());
    let mut originals: Vec<NodeId> = Vec::with_capacity(nodes.len());
    let within: BTreeSet<NodeId> = nodes.iter().copied().collect();
    for id in nodes {
        let node = graph.node(*id);
        let mut operands = Vec::with_capacity(node.operands.len());
        for v in &node.operands {
            if let Some(i) = local.get(&v.node) {
                operands.push(Operand::Local(*i, v.result));
                continue;
            }
            let producer = graph.node(v.node);
            // Scalars are given to each unit that reads them, as rules look at their values.
            if producer.op.kind() == OpKind::Constant && !within.contains(&v.node) {
                let i = out_nodes.len() as u32;
                out_nodes.push(LocalNode { op: producer.op.clone(), operands: Vec::new() });
                originals.push(v.node);
                local.insert(v.node, i);
                operands.push(Operand::Local(i, v.result));
                continue;
            }
            let slot = *slot_of.entry(*v).or_insert_with(|| {
                slots.push(Slot {
                    ty: graph.type_of(*v).clone(),
                    leaf: is_shared_leaf(&producer.op).then(|| producer.op.kind()),
                    fixed: fixed[v.node.index()],
                    rounds: rounds(*v),
                });
                values.push(*v);
                (slots.len() - 1) as u32
            });
            operands.push(Operand::Slot(slot));
        }
        local.insert(*id, out_nodes.len() as u32);
        originals.push(*id);
        out_nodes.push(LocalNode { op: node.op.clone(), operands });
    }
    let mut outputs = Vec::new();
    let mut places = Vec::new();
    for id in nodes {
        for result in 0..graph.node(*id).types.len() as u32 {
            let value = Value { node: *id, result };
            for form in demands.get(&value).into_iter().flatten() {
                outputs.push((Operand::Local(local[id], result), *form));
                places.push((value, *form));
            }
        }
    }
    let ranges = graph.symbols().iter().map(|(name, range)| (Arc::clone(name), *range)).collect();
    Instance {
        unit: Unit { slots, nodes: out_nodes, outputs, ranges },
        slots: values,
        nodes: originals,
        outputs: places,
    }
}

/// Notes that an operand's node is needed.
pub(crate) fn mark(needed: &mut [bool], operand: &Operand) {
    if let Operand::Local(i, _) = operand {
        needed[*i as usize] = true;
    }
}

impl Unit {
    /// Readers of each node: (node, operand position).
    pub fn users(&self) -> Vec<Vec<(u32, u32)>> {
        let mut users = vec![Vec::new(); self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for (position, operand) in node.operands.iter().enumerate() {
                if let Operand::Local(j, _) = operand {
                    users[*j as usize].push((i as u32, position as u32));
                }
            }
        }
        users
    }

    /// Nodes that no output needs but for the scores of a top-k: they die where its window fits.
    pub fn scoring(&self) -> BTreeSet<u32> {
        let topk = |i: usize| self.nodes[i].op.kind() == OpKind::Topk;
        if !(0..self.nodes.len()).any(topk) {
            return BTreeSet::new();
        }
        let mut needed = vec![false; self.nodes.len()];
        self.outputs.iter().for_each(|(operand, _)| mark(&mut needed, operand));
        for i in (0..self.nodes.len()).rev() {
            // A top-k's positions are needed, its scores are not.
            if needed[i] {
                self.nodes[i].operands.iter().skip(usize::from(topk(i))).for_each(|o| mark(&mut needed, o));
            }
        }
        (0..self.nodes.len() as u32).filter(|i| !needed[*i as usize]).collect()
    }
}
