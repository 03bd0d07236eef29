//! The report as text, and `--require`.

use super::{GroupReport, Outcome, Reason, Report};
use crate::error::PassError;
use std::collections::BTreeMap;
use std::fmt;

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Barred { text } => f.write_str(text),
            Reason::NearMiss { rule, predicate, found, accepted, change } => {
                write!(f, "{rule}: {predicate} is {found}, {accepted} is accepted; {change}")
            }
            Reason::Dearer { chosen, extra_ns } => {
                write!(f, "extraction preferred {chosen}: the fusion costs {extra_ns} ns more")
            }
            Reason::NoPattern => f.write_str("no rule of this fusion found its pattern"),
        }
    }
}

impl GroupReport {
    /// Anchors absorbed, by this fusion or another.
    pub fn fused(&self) -> usize {
        self.anchors.iter().filter(|a| !matches!(a.outcome, Outcome::Kept { .. })).count()
    }

    /// Anchors absorbed by this fusion itself.
    pub fn own(&self) -> usize {
        self.anchors.iter().filter(|a| matches!(a.outcome, Outcome::Fused { .. })).count()
    }
}

impl fmt::Display for GroupReport {
    /// `silu_mul: all: 30 of 30 (30 in matmul_silu_mul)`, or `... 28 of 30; 2 kept: layers.0.mlp.act_fn: reason`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (fused, total) = (self.fused(), self.anchors.len());
        let all = if fused == total { "all: " } else { "" };
        write!(f, "{}: {all}{fused} of {total}", self.name)?;
        let mut elsewhere: BTreeMap<&str, usize> = BTreeMap::new();
        let mut kept: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for a in &self.anchors {
            match &a.outcome {
                Outcome::Fused { .. } => {}
                Outcome::Elsewhere { into } => *elsewhere.entry(into).or_default() += 1,
                Outcome::Kept { reason } => {
                    let path = a.paths.iter().next().cloned().unwrap_or_default();
                    kept.entry(reason.to_string()).or_default().push(path);
                }
            }
        }
        if !elsewhere.is_empty() {
            let list: Vec<String> = elsewhere.iter().map(|(op, n)| format!("{n} in {op}")).collect();
            write!(f, " ({})", list.join(", "))?;
        }
        if fused != total {
            write!(f, "; {} kept", total - fused)?;
        }
        for (reason, paths) in &kept {
            let first = paths.first().map_or("", String::as_str);
            let more = if paths.len() > 1 { format!(" and {} more", paths.len() - 1) } else { String::new() };
            write!(f, "\n    {first}{more}: {reason}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "policy {}; {} launches a step, {} before fusion",
            self.policy, self.launches_after, self.launches_before
        )?;
        for g in self.groups.iter().filter(|g| !g.anchors.is_empty()) {
            writeln!(f, "{g}")?;
        }
        Ok(())
    }
}

impl Report {
    /// Checks `FUSION=N`, `FUSION>=N` or `FUSION=all`: places absorbed (by the fusion or another that left nothing to
    /// fuse).
    ///
    /// # Errors
    /// If it does not parse, names no fusion, or does not hold.
    pub fn require(&self, requirement: &str) -> Result<(), PassError> {
        let bad = || PassError::BadRequirement(requirement.to_owned());
        let (name, wanted, at_least) = match (requirement.split_once(">="), requirement.split_once('=')) {
            (Some((name, n)), _) => (name, n, true),
            (None, Some((name, n))) => (name, n, false),
            (None, None) => return Err(bad()),
        };
        let group = self.group(name.trim()).ok_or_else(|| PassError::UnknownName {
            name: name.trim().to_owned(),
            accepted: self.groups.iter().map(|g| g.name.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        let fused = group.fused();
        let holds = match (wanted.trim(), at_least) {
            ("all", false) => fused == group.anchors.len(),
            (n, _) => {
                let n: usize = n.parse().map_err(|_| bad())?;
                if at_least { fused >= n } else { fused == n }
            }
        };
        match holds {
            true => Ok(()),
            false => Err(PassError::Required { required: requirement.to_owned(), found: group.to_string() }),
        }
    }

    /// What is known of a source path: the nodes it became, and its places in each fusion.
    pub fn explain(&self, path: &str) -> String {
        let mut out = String::new();
        for n in self.at(path) {
            let rules = n.rules.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let sources = n.sources.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let by = if rules.is_empty() { String::new() } else { format!(" by {rules}") };
            out.push_str(&format!("%{} {}{by}  [{sources}]\n", n.node, n.op));
        }
        for g in &self.groups {
            for a in &g.anchors {
                let here = |p: &String| p == path || p.strip_prefix(path).is_some_and(|r| r.starts_with('.'));
                if a.paths.iter().any(here) {
                    let what = match &a.outcome {
                        Outcome::Fused { into } => format!("fused into {into}"),
                        Outcome::Elsewhere { into } => format!("absorbed by {into}"),
                        Outcome::Kept { reason } => format!("kept: {reason}"),
                    };
                    let paths = a.paths.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                    out.push_str(&format!("{} at {paths}: {what}\n", g.name));
                }
            }
        }
        out
    }
}
