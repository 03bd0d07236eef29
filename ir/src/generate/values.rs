//! Dims and values for a graph.

use super::Random;
use crate::DType;
use crate::codec::{Overflow, encode};
use crate::error::IrError;
use crate::graph::{Graph, NodeId};
use crate::interpret::{Binding, Bindings, Domain, F64, Options};
use crate::op::Op;
use crate::types::Dim;
use std::collections::BTreeMap;

/// A size for each symbol, inside its range.
pub fn random_dims(graph: &Graph, seed: u64) -> BTreeMap<String, u64> {
    let mut random = Random::new(seed);
    let size = |random: &mut Random, min: u64, max: u64| min + random.below((max - min).saturating_add(1));
    graph.symbols().iter().map(|(name, r)| (name.to_string(), size(&mut random, r.min, r.max.max(r.min)))).collect()
}

/// Values for every input, weight and state: small reals, exact in the leaf's dtype; integers that are valid for the ops that
/// read them directly (rows of a gathered table, positions, sequence ids, distinct cache blocks where the pool has enough).
/// No two tokens have the same sequence and position as long as positions have room.
///
/// # Errors
/// If a symbol has no size or a leaf is too large for memory.
pub fn random_bindings(graph: &Graph, dims: &BTreeMap<String, u64>, seed: u64) -> Result<Bindings, IrError> {
    let mut bindings = Bindings::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let (Op::Input { name, dtype, shape, .. }
        | Op::Weight { name, dtype, shape }
        | Op::State { name, dtype, shape }) = &node.op
        else {
            continue;
        };
        let fail = |message: String| IrError::Interpret { path: name.to_string(), message };
        let sizes = shape
            .iter()
            .map(|d| size(d, dims).ok_or_else(|| fail(format!("dim {d} has no value"))))
            .collect::<Result<Vec<u64>, _>>()?;
        let count = sizes.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|n| *n <= 1 << 28);
        let count = count.ok_or_else(|| fail(format!("shape {sizes:?} is too large")))? as usize;
        let sizes: Vec<usize> = sizes.iter().map(|n| *n as usize).collect();
        // By name, so that a weight read by several nodes has one value and passes that add leaves move nothing.
        let key = name.bytes().fold(seed, |k, b| Random::new(k ^ u64::from(b)).bits());
        let mut random = Random::new(key);
        let binding = if dtype.is_float() {
            reals(*dtype, &sizes, count, &mut random)
        } else {
            Binding::ints(&sizes, integers(graph, id, dims, *dtype, count, &mut random))
        };
        bindings.insert(name, binding);
    }
    Ok(bindings)
}

fn size(dim: &Dim, dims: &BTreeMap<String, u64>) -> Option<u64> {
    match dim {
        Dim::Const(n) => Some(*n),
        Dim::Sym(s) => dims.get(&**s).copied(),
    }
}

fn reals(dtype: DType, sizes: &[usize], count: usize, random: &mut Random) -> Binding {
    let mut values: Vec<f64> = (0..count).map(|_| random.small()).collect();
    if dtype.is_block() {
        // Formats without an encoder take decoded values, which need not be representable.
        let single: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        return match encode(dtype, &single, Overflow::Saturate) {
            Ok(bytes) => Binding::encoded(sizes, dtype, bytes.into()),
            Err(_) => Binding::f32(sizes, single),
        };
    }
    F64::round(&mut values, dtype, &Options { round_f32: true, ..Options::default() });
    Binding::f64(sizes, values)
}

/// What an integer leaf is read as.
#[derive(Default)]
struct Role {
    /// Values must be below this.
    limit: Option<u64>,
    /// Sequences of the paged entry, where it is known.
    sequences: Option<u64>,
    kind: Kind,
}

#[derive(Default, PartialEq)]
enum Kind {
    #[default]
    Free,
    Index,
    Positions,
    SequenceIds,
    BlockTable,
}

fn role(graph: &Graph, id: NodeId, dims: &BTreeMap<String, u64>) -> Role {
    let mut role = Role::default();
    let mut users: Vec<_> = graph.users(id).collect();
    users.sort_by_key(|(node, using)| (*node, using.operand));
    for (user, using) in users {
        let node = graph.node(user);
        let dim = |operand: usize, axis: usize| {
            let t = node.operands.get(operand).map(|v| graph.type_of(*v))?;
            size(t.shape.get(axis)?, dims)
        };
        let operand = using.operand as usize;
        let within = node.op.kind().points_into(operand).and_then(|(of, axis)| dim(of, axis));
        let (kind, limit) = match node.op.paged() {
            Some(p) if operand == p.positions => {
                let slots = dim(p.caches[0], p.slots);
                let room = dim(p.block_tables, 1).zip(slots).map(|(width, slots)| width.saturating_mul(slots));
                role.sequences = dim(p.block_tables, 0);
                (Kind::Positions, room.into_iter().chain(within).min())
            }
            Some(p) if operand == p.sequence_ids => (Kind::SequenceIds, dim(p.block_tables, 0)),
            Some(p) if operand == p.block_tables => (Kind::BlockTable, dim(p.caches[0], 0)),
            _ if node.op.kind().info().operands.get(operand) == Some(&"positions") => (Kind::Positions, within),
            _ => match within {
                Some(rows) => {
                    let ranks = node.op.world().map_or(1, i64::unsigned_abs);
                    (Kind::Index, Some(rows.saturating_mul(ranks)))
                }
                None => continue,
            },
        };
        role.kind = kind;
        role.limit = role.limit.into_iter().chain(limit).min();
    }
    role
}

fn integers(
    graph: &Graph,
    id: NodeId,
    dims: &BTreeMap<String, u64>,
    dtype: DType,
    count: usize,
    random: &mut Random,
) -> Vec<i64> {
    let role = role(graph, id, dims);
    let limit = role.limit.unwrap_or(u64::MAX).max(1);
    let sequences = role.sequences.unwrap_or(1).max(1);
    // Blocks in an order that is not the tables': block i of a table is turned by a random amount.
    let turn = random.below(limit);
    (0..count as u64)
        .map(|i| match role.kind {
            Kind::Free if dtype == DType::Bool => random.below(2) as i64,
            Kind::Free if matches!(dtype, DType::U8 | DType::U32) => random.below(9) as i64,
            Kind::Free => random.below(17) as i64 - 8,
            Kind::Index => random.below(limit) as i64,
            // Token i is the (i / B)th of sequence i % B.
            Kind::Positions => ((i / sequences) % limit) as i64,
            Kind::SequenceIds => (i % limit) as i64,
            Kind::BlockTable => ((i % limit + turn) % limit) as i64,
        })
        .collect()
}
