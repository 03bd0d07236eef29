//! The report of one place: what stood at a source path, what it became, and which fusions it was a place of.

use super::table::size;
use super::{AnchorReport, GraphNode, NodeReport, Report};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// A place where a fusion could happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FusionAt {
    /// The fusion.
    pub fusion: String,
    /// The place and what became of it.
    #[serde(flatten)]
    pub anchor: AnchorReport,
}

/// What is known of a source path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceReport {
    /// The path: itself, or what lies below it.
    pub path: String,
    /// Launches that the optimised nodes here save; one that reaches beyond the path counts in full.
    pub launches_saved: i64,
    /// Bytes that they save.
    pub bytes_saved: i64,
    /// Nodes before any rule.
    pub before: Vec<GraphNode>,
    /// Nodes of the optimised graph.
    pub nodes: Vec<NodeReport>,
    /// Fusions that could happen here.
    pub fusions: Vec<FusionAt>,
}

/// Is this source path `path`, or below it?
fn below(source: &str, path: &str) -> bool {
    source == path || source.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'))
}

fn any_below(sources: &BTreeSet<String>, path: &str) -> bool {
    sources.iter().any(|s| below(s, path))
}

impl Report {
    /// Nodes of the optimised graph whose source is `path` or lies below it.
    pub fn at(&self, path: &str) -> Vec<&NodeReport> {
        self.nodes.iter().filter(|n| any_below(&n.sources, path)).collect()
    }

    /// The report of one place; `None` if nothing has this source path.
    pub fn place(&self, path: &str) -> Option<PlaceReport> {
        let nodes: Vec<NodeReport> = self.at(path).into_iter().cloned().collect();
        let before: Vec<GraphNode> = self.before.iter().filter(|n| any_below(&n.sources, path)).cloned().collect();
        let mut fusions = Vec::new();
        for group in &self.groups {
            for anchor in group.anchors.iter().filter(|a| any_below(&a.paths, path)) {
                fusions.push(FusionAt { fusion: group.name.clone(), anchor: anchor.clone() });
            }
        }
        (!nodes.is_empty() || !before.is_empty()).then(|| PlaceReport {
            path: path.to_owned(),
            launches_saved: nodes.iter().map(|n| n.launches_saved).sum(),
            bytes_saved: nodes.iter().fold(0i64, |sum, n| sum.saturating_add(n.bytes_saved)),
            before,
            nodes,
            fusions,
        })
    }

    /// [`Report::place`] as text; empty if nothing has this source path.
    pub fn explain(&self, path: &str) -> String {
        self.place(path).map(|p| p.to_string()).unwrap_or_default()
    }

    /// Source paths that begin as `path` does, as far as any does, one level further: what may have been meant.
    pub fn paths_like(&self, path: &str) -> BTreeSet<String> {
        let all = || self.before.iter().flat_map(|n| &n.sources).chain(self.nodes.iter().flat_map(|n| &n.sources));
        let parts: Vec<&str> = path.split('.').collect();
        (0..parts.len())
            .rev()
            .map(|n| {
                let stem = parts[..n].join(".");
                let known = all().filter(|s| n == 0 || below(s, &stem));
                known.map(|s| s.split('.').take(n + 1).collect::<Vec<_>>().join(".")).collect::<BTreeSet<String>>()
            })
            .find(|found| !found.is_empty())
            .unwrap_or_default()
    }
}

fn joined(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// `saves 2 launches and 1.5 KiB`, `adds 1 launch and 64 B`, or nothing.
fn savings(launches: i64, bytes: i64) -> String {
    let count = |n: u64| format!("{n} launch{}", if n == 1 { "" } else { "es" });
    let verb = |n: i64| if n < 0 { "adds" } else { "saves" };
    match (launches, bytes) {
        (0, 0) => String::new(),
        (0, b) => format!("{} {}", verb(b), size(b.unsigned_abs())),
        (l, 0) => format!("{} {}", verb(l), count(l.unsigned_abs())),
        (l, b) if (l < 0) == (b < 0) => {
            format!("{} {} and {}", verb(l), count(l.unsigned_abs()), size(b.unsigned_abs()))
        }
        (l, b) => {
            format!("{} {}, {} {}", verb(l), count(l.unsigned_abs()), verb(b), size(b.unsigned_abs()))
        }
    }
}

impl fmt::Display for PlaceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for n in &self.nodes {
            write!(f, "%{} {}", n.node, n.op)?;
            if !n.chain.is_empty() {
                let rules: Vec<&str> = n.chain.iter().map(|s| s.rule.as_str()).collect();
                write!(f, " by {}", rules.join(", "))?;
                let saved = savings(n.launches_saved, n.bytes_saved);
                if !saved.is_empty() {
                    write!(f, ": {saved}")?;
                }
            }
            writeln!(f, "  [{}]", joined(&n.sources))?;
        }
        for place in &self.fusions {
            writeln!(f, "{} at {}: {}", place.fusion, joined(&place.anchor.paths), place.anchor.outcome)?;
        }
        Ok(())
    }
}
