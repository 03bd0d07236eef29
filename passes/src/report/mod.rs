//! The match report: for every fusion, the places counted on the graph before any rule, and what became of each.

mod anchors;
mod render;

pub(crate) use anchors::{Site, anchors, outcome};

use crate::rules::{GROUPS, Numerics};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weldment_ir::{Category, Graph, NodeId, OpKind};

/// What became of one place where a fusion could happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// Fused, into the op that the fusion makes.
    Fused {
        /// The op.
        into: String,
    },
    /// Absorbed by another fusion: nothing is left to fuse.
    Elsewhere {
        /// The op.
        into: String,
    },
    /// Left as it was.
    Kept {
        /// Why.
        reason: Reason,
    },
}

/// Why a place was left as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum Reason {
    /// By option or policy.
    Barred {
        /// The sentence.
        text: String,
    },
    /// The closest rule matched but for one predicate.
    NearMiss {
        /// The rule.
        rule: String,
        /// The predicate.
        predicate: String,
        /// Found.
        found: String,
        /// Accepted.
        accepted: String,
    },
    /// The rule fired and another form was cheaper.
    Dearer {
        /// The op chosen instead.
        chosen: String,
        /// Nanoseconds that a step would take longer with the fusion.
        extra_ns: u64,
    },
    /// No rule of the fusion found its pattern here.
    NoPattern,
}

/// One place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnchorReport {
    /// Source paths of the anchor.
    pub paths: BTreeSet<String>,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// One fusion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupReport {
    /// Its name.
    pub name: String,
    /// Every place, in the graph's order.
    pub anchors: Vec<AnchorReport>,
}

/// One node of the optimised graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Node number in the optimised graph.
    pub node: u32,
    /// Op name.
    pub op: String,
    /// Source paths.
    pub sources: BTreeSet<String>,
    /// Rules that led to it; none for a node of the model definition.
    pub rules: BTreeSet<String>,
}

impl NodeReport {
    pub(crate) fn new(
        id: NodeId,
        kind: OpKind,
        sources: &BTreeSet<Arc<str>>,
        rules: &BTreeSet<&'static str>,
    ) -> NodeReport {
        NodeReport {
            node: id.index() as u32,
            op: kind.info().name.to_owned(),
            sources: sources.iter().map(|s| s.to_string()).collect(),
            rules: rules.iter().map(|r| (*r).to_owned()).collect(),
        }
    }
}

/// One distinct unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitReport {
    /// How often it was stamped.
    pub instances: usize,
    /// Nodes before.
    pub nodes_before: usize,
    /// Nodes after.
    pub nodes_after: usize,
    /// E-nodes at saturation.
    pub e_nodes: usize,
    /// Rounds of saturation.
    pub iterations: usize,
    /// Matches applied, by rule.
    pub matches: BTreeMap<String, usize>,
}

/// The report of one compile; the same for the same graph, target and options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Which numerics classes could fire.
    pub policy: String,
    /// What was switched off.
    pub disabled: Vec<String>,
    /// Ops that run in a step (no leaves, views or static values) before.
    pub launches_before: usize,
    /// And after.
    pub launches_after: usize,
    /// Coverage, by fusion.
    pub groups: Vec<GroupReport>,
    /// Distinct units.
    pub units: Vec<UnitReport>,
    /// Nodes of the optimised graph, leaves left out.
    pub nodes: Vec<NodeReport>,
}

/// Ops of a graph that run in a step.
fn launches(graph: &Graph) -> usize {
    let (live, fixed) = (graph.live(), graph.statics());
    let runs = |id: &NodeId| {
        let category = graph.node(*id).op.kind().info().category;
        live[id.index()] && !fixed[id.index()] && !matches!(category, Category::Leaf | Category::View)
    };
    graph.ids().filter(runs).count()
}

impl Report {
    pub(crate) fn new(
        policy: Numerics,
        disabled: &BTreeSet<String>,
        before: &Graph,
        after: &Graph,
        nodes: Vec<NodeReport>,
    ) -> Report {
        Report {
            policy: policy.name().to_owned(),
            disabled: disabled.iter().cloned().collect(),
            launches_before: launches(before),
            launches_after: launches(after),
            groups: GROUPS.iter().map(|g| GroupReport { name: (*g).to_owned(), anchors: Vec::new() }).collect(),
            units: Vec::new(),
            nodes,
        }
    }

    pub(crate) fn place(&mut self, group: &str, paths: BTreeSet<String>, outcome: Outcome) {
        if let Some(g) = self.groups.iter_mut().find(|g| g.name == group) {
            g.anchors.push(AnchorReport { paths, outcome });
        }
    }

    /// The report of a fusion.
    pub fn group(&self, name: &str) -> Option<&GroupReport> {
        self.groups.iter().find(|g| g.name == name)
    }

    /// Nodes of the optimised graph whose source is `path` or lies below it.
    pub fn at(&self, path: &str) -> Vec<&NodeReport> {
        let below = |s: &String| s == path || s.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
        self.nodes.iter().filter(|n| n.sources.iter().any(below)).collect()
    }
}
