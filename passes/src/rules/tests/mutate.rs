//! Wrong siblings of a rule, made mechanically: of its left side (a condition dropped or inverted, two occurrences of a
//! variable told apart, a written-out attribute or an op replaced) and of the terms that it proposes (operands swapped, an
//! attribute off by one, an operand put through as it is, another op, another value, the other result, sides exchanged).

use super::draw::{Instance, Patterns};
use super::gate::Equal;
use crate::egraph::{ENode, Term};
use crate::rules::{Body, Rule};
use egg::{ENodeOrVar, Id, PatternAst, Var};
use std::collections::BTreeSet;
use std::fmt;
use weldment_ir::{Attr, AttrKind, Category, DType, OpKind, Real};

/// One change to a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mutation {
    /// Fires whatever this condition says.
    Drop(usize, &'static str),
    /// Fires only where this condition is not proven.
    Invert(usize, &'static str),
    /// Fires where a premise of a custom search does not hold.
    Grant(&'static str),
    /// The n-th later occurrence of a variable on the left is a variable of its own.
    Split(usize, String),
    /// The n-th written-out attribute of the left is any attribute.
    Widen(usize, String),
    /// The n-th op of the left is another op.
    LeftOp(usize, OpKind, OpKind),
    /// A change to the n-th node, counted through all proposed terms, outermost first.
    Term(usize, Change),
    /// The first two classes take each other's terms.
    Exchange,
}

/// A change to one node of a term.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// Two operands swapped.
    Swap(usize, usize),
    /// An attribute replaced by a neighbour; there are two of each.
    Attribute(usize, bool),
    /// The node replaced by one of its operands.
    Skip(usize),
    /// Another op with the same operands and attributes.
    Op(OpKind),
    /// The n-th other value of the left side in place of this one.
    Value(usize),
    /// The other result.
    Result,
    /// The value put through one more op.
    Wrap(OpKind),
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mutation::Drop(i, name) => write!(f, "condition {i} `{name}` dropped"),
            Mutation::Invert(i, name) => write!(f, "condition {i} `{name}` inverted"),
            Mutation::Grant(name) => write!(f, "premise `{name}` dropped"),
            Mutation::Split(n, v) => write!(f, "occurrence {n} of {v} told apart"),
            Mutation::Widen(n, a) => write!(f, "attribute {n} on the left, `{a}`, widened"),
            Mutation::LeftOp(n, a, b) => write!(f, "op {n} on the left, {a}, read as {b}"),
            Mutation::Exchange => write!(f, "sides exchanged"),
            Mutation::Term(n, change) => match change {
                Change::Swap(i, j) => write!(f, "node {n}: operands {i} and {j} swapped"),
                Change::Attribute(i, up) => write!(f, "node {n}: attribute {i} {}", if *up { "up" } else { "down" }),
                Change::Skip(i) => write!(f, "node {n}: operand {i} put through"),
                Change::Op(kind) => write!(f, "node {n}: {kind}"),
                Change::Value(i) => write!(f, "node {n}: other value {i}"),
                Change::Result => write!(f, "node {n}: other result"),
                Change::Wrap(kind) => write!(f, "node {n}: {kind} of it"),
            },
        }
    }
}

/// Every mutation of the left side.
pub(super) fn of_left(rule: &Rule) -> Vec<Mutation> {
    let (sources, conditions) = match &rule.body {
        Body::Custom { premises, .. } => return premises.iter().map(|p| Mutation::Grant(p)).collect(),
        Body::Rewrite { sources, conditions, .. } => (sources, conditions),
    };
    let mut out = Vec::new();
    for (i, c) in conditions.iter().enumerate() {
        out.push(Mutation::Drop(i, c.predicate));
        out.push(Mutation::Invert(i, c.predicate));
    }
    let (mut seen, mut splits, mut literals, mut ops) = (BTreeSet::new(), 0, 0, 0);
    for node in sources.iter().flat_map(|(_, p)| p.iter()) {
        match node {
            ENodeOrVar::Var(v) => {
                if !seen.insert(*v) {
                    out.push(Mutation::Split(splits, v.to_string()));
                    splits += 1;
                }
            }
            ENodeOrVar::ENode(ENode::Attr(a)) => {
                out.push(Mutation::Widen(literals, a.to_string()));
                literals += 1;
            }
            ENodeOrVar::ENode(ENode::Op(kind, children)) => {
                let operands = children.len() - kind.info().attrs.len();
                out.extend(siblings(*kind, operands).into_iter().map(|other| Mutation::LeftOp(ops, *kind, other)));
                ops += 1;
            }
            ENodeOrVar::ENode(_) => {}
        }
    }
    out
}

/// The left side with a mutation of it made.
pub(super) fn left(patterns: &Patterns, mutation: &Mutation) -> Patterns {
    let (mut seen, mut splits, mut literals, mut ops) = (BTreeSet::new(), 0, 0, 0);
    let fresh = |n: usize| -> Var { format!("?fresh{n}").parse().expect("a variable's name") };
    let mut node = |node: &ENodeOrVar<ENode>| match node {
        ENodeOrVar::Var(v) => {
            let again = !seen.insert(*v);
            splits += usize::from(again);
            match mutation {
                Mutation::Split(n, _) if again && splits == *n + 1 => ENodeOrVar::Var(fresh(0)),
                _ => node.clone(),
            }
        }
        ENodeOrVar::ENode(ENode::Attr(_)) => {
            literals += 1;
            match mutation {
                Mutation::Widen(n, _) if literals == *n + 1 => ENodeOrVar::Var(fresh(0)),
                _ => node.clone(),
            }
        }
        ENodeOrVar::ENode(ENode::Op(_, children)) => {
            ops += 1;
            match mutation {
                Mutation::LeftOp(n, _, other) if ops == *n + 1 => {
                    ENodeOrVar::ENode(ENode::Op(*other, children.clone()))
                }
                _ => node.clone(),
            }
        }
        ENodeOrVar::ENode(_) => node.clone(),
    };
    patterns.iter().map(|(v, p)| (*v, PatternAst::from(p.iter().map(&mut node).collect::<Vec<_>>()))).collect()
}

/// Every mutation of the terms that a rule proposes.
pub(super) fn of_terms(equal: &Equal) -> Vec<Mutation> {
    let nodes = distinct(equal);
    let mut out: Vec<Mutation> = nodes
        .iter()
        .enumerate()
        .flat_map(|(n, node)| changes(node).into_iter().map(move |c| Mutation::Term(n, c)))
        .collect();
    if equal.len() > 1 {
        out.push(Mutation::Exchange);
    }
    out
}

/// Every different node of the terms, outermost first: equal ones are one node of the e-graph.
fn distinct(equal: &Equal) -> Vec<Term> {
    fn visit(term: &Term, out: &mut Vec<Term>) {
        if out.contains(term) {
            return;
        }
        out.push(term.clone());
        match term {
            Term::Op(_, children) => children.iter().for_each(|c| visit(c, out)),
            Term::Result(_, of) => visit(of, out),
            Term::Class(_) | Term::Attr(_) => {}
        }
    }
    let mut out = Vec::new();
    equal.iter().for_each(|(_, term)| visit(term, &mut out));
    out
}

fn changes(term: &Term) -> Vec<Change> {
    match term {
        Term::Op(kind, children) => {
            let operands = children.len() - kind.info().attrs.len();
            let mut out: Vec<Change> = Vec::new();
            // A commutative op with its operands swapped is no sibling but the same rule.
            let commutes = matches!(kind, OpKind::Add | OpKind::Mul | OpKind::Maximum | OpKind::Minimum);
            for i in 0..operands {
                out.extend((i + 1..operands).filter(|_| !commutes).map(|j| Change::Swap(i, j)));
            }
            out.extend((0..operands.min(3)).map(Change::Skip));
            out.extend(
                (operands..children.len()).flat_map(|i| [Change::Attribute(i, true), Change::Attribute(i, false)]),
            );
            out.extend(siblings(*kind, operands).into_iter().map(Change::Op));
            out
        }
        Term::Class(_) => {
            vec![Change::Value(0), Change::Value(1), Change::Wrap(OpKind::Neg), Change::Wrap(OpKind::Sigmoid)]
        }
        Term::Result(..) => vec![Change::Result],
        Term::Attr(_) => Vec::new(),
    }
}

/// Up to two other ops that take as many operands and the same kinds of attributes, the most alike first. Not broadcast
/// for reshape or back: where both type they add and drop dims of 1 alike.
fn siblings(kind: OpKind, operands: usize) -> Vec<OpKind> {
    let kinds = |k: OpKind| -> Vec<AttrKind> { k.info().attrs.iter().map(|a| a.1).collect() };
    let alike = |k: &OpKind| {
        *k != kind
            && k.check_arity(operands).is_ok()
            && kinds(*k) == kinds(kind)
            && k.info().results.len() == kind.info().results.len()
            && k.info().category != Category::Leaf
            && !matches!((*k, kind), (OpKind::Broadcast, OpKind::Reshape) | (OpKind::Reshape, OpKind::Broadcast))
    };
    let mut out: Vec<OpKind> = OpKind::ALL.iter().copied().filter(alike).collect();
    out.sort_by_key(|k| k.info().category != kind.info().category);
    out.truncate(2);
    out
}

/// The proposed terms with a mutation of them made; None if it has no place in them.
pub(super) fn terms(equal: &Equal, mutation: &Mutation, instance: &Instance) -> Option<Equal> {
    let mut out = equal.clone();
    match mutation {
        Mutation::Term(n, change) => {
            let old = distinct(equal).get(*n)?.clone();
            let new = changed(&old, change, instance)?;
            out.iter_mut().for_each(|(_, term)| replace(term, &old, &new));
            Some(out)
        }
        Mutation::Exchange => {
            let [(a, _), (b, _), ..] = out.as_mut_slice() else { return None };
            std::mem::swap(a, b);
            Some(out)
        }
        _ => Some(out),
    }
}

fn replace(term: &mut Term, old: &Term, new: &Term) {
    if term == old {
        *term = new.clone();
        return;
    }
    match term {
        Term::Op(_, children) => children.iter_mut().for_each(|c| replace(c, old, new)),
        Term::Result(_, of) => replace(of, old, new),
        Term::Class(_) | Term::Attr(_) => {}
    }
}

fn changed(term: &Term, change: &Change, instance: &Instance) -> Option<Term> {
    let operands = match term {
        Term::Op(kind, children) => children.len() - kind.info().attrs.len(),
        _ => 0,
    };
    Some(match (term, change) {
        (Term::Op(kind, children), Change::Swap(i, j)) if *j < operands => {
            let mut children = children.clone();
            children.swap(*i, *j);
            Term::Op(*kind, children)
        }
        (Term::Op(kind, children), Change::Attribute(i, up)) if *i >= operands => {
            let mut children = children.clone();
            let old = match children.get(*i)? {
                Term::Attr(a) => a.clone(),
                Term::Class(id) => instance.net[*id].data.attr()?.clone(),
                _ => return None,
            };
            children[*i] = Term::Attr(neighbour(&old, *up));
            Term::Op(*kind, children)
        }
        (Term::Op(_, children), Change::Skip(i)) if *i < operands => children.get(*i)?.clone(),
        (Term::Op(kind, children), Change::Op(other)) if siblings(*kind, operands).contains(other) => {
            Term::Op(*other, children.clone())
        }
        (Term::Class(id), Change::Value(n)) => {
            let is_attr = |id: &Id| instance.net[*id].data.attr().is_some();
            let mut others: Vec<Id> = Vec::new();
            for other in instance.bound.iter().copied() {
                if other != *id && is_attr(&other) == is_attr(id) && !others.contains(&other) {
                    others.push(other);
                }
            }
            Term::Class(*others.get(*n)?)
        }
        (Term::Class(id), Change::Wrap(kind)) if instance.ty(*id).is_some() => {
            Term::op(*kind, vec![term.clone()], vec![])
        }
        (Term::Result(i, of), Change::Result) => Term::Result(1 - (*i).min(1), of.clone()),
        _ => return None,
    })
}

/// Another value of the same kind.
fn neighbour(attr: &Attr, up: bool) -> Attr {
    match attr {
        Attr::Int(n) => Attr::Int(if up { n + 1 } else { n - 1 }),
        Attr::Real(r) => Attr::Real(Real(if up { r.0 * 2.0 + 0.5 } else { r.0 / 2.0 + 0.25 })),
        Attr::Flag(f) => Attr::Flag(!f),
        Attr::DType(d) => {
            let ring = [DType::F32, DType::BF16, DType::F16, DType::Q8A];
            let at = ring.iter().position(|r| r == d).unwrap_or(0);
            Attr::DType(ring[(at + if up { 1 } else { 3 }) % 4])
        }
        Attr::Reals(values) => {
            let by = if up { 0.5 } else { -0.25 };
            Attr::Reals(values.iter().map(|v| Real(v.0 + by)).collect())
        }
        Attr::Ints(p) => {
            let mut p = p.clone();
            let by = 1.min(p.len());
            if up {
                p.rotate_left(by)
            } else {
                p.reverse()
            }
            Attr::Ints(p)
        }
        Attr::Shape(s) => {
            let mut s = s.clone();
            let by = 1.min(s.len());
            if up {
                s.rotate_left(by)
            } else {
                s.insert(0, 1.into())
            }
            Attr::Shape(s)
        }
        Attr::Text(t) => Attr::Text(t.clone()),
        Attr::Role(r) => Attr::Role(*r),
    }
}
