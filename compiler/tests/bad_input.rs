//! Model files that lie: every case ends in a model or in a clean error, never in a panic or in memory beyond the file's size.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::path::{Path, PathBuf};
use support::{GgufWriter, tiny_llama};
use weldment_compiler::checkpoint::{Checkpoint, WeightSource, build_step};
use weldment_compiler::frontend::FrontendError;
use weldment_compiler::models::StepOptions;
use weldment_ir::DType;

/// Opens the model and does what a compile does with it first.
fn try_model(path: &Path, weights: WeightSource) -> Result<(), FrontendError> {
    let checkpoint = Checkpoint::open(path, weights)?;
    let names: Vec<&str> = checkpoint.names().collect();
    checkpoint.content_hashes(&names);
    let options = StepOptions { dtype: DType::F32, max_tokens: 16, max_seqs: 2, max_seq_len: 64, kv_block: 16 };
    build_step(&checkpoint, &options)?;
    Ok(())
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n.max(1)
    }
}

/// Flips bytes (most often in the first `header` ones) or cuts the end off.
fn damage(random: &mut Random, bytes: &[u8], header: usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    if random.below(4) == 0 {
        out.truncate(random.below(bytes.len()));
        return out;
    }
    for _ in 0..=random.below(3) {
        let range = if random.below(8) == 0 { bytes.len() } else { header.min(bytes.len()) };
        let at = random.below(range);
        out[at] = match random.below(4) {
            0 => 0xff,
            1 => 0,
            2 => out[at] ^ 1 << random.below(8),
            _ => random.below(256) as u8,
        };
    }
    out
}

/// Peak resident memory of this process in KiB.
fn peak_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/llama_sharded")
}

#[test]
fn damaged_gguf_files_never_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let bytes = tiny_llama().bytes();
    std::fs::write(&path, &bytes).unwrap();
    try_model(&path, WeightSource::Files).unwrap();
    let data = bytes.len() - 20_000;
    let (mut random, mut refused) = (Random(1), 0);
    for _ in 0..4000 {
        std::fs::write(&path, damage(&mut random, &bytes, data)).unwrap();
        if let Err(e) = try_model(&path, WeightSource::Files) {
            assert!(e.to_string().contains("model.gguf"), "{e}");
            refused += 1;
        }
    }
    assert!(refused > 1000, "{refused} of 4000 refused");
    assert!(peak_kib() < 400 << 10, "{} KiB", peak_kib());
}

#[test]
fn damaged_directories_never_panic() {
    let directory = tempfile::tempdir().unwrap();
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(fixture())
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.file_name() != "golden.safetensors")
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect();
    files.push(("tokenizer.json".into(), br#"{"version": "1.0", "model": {}}"#.to_vec()));
    files
        .push(("tokenizer_config.json".into(), br#"{"chat_template": "x", "bos_token": {"content": "<s>"}}"#.to_vec()));
    files.sort();
    let place = |name: &str| directory.path().join(name);
    files.iter().for_each(|(name, bytes)| std::fs::write(place(name), bytes).unwrap());
    try_model(directory.path(), WeightSource::Files).unwrap();
    let (mut random, mut refused) = (Random(2), 0);
    for _ in 0..4000 {
        let (name, bytes) = &files[random.below(files.len())];
        std::fs::write(place(name), damage(&mut random, bytes, 2500)).unwrap();
        refused += usize::from(try_model(directory.path(), WeightSource::Files).is_err());
        std::fs::write(place(name), bytes).unwrap();
    }
    assert!(refused > 1000, "{refused} of 4000 refused");
    assert!(peak_kib() < 400 << 10, "{} KiB", peak_kib());
}

/// The error of a GGUF file made by changing the tiny one.
fn gguf_error(change: impl FnOnce(&mut GgufWriter)) -> String {
    let mut writer = tiny_llama();
    change(&mut writer);
    gguf_bytes_error(&writer.bytes())
}

fn gguf_bytes_error(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    try_model(&path, WeightSource::Files).unwrap_err().to_string()
}

#[track_caller]
fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "`{part}` is missing in: {error}");
    }
}

#[test]
fn gguf_errors_name_place_and_accepted() {
    let good = tiny_llama().bytes();
    says(&gguf_bytes_error(b"GGML\0\0\0\0"), &["byte 0", "\"GGUF\" is expected"]);
    says(&gguf_bytes_error(&[]), &["empty"]);
    says(&gguf_error(|w| w.version = 1), &["byte 4", "version 1", "2 and 3 are accepted"]);
    says(&gguf_error(|w| w.version = 3u32.swap_bytes()), &["big-endian"]);
    let mut counts = good.clone();
    counts[8..16].fill(0xff);
    says(&gguf_bytes_error(&counts), &["byte 8", "18446744073709551615 tensors", "at most"]);
    let mut length = good.clone();
    length[24..32].fill(0xff);
    says(&gguf_bytes_error(&length), &["byte 32", "metadata key", "left in the file"]);
    says(&gguf_error(|w| _ = w.raw("general.odd", vec![77, 0, 0, 0, 1])), &["value type 77", "accepted"]);
    says(&gguf_error(|w| _ = w.u32("general.alignment", 24)), &["general.alignment", "power of two"]);
    says(&gguf_error(|w| w.named("blk.0.attn_q.weight").kind = 10), &["blk.0.attn_q.weight", "Q2_K", "Q8_0"]);
    says(&gguf_error(|w| w.named("blk.0.attn_q.weight").kind = 999), &["type 999", "unknown"]);
    says(&gguf_error(|w| w.named("blk.0.attn_q.weight").offset = Some(8)), &["offset 8", "multiple of the alignment"]);
    says(&gguf_error(|w| w.named("blk.0.attn_q.weight").offset = Some(1 << 40)), &["attn_q", "data section"]);
    says(&gguf_error(|w| w.named("blk.0.attn_q.weight").offset = Some(u64::MAX - 31)), &["attn_q", "data section"]);
    says(&gguf_error(|w| w.named("blk.0.attn_q.weight").offset = Some(0)), &["overlap", "token_embd.weight"]);
    says(&gguf_error(|w| w.named("blk.0.attn_q.weight").dims = vec![1 << 40, 1 << 40]), &["larger than 2^63"]);
    says(&gguf_error(|w| w.named("blk.0.attn_q.weight").dims = vec![31, 32]), &["blocks of 32", "31"]);
    says(&gguf_error(|w| w.named("blk.0.attn_q.weight").dims = vec![]), &["0 dims", "1 to 4"]);
    says(&gguf_error(|w| w.named("blk.0.attn_k.weight").name = "blk.0.attn_q.weight".into()), &["second time"]);
    says(
        &gguf_error(|w| w.named("blk.0.attn_q.weight").name = "other".into()),
        &["self_attn.q_proj.weight", "missing", "[32, 32]"],
    );
    says(&gguf_error(|w| w.named("blk.0.attn_q.weight").dims = vec![64, 16]), &["q_proj", "[16, 64]", "[32, 32]"]);
    says(&gguf_error(|w| _ = w.string("general.architecture", "mamba")), &["mamba", "llama, qwen2, qwen3"]);
    says(&gguf_error(|w| _ = w.string("llama.block_count", "x")), &["llama.block_count", "a string", "integer"]);
    says(&gguf_error(|w| _ = w.u32("llama.block_count", 1 << 30)), &["llama.block_count", "accepted"]);
    says(&gguf_error(|w| _ = w.u32("llama.attention.head_count", 0)), &["head"]);
    says(&gguf_error(|w| _ = w.u32("llama.attention.head_count_kv", 3)), &["head_count_kv", "divisor"]);
    says(&gguf_error(|w| _ = w.f32("llama.attention.layer_norm_rms_epsilon", f32::NAN)), &["epsilon", "finite"]);
    says(
        &gguf_error(|w| _ = w.string("llama.rope.scaling.type", "spiral")),
        &["spiral", "llama.rope.scaling.type", "accepted"],
    );
    says(&gguf_error(|w| _ = w.u32("llama.expert_count", 8)), &["expert_count", "8"]);
    says(&gguf_error(|w| _ = w.string("tokenizer.ggml.model", "t5")), &["tokenizer `t5`", "gpt2"]);
    says(&gguf_error(|w| _ = w.string("tokenizer.ggml.pre", "klingon")), &["klingon", "smollm"]);
    says(&gguf_error(|w| _ = w.strings("tokenizer.ggml.merges", &["q z".into()])), &["merge 0", "must be tokens"]);
    says(&gguf_error(|w| _ = w.i32s("tokenizer.ggml.token_type", &[1])), &["token_type", "260"]);
    says(&gguf_error(|w| _ = w.u32("tokenizer.ggml.eos_token_id", 9999)), &["eos_token_id", "9999"]);
    // A GGUF file that claims qwen3 without the norms of its heads.
    let error = gguf_error(|w| {
        w.string("general.architecture", "qwen3");
        for key in ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"]
        {
            let value = match key {
                "block_count" => 1,
                "feed_forward_length" | "context_length" => 64,
                "embedding_length" => 32,
                _ => 2,
            };
            w.u32(&format!("qwen3.{key}"), value);
        }
        w.u32("qwen3.attention.head_count_kv", 1).f32("qwen3.attention.layer_norm_rms_epsilon", 1e-5);
    });
    says(&error, &["q_norm.weight", "missing", "qwen3"]);
}

#[test]
fn older_and_unaligned_gguf_files_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    for (version, alignment) in [(2, 32), (3, 8), (3, 4096)] {
        let mut writer = tiny_llama();
        (writer.version, writer.alignment) = (version, alignment);
        writer.u32("general.alignment", alignment as u32);
        std::fs::write(&path, writer.bytes()).unwrap();
        try_model(&path, WeightSource::Files).unwrap();
    }
}

/// The error of the sharded fixture after `change` has had its directory.
fn directory_error(change: impl FnOnce(&Path)) -> String {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    change(directory.path());
    try_model(directory.path(), WeightSource::Files).unwrap_err().to_string()
}

fn replace(path: PathBuf, from: &str, to: &str) {
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from} in {}", path.display());
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// A safetensors file of this header and data.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn directory_errors_name_place_and_accepted() {
    let config = |from: &'static str, to: &'static str| directory_error(|d| replace(d.join("config.json"), from, to));
    says(&config("\"llama\"", "\"mamba\""), &["config.json", "model_type", "mamba", "qwen3"]);
    says(&config("\"silu\"", "\"gelu\""), &["hidden_act", "gelu", "silu"]);
    says(&config("\"default\"", "\"spiral\""), &["rope_parameters.rope_type", "spiral", "llama3", "yarn"]);
    says(&config("\"hidden_size\": 64", "\"hidden_size\": \"64\""), &["hidden_size", "integer"]);
    says(&config("\"hidden_size\": 64", "\"hidden_size\": 128"), &["shape", "[288, 64]", "[288, 128]"]);
    says(&config("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4"), &["model.layers.3", "missing"]);
    says(&config("\"float32\"", "\"float64\""), &["dtype", "float64", "bfloat16"]);
    says(&config("{", "["), &["config.json", "not JSON"]);
    says(&directory_error(|d| std::fs::remove_file(d.join("config.json")).unwrap()), &["config.json", "missing"]);

    let index = "model.safetensors.index.json";
    let shard = "model-00001-of-00004.safetensors";
    for escape in ["../x.safetensors", "/etc/passwd", "a/b", ".", "..", "a\\\\b", ""] {
        let error = directory_error(|d| replace(d.join(index), shard, escape));
        says(&error, &["index.json", "weight_map.", "model's directory"]);
    }
    says(&directory_error(|d| replace(d.join(index), shard, "absent.safetensors")), &["absent.safetensors"]);
    says(&directory_error(|d| replace(d.join(index), shard, "model-00002-of-00004.safetensors")), &["no such tensor"]);

    let header =
        |text: &'static str, data| directory_error(|d| std::fs::write(d.join(shard), safetensors(text, data)).unwrap());
    let one = r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#;
    says(&header(one, 9), &[shard, "1 bytes after the last tensor"]);
    says(&header(one, 7), &["tensor `a`", "0..8", "7"]);
    says(&header(r#"{"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}"#, 8), &["F64", "accepted"]);
    says(&header(r#"{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}"#, 8), &["12 bytes are expected"]);
    says(&header(r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}"#, 8), &["8..0"]);
    says(
        &header(r#"{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}}"#, 0),
        &["2^63"],
    );
    let two = r#"{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}"#;
    says(&header(two, 6), &["overlap"]);
    let twice = r#"{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}"#;
    says(&header(twice, 4), &["second time"]);
    says(&directory_error(|d| std::fs::write(d.join(shard), [0xff; 32]).unwrap()), &["byte 0", "header"]);
    says(&directory_error(|d| std::fs::write(d.join(shard), [1, 2]).unwrap()), &["byte 0", "2 bytes"]);
}

#[test]
fn random_weights_need_only_a_config() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(fixture().join("config.json"), directory.path().join("config.json")).unwrap();
    says(
        &try_model(directory.path(), WeightSource::Files).unwrap_err().to_string(),
        &["model.safetensors", "random:SEED"],
    );
    try_model(directory.path(), WeightSource::Random { seed: 7 }).unwrap();
    let open = |seed| Checkpoint::open(directory.path(), WeightSource::Random { seed }).unwrap();
    let name = "model.layers.0.mlp.gate_proj.weight";
    let bytes = |seed| open(seed).tensor(name).unwrap().bytes().into_owned();
    assert_eq!(bytes(7), bytes(7));
    assert_ne!(bytes(7), bytes(8));
    assert_eq!(bytes(7).len(), 128 * 64 * 4);
}
