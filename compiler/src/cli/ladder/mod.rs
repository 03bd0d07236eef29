//! What each pass brings: one fixed workload, run by the same model compiled with more and more passes, or with one pass off.
//! All rungs are open at once and take turns, so that what the machine does to one it does to all.

mod render;

pub use render::{section, text};

use super::args::{BenchArgs, BuildArgs};
use super::explain::{self, Reports};
use super::progress::Bars;
use super::{compile, graphs, page, put, write_file};
use crate::driver::{CompileError, Progress, Quiet};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use weldment_passes::rules::{self, GROUPS};
use weldment_runtime::cli::SessionArgs;
use weldment_runtime::cli::gpu_bench::median;
use weldment_runtime::cli::workload::Workload;

/// Time that a rung's decode steps take in one round, about.
const TURN: Duration = Duration::from_millis(120);

/// A measured ladder, as `bench --ladder --json` prints it and `explain --ladder` reads it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ladder {
    /// Where it ran: host, cuda, hip.
    pub device: String,
    /// Sequences of a decode step.
    pub batch: usize,
    /// Positions that each has.
    pub context: usize,
    /// Tokens of the prefill.
    pub prefill: usize,
    /// Turns that every rung took; each figure is the median of its turns.
    pub rounds: usize,
    /// In the order in which they are compared.
    pub rungs: Vec<Rung>,
}

/// One build and what it did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rung {
    /// What was switched.
    pub name: String,
    /// True if the code is that of the rung it is compared with: the pass did nothing here, and was not measured again.
    pub same: bool,
    /// Launches of a decode step.
    pub launches: usize,
    /// Bytes that a decode step moves, by the artifact's own estimate.
    pub bytes_per_step: u64,
    /// Of a decode step.
    pub ms_per_step: f64,
    /// Fastest and slowest turn.
    pub ms_range: [f64; 2],
    /// Decoded, all sequences together.
    pub tokens_per_second: f64,
    /// Time of a step against the rung it is compared with, in percent, the median over turns: below 0 is faster. None for
    /// the first.
    pub delta_percent: Option<f64>,
    /// Of the prefill.
    pub prefill_tokens_per_second: f64,
}

/// A build that is to be measured.
struct Rungs {
    name: String,
    /// Switched off beside what the user switched off.
    off: BTreeSet<String>,
    /// The rung it is compared with.
    against: Option<usize>,
}

/// Everything off, then rules of no fusion, then one fusion after another in the report's order.
fn ladder_plans() -> Vec<Rungs> {
    let all = rules::all();
    let names = |wanted: &dyn Fn(Option<&str>) -> bool| -> Vec<String> {
        all.iter().filter(|r| wanted(r.group)).map(|r| r.name.to_owned()).collect()
    };
    let mut off: BTreeSet<String> =
        names(&|_| true).into_iter().chain(GROUPS.iter().map(|g| (*g).to_owned())).collect();
    let mut plans = vec![Rungs { name: "everything off".to_owned(), off: off.clone(), against: None }];
    let mut add = |name: String, on: Vec<String>| {
        off.retain(|rule| !on.contains(rule));
        let against = Some(plans.len() - 1);
        plans.push(Rungs { name, off: off.clone(), against });
    };
    add("+ rules of no fusion".to_owned(), names(&|group| group.is_none()));
    for group in GROUPS {
        let mut on = names(&|g| g == Some(group));
        on.push((*group).to_owned());
        add(format!("+ {group}"), on);
    }
    plans
}

/// Everything on, then each of `passes` off.
fn comparison_plans(passes: &[String]) -> Vec<Rungs> {
    let without = |pass: &String| {
        let off = BTreeSet::from([pass.clone()]);
        Rungs { name: format!("without {pass}"), off, against: Some(0) }
    };
    let all = Rungs { name: "everything on".to_owned(), off: BTreeSet::new(), against: None };
    std::iter::once(all).chain(passes.iter().map(without)).collect()
}

/// `weldment bench --ladder` and `--vs-disable`.
///
/// # Errors
/// If the model does not compile with a pass off, or cannot be run.
pub fn bench(args: &BenchArgs) -> Result<(), CompileError> {
    if graphs::has_extension(&args.model, "weld") {
        let message = "an artifact is compiled already; give its model, which is compiled once for each rung";
        return Err(CompileError::option("--ladder", message));
    }
    let [batch] = args.batch[..] else {
        return Err(CompileError::option("--batch", "builds are compared on one workload: one number is expected"));
    };
    let plans = if args.ladder { ladder_plans() } else { comparison_plans(&args.vs_disable) };
    let dir = tempfile::tempdir().map_err(|source| CompileError::Io { path: std::env::temp_dir(), source })?;
    let mut bars = Bars::new();
    let (ladder, reports) = measure(args, batch, &plans, dir.path(), &mut bars)?;
    bars.finish();
    if let Some(path) = &args.html {
        let text = format!("{}\n{}", text(&ladder), explain::text(&reports, None));
        let page = page::page(&explain::title(&args.model), &reports, None, &text, &section(&ladder))?;
        write_file(path, page.as_bytes())?;
    }
    if args.json {
        let text = serde_json::to_string_pretty(&ladder).map_err(|e| CompileError::option("--json", e.to_string()))?;
        return put(&(text + "\n"));
    }
    put(&text(&ladder))
}

/// A build that is open; `workload` is none where the code is that of rung `same_as`.
struct Built {
    workload: Option<Workload>,
    same_as: usize,
}

fn artifact_of(dir: &Path, plan: usize) -> PathBuf {
    dir.join(format!("{plan}.weld"))
}

/// Compiles every plan into `dir`, and gives for each the first plan with the same code.
fn compile_plans(args: &BenchArgs, plans: &[Rungs], dir: &Path, bars: &mut Bars) -> Result<Vec<usize>, CompileError> {
    let mut programs = Vec::new();
    let mut same_as = Vec::new();
    bars.begin("compile rungs");
    for (index, plan) in plans.iter().enumerate() {
        bars.advance(index as u64, plans.len() as u64);
        let artifact = artifact_of(dir, index);
        let mut disable = args.build.disable.clone();
        disable.extend(plan.off.iter().cloned());
        // A rung is without what a requirement may ask for.
        let build = BuildArgs { disable, require: Vec::new(), ..args.build.clone() };
        compile::compile_to(&args.model, &build, &artifact, &mut Quiet)?;
        let opened = weldment_runtime::Artifact::open(&artifact)?;
        let code = |name: &str| opened.section(name).map(weldment_runtime::blake3_hex);
        let program: Vec<_> = opened.manifest().programs.iter().map(|p| (p.clone(), code(&p.code))).collect();
        same_as.push(programs.iter().position(|known| *known == program).unwrap_or(index));
        programs.push(program);
    }
    Ok(same_as)
}

/// Builds every plan, lets them take turns, and gives the figures and the reports of the build with most switched on.
fn measure(
    args: &BenchArgs,
    batch: usize,
    plans: &[Rungs],
    dir: &Path,
    bars: &mut Bars,
) -> Result<(Ladder, Reports), CompileError> {
    let same_as = compile_plans(args, plans, dir, bars)?;
    let weights = args.weights_file.clone().or_else(|| graphs::weights_of(&args.model, &args.build));
    let mut built: Vec<Built> = Vec::new();
    for (index, same_as) in same_as.into_iter().enumerate() {
        let session = SessionArgs {
            artifact: artifact_of(dir, index),
            threads: args.build.threads.unwrap_or(0),
            weights_file: weights.clone(),
            cache: Some(dir.join("cache")),
            ..SessionArgs::default()
        };
        let open = || Workload::open(&session, batch, Some(args.context), Some(args.prefill));
        built.push(Built { workload: (same_as == index).then(open).transpose()?, same_as });
    }
    let mut times: Vec<(Vec<Duration>, Vec<Duration>)> = plans.iter().map(|_| Default::default()).collect();
    bars.begin("take turns");
    for round in 0..args.rounds.max(1) {
        bars.advance(round as u64, args.rounds as u64);
        for (rung, (decode, prefill)) in built.iter_mut().zip(&mut times) {
            if let Some(workload) = &mut rung.workload {
                decode.push(workload.decode(TURN)?);
                prefill.push(workload.prefill()?);
            }
        }
    }
    let reports = match built.len() {
        0 => Reports::new(),
        // The comparison's first build and the ladder's last have everything on.
        n => explain::stored(&artifact_of(dir, if args.ladder { n - 1 } else { 0 }))?,
    };
    let mut ladder: Option<Ladder> = None;
    for (index, plan) in plans.iter().enumerate() {
        let same_as = built[index].same_as;
        let (decode, prefill) = (&times[same_as].0, &times[same_as].1);
        let Some(workload) = &mut built[same_as].workload else { continue };
        let (launches, bytes_per_step) = workload.decode_counts()?;
        let (shape, device) = (workload.shape(), workload.device());
        let ladder = ladder.get_or_insert_with(|| Ladder {
            device: device.to_owned(),
            batch: shape.batch,
            context: shape.context,
            prefill: shape.prefill,
            rounds: args.rounds.max(1),
            rungs: Vec::new(),
        });
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let step = median(&mut decode.clone());
        let against = plan.against.map(|i| &times[built[i].same_as].0);
        let delta_percent = against.map(|against| 100.0 * (median_ratio(decode, against) - 1.0));
        let ends = [decode.iter().min(), decode.iter().max()].map(|d| d.copied().map_or(0.0, ms));
        ladder.rungs.push(Rung {
            name: plan.name.clone(),
            same: plan.against.is_some_and(|i| built[i].same_as == same_as),
            launches,
            bytes_per_step,
            ms_per_step: ms(step),
            ms_range: ends,
            tokens_per_second: shape.batch as f64 / step.as_secs_f64(),
            delta_percent,
            prefill_tokens_per_second: shape.prefill as f64 / median(&mut prefill.clone()).as_secs_f64(),
        });
    }
    let ladder = ladder.ok_or_else(|| CompileError::option("--vs-disable", "there is nothing to compare"))?;
    Ok((ladder, reports))
}

/// The median of the ratios of times taken in the same turn, in which the machine was the same to both.
fn median_ratio(times: &[Duration], against: &[Duration]) -> f64 {
    let ratio = |(a, b): (&Duration, &Duration)| a.as_secs_f64() / b.as_secs_f64().max(1e-12);
    let mut ratios: Vec<f64> = times.iter().zip(against).map(ratio).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(1.0)
}

/// A ladder that `bench --ladder --json` printed.
///
/// # Errors
/// If the file cannot be read or is something else.
pub fn read(path: &Path) -> Result<Ladder, CompileError> {
    let bytes = std::fs::read(path).map_err(|source| CompileError::Io { path: path.to_owned(), source })?;
    let place = path.display().to_string();
    serde_json::from_slice(&bytes)
        .map_err(|e| CompileError::option(place, format!("{e}; what `bench --ladder --json` prints is expected")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_turn() {
        let ms = |times: [u64; 3]| times.map(Duration::from_millis);
        assert_eq!(median_ratio(&ms([10, 20, 90]), &ms([20, 40, 90])), 0.5);
        assert_eq!(median_ratio(&[], &[]), 1.0);
    }

    #[test]
    fn a_ladder_ends_with_everything_on() {
        let plans = ladder_plans();
        assert_eq!(plans.len(), GROUPS.len() + 2);
        assert_eq!(
            plans[0].off.len(),
            rules::all().iter().map(|r| r.name).chain(GROUPS.iter().copied()).collect::<BTreeSet<_>>().len()
        );
        assert!(plans.windows(2).all(|p| p[1].off.is_subset(&p[0].off) && p[1].off != p[0].off));
        assert!(plans.last().unwrap().off.is_empty());
    }
}
