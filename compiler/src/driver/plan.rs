//! From a model's graph to a planned variant: fused for a target, every value placed.

use super::{CompileError, Progress, Timeline, Variant};
use std::collections::{BTreeMap, BTreeSet};
use weldment_ir::Graph;
use weldment_passes::buffer::{BufferPlan, KernelNeeds, bufferise_with};
use weldment_passes::pipeline::{Options, optimise};
use weldment_passes::report::Report;
use weldment_passes::rules::Numerics;
use weldment_passes::target::TargetModel;

/// What a user may say about fusion.
#[derive(Clone, Debug, Default)]
pub struct FusionOptions {
    /// Classes that may fire; by the weights' dtype if none.
    pub fp_policy: Option<Numerics>,
    /// Rules and fusions switched off.
    pub disabled: BTreeSet<String>,
    /// `FUSION=N`, `FUSION>=N`, `FUSION=all`.
    pub require: Vec<String>,
    /// A seed that perturbs what must not matter: order of rewrites, ties, schedule, places.
    pub chaos: Option<u64>,
    /// Rewrites that may happen in a variant.
    pub fuel: Option<u64>,
    /// Choices of kernel selection that the user fixed.
    pub choices: weldment_codegen::select::Choices,
}

/// A variant ready for code generation.
#[derive(Clone, Debug)]
pub struct Planned {
    /// For file names and reports.
    pub name: &'static str,
    /// Fused graph.
    pub graph: Graph,
    /// Schedule and places.
    pub plan: BufferPlan,
    /// Narrowed symbols: (symbol, smallest, largest).
    pub guards: Vec<(String, u64, u64)>,
    /// What matched.
    pub report: Report,
}

/// Sizes at which forms of a variant are priced: one sequence in the middle of its context, all tokens of the variant.
fn typical(graph: &Graph) -> BTreeMap<String, u64> {
    let max = |name: &str| graph.symbols().get(name).map(|r| r.max);
    let mut dims = BTreeMap::new();
    dims.extend(max("T").map(|t| ("T".to_owned(), t)));
    dims.extend(max("P").map(|p| ("P".to_owned(), p.div_ceil(2))));
    dims.extend(max("N").map(|n| ("N".to_owned(), n)));
    dims.extend(["B", "R"].map(|s| (s.to_owned(), 1)));
    dims
}

/// Fuses one variant for `target` and places its values.
///
/// # Errors
/// Unknown names in the options, or limits of the passes.
pub fn plan_variant(
    variant: Variant,
    target: &dyn TargetModel,
    needs: &dyn KernelNeeds,
    options: &FusionOptions,
    timeline: &mut Timeline,
    progress: &mut dyn Progress,
) -> Result<Planned, CompileError> {
    let passes = Options {
        fp_policy: options.fp_policy,
        disabled: options.disabled.clone(),
        dims: typical(&variant.graph),
        chaos: options.chaos,
        fuel: options.fuel,
        ..Options::default()
    };
    let fused = timeline.stage(progress, "fuse", || optimise(&variant.graph, target, &passes))?;
    let plan = timeline.stage(progress, "bufferise", || bufferise_with(&fused.graph, needs, options.chaos))?;
    Ok(Planned { name: variant.name, graph: fused.graph, plan, guards: variant.guards, report: fused.report })
}
