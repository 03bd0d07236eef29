//! Terms that rules propose: checked against the op table and the target before a single node is added.

use super::facts::{Net, ValueFacts, value_facts};
use super::language::ENode;
use crate::target::TargetModel;
use egg::{ENodeOrVar, Id, PatternAst, Subst, Var};
use std::sync::Arc;
use weldment_ir::{Attr, Category, OpKind};

/// A tree over existing classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    /// A class of the e-graph.
    Class(Id),
    /// An attribute.
    Attr(Attr),
    /// An op: operands, then attributes.
    Op(OpKind, Vec<Term>),
    /// One result of a node with several.
    Result(u32, Box<Term>),
}

/// Why a term was not added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The predicate or kernel precondition that failed.
    pub predicate: String,
    /// What was found.
    pub found: String,
    /// What would be accepted.
    pub accepted: String,
}

/// The outcome of checking a sub-term.
enum Checked {
    Attr(Attr),
    Value(ValueFacts),
}

impl Term {
    /// An op over terms.
    pub fn op(kind: OpKind, operands: Vec<Term>, attrs: Vec<Attr>) -> Term {
        Term::Op(kind, operands.into_iter().chain(attrs.into_iter().map(Term::Attr)).collect())
    }

    /// A pattern with its variables bound; `None` if one is not.
    pub fn instantiate(pattern: &PatternAst<ENode>, subst: &Subst) -> Option<Term> {
        Term::instantiate_with(pattern, subst, &[])
    }

    /// A pattern with its variables bound to classes or to attributes; `None` if one is not.
    pub fn instantiate_with(pattern: &PatternAst<ENode>, subst: &Subst, attrs: &[(Var, Attr)]) -> Option<Term> {
        let mut terms: Vec<Term> = Vec::with_capacity(pattern.len());
        for node in pattern {
            terms.push(match node {
                ENodeOrVar::Var(v) => match attrs.iter().find(|(named, _)| named == v) {
                    Some((_, attr)) => Term::Attr(attr.clone()),
                    None => Term::Class(*subst.get(*v)?),
                },
                ENodeOrVar::ENode(ENode::Attr(a)) => Term::Attr(a.clone()),
                ENodeOrVar::ENode(ENode::Leaf(_)) => return None,
                ENodeOrVar::ENode(ENode::Op(kind, children)) => {
                    Term::Op(*kind, children.iter().map(|c| terms[usize::from(*c)].clone()).collect())
                }
                ENodeOrVar::ENode(ENode::Result(i, [c])) => Term::Result(*i, Box::new(terms[usize::from(*c)].clone())),
            });
        }
        terms.pop()
    }

    /// Facts of the term's value, if the op table accepts it and the target has a kernel for every op in it that runs
    /// in a step (views and static values do not).
    ///
    /// # Errors
    /// The first precondition that fails.
    pub fn check(&self, net: &Net, target: &dyn TargetModel) -> Result<ValueFacts, Refused> {
        match self.checked(net, target)? {
            Checked::Value(v) => Ok(v),
            Checked::Attr(a) => Err(Refused {
                predicate: "value".into(),
                found: a.to_string(),
                accepted: "a value, not an attribute".into(),
            }),
        }
    }

    fn checked(&self, net: &Net, target: &dyn TargetModel) -> Result<Checked, Refused> {
        let untyped = || Refused { predicate: "type".into(), found: "none".into(), accepted: "a typed value".into() };
        match self {
            Term::Attr(a) => Ok(Checked::Attr(a.clone())),
            Term::Class(id) => {
                let data = &net[*id].data;
                data.attr()
                    .map(|a| Checked::Attr(a.clone()))
                    .or_else(|| data.value().map(|v| Checked::Value(v.clone())))
                    .ok_or_else(untyped)
            }
            Term::Result(i, inner) => {
                let facts = inner.check(net, target)?;
                let ty = facts.types.get(*i as usize).cloned().ok_or_else(untyped)?;
                Ok(Checked::Value(ValueFacts { types: Arc::from([ty]), uniform: None, range: None, ..facts }))
            }
            Term::Op(kind, children) => {
                let (mut operands, mut attrs) = (Vec::new(), Vec::new());
                for child in children {
                    match child.checked(net, target)? {
                        Checked::Attr(a) => attrs.push(a),
                        Checked::Value(v) => operands.push(v),
                    }
                }
                let types: Option<Vec<_>> = operands.iter().map(|v| v.types.first().cloned()).collect();
                let types = types.ok_or_else(untyped)?;
                let typed = ENode::op(*kind, &attrs).and_then(|op| Ok((op.infer(&types)?, op)));
                let (results, op) = typed.map_err(|e| Refused {
                    predicate: format!("{kind} types"),
                    found: e.to_string(),
                    accepted: "operands that the op table accepts".into(),
                })?;
                let refs: Vec<&ValueFacts> = operands.iter().collect();
                let facts = value_facts(&op, results, &refs);
                if !facts.fixed && !matches!(kind.info().category, Category::View | Category::Leaf) {
                    target.supports(&op, &types, &facts.types).map_err(|r| Refused {
                        predicate: format!("{kind} kernel: {}", r.precondition),
                        found: r.found,
                        accepted: r.accepted,
                    })?;
                }
                Ok(Checked::Value(facts))
            }
        }
    }

    /// Adds the term and gives its class; its nodes, attributes left out, are appended to `nodes`, innermost first.
    pub fn add(&self, net: &mut Net, nodes: &mut Vec<ENode>) -> Id {
        let node = match self {
            Term::Class(id) => return net.find(*id),
            Term::Attr(a) => return net.add(ENode::Attr(a.clone())),
            Term::Op(kind, children) => ENode::Op(*kind, children.iter().map(|c| c.add(net, nodes)).collect()),
            Term::Result(i, inner) => ENode::Result(*i, [inner.add(net, nodes)]),
        };
        nodes.push(node.clone());
        net.add(node)
    }

    /// The e-nodes of a term that is in the e-graph already, innermost first.
    pub fn nodes(&self, net: &Net, out: &mut Vec<ENode>) -> Option<Id> {
        let node = match self {
            Term::Class(id) => return Some(net.find(*id)),
            Term::Attr(a) => return net.lookup(ENode::Attr(a.clone())),
            Term::Op(kind, children) => {
                let ids: Option<Box<[Id]>> = children.iter().map(|c| c.nodes(net, out)).collect();
                ENode::Op(*kind, ids?)
            }
            Term::Result(i, inner) => ENode::Result(*i, [inner.nodes(net, out)?]),
        };
        let id = net.lookup(node.clone())?;
        out.push(node);
        Some(id)
    }
}
