//! Tiny models against transformers' own logits, in the f64 interpreter: front ends and model definitions without any kernel.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use weldment_compiler::checkpoint::{Checkpoint, WeightSource, build_step};
use weldment_compiler::models::StepOptions;
use weldment_ir::interpret::{Binding, Bindings, F64, Options, interpret};
use weldment_ir::{DType, Graph, Op};

/// Directories, and GGUF files of the same weights.
const MODELS: [&str; 26] = [
    "llama",
    "llama_tied_llama3_rope",
    "qwen2",
    "qwen3",
    "llama_sharded",
    "llama_tied_legacy_config",
    "llama_linear",
    "llama_dynamic_inside",
    "llama_dynamic_beyond",
    "llama_yarn_attention_factor",
    "mistral",
    "mistral/model.gguf",
    "mistral_yarn_truncate",
    "phi3",
    "phi3/model.gguf",
    "phi3_longrope_short",
    "phi3_longrope_long",
    "phi3_longrope_long/model.gguf",
    "granite",
    "granite/model.gguf",
    "granite_biases",
    "olmo2",
    "olmo2/model.gguf",
    "gemma3",
    "gemma3_scalar16",
    "gemma3_scalar16/model.gguf",
];

fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny").join(model)
}

struct Golden {
    prompt: Vec<i64>,
    logits: Vec<f32>,
    greedy: Vec<i64>,
    gaps: Vec<f32>,
}

impl Golden {
    fn read(model: &str) -> Golden {
        let directory = fixture(model.trim_end_matches("/model.gguf"));
        let bytes = std::fs::read(directory.join("golden.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let data = |name: &str| file.tensor(name).unwrap().data().to_vec();
        let ints = |name: &str| data(name).as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        let reals = |name: &str| data(name).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Golden { prompt: ints("prompt"), logits: reals("logits"), greedy: ints("greedy"), gaps: reals("greedy_gap") }
    }
}

/// A graph, its weights and the caches of one sequence.
struct Machine {
    graph: Graph,
    bindings: Bindings,
    blocks: usize,
}

impl Machine {
    fn new(model: &str, max_tokens: usize) -> Machine {
        let checkpoint = Checkpoint::open(&fixture(model), WeightSource::Files).unwrap();
        let options = StepOptions {
            dtype: DType::F32,
            max_tokens: max_tokens as u64,
            max_seqs: 1,
            max_seq_len: max_tokens as u64,
            kv_block: 16,
        };
        let graph = build_step(&checkpoint, &options).unwrap();
        let blocks = max_tokens.div_ceil(16);
        let mut bindings = Bindings::new();
        for id in graph.ids() {
            match &graph.node(id).op {
                Op::Weight { name, dtype, shape } => {
                    let shape: Vec<usize> = shape.iter().map(|d| d.constant().unwrap() as usize).collect();
                    bindings.insert(name, Binding::encoded(&shape, *dtype, checkpoint.shared_bytes(name).unwrap()));
                }
                Op::State { name, shape, .. } => {
                    let shape: Vec<usize> = shape.iter().map(|d| d.constant().map_or(blocks, |n| n as usize)).collect();
                    bindings.insert(name, Binding::f64(&shape, vec![0.0; shape.iter().product()]));
                }
                _ => {}
            }
        }
        Machine { graph, bindings, blocks }
    }

    /// Feeds tokens from position `start`; gives logits of `rows`.
    fn step(&mut self, tokens: &[i64], start: usize, rows: &[i64]) -> Vec<f64> {
        let count = tokens.len();
        let mut input =
            |name: &str, shape: &[usize], values: Vec<i64>| self.bindings.insert(name, Binding::ints(shape, values));
        input("tokens", &[count], tokens.to_vec());
        input("positions", &[count], (start..start + count).map(|p| p as i64).collect());
        input("sequence_ids", &[count], vec![0; count]);
        // Blocks in reverse, so that a table that is ignored shows.
        input("block_tables", &[1, self.blocks], (0..self.blocks as i64).rev().collect());
        input("logit_rows", &[rows.len()], rows.to_vec());
        let paged = [("P", self.blocks), ("N", self.blocks), ("C", start + count)];
        let sizes = [("T", count), ("B", 1), ("R", rows.len())].into_iter().chain(paged);
        let dims: BTreeMap<String, u64> = sizes.map(|(name, n)| (name.to_owned(), n as u64)).collect();
        let outputs = interpret::<F64>(&self.graph, &dims, &self.bindings, &Options::default()).unwrap();
        for (name, tensor) in outputs.iter().filter(|(name, _)| *name != "logits") {
            self.bindings.insert(name, Binding::from(tensor));
        }
        outputs["logits"].as_values().unwrap().to_vec()
    }
}

fn worst(found: &[f64], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max)
}

fn top(logits: &[f64]) -> i64 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).map_or(-1, |i| i as i64)
}

#[test]
fn prefill_and_greedy_tokens_match() {
    for model in MODELS {
        let golden = Golden::read(model);
        let (prompt, steps) = (golden.prompt.len(), golden.greedy.len());
        let mut machine = Machine::new(model, prompt + steps);
        let rows: Vec<i64> = (0..prompt as i64).collect();
        let logits = machine.step(&golden.prompt, 0, &rows);
        let error = worst(&logits, &golden.logits);
        assert!(error < 1e-3, "{model}: prefill differs by {error}");

        let vocab = logits.len() / prompt;
        let mut next = top(&logits[(prompt - 1) * vocab..]);
        for (i, expected) in golden.greedy.iter().enumerate() {
            assert_eq!(next, *expected, "{model}: greedy token {i}, gap {}", golden.gaps[i]);
            next = top(&machine.step(&[next], prompt + i, &[0]));
        }
    }
}

#[test]
fn token_by_token_matches() {
    for model in MODELS {
        let golden = Golden::read(model);
        let mut machine = Machine::new(model, golden.prompt.len());
        let mut logits = Vec::new();
        for (position, token) in golden.prompt.iter().enumerate() {
            logits.extend(machine.step(&[*token], position, &[0]));
        }
        let error = worst(&logits, &golden.logits);
        assert!(error < 1e-3, "{model}: stepwise differs by {error}");
    }
}

/// Google's older spelling: bases and a scaling beside each other, and a pattern instead of a list.
#[test]
fn spellings_of_one_config_are_one_decoder() {
    let decoder = |model: &str| {
        Checkpoint::open(&fixture(model), WeightSource::Random { seed: 1 }).unwrap().config.decoder.unwrap()
    };
    assert_eq!(decoder("gemma3_legacy_config"), decoder("gemma3"));
    assert_ne!(decoder("gemma3_scalar16"), decoder("gemma3"));
}

#[test]
fn nodes_carry_their_source_paths() {
    let machine = Machine::new("qwen3", 16);
    let paths: std::collections::BTreeSet<&str> =
        machine.graph.ids().flat_map(|id| machine.graph.node(id).sources.iter().map(|s| &**s)).collect();
    for path in [
        "embed_tokens",
        "layers.2.self_attn.q_proj",
        "layers.0.self_attn.q_norm",
        "layers.1.mlp.down_proj",
        "norm",
        "lm_head",
    ] {
        assert!(paths.contains(path), "{path} is missing");
    }
}
