//! A rule's left side as one tree: the patterns of a rule with several sides are hung in where their class is named.

use crate::egraph::ENode;
use crate::rules::{Body, Rule};
use egg::{ENodeOrVar, Id, PatternAst, Var};
use std::collections::BTreeMap;
use weldment_ir::{Attr, OpKind};

/// A pattern.
#[derive(Clone, Debug)]
pub(super) enum Tree {
    /// Any class, the same one wherever the variable stands.
    Var(Var),
    /// This attribute value.
    Attr(Attr),
    /// An op over operands, then attributes.
    Op {
        kind: OpKind,
        children: Vec<Tree>,
        /// The variable that names the op's class.
        name: Option<Var>,
        /// Tells it from every other op of the patterns.
        number: usize,
    },
    /// One result of an op that has several.
    Result(u32, Box<Tree>),
}

/// The left side of every pattern rule, by name.
pub(super) fn trees<'r>(rules: impl Iterator<Item = &'r Rule>) -> BTreeMap<&'static str, Tree> {
    let mut count = 0;
    let tree = |rule: &'r Rule| {
        let Body::Rewrite { sources, .. } = &rule.body else { return None };
        let (name, root) = sources.first()?;
        Some((rule.name, grow(sources, *name, root, Id::from(root.len().checked_sub(1)?), &mut count)))
    };
    rules.filter_map(tree).collect()
}

impl Tree {
    /// The patterns of an op's operands, and the size of those of its attributes.
    pub fn split(&self) -> (&[Tree], usize) {
        let Tree::Op { kind, children, .. } = self else { return (&[], 0) };
        let (operands, attrs) = children.split_at(children.len().saturating_sub(kind.info().attrs.len()));
        (operands, attrs.iter().map(Tree::size).sum())
    }

    /// Ops and attribute values to match.
    pub fn size(&self) -> usize {
        match self {
            Tree::Var(_) => 0,
            Tree::Attr(_) => 1,
            Tree::Op { children, .. } => 1 + children.iter().map(Tree::size).sum::<usize>(),
            Tree::Result(_, inner) => 1 + inner.size(),
        }
    }

    /// The op at the root.
    pub fn kind(&self) -> Option<OpKind> {
        match self {
            Tree::Op { kind, .. } => Some(*kind),
            Tree::Result(_, inner) => inner.kind(),
            _ => None,
        }
    }

    /// Every way from the root to an op of this kind: positions of children.
    pub fn ways_to(&self, wanted: OpKind) -> Vec<Vec<usize>> {
        let mut ways = Vec::new();
        // A place is the class of a result, where the op has several.
        if let (Tree::Result(_, inner), true) = (self, self.kind() == Some(wanted)) {
            ways.extend(matches!(**inner, Tree::Op { .. }).then(Vec::new));
        }
        if let Tree::Op { kind, children, .. } = self {
            if *kind == wanted {
                ways.push(Vec::new());
            }
            for (i, child) in children.iter().enumerate() {
                ways.extend(child.ways_to(wanted).into_iter().map(|way| [vec![i], way].concat()));
            }
        }
        ways
    }

    /// The sub-pattern at the end of a way.
    pub fn at(&self, way: &[usize]) -> Option<&Tree> {
        match (way, self) {
            ([], _) => Some(self),
            ([first, rest @ ..], Tree::Op { children, .. }) => children.get(*first)?.at(rest),
            _ => None,
        }
    }
}

fn grow(
    sources: &[(Option<Var>, PatternAst<ENode>)],
    name: Option<Var>,
    pattern: &PatternAst<ENode>,
    at: Id,
    count: &mut usize,
) -> Tree {
    match &pattern[at] {
        ENodeOrVar::Var(v) => match sources.iter().skip(1).find(|(named, _)| *named == Some(*v)) {
            // Rules name each class once, so this ends.
            Some((named, other)) if *named != name && !other.is_empty() => {
                grow(sources, *named, other, Id::from(other.len() - 1), count)
            }
            _ => Tree::Var(*v),
        },
        ENodeOrVar::ENode(ENode::Attr(a)) => Tree::Attr(a.clone()),
        // No rule names a leaf; one would match nothing.
        ENodeOrVar::ENode(ENode::Leaf(i)) => Tree::Attr(Attr::Int(i64::from(*i))),
        ENodeOrVar::ENode(ENode::Op(kind, children)) => {
            *count += 1;
            let number = *count;
            let children = children.iter().map(|c| grow(sources, None, pattern, *c, count)).collect();
            Tree::Op { kind: *kind, children, name, number }
        }
        ENodeOrVar::ENode(ENode::Result(i, [child])) => {
            Tree::Result(*i, Box::new(grow(sources, None, pattern, *child, count)))
        }
    }
}
