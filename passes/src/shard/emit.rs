//! The graph of a rank, node by node.

use super::spread::{Cut, Form, Role, Spread};
use super::{path, shapes};
use crate::error::PassError;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weldment_ir::{DType, Dim, Graph, NodeId, Op, OutputKind, Real, TensorType, Value};

type Sources = BTreeSet<Arc<str>>;

pub(super) fn emit(graph: &Graph, spread: &Spread, world: u32) -> Result<Graph, PassError> {
    let out = graph.emptied();
    let mut emitter = Emitter { graph, spread, world: world.into(), out, values: Vec::new(), shards: BTreeMap::new() };
    for id in graph.ids() {
        let node = emitter.node(id)?;
        emitter.values.push(node);
    }
    for output in graph.outputs() {
        let role = &spread.roles[output.value.node.index()];
        let mut value = emitter.value(output.value);
        if let (OutputKind::Result, Some(cut)) = (&output.kind, role.results) {
            let op = Op::AllGather { axis: as_int(cut.axis), world: i64::from(world) };
            let sources = graph.node(output.value.node).sources.clone();
            value = emitter.add(op, &[value], &sources)?;
        }
        emitter.out.output(&output.name, output.kind.clone(), value);
    }
    Ok(emitter.out)
}

fn as_int(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

struct Emitter<'a> {
    graph: &'a Graph,
    spread: &'a Spread,
    world: u64,
    out: Graph,
    /// By node of the graph before.
    values: Vec<NodeId>,
    /// One `shard` of a static value a cut, whoever reads it: a tied embedding is one table.
    shards: BTreeMap<(Value, Cut), Value>,
}

impl Emitter<'_> {
    fn add(&mut self, op: Op, operands: &[Value], sources: &Sources) -> Result<Value, PassError> {
        Ok(Value { node: self.out.add(op, operands, sources.clone())?, result: 0 })
    }

    /// What a rank holds of a value.
    fn value(&self, v: Value) -> Value {
        Value { node: self.values[v.node.index()], result: v.result }
    }

    fn node(&mut self, id: NodeId) -> Result<NodeId, PassError> {
        let node = self.graph.node(id);
        let role = self.spread.roles[id.index()].clone();
        if let Some(cut) = role.results {
            self.divides(id, &node.types[0], cut)?;
        }
        if let (Some(cut), Op::Quantise { group, dtype }) = (role.results, &node.op) {
            // Groups of a format of their own keep their size.
            self.whole_groups(id, cut, group.unsigned_abs(), *dtype != DType::F4E2M1)?;
        }
        let blocks = self.local_blocks(id, &role)?;
        let mut operands = Vec::with_capacity(node.operands.len());
        for (i, v) in node.operands.iter().enumerate() {
            operands.push(match (role.form, role.operands.get(i).copied().flatten()) {
                (Form::Bias(at), _) if at == i => self.rank_zero(*v, &node.sources)?,
                (_, Some(cut)) if self.spread.fixed[v.node.index()] => self.shard(id, *v, cut)?,
                _ => self.value(*v),
            });
        }
        let op = match (&role, &node.op) {
            (Role { form: Form::GatherPart, .. }, Op::Gather { dtype }) => {
                Op::GatherPart { world: self.world(), dtype: *dtype }
            }
            (_, Op::ScaledMatmul { .. }) => blocks,
            (Role { results: Some(cut), .. }, op) => shapes::local(op, &node.types[0], cut.axis, cut.parts),
            (_, op) => op.clone(),
        };
        let made = self.out.add(op, &operands, node.sources.clone())?;
        match role.form {
            Form::Local | Form::Partial => Ok(made),
            Form::Reduced | Form::Bias(_) | Form::GatherPart => {
                let partial = Value { node: made, result: 0 };
                Ok(self.add(Op::AllReduce { world: self.world() }, &[partial], &node.sources)?.node)
            }
        }
    }

    /// A row of groups is cut between them; one that is a group may be cut into smaller ones.
    fn whole_groups(&self, id: NodeId, cut: Cut, group: u64, smaller: bool) -> Result<(), PassError> {
        let ty = &self.graph.node(id).types[0];
        let k = ty.last_constant().unwrap_or(0);
        if cut.axis + 1 < ty.rank() || (group == k && smaller) || (k / cut.parts).is_multiple_of(group) {
            return Ok(());
        }
        let message = format!(
            "rows of {k} in {} parts, quantised in groups of {group}; a multiple of {} is accepted",
            cut.parts,
            group.saturating_mul(cut.parts)
        );
        Err(PassError::Shard { path: path(self.graph, id), message })
    }

    /// A product of codes with the sizes of the blocks in a rank's part of the weight: a block that spans all of an axis spans all of the part.
    fn local_blocks(&self, id: NodeId, role: &Role) -> Result<Op, PassError> {
        let node = self.graph.node(id);
        let Op::ScaledMatmul { rows, columns, dtype } = node.op else { return Ok(node.op.clone()) };
        let mut sizes = [rows, columns];
        if let Some(cut) = role.operands.get(2).copied().flatten() {
            let w = self.graph.type_of(node.operands[2]);
            let size = w.shape.get(cut.axis).and_then(Dim::constant).unwrap_or(0);
            self.divides(id, w, cut)?;
            let part = size / cut.parts;
            let block = sizes[cut.axis.min(1)].unsigned_abs();
            if block < size && !part.is_multiple_of(block) {
                let message = format!(
                    "axis {} of {w} in {} parts, with a scale for every {block}; a multiple of {} is accepted",
                    cut.axis,
                    cut.parts,
                    block.saturating_mul(cut.parts)
                );
                return Err(PassError::Shard { path: path(self.graph, id), message });
            }
            sizes[cut.axis.min(1)] = i64::try_from(block.min(part)).unwrap_or(i64::MAX);
        }
        Ok(Op::ScaledMatmul { rows: sizes[0], columns: sizes[1], dtype })
    }

    fn world(&self) -> i64 {
        i64::try_from(self.world).unwrap_or(i64::MAX)
    }

    /// A rank's part of a static value.
    fn shard(&mut self, reader: NodeId, v: Value, cut: Cut) -> Result<Value, PassError> {
        if let Some(known) = self.shards.get(&(v, cut)) {
            return Ok(*known);
        }
        let ty = self.graph.type_of(v).clone();
        self.divides(reader, &ty, cut)?;
        let parts = i64::try_from(cut.parts).unwrap_or(i64::MAX);
        let op = Op::Shard { axis: as_int(cut.axis), parts, replicas: self.world() / parts };
        let value = self.add(op, &[self.value(v)], &self.graph.node(reader).sources)?;
        self.shards.insert((v, cut), value);
        Ok(value)
    }

    /// Whole parts, at whole blocks along the last axis.
    fn divides(&self, id: NodeId, ty: &TensorType, cut: Cut) -> Result<(), PassError> {
        let block = if cut.axis + 1 == ty.rank() { ty.dtype.block_elements() as u64 } else { 1 };
        let size = ty.shape.get(cut.axis).and_then(Dim::constant).unwrap_or(0);
        let unit = cut.parts.saturating_mul(block);
        if size.is_multiple_of(unit) && self.world.is_multiple_of(cut.parts) {
            return Ok(());
        }
        let blocks = if block > 1 { format!(" at whole blocks of {block}") } else { String::new() };
        let message = format!(
            "axis {} of {ty} in {} parts{blocks}, for {} ranks; a multiple of {unit} is accepted",
            cut.axis, cut.parts, self.world
        );
        Err(PassError::Shard { path: path(self.graph, id), message })
    }

    /// A row that rank 0 adds, and zeros for the others: `shard(row, 0, ..)` cut along its one axis.
    fn rank_zero(&mut self, v: Value, sources: &Sources) -> Result<Value, PassError> {
        let ty = self.graph.type_of(v).clone();
        let width = ty.shape.first().and_then(Dim::constant).unwrap_or(0);
        let zero = self.add(Op::Constant { value: Real(0.0), dtype: ty.dtype }, &[], sources)?;
        let shape = vec![Dim::Const(width.saturating_mul(self.world - 1))];
        let zeros = self.add(Op::Broadcast { shape }, &[zero], sources)?;
        let rows = self.add(Op::Concat { axis: 0 }, &[self.value(v), zeros], sources)?;
        self.add(Op::Shard { axis: 0, parts: self.world(), replicas: 1 }, &[rows], sources)
    }
}
