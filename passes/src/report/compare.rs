//! What differs between two reports, fusion by fusion and place by place.

use super::{AnchorReport, Outcome, Report};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// How a place of a fusion differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Fused before, not now.
    Lost,
    /// Fused now, not before.
    Gained,
    /// Fused, in another op.
    Moved,
    /// Left as it was, for another reason.
    Reason,
    /// The place is in the first report alone.
    Gone,
    /// The place is in the second report alone.
    New,
}

/// A place of a fusion that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FusionChange {
    /// The fusion.
    pub fusion: String,
    /// Source paths of the place.
    pub paths: BTreeSet<String>,
    /// How it differs.
    pub change: Change,
    /// What became of it in the first report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub a: Option<Outcome>,
    /// And in the second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b: Option<Outcome>,
}

/// Places that differ, by fusion and in the graph's order. A place is known by its source paths; of several with the same
/// paths the first is compared with the first.
pub fn compare(a: &Report, b: &Report) -> Vec<FusionChange> {
    let mut out = Vec::new();
    let empty: &[AnchorReport] = &[];
    for name in a.groups.iter().chain(b.groups.iter().filter(|g| a.group(&g.name).is_none())).map(|g| &g.name) {
        let anchors = |r: &'_ Report| r.group(name).map_or(empty.to_vec(), |g| g.anchors.clone());
        let mut theirs: BTreeMap<BTreeSet<String>, Vec<Outcome>> = BTreeMap::new();
        let second = anchors(b);
        for anchor in second.iter().rev() {
            theirs.entry(anchor.paths.clone()).or_default().push(anchor.outcome.clone());
        }
        let mut add = |paths: &BTreeSet<String>, a: Option<Outcome>, b: Option<Outcome>| {
            if let Some(change) = change(a.as_ref(), b.as_ref()) {
                out.push(FusionChange { fusion: name.clone(), paths: paths.clone(), change, a, b });
            }
        };
        for anchor in anchors(a) {
            let other = theirs.get_mut(&anchor.paths).and_then(Vec::pop);
            add(&anchor.paths, Some(anchor.outcome), other);
        }
        for anchor in &second {
            if let Some(outcome) = theirs.get_mut(&anchor.paths).and_then(Vec::pop) {
                add(&anchor.paths, None, Some(outcome));
            }
        }
    }
    out
}

fn change(a: Option<&Outcome>, b: Option<&Outcome>) -> Option<Change> {
    let kept = |o: &Outcome| matches!(o, Outcome::Kept { .. });
    match (a, b) {
        (Some(a), Some(b)) if a == b => None,
        (Some(a), Some(b)) => Some(match (kept(a), kept(b)) {
            (false, true) => Change::Lost,
            (true, false) => Change::Gained,
            (false, false) => Change::Moved,
            // Node numbers of a reason may differ where the reason does not.
            (true, true) if a.to_string() == b.to_string() => return None,
            (true, true) => Change::Reason,
        }),
        (Some(_), None) => Some(Change::Gone),
        (None, Some(_)) => Some(Change::New),
        (None, None) => None,
    }
}
