//! A difference as text.

use super::compare::{Difference, Pair, TargetChange, VariantChange};
use std::collections::BTreeMap;
use weldment_passes::report::{Change, size};

/// Lines of model facts shown at most.
const SHOWN: usize = 40;

/// The difference for people; empty if there is none.
pub fn text(found: &Difference) -> String {
    let mut out = String::new();
    if !found.options.is_empty() {
        out += "options\n";
    }
    let given = |v: &Option<String>| v.clone().unwrap_or_else(|| "not given".to_owned());
    for option in &found.options {
        out += &format!("  {}: {} -> {}\n", option.name, given(&option.values.a), given(&option.values.b));
    }
    if let Some(targets) = &found.targets {
        out += &format!("targets: {} -> {}\n", targets.a.join(", "), targets.b.join(", "));
    }
    found.variants.iter().for_each(|v| variant(v, &mut out));
    found.programs.iter().for_each(|p| program(p, &mut out));
    if !found.model.is_empty() {
        out += "model\n";
    }
    for line in found.model.iter().take(SHOWN) {
        out += &format!("  {line}\n");
    }
    if found.model.len() > SHOWN {
        out += &format!("  and {} more\n", found.model.len() - SHOWN);
    }
    if !found.sections.is_empty() {
        out += &format!("sections with other bytes: {}\n", found.sections.join(", "));
    }
    out
}

fn variant(v: &VariantChange, out: &mut String) {
    *out += &format!("variant {}\n", v.variant);
    if let Some(Pair { a, b }) = &v.guards {
        let shown = |g: &Option<String>| g.clone().unwrap_or_else(|| "no such variant".to_owned());
        *out += &format!("  guards: {} -> {}\n", shown(a), shown(b));
    }
    if let Some(Pair { a, b }) = &v.launches {
        *out += &format!("  launches: {a} -> {b}\n");
    }
    if v.launches_changed > 0 {
        *out += &format!("  launches that are not the same: {}\n", v.launches_changed);
    }
    if let Some(Pair { a, b }) = &v.bytes {
        *out += &format!("  bytes of a step: {} -> {}\n", size(*a), size(*b));
    }
    // One line for all places of a fusion that changed alike.
    let mut alike: BTreeMap<(Change, &str, String), Vec<String>> = BTreeMap::new();
    for f in &v.fusions {
        let outcome = |o: &Option<weldment_passes::report::Outcome>| o.as_ref().map(ToString::to_string);
        let what = match f.change {
            Change::Lost | Change::New => outcome(&f.b).unwrap_or_default(),
            Change::Gained => outcome(&f.b).unwrap_or_default(),
            Change::Gone => format!("was {}", outcome(&f.a).unwrap_or_default()),
            Change::Moved | Change::Reason => {
                format!("{} -> {}", outcome(&f.a).unwrap_or_default(), outcome(&f.b).unwrap_or_default())
            }
        };
        let path = f.paths.iter().next().cloned().unwrap_or_default();
        alike.entry((f.change, f.fusion.as_str(), what)).or_default().push(path);
    }
    for ((change, fusion, what), paths) in alike {
        let verb = match change {
            Change::Lost => "lost",
            Change::Gained => "gained",
            Change::Moved => "moved",
            Change::Reason => "other reason",
            Change::Gone => "place gone",
            Change::New => "new place",
        };
        let more = if paths.len() > 1 { format!(" and {} more", paths.len() - 1) } else { String::new() };
        let first = paths.first().map_or("", String::as_str);
        *out += &format!("  {verb}: {fusion} at {first}{more}: {what}\n");
    }
}

fn program(p: &TargetChange, out: &mut String) {
    *out += &format!("target {}\n", p.target);
    if let Some(Pair { a, b }) = &p.kernels {
        *out += &format!("  kernels: {a} -> {b}\n");
    }
    for name in &p.kernels_gone {
        *out += &format!("  - {name}\n");
    }
    for name in &p.kernels_new {
        *out += &format!("  + {name}\n");
    }
    for (name, bytes) in [("arena", &p.arena_bytes), ("packed weights", &p.pack_bytes)] {
        if let Some(Pair { a, b }) = bytes {
            *out += &format!("  {name}: {} -> {}\n", size(*a), size(*b));
        }
    }
}
