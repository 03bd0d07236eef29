//! The match report: for every fusion, the places counted on the graph before any rule, and what became of each.

mod anchors;
mod compare;
mod graph;
mod near;
mod place;
mod reasons;
mod render;
mod table;
mod traces;

pub(crate) use anchors::{Anchor, Site, anchors, outcome};
pub use compare::{Change, FusionChange, compare};
pub use graph::{GraphNode, NodeReport, RuleStep};
pub(crate) use graph::{Origin, graph_nodes, node_reports};
pub(crate) use near::{Ground, Place, resolve};
pub use place::{FusionAt, PlaceReport};
pub use table::{coverage, size};

use crate::rules::{GROUPS, Numerics};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What became of one place where a fusion could happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// Fused, into the op that the fusion makes.
    Fused {
        /// The op.
        into: String,
    },
    /// Part of another op: nothing is left to fuse here.
    Absorbed {
        /// The op.
        by: String,
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
        /// The smallest change that would let the rule match, as an instruction.
        change: String,
        /// Nodes of the graph before any rule where it fails.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        at: Vec<u32>,
    },
    /// The rule fired and another form was cheaper.
    Dearer {
        /// The op chosen instead.
        chosen: String,
        /// Nanoseconds that a step would take longer with the fusion.
        extra_ns: u64,
        /// Other readers of what the fusion would absorb: source paths, or names of outputs.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        by: BTreeSet<String>,
        /// What would let the fusion win, as an instruction.
        change: String,
    },
    /// The fusion is there, and what it absorbs is computed beside it as others read it too.
    AlsoRead {
        /// Those readers: source paths, or names of outputs.
        by: BTreeSet<String>,
        /// What would let the op go, as an instruction.
        change: String,
    },
}

impl Reason {
    /// A unit's reason at its place in the graph: nodes by number, marks by name.
    pub(crate) fn located(&self, node: &dyn Fn(u32) -> Option<u32>, name: &dyn Fn(Place) -> String) -> Reason {
        let text = |t: &String| resolve(t, name);
        match self {
            Reason::Barred { .. } => self.clone(),
            Reason::NearMiss { rule, predicate, found, accepted, change, at } => Reason::NearMiss {
                rule: rule.clone(),
                predicate: text(predicate),
                found: text(found),
                accepted: text(accepted),
                change: text(change),
                at: at.iter().filter_map(|n| node(*n)).collect::<BTreeSet<u32>>().into_iter().collect(),
            },
            Reason::Dearer { chosen, extra_ns, by, change } => Reason::Dearer {
                chosen: chosen.clone(),
                extra_ns: *extra_ns,
                by: by.iter().map(text).collect(),
                change: text(change),
            },
            Reason::AlsoRead { by, change } => {
                Reason::AlsoRead { by: by.iter().map(text).collect(), change: text(change) }
            }
        }
    }
}

/// One place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnchorReport {
    /// Nodes of the graph before any rule that name it.
    pub nodes: Vec<u32>,
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
    /// The limit of saturation, where it was reached: the best form found by then is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitReport>,
}

/// A limit of saturation that a unit reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitReport {
    /// The limit, and the rule that matched most often.
    pub reached: String,
    /// Source path of the unit's first node, where the unit stands first.
    pub at: String,
}

/// The report of one compile; the same for the same graph, target and options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Which numerics classes could fire.
    pub policy: String,
    /// What was switched off.
    pub disabled: Vec<String>,
    /// Smallest and largest value of each symbol.
    pub ranges: BTreeMap<String, (u64, u64)>,
    /// Values of the symbols at which forms were priced and bytes are counted.
    pub dims: BTreeMap<String, u64>,
    /// Ops that run in a step (no leaves, views or static values) before.
    pub launches_before: usize,
    /// And after.
    pub launches_after: usize,
    /// Bytes that those read and write before.
    pub bytes_before: u64,
    /// And after.
    pub bytes_after: u64,
    /// Coverage, by fusion.
    pub groups: Vec<GroupReport>,
    /// Distinct units.
    pub units: Vec<UnitReport>,
    /// The graph before any rule, without dead nodes and leaves.
    pub before: Vec<GraphNode>,
    /// Nodes of the optimised graph, leaves left out.
    pub nodes: Vec<NodeReport>,
}

impl Report {
    pub(crate) fn new(
        (policy, disabled): (Numerics, &BTreeSet<String>),
        (ranges, dims): (BTreeMap<String, (u64, u64)>, BTreeMap<String, u64>),
        before: Vec<GraphNode>,
        nodes: Vec<NodeReport>,
    ) -> Report {
        Report {
            policy: policy.name().to_owned(),
            disabled: disabled.iter().cloned().collect(),
            ranges,
            dims,
            launches_before: before.iter().filter(|n| n.launch).count(),
            launches_after: nodes.iter().filter(|n| n.launch).count(),
            bytes_before: before.iter().fold(0, |sum, n| sum.saturating_add(n.bytes)),
            bytes_after: nodes.iter().fold(0, |sum, n| sum.saturating_add(n.bytes)),
            groups: GROUPS.iter().map(|g| GroupReport { name: (*g).to_owned(), anchors: Vec::new() }).collect(),
            units: Vec::new(),
            before,
            nodes,
        }
    }

    pub(crate) fn add_place(&mut self, group: &str, anchor: AnchorReport) {
        if let Some(g) = self.groups.iter_mut().find(|g| g.name == group) {
            g.anchors.push(anchor);
        }
    }

    /// The report of a fusion.
    pub fn group(&self, name: &str) -> Option<&GroupReport> {
        self.groups.iter().find(|g| g.name == name)
    }
}
