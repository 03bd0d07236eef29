//! The report as text, and `--require`.

use super::{GroupReport, Outcome, Reason, Report};
use crate::error::PassError;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Barred { text } => f.write_str(text),
            Reason::NearMiss { rule, predicate, found, accepted, change, .. } => {
                write!(f, "{rule}: {predicate} is {found}, {accepted} is accepted; {change}")
            }
            Reason::Dearer { chosen, extra_ns, by, change } => {
                match extra_ns {
                    0 => write!(f, "extraction kept {chosen}: the fusion saves nothing")?,
                    _ => write!(f, "extraction preferred {chosen}: the fusion costs {extra_ns} ns more")?,
                }
                if !by.is_empty() {
                    write!(f, ", as what it absorbs is also read by {}", list(by))?;
                }
                write!(f, "; {change}")
            }
            Reason::AlsoRead { by, change } => {
                write!(f, "computed beside the fusion, as it is also read by {}; {change}", list(by))
            }
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Fused { into } => write!(f, "fused into {into}"),
            Outcome::Elsewhere { into } => write!(f, "absorbed by {into}"),
            Outcome::Kept { reason } => write!(f, "kept: {reason}"),
        }
    }
}

/// A text that is the same for every layer: numbers in `layers.N.` left open.
pub(super) fn any_layer(text: &str) -> String {
    let mut parts = text.split("layers.");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        out += if rest.len() == part.len() { "layers." } else { "layers.N" };
        out += rest;
    }
    out
}

impl GroupReport {
    /// Why places were left, with the first path of each place: reasons that differ by layer alone are one.
    pub fn kept(&self) -> BTreeMap<String, Vec<String>> {
        let mut kept: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        for anchor in &self.anchors {
            if let Outcome::Kept { reason } = &anchor.outcome {
                let text = reason.to_string();
                let path = anchor.paths.iter().next().cloned().unwrap_or_default();
                kept.entry(any_layer(&text)).or_default().push((text, path));
            }
        }
        let shown = |(open, places): (String, Vec<(String, String)>)| {
            let text = match places.as_slice() {
                [(text, _)] => text.clone(),
                _ => open,
            };
            (text, places.into_iter().map(|(_, path)| path).collect())
        };
        kept.into_iter().map(shown).collect()
    }

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
        for a in &self.anchors {
            match &a.outcome {
                Outcome::Fused { .. } | Outcome::Kept { .. } => {}
                Outcome::Elsewhere { into } => *elsewhere.entry(into).or_default() += 1,
            }
        }
        if !elsewhere.is_empty() {
            let list: Vec<String> = elsewhere.iter().map(|(op, n)| format!("{n} in {op}")).collect();
            write!(f, " ({})", list.join(", "))?;
        }
        if fused != total {
            write!(f, "; {} kept", total - fused)?;
        }
        for (reason, paths) in &self.kept() {
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
}
