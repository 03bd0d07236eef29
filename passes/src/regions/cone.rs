//! The two sides of a region as graphs of their own, with names that do not depend on the layer.

use super::{is_named, preferred};
use crate::correspondence::Correspondence;
use crate::error::PassError;
use crate::units::Carried;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weldment_ir::{DType, Graph, NodeId, Op, OutputKind, Value};

/// Names of leaves and of values that enter, in the order in which they are met.
#[derive(Default)]
pub(super) struct Names {
    leaves: BTreeMap<Arc<str>, Arc<str>>,
    entering: BTreeMap<Value, Arc<str>>,
}

impl Names {
    fn leaf(&mut self, prefix: &str, name: &Arc<str>) -> Arc<str> {
        let next = self.leaves.len();
        self.leaves.entry(name.clone()).or_insert_with(|| format!("{prefix}{next}").into()).clone()
    }

    fn entering(&mut self, value: Value) -> Arc<str> {
        let next = self.entering.len();
        self.entering.entry(value).or_insert_with(|| format!("x{next}").into()).clone()
    }
}

/// Where the two sides of a region begin.
pub(super) struct Cones<'a> {
    before: &'a Graph,
    after: &'a Graph,
    nodes: &'a BTreeSet<NodeId>,
    /// Values of the optimised graph that enter: the value before that stands for each, and the form in which it does.
    entering: BTreeMap<Value, (Value, Carried)>,
    /// Values before that equal one that enters.
    stops: BTreeMap<Value, Value>,
}

/// A side, and the leaves and entering values that it reads.
pub(super) type Side = (Graph, BTreeSet<Arc<str>>);

impl<'a> Cones<'a> {
    pub fn new(before: &'a Graph, after: &'a Graph, equal: &Correspondence, nodes: &'a BTreeSet<NodeId>) -> Cones<'a> {
        let (mut entering, mut stops) = (BTreeMap::new(), BTreeMap::new());
        let operands: BTreeSet<Value> = nodes.iter().flat_map(|id| &after.node(*id).operands).copied().collect();
        let enters = |v: &Value| !nodes.contains(&v.node) && !is_named(&after.node(v.node).op);
        let known = |v: Value| Some((v, preferred(equal, v).collect::<Vec<_>>())).filter(|(_, all)| !all.is_empty());
        let mut known: Vec<_> = operands.into_iter().filter(enters).filter_map(known).collect();
        // Plain ones first, so that a value and its cast begin at the same free input.
        known.sort_by_key(|(_, all)| all[0].1 != Carried::Plain);
        for (value, all) in known {
            let form = all[0].1;
            let equal: Vec<Value> = all.into_iter().filter(|(_, f)| *f == form).map(|(v, _)| v).collect();
            let first = equal.iter().find_map(|v| stops.get(v).copied()).unwrap_or(equal[0]);
            entering.insert(value, (first, form));
            for other in equal {
                stops.entry(other).or_insert(first);
            }
        }
        Cones { before, after, nodes, entering, stops }
    }

    /// The side before, with an output for each of `outputs`: (value after, value before, form).
    pub fn before(&self, outputs: &[(Value, Value, Carried)], names: &mut Names) -> Result<Side, PassError> {
        let mut part = Part::new(self.before, names);
        let roots: Vec<Value> = outputs.iter().map(|(_, v, _)| *v).collect();
        let stop = |v: Value| self.stops.get(&v).copied();
        part.copy(&roots, &stop, |part, v| {
            let first = stop(v)?;
            Some(part.enter(self.before, first, None))
        })?;
        for (i, (_, v, form)) in outputs.iter().enumerate() {
            let value = part.moved(*v)?;
            let value = match form {
                Carried::Plain => value,
                Carried::Cast(dtype) => part.cast(value, *dtype)?,
            };
            part.output(i, value)?;
        }
        Ok((part.out, part.read))
    }

    /// The side after, with the same outputs.
    pub fn after(&self, outputs: &[(Value, Value, Carried)], names: &mut Names) -> Result<Side, PassError> {
        let mut part = Part::new(self.after, names);
        let roots: Vec<Value> = outputs.iter().map(|(v, ..)| *v).collect();
        let stop = |v: Value| (!self.nodes.contains(&v.node)).then(|| self.entering.get(&v).map(|e| e.0)).flatten();
        part.copy(&roots, &stop, |part, v| {
            let (first, form) = self.entering.get(&v)?;
            let dtype = match form {
                Carried::Plain => None,
                Carried::Cast(dtype) => Some(*dtype),
            };
            Some(part.enter(self.before, *first, dtype))
        })?;
        for (i, (v, ..)) in outputs.iter().enumerate() {
            let value = part.moved(*v)?;
            part.output(i, value)?;
        }
        Ok((part.out, part.read))
    }
}

/// A part of a graph that is being copied out.
struct Part<'a, 'n> {
    graph: &'a Graph,
    names: &'n mut Names,
    out: Graph,
    map: BTreeMap<Value, Value>,
    /// Entering values that are in the part already, by name and cast.
    entered: BTreeMap<(Arc<str>, Option<DType>), Value>,
    read: BTreeSet<Arc<str>>,
}

impl<'a, 'n> Part<'a, 'n> {
    fn new(graph: &'a Graph, names: &'n mut Names) -> Part<'a, 'n> {
        let mut out = graph.emptied();
        "region".clone_into(&mut out.name);
        Part { graph, names, out, map: BTreeMap::new(), entered: BTreeMap::new(), read: BTreeSet::new() }
    }

    /// Copies what `roots` need up to the values where `stop` says so, which `enter` provides.
    fn copy(
        &mut self,
        roots: &[Value],
        stop: &dyn Fn(Value) -> Option<Value>,
        enter: impl Fn(&mut Self, Value) -> Option<Result<Value, PassError>>,
    ) -> Result<(), PassError> {
        let mut wanted: BTreeSet<NodeId> = BTreeSet::new();
        let mut stopped: BTreeSet<Value> = BTreeSet::new();
        let mut stack = roots.to_vec();
        while let Some(v) = stack.pop() {
            if stop(v).is_some() {
                stopped.insert(v);
            } else if wanted.insert(v.node) {
                stack.extend(&self.graph.node(v.node).operands);
            }
        }
        for v in stopped {
            if let Some(value) = enter(self, v) {
                self.map.insert(v, value?);
            }
        }
        for id in wanted {
            let node = self.graph.node(id);
            let operands = node.operands.iter().map(|v| self.moved(*v)).collect::<Result<Vec<_>, _>>()?;
            let op = self.renamed(&node.op);
            let copy = self.out.add(op, &operands, BTreeSet::new())?;
            for result in 0..node.types.len() as u32 {
                let (from, to) = (Value { node: id, result }, Value { node: copy, result });
                self.map.entry(from).or_insert(to);
            }
        }
        Ok(())
    }

    fn renamed(&mut self, op: &Op) -> Op {
        let mut op = op.clone();
        let (prefix, name) = match &mut op {
            Op::Input { name, .. } => ("i", name),
            Op::Weight { name, .. } => ("w", name),
            Op::State { name, .. } => ("s", name),
            _ => return op,
        };
        *name = self.names.leaf(prefix, name);
        self.read.insert(name.clone());
        op
    }

    /// The free input for a value before, cast where the optimised graph has it so.
    fn enter(&mut self, before: &Graph, value: Value, cast: Option<DType>) -> Result<Value, PassError> {
        let name = self.names.entering(value);
        if let Some(known) = self.entered.get(&(name.clone(), cast)) {
            return Ok(*known);
        }
        self.read.insert(name.clone());
        let made = match cast {
            Some(dtype) => {
                let plain = self.enter(before, value, None)?;
                self.cast(plain, dtype)?
            }
            None => {
                let ty = before.type_of(value);
                let op = Op::input(&name, ty.dtype, ty.shape.clone());
                Value { node: self.out.add(op, &[], BTreeSet::new())?, result: 0 }
            }
        };
        self.entered.insert((name, cast), made);
        Ok(made)
    }

    fn cast(&mut self, value: Value, dtype: DType) -> Result<Value, PassError> {
        Ok(Value { node: self.out.add(Op::Cast { dtype }, &[value], BTreeSet::new())?, result: 0 })
    }

    fn moved(&self, value: Value) -> Result<Value, PassError> {
        self.map.get(&value).copied().ok_or_else(|| PassError::NoForm { path: format!("region value {value:?}") })
    }

    /// Output `index`; quantised activations are read through a cast.
    fn output(&mut self, index: usize, value: Value) -> Result<(), PassError> {
        let value = if self.out.type_of(value).dtype == DType::Q8A { self.cast(value, DType::F32)? } else { value };
        self.out.output(&format!("out{index}"), OutputKind::Result, value);
        Ok(())
    }
}
