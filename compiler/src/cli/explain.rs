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
        false => compile::reports(&args.model, &args.build)?,
    };
    let text = match args.format {
        ReportFormat::Json => {
            let text = serde_json::to_string_pretty(&reports);
            text.map_err(|e| CompileError::option("--format", e.to_string()))? + "\n"
        }
        ReportFormat::Text => text(&reports, args.path.as_deref()),
        ReportFormat::Html => {
            let ladder = args.ladder.as_deref().map(ladder::read).transpose()?;
            let before = ladder.as_ref().map(ladder::section).unwrap_or_default();
            page::page(&title(&args.model), &reports, &text(&reports, None), &before)?
        }
    };
    put_or_write(args.output.as_deref(), &text)
}

/// What a page about `model` is called: its name, without folders.
pub fn title(model: &std::path::Path) -> String {
    let name = std::path::absolute(model).ok().and_then(|p| p.file_stem().map(|s| s.to_string_lossy().into_owned()));
    format!("Fusion report: {}", name.unwrap_or_default())
}

pub fn text(reports: &Reports, path: Option<&str>) -> String {
    let mut out = String::new();
    for (variant, report) in reports {
        out += &format!("{variant}: ");
        match path {
            Some(path) => {
                let found = report.explain(path);
                out += "\n";
                out += if found.is_empty() { "no node has this source path\n" } else { &found };
            }
            None => out += &report.to_string(),
        }
        out += "\n";
    }
    out
}
