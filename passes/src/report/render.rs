//! The report as text, and `--require`.

use super::{GroupReport, LimitReport, Outcome, Reason, Report, UnitReport};
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
            Outcome::Absorbed { by } => write!(f, "absorbed by {by}"),
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

    /// Places that this fusion made one op of.
    pub fn fused(&self) -> usize {
        self.anchors.iter().filter(|a| matches!(a.outcome, Outcome::Fused { .. })).count()
    }

    /// Places that became part of other ops, by op.
    pub fn absorbed(&self) -> BTreeMap<&str, usize> {
        let mut by: BTreeMap<&str, usize> = BTreeMap::new();
        for anchor in &self.anchors {
            if let Outcome::Absorbed { by: op } = &anchor.outcome {
                *by.entry(op).or_default() += 1;
            }
        }
        by
    }

    /// Places that are no more: fused, or absorbed.
    pub fn gone(&self) -> usize {
        self.anchors.iter().filter(|a| !matches!(a.outcome, Outcome::Kept { .. })).count()
    }

    /// `30 fused`, `28 fused, 2 kept`, `60 absorbed`.
    pub fn counts(&self) -> String {
        let (fused, gone, total) = (self.fused(), self.gone(), self.anchors.len());
        let counts = [(fused, "fused"), (gone - fused, "absorbed"), (total - gone, "kept")];
        counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for GroupReport {
    /// `silu_mul: 30 places: 30 absorbed (30 by matmul_silu_mul)`, or `... 28 fused, 2 kept` and why.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.anchors.len() {
            0 => return write!(f, "{}: no places", self.name),
            n => write!(f, "{}: {n} place{}: {}", self.name, if n == 1 { "" } else { "s" }, self.counts())?,
        }
        let by: Vec<String> = self.absorbed().iter().map(|(op, n)| format!("{n} by {op}")).collect();
        if !by.is_empty() {
            write!(f, " ({})", by.join(", "))?;
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
        f.write_str(&self.limits().concat())
    }
}

impl Report {
    /// A line for each distinct unit whose saturation reached a limit.
    pub fn limits(&self) -> Vec<String> {
        let line = |unit: &UnitReport| {
            let LimitReport { reached, at } = unit.limit.as_ref()?;
            let more = if unit.instances > 1 { format!(" and {} more", unit.instances - 1) } else { String::new() };
            Some(format!("saturation at {at}{more} stopped at its limit of {reached}; the best form so far is used\n"))
        };
        self.units.iter().filter_map(line).collect()
    }

    /// Checks `FUSION=N`, `FUSION>=N` (places fused or absorbed), `FUSION=all` (there are some, and none is kept) or
    /// `FUSION=none` (there is no place).
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
        let (gone, places) = (group.gone(), group.anchors.len());
        let holds = match (wanted.trim(), at_least) {
            ("all", false) => places > 0 && gone == places,
            ("none", false) => places == 0,
            (n, _) => {
                let n: usize = n.parse().map_err(|_| bad())?;
                if at_least { gone >= n } else { gone == n }
            }
        };
        match holds {
            true => Ok(()),
            false => Err(PassError::Required { required: requirement.to_owned(), found: group.to_string() }),
        }
    }
}
