//! From a model's graph to a planned variant: fused for a target, every value placed.

use super::{CompileError, Progress, Timeline, Variant};
use crate::models::KV_BLOCK;
use std::collections::{BTreeMap, BTreeSet};
use weldment_codegen::select::Choices;
use weldment_ir::Graph;
use weldment_passes::buffer::{BufferPlan, KernelNeeds, bufferise};
use weldment_passes::egraph::Limits;
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
    /// Choices of kernel selection that the user fixed.
    pub choices: Choices,
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

/// Sizes at which forms of a variant are priced: one sequence in the middle of its context, all tokens of the variant, or as
/// the user fixed them.
fn typical(graph: &Graph, choices: &Choices) -> BTreeMap<String, u64> {
    let max = |name: &str| graph.symbols().get(name).map(|r| r.max);
    let within = |name: &str, n: u64| graph.symbols().get(name).map_or(n, |r| n.clamp(r.min, r.max));
    let tokens = choices.priced_tokens.map(|n| within("T", n.into()));
    let blocks = choices.priced_context.map(|n| within("P", u64::from(n).div_ceil(KV_BLOCK)));
    let mut dims = BTreeMap::new();
    dims.extend(max("T").map(|t| ("T".to_owned(), tokens.unwrap_or(t))));
    dims.extend(max("P").map(|p| ("P".to_owned(), blocks.unwrap_or(p.div_ceil(2)))));
    dims.extend(max("N").map(|n| ("N".to_owned(), n)));
    dims.extend(["B", "R"].map(|s| (s.to_owned(), 1)));
    dims
}

/// Where saturation gives up.
fn limits(choices: &Choices) -> Limits {
    let defaults = Limits::default();
    let fixed = |choice: Option<u32>, default| choice.map_or(default, |n| n as usize);
    Limits {
        nodes_per_node: fixed(choices.saturation_nodes, defaults.nodes_per_node),
        iterations: fixed(choices.saturation_rounds, defaults.iterations),
        ..defaults
    }
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
        dims: typical(&variant.graph, &options.choices),
        unit_stamping: options.choices.unit_stamping != Some(0),
        limits: limits(&options.choices),
    };
    let fused = timeline.stage(progress, "fuse", || optimise(&variant.graph, target, &passes))?;
    let plan = timeline.stage(progress, "bufferise", || bufferise(&fused.graph, needs))?;
    Ok(Planned { name: variant.name, graph: fused.graph, plan, guards: variant.guards, report: fused.report })
}
