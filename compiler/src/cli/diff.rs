//! `weldment diff`: what changed between two builds.

mod compare;
mod show;

use super::args::DiffArgs;
use super::{explain, put};
use crate::driver::CompileError;
use compare::{Build, Difference};

/// `weldment diff`: exit code 1 if the artifacts differ.
pub fn diff(args: &DiffArgs) -> Result<(), CompileError> {
    let build = |path: &std::path::Path| -> Result<Build, CompileError> {
        let artifact = weldment_runtime::Artifact::open(path)?;
        Ok(Build { manifest: artifact.manifest().clone(), reports: explain::stored(path)? })
    };
    let found = Difference::between(&build(&args.a)?, &build(&args.b)?)?;
    if args.json {
        let text = serde_json::to_string_pretty(&found).map_err(|e| CompileError::option("--json", e.to_string()))?;
        put(&(text + "\n"))?;
    } else {
        put(&show::text(&found))?;
    }
    match found.same {
        true => Ok(()),
        false => Err(CompileError::Check(format!("{} and {} differ", args.a.display(), args.b.display()))),
    }
}
