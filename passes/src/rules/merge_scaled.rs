//! Products of FP8 codes by several static weights become one product by the joined weight, as matmuls do (see `merge`).

use super::merge::{is_static, places};
use super::{Body, Found, Miss, Numerics, Premises, Proposal, Rule};
use crate::egraph::{ENode, Net, Term};
use egg::Id;
use std::collections::BTreeMap;
use weldment_ir::{Attr, DType, OpKind};

pub(super) fn rules() -> Vec<Rule> {
    vec![
        Rule {
            name: "merge_scaled_qkv",
            doc: "Products of one operand's codes by static weights of one dtype, with scales of blocks of one size, are slices of one \
                  product by the concatenated weight and scales, where blocks of scales do not cross from one weight into the next. Each \
                  output element is the same sum.\n",
            class: Numerics::Bitwise,
            group: Some("merged_qkv"),
            text: TEXT.into(),
            body: Body::Custom { find: |net, ask| merge(net, ask, false), premises: PREMISES },
        },
        Rule {
            name: "merge_scaled_gate_up",
            doc: "As merge_scaled_qkv, for a set with a member that fed a gate before any rule.\n",
            class: Numerics::Bitwise,
            group: Some("merged_gate_up"),
            text: TEXT.into(),
            body: Body::Custom { find: |net, ask| merge(net, ask, true), premises: PREMISES },
        },
    ]
}

const TEXT: &str = "(scaled_matmul ?c ?s ?w_i ?ws_i ?rows ?columns ?dtype) for every i => (slice (scaled_matmul ?c ?s (concat ?w_0 \
                    ?w_1 .. 0) (concat ?ws_0 ?ws_1 .. 0) ?rows ?columns ?dtype) ?last ?offset_i ?offset_i+1) if static(?w_i), \
                    static(?ws_i), same dtype, whole blocks";

// Premises of the search.
const STATIC_WEIGHT: &str = "the weight is static";
const STATIC_SCALES: &str = "its scales are static";
const WHOLE_BLOCKS: &str = "rows of the weight";
const PREMISES: &[&str] = &[STATIC_WEIGHT, STATIC_SCALES, WHOLE_BLOCKS];

/// Products that may be merged: codes and their scales, block size, result dtype, dtype of the weight, whether it only feeds a top-k's
/// scores.
type Key = (Id, Id, i64, i64, DType, DType, bool);

/// One member, by its place in the graph before any rule.
struct Member {
    node: ENode,
    class: Id,
    weight: Id,
    scales: Id,
    rows: i64,
    gate: bool,
}

fn merge(net: &Net, ask: &Premises, gate: bool) -> Found {
    let mut sets: BTreeMap<Key, BTreeMap<u32, Member>> = BTreeMap::new();
    let places = places(net);
    for class in net.classes() {
        // Only values of the graph before any rule: the joined product itself is no member.
        let Some(&(order, fed_gate)) = places.get(&class.id) else { continue };
        for node in class.iter().filter(|n| matches!(n, ENode::Op(OpKind::ScaledMatmul, _))) {
            let (&[codes, scales, w, w_scales], &[rows, columns, dtype]) = node.split() else { continue };
            let attr = |id: Id| net[id].data.attr().cloned();
            let (Some(Attr::Int(block)), Some(Attr::Int(columns)), Some(Attr::DType(dtype))) =
                (attr(rows), attr(columns), attr(dtype))
            else {
                continue;
            };
            let Some(stored) = net[w].data.ty() else { continue };
            let Some(rows) = stored.shape.first().and_then(|d| d.constant()).and_then(|n| i64::try_from(n).ok()) else {
                continue;
            };
            let fixed = ask.hold(STATIC_WEIGHT, is_static(net, w)) && ask.hold(STATIC_SCALES, is_static(net, w_scales));
            if !fixed {
                continue;
            }
            let scoring = net.analysis.scoring.contains(&order);
            let key = (net.find(codes), net.find(scales), block, columns, dtype, stored.dtype, scoring);
            let (weight, scales) = (net.find(w), net.find(w_scales));
            let member = Member { node: node.clone(), class: class.id, weight, scales, rows, gate: fed_gate };
            sets.entry(key).or_default().entry(order).or_insert(member);
        }
    }
    let mut found = Found::default();
    for (key, members) in sets {
        let members: Vec<Member> = members.into_values().collect();
        if members.len() < 2 || members.iter().any(|m| m.gate) != gate {
            continue;
        }
        // The last may end inside a block.
        let (block, inner) = (key.2, &members[..members.len() - 1]);
        match inner.iter().find(|m| !ask.hold(WHOLE_BLOCKS, m.rows % block == 0)) {
            Some(odd) => found.misses.push(Miss {
                root: odd.class,
                predicate: WHOLE_BLOCKS,
                found: format!("{} in blocks of {block}", odd.rows),
                accepted: format!("a multiple of {block}"),
            }),
            None => found.proposals.extend(join(net, &key, &members)),
        }
    }
    found
}

fn join(net: &Net, key: &Key, members: &[Member]) -> Option<Proposal> {
    let (codes, scales, rows, columns, dtype, ..) = *key;
    let axis = i64::try_from(net[codes].data.ty()?.rank().checked_sub(1)?).ok()?;
    let concat = |of: &dyn Fn(&Member) -> Id| {
        let parts = members.iter().map(|m| Term::Class(of(m))).collect();
        Term::op(OpKind::Concat, parts, vec![Attr::Int(0)])
    };
    let operands = vec![Term::Class(codes), Term::Class(scales), concat(&|m| m.weight), concat(&|m| m.scales)];
    let attrs = vec![Attr::Int(rows), Attr::Int(columns), Attr::DType(dtype)];
    let joined = Term::op(OpKind::ScaledMatmul, operands, attrs);
    let mut offset = 0i64;
    let mut equal = Vec::with_capacity(members.len());
    for m in members {
        let end = offset.checked_add(m.rows)?;
        let attrs = [axis, offset, end].map(Attr::Int).to_vec();
        equal.push((m.class, Term::op(OpKind::Slice, vec![joined.clone()], attrs)));
        offset = end;
    }
    let from = members.iter().map(|m| m.node.clone()).collect();
    Some(Proposal { root: members.first()?.class, equal, from })
}
