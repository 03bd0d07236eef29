//! Matching a pattern that does not match: from the place where the fusion's anchor stands, down and up the pattern, with
//! what would have to differ. An edit is a step over an op that stands between, an op in another's place, or an op that is
//! missing; the cheapest set of edits explains the near miss.
//!
//! Downwards, what an op of a pattern comes to at a class is found once and kept, apart from what is bound around it, so that work
//! is bounded by ops of patterns times classes. Upwards, the pattern is climbed level by level with a bounded number of
//! matches at each. Steps over ops that stand between only get fewer, so neither turns in circles where views and casts undo
//! each other.

use super::partial::{Edit, Partial, Role};
use super::pattern::{Tree, trees};
use crate::egraph::{ENode, Net};
use crate::rules::Rule;
use crate::units::{Operand, Unit};
use egg::Id;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use weldment_ir::{Category, OpKind};

/// Ops that may be stepped over one after the other.
const STEPS: usize = 2;
/// Alternatives kept for a part of a pattern.
const BEAM: usize = 12;
/// Matches that climb on from one level of a pattern to the next.
const CLIMBERS: usize = 48;

/// What a part of a pattern was tried at: its number, the class, where that stands, and the steps left.
type Tried = (usize, Id, Option<Role>, usize);

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
    /// Patterns by rule.
    trees: BTreeMap<&'static str, Tree>,
    /// What was found so far.
    found: RefCell<HashMap<Tried, Rc<[Partial]>>>,
}

/// A match on its way up a pattern.
struct Climber {
    /// The class that the part matched so far stands for.
    class: Id,
    /// Ops that may still be stepped over.
    steps: usize,
    partial: Partial,
}

impl<'a> Ground<'a> {
    /// The ground of a saturated unit, with the patterns of `rules`.
    pub fn new<'r>(
        net: &'a Net,
        unit: &'a Unit,
        classes: &'a [Vec<Id>],
        rules: impl Iterator<Item = &'r Rule>,
    ) -> Ground<'a> {
        let mut nodes: BTreeMap<Id, Vec<u32>> = BTreeMap::new();
        for (i, results) in classes.iter().enumerate() {
            for id in results {
                nodes.entry(net.find(*id)).or_default().push(i as u32);
            }
        }
        let (users, found) = (unit.users(), RefCell::default());
        Ground { net, unit, classes, nodes, users, trees: trees(rules), found }
    }

    /// The pattern of a rule; `None` for one that is no pattern.
    pub(super) fn tree(&self, rule: &Rule) -> Option<&Tree> {
        self.trees.get(rule.name)
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

    /// Nodes of the unit in a class, in the graph's order.
    pub fn at(&self, class: Id) -> &[u32] {
        self.nodes.get(&self.net.find(class)).map_or(&[], Vec::as_slice)
    }

    pub fn kind(&self, node: u32) -> OpKind {
        self.unit.nodes[node as usize].op.kind()
    }

    fn has(&self, class: Id, kind: OpKind) -> bool {
        self.net[class].iter().any(|n| matches!(n, ENode::Op(k, _) if *k == kind))
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

    /// The operands of a node of the unit, if it has so many.
    fn operands(&self, node: u32, count: usize) -> Option<Vec<Id>> {
        let operands = &self.unit.nodes[node as usize].operands;
        if operands.len() != count {
            return None;
        }
        operands.iter().map(|o| self.operand(o)).collect()
    }

    /// The best few, in an order that does not depend on class ids.
    fn best(&self, list: &mut Vec<Partial>) {
        list.sort_by_cached_key(|p| self.key(p));
        list.truncate(BEAM);
    }

    fn key(&self, p: &Partial) -> (usize, Vec<u8>, Vec<u32>, Vec<u32>) {
        let ranks = p.edits.iter().map(Edit::rank).collect();
        let ops = p.ops.iter().map(|id| self.order(*id)).collect();
        (p.cost, ranks, ops, p.bound.iter().map(|(_, id, _)| self.order(*id)).collect())
    }

    /// Every match of `tree` at a class, exact ones alone if there are any.
    pub(super) fn down(&self, tree: &Tree, class: Id, role: Option<Role>) -> Rc<[Partial]> {
        self.down_over(tree, class, role, STEPS)
    }

    /// The same, with so many steps left before the op at the root.
    fn down_over(&self, tree: &Tree, class: Id, role: Option<Role>, steps: usize) -> Rc<[Partial]> {
        let class = self.net.find(class);
        match tree {
            Tree::Var(v) => [Partial::bind(*v, class, role)].into(),
            Tree::Attr(wanted) => match (self.net[class].data.attr() == Some(wanted), role) {
                (false, Some(role)) => [Partial::edit(Edit::Attr { role, wanted: wanted.clone() }, 2)].into(),
                _ => [Partial::default()].into(),
            },
            Tree::Result(wanted, inner) => {
                let made = self.net[class].iter().filter_map(|node| match node {
                    ENode::Result(i, [child]) if i == wanted => Some(*child),
                    _ => None,
                });
                let mut out: Vec<Partial> =
                    made.flat_map(|child| self.down_over(inner, child, role, steps).to_vec()).collect();
                if let (true, Some(wanted)) = (out.is_empty(), inner.kind()) {
                    out.push(Partial::edit(Edit::Other { wanted, found: class, role }, 1 + tree.size()));
                }
                self.best(&mut out);
                out.into()
            }
            Tree::Op { number, .. } => {
                let tried = (*number, class, role, steps);
                if let Some(known) = self.found.borrow().get(&tried) {
                    return Rc::clone(known);
                }
                let found: Rc<[Partial]> = self.op_at(tree, class, role, steps).into();
                self.found.borrow_mut().insert(tried, Rc::clone(&found));
                found
            }
        }
    }

    fn op_at(&self, tree: &Tree, class: Id, role: Option<Role>, steps: usize) -> Vec<Partial> {
        let Tree::Op { kind, children, name, .. } = tree else { return Vec::new() };
        let mut out = Vec::new();
        for node in self.net[class].iter() {
            if let ENode::Op(k, ids) = node
                && k == kind
                && ids.len() == children.len()
            {
                out.extend(self.pairs(*kind, children, ids, class, None, Partial::op(class, *name)));
            }
        }
        if out.iter().all(|p| p.cost > 0) {
            self.edited_down(tree, class, role, &mut out);
            self.step_down(tree, class, role, steps, &Partial::default(), &mut out);
            out.push(Partial::edit(Edit::Other { wanted: *kind, found: class, role }, 1 + tree.size()));
        }
        self.best(&mut out);
        out
    }

    /// Matches the children of an op, one after the other; `skip` was matched already.
    fn pairs(
        &self,
        kind: OpKind,
        children: &[Tree],
        ids: &[Id],
        class: Id,
        skip: Option<usize>,
        from: Partial,
    ) -> Vec<Partial> {
        let mut list = vec![from];
        for (position, (child, id)) in children.iter().zip(ids).enumerate().filter(|(i, _)| Some(*i) != skip) {
            let below = self.down(child, *id, Some(Role { kind, position, class }));
            list = list.iter().flat_map(|p| below.iter().map(|q| p.join(q))).collect();
            self.best(&mut list);
        }
        list
    }

    /// Another op in the place of the one wanted, or none at all.
    fn edited_down(&self, tree: &Tree, class: Id, role: Option<Role>, out: &mut Vec<Partial>) {
        let Tree::Op { kind, children, .. } = tree else { return };
        let (operands, attrs) = tree.split();
        for node in self.at(class).iter().filter(|n| self.kind(**n) != *kind) {
            let Some(ids) = self.operands(*node, operands.len()).filter(|ids| !ids.is_empty()) else { continue };
            let edit = Partial::edit(Edit::Other { wanted: *kind, found: class, role }, 2 + attrs);
            let edited = Partial::op(class, None).join(&edit);
            out.extend(self.pairs(self.kind(*node), operands, &ids, class, None, edited));
        }
        for child in children.iter().filter(|c| c.kind().is_some_and(|k| self.has(class, k))) {
            let lost = tree.size() - 1 - child.size();
            let missing = Partial::edit(Edit::Missing { wanted: *kind, found: class, role }, 2 + lost);
            out.extend(self.down(child, class, role).iter().map(|p| missing.join(p)));
        }
    }

    /// The op wanted further down, over ops that stand between.
    fn step_down(
        &self,
        tree: &Tree,
        class: Id,
        role: Option<Role>,
        steps: usize,
        over: &Partial,
        out: &mut Vec<Partial>,
    ) {
        let (Some(reader), Some(kind)) = (role, tree.kind()) else { return };
        if steps == 0 {
            return;
        }
        // Of several ops that lead to one class, the first says as much as the others.
        let mut reached = BTreeSet::from([class]);
        for by in self.at(class).iter().copied().filter(|n| self.hands_on(*n)) {
            let edit = Edit::Between { by, wanted: kind, reader: reader.kind, class: Some(reader.class) };
            let over = over.join(&Partial::edit(edit, 1));
            for next in self.unit.nodes[by as usize].operands.iter().filter_map(|o| self.operand(o)) {
                if !reached.insert(next) {
                    continue;
                }
                if self.has(next, kind) {
                    out.extend(self.down_over(tree, next, role, steps - 1).iter().map(|p| over.join(p)));
                } else {
                    self.step_down(tree, next, role, steps - 1, &over, out);
                }
            }
        }
    }

    /// Matches the rest of the pattern around the part at `way`, which was matched at `class`.
    pub(super) fn up(&self, root: &Tree, way: &[usize], class: Id, from: &Partial) -> Vec<Partial> {
        let exact = self.climb(root, way, class, from, false);
        if exact.first().is_some_and(|p| p.cost == from.cost) {
            return exact;
        }
        self.climb(root, way, class, from, true)
    }

    /// Level by level. An edit is tried where nothing else leads on, and everywhere before the first if `anywhere`.
    fn climb(&self, root: &Tree, way: &[usize], class: Id, from: &Partial, anywhere: bool) -> Vec<Partial> {
        let mut out: Vec<Partial> = Vec::new();
        let mut level = vec![Climber { class: self.net.find(class), steps: STEPS, partial: from.clone() }];
        for depth in (0..way.len()).rev() {
            let (way, mut next) = (&way[..=depth], Vec::new());
            while let Some(at) = level.pop() {
                let before = next.len();
                self.read_by(root, way, &at, &mut next);
                let led_on = next[before..].iter().any(|c| c.partial.cost == at.partial.cost);
                if !led_on || (anywhere && at.partial.cost == from.cost) {
                    out.extend(self.edited_up(root, way, &at, &mut level, &mut next));
                }
            }
            next.sort_by_cached_key(|c| (self.key(&c.partial), c.steps));
            next.truncate(CLIMBERS);
            level = next;
        }
        out.extend(level.into_iter().map(|c| Partial { root: Some(c.class), ..c.partial }));
        self.best(&mut out);
        out
    }

    /// The ops wanted next that read a match.
    fn read_by(&self, root: &Tree, way: &[usize], at: &Climber, next: &mut Vec<Climber>) {
        let Some((index, outer)) = way.split_last() else { return };
        let Some(Tree::Op { kind, children, name, .. }) = root.at(outer) else { return };
        for reader in self.readers(at.class) {
            for node in self.net[reader].iter() {
                if let ENode::Op(k, ids) = node
                    && k == kind
                    && ids.len() == children.len()
                    && ids.get(*index).map(|id| self.net.find(*id)) == Some(at.class)
                {
                    let with = at.partial.join(&Partial::op(reader, *name));
                    let found = self.pairs(*kind, children, ids, reader, Some(*index), with);
                    let climber = |partial| Climber { class: reader, steps: at.steps, partial };
                    next.extend(found.into_iter().map(climber));
                }
            }
        }
    }

    /// What would have to differ for a match to lead on: a step stays on the `level`, another op or a missing one leads to
    /// the `next`. Gives the match that ends here, as nothing reads it.
    fn edited_up(
        &self,
        root: &Tree,
        way: &[usize],
        at: &Climber,
        level: &mut Vec<Climber>,
        next: &mut Vec<Climber>,
    ) -> Option<Partial> {
        let (index, outer) = way.split_last()?;
        let (tree @ Tree::Op { kind, children, .. }, inner) = (root.at(outer)?, root.at(way)?) else { return None };
        let (operands, attrs) = tree.split();
        let users: BTreeSet<(u32, u32)> =
            self.at(at.class).iter().flat_map(|n| self.users[*n as usize].iter().copied()).collect();
        let mut stepped = BTreeSet::new();
        for (user, position) in users {
            let Some(class) = self.class(user).filter(|c| *c != at.class) else { continue };
            if self.hands_on(user) && at.steps > 0 && stepped.insert(class) {
                let wanted = inner.kind().unwrap_or(*kind);
                let edit = Edit::Between { by: user, wanted, reader: *kind, class: None };
                let partial = at.partial.join(&Partial::edit(edit, 1));
                level.push(Climber { class, steps: at.steps - 1, partial });
            }
            let other = self.kind(user);
            if other != *kind
                && position as usize == *index
                && let Some(ids) = self.operands(user, operands.len())
            {
                let edit = Partial::edit(Edit::Other { wanted: *kind, found: class, role: None }, 2 + attrs);
                let edited = at.partial.join(&Partial::op(class, None)).join(&edit);
                let found = self.pairs(other, operands, &ids, class, Some(*index), edited);
                next.extend(found.into_iter().map(|partial| Climber { class, steps: at.steps, partial }));
            }
        }
        let lost: usize = children.iter().map(Tree::size).sum::<usize>() - inner.size();
        let missing = Partial::edit(Edit::Missing { wanted: *kind, found: at.class, role: None }, 2 + lost);
        next.push(Climber { class: at.class, steps: at.steps, partial: at.partial.join(&missing) });
        let unread = Edit::NotRead { wanted: *kind, class: at.class };
        Some(at.partial.join(&Partial::edit(unread, 1 + root.size() - inner.size())))
    }
}
