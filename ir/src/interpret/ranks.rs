//! Several ranks in lockstep: a value is the same on all of them or one tensor each.

use super::domain::{Domain, Fault, Options};
use super::eval::{finish, quantised_norm};
use super::tensor::Tensor;
use super::{Machine, elementwise, indexed, view};
use crate::error::IrError;
use crate::graph::NodeId;
use crate::op::Op;

/// What each rank holds.
#[derive(Clone)]
pub(super) enum Ranks<T> {
    /// Every rank holds the same.
    Same(T),
    /// One for each rank.
    Each(Vec<T>),
}

impl<T> Ranks<T> {
    /// Rank `rank`'s.
    pub(super) fn of(&self, rank: usize) -> &T {
        match self {
            Ranks::Same(value) => value,
            Ranks::Each(values) => &values[rank],
        }
    }
}

type Results<V> = Ranks<Vec<Tensor<V>>>;

/// Results of one node on every rank. `operands` are those of each rank, or of all.
pub(super) fn evaluate<D: Domain>(
    machine: &Machine<'_, D>,
    id: NodeId,
    operands: Ranks<Vec<Tensor<D::Value>>>,
) -> Result<Results<D::Value>, IrError> {
    let node = machine.graph.node(id);
    let world = machine.world;
    if let Op::Input { name, .. } | Op::Weight { name, .. } | Op::State { name, .. } = &node.op {
        if !(0..world).any(|rank| machine.bindings.on_rank(name, rank).is_some()) {
            return Ok(Ranks::Same(machine.evaluate(id, Vec::new())?));
        }
        let leaf = |rank| {
            let binding = machine.bindings.on_rank(name, rank).or_else(|| machine.bindings.get(name));
            let shape = node.types.first().map(|t| machine.checked_shape(t, true)).transpose();
            let tensor = shape.and_then(|shape| {
                let binding = binding.ok_or_else(|| format!("`{name}` is not bound on rank {rank}"))?;
                let dtype = node.types.first().ok_or("a node without results")?.dtype;
                Ok(vec![binding.tensor::<D>(dtype, &shape.unwrap_or_default())?])
            });
            tensor.map_err(|fault| machine.error(id, fault))
        };
        return (0..world).map(leaf).collect::<Result<_, _>>().map(Ranks::Each);
    }
    if node.op.world().is_some() {
        let run = || {
            if node.op.world() != i64::try_from(world).ok() {
                return Err(format!("is for {:?} ranks, and the graph for {world}", node.op.world()).into());
            }
            let shapes =
                node.types.iter().map(|t| machine.checked_shape(t, false)).collect::<Result<Vec<_>, Fault>>()?;
            collective::<D>(&node.op, &operands, world, (node.types[0].dtype, &shapes), machine.options)
        };
        return run().map_err(|fault| machine.error(id, fault));
    }
    match operands {
        Ranks::Same(operands) => machine.evaluate(id, operands).map(Ranks::Same),
        Ranks::Each(all) => {
            all.into_iter().map(|operands| machine.evaluate(id, operands)).collect::<Result<_, _>>().map(Ranks::Each)
        }
    }
}

/// An op that depends on the rank or on the others. `dtype` is that of its first result; `shapes` are those of all.
fn collective<D: Domain>(
    op: &Op,
    operands: &Ranks<Vec<Tensor<D::Value>>>,
    world: usize,
    (dtype, shapes): (crate::DType, &[Vec<usize>]),
    options: &Options,
) -> Result<Results<D::Value>, Fault> {
    let shape = shapes.first().ok_or("no results")?.as_slice();
    let operand = |rank: usize, i: usize| operands.of(rank).get(i).ok_or(Fault::Message("wrong arity".into()));
    let each = |f: &dyn Fn(usize) -> Result<Vec<Tensor<D::Value>>, Fault>| {
        (0..world).map(f).collect::<Result<Vec<_>, Fault>>().map(Ranks::Each)
    };
    let part = |whole: &Tensor<D::Value>, axis: i64, index: usize| {
        let size = usize::try_from(axis).ok().and_then(|a| shape.get(a)).ok_or("axis out of range")?;
        let start = i64::try_from(index * size).map_err(|e| e.to_string())?;
        view::slice::<D>(whole, axis, start, shape)
    };
    match op {
        Op::Shard { axis, replicas, .. } => {
            let replicas = usize::try_from(*replicas).map_err(|e| e.to_string())?.max(1);
            each(&|rank| Ok(vec![part(operand(rank, 0)?, *axis, rank / replicas)?]))
        }
        Op::GatherPart { .. } => each(&|rank| {
            Ok(vec![indexed::gather_part::<D>(
                operand(rank, 0)?,
                operand(rank, 1)?,
                (rank, world),
                shape,
                dtype,
                options,
            )?])
        }),
        Op::AllReduce { .. } => Ok(Ranks::Same(vec![rounded_sum::<D>(&parts(operands, world)?, None, options)?])),
        Op::AllGather { axis, .. } => {
            let parts: Vec<Tensor<D::Value>> = parts(operands, world)?.into_iter().cloned().collect();
            Ok(Ranks::Same(vec![view::concat::<D>(&parts, *axis, shape)?]))
        }
        Op::ReduceScatter { axis, .. } => {
            let sum = rounded_sum::<D>(&parts(operands, world)?, None, options)?;
            each(&|rank| Ok(vec![part(&sum, *axis, rank)?]))
        }
        Op::AllReduceRmsNorm { eps, .. } => {
            let sum = rounded_sum::<D>(&parts(operands, world)?, None, options)?;
            per_rank(operands, world, |rank| {
                let values = elementwise::rms_norm::<D>(&sum.reals::<D>()?, &operand(rank, 1)?.reals::<D>()?, eps.0)?;
                Ok(vec![finish::<D>(dtype, shape, values, false, options), sum.clone()])
            })
        }
        Op::AllReduceAddRmsNorm { eps, .. } => {
            let parts = parts(operands, world)?;
            per_rank(operands, world, |rank| {
                let sum = rounded_sum::<D>(&parts, Some(operand(rank, 1)?), options)?;
                let values = elementwise::rms_norm::<D>(&sum.reals::<D>()?, &operand(rank, 2)?.reals::<D>()?, eps.0)?;
                Ok(vec![finish::<D>(dtype, shape, values, false, options), sum])
            })
        }
        Op::AllReduceRmsNormQuantise { eps, dtype, format, group, .. }
        | Op::AllReduceAddRmsNormQuantise { eps, dtype, format, group, .. } => {
            let parts = parts(operands, world)?;
            let residual = usize::from(matches!(op, Op::AllReduceAddRmsNormQuantise { .. }));
            per_rank(operands, world, |rank| {
                let addend = if residual == 1 { Some(operand(rank, 1)?) } else { None };
                let sum = rounded_sum::<D>(&parts, addend, options)?;
                let w = operand(rank, 1 + residual)?.reals::<D>()?;
                let norm = elementwise::rms_norm::<D>(&sum.reals::<D>()?, &w, eps.0)?;
                let mut out = quantised_norm::<D>(norm, (*dtype, *format, *group), shapes, options)?;
                out.push(sum);
                Ok(out)
            })
        }
        other => Err(format!("{} is no collective", other.kind()).into()),
    }
}

/// Every rank's first operand, in the order of ranks.
fn parts<V>(operands: &Ranks<Vec<Tensor<V>>>, world: usize) -> Result<Vec<&Tensor<V>>, Fault> {
    (0..world).map(|rank| operands.of(rank).first().ok_or_else(|| "wrong arity".into())).collect()
}

/// One result for all where the operands are the same on all, else one for each rank.
fn per_rank<V: Copy>(
    operands: &Ranks<Vec<Tensor<V>>>,
    world: usize,
    run: impl Fn(usize) -> Result<Vec<Tensor<V>>, Fault>,
) -> Result<Results<V>, Fault> {
    match operands {
        Ranks::Same(_) => run(0).map(Ranks::Same),
        Ranks::Each(_) => (0..world).map(run).collect::<Result<_, _>>().map(Ranks::Each),
    }
}

/// The parts in the order of ranks, then the residual, added and rounded once: to the residual's dtype, or the parts'.
fn rounded_sum<D: Domain>(
    parts: &[&Tensor<D::Value>],
    residual: Option<&Tensor<D::Value>>,
    options: &Options,
) -> Result<Tensor<D::Value>, Fault> {
    let (first, rest) = parts.split_first().ok_or("no ranks")?;
    let mut sum = first.reals::<D>()?.into_owned();
    for part in rest.iter().copied().chain(residual) {
        for (total, term) in sum.iter_mut().zip(part.reals::<D>()?.iter()) {
            *total = D::add(*total, *term);
        }
    }
    let dtype = residual.map_or(first.dtype, |r| r.dtype);
    Ok(finish::<D>(dtype, &first.shape, sum, false, options))
}
