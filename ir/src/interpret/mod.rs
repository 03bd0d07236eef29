//! The reference interpreter: what a graph means, over a choice of numbers.
//!
//! [`F64`] is the reference for accuracy; [`Ring`] decides whether two graphs are algebraically equal. Both run the same code,
//! an exhaustive match on [`crate::Op`], so an op without semantics does not compile.
//!
//! ```
//! use std::collections::BTreeMap;
//! use weldment_ir::interpret::{Binding, Bindings, F64, Options, interpret};
//! use weldment_ir::{DType, Dim, Graph, Op, OutputKind};
//!
//! let mut graph = Graph::new("twice");
//! graph.declare_symbol("T", 1, 8);
//! let x = graph.push("x", Op::input("x", DType::F32, vec![Dim::sym("T")]), &[])?;
//! let sum = graph.push("sum", Op::Add {}, &[x, x])?;
//! graph.output("y", OutputKind::Result, sum);
//!
//! let mut bindings = Bindings::new();
//! bindings.insert("x", Binding::f64(&[2], vec![1.0, 2.5]));
//! let dims = BTreeMap::from([("T".to_owned(), 2)]);
//! let outputs = interpret::<F64>(&graph, &dims, &bindings, &Options::default())?;
//! assert_eq!(outputs["y"].as_values(), Some(&[2.0, 5.0][..]));
//! # Ok::<(), weldment_ir::IrError>(())
//! ```

mod attention;
mod contract;
mod domain;
mod elementwise;
mod eval;
mod function;
mod indexed;
mod ranks;
mod real;
mod ring;
mod sparse;
mod tensor;
#[cfg(test)]
mod tests;
mod view;

pub use domain::{Domain, Options, RopeSpec};
pub use function::{Argument, Function};
pub use real::F64;
pub use ring::{P, Q, Ring, RingValue};
pub use tensor::{Binding, BindingData, Bindings, Bytes, Data, Tensor};

use crate::error::IrError;
use crate::graph::{Graph, NodeId, Value};
use crate::op::Op;
use crate::types::{Dim, TensorType};
use domain::Fault;
use indexmap::IndexMap;
use ranks::Ranks;
use std::collections::BTreeMap;

/// Outputs by name, in the graph's order.
pub type Outputs<V> = IndexMap<String, Tensor<V>>;

/// Evaluates the outputs of `graph`. `dims` gives each declared symbol a value in its range; `bindings` gives every input,
/// weight and state that an output needs. Of a graph with collectives all ranks run, and rank 0's outputs are given.
///
/// # Errors
/// [`IrError::Interpret`] names the node: a missing or misshapen binding, an index out of range, a dim outside its range.
/// [`IrError::ZeroDivisor`] asks for another draw (ring only).
pub fn interpret<D: Domain>(
    graph: &Graph,
    dims: &BTreeMap<String, u64>,
    bindings: &Bindings,
    options: &Options,
) -> Result<Outputs<D::Value>, IrError> {
    run::<D>(graph, dims, bindings, options, 1).map(|mut ranks| ranks.swap_remove(0))
}

/// Every rank's outputs, by rank. A binding of the name `NAME@r` stands for NAME on rank r ([`Bindings::insert_on_rank`]).
///
/// # Errors
/// As [`interpret`].
pub fn interpret_ranks<D: Domain>(
    graph: &Graph,
    dims: &BTreeMap<String, u64>,
    bindings: &Bindings,
    options: &Options,
) -> Result<Vec<Outputs<D::Value>>, IrError> {
    run::<D>(graph, dims, bindings, options, graph.world() as usize)
}

/// What the nodes before gave, by node.
type Values<V> = Vec<Ranks<Vec<Tensor<V>>>>;

/// A node's operands, on each rank or on all.
fn operands_of<V: Clone>(values: &Values<V>, operands: &[Value], world: usize) -> Ranks<Vec<Tensor<V>>> {
    let on = |rank| operands.iter().map(|v| values[v.node.index()].of(rank)[v.result as usize].clone()).collect();
    match operands.iter().any(|v| matches!(values[v.node.index()], Ranks::Each(_))) {
        true => Ranks::Each((0..world).map(on).collect()),
        false => Ranks::Same(on(0)),
    }
}

/// Outputs of the first `wanted` ranks.
fn run<D: Domain>(
    graph: &Graph,
    dims: &BTreeMap<String, u64>,
    bindings: &Bindings,
    options: &Options,
    wanted: usize,
) -> Result<Vec<Outputs<D::Value>>, IrError> {
    let machine = Machine::<D>::new(graph, dims, bindings, options)?;
    let live = graph.live();
    let mut uses: Vec<usize> = vec![0; graph.len()];
    for id in graph.ids().filter(|id| live[id.index()]) {
        graph.node(id).operands.iter().for_each(|v| uses[v.node.index()] += 1);
    }
    graph.outputs().iter().for_each(|o| uses[o.value.node.index()] += 1);

    let mut values: Values<D::Value> = vec![Ranks::Same(Vec::new()); graph.len()];
    for id in graph.ids().filter(|id| live[id.index()]) {
        let node = graph.node(id);
        let operands = operands_of(&values, &node.operands, machine.world);
        // Dropped before the evaluation, so that a state's last reader may write in place.
        for v in &node.operands {
            uses[v.node.index()] -= 1;
            if uses[v.node.index()] == 0 {
                values[v.node.index()] = Ranks::Same(Vec::new());
            }
        }
        values[id.index()] = ranks::evaluate(&machine, id, operands)?;
    }
    let output = |rank: usize, o: &crate::graph::Output| {
        let tensor = &values[o.value.node.index()].of(rank)[o.value.result as usize];
        machine.finished(o.value.node, tensor).map(|t| (o.name.to_string(), t))
    };
    (0..wanted).map(|rank| graph.outputs().iter().map(|o| output(rank, o)).collect()).collect()
}

/// Evaluates every node, dead ones too, and keeps every value of rank 0, at `[node index][result]`: for bisecting a difference.
///
/// # Errors
/// As [`interpret`].
pub fn interpret_all<D: Domain>(
    graph: &Graph,
    dims: &BTreeMap<String, u64>,
    bindings: &Bindings,
    options: &Options,
) -> Result<Vec<Vec<Tensor<D::Value>>>, IrError> {
    let machine = Machine::<D>::new(graph, dims, bindings, options)?;
    let mut values: Values<D::Value> = Vec::with_capacity(graph.len());
    for id in graph.ids() {
        let operands = operands_of(&values, &graph.node(id).operands, machine.world);
        values.push(ranks::evaluate(&machine, id, operands)?);
    }
    Ok(values.iter().map(|v| v.of(0).clone()).collect())
}

/// Evaluates one node on the operands given, which every rank holds, for rank 0: for running a graph in another order or
/// memory than its own.
///
/// # Errors
/// As [`interpret`].
pub fn interpret_node<D: Domain>(
    graph: &Graph,
    dims: &BTreeMap<String, u64>,
    bindings: &Bindings,
    options: &Options,
    id: NodeId,
    operands: Vec<Tensor<D::Value>>,
) -> Result<Vec<Tensor<D::Value>>, IrError> {
    let machine = Machine::<D>::new(graph, dims, bindings, options)?;
    ranks::evaluate(&machine, id, Ranks::Same(operands)).map(|results| results.of(0).clone())
}

/// What all nodes share.
pub(crate) struct Machine<'a, D> {
    graph: &'a Graph,
    dims: &'a BTreeMap<String, u64>,
    bindings: &'a Bindings,
    options: &'a Options,
    /// Ranks of the graph.
    world: usize,
    domain: std::marker::PhantomData<D>,
}

impl<'a, D: Domain> Machine<'a, D> {
    fn new(
        graph: &'a Graph,
        dims: &'a BTreeMap<String, u64>,
        bindings: &'a Bindings,
        options: &'a Options,
    ) -> Result<Machine<'a, D>, IrError> {
        for (name, range) in graph.symbols() {
            let value = dims.get(&**name);
            if !value.is_some_and(|n| (range.min..=range.max).contains(n)) {
                let found = value.map_or("no value".to_owned(), u64::to_string);
                let message = format!("dim {name} has {found}; {}..={} is accepted", range.min, range.max);
                return Err(IrError::Interpret { path: graph.name.clone(), message });
            }
        }
        Ok(Machine { graph, dims, bindings, options, world: graph.world() as usize, domain: std::marker::PhantomData })
    }

    /// A shape with the symbols' values.
    fn resolve(&self, shape: &[Dim]) -> Result<Vec<usize>, Fault> {
        let size = |dim: &Dim| match dim {
            Dim::Const(n) => Ok(*n),
            Dim::Sym(s) => self.dims.get(&**s).copied().ok_or_else(|| format!("dim {s} has no value")),
        };
        shape.iter().map(|d| usize::try_from(size(d)?).map_err(|e| Fault::Message(e.to_string()))).collect()
    }

    fn checked_shape(&self, t: &TensorType, lazy: bool) -> Result<Vec<usize>, Fault> {
        let shape = self.resolve(&t.shape)?;
        // A dim of 0 counts as 1, so that strides of empty tensors do not overflow either.
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul((*d).max(1)));
        // Leaves and views of them hold no elements of their own.
        let limit = if lazy { usize::MAX >> 3 } else { self.options.max_elements };
        if count.is_none_or(|n| n > limit) {
            return Err(format!("a result of shape {shape:?} is over the limit of {limit} elements").into());
        }
        Ok(shape)
    }

    fn evaluate(&self, id: NodeId, operands: Vec<Tensor<D::Value>>) -> Result<Vec<Tensor<D::Value>>, IrError> {
        let node = self.graph.node(id);
        let run = || {
            let lazy = matches!(node.op, Op::Input { .. } | Op::Weight { .. } | Op::State { .. });
            let shapes =
                node.types.iter().map(|t| self.checked_shape(t, lazy)).collect::<Result<Vec<Vec<usize>>, Fault>>()?;
            eval::evaluate::<D>(self, node, operands, &shapes)
        };
        run().map_err(|fault| self.error(id, fault))
    }

    /// A graph output in computed form: a weight returned as it is would be left encoded.
    fn finished(&self, id: NodeId, tensor: &Tensor<D::Value>) -> Result<Tensor<D::Value>, IrError> {
        match &tensor.data {
            Data::Values(_) | Data::Ints(_) => Ok(tensor.clone()),
            Data::Single(_) | Data::Encoded(_) => {
                let values = tensor.reals::<D>().map_err(|fault| self.error(id, fault))?;
                Ok(Tensor::values(tensor.dtype, tensor.shape.clone(), values.into_owned()))
            }
        }
    }

    fn error(&self, id: NodeId, fault: Fault) -> IrError {
        let node = self.graph.node(id);
        let place = node.sources.first().map_or_else(|| format!("%{}", id.index()), |s| s.to_string());
        match fault {
            Fault::ZeroDivisor => IrError::ZeroDivisor { path: place },
            Fault::Message(message) => {
                IrError::Interpret { path: place, message: format!("{}: {message}", node.op.kind()) }
            }
        }
    }
}
