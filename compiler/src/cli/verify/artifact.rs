//! An artifact run on this host beside the interpreter.

use super::super::args::{BuildArgs, Cli, Command, VerifyArgs};
use super::super::progress::Bars;
use super::super::{graphs, put};
use crate::driver::{self, Comparison, CompileError, Difference, Progress, Subject, Timeline, compare_artifact};
use clap::Parser;
use serde_json::json;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use weldment_ir::Graph;
use weldment_runtime::Artifact;
use weldment_runtime::cli::files;
use weldment_runtime::device::Device;
use weldment_runtime::weights::{self, WeightOptions};

/// The options that an artifact was compiled with, as its manifest records them.
///
/// # Errors
/// If this compiler does not take one of them.
pub fn recorded(artifact: &Artifact, given: &BuildArgs) -> Result<BuildArgs, CompileError> {
    of_list(&artifact.manifest().options, given)
        .map_err(|e| CompileError::option(artifact.path().display().to_string(), format!("its recorded options: {e}")))
}

/// Options as a command line would give them.
fn of_list(list: &[(String, String)], given: &BuildArgs) -> Result<BuildArgs, String> {
    let mut line = vec!["weldment".to_owned(), "verify".to_owned(), "artifact".to_owned()];
    for (name, value) in list {
        match name.strip_prefix("dim.") {
            Some(dim) => line.extend(["--dim".to_owned(), format!("{dim}={value}")]),
            None if matches!(name.as_str(), "set" | "disable") => {
                line.extend(value.split(',').flat_map(|v| [format!("--{name}"), v.to_owned()]));
            }
            None => line.extend([format!("--{name}"), value.clone()]),
        }
    }
    let failed = |e: clap::Error| e.to_string().lines().next().unwrap_or_default().to_owned();
    match Cli::try_parse_from(line).map_err(failed)?.command {
        Command::Verify(args) => {
            Ok(BuildArgs { threads: given.threads, checkpoint: given.checkpoint.clone(), ..args.build })
        }
        _ => Ok(given.clone()),
    }
}

/// The model that an artifact was compiled from.
fn source(artifact: &Artifact, args: &VerifyArgs) -> Result<PathBuf, CompileError> {
    if let Some(path) = &args.source {
        return Ok(path.clone());
    }
    let file = weights::source_file(artifact, weights::cache_dir().as_deref());
    let model = file.map(|path| match path.extension().is_some_and(|e| e == "gguf") {
        true => path,
        false => path.parent().map_or_else(|| path.clone(), Path::to_owned),
    });
    model.ok_or_else(|| {
        let message = "where its weights are is not known; name the model it was compiled from";
        CompileError::option("--source", message)
    })
}

/// The entries of an artifact, rebuilt from its model with the options it records.
///
/// # Errors
/// If the model is not found or the options are not accepted.
pub fn entry(artifact: &Artifact, args: &VerifyArgs) -> Result<(Vec<Graph>, BuildArgs, PathBuf), CompileError> {
    let build = recorded(artifact, &args.build)?;
    let model = source(artifact, args)?;
    let entries = match graphs::has_extension(&model, "wir") {
        true => graphs::ranged_wir(&model, &build)?,
        false => graphs::entries(&model, &graphs::checkpoint(&model, &build)?, &build)?,
    };
    Ok((entries, build, model))
}

/// `weldment verify m.weld --tokens FILE`.
///
/// # Errors
/// [`CompileError::Check`] if the artifact does not compute what its model says.
pub fn verify(artifact: &Artifact, tokens: &Path, args: &VerifyArgs, bars: &mut Bars) -> Result<(), CompileError> {
    let (entries, build, model) = entry(artifact, args)?;
    let checkpoint = graphs::checkpoint(&model, &build)?;
    let fusion = graphs::fusion_options(&build)?;
    let planned = driver::plan_targets(&entries, &build.target, &fusion, &mut Timeline::default(), bars)?;
    let tokens = files::read_tokens(tokens)?;
    let device = Device::host(build.threads.unwrap_or(0))?;
    let weights = WeightOptions {
        rank: 0,
        weights_file: build.checkpoint.clone().or((!graphs::has_extension(&model, "wir")).then_some(model)),
        cache: weights::cache_dir(),
        threads: device.threads(),
    };
    let step = artifact.manifest().step().and_then(|entry| Some((entry, entries.get(entry)?)));
    let (entry, graph) = step.ok_or_else(|| {
        let message =
            "the artifact has no entry that takes a step of sequences; verify without --tokens compares regions";
        CompileError::option("--tokens", message)
    })?;
    let subject = Subject { artifact, entry, graph, planned: &planned, checkpoint: &checkpoint, weights };
    bars.begin("run and interpret");
    let found = compare_artifact(&subject, &device, &tokens, args.every_launch)?;
    bars.finish();
    match args.json {
        true => put(&format!("{:#}\n", json(&found)))?,
        false => put(&text(&found))?,
    }
    match (&found.first, found.outputs_differ()) {
        (Some(first), _) => Err(CompileError::Check(sentence(first))),
        (None, true) => {
            let message =
                "the outputs differ, though every launch does what its op says: see `verify` without --tokens";
            Err(CompileError::Check(message.to_owned()))
        }
        (None, false) => Ok(()),
    }
}

fn sentence(d: &Difference) -> String {
    let more = if d.launches > 1 { format!(" and {} that follow", d.launches - 1) } else { String::new() };
    let paths: Vec<&str> = d.paths.iter().map(String::as_str).collect();
    format!(
        "{} launch {}{more}, {} at {}: {} {}, rank {} result {} element {:?} is {:e} for {:e}; differs by {:.1e} of the largest value, \
         {:.0e} is accepted",
        d.variant,
        d.launch,
        d.kernel,
        paths.join(", "),
        d.op,
        d.types,
        d.rank,
        d.result,
        d.element,
        d.found,
        d.expected,
        d.apart,
        d.bound,
    )
}

fn text(found: &Comparison) -> String {
    let mut out = String::new();
    for step in &found.steps {
        let (mark, plural) =
            (if step.apart > found.bound { "DIFFERS" } else { "ok" }, if step.tokens == 1 { "" } else { "s" });
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{mark:7} {}, {} token{plural}: logits differ by {:.1e} of the largest, {:.0e} is accepted",
            step.variant, step.tokens, step.apart, found.bound
        );
    }
    if found.compared > 0 {
        let what =
            if found.first.is_some() { "up to the first that differs" } else { "all as the interpreter has them" };
        let _ = writeln!(out, "{} launches compared, {what}", found.compared);
    }
    out
}

fn json(found: &Comparison) -> serde_json::Value {
    let finite = |x: f64| if x.is_finite() { x } else { f64::MAX };
    let step =
        |s: &driver::StepDifference| json!({ "variant": s.variant, "tokens": s.tokens, "apart": finite(s.apart) });
    let first = found.first.as_ref().map(|d| {
        json!({
            "variant": d.variant, "launch": d.launch, "launches": d.launches, "kernel": d.kernel, "paths": d.paths,
            "op": d.op, "types": d.types, "rank": d.rank, "result": d.result, "element": d.element, "expected": finite(d.expected),
            "found": if d.found.is_nan() { serde_json::Value::Null } else { json!(d.found) },
            "apart": finite(d.apart), "bound": d.bound,
        })
    });
    json!({
        "steps": found.steps.iter().map(step).collect::<Vec<_>>(),
        "bound": found.bound,
        "launches_compared": found.compared,
        "first": first,
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::compile::option_list;
    use super::*;

    #[test]
    fn recorded_options_are_those_that_were_given() {
        let line = [
            "weldment",
            "verify",
            "m",
            "--target",
            "x86-64-v3",
            "--dtype",
            "bf16",
            "--dim",
            "tokens=1..64",
            "--max-seq",
            "32",
            "--set",
            "gemm_rows=8",
            "--set",
            "attention_sharing=2",
            "--disable",
            "silu_mul",
            "--disable",
            "merge_qkv",
            "--fp-policy",
            "reassoc",
            "--chaos",
            "3",
            "--fuel",
            "70",
            "--weights",
            "embed",
        ];
        let Command::Verify(args) = Cli::try_parse_from(line).unwrap().command else { panic!() };
        let list = option_list(&args.build);
        let again = of_list(&list, &args.build).unwrap();
        assert_eq!(option_list(&again), list);
        assert_eq!(again.fuel, Some(70));
        let unknown = [("no-such-option".to_owned(), "1".to_owned())];
        assert!(of_list(&unknown, &args.build).is_err());
    }
}
