//! The e-graph's language, built from the op table: an op's children are its operands, then its attributes.

use egg::{FromOp, Id, Language};
use std::fmt;
use weldment_ir::{Attr, DType, IrError, Op, OpKind, Real};

/// One e-node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ENode {
    /// An attribute value, so that a pattern can bind it.
    Attr(Attr),
    /// A value given from outside: input, weight, state, or a value of another unit. The number indexes the leaves of
    /// the analysis.
    Leaf(u32),
    /// An op: operands, then attributes, both in table order.
    Op(OpKind, Box<[Id]>),
    /// One result of a node that has several. Pattern text: `(result0 ...)`.
    Result(u32, [Id; 1]),
}

/// What two e-nodes must share to match the same pattern node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Head {
    /// An attribute value.
    Attr(Attr),
    /// A leaf.
    Leaf(u32),
    /// An op of so many children.
    Op(OpKind, usize),
    /// A result picked.
    Result(u32),
}

impl Language for ENode {
    type Discriminant = Head;

    fn discriminant(&self) -> Head {
        match self {
            ENode::Attr(a) => Head::Attr(a.clone()),
            ENode::Leaf(i) => Head::Leaf(*i),
            ENode::Op(kind, children) => Head::Op(*kind, children.len()),
            ENode::Result(i, _) => Head::Result(*i),
        }
    }

    fn matches(&self, other: &ENode) -> bool {
        match (self, other) {
            (ENode::Attr(a), ENode::Attr(b)) => a == b,
            (ENode::Leaf(a), ENode::Leaf(b)) => a == b,
            (ENode::Op(a, x), ENode::Op(b, y)) => a == b && x.len() == y.len(),
            (ENode::Result(a, _), ENode::Result(b, _)) => a == b,
            _ => false,
        }
    }

    fn children(&self) -> &[Id] {
        match self {
            ENode::Attr(_) | ENode::Leaf(_) => &[],
            ENode::Op(_, children) => children,
            ENode::Result(_, child) => child,
        }
    }

    fn children_mut(&mut self) -> &mut [Id] {
        match self {
            ENode::Attr(_) | ENode::Leaf(_) => &mut [],
            ENode::Op(_, children) => children,
            ENode::Result(_, child) => child,
        }
    }
}

impl ENode {
    /// Splits an op's children into operands and attributes; other nodes have operands only.
    pub fn split(&self) -> (&[Id], &[Id]) {
        match self {
            ENode::Op(kind, children) => children.split_at(children.len().saturating_sub(kind.info().attrs.len())),
            other => (other.children(), &[]),
        }
    }

    /// The op, given the attribute values.
    ///
    /// # Errors
    /// If the attributes are not the table's.
    pub fn op(kind: OpKind, attrs: &[Attr]) -> Result<Op, IrError> {
        Op::from_attrs(kind, attrs)
    }
}

impl fmt::Display for ENode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ENode::Attr(a) => write!(f, "{a}"),
            ENode::Leaf(i) => write!(f, "leaf{i}"),
            ENode::Op(kind, _) => write!(f, "{kind}"),
            ENode::Result(i, _) => write!(f, "result{i}"),
        }
    }
}

/// A pattern that does not parse.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` with {1} children is neither an op of the table, `resultN` of one, nor an attribute value")]
pub struct PatternError(String, usize);

impl FromOp for ENode {
    type Error = PatternError;

    fn from_op(name: &str, children: Vec<Id>) -> Result<ENode, PatternError> {
        let wrong = || PatternError(name.to_owned(), children.len());
        if children.is_empty() {
            return attribute(name).map(ENode::Attr).ok_or_else(wrong);
        }
        if let (Some(i), [child]) = (name.strip_prefix("result").and_then(|n| n.parse().ok()), children.as_slice()) {
            return Ok(ENode::Result(i, [*child]));
        }
        let kind = OpKind::from_name(name).map_err(|_| wrong())?;
        let operands = children.len().checked_sub(kind.info().attrs.len()).ok_or_else(wrong)?;
        kind.check_arity(operands).map_err(|_| wrong())?;
        Ok(ENode::Op(kind, children.into()))
    }
}

/// An attribute literal in pattern text: dtype, flag, integer or real.
fn attribute(text: &str) -> Option<Attr> {
    if let Ok(d) = text.parse::<DType>() {
        return Some(Attr::DType(d));
    }
    if let Ok(flag) = text.parse::<bool>() {
        return Some(Attr::Flag(flag));
    }
    if let Ok(n) = text.parse::<i64>() {
        return Some(Attr::Int(n));
    }
    text.parse::<f64>().ok().filter(|r| r.is_finite()).map(|r| Attr::Real(Real(r)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use egg::Pattern;

    #[test]
    fn patterns_parse_from_the_table() {
        let good: Pattern<ENode> = "(rms_norm (add ?x ?r) ?w ?eps ?dtype)".parse().expect("operands, then attributes");
        assert_eq!(good.vars().len(), 5);
        assert!("(result1 (add_rms_norm ?x ?r ?w 1e-6 f32))".parse::<Pattern<ENode>>().is_ok());
        assert!("(rms_norm ?x ?w)".parse::<Pattern<ENode>>().is_err(), "attributes are children too");
        assert!("(no_such_op ?x)".parse::<Pattern<ENode>>().is_err());
    }
}
