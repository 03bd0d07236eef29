//! Near misses of merged matmuls, whose rule is a search and not a pattern.

use super::{Closest, Ground, Obstacle, everything, words};
use crate::egraph::ENode;
use crate::rules::merge::{Set, propose};
use crate::rules::{Body, Premises, Rule};
use crate::solve::Solver;
use egg::Id;
use std::collections::BTreeSet;
use weldment_ir::{Attr, DType, OpKind, TensorType};

/// What the names of rules for products of codes start with.
const SCALED: &str = "merge_scaled_";

/// What the members of a set must share.
struct Member {
    node: u32,
    class: Id,
    weight: Id,
    dtype: Option<DType>,
    /// Classes that it can be a matmul of, reshaped rows included.
    operands: BTreeSet<Id>,
}

/// What keeps the matmuls `nodes` from being one; no obstacle if they could be.
pub(crate) fn merge_obstacle<'a>(
    solver: &'a Solver<'a>,
    ground: &Ground<'_>,
    group: &str,
    nodes: &[u32],
) -> Option<Closest<'a>> {
    if nodes.iter().all(|n| ground.kind(*n) == OpKind::ScaledMatmul) {
        return scaled_obstacle(solver, ground, group, nodes);
    }
    // Whatever the order of rules: that of plain products.
    let plain = |name: &str| name.starts_with("merge_") && !name.starts_with(SCALED);
    let (rule, barred) = everything(solver).find(|(r, _)| r.group == Some(group) && plain(r.name))?;
    let members: Vec<Member> = nodes.iter().filter_map(|n| member(ground, *n)).collect();
    let obstacle = first_obstacle(solver, ground, &members).filter(|_| barred.is_none());
    let ops = members.iter().map(|m| m.class).collect();
    Some(Closest { rule, barred, obstacle, ops, root: None, cost: 0, size: 0 })
}

/// The same for products of codes, whose search says itself what it missed.
fn scaled_obstacle<'a>(solver: &'a Solver<'a>, ground: &Ground<'_>, group: &str, nodes: &[u32]) -> Option<Closest<'a>> {
    let named = |r: &Rule| r.group == Some(group) && r.name.starts_with(SCALED);
    let (rule, barred) = everything(solver).find(|(r, _)| named(r))?;
    let Body::Custom { find, .. } = &rule.body else { return None };
    let place = |class: Id| nodes.iter().copied().find(|n| ground.class(*n) == Some(ground.net.find(class)));
    let misses = find(ground.net, &Premises::default()).misses;
    let obstacle = misses.iter().find_map(|m| {
        let node = place(m.root)?;
        Some(Obstacle { at: vec![node], ..words::plain(m.predicate, &m.found, &m.accepted) })
    });
    let ops = nodes.iter().filter_map(|n| ground.class(*n)).collect();
    Some(Closest { rule, barred, obstacle: obstacle.filter(|_| barred.is_none()), ops, root: None, cost: 0, size: 0 })
}

fn member(ground: &Ground<'_>, node: u32) -> Option<Member> {
    let class = ground.class(node)?;
    let net = ground.net;
    let matmul = |id: Id| {
        net[id].iter().filter_map(|n| match (n, n.split()) {
            (ENode::Op(OpKind::Matmul, _), ([x, w], [d])) => Some((net.find(*x), net.find(*w), net[*d].data.attr())),
            _ => None,
        })
    };
    let reshaped = net[class].iter().filter_map(|n| match n {
        ENode::Op(OpKind::Reshape, ids) => ids.first().copied(),
        _ => None,
    });
    let operands = reshaped.chain([class]).flat_map(|id| matmul(id).map(|m| m.0).collect::<Vec<_>>()).collect();
    let (_, weight, dtype) = matmul(class).next()?;
    let dtype = dtype.and_then(|a| match a {
        Attr::DType(d) => Some(*d),
        _ => None,
    });
    Some(Member { node, class, weight, dtype, operands })
}

fn first_obstacle(solver: &Solver<'_>, ground: &Ground<'_>, members: &[Member]) -> Option<Obstacle> {
    let net = ground.net;
    let at = |m: &Member, o: Obstacle| Some(Obstacle { at: vec![m.node], ..o });
    let ty = |id: Id| net[id].data.ty();
    if let Some(m) = members.iter().find(|m| !net[m.weight].data.value().is_some_and(|v| v.fixed)) {
        let found = format!("{}, computed in the step", words::describe(ground, m.weight));
        let mut o = words::plain("static weight", &found, "a weight of the model");
        o.change = "make it a weight of the model, or compute it from weights alone".into();
        return at(m, o);
    }
    let first = members.first()?;
    let other = |differs: &dyn Fn(&Member) -> bool| members.iter().find(|m| differs(m));
    if let Some(m) = other(&|m| m.operands.is_disjoint(&first.operands)) {
        let shown = |m: &Member| m.operands.first().map(|id| words::describe(ground, *id)).unwrap_or_default();
        let mut o = words::plain("one operand", &format!("{} and {}", shown(first), shown(m)), "the same value");
        o.change = "let the matmuls read one value, in one dtype".into();
        return at(m, o);
    }
    if let Some(m) = other(&|m| m.dtype != first.dtype) {
        let shown = |d: Option<DType>| d.map_or("unknown", |d| d.name());
        let found = format!("{} and {}", shown(first.dtype), shown(m.dtype));
        let mut o = words::plain("one result dtype", &found, "equal dtypes");
        o.change = format!("give the matmuls one result dtype ({found} now)");
        return at(m, o);
    }
    if let Some(m) = other(&|m| rows(ty(m.weight)).is_none()) {
        let found = words::describe(ground, m.weight);
        return at(m, words::plain("rows of the weight", &found, "a constant number"));
    }
    // The commonest kind of weight is what the others differ from.
    let kinds: Vec<Option<TensorType>> = members.iter().map(|m| depth(ty(m.weight))).collect();
    let count = |k: &Option<TensorType>| kinds.iter().filter(|other| *other == k).count();
    let common = kinds.iter().max_by_key(|k| count(k))?;
    if let Some((m, kind)) = members.iter().zip(&kinds).find(|(_, k)| *k != common) {
        let shown = |k: &Option<TensorType>| k.as_ref().map(ToString::to_string).unwrap_or_default();
        let mut o = words::plain("same weight dtype and depth", &shown(kind), &shown(common));
        o.change = format!("store the weight as {} ({} now)", shown(common), shown(kind));
        return at(m, o);
    }
    if let Some((m, found, accepted)) = members.iter().find_map(|m| odd_bias(ground, m)) {
        let mut o = words::plain("bias", &found, &accepted);
        o.change = "reshape the bias to one number a row of the weight".into();
        return at(m, o);
    }
    let shared = members.iter().fold(first.operands.clone(), |all, m| all.intersection(&m.operands).copied().collect());
    let set = Set {
        operand: *shared.first()?,
        dtype: first.dtype?,
        members: members.iter().map(|m| (m.class, m.weight)).collect(),
    };
    let refused = propose(net, &set)?.into_iter().find_map(|(_, term)| term.check(net, solver.target).err())?;
    at(first, words::plain(&refused.predicate, &refused.found, &refused.accepted))
}

/// A static value added to a member alone that is not one number a row: member, found, accepted.
fn odd_bias<'m>(ground: &Ground<'_>, m: &'m Member) -> Option<(&'m Member, String, String)> {
    let [(user, position)] = ground.users[m.node as usize].as_slice() else { return None };
    if ground.kind(*user) != OpKind::Add {
        return None;
    }
    let other = ground.unit.nodes[*user as usize].operands.get(1 - (*position as usize).min(1))?;
    let id = ground.operand(other)?;
    let facts = ground.net[id].data.value().filter(|v| v.fixed)?;
    let (bias, rows) = (facts.types.first()?, rows(ground.net[m.weight].data.ty())?);
    let fits = bias.rank() == 1 && bias.shape.first()?.constant() == Some(rows);
    (!fits).then(|| (m, bias.to_string(), format!("rank 1 and {rows} numbers")))
}

fn rows(ty: Option<&TensorType>) -> Option<u64> {
    ty?.shape.first()?.constant()
}

/// Dtype and dims but the first.
fn depth(ty: Option<&TensorType>) -> Option<TensorType> {
    ty.map(|t| TensorType::new(t.dtype, t.shape.get(1..).unwrap_or_default().to_vec()))
}
