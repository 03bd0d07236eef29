//! A rule's left side as one tree: the patterns of a rule with several sides are hung in where their class is named.

use crate::egraph::ENode;
use crate::rules::{Body, Rule};
use egg::{ENodeOrVar, Id, PatternAst, Var};
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
    },
    /// One result of an op that has several.
    Result(u32, Box<Tree>),
}

impl Tree {
    /// The left side of a pattern rule; `None` for a custom rule.
    pub fn of(rule: &Rule) -> Option<Tree> {
        let Body::Rewrite { sources, .. } = &rule.body else { return None };
        let (name, root) = sources.first()?;
        Some(grow(sources, *name, root, Id::from(root.len().checked_sub(1)?)))
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

fn grow(sources: &[(Option<Var>, PatternAst<ENode>)], name: Option<Var>, pattern: &PatternAst<ENode>, at: Id) -> Tree {
    match &pattern[at] {
        ENodeOrVar::Var(v) => match sources.iter().skip(1).find(|(named, _)| *named == Some(*v)) {
            // Rules name each class once, so this ends.
            Some((named, other)) if *named != name && !other.is_empty() => {
                grow(sources, *named, other, Id::from(other.len() - 1))
            }
            _ => Tree::Var(*v),
        },
        ENodeOrVar::ENode(ENode::Attr(a)) => Tree::Attr(a.clone()),
        // No rule names a leaf; one would match nothing.
        ENodeOrVar::ENode(ENode::Leaf(i)) => Tree::Attr(Attr::Int(i64::from(*i))),
        ENodeOrVar::ENode(ENode::Op(kind, children)) => {
            let children = children.iter().map(|c| grow(sources, None, pattern, *c)).collect();
            Tree::Op { kind: *kind, children, name }
        }
        ENodeOrVar::ENode(ENode::Result(i, [child])) => {
            Tree::Result(*i, Box::new(grow(sources, None, pattern, *child)))
        }
    }
}
