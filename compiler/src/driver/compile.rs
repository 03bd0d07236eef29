//! From a graph and its checkpoint to an artifact.

use super::statics::Collector;
use super::{
    CompileError, FusionOptions, Planned, Progress, Signature, Timeline, bisect_entry, model_facts, plan_entry,
};
use crate::checkpoint::Checkpoint;
use indexmap::IndexMap;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weldment_artifact::InputRole;
use weldment_codegen::llvm::Emit;
use weldment_codegen::setup::{Setup, Symbols};
use weldment_codegen::target::Target as MachineTarget;
use weldment_codegen::{Kernels, Prepared, VariantPlan};
use weldment_ir::{Graph, Op};
use weldment_passes::regions::Culprit;
use weldment_passes::report::Report;
use weldment_runtime::artifact::{
    Binding, CONSTANTS_SECTION, Entry, Indices, Manifest, Pack, Program, REPORT_SECTION, TOKENIZER_SECTION, Target,
    WEIGHTS_SECTION, write_artifact,
};

/// How an artifact is made.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// Target names, the preferred first: hosts and GPUs may be mixed.
    pub targets: Vec<String>,
    /// Fusion.
    pub fusion: FusionOptions,
    /// Packs the weights into the artifact.
    pub embed: bool,
    /// Positions a sequence may have.
    pub max_seq: u64,
    /// Texts to keep.
    pub emit: Emit,
    /// Recorded in the manifest, for people.
    pub recorded: Vec<(String, String)>,
    /// Threads that pack embedded weights.
    pub threads: usize,
}

/// A target with its variants planned.
#[derive(Debug)]
pub struct PlannedTarget {
    /// The machine.
    pub target: MachineTarget,
    /// One plan a variant, entry by entry.
    pub variants: Vec<Planned>,
}

/// What a compile left behind.
#[derive(Debug)]
pub struct Compilation {
    /// Bytes of the artifact.
    pub bytes: u64,
    /// The checkpoint's files.
    pub sources: Vec<PathBuf>,
    /// Emitted texts by target name.
    pub emitted: IndexMap<String, Kernels>,
    /// Kernels of the first target.
    pub kernels: usize,
    /// Launches by variant of the first target.
    pub launches: Vec<usize>,
}

/// Fuses and places every variant for every target, and checks the requirements.
///
/// # Errors
/// Unknown targets, rules or fusions; limits of the passes; a requirement that does not hold.
pub fn plan_targets(
    graphs: &[Graph],
    targets: &[String],
    fusion: &FusionOptions,
    timeline: &mut Timeline,
    progress: &mut dyn Progress,
) -> Result<Vec<PlannedTarget>, CompileError> {
    let signature = Signature::of(graphs)?;
    let mut out: Vec<PlannedTarget> = Vec::new();
    for name in targets {
        let target = MachineTarget::named(name).map_err(|e| CompileError::option("--target", e))?;
        if out.iter().any(|t| t.target.name() == target.name()) {
            return Err(CompileError::option("--target", format!("{name} is given twice")));
        }
        let mut variants = Vec::new();
        for (entry, (graph, externals)) in graphs.iter().zip(&signature.externals).enumerate() {
            let setup = setup(&target, graphs, graph, fusion);
            for planned in plan_entry(graph, &setup, fusion, timeline, progress)? {
                let name = if graphs.len() > 1 { format!("{}.{}", graph.name, planned.name) } else { planned.name };
                variants.push(Planned { name, entry, externals: externals.clone(), ..planned });
            }
        }
        for variant in &variants {
            for requirement in &fusion.require {
                variant.report.require(requirement).map_err(|e| e.in_variant(&variant.name))?;
            }
        }
        out.push(PlannedTarget { target, variants });
    }
    share_layouts(&mut out);
    Ok(out)
}

/// An input lies in one way for all variants of all targets: densely only if none of them minds.
fn share_layouts(planned: &mut [PlannedTarget]) {
    let variants = planned.iter().flat_map(|t| &t.variants);
    let inputs = variants.flat_map(|v| v.plan.inputs.iter().map(move |input| (v.entry, input)));
    let minds = inputs.filter(|(_, input)| !input.dense).map(|(entry, input)| (entry, input.name.clone()));
    let minds: BTreeSet<(usize, Arc<str>)> = minds.collect();
    // Block tables are one to a session, and lie alike for all entries.
    let minded = |entry: usize, name: &Arc<str>| minds.contains(&(entry, name.clone()));
    let tables = |variant: &Planned, name: &Arc<str>| {
        let graph = &variant.before;
        graph.ids().any(|id| match &graph.node(id).op {
            Op::Input { name: own, role, .. } => *role == InputRole::Blocks && own == name,
            _ => false,
        })
    };
    let variants = planned.iter().flat_map(|t| &t.variants);
    let mut inputs = variants.flat_map(|v| v.plan.inputs.iter().map(move |input| (v, &input.name)));
    let spread = inputs.any(|(v, name)| tables(v, name) && minded(v.entry, name));
    for variant in planned.iter_mut().flat_map(|t| &mut t.variants) {
        let dense: Vec<bool> = variant
            .plan
            .inputs
            .iter()
            .map(|input| !(minded(variant.entry, &input.name) || (spread && tables(variant, &input.name))))
            .collect();
        for (input, dense) in variant.plan.inputs.iter_mut().zip(dense) {
            input.dense = dense;
        }
    }
}

/// Entries share states, so the memory of each has one order.
fn states_lie_alike(target: &PlannedTarget) -> Result<(), CompileError> {
    let mut orders: BTreeMap<&str, &[u64]> = BTreeMap::new();
    for variant in &target.variants {
        for state in &variant.plan.states {
            if *orders.entry(&state.name).or_insert(&state.strides) != state.strides {
                let message = format!(
                    "its memory has another order in {} than in an entry before; ops that address blocks in both are accepted",
                    variant.name
                );
                return Err(CompileError::option(state.name.to_string(), message));
            }
        }
    }
    Ok(())
}

/// What an entry's kernels are built for: a machine, the choices that were fixed or perturbed, the dims block of all entries.
fn setup(target: &MachineTarget, graphs: &[Graph], entry: &Graph, fusion: &FusionOptions) -> Setup {
    let mut choices = fusion.choices;
    if let Some(seed) = fusion.chaos {
        choices.perturb(seed);
    }
    Setup { target: target.clone(), choices, places: fusion.places.clone(), symbols: Symbols::of(entry).among(graphs) }
}

/// For every target and variant: the rewrite that breaks it, if one does.
///
/// # Errors
/// Unknown targets or rules; limits of the passes; a region that cannot be interpreted.
pub fn bisect_targets(
    graphs: &[Graph],
    targets: &[String],
    fusion: &FusionOptions,
) -> Result<Vec<(String, Option<Culprit>)>, CompileError> {
    let mut out = Vec::new();
    for name in targets {
        let target = MachineTarget::named(name).map_err(|e| CompileError::option("--target", e))?;
        for graph in graphs {
            let found = bisect_entry(graph, &setup(&target, graphs, graph, fusion), fusion)?;
            let of = if graphs.len() > 1 { format!("{name} {}.", graph.name) } else { format!("{name} ") };
            out.extend(found.into_iter().map(|(variant, culprit)| (format!("{of}{variant}"), culprit)));
        }
    }
    Ok(out)
}

/// Reports by variant, of the first target.
pub fn reports(planned: &[PlannedTarget]) -> IndexMap<String, Report> {
    let first = planned.first().map_or(&[][..], |t| &t.variants);
    first.iter().map(|v| (v.name.clone(), v.report.clone())).collect()
}

/// Generates code for the planned targets and writes the artifact to `output`.
///
/// # Errors
/// An op without a kernel, a missing linker, an output that cannot be written.
pub fn build_artifact(
    graphs: &[Graph],
    checkpoint: &Checkpoint,
    planned: &[PlannedTarget],
    options: &CompileOptions,
    output: &Path,
    timeline: &mut Timeline,
    progress: &mut dyn Progress,
) -> Result<Compilation, CompileError> {
    if options.embed && planned.len() > 1 {
        return Err(CompileError::option("--weights", "embed packs for one target; give one with --target"));
    }
    planned.iter().try_for_each(states_lie_alike)?;
    let mut signature = Signature::of(graphs)?;
    for variant in planned.iter().flat_map(|t| &t.variants) {
        let whole = Signature::of(std::slice::from_ref(&graphs[variant.entry]))?;
        let mine = Signature::of(std::slice::from_ref(&variant.graph))?;
        // What indices may be is said of the graph as it was written; fused ops ask for the same, or for less.
        let types = |signature: &Signature| {
            let free = |input: &Binding| Binding { indices: Indices::Free, ..input.clone() };
            signature.inputs.iter().map(free).collect::<Vec<_>>()
        };
        if types(&mine) != types(&whole) || mine.outputs != whole.outputs || mine.states != whole.states {
            let message = format!("internal: variant {} changed the entry's signature", variant.name);
            return Err(CompileError::option("fuse", message));
        }
        for (at, external) in variant.externals.inputs.iter().zip(&variant.plan.inputs) {
            signature.inputs[*at as usize].dense = external.dense;
        }
    }
    let mut statics = Collector::new(checkpoint);
    let mut prepared: Vec<Prepared> = Vec::new();
    for target in planned {
        let plans: Vec<VariantPlan<'_>> = target.variants.iter().map(Planned::variant).collect();
        let work = || weldment_codegen::prepare(&plans, &mut statics);
        prepared.push(timeline.stage(progress, "build kernels", work)?);
    }
    let work = || weldment_codegen::generate(prepared, options.emit);
    let compiled = timeline.stage(progress, "generate code", work)?;
    let statics = timeline.stage(progress, "hash weights", || statics.finish(options.embed))?;

    // Launches name sources by index into one list; each target's own list is appended.
    let mut sources = Vec::new();
    let mut programs = Vec::new();
    let mut codes = Vec::new();
    let mut emitted = IndexMap::new();
    for (i, (target, mut compiled)) in planned.iter().zip(compiled).enumerate() {
        let base = sources.len() as u32;
        sources.append(&mut compiled.sources);
        let launches = compiled.variants.iter_mut().flat_map(|v| &mut v.launches);
        launches.for_each(|launch| launch.source += base);
        let mut entries: Vec<Entry> = graphs.iter().map(|_| Entry { variants: Vec::new() }).collect();
        for (planned, variant) in target.variants.iter().zip(compiled.variants) {
            entries[planned.entry].variants.push(variant);
        }
        let machine = &target.target;
        let name = machine.stored_name().to_owned();
        let mut features = machine.feature_list();
        features.sort();
        let mut pack = Pack { bytes: compiled.pack_bytes, key: String::new(), items: compiled.pack };
        pack.key = pack.compute_key(&statics.model.weights, &name);
        let code = format!("code.{i}");
        programs.push(Program {
            target: Target { name, arch: machine.arch_name().to_owned(), features },
            code: code.clone(),
            kernels: compiled.kernels,
            arena_bytes: compiled.arena_bytes,
            slab: compiled.slab,
            pack,
            entries,
        });
        codes.push((code, compiled.code));
        emitted.insert(machine.name().to_owned(), compiled.emitted);
    }
    let (kernels, launches) = programs.first().map_or((0, Vec::new()), |p| {
        let variants = p.entries.iter().flat_map(|e| &e.variants);
        (p.kernels.len(), variants.map(|v| v.launches.len()).collect())
    });
    let tokenizer = checkpoint.tokenizer.as_ref();
    let manifest = Manifest {
        world: graphs.iter().map(Graph::world).max().unwrap_or(1),
        weldment_version: env!("CARGO_PKG_VERSION").to_owned(),
        model: model_facts(checkpoint, options.max_seq)?,
        symbols: signature.symbols,
        entries: signature.entries,
        inputs: signature.inputs,
        outputs: signature.outputs,
        states: signature.states,
        weights: statics.model.weights.clone(),
        sources,
        programs,
        options: options.recorded.clone(),
        chat_template: tokenizer.and_then(|t| t.chat_template.clone()),
        special_tokens: tokenizer.map(|t| t.special_tokens.clone()).unwrap_or_default(),
        sections: Vec::new(),
    };
    let mut packed = Vec::new();
    if options.embed
        && let Some(program) = manifest.programs.first()
    {
        // The packs of all ranks, one after the other.
        let size = |bytes: Option<u64>| {
            let bytes = bytes.and_then(|n| usize::try_from(n).ok());
            bytes.ok_or_else(|| CompileError::option("--weights", "the packs' size overflows".to_owned()))
        };
        let (own, stride) = (size(Some(program.pack.bytes))?, size(manifest.embedded_stride(program))?);
        let last = stride.checked_mul(manifest.world as usize - 1).and_then(|at| at.checked_add(own));
        packed.resize(size(last.map(|n| n as u64))?, 0);
        let threads = options.threads.max(1);
        let work = || {
            (0..).zip(packed.chunks_mut(stride.max(1))).try_for_each(|(rank, part)| {
                let part = part.get_mut(..own).unwrap_or_default();
                weldment_runtime::pack::pack_all(&manifest, program, rank, &statics, part, threads)
            })
        };
        timeline.stage(progress, "pack weights", work)?;
    }
    let report = serde_json::to_vec(&reports(planned)).map_err(|e| CompileError::option("report", e.to_string()))?;
    let mut sections: Vec<(&str, &[u8])> = codes.iter().map(|(name, code)| (name.as_str(), code.as_slice())).collect();
    sections.push((REPORT_SECTION, &report));
    sections.extend(tokenizer.map(|t| (TOKENIZER_SECTION, t.json.as_slice())));
    sections.push((CONSTANTS_SECTION, &statics.constants));
    if options.embed {
        sections.push((WEIGHTS_SECTION, &packed));
    }
    let bytes = timeline.stage(progress, "write", || write_artifact(output, manifest, &sections))?;
    for (path, file) in statics.model.paths.iter().zip(&statics.model.weights.files) {
        // A cache that cannot be written costs a search at load, nothing else.
        if let Some(cache) = weldment_runtime::weights::cache_dir()
            && let Err(e) = weldment_runtime::weights::register_source(&cache, path, &file.id)
        {
            tracing::warn!("the checkpoint's place is not noted: {e}");
        }
    }
    Ok(Compilation { bytes, sources: statics.model.paths, emitted, kernels, launches })
}
