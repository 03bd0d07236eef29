//! Models on several ranks, by interpretation: the same logits as on one, step by step.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};
use weldment_compiler::checkpoint::{Checkpoint, WeightSource};
use weldment_compiler::driver::{
    EntryOptions, FusionOptions, Quiet, Reference, Signature, Timeline, model_graph, plan_targets, shard_graph,
};
use weldment_ir::{DType, Op};

fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny").join(model)
}

/// The model of a fixture with other numbers of heads, and random weights.
fn with_heads(model: &str, heads: u64, kv_heads: u64, dir: &Path) -> Checkpoint {
    let text = std::fs::read_to_string(fixture(model).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["num_attention_heads"] = heads.into();
    config["num_key_value_heads"] = kv_heads.into();
    config["head_dim"] = 16.into();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    Checkpoint::open(dir, WeightSource::Random { seed: 7 }).unwrap()
}

/// A prefill, then tokens one by one: the largest difference of a logit, relative to the largest.
fn apart(checkpoint: &Checkpoint, tp: u32) -> f64 {
    let mut one = Reference::of_model(checkpoint, DType::F32, 24).unwrap();
    let mut ranks = Reference::of_ranks(checkpoint, DType::F32, 24, tp).unwrap();
    let vocab = checkpoint.config.vocab as u32;
    let token = |i: u32| (i * 31 + 5) % vocab;
    let prompt: Vec<u32> = (0..17).map(token).collect();
    let steps = [prompt].into_iter().chain((17..21).map(|i| vec![token(i)]));
    let mut worst = 0.0f64;
    for tokens in steps {
        let (expected, found) = (one.step(&tokens).unwrap(), ranks.step(&tokens).unwrap());
        assert_eq!(expected.len(), tokens.len() * vocab as usize);
        assert_eq!(expected.len(), found.len());
        let scale = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        assert!(scale > 0.0);
        worst = expected.iter().zip(&found).fold(worst, |m, (a, b)| m.max((a - b).abs() / scale));
    }
    worst
}

#[test]
fn tiny_models_are_themselves_on_several_ranks() {
    let models =
        ["llama", "llama_tied_llama3_rope", "qwen2", "qwen3", "mistral", "phi3", "granite_biases", "olmo2", "gemma3"];
    for model in models {
        let checkpoint = Checkpoint::open(&fixture(model), WeightSource::Files).unwrap();
        for tp in [2, 4] {
            let apart = apart(&checkpoint, tp);
            assert!(apart < 1e-12, "{model} on {tp} ranks: {apart}");
        }
    }
}

#[test]
fn eight_heads_go_on_two_four_and_eight_ranks() {
    let dir = tempfile::tempdir().unwrap();
    for model in ["llama", "qwen2", "qwen3"] {
        for kv_heads in [8, 2] {
            let checkpoint = with_heads(model, 8, kv_heads, dir.path());
            for tp in [2, 4, 8] {
                let apart = apart(&checkpoint, tp);
                assert!(apart < 1e-12, "{model} with {kv_heads} KV heads on {tp} ranks: {apart}");
            }
        }
    }
}

/// A rank's caches hold its heads; several ranks hold the same where there are fewer heads than ranks.
#[test]
fn caches_are_of_a_rank() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = with_heads("llama", 8, 2, dir.path());
    let graph = model_graph(&checkpoint, &EntryOptions::default()).unwrap();
    let bytes = |tp| {
        let graph = shard_graph(graph.clone(), tp).unwrap();
        Signature::of(std::slice::from_ref(&graph)).unwrap().states.iter().map(|s| s.unit_bytes).collect::<Vec<_>>()
    };
    let one = bytes(1);
    assert_eq!(bytes(2), one.iter().map(|n| n / 2).collect::<Vec<_>>());
    assert_eq!(bytes(8), bytes(2));
}

#[test]
fn what_does_not_divide_is_an_error_of_tp() {
    let checkpoint = Checkpoint::open(&fixture("llama"), WeightSource::Files).unwrap();
    let graph = model_graph(&checkpoint, &EntryOptions::default()).unwrap();
    let error = shard_graph(graph, 8).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(text.starts_with("--tp 8: layers.0.self_attn.q_proj: 4 parts for 8 ranks"), "{text}");
}

/// In each variant every all-reduce, the embedding's too, ends in a norm, wherever the target has a kernel for it.
#[test]
fn every_all_reduce_of_a_model_is_fused_in_each_range() {
    let dir = tempfile::tempdir().unwrap();
    for model in ["llama", "qwen3"] {
        let checkpoint = with_heads(model, 8, 2, dir.path());
        let graph = model_graph(&checkpoint, &EntryOptions::default()).unwrap();
        for tp in [2, 4, 8] {
            let sharded = shard_graph(graph.clone(), tp).unwrap();
            let all = sharded.ids().filter(|id| matches!(sharded.node(*id).op, Op::AllReduce { .. })).count();
            assert_eq!(all as u64, 2 * checkpoint.config.layers().len() as u64 + 1);
            let fusion = FusionOptions::default();
            let targets = ["x86-64-v3".to_owned()];
            let planned =
                plan_targets(std::slice::from_ref(&sharded), &targets, &fusion, &mut Timeline::default(), &mut Quiet)
                    .unwrap();
            for variant in planned.iter().flat_map(|t| &t.variants) {
                let required = variant.report.require(&format!("allreduce_rms_norm={all}"));
                required.unwrap_or_else(|e| panic!("{model} on {tp} ranks, {}: {e}", variant.name));
            }
        }
    }
}
