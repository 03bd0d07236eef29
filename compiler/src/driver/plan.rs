//! From a model's graph to a planned variant: fused for a target, every value placed.

use super::one_sequence::block_positions;
use super::{CompileError, Progress, Timeline};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weldment_artifact::SymbolRole;
use weldment_codegen::choices::{Choices, Places};
use weldment_codegen::select::KernelLibrary;
use weldment_codegen::setup::Setup;
use weldment_codegen::{Externals, VariantPlan};
use weldment_ir::{Graph, Range};
use weldment_passes::Correspondence;
use weldment_passes::buffer::{BufferPlan, bufferise_with};
use weldment_passes::egraph::Limits;
use weldment_passes::pipeline::{Optimised, Options, optimise};
use weldment_passes::regions::{Culprit, Effort, bisect_fuel};
use weldment_passes::report::Report;
use weldment_passes::rules::{self, Numerics};
use weldment_passes::specialise::{self, Specialised, Variant};
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
    pub choices: Choices,
    /// Those that were fixed for some ops alone.
    pub places: Places,
}

/// A variant ready for code generation.
#[derive(Clone, Debug)]
pub struct Planned {
    /// For file names and reports: with the entry's name in front, where there are several.
    pub name: String,
    /// The entry, by its place.
    pub entry: usize,
    /// Machine, choices and symbols.
    pub setup: Setup,
    /// Where the artifact lists what the entry takes, gives and keeps.
    pub externals: Externals,
    /// The entry with this variant's ranges, before any rule.
    pub before: Graph,
    /// Fused graph.
    pub graph: Graph,
    /// Schedule and places.
    pub plan: BufferPlan,
    /// Narrowed symbols: (symbol, smallest, largest).
    pub guards: Vec<(String, u64, u64)>,
    /// What matched.
    pub report: Report,
    /// Which values of `before` those of `graph` equal.
    pub correspondence: Correspondence,
}

/// Tokens of a step at most, or whatever decides which kernels run.
fn most_tokens(graph: &Graph) -> u64 {
    graph.row_symbol().map_or(1, |(_, range)| range.max)
}

impl Planned {
    /// What code generation takes.
    pub fn variant(&self) -> VariantPlan<'_> {
        VariantPlan {
            name: &self.name,
            graph: &self.graph,
            plan: &self.plan,
            setup: &self.setup,
            max_tokens: most_tokens(&self.graph),
            guards: self.guards.clone(),
            externals: &self.externals,
        }
    }
}

/// Sizes at which forms of a variant are priced: one sequence in the middle of its context, all tokens of the variant, or as
/// the user fixed them.
fn typical(graph: &Graph, choices: &Choices) -> BTreeMap<String, u64> {
    let size = |(name, range): (&Arc<str>, &Range)| {
        let fixed = |choice: Option<u32>, default: u64| choice.map_or(default, |n| range_of(range, n.into()));
        let half = range.max.div_ceil(2);
        let size = match graph.role(name) {
            SymbolRole::Tokens => fixed(choices.priced_tokens, range.max),
            SymbolRole::Sequences | SymbolRole::LogitRows => 1,
            SymbolRole::Context => fixed(choices.priced_context, half),
            SymbolRole::Blocks(_) => {
                let blocks = |n: u32| u64::from(n).div_ceil(block_positions(graph).max(1) as u64);
                choices.priced_context.map_or(half, |n| range_of(range, blocks(n)))
            }
            SymbolRole::Pool(_) | SymbolRole::Plain => range.max,
        };
        (name.to_string(), size)
    };
    graph.symbols().iter().map(size).collect()
}

/// `n`, or what of the range is nearest.
fn range_of(range: &Range, n: u64) -> u64 {
    n.clamp(range.min, range.max)
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

/// The entry's variants for a target: split wherever a rule or a kernel depends on a symbol, fused, joined where neighbours
/// came out equal, and placed.
///
/// # Errors
/// Unknown names in the options, or limits of the passes.
pub fn plan_entry(
    entry: &Graph,
    setup: &Setup,
    options: &FusionOptions,
    timeline: &mut Timeline,
    progress: &mut dyn Progress,
) -> Result<Vec<Planned>, CompileError> {
    let library = |max_tokens| KernelLibrary { setup: setup.clone(), max_tokens };
    let whole = library(most_tokens(entry));
    let mut fused: Vec<Specialised<(Report, Correspondence)>> = Vec::new();
    for variant in specialise::split(entry, &specialise::thresholds(entry, &whole)) {
        let target = library(most_tokens(&variant.graph));
        let out = timeline.stage(progress, "fuse", || fuse(&variant, &target, options))?;
        fused.push(Specialised { variant, fused: out.graph, rest: (out.report, out.correspondence) });
    }
    let mut planned = Vec::new();
    for Specialised { variant, fused, rest: (report, correspondence) } in specialise::merge(entry, fused, &whole) {
        let needs = library(most_tokens(&fused));
        let plan = timeline.stage(progress, "bufferise", || bufferise_with(&fused, &needs, options.chaos))?;
        let Variant { name, graph: before, guards, .. } = variant;
        let (setup, externals) = (setup.clone(), Externals::alone(&plan));
        let entry = 0;
        planned.push(Planned {
            name,
            entry,
            setup,
            externals,
            before,
            graph: fused,
            plan,
            guards,
            report,
            correspondence,
        });
    }
    Ok(planned)
}

/// The rewrite of each of an entry's variants that breaks it, by the variant's name: none where no region differs.
///
/// # Errors
/// As [`plan_entry`]; a region that cannot be interpreted.
pub fn bisect_entry(
    entry: &Graph,
    setup: &Setup,
    options: &FusionOptions,
) -> Result<Vec<(String, Option<Culprit>)>, CompileError> {
    let library = |max_tokens| KernelLibrary { setup: setup.clone(), max_tokens };
    let whole = library(most_tokens(entry));
    let variants = specialise::split(entry, &specialise::thresholds(entry, &whole));
    let rules = rules::all();
    let culprit = |variant: Variant| {
        let target = library(most_tokens(&variant.graph));
        let found = bisect_fuel(&variant.graph, &target, &passes(&variant, options), &rules, &Effort::default())?;
        Ok((variant.name, found))
    };
    variants.into_iter().map(culprit).collect()
}

/// The passes' options for a variant.
fn passes(variant: &Variant, options: &FusionOptions) -> Options {
    let mut enabled = BTreeSet::new();
    if options.choices.dense_window == Some(1) {
        enabled.insert("dense_window".to_owned());
    }
    Options {
        fp_policy: options.fp_policy,
        disabled: options.disabled.clone(),
        enabled,
        dims: typical(&variant.graph, &options.choices),
        chaos: options.chaos,
        fuel: options.fuel,
        unit_stamping: options.choices.unit_stamping != Some(0),
        limits: limits(&options.choices),
    }
}

fn fuse(variant: &Variant, target: &dyn TargetModel, options: &FusionOptions) -> Result<Optimised, CompileError> {
    Ok(optimise(&variant.graph, target, &passes(variant, options))?)
}
