//! Where a graph is cut into units: at *borders*, the places where a stack of layers is narrow.
//!
//! A border stands behind a node that contractions read next, where nothing else crosses but what that node was computed
//! from without a contraction between: behind a norm, the norm and the residual sum that it reads. No fusion reaches across,
//! so a unit is optimised as it would be within the whole. Names play no part: borders are kept where a unit beside them comes
//! again, as layers do.

use crate::units::{Unit, describe, is_shared_leaf};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use weldment_ir::{Category, Graph, NodeId, OpKind};

/// How far back from a border's node the values that may cross beside it are looked for.
const CHAIN: usize = 24;

/// Cuts the graph: the live nodes of each unit in topological order, first unit first. One unit if not `stamping`.
pub fn cut(graph: &Graph, stamping: bool) -> Vec<Vec<NodeId>> {
    let live = graph.live();
    let nodes: Vec<NodeId> =
        graph.ids().filter(|id| live[id.index()] && !is_shared_leaf(&graph.node(*id).op)).collect();
    if !stamping {
        return vec![nodes];
    }
    let borders = Walk::new(graph).borders();
    // A unit's nodes follow a border and come up to the next; what follows none is where its readers are, or first.
    let mut unit_of: Vec<Option<usize>> = vec![None; graph.len()];
    for id in &nodes {
        let before = graph.node(*id).operands.iter().filter_map(|v| {
            let own = unit_of[v.node.index()];
            match borders.contains(&v.node) {
                true => Some(own.unwrap_or(0) + 1),
                false => own,
            }
        });
        unit_of[id.index()] = before.max();
    }
    let mut read_in: Vec<Option<usize>> = vec![None; graph.len()];
    for id in nodes.iter().rev() {
        let read = read_in[id.index()].filter(|_| !borders.contains(id));
        let unit = *unit_of[id.index()].get_or_insert(read.unwrap_or(0));
        for v in &graph.node(*id).operands {
            let read = &mut read_in[v.node.index()];
            *read = Some(match *read {
                Some(other) if other != unit => 0,
                _ => unit,
            });
        }
    }
    let mut units: Vec<Vec<NodeId>> = vec![Vec::new(); borders.len() + 1];
    for id in nodes {
        units[unit_of[id.index()].unwrap_or(0)].push(id);
    }
    units.retain(|unit| !unit.is_empty());
    repeated(graph, units)
}

/// Joins neighbours where neither comes again: a border pays where it lets a unit be solved once for several places, and an
/// account of a place says more with its neighbours at hand.
fn repeated(graph: &Graph, units: Vec<Vec<NodeId>>) -> Vec<Vec<NodeId>> {
    let fixed = graph.statics();
    let shapes: Vec<_> =
        units.iter().map(|nodes| describe(graph, nodes, &fixed, &|_| false, &BTreeMap::new()).unit).collect();
    let mut times: HashMap<&Unit, usize> = HashMap::new();
    shapes.iter().for_each(|shape| *times.entry(shape).or_default() += 1);
    let mut out: Vec<Vec<NodeId>> = Vec::new();
    let mut before = false;
    for (unit, shape) in units.into_iter().zip(&shapes) {
        let again = times[shape] > 1;
        match out.last_mut() {
            Some(last) if !again && !before => last.extend(unit),
            _ => out.push(unit),
        }
        before = again;
    }
    out.iter_mut().for_each(|unit| unit.sort_unstable());
    out
}

/// The nodes in the order of a walk from the outputs, operands first: layers come one after the other, however the graph
/// lists them.
struct Walk<'a> {
    graph: &'a Graph,
    order: Vec<NodeId>,
    /// Place of each node in the order.
    place: Vec<usize>,
    /// Place of the last reader; a result of the graph has none of its own.
    last: Vec<usize>,
    /// Places of the first and the last contraction that reads the node, through views and casts.
    contracted: Vec<Option<(usize, usize)>>,
    /// Computed from weights and constants alone.
    fixed: Vec<bool>,
    /// Computed in the step, and a contraction or a state has gone into it: what may not cross a border beside its chain.
    deep: Vec<bool>,
}

impl<'a> Walk<'a> {
    fn new(graph: &'a Graph) -> Walk<'a> {
        let (count, order) = (graph.len(), order(graph));
        let mut walk = Walk {
            graph,
            place: vec![0; count],
            last: vec![0; count],
            contracted: vec![None; count],
            fixed: graph.statics(),
            deep: vec![false; count],
            order,
        };
        for (place, id) in walk.order.iter().enumerate() {
            let (node, i) = (graph.node(*id), id.index());
            (walk.place[i], walk.last[i]) = (place, place);
            let own = matches!(node.op.kind().info().category, Category::Contraction | Category::StateWrite);
            walk.deep[i] = !walk.fixed[i] && (own || node.operands.iter().any(|v| walk.deep[v.node.index()]));
            node.operands.iter().for_each(|v| walk.last[v.node.index()] = place);
        }
        for id in walk.order.iter().rev() {
            let node = graph.node(*id);
            let read = match node.op.kind().info().category {
                Category::Contraction => Some((walk.place[id.index()], walk.place[id.index()])),
                _ if renames(node.op.kind()) => walk.contracted[id.index()],
                _ => None,
            };
            for v in read.iter().flat_map(|_| &node.operands) {
                let known = &mut walk.contracted[v.node.index()];
                *known = match (*known, read) {
                    (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
                    (a, b) => a.or(b),
                };
            }
        }
        walk
    }

    fn borders(&self) -> BTreeSet<NodeId> {
        let mut borders = BTreeSet::new();
        // What was computed and is still to be read.
        let mut open: BTreeSet<NodeId> = BTreeSet::new();
        for (place, id) in self.order.iter().enumerate() {
            for v in &self.graph.node(*id).operands {
                if self.last[v.node.index()] <= place {
                    open.remove(&v.node);
                }
            }
            if self.last[id.index()] > place && (self.deep[id.index()] || self.contracted[id.index()].is_some()) {
                open.insert(*id);
            }
            if self.is_border(*id, place, &open) {
                borders.insert(*id);
            }
        }
        borders
    }

    fn is_border(&self, id: NodeId, place: usize, open: &BTreeSet<NodeId>) -> bool {
        let kind = self.graph.node(id).op.kind();
        let computes =
            matches!(kind.info().category, Category::Elementwise | Category::Reduction | Category::Collective);
        if !computes || renames(kind) || self.fixed[id.index()] || self.contracted[id.index()].is_none() {
            return false;
        }
        // Contractions that read one value may become one: they stay together.
        let parted = |v: &NodeId| self.contracted[v.index()].is_some_and(|(a, b)| a <= place && place < b);
        let crossing = || open.iter().filter(|v| self.deep[v.index()]);
        // More would not all be in the chain.
        if crossing().nth(CHAIN).is_some() || open.iter().any(parted) {
            return false;
        }
        let chain = self.chain(id);
        crossing().all(|v| chain.contains(v))
    }

    /// A node and what it was computed from without a contraction between, the nearest first.
    fn chain(&self, id: NodeId) -> BTreeSet<NodeId> {
        let mut chain = BTreeSet::from([id]);
        let mut next = std::collections::VecDeque::from([id]);
        while let Some(at) = next.pop_front() {
            let category = self.graph.node(at).op.kind().info().category;
            if matches!(category, Category::Contraction | Category::Indexed | Category::StateWrite) {
                continue;
            }
            for v in &self.graph.node(at).operands {
                if chain.len() < CHAIN && self.deep[v.node.index()] && chain.insert(v.node) {
                    next.push_back(v.node);
                }
            }
        }
        chain
    }
}

/// Gives its operand another shape or dtype.
fn renames(kind: OpKind) -> bool {
    kind.info().category == Category::View || kind == OpKind::Cast
}

/// Live nodes that are no leaves, operands first, by a walk from each output in turn.
fn order(graph: &Graph) -> Vec<NodeId> {
    let mut seen = vec![false; graph.len()];
    let mut order = Vec::new();
    for output in graph.outputs() {
        let mut stack = vec![(output.value.node, 0)];
        while let Some((id, next)) = stack.last_mut() {
            let node = graph.node(*id);
            if *next == 0 && std::mem::replace(&mut seen[id.index()], true) {
                stack.pop();
                continue;
            }
            match node.operands.get(*next) {
                Some(v) => {
                    *next += 1;
                    if !seen[v.node.index()] {
                        stack.push((v.node, 0));
                    }
                }
                None => {
                    if !node.operands.is_empty() {
                        order.push(*id);
                    }
                    stack.pop();
                }
            }
        }
    }
    order
}
