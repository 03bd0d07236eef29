//! `weldment compile`.

use super::args::{BuildArgs, CompileArgs, Emit as Form, Stage, WeightsArg};
use super::explain::Reports;
use super::progress::Bars;
use super::{graphs, put, write_file};
use crate::checkpoint::Checkpoint;
use crate::driver::{
    self, Compilation, CompileError, CompileOptions, PlannedTarget, Progress, Timeline, build_artifact, plan_targets,
};
use crate::models::KV_BLOCK;
use serde_json::json;
use std::path::{Path, PathBuf};
use weldment_artifact::SymbolRole;
use weldment_codegen::llvm::Emit;
use weldment_ir::{Graph, text};

/// What a compile was asked for that its result depends on: recorded in the manifest, part of the cache key. No paths, no threads.
pub fn option_list(build: &BuildArgs) -> Vec<(String, String)> {
    let mut list = vec![("target".to_owned(), build.target.join(","))];
    let mut add = |name: &str, value: Option<String>| list.extend(value.map(|v| (name.to_owned(), v)));
    add("tp", (build.tp != 1).then(|| build.tp.to_string()));
    add("dtype", build.dtype.map(|d| d.to_string()));
    for dim in &build.dims {
        add(&format!("dim.{}", dim.name), Some(format!("{}..{}", dim.min, dim.max)));
    }
    add("max-seq", build.max_seq.map(|n| n.to_string()));
    add("kv-block", (build.kv_block != KV_BLOCK).then(|| build.kv_block.to_string()));
    add(
        "weights",
        Some(match build.weights {
            WeightsArg::External => "external".to_owned(),
            WeightsArg::Embed => "embed".to_owned(),
            WeightsArg::Random(seed) => format!("random:{seed}"),
        }),
    );
    add("fp-policy", build.fp_policy.map(|p| p.numerics().name().to_owned()));
    // In their order: of two that fit an op the last counts.
    let set: Vec<String> = build.set.iter().map(|s| format!("{}={}", s.key, s.value)).collect();
    add("set", (!set.is_empty()).then(|| set.join(",")));
    add("chaos", build.chaos.map(|n| n.to_string()));
    add("fuel", build.fuel.map(|n| n.to_string()));
    let mut disabled = build.disable.clone();
    disabled.sort();
    add("disable", (!disabled.is_empty()).then(|| disabled.join(",")));
    list
}

/// A model up to its plans.
struct Front {
    checkpoint: Checkpoint,
    graphs: Vec<Graph>,
    max_seq: u64,
    timeline: Timeline,
}

fn front(model: &Path, build: &BuildArgs, progress: &mut dyn Progress) -> Result<Front, CompileError> {
    let mut timeline = Timeline::default();
    let checkpoint = timeline.stage(progress, "read model", || graphs::checkpoint(model, build))?;
    let graphs = timeline.stage(progress, "build graph", || graphs::entries(model, &checkpoint, build))?;
    let max_seq = match graphs::has_extension(model, "wir") {
        // The graph says itself how many positions its block tables hold, if it has some.
        true => {
            let most = |role: &SymbolRole| graphs.iter().filter_map(|g| g.symbol_of(role)).map(|(_, r)| r.max).max();
            let block = graphs.iter().map(driver::block_positions).max().unwrap_or(1) as u64;
            let paged = most(&SymbolRole::BLOCKS).map(|blocks| blocks.saturating_mul(block));
            let limit = u64::from(u32::MAX);
            most(&SymbolRole::Context).into_iter().chain(paged).fold(limit, u64::min)
        }
        false => driver::max_seq(&checkpoint, &graphs::entry_options(build)?)?,
    };
    checkpoint.config.notes(max_seq).iter().for_each(|note| tracing::warn!("{note}"));
    Ok(Front { checkpoint, graphs, max_seq, timeline })
}

/// Match reports without code generation.
pub fn reports(model: &Path, build: &BuildArgs) -> Result<Reports, CompileError> {
    let mut bars = Bars::new();
    let mut front = front(model, build, &mut bars)?;
    let fusion = graphs::fusion_options(build)?;
    let planned = plan_targets(&front.graphs, &build.target, &fusion, &mut front.timeline, &mut bars)?;
    Ok(driver::reports(&planned))
}

fn compile_options(build: &BuildArgs, max_seq: u64, emit: Emit) -> Result<CompileOptions, CompileError> {
    Ok(CompileOptions {
        targets: build.target.clone(),
        fusion: graphs::fusion_options(build)?,
        embed: build.weights == WeightsArg::Embed,
        max_seq,
        emit,
        recorded: option_list(build),
        threads: build.threads.unwrap_or_else(weldment_runtime::cpu::default_threads),
    })
}

/// Compiles `model` to `output` with nothing printed but progress.
///
/// # Errors
/// Any bad input; see [`CompileError`].
pub fn compile_to(
    model: &Path,
    build: &BuildArgs,
    output: &Path,
    progress: &mut dyn Progress,
) -> Result<(), CompileError> {
    let mut front = front(model, build, progress)?;
    let options = compile_options(build, front.max_seq, Emit::default())?;
    let planned = plan_targets(&front.graphs, &options.targets, &options.fusion, &mut front.timeline, progress)?;
    let Front { graphs, checkpoint, timeline, .. } = &mut front;
    build_artifact(graphs, checkpoint, &planned, &options, output, timeline, progress)?;
    Ok(())
}

/// `weldment compile`.
pub fn compile(args: &CompileArgs) -> Result<(), CompileError> {
    let output = output_path(args)?;
    let mut bars = Bars::new();
    let mut front = front(&args.model, &args.build, &mut bars)?;
    let dumps = Dumps { args };
    for graph in &front.graphs {
        let name = if front.graphs.len() > 1 { graph.name.as_str() } else { "model" };
        dumps.graph(Form::Ir, "ir", name, graph)?;
    }
    if args.stop_after == Some(Stage::Ir) {
        return finish(args, &front.timeline, &mut bars);
    }
    let emit = Emit { llvm: args.emit.contains(&Form::Llvm), asm: args.emit.contains(&Form::Asm) };
    let options = compile_options(&args.build, front.max_seq, emit)?;
    let planned = plan_targets(&front.graphs, &options.targets, &options.fusion, &mut front.timeline, &mut bars)?;
    for target in &planned {
        for variant in &target.variants {
            dumps.graph(Form::Fused, "fuse", &format!("{}.{}", target.target.name(), variant.name), &variant.graph)?;
        }
    }
    if args.stop_after == Some(Stage::Fused) {
        return finish(args, &front.timeline, &mut bars);
    }
    let Front { graphs, checkpoint, timeline, .. } = &mut front;
    let done = build_artifact(graphs, checkpoint, &planned, &options, &output, timeline, &mut bars)?;
    dumps.code(&done)?;
    finish(args, &front.timeline, &mut bars)?;
    summary(args, &front, &planned, &done, &output)
}

/// OUTPUT, or MODEL's name in this directory.
fn output_path(args: &CompileArgs) -> Result<PathBuf, CompileError> {
    if let Some(path) = &args.output {
        return Ok(path.clone());
    }
    let absolute = std::path::absolute(&args.model);
    let name = absolute.ok().and_then(|p| p.file_stem().map(|s| s.to_owned()));
    let name = name.ok_or_else(|| CompileError::option("--output", "the model has no name to derive one from"))?;
    Ok(PathBuf::from(name).with_added_extension("weld"))
}

fn finish(args: &CompileArgs, timeline: &Timeline, bars: &mut Bars) -> Result<(), CompileError> {
    bars.finish();
    if args.time_passes {
        for (name, time) in timeline.stages() {
            eprintln!("{name:16} {:9.1} ms", time.as_secs_f64() * 1e3);
        }
        eprintln!("{:16} {:9.1} ms", "total", timeline.total().as_secs_f64() * 1e3);
    }
    Ok(())
}

/// Intermediate forms on disk.
struct Dumps<'a> {
    args: &'a CompileArgs,
}

impl Dumps<'_> {
    fn graph(&self, form: Form, pass: &str, name: &str, graph: &Graph) -> Result<(), CompileError> {
        let after = |p: &String| p == pass || p == "all";
        if self.args.emit.contains(&form) || self.args.print_after.iter().any(after) {
            self.write(&format!("{name}.wir"), text::print(graph).as_bytes())?;
        }
        Ok(())
    }

    fn code(&self, done: &Compilation) -> Result<(), CompileError> {
        let wants = |form| self.args.emit.contains(&form);
        for (target, kernels) in &done.emitted {
            if wants(Form::Tile) {
                self.write(&format!("{target}.tile"), kernels.tile.as_bytes())?;
            }
            if let Some(llvm) = kernels.llvm.as_ref().filter(|_| wants(Form::Llvm)) {
                self.write(&format!("{target}.ll"), llvm.as_bytes())?;
            }
            if let Some(asm) = kernels.asm.as_ref().filter(|_| wants(Form::Asm)) {
                self.write(&format!("{target}.s"), asm.as_bytes())?;
            }
            if wants(Form::Object) {
                self.write(&format!("{target}.{}", kernels.extension), &kernels.object()?)?;
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CompileError> {
        let dir = &self.args.dump_dir;
        std::fs::create_dir_all(dir).map_err(|source| CompileError::Io { path: dir.clone(), source })?;
        write_file(&dir.join(name), bytes)
    }
}

fn summary(
    args: &CompileArgs,
    front: &Front,
    planned: &[PlannedTarget],
    done: &Compilation,
    output: &Path,
) -> Result<(), CompileError> {
    let reports = driver::reports(planned);
    let first = planned.first().map_or(&[][..], |t| &t.variants);
    let copies: u64 = first.iter().map(|v| v.plan.copied_bytes()).sum();
    if args.json {
        let times: serde_json::Map<String, serde_json::Value> =
            front.timeline.stages().iter().map(|(n, t)| ((*n).to_owned(), json!(t.as_secs_f64()))).collect();
        let value = json!({
            "artifact": output.display().to_string(),
            "bytes": done.bytes,
            "kernels": done.kernels,
            "launches": done.launches,
            "copied_bytes": copies,
            "seconds": front.timeline.total().as_secs_f64(),
            "stages": times,
            "fusions": reports.iter().map(|(variant, r)| {
                let groups = r.groups.iter().filter(|g| !g.anchors.is_empty());
                let counts = groups.map(|g| {
                    let value = json!({"places": g.anchors.len(), "fused": g.fused(), "absorbed": g.absorbed()});
                    (g.name.clone(), value)
                });
                (variant.clone(), counts.collect())
            }).collect::<serde_json::Map<String, serde_json::Value>>(),
        });
        return put(&format!("{value:#}\n"));
    }
    let mut out = String::new();
    for (variant, report) in &reports {
        out += &format!("{variant}: {report}");
    }
    for variant in first {
        out += &format!(
            "{}: arena {:.1} MiB (at least {:.1}), {} epochs\n",
            variant.name,
            variant.plan.arena_bytes as f64 / f64::from(1 << 20),
            variant.plan.arena_lower_bound as f64 / f64::from(1 << 20),
            variant.plan.epochs(),
        );
        for copy in &variant.plan.copies {
            out += &format!("  copy of {} bytes for {}: {}\n", copy.bytes, copy.source, copy.reason);
        }
    }
    out += &format!(
        "{}: {:.1} KiB, {} kernels, {} launches, compiled in {:.2} s\n",
        output.display(),
        done.bytes as f64 / 1024.0,
        done.kernels,
        done.launches.iter().map(usize::to_string).collect::<Vec<_>>().join(" + "),
        front.timeline.total().as_secs_f64(),
    );
    put(&out)
}
