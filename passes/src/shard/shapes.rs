//! Ops of a part of what they were for.

use weldment_ir::{Dim, Op, TensorType};

/// `dims` with `axis` cut into `parts`.
pub(super) fn cut(dims: &[Dim], axis: usize, parts: u64) -> Vec<Dim> {
    let part = |(i, dim): (usize, &Dim)| match dim {
        Dim::Const(n) if i == axis => Dim::Const(n / parts.max(1)),
        other => other.clone(),
    };
    dims.iter().enumerate().map(part).collect()
}

/// The op with its result's shape, where it has one as an attribute, cut along `axis`; `result` is its type before.
pub(super) fn local(op: &Op, result: &TensorType, axis: usize, parts: u64) -> Op {
    match op {
        Op::Reshape { shape } => Op::Reshape { shape: cut(shape, axis, parts) },
        Op::Broadcast { shape } => Op::Broadcast { shape: cut(shape, axis, parts) },
        // A group that is a whole row is a whole part of one.
        Op::Quantise { dtype, group } if axis + 1 == result.rank() => {
            let part = result.last_constant().and_then(|k| i64::try_from(k / parts.max(1)).ok());
            Op::Quantise { dtype: *dtype, group: part.map_or(*group, |part| part.min(*group)) }
        }
        Op::State { name, dtype, shape } => {
            Op::State { name: name.clone(), dtype: *dtype, shape: cut(shape, axis, parts) }
        }
        other => other.clone(),
    }
}
