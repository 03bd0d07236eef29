//! Matching a pattern that does not match: from the place where the fusion's anchor stands, down and up the pattern, with
//! what would have to differ. An edit is a step over an op that stands between, an op in another's place, or an op that is
//! missing; the cheapest set of edits explains the near miss.

use super::pattern::Tree;
use crate::egraph::{ENode, Net};
use crate::units::{Operand, Unit};
use egg::{Id, Var};
use std::collections::{BTreeMap, BTreeSet};
use weldment_ir::{Attr, Category, OpKind};

/// Ops that may be stepped over one after the other.
const STEPS: usize = 2;
/// Alternatives kept.
const BEAM: usize = 12;

/// The saturated unit, as near misses see it.
pub(crate) struct Ground<'a> {
    pub net: &'a Net,
    pub unit: &'a Unit,
    /// Class of each result of each node of the unit.
    classes: &'a [Vec<Id>],
    /// Nodes of the unit in each class.
    pub nodes: BTreeMap<Id, Vec<u32>>,
    /// Readers of each node of the unit.
    pub users: Vec<Vec<(u32, u32)>>,
}

/// Where an operand stands: position `position` of an op `kind`, whose class is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    fn rank(&self) -> u8 {
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

/// A partial match.
#[derive(Clone, Debug, Default)]
pub(crate) struct Partial {
    pub bound: Vec<(Var, Id, Option<Role>)>,
    /// Classes of ops matched.
    pub ops: Vec<Id>,
    pub edits: Vec<Edit>,
    /// Edits, and pattern nodes that they leave unmatched.
    pub cost: usize,
    pub root: Option<Id>,
}

impl Partial {
    fn with(&self, edit: Edit, cost: usize) -> Partial {
        let mut out = self.clone();
        out.edits.push(edit);
        out.cost += cost;
        out
    }

    fn op(&self, class: Id, name: Option<Var>) -> Partial {
        let mut out = self.clone();
        out.ops.push(class);
        out.bound.extend(name.map(|v| (v, class, None)));
        out
    }
}

impl<'a> Ground<'a> {
    pub fn new(net: &'a Net, unit: &'a Unit, classes: &'a [Vec<Id>]) -> Ground<'a> {
        let mut nodes: BTreeMap<Id, Vec<u32>> = BTreeMap::new();
        for (i, results) in classes.iter().enumerate() {
            for id in results {
                nodes.entry(net.find(*id)).or_default().push(i as u32);
            }
        }
        Ground { net, unit, classes, nodes, users: unit.users() }
    }

    /// The class of a node's first result.
    pub fn class(&self, node: u32) -> Option<Id> {
        self.classes.get(node as usize)?.first().map(|id| self.net.find(*id))
    }

    /// The class of an operand.
    pub fn operand(&self, operand: &Operand) -> Option<Id> {
        match operand {
            Operand::Local(i, result) => {
                self.classes.get(*i as usize)?.get(*result as usize).map(|id| self.net.find(*id))
            }
            Operand::Slot(i) => self.net.lookup(ENode::Leaf(*i)),
        }
    }

    fn has(&self, class: Id, kind: OpKind) -> bool {
        self.net[class].iter().any(|n| matches!(n, ENode::Op(k, _) if *k == kind))
    }

    /// Nodes of the unit in a class, in the graph's order.
    pub fn at(&self, class: Id) -> &[u32] {
        self.nodes.get(&self.net.find(class)).map_or(&[], Vec::as_slice)
    }

    pub fn kind(&self, node: u32) -> OpKind {
        self.unit.nodes[node as usize].op.kind()
    }

    /// Ops that hand a value on, changed: what may stand between two ops of a fusion.
    fn hands_on(&self, node: u32) -> bool {
        matches!(self.kind(node).info().category, Category::Elementwise | Category::View | Category::Reduction)
    }

    /// Classes that read a class, in the graph's order.
    fn readers(&self, class: Id) -> Vec<Id> {
        let ids: BTreeSet<Id> = self.net[class].parents().map(|id| self.net.find(id)).collect();
        let mut ids: Vec<Id> = ids.into_iter().filter(|id| *id != class).collect();
        ids.sort_by_key(|id| self.order(*id));
        ids
    }

    /// A class's place in the graph before any rule.
    fn order(&self, class: Id) -> u32 {
        self.net[class].data.value().and_then(|v| v.order).unwrap_or(u32::MAX)
    }

    /// The best few, in an order that does not depend on class ids.
    fn best(&self, mut list: Vec<Partial>) -> Vec<Partial> {
        list.sort_by_cached_key(|p| {
            let ranks: Vec<u8> = p.edits.iter().map(Edit::rank).collect();
            let places: Vec<u32> = p.bound.iter().map(|(_, id, _)| self.order(*id)).collect();
            (p.cost, ranks, p.ops.iter().map(|id| self.order(*id)).collect::<Vec<_>>(), places)
        });
        list.truncate(BEAM);
        list
    }

    /// Matches a pattern at a class.
    pub(super) fn down(&self, tree: &Tree, class: Id, role: Option<Role>, from: &Partial) -> Vec<Partial> {
        let class = self.net.find(class);
        match tree {
            Tree::Var(v) => vec![self.bind(*v, class, role, from)],
            Tree::Attr(wanted) => match (self.net[class].data.attr() == Some(wanted), role) {
                (false, Some(role)) => vec![from.with(Edit::Attr { role, wanted: wanted.clone() }, 2)],
                _ => vec![from.clone()],
            },
            Tree::Result(wanted, inner) => {
                let mut out = Vec::new();
                for node in self.net[class].iter() {
                    if let ENode::Result(i, [child]) = node
                        && i == wanted
                    {
                        out.extend(self.down(inner, *child, role, from));
                    }
                }
                match (out.is_empty(), inner.kind()) {
                    (true, Some(wanted)) => {
                        vec![from.with(Edit::Other { wanted, found: class, role }, 1 + tree.size())]
                    }
                    _ => self.best(out),
                }
            }
            Tree::Op { kind, children, name } => {
                let mut out = Vec::new();
                for node in self.net[class].iter() {
                    if let ENode::Op(k, ids) = node
                        && k == kind
                        && ids.len() == children.len()
                    {
                        out.extend(self.pairs(*kind, children, ids, class, None, &from.op(class, *name)));
                    }
                }
                if out.iter().all(|p| p.cost > from.cost) {
                    out.extend(self.edited_down(tree, *kind, children, class, role, from));
                    self.step_down(tree, *kind, class, role, from, STEPS, &mut out);
                    out.push(from.with(Edit::Other { wanted: *kind, found: class, role }, 1 + tree.size()));
                }
                self.best(out)
            }
        }
    }

    fn bind(&self, v: Var, class: Id, role: Option<Role>, from: &Partial) -> Partial {
        match from.bound.iter().find(|(named, _, _)| *named == v) {
            Some((_, known, _)) if *known == class => from.clone(),
            Some((_, known, Some(first))) if role.is_some() => {
                let second = (role.unwrap_or(*first), class);
                from.with(Edit::TwoValues { first: (*first, *known), second }, 1)
            }
            Some(_) => from.clone(),
            None => {
                let mut out = from.clone();
                out.bound.push((v, class, role));
                out
            }
        }
    }

    /// Matches the children of an op, one after the other; `skip` was matched already.
    fn pairs(
        &self,
        kind: OpKind,
        children: &[Tree],
        ids: &[Id],
        class: Id,
        skip: Option<usize>,
        from: &Partial,
    ) -> Vec<Partial> {
        let mut list = vec![from.clone()];
        for (position, (child, id)) in children.iter().zip(ids).enumerate().filter(|(i, _)| Some(*i) != skip) {
            let role = Some(Role { kind, position, class });
            let next = list.iter().flat_map(|p| self.down(child, *id, role, p)).collect();
            list = self.best(next);
        }
        list
    }

    /// Another op in the place of `kind`, or none at all.
    fn edited_down(
        &self,
        tree: &Tree,
        kind: OpKind,
        children: &[Tree],
        class: Id,
        role: Option<Role>,
        from: &Partial,
    ) -> Vec<Partial> {
        let mut out = Vec::new();
        let operands = children.len() - kind.info().attrs.len().min(children.len());
        for node in self.at(class).iter().filter(|n| self.kind(**n) != kind) {
            let local = &self.unit.nodes[*node as usize];
            let ids: Option<Vec<Id>> = local.operands.iter().map(|o| self.operand(o)).collect();
            let Some(ids) = ids.filter(|ids| ids.len() == operands && !ids.is_empty()) else { continue };
            let lost: usize = children[operands..].iter().map(Tree::size).sum();
            let edited = from.op(class, None).with(Edit::Other { wanted: kind, found: class, role }, 2 + lost);
            out.extend(self.pairs(self.kind(*node), &children[..operands], &ids, class, None, &edited));
        }
        for (i, child) in children.iter().enumerate() {
            if child.kind().is_some_and(|k| self.has(class, k)) {
                let lost = tree.size() - 1 - child.size();
                let edited = from.with(Edit::Missing { wanted: kind, found: class, role }, 2 + lost);
                out.extend(self.down(&children[i], class, role, &edited));
            }
        }
        out
    }

    /// `kind` further down, over ops that stand between.
    fn step_down(
        &self,
        tree: &Tree,
        kind: OpKind,
        class: Id,
        role: Option<Role>,
        from: &Partial,
        steps: usize,
        out: &mut Vec<Partial>,
    ) {
        let Some(reader) = role.map(|r| r.kind) else { return };
        for by in self.at(class).iter().copied().filter(|n| self.hands_on(*n)) {
            let edit = Edit::Between { by, wanted: kind, reader, class: role.map(|r| r.class) };
            let over = from.with(edit, 1);
            for next in self.unit.nodes[by as usize].operands.iter().filter_map(|o| self.operand(o)) {
                if next != class && self.has(next, kind) {
                    out.extend(self.down(tree, next, role, &over));
                } else if next != class && steps > 1 {
                    self.step_down(tree, kind, next, role, &over, steps - 1, out);
                }
            }
        }
    }

    /// Matches the rest of the pattern around the sub-pattern at `way`, which was matched at `class`.
    pub(super) fn up(&self, root: &Tree, way: &[usize], class: Id, from: &Partial, steps: usize) -> Vec<Partial> {
        let class = self.net.find(class);
        let Some((index, outer)) = way.split_last() else {
            return vec![Partial { root: Some(class), ..from.clone() }];
        };
        let (Some(Tree::Op { kind, children, name }), Some(inner)) = (root.at(outer), root.at(way)) else {
            return Vec::new();
        };
        let mut out = Vec::new();
        for reader in self.readers(class) {
            for node in self.net[reader].iter() {
                if let ENode::Op(k, ids) = node
                    && k == kind
                    && ids.len() == children.len()
                    && ids.get(*index).map(|id| self.net.find(*id)) == Some(class)
                {
                    let with = from.op(reader, *name);
                    for p in self.pairs(*kind, children, ids, reader, Some(*index), &with) {
                        out.extend(self.up(root, outer, reader, &p, steps));
                    }
                }
            }
        }
        if out.iter().all(|p| p.cost > from.cost) {
            self.edited_up(root, way, class, from, steps, &mut out);
            let lost = 1 + root.size() - inner.size();
            out.push(from.with(Edit::NotRead { wanted: *kind, class }, lost));
        }
        self.best(out)
    }

    fn edited_up(&self, root: &Tree, way: &[usize], class: Id, from: &Partial, steps: usize, out: &mut Vec<Partial>) {
        let Some((index, outer)) = way.split_last() else { return };
        let (Some(Tree::Op { kind, children, .. }), Some(inner)) = (root.at(outer), root.at(way)) else { return };
        let operands = children.len() - kind.info().attrs.len().min(children.len());
        let lost: usize = children.iter().map(Tree::size).sum::<usize>() - inner.size();
        let attrs: usize = children[operands..].iter().map(Tree::size).sum();
        let users: BTreeSet<(u32, u32)> =
            self.at(class).iter().flat_map(|n| self.users[*n as usize].iter().copied()).collect();
        for (user, position) in users {
            let Some(next) = self.class(user).filter(|c| *c != class) else { continue };
            if self.hands_on(user) && steps > 0 {
                let wanted = inner.kind().unwrap_or(*kind);
                let edit = Edit::Between { by: user, wanted, reader: *kind, class: None };
                out.extend(self.up(root, way, next, &from.with(edit, 1), steps - 1));
            }
            let local = &self.unit.nodes[user as usize];
            let ids: Option<Vec<Id>> = local.operands.iter().map(|o| self.operand(o)).collect();
            if let Some(ids) = ids.filter(|ids| ids.len() == operands && position as usize == *index)
                && local.op.kind() != *kind
            {
                let edit = Edit::Other { wanted: *kind, found: next, role: None };
                let edited = from.op(next, None).with(edit, 2 + attrs);
                for p in self.pairs(local.op.kind(), &children[..operands], &ids, next, Some(*index), &edited) {
                    out.extend(self.up(root, outer, next, &p, steps));
                }
            }
        }
        let missing = from.with(Edit::Missing { wanted: *kind, found: class, role: None }, 2 + lost);
        out.extend(self.up(root, outer, class, &missing, steps));
    }
}
