//! Every all-reduce of a sharded model is part of the norm that it feeds: two a layer, and the embedding's, for whatever number of
//! ranks, target and range of tokens.

use serde_json::{Value, json};
use std::path::Path;
use weldment_compiler::checkpoint::WeightSource;
use weldment_compiler::driver::{
    EntryOptions, FusionOptions, Quiet, Timeline, model_graph, open, plan_targets, reports, shard_graph,
};
use weldment_ir::DType;
use weldment_passes::report::Outcome;

const TARGETS: [&str; 4] = ["x86-64-v3", "gfx942", "gfx950", "sm_90a"];

/// A directory with the config of a fixture that has other heads and a wider hidden size.
fn model(dir: &Path, family: &str, kv_heads: u64) -> u64 {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny").join(family).join("config.json");
    let text = std::fs::read_to_string(fixture).expect("a fixture");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    let changes = [
        ("num_attention_heads", 8),
        ("num_key_value_heads", kv_heads),
        ("hidden_size", 1024),
        ("head_dim", 128),
        ("intermediate_size", 2048),
        ("vocab_size", 4096),
    ];
    for (key, value) in changes {
        config[key] = json!(value);
    }
    std::fs::write(dir.join("config.json"), config.to_string()).expect("written");
    config["num_hidden_layers"].as_u64().expect("a number of layers")
}

#[test]
fn every_all_reduce_is_fused_in_every_range() {
    for (family, kv_heads) in [("llama", 2), ("llama", 8), ("qwen3", 2), ("qwen3", 8)] {
        let dir = tempfile::tempdir().expect("a directory");
        let layers = model(dir.path(), family, kv_heads) as usize;
        let checkpoint = open(dir.path(), WeightSource::Random { seed: 1 }).expect("it opens");
        for dtype in [DType::BF16, DType::F32] {
            let entry = EntryOptions {
                dtype: Some(dtype),
                max_tokens: 2048,
                max_seqs: 8,
                max_seq: Some(512),
                ..EntryOptions::default()
            };
            let graph = model_graph(&checkpoint, &entry).expect("a graph");
            for world in [2, 4, 8] {
                let graph = shard_graph(graph.clone(), world).expect("its dims divide");
                for target in TARGETS {
                    let (mut timeline, fusion) = (Timeline::default(), FusionOptions::default());
                    let targets = [target.to_owned()];
                    let planned =
                        plan_targets(std::slice::from_ref(&graph), &targets, &fusion, &mut timeline, &mut Quiet)
                            .expect("a plan");
                    for (variant, report) in reports(&planned) {
                        let group = report.group("allreduce_rms_norm").expect("it has all-reduces");
                        let fused = group.anchors.iter().filter(|a| matches!(a.outcome, Outcome::Fused { .. })).count();
                        let what = format!("{family} {dtype} {kv_heads} KV heads, {world} ranks, {target}, {variant}");
                        assert_eq!((fused, group.anchors.len()), (2 * layers + 1, 2 * layers + 1), "{what}\n{report}");
                    }
                }
            }
        }
    }
}
