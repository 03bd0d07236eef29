//! Views and other ops that compute nothing: canonical forms, and views moved out of the way of fusions.

use super::{Body, Found, Numerics, Premises, Proposal, Rule, rule};
use crate::egraph::{ENode, Net, Term};
use egg::Id;
use std::collections::BTreeMap;
use weldment_ir::{Attr, OpKind};

pub(super) fn rules() -> Vec<Rule> {
    let mut rules = vec![
        rule! {
            /// A reshape of a reshape is one reshape.
            reshape_of_reshape [Bitwise]: (reshape (reshape ?x ?s) ?t) => (reshape ?x ?t)
        },
        rule! {
            /// A reshape to the operand's own shape is nothing.
            reshape_identity [Bitwise]: (reshape ?x ?s) => (?x) if shape_is(?x, ?s)
        },
        rule! {
            /// A transpose that keeps the order of dims is nothing.
            transpose_identity [Bitwise]: (transpose ?x ?p) => (?x) if in_order(?p)
        },
        rule! {
            /// Two transposes are one, by the composed permutation.
            transpose_of_transpose [Bitwise]:
                (transpose (transpose ?x ?p) ?q) => (transpose ?x ?r) where ?r = compose(?p, ?q)
        },
        rule! {
            /// A slice of a whole axis is nothing.
            slice_identity [Bitwise]: (slice ?x ?axis ?start ?end) => (?x) if whole_axis(?x, ?axis, ?start, ?end)
        },
        rule! {
            /// A broadcast to the operand's own shape is nothing.
            broadcast_identity [Bitwise]: (broadcast ?x ?s) => (?x) if shape_is(?x, ?s)
        },
        rule! {
            /// A broadcast of a broadcast is one broadcast.
            broadcast_of_broadcast [Bitwise]: (broadcast (broadcast ?x ?s) ?t) => (broadcast ?x ?t)
        },
        rule! {
            /// A cast to the operand's own dtype is nothing.
            cast_identity [Bitwise]: (cast ?x ?d) => (?x) if dtype_is(?x, ?d)
        },
        rule! {
            /// A cast to f32 and back loses nothing.
            cast_round_trip [Bitwise]: (cast (cast ?x ?wide) ?d) => (?x) if widens(?x, ?wide), dtype_is(?x, ?d)
        },
        rule! {
            /// Widening before a cast changes nothing: both round the same real number once.
            cast_of_widening [Bitwise]: (cast (cast ?x ?wide) ?d) => (cast ?x ?d) if widens(?x, ?wide)
        },
        rule! {
            /// A concatenation of one part is the part.
            concat_of_one [Bitwise]: (concat ?x ?axis) => (?x)
        },
        rule! {
            /// Addition commutes.
            add_commutes [Bitwise]: (add ?a ?b) => (add ?b ?a)
        },
        rule! {
            /// Multiplication commutes.
            mul_commutes [Bitwise]: (mul ?a ?b) => (mul ?b ?a)
        },
        rule! {
            /// Addition broadcasts by itself.
            add_broadcasts [Bitwise]: (add ?a (broadcast ?b ?s)) => (add ?a ?b) if broadcast_is_implicit(?a, ?s)
        },
        rule! {
            /// Multiplication broadcasts by itself.
            mul_broadcasts [Bitwise]: (mul ?a (broadcast ?b ?s)) => (mul ?a ?b) if broadcast_is_implicit(?a, ?s)
        },
        rule! {
            /// A sum of two reshaped values is a reshaped sum: values of one size broadcast by dims of 1 at most.
            add_past_reshape [Bitwise]:
                (add (reshape ?x ?s) (reshape ?y ?s)) => (reshape (add ?x ?y) ?s)
        },
        rule! {
            /// A product of two reshaped values is a reshaped product: values of one size broadcast by dims of 1 at most.
            mul_past_reshape [Bitwise]:
                (mul (reshape ?x ?s) (reshape ?y ?s)) => (reshape (mul ?x ?y) ?s)
        },
        rule! {
            /// A row or a number is added to reshaped rows as to the rows.
            add_row_past_reshape [Bitwise]:
                (add (reshape ?x ?s) ?b) => (reshape (add ?x ?b) ?s) if row_of_both(?b, ?x, ?s)
        },
        rule! {
            /// Reshaped rows are multiplied by a row or a number as the rows are.
            mul_row_past_reshape [Bitwise]:
                (mul (reshape ?x ?s) ?b) => (reshape (mul ?x ?b) ?s) if row_of_both(?b, ?x, ?s)
        },
        rule! {
            /// silu of a reshaped value is a reshaped silu.
            silu_past_reshape [Bitwise]: (silu (reshape ?x ?s)) => (reshape (silu ?x) ?s)
        },
        rule! {
            /// sigmoid of a reshaped value is a reshaped sigmoid.
            sigmoid_past_reshape [Bitwise]: (sigmoid (reshape ?x ?s)) => (reshape (sigmoid ?x) ?s)
        },
        rule! {
            /// A cast of a reshaped value is a reshaped cast. Blocks stay whole: the op table quantises and reshapes whole
            /// blocks only, so a block is the same 32 row-major neighbours on both sides.
            cast_past_reshape [Bitwise]: (cast (reshape ?x ?s) ?d) => (reshape (cast ?x ?d) ?s)
        },
        rule! {
            /// A norm of reshaped rows is the norm of the rows, reshaped.
            rms_norm_past_reshape [Bitwise]:
                (rms_norm (reshape ?x ?s) ?w ?eps ?dtype) => (reshape (rms_norm ?x ?w ?eps ?dtype) ?s)
                if keeps_last_dim(?x, ?s)
        },
        rule! {
            /// A matmul of reshaped rows is the matmul of the rows, reshaped.
            matmul_past_reshape [Bitwise]:
                (matmul (reshape ?x ?s) ?w ?dtype) => (reshape (matmul ?x ?w ?dtype) ?t)
                where ?t = rows_of(?w, ?s)
                if keeps_last_dim(?x, ?s)
        },
    ];
    rules.push(Rule {
        name: "slice_of_slice",
        doc: "A slice of a slice along the same axis is one slice.\n",
        class: Numerics::Bitwise,
        group: None,
        text: "(slice (slice ?x ?axis ?a ?b) ?axis ?c ?d) => (slice ?x ?axis ?a+?c ?a+?d), of the largest ?x".into(),
        body: Body::Custom { find: slice_of_slice, premises: &[SAME_AXIS] },
    });
    rules.push(Rule {
        name: "slice_of_concat",
        doc: "A slice that lies inside one part of a concatenation is a slice of that part.\n",
        class: Numerics::Bitwise,
        group: None,
        text:
            "(slice (concat ..?parts ?axis) ?axis ?start ?end) => (slice ?part ?axis ?start' ?end') if inside one part"
                .into(),
        body: Body::Custom { find: slice_of_concat, premises: &[SAME_AXIS, STARTS_INSIDE, ENDS_INSIDE] },
    });
    rules.push(Rule {
        name: "concat_of_slices",
        doc: "A concatenation of neighbouring slices of one value is one slice of it.\n",
        class: Numerics::Bitwise,
        group: None,
        text: "(concat (slice ?x ?axis ?a ?b) (slice ?x ?axis ?b ?c) .. ?axis) => (slice ?x ?axis ?a ?c)".into(),
        body: Body::Custom { find: concat_of_slices, premises: &[SAME_AXIS, SAME_VALUE, NEIGHBOURS] },
    });
    rules
}

// Premises of the searches below.
const SAME_AXIS: &str = "the same axis";
const STARTS_INSIDE: &str = "the slice starts inside the part";
const ENDS_INSIDE: &str = "the slice ends inside the part";
const SAME_VALUE: &str = "slices of one value";
const NEIGHBOURS: &str = "each slice starts where the last ended";

fn int(net: &Net, id: Id) -> Option<i64> {
    match net[id].data.attr() {
        Some(Attr::Int(n)) => Some(*n),
        _ => None,
    }
}

/// Classes that hold a node of this op, with each such node.
pub(super) fn nodes_of(net: &Net, kind: OpKind) -> impl Iterator<Item = (Id, &ENode)> {
    net.classes().flat_map(move |class| {
        class.iter().filter(move |n| matches!(n, ENode::Op(k, _) if *k == kind)).map(move |n| (class.id, n))
    })
}

/// Of all values that a slice can be seen to be a slice of, the largest is taken: in a chain of slices each is then known as one of
/// a value twice as far up after each round, and not as one of every value before it.
fn slice_of_slice(net: &Net, ask: &Premises) -> Found {
    let mut best: BTreeMap<(Id, i64), (u64, Proposal)> = BTreeMap::new();
    for (root, node) in nodes_of(net, OpKind::Slice) {
        let ([inner], [axis, start, end]) = node.split() else { continue };
        let (Some(axis), Some(start), Some(end)) = (int(net, *axis), int(net, *start), int(net, *end)) else {
            continue;
        };
        for outer in net[*inner].iter().filter(|n| matches!(n, ENode::Op(OpKind::Slice, _))) {
            let ([x], [a, first, _]) = outer.split() else { continue };
            let (Some(first), Some(size)) = (int(net, *first), extent(net, *x, axis)) else { continue };
            let larger = best.get(&(root, axis)).is_none_or(|(known, _)| size > *known);
            if !larger || !ask.hold(SAME_AXIS, int(net, *a) == Some(axis)) {
                continue;
            }
            let (Some(start), Some(end)) = (first.checked_add(start), first.checked_add(end)) else { continue };
            let term = Term::op(OpKind::Slice, vec![Term::Class(*x)], [axis, start, end].map(Attr::Int).to_vec());
            let from = vec![outer.clone(), node.clone()];
            best.insert((root, axis), (size, Proposal { root, equal: vec![(root, term)], from }));
        }
    }
    Found { proposals: best.into_values().map(|(_, proposal)| proposal).collect(), ..Found::default() }
}

/// The size of a value along an axis.
fn extent(net: &Net, value: Id, axis: i64) -> Option<u64> {
    net[value].data.ty()?.shape.get(usize::try_from(axis).ok()?)?.constant()
}

fn slice_of_concat(net: &Net, ask: &Premises) -> Found {
    let mut found = Found::default();
    for (root, node) in nodes_of(net, OpKind::Slice) {
        let ([x], [axis, start, end]) = node.split() else { continue };
        let (Some(axis), Some(start), Some(end)) = (int(net, *axis), int(net, *start), int(net, *end)) else {
            continue;
        };
        for concat in net[*x].iter().filter(|n| matches!(n, ENode::Op(OpKind::Concat, _))) {
            let (parts, attrs) = concat.split();
            if !ask.hold(SAME_AXIS, attrs.first().and_then(|a| int(net, *a)) == Some(axis)) {
                continue;
            }
            let mut offset = 0i64;
            for part in parts {
                let size = extent(net, *part, axis).and_then(|n| i64::try_from(n).ok());
                let Some(size) = size else { break };
                if ask.hold(STARTS_INSIDE, start >= offset) && ask.hold(ENDS_INSIDE, end <= offset + size) {
                    let attrs = [axis, start - offset, end - offset].map(Attr::Int).to_vec();
                    let term = Term::op(OpKind::Slice, vec![Term::Class(*part)], attrs);
                    let from = vec![node.clone(), concat.clone()];
                    found.proposals.push(Proposal { root, equal: vec![(root, term)], from });
                }
                offset += size;
            }
        }
    }
    found
}

fn concat_of_slices(net: &Net, ask: &Premises) -> Found {
    let mut found = Found::default();
    for (root, node) in nodes_of(net, OpKind::Concat) {
        let (parts, attrs) = node.split();
        let (Some(axis), true) = (attrs.first().and_then(|a| int(net, *a)), parts.len() > 1) else { continue };
        let slices = |part: Id| {
            net[part].iter().filter_map(move |n| match (n, n.split()) {
                (ENode::Op(OpKind::Slice, _), ([x], [a, start, end]))
                    if ask.hold(SAME_AXIS, int(net, *a) == Some(axis)) =>
                {
                    Some((net.find(*x), int(net, *start)?, int(net, *end)?))
                }
                _ => None,
            })
        };
        let Some(first) = parts.first() else { continue };
        for (x, start, mut end) in slices(*first) {
            let joined = parts.iter().skip(1).all(|part| {
                let next = slices(*part).find(|s| ask.hold(SAME_VALUE, s.0 == x) && ask.hold(NEIGHBOURS, s.1 == end));
                end = next.map_or(end, |next| next.2);
                next.is_some()
            });
            if joined {
                let attrs = [axis, start, end].map(Attr::Int).to_vec();
                let term = Term::op(OpKind::Slice, vec![Term::Class(x)], attrs);
                found.proposals.push(Proposal { root, equal: vec![(root, term)], from: vec![node.clone()] });
            }
        }
    }
    found
}
