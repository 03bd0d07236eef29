//! `weldment verify`: is what was rewritten still the same function, and does an artifact compute it?

mod artifact;
mod fuel;
mod regions;

use super::args::{BuildArgs, VerifyArgs};
use super::graphs;
use super::progress::Bars;
use crate::driver::CompileError;
use weldment_ir::Graph;
use weldment_runtime::Artifact;
use weldment_runtime::cli::verify as hashes;

/// `weldment verify`.
pub fn verify(args: &VerifyArgs) -> Result<(), CompileError> {
    if args.hashes {
        let options = hashes::VerifyOptions { artifact: args.model.clone(), weights_file: None };
        return Ok(hashes::verify(&options, &mut std::io::stdout())?);
    }
    let mut bars = Bars::new();
    let opened = graphs::has_extension(&args.model, "weld").then(|| Artifact::open(&args.model)).transpose()?;
    if let Some(tokens) = &args.tokens {
        let missing =
            || CompileError::option("--tokens", "it is for an artifact; compile the model to a .weld file first");
        return artifact::verify(opened.as_ref().ok_or_else(missing)?, tokens, args, &mut bars);
    }
    let (graphs, build) = match &opened {
        Some(opened) => artifact::entry(opened, args).map(|(graphs, build, _)| (graphs, build))?,
        // --chaos gives seeds to try beside the plain form.
        None => (model(args)?, BuildArgs { chaos: None, ..args.build.clone() }),
    };
    let build = BuildArgs { fuel: args.build.fuel.or(build.fuel), ..build };
    match args.bisect_fuel {
        true => fuel::bisect(&graphs, &build, args, &mut bars),
        false => regions::verify(&graphs, &build, args, &mut bars),
    }
}

/// The graphs of a model. A text graph says all that regions need, with or without weights.
fn model(args: &VerifyArgs) -> Result<Vec<Graph>, CompileError> {
    match graphs::has_extension(&args.model, "wir") {
        true => graphs::ranged_wir(&args.model, &args.build),
        false => graphs::entries(&args.model, &graphs::checkpoint(&args.model, &args.build)?, &args.build),
    }
}
