//! The bounds that `Approx` rules state, as terms of the graph IR over the rule's variables.

use super::draw::Instance;
use crate::egraph::Term;
use crate::rules::Rule;
use egg::{Id, Var};
use std::collections::BTreeMap;
use weldment_ir::graph::OutputKind;
use weldment_ir::interpret::{Bindings, F64, Options, interpret};
use weldment_ir::{Attr, DType, Dim, Graph, IrError, OpKind, Real};

/// Says by how much the first two outputs of `graph` differ, if that is more than the rule states.
pub(super) fn exceeded(
    rule: &Rule,
    instance: &Instance,
    graph: &Graph,
    dims: &BTreeMap<String, u64>,
    bindings: &Bindings,
) -> Result<Option<String>, IrError> {
    let bound = match rule.name {
        "int8_activations" => int8_activations(instance),
        _ => panic!("{} is approx and states no bound in `bounds.rs`", rule.name),
    };
    let Some(bound) = bound else { return Ok(None) };
    let mut graph = graph.clone();
    // Leaves come first in both graphs, so they have the same places.
    let (_, values) = instance.graph()?;
    let bound = instance.emit(&mut graph, &values, &bound)?;
    graph.output("bound", OutputKind::Result, bound);
    let out = interpret::<F64>(&graph, dims, bindings, &Options::default())?;
    let value = |name: &str| out[name].as_values().unwrap_or(&[]).to_vec();
    let (l, r, bound) = (value("l0"), value("r0"), value("bound"));
    let over = l.iter().zip(&r).zip(&bound).find(|((l, r), b)| (*l - *r).abs() > **b);
    Ok(over.map(|((l, r), b)| format!("{l} is not {r} within {b}")))
}

fn variable(instance: &Instance, name: &str) -> Option<Id> {
    instance.subst.get(name.parse::<Var>().ok()?).copied()
}

/// Sum over blocks of amax_b / 64000 * sum of |w| in b. None where the result itself is rounded to fewer bits than f32.
fn int8_activations(instance: &Instance) -> Option<Term> {
    let (x, w) = (variable(instance, "?x")?, variable(instance, "?w")?);
    let result = instance.ty(instance.root)?.dtype;
    let (x_shape, w_shape) = (instance.ty(x)?.shape.clone(), instance.ty(w)?.shape.clone());
    let blocks = x_shape.last()?.constant()? / 32;
    if result != DType::F32 {
        return None;
    }
    // |v| by blocks of 32, reduced over each.
    let reduced = |v: Id, shape: &[Dim], reduce: OpKind| {
        let v = Term::op(OpKind::Cast, vec![Term::Class(v)], vec![Attr::DType(DType::F32)]);
        let v = Term::op(OpKind::Maximum, vec![v.clone(), Term::op(OpKind::Neg, vec![v], vec![])], vec![]);
        let rows = &shape[..shape.len() - 1];
        let of = |more: &[u64]| Attr::Shape(rows.iter().cloned().chain(more.iter().map(|n| Dim::Const(*n))).collect());
        let v = Term::op(OpKind::Reshape, vec![v], vec![of(&[blocks, 32])]);
        let v = Term::op(reduce, vec![v], vec![Attr::Int(shape.len() as i64)]);
        Term::op(OpKind::Reshape, vec![v], vec![of(&[blocks])])
    };
    let step = Term::op(OpKind::Constant, vec![], vec![Attr::Real(Real(1.0 / 64000.0)), Attr::DType(DType::F32)]);
    let x = Term::op(OpKind::Mul, vec![reduced(x, &x_shape, OpKind::ReduceMax), step], vec![]);
    let w = reduced(w, &w_shape, OpKind::ReduceSum);
    Some(Term::op(OpKind::Matmul, vec![x, w], vec![Attr::DType(DType::F32)]))
}
