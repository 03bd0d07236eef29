//! Fused regions: the smallest parts of an optimised graph that can be compared with the part of the graph before that they
//! stand for.
//!
//! A region is closed: all that enters and leaves it equals values of the graph before (see [`Correspondence`]), so its two
//! sides are graphs of the same inputs and outputs. What enters is a free input on both sides; if the values that enter every
//! region are right, so are those that leave, from the leaves to the outputs.

mod bisect;
mod check;
mod cone;
#[cfg(test)]
mod tests;

pub use bisect::{Culprit, bisect_fuel, smallest_failing};
pub use check::{Effort, RingVerdict, Verdict, check, judge};

use crate::correspondence::Correspondence;
use crate::error::PassError;
use crate::pipeline::Optimised;
use crate::report::{Report, RuleStep};
use crate::rules::Numerics;
use crate::units::{Carried, is_shared_leaf};
use cone::{Cones, Names};
use std::collections::{BTreeMap, BTreeSet};
use weldment_ir::{Category, Graph, NodeId, Op, OpKind, Value};

/// How often a region takes in the nodes before it, where its two sides do not have the same inputs.
const WIDENINGS: usize = 4;

/// A part of an optimised graph beside what it stands for.
#[derive(Clone, Debug)]
pub struct Region {
    /// Nodes of the optimised graph; none for a value of the graph before that became a leaf.
    pub nodes: BTreeSet<NodeId>,
    /// Kinds of the ops that run, in order.
    pub ops: Vec<&'static str>,
    /// Source paths of the nodes.
    pub paths: BTreeSet<String>,
    /// The rules that led to the nodes, in the order in which one built on the other.
    pub rules: Vec<String>,
    /// What those rules may do to numbers.
    pub class: Numerics,
    /// The part of the graph before: outputs `out0`, `out1`, ... are to equal those of `after`.
    pub before: Graph,
    /// The part of the optimised graph.
    pub after: Graph,
}

impl Region {
    /// True if both sides are the same graph: nothing was rewritten.
    pub fn is_unchanged(&self) -> bool {
        weldment_ir::text::print(&self.before) == weldment_ir::text::print(&self.after)
    }

    /// What makes two regions equal: layers of one shape have the same.
    pub fn key(&self) -> String {
        format!("{} {}{}", self.class, weldment_ir::text::print(&self.before), weldment_ir::text::print(&self.after))
    }
}

/// Finds the regions of an optimised graph.
pub struct Regions<'a> {
    before: &'a Graph,
    after: &'a Graph,
    equal: &'a Correspondence,
    chains: BTreeMap<NodeId, &'a [RuleStep]>,
    policy: Numerics,
    live: Vec<bool>,
    /// Nodes of the optimised graph that depend on constants alone: a rule may have looked at their values.
    constant: Vec<bool>,
}

impl<'a> Regions<'a> {
    /// The regions of `optimised`, which was made of `before`.
    pub fn new(before: &'a Graph, optimised: &'a Optimised) -> Regions<'a> {
        Regions::of(before, &optimised.graph, &optimised.correspondence, &optimised.report)
    }

    /// The regions of `after`, which was made of `before`, by the account of it.
    pub fn of(before: &'a Graph, after: &'a Graph, equal: &'a Correspondence, report: &'a Report) -> Regions<'a> {
        let mut constant: Vec<bool> = Vec::with_capacity(after.len());
        for id in after.ids() {
            let node = after.node(id);
            let derived = !node.operands.is_empty() && node.operands.iter().all(|v| constant[v.node.index()]);
            constant.push(node.op.kind() == OpKind::Constant || derived);
        }
        Regions {
            before,
            after,
            equal,
            chains: report.nodes.iter().map(|n| (NodeId::new(n.node as usize), n.chain.as_slice())).collect(),
            policy: report.policy.parse().unwrap_or(Numerics::Approx),
            live: after.live(),
            constant,
        }
    }

    /// Every region that was rewritten, in the optimised graph's order; each node is in at least one region, the unchanged
    /// ones are left out.
    ///
    /// # Errors
    /// None in practice: the parts are made of nodes that were accepted before.
    pub fn all(&self) -> Result<Vec<Region>, PassError> {
        let mut covered: BTreeSet<NodeId> = BTreeSet::new();
        let mut out = Vec::new();
        for id in self.after.ids().filter(|id| self.live[id.index()]) {
            let leaf = self.is_leaf(id);
            if covered.contains(&id) || (leaf && self.others(id).is_empty()) {
                continue;
            }
            let region = match leaf {
                true => self.leaf(id)?,
                false => self.around(BTreeSet::from([id]))?,
            };
            covered.extend(region.nodes.iter().copied());
            if !region.is_unchanged() {
                out.push(region);
            }
        }
        Ok(out)
    }

    /// The region with the nodes that compute what enters it; `None` if only leaves do. A rewrite may rest on what its operands
    /// are computed from, which free inputs do not show.
    ///
    /// # Errors
    /// As [`Regions::all`].
    pub fn widened(&self, region: &Region) -> Result<Option<Region>, PassError> {
        let entering = self.producers(&region.nodes);
        if entering.is_empty() {
            return Ok(None);
        }
        self.build(self.close(region.nodes.union(&entering).copied().collect())).map(|(region, _)| Some(region))
    }

    fn is_leaf(&self, id: NodeId) -> bool {
        is_shared_leaf(&self.after.node(id).op)
    }

    /// Values before, other than the leaf itself, that a leaf of the optimised graph equals.
    fn others(&self, id: NodeId) -> Vec<(Value, Carried)> {
        let equal = self.equal.get(&Value { node: id, result: 0 }).into_iter().flatten();
        let other =
            |(v, form): &&(Value, Carried)| *form == Carried::Plain && !is_shared_leaf(&self.before.node(v.node).op);
        equal.filter(other).copied().collect()
    }

    /// Values before that became a leaf.
    fn leaf(&self, id: NodeId) -> Result<Region, PassError> {
        let value = Value { node: id, result: 0 };
        let outputs: Vec<_> = self.others(id).into_iter().map(|(v, form)| (value, v, form)).collect();
        let (region, _) = self.compare(BTreeSet::new(), &outputs)?;
        let sources = |(_, v, _): &(Value, Value, Carried)| self.before.node(v.node).sources.iter();
        let paths = outputs.iter().flat_map(sources).map(ToString::to_string).collect();
        Ok(Region { paths, class: self.policy, ..region })
    }

    /// The smallest region that holds `nodes` and whose sides have the same inputs.
    fn around(&self, nodes: BTreeSet<NodeId>) -> Result<Region, PassError> {
        let (first, escapes) = self.build(self.close(nodes))?;
        if !escapes {
            return Ok(first);
        }
        let mut nodes = first.nodes.clone();
        for _ in 0..WIDENINGS {
            nodes.extend(self.producers(&nodes));
            let (region, escapes) = self.build(self.close(nodes))?;
            if !escapes {
                return Ok(region);
            }
            nodes = region.nodes;
        }
        Ok(first)
    }

    /// The nodes, leaves left out, that compute what enters `nodes`.
    fn producers(&self, nodes: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let operands = nodes.iter().flat_map(|id| &self.after.node(*id).operands).map(|v| v.node);
        operands.filter(|id| !nodes.contains(id) && !self.is_leaf(*id)).collect()
    }

    /// Adds what computes or reads a value that no value before equals.
    fn close(&self, mut nodes: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let named = |v: Value| self.equal.get(&v).is_some_and(|e| !e.is_empty());
        let mut open: Vec<NodeId> = nodes.iter().copied().collect();
        while let Some(id) = open.pop() {
            let mut found = BTreeSet::new();
            for v in &self.after.node(id).operands {
                if !self.is_leaf(v.node) && (self.constant[v.node.index()] || !named(*v)) {
                    found.insert(v.node);
                }
            }
            for (user, using) in self.after.users(id).filter(|(user, _)| self.live[user.index()]) {
                if !self.constant[id.index()] && !named(Value { node: id, result: using.result }) {
                    found.insert(user);
                }
            }
            open.extend(found.into_iter().filter(|n| nodes.insert(*n)));
        }
        nodes
    }

    /// The region of a closed set of nodes; true if its side before needs leaves that the other does not.
    fn build(&self, nodes: BTreeSet<NodeId>) -> Result<(Region, bool), PassError> {
        let mut outputs = Vec::new();
        for id in &nodes {
            for result in 0..self.after.node(*id).types.len() as u32 {
                let value = Value { node: *id, result };
                outputs.extend(preferred(self.equal, value).map(|(v, form)| (value, v, form)));
            }
        }
        self.compare(nodes, &outputs)
    }

    fn compare(
        &self,
        nodes: BTreeSet<NodeId>,
        outputs: &[(Value, Value, Carried)],
    ) -> Result<(Region, bool), PassError> {
        let mut names = Names::default();
        let cones = Cones::new(self.before, self.after, self.equal, &nodes);
        let (before, needed) = cones.before(outputs, &mut names)?;
        let (after, given) = cones.after(outputs, &mut names)?;
        let runs =
            |id: &&NodeId| !matches!(self.after.node(**id).op.kind().info().category, Category::View | Category::Leaf);
        let ops = nodes.iter().filter(runs).map(|id| self.after.node(*id).op.kind().info().name).collect();
        let sources = nodes.iter().flat_map(|id| &self.after.node(*id).sources);
        let paths = sources.map(ToString::to_string).collect();
        let (mut rules, mut known): (Vec<String>, Option<Numerics>) = (Vec::new(), None);
        for step in nodes.iter().filter_map(|id| self.chains.get(id)).flat_map(|chain| chain.iter()) {
            known = known.max(Some(step.class.parse().unwrap_or(self.policy)));
            if !rules.contains(&step.rule) {
                rules.push(step.rule.clone());
            }
        }
        // Where several values before fell together, the chain of the node that was chosen need not say why.
        let mut seen = BTreeSet::new();
        let merged = outputs.iter().any(|(value, ..)| !seen.insert(*value));
        let class = if merged { self.policy } else { known.unwrap_or(self.policy) };
        // A side that rounds where the other does not has moved a rounding, whatever the chain says.
        let moved = check::rounds_elsewhere(&before, &after);
        let class = if moved { class.max(self.policy.min(Numerics::Rounding)) } else { class };
        let escapes = !needed.is_subset(&given);
        Ok((Region { nodes, ops, paths, rules, class, before, after }, escapes))
    }
}

/// The plain values before that a value equals, else those that it equals once they are cast.
fn preferred(equal: &Correspondence, value: Value) -> impl Iterator<Item = (Value, Carried)> {
    let all = equal.get(&value).cloned().unwrap_or_default();
    let plain = all.iter().any(|(_, form)| *form == Carried::Plain);
    all.into_iter().filter(move |(_, form)| !plain || *form == Carried::Plain)
}

/// True for ops that stand for themselves on both sides.
fn is_named(op: &Op) -> bool {
    is_shared_leaf(op)
}
