//! The small llama of the fixtures in bf16, compiled.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::{Path, PathBuf};
use weldment_compiler::driver::{
    CompileOptions, EntryOptions, FusionOptions, Quiet, Timeline, build_artifact, model_graph, open, plan_targets,
    shard_graph,
};
use weldment_compiler::frontend::WeightSource;
use weldment_ir::DType;
use weldment_runtime::Artifact;

/// Where it is.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny/llama")
}

/// One artifact for `targets`, for steps of up to `max_tokens`.
pub fn artifact(dir: &Path, targets: &[&str], max_tokens: u64) -> Artifact {
    artifact_for(dir, targets, max_tokens, 1)
}

/// One artifact for `world` ranks of this host.
pub fn artifact_of_ranks(dir: &Path, world: u32) -> Artifact {
    artifact_for(dir, &["host"], 4, world)
}

fn artifact_for(dir: &Path, targets: &[&str], max_tokens: u64, world: u32) -> Artifact {
    let checkpoint = open(&folder(), WeightSource::Files).expect("the fixture opens");
    let entry = EntryOptions { dtype: Some(DType::BF16), max_tokens, max_seqs: 2, max_seq: Some(64) };
    let graph = model_graph(&checkpoint, &entry).expect("the fixture has a graph");
    let graph = shard_graph(graph, world).expect("its dims divide");
    let (mut timeline, fusion) = (Timeline::default(), FusionOptions::default());
    let targets: Vec<String> = targets.iter().map(|t| (*t).to_owned()).collect();
    let planned = plan_targets(&graph, &targets, &fusion, &mut timeline, &mut Quiet).expect("it is planned");
    let options = CompileOptions {
        targets,
        fusion,
        embed: false,
        max_seq: 64,
        emit: Default::default(),
        recorded: Vec::new(),
        threads: 1,
    };
    let output = dir.join("m.weld");
    build_artifact(&graph, &checkpoint, &planned, &options, &output, &mut timeline, &mut Quiet).expect("it compiles");
    Artifact::open(&output).expect("it opens")
}
