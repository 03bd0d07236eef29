//! The graphs of a report: every node before any rule and after, what a step pays for each, and which node stands for
//! which.

use crate::rules::Rule;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use weldment_ir::{Category, Graph, Node, NodeId, Op, OpKind, TensorType};

/// One node of the graph before any rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphNode {
    /// Node number, in the graph before any rule.
    pub node: u32,
    /// Op name.
    pub op: String,
    /// Result types, separated by commas.
    pub ty: String,
    /// The layer of its source path, `layers.N.`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Source paths.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub sources: BTreeSet<String>,
    /// Nodes it reads, leaves left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operands: Vec<u32>,
    /// Bytes that a step reads and writes for it; 0 for what does not run in a step.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes: u64,
    /// True if it runs in a step: no view, and not computed from weights alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub launch: bool,
}

/// One rewrite of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStep {
    /// The rule.
    pub rule: String,
    /// Its numerics class.
    pub class: String,
    /// The fusion it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The rule as written, with its conditions.
    pub text: String,
}

/// One node of the optimised graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Node number in the optimised graph.
    pub node: u32,
    /// Op name.
    pub op: String,
    /// Result types, separated by commas.
    pub ty: String,
    /// The layer of its source path, `layers.N.`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Source paths.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub sources: BTreeSet<String>,
    /// Rules that led to it; none for a node of the model definition.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub rules: BTreeSet<String>,
    /// Nodes of the optimised graph that it reads, leaves left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operands: Vec<u32>,
    /// Bytes that a step reads and writes for it; 0 for what does not run in a step.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes: u64,
    /// True if it runs in a step.
    #[serde(default, skip_serializing_if = "is_false")]
    pub launch: bool,
    /// Nodes of the graph before any rule that it stands for, alone or with others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stands_for: Vec<u32>,
    /// Launches before, less launches now, of what it stands for; a node before counts at one node after, so that the
    /// sum over all nodes is what the step saves. Below 0 for a launch that rewrites added.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub launches_saved: i64,
    /// Bytes before, less bytes now, counted in the same way.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub bytes_saved: i64,
    /// The rewrites that led to it, in the order in which one built on the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<RuleStep>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_nothing(n: &i64) -> bool {
    *n == 0
}

fn is_false(b: &bool) -> bool {
    !*b
}

/// Where a node of the optimised graph comes from.
pub(crate) struct Origin {
    pub node: NodeId,
    /// Nodes before that it stands for.
    pub stands_for: BTreeSet<NodeId>,
    /// Names of the rewrites that led to it, in order.
    pub chain: Vec<&'static str>,
}

/// The layer of a node: `layers.N.` at the start of its smallest such source path.
fn layer_of(node: &Node) -> Option<u32> {
    node.sources
        .iter()
        .filter_map(|s| {
            let rest = s.strip_prefix("layers.")?;
            rest.split('.').next()?.parse::<u32>().ok()
        })
        .min()
}

/// Given from outside: not a node of a report.
fn is_given(kind: OpKind) -> bool {
    matches!(kind, OpKind::Input | OpKind::Weight | OpKind::State | OpKind::Constant)
}

/// An op, its operands' and results' types, whether an operand is given twice, and whether it is a launch.
type Alike<'a> = (&'a Op, Vec<&'a TensorType>, [bool; 2]);

/// The nodes of a graph, leaves left out, with the symbols at `dims`.
pub(crate) fn graph_nodes(graph: &Graph, dims: &dyn Fn(&str) -> u64) -> Vec<GraphNode> {
    let (live, fixed) = (graph.live(), graph.statics());
    // Layers repeat: a node like one before is described as that one was.
    let mut known: FxHashMap<Alike<'_>, (String, u64)> = FxHashMap::default();
    let listed = |id: &NodeId| live[id.index()] && !is_given(graph.node(*id).op.kind());
    let describe = |id: NodeId| {
        let node = graph.node(id);
        let category = node.op.kind().info().category;
        let launch = !fixed[id.index()] && !matches!(category, Category::Leaf | Category::View);
        let mut operands: Vec<u32> = Vec::with_capacity(node.operands.len());
        for operand in node.operands.iter().map(|v| v.node).filter(listed).map(number) {
            if !operands.contains(&operand) {
                operands.push(operand);
            }
        }
        let types = node.operands.iter().map(|v| graph.type_of(*v)).chain(&node.types).collect();
        // An operand that is given twice is read once, which types do not show.
        let twice = node.operands.iter().enumerate().any(|(i, v)| node.operands[..i].contains(v));
        let (ty, bytes) = known.entry((&node.op, types, [twice, launch])).or_insert_with(|| {
            let shown: Vec<String> = node.types.iter().map(ToString::to_string).collect();
            (shown.join(", "), if launch { bytes_of(graph, node, dims) } else { 0 })
        });
        GraphNode {
            node: number(id),
            op: node.op.kind().info().name.to_owned(),
            ty: ty.clone(),
            layer: layer_of(node),
            sources: node.sources.iter().map(|s| s.to_string()).collect(),
            operands,
            bytes: *bytes,
            launch,
        }
    };
    graph.ids().filter(listed).map(describe).collect()
}

/// Bytes that the launch of a node reads and writes.
fn bytes_of(graph: &Graph, node: &Node, dims: &dyn Fn(&str) -> u64) -> u64 {
    let mut read = node.operands.clone();
    // An elementwise op reads an operand that it is given twice once.
    if node.op.kind().info().category == Category::Elementwise {
        read.sort();
        read.dedup();
    }
    let types: Vec<_> = read.iter().map(|v| graph.type_of(*v).clone()).collect();
    node.op.effort(&types, &node.types, dims).bytes()
}

fn number(id: NodeId) -> u32 {
    id.index() as u32
}

/// Reports of the optimised nodes.
pub(crate) fn node_reports(
    before: &[GraphNode],
    after: Vec<GraphNode>,
    origins: Vec<Origin>,
    rules: &[Rule],
) -> Vec<NodeReport> {
    let count = before.iter().map(|n| n.node + 1).max().unwrap_or(0) as usize;
    let mut paid: Vec<Option<&GraphNode>> = vec![None; count];
    for node in before {
        paid[node.node as usize] = Some(node);
    }
    let origins: BTreeMap<u32, Origin> = origins.into_iter().map(|o| (number(o.node), o)).collect();
    // The node at which each node before counts: the first launch that stands for it, else the first node.
    let mut counts_at: Vec<Option<(u32, bool)>> = vec![None; count];
    for node in &after {
        let stands_for = origins.get(&node.node).into_iter().flat_map(|o| &o.stands_for);
        for id in stands_for {
            if let Some(at) = counts_at.get_mut(id.index())
                && at.is_none_or(|(_, launch)| node.launch && !launch)
            {
                *at = Some((node.node, node.launch));
            }
        }
    }
    let mut spent: BTreeMap<u32, (i64, i64)> = BTreeMap::new();
    for (at, node) in counts_at.iter().zip(&paid) {
        if let (Some((at, _)), Some(node)) = (at, node) {
            let (launches, bytes) = spent.entry(*at).or_default();
            *launches += i64::from(node.launch);
            *bytes = bytes.saturating_add_unsigned(node.bytes);
        }
    }
    let rules: BTreeMap<&str, &Rule> = rules.iter().map(|r| (r.name, r)).collect();
    let step = |name: &&'static str| {
        let rule = rules.get(*name)?;
        Some(RuleStep {
            rule: rule.name.to_owned(),
            class: rule.class.name().to_owned(),
            group: rule.group.map(str::to_owned),
            text: rule.text.clone(),
        })
    };
    let report = |node: GraphNode| {
        let origin = origins.get(&node.node);
        let chain = origin.map(|o| o.chain.as_slice()).unwrap_or_default();
        let stands_for = origin.into_iter().flat_map(|o| &o.stands_for).map(|id| number(*id));
        let (launches, bytes) = spent.get(&node.node).copied().unwrap_or_default();
        NodeReport {
            rules: chain.iter().map(|r| (*r).to_owned()).collect(),
            chain: chain.iter().filter_map(step).collect(),
            stands_for: stands_for.filter(|n| paid.get(*n as usize).is_some_and(Option::is_some)).collect(),
            launches_saved: launches - i64::from(node.launch),
            bytes_saved: bytes.saturating_sub_unsigned(node.bytes),
            node: node.node,
            op: node.op,
            ty: node.ty,
            layer: node.layer,
            sources: node.sources,
            operands: node.operands,
            bytes: node.bytes,
            launch: node.launch,
        }
    };
    after.into_iter().map(report).collect()
}
