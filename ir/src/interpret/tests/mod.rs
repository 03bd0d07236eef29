//! Every op against results worked out by hand, then laws that hold in both domains.

mod cases;
mod collectives;
mod faults;
mod laws;

use super::F64;
use super::{Bindings, Domain, Options, Tensor, interpret};
use crate::DType;
use crate::error::IrError;
use crate::graph::{Graph, OutputKind, Value};
use crate::interpret::Binding;
use crate::op::Op;
use crate::types::TensorType;
use std::collections::BTreeMap;

/// An operand: dtype, shape, elements.
pub(super) type Operand<'a> = (DType, &'a [u64], &'a [f64]);

/// A graph whose inputs are the operands and whose outputs are what `build` returns, with bindings.
pub(super) fn graph_of(
    operands: &[Operand<'_>],
    build: impl FnOnce(&mut Graph, &[Value]) -> Result<Vec<Value>, IrError>,
) -> Result<(Graph, Bindings), IrError> {
    let mut graph = Graph::new("test");
    let mut bindings = Bindings::new();
    let mut values = Vec::new();
    for (i, (dtype, shape, elements)) in operands.iter().enumerate() {
        let name = format!("x{i}");
        let dims = TensorType::fixed(*dtype, shape).shape;
        values.push(graph.push(&name, Op::input(&name, *dtype, dims), &[])?);
        let sizes: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
        let binding = if dtype.is_float() {
            Binding::f64(&sizes, elements.to_vec())
        } else {
            Binding::ints(&sizes, elements.iter().map(|x| *x as i64).collect())
        };
        bindings.insert(&name, binding);
    }
    for (i, value) in build(&mut graph, &values)?.into_iter().enumerate() {
        graph.output(&format!("y{i}"), OutputKind::Result, value);
    }
    Ok((graph, bindings))
}

pub(super) fn outputs<D: Domain>(
    operands: &[Operand<'_>],
    options: &Options,
    build: impl FnOnce(&mut Graph, &[Value]) -> Result<Vec<Value>, IrError>,
) -> Result<Vec<Tensor<D::Value>>, IrError> {
    let (graph, bindings) = graph_of(operands, build)?;
    Ok(interpret::<D>(&graph, &BTreeMap::new(), &bindings, options)?.into_values().collect())
}

/// Results of one op.
pub(super) fn run<D: Domain>(op: &Op, operands: &[Operand<'_>]) -> Result<Vec<Tensor<D::Value>>, IrError> {
    outputs::<D>(operands, &Options::default(), |graph, values| {
        let node = graph.add(op.clone(), values, ["op".into()].into())?;
        Ok((0..graph.node(node).types.len() as u32).map(|result| Value { node, result }).collect())
    })
}

/// All elements as f64.
pub(super) fn numbers(t: &Tensor<f64>) -> Vec<f64> {
    match t.as_ints() {
        Some(ints) => ints.iter().map(|n| *n as f64).collect(),
        None => t.as_values().unwrap_or(&[]).to_vec(),
    }
}

pub(super) fn close(found: &[f64], expected: &[f64]) -> bool {
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(a, b)| F64::same(*a, *b) || (a - b).abs() <= 1e-12 * b.abs().max(1.0))
}
