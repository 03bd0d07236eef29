//! Partial matches of a pattern: what variables are bound to, and what would have to differ.

use egg::{Id, Var};
use weldment_ir::{Attr, OpKind};

/// Where an operand stands: position `position` of an op `kind`, whose class is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Role {
    pub kind: OpKind,
    pub position: usize,
    pub class: Id,
}

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    /// A variable that stands twice is two values.
    TwoValues { first: (Role, Id), second: (Role, Id) },
    /// An attribute has another value.
    Attr { role: Role, wanted: Attr },
    /// Another op stands where `wanted` is expected.
    Other { wanted: OpKind, found: Id, role: Option<Role> },
    /// Node `by` of the unit stands between `wanted` and the op that would read it.
    Between { by: u32, wanted: OpKind, reader: OpKind, class: Option<Id> },
    /// An op is not there.
    Missing { wanted: OpKind, found: Id, role: Option<Role> },
    /// Nothing of the right op reads the value.
    NotRead { wanted: OpKind, class: Id },
}

impl Edit {
    /// Of two explanations at one cost, the one that says more.
    pub fn rank(&self) -> u8 {
        match self {
            Edit::TwoValues { .. } => 0,
            Edit::Attr { .. } => 1,
            Edit::Other { .. } => 2,
            Edit::Between { .. } => 3,
            Edit::Missing { .. } => 4,
            Edit::NotRead { .. } => 5,
        }
    }
}

/// A partial match. Matches of parts of a pattern are found apart, so that each is found once, and then joined.
#[derive(Clone, Debug, Default)]
pub(crate) struct Partial {
    /// Variables in the order in which they stand in the pattern; one that stands twice is there twice.
    pub bound: Vec<(Var, Id, Option<Role>)>,
    /// Classes of ops matched.
    pub ops: Vec<Id>,
    pub edits: Vec<Edit>,
    /// Edits, and pattern nodes that they leave unmatched.
    pub cost: usize,
    pub root: Option<Id>,
}

impl Partial {
    /// A variable that stands for a class.
    pub fn bind(v: Var, class: Id, role: Option<Role>) -> Partial {
        Partial { bound: vec![(v, class, role)], ..Partial::default() }
    }

    /// An op that stands in a class, before its children.
    pub fn op(class: Id, name: Option<Var>) -> Partial {
        Partial { ops: vec![class], bound: name.map(|v| (v, class, None)).into_iter().collect(), ..Partial::default() }
    }

    /// A match that differs in one thing.
    pub fn edit(edit: Edit, cost: usize) -> Partial {
        Partial { edits: vec![edit], cost, ..Partial::default() }
    }

    /// Both matches, of different parts of a pattern: where a variable is two values, that is an edit.
    pub fn join(&self, other: &Partial) -> Partial {
        let mut out = self.clone();
        for (v, class, role) in &other.bound {
            let known = self.bound.iter().find(|(named, _, _)| named == v);
            if let (Some((_, known, Some(first))), Some(second)) = (known, role)
                && known != class
            {
                out.edits.push(Edit::TwoValues { first: (*first, *known), second: (*second, *class) });
                out.cost += 1;
            }
            out.bound.push((*v, *class, *role));
        }
        out.ops.extend_from_slice(&other.ops);
        out.edits.extend_from_slice(&other.edits);
        out.cost += other.cost;
        out
    }
}
