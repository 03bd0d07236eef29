//! Two builds side by side, as data.

use super::super::explain::Reports;
use crate::driver::CompileError;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use weldment_passes::report::{FusionChange, Report, compare};
use weldment_runtime::artifact::{Manifest, Program, Variant};

/// What an artifact says of itself.
pub struct Build {
    pub manifest: Manifest,
    pub reports: Reports,
}

/// A value of both builds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair<T> {
    pub a: T,
    pub b: T,
}

impl<T: PartialEq> Pair<T> {
    /// The pair, if its halves differ.
    fn differing(a: T, b: T) -> Option<Pair<T>> {
        (a != b).then_some(Pair { a, b })
    }
}

/// An option given to one build, or with another value to the other.
#[derive(Debug, Serialize)]
pub struct OptionChange {
    pub name: String,
    #[serde(flatten)]
    pub values: Pair<Option<String>>,
}

/// A variant of the preferred target that differs.
#[derive(Debug, Serialize)]
pub struct VariantChange {
    /// Its name in the report.
    pub variant: String,
    /// Symbols and the values that the guards let through; none where the build has no such variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guards: Option<Pair<Option<String>>>,
    /// Launches of a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launches: Option<Pair<u64>>,
    /// Launches at the same place in the order that are not the same; 0 where their numbers differ.
    #[serde(skip_serializing_if = "is_zero")]
    pub launches_changed: usize,
    /// Bytes that the step's launches read and write, as the report counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Pair<u64>>,
    /// Places of fusions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fusions: Vec<FusionChange>,
}

/// Kernels and memory of a target that differ.
#[derive(Debug, Serialize)]
pub struct TargetChange {
    pub target: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernels: Option<Pair<usize>>,
    /// Kernels of the first build alone: family and summary.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels_gone: Vec<String>,
    /// Kernels of the second build alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels_new: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arena_bytes: Option<Pair<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pack_bytes: Option<Pair<u64>>,
}

/// What changed between two builds.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// True if nothing did.
    pub same: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<OptionChange>,
    /// Targets, where the lists differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Pair<Vec<String>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<VariantChange>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<TargetChange>,
    /// Facts of the model, its symbols, inputs, outputs, states and weights: `place: first, second`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub model: Vec<String>,
    /// Sections whose bytes differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sections: Vec<String>,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Difference {
    /// Compares two builds.
    ///
    /// # Errors
    /// If a manifest cannot be written as JSON.
    pub fn between(a: &Build, b: &Build) -> Result<Difference, CompileError> {
        let names = |m: &Manifest| m.programs.iter().map(|p| p.target.name.clone()).collect::<Vec<_>>();
        let mut programs = Vec::new();
        for x in &a.manifest.programs {
            let other = b.manifest.programs.iter().find(|p| p.target.name == x.target.name);
            programs.extend(other.and_then(|y| target(x, y)));
        }
        let mut out = Difference {
            same: false,
            options: options(&a.manifest.options, &b.manifest.options),
            targets: Pair::differing(names(&a.manifest), names(&b.manifest)),
            variants: variants(a, b),
            programs,
            model: model(&a.manifest, &b.manifest)?,
            sections: sections(&a.manifest, &b.manifest),
        };
        // Equal manifests name equal sections by their hashes.
        out.same = a.manifest == b.manifest;
        Ok(out)
    }
}

fn options(a: &[(String, String)], b: &[(String, String)]) -> Vec<OptionChange> {
    let value = |list: &[(String, String)], name: &str| list.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let names: BTreeSet<&String> = a.iter().chain(b).map(|(name, _)| name).collect();
    let change = |name: &String| {
        let values = Pair::differing(value(a, name), value(b, name))?;
        Some(OptionChange { name: name.clone(), values })
    };
    names.into_iter().filter_map(change).collect()
}

/// A variant of the preferred program with its report.
struct Line<'a> {
    guards: String,
    variant: &'a Variant,
    report: Option<&'a Report>,
}

/// Variants by name: the report has them in the order of the preferred program's entry.
fn rows(build: &Build) -> BTreeMap<String, Line<'_>> {
    let symbol = |i: u32| build.manifest.symbols.get(i as usize).map_or("?", |s| s.name.as_str());
    let listed = build.manifest.programs.iter().take(1).flat_map(|p| &p.entries).flat_map(|e| &e.variants);
    let row = |(i, variant): (usize, &'_ Variant)| {
        let guards = variant.guards.iter().map(|g| format!("{}={}..{}", symbol(g.symbol), g.min, g.max));
        let guards = guards.collect::<Vec<_>>().join(" ");
        let named = build.reports.get_index(i);
        (named.map_or_else(|| guards.clone(), |(name, _)| name.clone()), guards)
    };
    listed
        .enumerate()
        .map(|(i, variant)| {
            let (name, guards) = row((i, variant));
            (name, Line { guards, variant, report: build.reports.get_index(i).map(|(_, r)| r) })
        })
        .collect()
}

fn variants(a: &Build, b: &Build) -> Vec<VariantChange> {
    let (mine, theirs) = (rows(a), rows(b));
    let names: BTreeSet<&String> = mine.keys().chain(theirs.keys()).collect();
    let change = |name: &String| {
        let (x, y) = (mine.get(name), theirs.get(name));
        let guards = Pair::differing(x.map(|r| r.guards.clone()), y.map(|r| r.guards.clone()));
        let mut out = VariantChange {
            variant: name.clone(),
            guards,
            launches: None,
            launches_changed: 0,
            bytes: None,
            fusions: Vec::new(),
        };
        if let (Some(x), Some(y)) = (x, y) {
            let (old, new) = (&x.variant.launches, &y.variant.launches);
            out.launches = Pair::differing(old.len() as u64, new.len() as u64);
            if out.launches.is_none() {
                out.launches_changed = old.iter().zip(new).filter(|(p, q)| p != q).count();
            }
            if let (Some(p), Some(q)) = (x.report, y.report) {
                out.bytes = Pair::differing(p.bytes_after, q.bytes_after);
                out.fusions = compare(p, q);
            }
        }
        let differs = out.guards.is_some()
            || out.launches.is_some()
            || out.launches_changed > 0
            || out.bytes.is_some()
            || !out.fusions.is_empty();
        differs.then_some(out)
    };
    names.into_iter().filter_map(change).collect()
}

fn target(a: &Program, b: &Program) -> Option<TargetChange> {
    let counted = |p: &Program| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for kernel in &p.kernels {
            *counts.entry(format!("{} {}", kernel.family, kernel.summary).trim_end().to_owned()).or_default() += 1;
        }
        counts
    };
    let (mine, theirs) = (counted(a), counted(b));
    let beyond = |x: &BTreeMap<String, usize>, y: &BTreeMap<String, usize>| -> Vec<String> {
        let more = |(name, n): (&String, &usize)| {
            let extra = n.saturating_sub(y.get(name).copied().unwrap_or(0));
            match extra {
                0 => None,
                1 => Some(name.clone()),
                n => Some(format!("{name} ({n} of them)")),
            }
        };
        x.iter().filter_map(more).collect()
    };
    let out = TargetChange {
        target: a.target.name.clone(),
        kernels: Pair::differing(a.kernels.len(), b.kernels.len()),
        kernels_gone: beyond(&mine, &theirs),
        kernels_new: beyond(&theirs, &mine),
        arena_bytes: Pair::differing(a.arena_bytes, b.arena_bytes),
        pack_bytes: Pair::differing(a.pack.bytes, b.pack.bytes),
    };
    let differs = out.kernels.is_some()
        || !out.kernels_gone.is_empty()
        || !out.kernels_new.is_empty()
        || out.arena_bytes.is_some()
        || out.pack_bytes.is_some();
    differs.then_some(out)
}

/// Parts of the manifest that say what the model is, leaf by leaf.
fn model(a: &Manifest, b: &Manifest) -> Result<Vec<String>, CompileError> {
    const PARTS: [&str; 9] = [
        "weldment_version",
        "model",
        "symbols",
        "inputs",
        "outputs",
        "states",
        "weights",
        "chat_template",
        "special_tokens",
    ];
    let value = |m: &Manifest| serde_json::to_value(m).map_err(|e| CompileError::option("manifest", e.to_string()));
    let (a, b) = (value(a)?, value(b)?);
    let mut out = Vec::new();
    for part in PARTS {
        let (x, y) = (a.get(part).unwrap_or(&Value::Null), b.get(part).unwrap_or(&Value::Null));
        leaves(part, x, y, &mut out);
    }
    Ok(out)
}

/// Appends a line for each leaf that differs, with its place.
fn leaves(path: &str, a: &Value, b: &Value, out: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                leaves(&format!("{path}.{key}"), value, b.get(key).unwrap_or(&Value::Null), out);
            }
            for (key, value) in b.iter().filter(|(key, _)| !a.contains_key(*key)) {
                leaves(&format!("{path}.{key}"), &Value::Null, value, out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| leaves(&format!("{path}[{i}]"), a, b, out));
        }
        (Value::Array(a), Value::Array(b)) => out.push(format!("{path}: {} entries, {} entries", a.len(), b.len())),
        _ if a == b => {}
        _ => out.push(format!("{path}: {}, {}", short(a), short(b))),
    }
}

/// A value cut to a line.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn sections(a: &Manifest, b: &Manifest) -> Vec<String> {
    let names: BTreeSet<&String> = a.sections.iter().chain(&b.sections).map(|s| &s.name).collect();
    let find = |m: &'_ Manifest, name: &String| m.sections.iter().find(|s| s.name == *name).cloned();
    // Where a section lies follows from those before it.
    let differs = |name: &&String| match (find(a, name), find(b, name)) {
        (Some(x), Some(y)) => x.blake3 != y.blake3,
        _ => true,
    };
    names.into_iter().filter(differs).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn leaves_that_differ_are_named() {
        let mut found = Vec::new();
        let (a, b) = (json!({"a": [1, 2], "b": 3, "c": [1]}), json!({"a": [1, 4], "c": [], "d": "new"}));
        leaves("", &a, &b, &mut found);
        found.sort();
        assert_eq!(found, [".a[1]: 2, 4", ".b: 3, null", ".c: 1 entries, 0 entries", ".d: null, \"new\""]);
        found.clear();
        leaves("", &a, &a, &mut found);
        assert!(found.is_empty());
    }

    #[test]
    fn options_of_one_build_alone_are_named() {
        let of = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
        };
        let found = options(&of(&[("target", "host"), ("dtype", "f32")]), &of(&[("target", "host"), ("disable", "x")]));
        let text: Vec<_> =
            found.iter().map(|o| (o.name.as_str(), o.values.a.as_deref(), o.values.b.as_deref())).collect();
        assert_eq!(text, [("disable", None, Some("x")), ("dtype", Some("f32"), None)]);
    }
}
