//! The graph: nodes in topological order on petgraph, values, symbols, outputs, source paths.

use crate::error::IrError;
use crate::op::{Category, Op};
use crate::types::TensorType;
use indexmap::IndexMap;
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weldment_artifact::{InputRole, SymbolRole};

/// A node's index. Nodes are appended after their operands, so index order is a topological order.
pub type NodeId = NodeIndex<u32>;

/// One result of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    /// The node.
    pub node: NodeId,
    /// Which of its results.
    pub result: u32,
}

/// An op in its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// The op with attributes.
    pub op: Op,
    /// Operands, in table order.
    pub operands: Vec<Value>,
    /// Result types.
    pub types: Vec<TensorType>,
    /// Where the model definition has it: `layers.3.mlp.down_proj`. A merged node keeps all.
    pub sources: BTreeSet<Arc<str>>,
}

/// An edge: operand `operand` of the target reads result `result` of the origin.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Operand position in the reading node.
    pub operand: u32,
    /// Result read.
    pub result: u32,
}

/// Inclusive range of a symbolic dim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// Smallest value.
    pub min: u64,
    /// Largest value.
    pub max: u64,
}

/// What a graph output is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OutputKind {
    /// Handed to the caller.
    Result,
    /// The state of that output's name at the step's end.
    State,
}

/// A named output.
#[derive(Clone, Debug)]
pub struct Output {
    /// Result name, or state name.
    pub name: Arc<str>,
    /// What it is for.
    pub kind: OutputKind,
    /// The value.
    pub value: Value,
}

/// A typed dataflow graph of pure values. Append-only: passes build new graphs.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Name, printed in text IR.
    pub name: String,
    net: DiGraph<Node, Use, u32>,
    symbols: IndexMap<Arc<str>, Range>,
    /// Roles of the symbols that have one.
    roles: BTreeMap<Arc<str>, SymbolRole>,
    outputs: Vec<Output>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str) -> Graph {
        let (net, symbols, roles) = (DiGraph::default(), IndexMap::new(), BTreeMap::new());
        Graph { name: name.to_owned(), net, symbols, roles, outputs: Vec::new() }
    }

    /// An empty graph with the name and the symbols of this one.
    pub fn emptied(&self) -> Graph {
        let mut out = Graph::new(&self.name);
        (out.symbols, out.roles) = (self.symbols.clone(), self.roles.clone());
        out
    }

    /// Declares a symbolic dim with its inclusive range; a second declaration replaces the first, and leaves its role.
    pub fn declare_symbol(&mut self, name: &str, min: u64, max: u64) {
        self.symbols.insert(name.into(), Range { min, max });
    }

    /// Declares a symbolic dim with its inclusive range and what it counts.
    pub fn declare(&mut self, name: &str, min: u64, max: u64, role: SymbolRole) {
        self.declare_symbol(name, min, max);
        match role {
            SymbolRole::Plain => self.roles.remove(name),
            role => self.roles.insert(name.into(), role),
        };
    }

    /// Says what an input holds; anything else is left as it is.
    pub fn give_input_role(&mut self, id: NodeId, given: InputRole) {
        if let Some(Op::Input { role, .. }) = self.net.node_weight_mut(id).map(|node| &mut node.op) {
            *role = given;
        }
    }

    /// What a symbol counts.
    pub fn role(&self, symbol: &str) -> &SymbolRole {
        self.roles.get(symbol).unwrap_or(&SymbolRole::Plain)
    }

    /// The first symbol of a role like this one, and its range.
    pub fn symbol_of(&self, role: &SymbolRole) -> Option<(&Arc<str>, Range)> {
        let found = self.symbols.iter().find(|(name, _)| self.role(name).is_like(role));
        found.map(|(name, range)| (name, *range))
    }

    /// The symbol whose size decides which kernels run: that of the tokens, or in a graph without tokens the first one.
    pub fn row_symbol(&self) -> Option<(&Arc<str>, Range)> {
        self.symbol_of(&SymbolRole::Tokens).or_else(|| self.symbols.first().map(|(name, range)| (name, *range)))
    }

    /// Declared symbols in order.
    pub fn symbols(&self) -> &IndexMap<Arc<str>, Range> {
        &self.symbols
    }

    /// Appends a node and infers its types.
    ///
    /// # Errors
    /// If the op does not accept the operands; the error names `source`.
    pub fn add(&mut self, op: Op, operands: &[Value], sources: BTreeSet<Arc<str>>) -> Result<NodeId, IrError> {
        let path = || sources.iter().next().map_or_else(|| self.name.clone(), |s| s.to_string());
        let mut operand_types = Vec::with_capacity(operands.len());
        for v in operands {
            let t = self.net.node_weight(v.node).and_then(|n| n.types.get(v.result as usize));
            operand_types.push(t.cloned().ok_or_else(|| IrError::InvalidGraph {
                path: path(),
                message: format!("operand {v:?} does not exist"),
            })?);
        }
        let types =
            op.infer(&operand_types).map_err(|e| IrError::InvalidGraph { path: path(), message: e.to_string() })?;
        let id = self.net.add_node(Node { op, operands: operands.to_vec(), types, sources });
        for (i, v) in operands.iter().enumerate() {
            self.net.add_edge(v.node, id, Use { operand: i as u32, result: v.result });
        }
        Ok(id)
    }

    /// Appends a node with one source path and gives its first result: what model builders call.
    ///
    /// # Errors
    /// As [`Graph::add`].
    pub fn push(&mut self, source: &str, op: Op, operands: &[Value]) -> Result<Value, IrError> {
        let node = self.add(op, operands, BTreeSet::from([Arc::from(source)]))?;
        Ok(Value { node, result: 0 })
    }

    /// Names an output.
    pub fn output(&mut self, name: &str, kind: OutputKind, value: Value) {
        self.outputs.push(Output { name: name.into(), kind, value });
    }

    /// Forgets all outputs, so that a caller can ask for another value.
    pub fn clear_outputs(&mut self) {
        self.outputs.clear();
    }

    /// The outputs, in order.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// A node. Panics on an id of another graph, as slices do.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.net[id]
    }

    /// The type of a value.
    pub fn type_of(&self, v: Value) -> &TensorType {
        &self.net[v.node].types[v.result as usize]
    }

    /// All node ids in topological order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + ExactSizeIterator + use<> {
        (0..self.net.node_count() as u32).map(NodeId::new_u32)
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.net.node_count()
    }

    /// True without nodes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The readers of any result of `id`, in no particular order but deterministic.
    pub fn users(&self, id: NodeId) -> impl Iterator<Item = (NodeId, Use)> + '_ {
        self.net.edges_directed(id, Direction::Outgoing).map(|e| (e.target(), *e.weight()))
    }

    /// Nodes that an output depends on.
    pub fn live(&self) -> Vec<bool> {
        let mut live = vec![false; self.len()];
        for output in &self.outputs {
            live[output.value.node.index()] = true;
        }
        for id in self.ids().rev() {
            if live[id.index()] {
                for v in &self.net[id].operands {
                    live[v.node.index()] = true;
                }
            }
        }
        live
    }

    /// For each node: does it depend on weights and constants alone? Such values are hoisted out of the step.
    pub fn statics(&self) -> Vec<bool> {
        let mut known: Vec<bool> = Vec::with_capacity(self.len());
        for id in self.ids() {
            let node = &self.net[id];
            let fixed = match node.op {
                Op::Input { .. } | Op::State { .. } => false,
                _ if node.op.kind().info().category == Category::StateWrite || node.op.communicates() => false,
                _ => node.operands.iter().all(|v| known[v.node.index()]),
            };
            known.push(fixed);
        }
        known
    }

    /// A copy without dead nodes. Declared inputs and states stay, so that the entry's signature does not depend on optimisation.
    ///
    /// # Errors
    /// None in practice: the nodes were accepted before.
    pub fn compact(&self) -> Result<Graph, IrError> {
        let live = self.live();
        let mut out = self.emptied();
        let mut map: Vec<Option<NodeId>> = vec![None; self.len()];
        for id in self.ids() {
            let node = &self.net[id];
            if live[id.index()] || matches!(node.op, Op::Input { .. } | Op::State { .. }) {
                let operands: Vec<Value> =
                    node.operands.iter().filter_map(|v| Some(Value { node: map[v.node.index()]?, ..*v })).collect();
                map[id.index()] = Some(out.add(node.op.clone(), &operands, node.sources.clone())?);
            }
        }
        out.outputs = self
            .outputs
            .iter()
            .filter_map(|o| Some(Output { value: Value { node: map[o.value.node.index()]?, ..o.value }, ..o.clone() }))
            .collect();
        Ok(out)
    }
}

/// `NodeIndex` from a u32, for index-order iteration.
trait NewU32 {
    fn new_u32(i: u32) -> Self;
}

impl NewU32 for NodeId {
    fn new_u32(i: u32) -> NodeId {
        NodeIndex::new(i as usize)
    }
}
