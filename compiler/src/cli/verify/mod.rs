//! `weldment verify`: is what was rewritten still the same function, and does an artifact compute it?

mod regions;

use super::args::{BuildArgs, VerifyArgs};
use super::graphs;
use super::progress::Bars;
use crate::driver::CompileError;
use weldment_ir::Graph;
use weldment_runtime::cli::verify as hashes;

/// `weldment verify`.
pub fn verify(args: &VerifyArgs) -> Result<(), CompileError> {
    if args.hashes {
        let options = hashes::VerifyOptions { artifact: args.model.clone(), weights_file: None };
        return Ok(hashes::verify(&options, &mut std::io::stdout())?);
    }
    let mut bars = Bars::new();
    let (graph, build) = model(args)?;
    regions::verify(&graph, &build, args, &mut bars)
}

/// The graph to check and how it is compiled.
fn model(args: &VerifyArgs) -> Result<(Graph, BuildArgs), CompileError> {
    // A text graph says all that regions need, with or without weights.
    let graph = match graphs::has_extension(&args.model, "wir") {
        true => graphs::ranged_wir(&args.model, &args.build)?,
        false => graphs::graph(&args.model, &graphs::checkpoint(&args.model, &args.build)?, &args.build)?,
    };
    Ok((graph, args.build.clone()))
}
