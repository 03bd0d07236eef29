//! FP8 checkpoints of every layout: read, interpreted, compiled; and damaged ones refused.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod checkpoint;

use checkpoint::{Draft, Style, fixture};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use weldment_compiler::checkpoint::{Checkpoint, WeightSource, build_step};
use weldment_compiler::driver::Reference;
use weldment_compiler::models::StepOptions;
use weldment_ir::{DType, OpKind};

const STYLES: [Style; 4] = [Style::Blocks([32, 64]), Style::Tensor, Style::Channel, Style::CompressedBlocks([16, 32])];
const TOKENS: [u32; 12] = [5, 9, 17, 33, 2, 200, 180, 64, 77, 3, 250, 101];

fn logits(folder: &Path) -> Vec<f64> {
    let checkpoint = Checkpoint::open(folder, WeightSource::Files).unwrap();
    let mut reference = Reference::of_model(&checkpoint, DType::F32, 16).unwrap();
    reference.step(&TOKENS).unwrap()
}

/// Largest difference as a part of the largest reference value.
fn apart(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / scale
}

/// Quantised models compute nearly what the model that they were made from does, and not the same: every projection is quantised.
#[test]
fn every_layout_is_near_the_unquantised_model() {
    let plain = logits(&fixture());
    for style in STYLES {
        let folder = tempfile::tempdir().unwrap();
        Draft::new(style).write(folder.path());
        let apart = apart(&logits(folder.path()), &plain);
        assert!((1e-4..0.1).contains(&apart), "{style:?}: {apart}");
        let checkpoint = Checkpoint::open(folder.path(), WeightSource::Files).unwrap();
        let options = StepOptions { dtype: DType::F32, max_tokens: 4, max_seqs: 1, max_seq_len: 16, kv_block: 16 };
        let graph = build_step(&checkpoint, &options).unwrap();
        let count = |kind| graph.ids().filter(|id| graph.node(*id).op.kind() == kind).count() as u64;
        let layers = checkpoint.config.layers().len() as u64;
        assert_eq!((count(OpKind::ScaledMatmul), count(OpKind::Matmul)), (7 * layers, 1), "{style:?}");
    }
}

/// What the host's kernels compute is what the interpreter does; every norm is quantised where it is made, and projections are joined.
#[test]
fn compiled_models_agree_with_the_interpreter() {
    for style in STYLES {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("model");
        Draft::new(style).write(&folder);
        std::fs::write(place.path().join("ids.json"), json!(TOKENS).to_string()).unwrap();
        let run = |arguments: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_weldment"));
            command.args(arguments).current_dir(place.path()).env("XDG_CACHE_HOME", place.path().join("cache"));
            let out = command.output().unwrap();
            assert!(out.status.success(), "{style:?} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        };
        let fused = ["norm_quantise=6", "merged_qkv=3", "merged_gate_up=all"].map(|f| ["--require", f]).concat();
        let line =
            ["compile", "model", "-o", "m.weld", "--weights", "embed", "--dim", "tokens=1..16", "--max-seq", "64"];
        run(&[line.as_slice(), &fused].concat());
        let expected = logits(&folder);
        for more in [&[][..], &["--stepwise"]] {
            run(&[&["eval", "m.weld", "--tokens", "ids.json", "--logits", "out.safetensors"], more].concat());
            let bytes = std::fs::read(place.path().join("out.safetensors")).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let data = file.tensor("logits").unwrap();
            let found: Vec<f64> =
                data.data().as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
            let apart = apart(&found, &expected);
            assert!(apart < 2e-3, "{style:?} {more:?}: {apart}");
        }
    }
}

type Damage = fn(&mut Draft);

/// (what is done to a checkpoint of blocks, what the error names).
const DAMAGES: [(Damage, &[&str]); 14] = [
    (
        |d| d.config["quantization_config"]["quant_method"] = json!("gptq"),
        &["quantization_config.quant_method", "gptq"],
    ),
    (
        |d| d.config["quantization_config"]["quant_method"] = Value::Null,
        &["quantization_config.quant_method", "missing"],
    ),
    (
        |d| d.config["quantization_config"]["activation_scheme"] = json!("static"),
        &["activation_scheme", "static", "dynamic"],
    ),
    (|d| d.config["quantization_config"]["weight_block_size"] = json!([32, 0]), &["weight_block_size", "[32,0]"]),
    (|d| d.config["quantization_config"]["weight_block_size"] = json!(128), &["weight_block_size", "128"]),
    (|d| d.config["quantization_config"]["weight_block_size"] = json!([32, 48]), &["q_proj.weight", "48", "multiple"]),
    (|d| d.config["quantization_config"]["scale_fmt"] = json!("ue8m0"), &["scale_fmt", "ue8m0"]),
    (|d| d.config["quantization_config"]["fmt"] = json!("e5m2"), &["fmt", "e5m2"]),
    (
        |d| d.config["quantization_config"]["modules_to_not_convert"] = json!(["model.layers.1.mlp.up_proj"]),
        &["layers.1.mlp.up_proj.weight", "f8e4m3"],
    ),
    (|d| d.config["quantization_config"] = json!([]), &["quantization_config", "object"]),
    (
        |d| drop(d.config.as_object_mut().unwrap().remove("quantization_config")),
        &["q_proj.weight", "f8e4m3", "quantization_config"],
    ),
    (
        |d| drop(d.tensors.remove("model.layers.2.self_attn.o_proj.weight_scale_inv")),
        &["layers.2.self_attn.o_proj.weight", "without scales", "weight_scale_inv"],
    ),
    (
        |d| d.tensors.get_mut("model.layers.0.mlp.up_proj.weight_scale_inv").unwrap().shape.reverse(),
        &["up_proj.weight_scale_inv", "shape [1, 4]", "[4, 1]"],
    ),
    (
        |d| {
            let scales = d.tensors.get_mut("model.layers.0.mlp.down_proj.weight_scale_inv").unwrap();
            scales.dtype = safetensors::Dtype::I32;
        },
        &["down_proj.weight_scale_inv", "i32", "f32"],
    ),
];

#[test]
fn damaged_checkpoints_are_refused_by_name() {
    for (i, (damage, words)) in DAMAGES.iter().enumerate() {
        let mut draft = Draft::new(Style::Blocks([32, 64]));
        damage(&mut draft);
        let folder = tempfile::tempdir().unwrap();
        draft.write(folder.path());
        let options = StepOptions { dtype: DType::F32, max_tokens: 4, max_seqs: 1, max_seq_len: 16, kv_block: 16 };
        let built = Checkpoint::open(folder.path(), WeightSource::Files).and_then(|c| build_step(&c, &options));
        let error = built.expect_err("a damaged checkpoint").to_string();
        for word in *words {
            assert!(error.contains(word), "damage {i}: `{word}` is not in: {error}");
        }
    }
}

/// Settings of compressed-tensors that would change the arithmetic.
#[test]
fn other_schemes_of_compressed_tensors_are_refused() {
    let group = |d: &mut Draft, part: &str, key: &str, value: Value| {
        d.config["quantization_config"]["config_groups"]["group_0"][part][key] = value;
    };
    type Damage<'a> = (&'a dyn Fn(&mut Draft), &'a str);
    let damages: [Damage<'_>; 7] = [
        (&|d| group(d, "weights", "num_bits", json!(4)), "weights.num_bits"),
        (&|d| group(d, "weights", "type", json!("int")), "weights.type"),
        (&|d| group(d, "weights", "strategy", json!("group")), "weights.strategy"),
        (&|d| group(d, "input_activations", "dynamic", json!(false)), "input_activations.dynamic"),
        (&|d| group(d, "input_activations", "strategy", json!("tensor")), "input_activations.strategy"),
        (&|d| d.config["quantization_config"]["format"] = json!("pack-quantized"), "quantization_config.format"),
        (
            &|d| d.config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = Value::Null,
            "group_0.input_activations",
        ),
    ];
    for (damage, key) in damages {
        let mut draft = Draft::new(Style::Channel);
        damage(&mut draft);
        let folder = tempfile::tempdir().unwrap();
        draft.write(folder.path());
        let error = Checkpoint::open(folder.path(), WeightSource::Files).expect_err("a scheme that is not there");
        assert!(error.to_string().contains(key), "`{key}` is not in: {error}");
    }
}
