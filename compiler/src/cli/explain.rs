//! `weldment explain`: the match report of a model or an artifact.

use super::args::{ExplainArgs, ReportFormat};
use super::{compile, graphs, ladder, page, put_or_write};
use crate::driver::CompileError;
use indexmap::IndexMap;
use weldment_passes::report::Report;

/// Reports by variant.
pub type Reports = IndexMap<String, Report>;

/// The report that a compile stored.
pub fn stored(artifact: &std::path::Path) -> Result<Reports, CompileError> {
    let opened = weldment_runtime::Artifact::open(artifact)?;
    let section = opened.section(weldment_runtime::artifact::REPORT_SECTION);
    let bytes = section.ok_or_else(|| CompileError::option(artifact.display().to_string(), "it holds no report"))?;
    serde_json::from_slice(bytes)
        .map_err(|e| CompileError::option(artifact.display().to_string(), format!("its report does not parse: {e}")))
}

/// `weldment explain`.
pub fn explain(args: &ExplainArgs) -> Result<(), CompileError> {
    let reports = match graphs::has_extension(&args.model, "weld") {
        true => stored(&args.model)?,
        false => {
            // What is fused does not depend on what weights hold.
            compile::reports(&args.model, &graphs::with_weights(&args.model, &args.build).0)?
        }
    };
    if let Some(path) = args.path.as_deref() {
        known(&reports, path)?;
    }
    let text = match args.format {
        ReportFormat::Json => json(&reports, args.path.as_deref())?,
        ReportFormat::Text => text(&reports, args.path.as_deref()),
        ReportFormat::Html => {
            let ladder = args.ladder.as_deref().map(ladder::read).transpose()?;
            let before = ladder.as_ref().map(ladder::section).unwrap_or_default();
            let start = args.path.as_deref();
            page::page(&title(&args.model), &reports, start, &text(&reports, start), &before)?
        }
    };
    put_or_write(args.output.as_deref(), &text)
}

/// What a page about `model` is called: its name, without folders.
pub fn title(model: &std::path::Path) -> String {
    let name = std::path::absolute(model).ok().and_then(|p| p.file_stem().map(|s| s.to_string_lossy().into_owned()));
    format!("Fusion report: {}", name.unwrap_or_default())
}

/// Refuses a source path that no variant has.
fn known(reports: &Reports, path: &str) -> Result<(), CompileError> {
    if reports.values().any(|r| r.place(path).is_some()) {
        return Ok(());
    }
    const SHOWN: usize = 12;
    let like: std::collections::BTreeSet<String> = reports.values().flat_map(|r| r.paths_like(path)).collect();
    let more = if like.len() > SHOWN { ", ..." } else { "" };
    let like = like.into_iter().take(SHOWN).collect::<Vec<_>>().join(", ");
    Err(CompileError::option(path, format!("no node has this source path; there are {like}{more}")))
}

/// Reports by variant, or those of one place.
fn json(reports: &Reports, path: Option<&str>) -> Result<String, CompileError> {
    let text = match path {
        None => serde_json::to_string_pretty(reports),
        Some(path) => {
            let places: IndexMap<&String, _> = reports.iter().filter_map(|(v, r)| Some((v, r.place(path)?))).collect();
            serde_json::to_string_pretty(&places)
        }
    };
    Ok(text.map_err(|e| CompileError::option("--format", e.to_string()))? + "\n")
}

/// The reports as text, or what they say of one place.
pub fn text(reports: &Reports, path: Option<&str>) -> String {
    let Some(path) = path else {
        let columns: Vec<(&str, &Report)> = reports.iter().map(|(name, r)| (name.as_str(), r)).collect();
        return weldment_passes::report::coverage(&columns);
    };
    let places = reports.iter().map(|(variant, report)| format!("{variant}:\n{}\n", report.explain(path)));
    places.collect()
}
