//! `weldment verify --bisect-fuel`: which rewrite breaks a region.

use super::super::args::{BuildArgs, VerifyArgs};
use super::super::progress::Bars;
use super::super::{graphs, put};
use crate::driver::{self, CompileError, Progress};
use serde_json::json;
use weldment_ir::Graph;

/// Searches every variant of every target.
///
/// # Errors
/// [`CompileError::Check`] naming the rewrite, if one breaks a region.
pub fn bisect(graphs: &[Graph], build: &BuildArgs, args: &VerifyArgs, bars: &mut Bars) -> Result<(), CompileError> {
    let fusion = graphs::fusion_options(build)?;
    bars.begin("bisect");
    let found = driver::bisect_targets(graphs, &build.target, &fusion)?;
    bars.finish();
    let (mut text, mut rows, mut failed) = (String::new(), Vec::new(), Vec::new());
    for (variant, culprit) in &found {
        let Some(c) = culprit else {
            text += &format!("{variant}: no rewrite breaks a region\n");
            rows.push(json!({ "variant": variant, "fuel": null }));
            continue;
        };
        let join = |paths: &std::collections::BTreeSet<String>| paths.iter().cloned().collect::<Vec<_>>().join(", ");
        let (place, region) = (join(&c.rewrite.paths), join(&c.region));
        let line = format!(
            "{variant}: rewrite {}, {} at {place}, breaks the region at {region}: {}",
            c.fuel, c.rewrite.rule, c.failure
        );
        text += &format!("{line}\n");
        failed.push(line);
        rows.push(json!({
            "variant": variant, "fuel": c.fuel, "rule": c.rewrite.rule, "paths": c.rewrite.paths,
            "region": c.region, "failure": c.failure,
        }));
    }
    match args.json {
        true => put(&format!("{:#}\n", json!({ "variants": rows })))?,
        false => put(&text)?,
    }
    if failed.is_empty() { Ok(()) } else { Err(CompileError::Check(failed.join("; "))) }
}
