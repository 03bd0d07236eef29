//! The small llama of the fixtures in bf16, compiled.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::{Path, PathBuf};
use weldment_codegen::choices::Choices;
use weldment_compiler::checkpoint::WeightSource;
use weldment_compiler::driver::{
    CompileOptions, EntryOptions, FusionOptions, Quiet, Timeline, build_artifact, model_graph, open, plan_targets,
    shard_graph,
};
use weldment_ir::DType;
use weldment_runtime::Artifact;

/// Where it is.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny/llama")
}

/// One artifact for `targets`, for steps of up to `max_tokens`.
pub fn artifact(dir: &Path, targets: &[&str], max_tokens: u64) -> Artifact {
    Model { max_tokens, ..Model::default() }.compiled(dir, targets)
}

/// One artifact for `world` ranks of this host.
pub fn artifact_of_ranks(dir: &Path, world: u32) -> Artifact {
    Model { max_tokens: 4, world, ..Model::default() }.compiled(dir, &["host"])
}

/// How it is compiled.
#[derive(Clone, Debug)]
pub struct Model {
    pub dtype: DType,
    pub max_tokens: u64,
    pub max_seqs: u64,
    pub max_seq: u64,
    pub world: u32,
    pub choices: Choices,
}

impl Default for Model {
    fn default() -> Model {
        Model { dtype: DType::BF16, max_tokens: 64, max_seqs: 2, max_seq: 64, world: 1, choices: Choices::default() }
    }
}

impl Model {
    /// The artifact, for `targets`.
    pub fn compiled(&self, dir: &Path, targets: &[&str]) -> Artifact {
        let Model { dtype, max_tokens, max_seqs, max_seq, world, choices } = *self;
        let checkpoint = open(&folder(), WeightSource::Files).expect("the fixture opens");
        let entry = EntryOptions {
            dtype: Some(dtype),
            max_tokens,
            max_seqs,
            max_seq: Some(max_seq),
            ..EntryOptions::default()
        };
        let graph = model_graph(&checkpoint, &entry).expect("the fixture has a graph");
        let graph = shard_graph(graph, world).expect("its dims divide");
        let (mut timeline, fusion) = (Timeline::default(), FusionOptions { choices, ..FusionOptions::default() });
        let targets: Vec<String> = targets.iter().map(|t| (*t).to_owned()).collect();
        let planned = plan_targets(std::slice::from_ref(&graph), &targets, &fusion, &mut timeline, &mut Quiet)
            .expect("it is planned");
        let options = CompileOptions {
            targets,
            fusion,
            embed: false,
            max_seq,
            emit: Default::default(),
            recorded: Vec::new(),
            threads: 1,
        };
        let output = dir.join("m.weld");
        build_artifact(
            std::slice::from_ref(&graph),
            &checkpoint,
            &planned,
            &options,
            &output,
            &mut timeline,
            &mut Quiet,
        )
        .expect("it compiles");
        Artifact::open(&output).expect("it opens")
    }
}
