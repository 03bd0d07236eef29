//! Matmuls of one operand by several static weights become one matmul by the joined weight.

use super::{Body, Found, Miss, Numerics, Premises, Proposal, Rule};
use crate::egraph::{ENode, Net, Term};
use egg::Id;
use std::collections::BTreeMap;
use weldment_ir::{Attr, DType, OpKind, TensorType};

pub(super) fn rules() -> Vec<Rule> {
    vec![
        Rule {
            name: "merge_qkv",
            doc: "Projections of one operand by static weights of one dtype and depth are slices of one matmul (or \
                  matmul_add) by the concatenated weight (and bias). Each output element is the same dot product.\n",
            class: Numerics::Bitwise,
            group: Some("merged_qkv"),
            text: TEXT.into(),
            body: Body::Custom { find: |net, ask| merge(net, ask, false), premises: PREMISES },
        },
        Rule {
            name: "merge_gate_up",
            doc: "As merge_qkv, for a set with a member that fed a gate before any rule.\n",
            class: Numerics::Bitwise,
            group: Some("merged_gate_up"),
            text: TEXT.into(),
            body: Body::Custom { find: |net, ask| merge(net, ask, true), premises: PREMISES },
        },
    ]
}

const TEXT: &str = "(matmul ?x ?w_i ?dtype) for every i => (slice (matmul ?x (concat ?w_0 ?w_1 .. 0) ?dtype) ?last \
                    ?offset_i ?offset_i+1) if static(?w_i), same dtype and depth";

// Premises of the search.
const STATIC_WEIGHT: &str = "the weight is static";
const STATIC_BIAS: &str = "the bias is static";
const ROW_BIAS: &str = "one bias for each row of the weight";
const ALIKE: &str = "same weight dtype and depth";
const PREMISES: &[&str] = &[STATIC_WEIGHT, STATIC_BIAS, ROW_BIAS, ALIKE];

/// Matmuls that may be merged: operand, result dtype, whether a bias is added, whether it only feeds a top-k's scores (such a matmul dies
/// where windows fit, and the others must be the same product with and without it). Class order makes the key's order
/// irrelevant to the result: sets do not interact.
type Key = (Id, DType, bool, bool);

/// One member, by its place in the graph before any rule.
#[derive(Clone)]
struct Member {
    node: ENode,
    class: Id,
    weight: Id,
    bias: Option<Id>,
    gate: bool,
}

fn merge(net: &Net, ask: &Premises, gate: bool) -> Found {
    let mut sets: BTreeMap<Key, BTreeMap<u32, Member>> = BTreeMap::new();
    let places = places(net);
    for class in net.classes() {
        // Only values of the graph before any rule: the joined matmul itself is no member.
        let Some(&(order, fed_gate)) = places.get(&class.id) else { continue };
        for node in class.iter() {
            let ENode::Op(kind @ (OpKind::Matmul | OpKind::MatmulAdd), _) = node else { continue };
            let (operands, attrs) = node.split();
            let Some(Attr::DType(dtype)) = attrs.first().and_then(|a| net[*a].data.attr()) else { continue };
            let ([x, w] | [x, w, _]) = operands else { continue };
            let bias = operands.get(2).copied();
            let biased = |b| ask.hold(STATIC_BIAS, is_static(net, b)) && ask.hold(ROW_BIAS, is_row(net, b, *w));
            if !ask.hold(STATIC_WEIGHT, is_static(net, *w)) || !bias.is_none_or(biased) {
                continue;
            }
            let member = Member { node: node.clone(), class: class.id, weight: net.find(*w), bias, gate: fed_gate };
            let scoring = net.analysis.scoring.contains(&order);
            let key = (net.find(*x), *dtype, *kind == OpKind::MatmulAdd, scoring);
            sets.entry(key).or_default().entry(order).or_insert(member);
        }
    }
    let mut found = Found::default();
    for ((x, dtype, ..), members) in sets {
        if members.len() < 2 || members.values().any(|m| m.gate) != gate {
            continue;
        }
        // Equal dtype and depth within a set; biases of one dtype too.
        let mut alike: BTreeMap<(TensorType, Option<DType>), Vec<Member>> = BTreeMap::new();
        for m in members.into_values() {
            let Some(ty) = net[m.weight].data.ty() else { continue };
            let depth = TensorType::new(ty.dtype, ty.shape.get(1..).unwrap_or_default().to_vec());
            let bias = m.bias.and_then(|b| net[b].data.ty()).map(|t| t.dtype);
            let (key, first) = ((depth, bias), alike.keys().next().cloned());
            let joins = first.filter(|first| ask.hold(ALIKE, *first == key));
            alike.entry(joins.unwrap_or(key)).or_default().push(m);
        }
        let largest = alike.iter().max_by_key(|(_, v)| v.len()).map(|(k, _)| k.0.clone());
        for ((depth, _), members) in &alike {
            match members.as_slice() {
                [lone] => found.misses.push(Miss {
                    root: lone.class,
                    predicate: ALIKE,
                    found: depth.to_string(),
                    accepted: largest.as_ref().filter(|l| *l != depth).map_or("two alike".into(), ToString::to_string),
                }),
                _ => found.proposals.extend(join(net, x, dtype, members)),
            }
        }
    }
    found
}

/// Where each value stands in the graph before any rule, and whether it feeds a gate there. A value that only a rule made
/// stands where the graph has a reshape of it.
pub(super) fn places(net: &Net) -> BTreeMap<Id, (u32, bool)> {
    let mut places: BTreeMap<Id, (u32, bool)> = BTreeMap::new();
    let standing = |id: Id| net[id].data.value().and_then(|v| Some((v.order?, v.gate)));
    for class in net.classes() {
        let Some(here) = standing(class.id) else { continue };
        places.insert(class.id, here);
        for node in class.iter().filter(|n| matches!(n, ENode::Op(OpKind::Reshape, _))) {
            if let ([x], _) = node.split()
                && standing(*x).is_none()
            {
                let place = places.entry(net.find(*x)).or_insert(here);
                *place = (place.0.min(here.0), place.1 || here.1);
            }
        }
    }
    places
}

pub(super) fn is_static(net: &Net, id: Id) -> bool {
    net[id].data.value().is_some_and(|v| v.fixed)
}

/// A bias: one number for each row of w.
fn is_row(net: &Net, bias: Id, w: Id) -> bool {
    matches!((net[bias].data.ty(), net[w].data.ty()), (Some(b), Some(w)) if b.rank() == 1 && b.shape.first() == w.shape.first())
}

/// Matmuls of one operand, by class and weight, that a report asks about.
pub(crate) struct Set {
    pub operand: Id,
    pub dtype: DType,
    pub members: Vec<(Id, Id)>,
}

/// What would stand for the members of a set if they were merged.
pub(crate) fn propose(net: &Net, set: &Set) -> Option<Vec<(Id, Term)>> {
    let member = |(class, weight): &(Id, Id)| {
        let node = net[*class].iter().find(|n| matches!(n, ENode::Op(OpKind::Matmul, _)))?.clone();
        Some(Member { node, class: *class, weight: *weight, bias: None, gate: false })
    };
    let members: Option<Vec<Member>> = set.members.iter().map(member).collect();
    join(net, set.operand, set.dtype, &members?).map(|p| p.equal)
}

fn join(net: &Net, x: Id, dtype: DType, members: &[Member]) -> Option<Proposal> {
    let rows: Option<Vec<i64>> = members
        .iter()
        .map(|m| net[m.weight].data.ty()?.shape.first()?.constant().and_then(|n| i64::try_from(n).ok()))
        .collect();
    let axis = i64::try_from(net[x].data.ty()?.rank().checked_sub(1)?).ok()?;
    let concat =
        |ids: Vec<Id>| Term::op(OpKind::Concat, ids.into_iter().map(Term::Class).collect(), vec![Attr::Int(0)]);
    let weight = concat(members.iter().map(|m| m.weight).collect());
    let attrs = vec![Attr::DType(dtype)];
    let biases: Vec<Id> = members.iter().filter_map(|m| m.bias).collect();
    let joined = if biases.is_empty() {
        Term::op(OpKind::Matmul, vec![Term::Class(x), weight], attrs)
    } else {
        Term::op(OpKind::MatmulAdd, vec![Term::Class(x), weight, concat(biases)], attrs)
    };
    let mut offset = 0i64;
    let mut equal = Vec::with_capacity(members.len());
    for (m, n) in members.iter().zip(rows?) {
        let end = offset.checked_add(n)?;
        let attrs = [axis, offset, end].map(Attr::Int).to_vec();
        equal.push((m.class, Term::op(OpKind::Slice, vec![joined.clone()], attrs)));
        offset = end;
    }
    let from = members.iter().map(|m| m.node.clone()).collect();
    Some(Proposal { root: members.first()?.class, equal, from })
}
