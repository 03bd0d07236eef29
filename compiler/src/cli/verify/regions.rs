//! Every fused region beside the part of the graph that it stands for.

use super::super::args::{BuildArgs, VerifyArgs};
use super::super::progress::Bars;
use super::super::{graphs, put};
use crate::driver::{self, CompileError, FusionOptions, Planned, PlannedTarget, Progress, Timeline};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use weldment_ir::Graph;
use weldment_passes::regions::{Effort, Region, Regions, Verdict, judge};
use weldment_passes::report::Outcome;

/// Equal regions, checked once.
struct Line {
    region: Region,
    places: usize,
    verdict: Verdict,
}

impl Line {
    /// Source paths in short: what all have in common, then the parts.
    fn place(&self) -> String {
        let mut paths = self.region.paths.iter();
        let first = paths.next().map_or("the entry", String::as_str);
        match paths.len() {
            0 => first.to_owned(),
            n => format!("{first} and {n} more"),
        }
    }

    fn ops(&self) -> String {
        if self.region.ops.is_empty() { "views".to_owned() } else { self.region.ops.join(" + ") }
    }

    fn json(&self) -> Value {
        json!({
            "ops": self.region.ops,
            "rules": self.region.rules,
            "class": self.region.class.name(),
            "paths": self.region.paths,
            "places": self.places,
            "ring": self.verdict.ring.to_string(),
            "f64": finite(self.verdict.apart),
            "bound": self.verdict.bound,
            "failed": self.verdict.failed,
        })
    }
}

/// JSON has no infinity.
fn finite(x: f64) -> f64 {
    if x.is_finite() { x } else { f64::MAX }
}

/// Verdicts of regions seen so far, by [`Region::key`].
type Known = BTreeMap<String, Verdict>;

fn rows(variant: &Planned, known: &mut Known, bars: &mut Bars) -> Result<Vec<Line>, CompileError> {
    let regions = Regions::of(&variant.before, &variant.graph, &variant.correspondence, &variant.report);
    let all = regions.all()?;
    let mut rows: BTreeMap<String, usize> = BTreeMap::new();
    let mut out: Vec<Line> = Vec::new();
    bars.begin("compare regions");
    for (i, region) in all.iter().enumerate() {
        bars.advance(i as u64, all.len() as u64);
        let key = region.key();
        if let Some(at) = rows.get(&key) {
            // A region that differs may do so in one place alone, where what computes its inputs makes no excuse.
            let verdict = if out[*at].verdict.failed.is_some() {
                judge(&regions, region, &Effort::default())?
            } else {
                out[*at].verdict.clone()
            };
            if verdict.failed.is_some() == out[*at].verdict.failed.is_some() {
                out[*at].places += 1;
                continue;
            }
            out.push(Line { region: region.clone(), places: 1, verdict });
            continue;
        }
        let verdict = match known.get(&key) {
            Some(verdict) if verdict.failed.is_none() => verdict.clone(),
            _ => judge(&regions, region, &Effort::default())?,
        };
        known.insert(key.clone(), verdict.clone());
        rows.insert(key, out.len());
        out.push(Line { region: region.clone(), places: 1, verdict });
    }
    bars.finish();
    Ok(out)
}

fn plan(
    graphs: &[Graph],
    build: &BuildArgs,
    fusion: &FusionOptions,
    bars: &mut Bars,
) -> Result<Vec<PlannedTarget>, CompileError> {
    driver::plan_targets(graphs, &build.target, fusion, &mut Timeline::default(), bars)
}

/// What was fused where: the table that no perturbation may change.
fn coverage(planned: &[PlannedTarget]) -> Vec<(String, String, Vec<String>, bool)> {
    let mut out = Vec::new();
    for (target, variant) in planned.iter().flat_map(|t| t.variants.iter().map(move |v| (t.target.name(), v))) {
        for group in &variant.report.groups {
            for anchor in &group.anchors {
                let kept = matches!(anchor.outcome, Outcome::Kept { .. });
                let place = format!("{target} {}", variant.name);
                out.push((place, group.name.clone(), anchor.paths.iter().cloned().collect(), !kept));
            }
        }
    }
    out
}

/// Checks the regions of every variant of every target.
pub fn verify(graphs: &[Graph], build: &BuildArgs, args: &VerifyArgs, bars: &mut Bars) -> Result<(), CompileError> {
    let given = graphs::fusion_options(build)?;
    let planned = plan(graphs, build, &given, bars)?;
    let (mut known, mut failed, mut text, mut json) = (Known::new(), Vec::new(), String::new(), Vec::new());
    for (target, variant) in planned.iter().flat_map(|t| t.variants.iter().map(move |v| (t.target.name(), v))) {
        let rows = rows(variant, &mut known, bars)?;
        let name = if planned.len() > 1 { format!("{target} {}", variant.name) } else { variant.name.clone() };
        let places: usize = rows.iter().map(|r| r.places).sum();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}: {places} fused regions, {} of them distinct", rows.len());
        for row in &rows {
            let Verdict { ring, apart, bound, failed: why } = &row.verdict;
            let chain = if row.region.rules.is_empty() { "-".to_owned() } else { row.region.rules.join(" > ") };
            let mark = if why.is_some() { "DIFFERS" } else { "ok" };
            let _ = writeln!(
                text,
                "  {mark:7} {:3} x {} at {}: {chain} ({}); ring {ring}; f64 {apart:.1e} of {bound:.0e}",
                row.places,
                row.ops(),
                row.place(),
                row.region.class,
            );
            if let Some(why) = why {
                let paths: Vec<&str> = row.region.paths.iter().map(String::as_str).collect();
                failed.push(format!("{name}: {} at {}: {why}", row.ops(), paths.join(", ")));
            }
        }
        json.push(json!({
            "target": target,
            "variant": variant.name,
            "regions": rows.iter().map(Line::json).collect::<Vec<_>>(),
        }));
    }
    let table = coverage(&planned);
    let seeds = args.build.chaos.unwrap_or(0);
    for seed in 1..=seeds {
        let perturbed = plan(graphs, build, &FusionOptions { chaos: Some(seed), ..given.clone() }, bars)?;
        if coverage(&perturbed) != table {
            failed.push(format!("chaos {seed}: other places were fused"));
        }
        for variant in perturbed.iter().flat_map(|t| &t.variants) {
            for row in rows(variant, &mut known, bars)?.iter().filter(|r| r.verdict.failed.is_some()) {
                let why = row.verdict.failed.as_deref().unwrap_or_default();
                failed.push(format!("chaos {seed}: {}: {} at {}: {why}", variant.name, row.ops(), row.place()));
            }
        }
    }
    if seeds > 0 && failed.is_empty() {
        let _ = writeln!(text, "chaos: seeds 1 to {seeds} fuse the same places into equal regions");
    }
    match args.json {
        true => {
            let all = json!({ "variants": json, "chaos_seeds": seeds, "failed": failed });
            put(&format!("{all:#}\n"))?;
        }
        false => put(&text)?,
    }
    if failed.is_empty() { Ok(()) } else { Err(CompileError::Check(failed.join("; "))) }
}
