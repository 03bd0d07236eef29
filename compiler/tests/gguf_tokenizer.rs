//! Tokenizers built from GGUF metadata, run by the runtime's text module.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::path::{Path, PathBuf};
use support::{GgufWriter, tiny_llama};
use weldment_compiler::checkpoint::{Checkpoint, WeightSource};
use weldment_compiler::frontend::TokenizerData;
use weldment_ir::DType;
use weldment_runtime::text::{ChatTemplate, Message, Tokenizer};

fn data(writer: &GgufWriter) -> TokenizerData {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, writer.bytes()).unwrap();
    Checkpoint::open(&path, WeightSource::Files).unwrap().tokenizer.unwrap()
}

fn tokenizer(writer: &GgufWriter) -> Tokenizer {
    Tokenizer::from_json(&data(writer).json).unwrap()
}

const TEXTS: [&str; 7] = ["hello", " two  spaces\n", "naïve – 日本", "a1234b", "👩‍👩‍👧", "", "<|im_end|>!"];

#[test]
fn byte_level_round_trips_for_every_pre_tokenizer() {
    for pre in ["smollm", "gpt-2", "llama-bpe", "qwen2", "default"] {
        let mut writer = tiny_llama();
        writer.string("tokenizer.ggml.pre", pre).flag("tokenizer.ggml.add_bos_token", false);
        let tokenizer = tokenizer(&writer);
        assert_eq!(tokenizer.vocab_size(), 260);
        for text in TEXTS {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{pre}");
            let mut stream = tokenizer.stream(false);
            let mut streamed: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
            streamed += &stream.finish().unwrap();
            assert_eq!(streamed, text, "{pre} streamed");
        }
        let ids = tokenizer.encode("hello<|im_end|>", true).unwrap();
        assert_eq!(ids, [257, u32::from(b'l'), u32::from(b'o'), 259], "{pre}");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello");
    }
}

#[test]
fn streams_hold_back_parts_of_characters() {
    let tokenizer = tokenizer(&tiny_llama());
    let mut stream = tokenizer.stream(true);
    let pieces: Vec<String> = "é!".bytes().map(|b| stream.push(u32::from(b)).unwrap()).collect();
    assert_eq!(pieces, ["", "é", "!"]);
    // Bytes that cannot become a character are not held back.
    let mut stream = tokenizer.stream(true);
    let shown: Vec<String> = (0..3).map(|_| stream.push(0xff).unwrap()).collect();
    assert_eq!(shown, ["\u{fffd}"; 3]);
    assert_eq!(stream.finish().unwrap(), "");
}

#[test]
fn special_tokens_go_around_texts() {
    let mut writer = tiny_llama();
    writer.flag("tokenizer.ggml.add_bos_token", true);
    let data = data(&writer);
    let named: Vec<(&str, &str)> = data.special_tokens.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(named, [("bos_token", "<|bos|>"), ("eos_token", "<|im_end|>")]);
    let tokenizer = Tokenizer::from_json(&data.json).unwrap();
    assert_eq!(tokenizer.encode("he", true).unwrap(), [258, 256]);
    assert_eq!(tokenizer.encode("he", false).unwrap(), [256]);
    let chat = ChatTemplate::new(&data.chat_template.unwrap(), data.special_tokens).unwrap();
    assert_eq!(chat.render(&[Message::new("user", "he")], true).unwrap(), "he");
}

#[test]
fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    // ids from 259: a b c ▁ ab bc ▁a abc
    tokens.extend(["a", "b", "c", "\u{2581}", "ab", "bc", "\u{2581}a", "abc"].map(str::to_owned));
    let mut scores = vec![0.0f32; 263];
    scores.extend([-3.0, -1.0, -2.0, -4.0]);
    let mut kinds = vec![2, 3, 3];
    kinds.extend(vec![6; 256]);
    kinds.extend(vec![1; 8]);
    let mut writer = tiny_llama();
    writer
        .string("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &tokens)
        .f32s("tokenizer.ggml.scores", &scores)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .u32("tokenizer.ggml.unknown_token_id", 0);
    writer.tensors.retain(|t| t.name != "token_embd.weight");
    writer.tensor("token_embd.weight", DType::F16, &[267, 32]);
    let tokenizer = tokenizer(&writer);
    // "▁abc": bc (-1) merges first, then ▁a (-2).
    assert_eq!(tokenizer.encode("abc", true).unwrap(), [1, 265, 264]);
    assert_eq!(tokenizer.encode("é", true).unwrap(), [1, 262, 3 + 0xc3, 3 + 0xa9]);
    for text in ["abc", "ab é c", "a  b", "日"] {
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        let mut stream = tokenizer.stream(true);
        let mut streamed: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, text, "streamed");
    }
}

/// SmolLM2's GGUF, where `WELDMENT_SMOLLM2` says it is (`make test` fetches it). Ids are llama.cpp's.
#[test]
fn smollm2_agrees_with_llama_cpp() {
    let Some(path) = std::env::var_os("WELDMENT_SMOLLM2").map(PathBuf::from) else {
        eprintln!("WELDMENT_SMOLLM2 is not set: SmolLM2's tokenizer is not compared");
        return;
    };
    let data = Checkpoint::open(&path, WeightSource::Files).unwrap().tokenizer.unwrap();
    let tokenizer = Tokenizer::from_json(&data.json).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/smollm2_tokens.json");
    let cases: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect();
        assert_eq!(tokenizer.encode(text, true).unwrap(), expected, "{text:?}");
        let mut stream = tokenizer.stream(false);
        let mut streamed: String = expected.iter().map(|id| stream.push(*id).unwrap()).collect();
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, text);
    }
    let template = ChatTemplate::new(&data.chat_template.unwrap(), data.special_tokens);
    let prompt = template.unwrap().render(&[Message::new("user", "Hi")], true).unwrap();
    assert!(prompt.ends_with("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), "{prompt}");
}
