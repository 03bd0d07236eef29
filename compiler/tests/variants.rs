//! Model files in the variants that people have: what each file says counts as transformers and llama.cpp take it, and what goes wrong
//! is said.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{GgufWriter, tiny_llama};
use weldment_compiler::checkpoint::{Checkpoint, WeightSource};
use weldment_compiler::frontend::{FrontendError, TokenizerData};
use weldment_compiler::models::rope::RopeKind;
use weldment_ir::DType;
use weldment_runtime::text::{ChatTemplate, Message, Tokenizer};

fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny").join(model)
}

/// A directory of the tiny llama's config and these files.
fn directory(files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("llama/config.json"), dir.path().join("config.json")).unwrap();
    for (name, value) in files {
        std::fs::write(dir.path().join(name), value.to_string()).unwrap();
    }
    dir
}

fn text_of(files: &[(&str, Value)]) -> Result<TokenizerData, FrontendError> {
    let dir = directory(files);
    Ok(Checkpoint::open(dir.path(), WeightSource::Random { seed: 1 })?.tokenizer.unwrap())
}

/// A byte-level tokenizer of bytes, `<s>`, `</s>` and `<|im_end|>` (ids 256 to 258) and these added tokens.
fn tokenizer_json(added: &[(u32, &str)]) -> Value {
    let mut vocab: serde_json::Map<String, Value> =
        support::byte_alphabet().into_iter().zip((0..).map(Value::from)).collect();
    for (text, id) in [("<s>", 256), ("</s>", 257), ("<|im_end|>", 258)] {
        vocab.insert(text.into(), id.into());
    }
    let added: Vec<Value> = added
        .iter()
        .map(|(id, text)| {
            json!({ "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true })
        })
        .collect();
    json!({ "version": "1.0", "added_tokens": added,
            "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
            "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
            "model": { "type": "BPE", "vocab": vocab, "merges": [] } })
}

fn named(data: &TokenizerData) -> (Option<&str>, Option<&str>) {
    let text = |name| data.special_tokens.get(name).map(String::as_str);
    (text("bos_token"), text("eos_token"))
}

#[test]
fn special_tokens_are_those_that_the_files_name() {
    let plain = || ("tokenizer.json", tokenizer_json(&[(256, "<s>"), (257, "</s>"), (258, "<|im_end|>")]));
    let config = |value| ("tokenizer_config.json", value);
    let map = |value| ("special_tokens_map.json", value);
    let class = "PreTrainedTokenizerFast";
    let found = |files: &[(&str, Value)]| {
        let data = text_of(files).unwrap();
        let (bos, eos) = named(&data);
        (bos.map(str::to_owned), eos.map(str::to_owned))
    };
    let expect = |bos: Option<&str>, eos: Option<&str>| (bos.map(str::to_owned), eos.map(str::to_owned));

    // config.json names ids 0 and 1, which are bytes here: no template prints those.
    let both =
        config(json!({ "tokenizer_class": class, "bos_token": "<s>", "eos_token": { "content": "<|im_end|>" } }));
    assert_eq!(found(&[plain(), both.clone()]), expect(Some("<s>"), Some("<|im_end|>")));
    let other = map(json!({ "bos_token": "</s>", "eos_token": "</s>", "unk_token": "<s>" }));
    assert_eq!(found(&[plain(), both.clone(), other.clone()]), expect(Some("<s>"), Some("<|im_end|>")));
    let half = config(json!({ "tokenizer_class": class, "bos_token": null }));
    assert_eq!(found(&[plain(), half.clone(), other.clone()]), expect(None, Some("</s>")));
    assert_eq!(found(&[plain(), half.clone()]), expect(None, None));
    let nothing = config(json!({ "tokenizer_class": class }));
    assert_eq!(found(&[plain(), nothing.clone(), map(json!({ "eos_token": null }))]), expect(None, None));
    // Then the tokenizer: its class, where its vocabulary has them, and what it puts around a text.
    assert_eq!(found(&[plain()]), expect(Some("<s>"), Some("</s>")));
    assert_eq!(found(&[plain(), config(json!({ "tokenizer_class": "Qwen2TokenizerFast" }))]), expect(None, None));
    let mut around = tokenizer_json(&[]);
    let piece = |id: &str| json!({ "SpecialToken": { "id": id, "type_id": 0 } });
    around["post_processor"] = json!({ "type": "Sequence", "processors": [{
        "type": "TemplateProcessing", "pair": [],
        "single": [piece("<s>"), { "Sequence": { "id": "A", "type_id": 0 } }, piece("<|im_end|>")],
        "special_tokens": { "<s>": { "id": "<s>", "ids": [256], "tokens": ["<s>"] },
                            "<|im_end|>": { "id": "<|im_end|>", "ids": [258], "tokens": ["<|im_end|>"] } } }] });
    assert_eq!(found(&[("tokenizer.json", around.clone()), nothing]), expect(Some("<s>"), Some("<|im_end|>")));
    assert_eq!(found(&[("tokenizer.json", around), half]), expect(None, Some("<|im_end|>")));
    // What a template prints is found again as one token.
    let data = text_of(&[("tokenizer.json", tokenizer_json(&[])), both]).unwrap();
    let chat = ChatTemplate::new("{{ bos_token }}{{ messages[0].content + eos_token }}", data.special_tokens).unwrap();
    let prompt = chat.render(&[Message::new("user", "a")], true).unwrap();
    assert_eq!(prompt, "<s>a<|im_end|>");
    let ids = Tokenizer::from_json(&data.json).unwrap().encode(&prompt, false).unwrap();
    assert_eq!(ids, [256, u32::from(b'a'), 258]);
}

#[test]
fn added_tokens_of_other_files_are_tokens() {
    let few = || ("tokenizer.json", tokenizer_json(&[(256, "<s>")]));
    let token = |text: &str, special: bool| json!({ "content": text, "special": special, "lstrip": false });
    let encode = |files: &[(&str, Value)], text: &str| {
        let tokenizer = Tokenizer::from_json(&text_of(files).unwrap().json).unwrap();
        let ids = tokenizer.encode(text, false).unwrap();
        let shown = tokenizer.decode(&ids, true).unwrap();
        (ids, shown)
    };
    let decoder = (
        "tokenizer_config.json",
        json!({ "added_tokens_decoder": {
        "260": token("<b>", false), "256": token("<s>", true), "259": token("<a>", true) } }),
    );
    assert_eq!(encode(&[few(), decoder.clone()], "<a><b>x<s>"), (vec![259, 260, 120, 256], "<b>x".into()));
    // Of the vocabulary, but known to be special from that file alone.
    let flags = ("tokenizer_config.json", json!({ "added_tokens_decoder": { "258": token("<|im_end|>", true) } }));
    assert_eq!(encode(&[few(), flags], "x<|im_end|>"), (vec![120, 258], "x".into()));
    let list = ("added_tokens.json", json!({ "<d>": 260, "<c>": 259, "</s>": 257 }));
    assert_eq!(encode(&[few(), list.clone()], "</s><c><d>").0, [257, 259, 260]);
    let named = ("tokenizer_config.json", json!({ "eos_token": "<c>", "additional_special_tokens": ["<d>"] }));
    assert_eq!(encode(&[few(), list.clone(), named], "x<c>y<d>"), (vec![120, 259, 121, 260], "xy".into()));
    // Nothing to add: the file stays as it is.
    let full = tokenizer_json(&[(256, "<s>"), (257, "</s>")]);
    assert_eq!(text_of(&[("tokenizer.json", full.clone())]).unwrap().json, full.to_string().into_bytes());
    // An id that the tokenizer would not give is said, not changed.
    let gap = ("added_tokens.json", json!({ "<e>": 300 }));
    let error = text_of(&[few(), gap]).unwrap_err().to_string();
    assert!(["tokenizer.json", "<e>", "300", "259"].iter().all(|part| error.contains(part)), "{error}");
    for wrong in [
        json!({ "added_tokens_decoder": { "x": token("<a>", true) } }),
        json!({ "added_tokens_decoder": { "259": "<a>" } }),
    ] {
        assert!(
            text_of(&[few(), ("tokenizer_config.json", wrong)])
                .unwrap_err()
                .to_string()
                .contains("added_tokens_decoder.")
        );
    }
}

#[test]
fn gguf_templates_print_what_the_ids_name() {
    let mut writer = tiny_llama();
    // The first of the ids that end a text is another one.
    writer.u32("tokenizer.ggml.eot_token_id", 256).u32("tokenizer.ggml.bos_token_id", 257);
    writer.string("tokenizer.chat_template", "{{ bos_token }}|{{ eos_token }}");
    let data = open_gguf(&writer).unwrap().tokenizer.unwrap();
    let chat = ChatTemplate::new(&data.chat_template.unwrap(), data.special_tokens).unwrap();
    assert_eq!(chat.render(&[], true).unwrap(), "hel|<|im_end|>");
}

fn open_gguf(writer: &GgufWriter) -> Result<Checkpoint, FrontendError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, writer.bytes()).unwrap();
    Checkpoint::open(&path, WeightSource::Files)
}

#[test]
fn rope_scales_as_llama_cpp_reads_it() {
    let rope = |change: &dyn Fn(&mut GgufWriter)| {
        let mut writer = tiny_llama();
        change(&mut writer);
        open_gguf(&writer).map(|c| kind(&c)).map_err(|e| e.to_string())
    };
    const TYPE: &str = "llama.rope.scaling.type";
    const FACTOR: &str = "llama.rope.scaling.factor";
    const OLD: &str = "llama.rope.scale_linear";
    let linear = |factor| Ok(RopeKind::Linear { factor });
    assert_eq!(rope(&|_| ()), Ok(RopeKind::Default));
    assert_eq!(rope(&|w| _ = w.f32(FACTOR, 4.0)), linear(4.0));
    assert_eq!(rope(&|w| _ = w.f32(FACTOR, 4.0).string(TYPE, "linear")), linear(4.0));
    assert_eq!(rope(&|w| _ = w.f32(OLD, 2.0)), linear(2.0));
    assert_eq!(rope(&|w| _ = w.f32(OLD, 2.0).f32(FACTOR, 4.0)), linear(4.0));
    assert_eq!(rope(&|w| _ = w.f32(OLD, 2.0).f32(FACTOR, 0.0)), Ok(RopeKind::Default));
    assert_eq!(rope(&|w| _ = w.f32(FACTOR, 4.0).string(TYPE, "none")), Ok(RopeKind::Default));
    assert_eq!(rope(&|w| _ = w.f32(FACTOR, 1.0).string(TYPE, "linear")), Ok(RopeKind::Default));
    let yarn = rope(&|w| _ = w.f32(FACTOR, 4.0).string(TYPE, "yarn")).unwrap();
    assert!(matches!(yarn, RopeKind::Yarn { factor: 4.0, beta_fast: 32.0, truncate: true, .. }), "{yarn:?}");
    assert!(rope(&|w| _ = w.string(TYPE, "spiral")).unwrap_err().contains("spiral"));
    assert!(rope(&|w| _ = w.f32(FACTOR, -4.0)).unwrap_err().contains("factor -4"));
    let values = [1.0f32, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0];
    let divisors = |w: &mut GgufWriter| {
        w.tensor("rope_freqs.weight", DType::F32, &[8]);
        w.named("rope_freqs.weight").data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    };
    assert_eq!(rope(&divisors), Ok(RopeKind::Divided(values.map(f64::from).to_vec())));
    // Some of the writer's own numbers are below zero.
    let negative = rope(&|w| _ = w.tensor("rope_freqs.weight", DType::F32, &[8]));
    assert!(negative.unwrap_err().contains("a divisor -0.39"));
    let both = rope(&|w| {
        divisors(w);
        w.f32(FACTOR, 4.0);
    });
    assert!(both.unwrap_err().contains("rope_freqs.weight"));
    // A part of a head, which llama.cpp rotates whatever the architecture.
    let mut writer = tiny_llama();
    writer.u32("llama.rope.dimension_count", 8);
    assert_eq!(open_gguf(&writer).unwrap().config.layers()[0].attention.rope.rotary_dim, 8);
    let error = rope(&|w| _ = w.u32("llama.rope.dimension_count", 7)).unwrap_err();
    assert!(error.contains("llama.rope.dimension_count"), "{error}");
}

/// The error, or the config, of the tiny llama with an edited `config.json`.
fn with_config(edit: impl FnOnce(&mut Value)) -> Result<Checkpoint, String> {
    let dir = directory(&[]);
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    Checkpoint::open(dir.path(), WeightSource::Random { seed: 1 }).map_err(|e| e.to_string())
}

/// The rope scaling of the first layer.
fn kind(checkpoint: &Checkpoint) -> RopeKind {
    checkpoint.config.layers()[0].attention.rope.kind.clone()
}

/// Llama rotates whole heads, whatever the factor says, as in transformers; Phi-3 rotates a part.
#[test]
fn a_part_of_a_head_is_rotated_by_families_that_do() {
    for place in ["/rope_parameters", ""] {
        let set = |part: f64| {
            with_config(|c| {
                let object = c.pointer_mut(place).unwrap();
                object["partial_rotary_factor"] = part.into();
            })
        };
        for part in [0.5, 1.0] {
            assert_eq!(set(part).unwrap().config.layers()[0].attention.rope.rotary_dim, 16, "{place} {part}");
        }
    }
    let linear =
        with_config(|c| c["rope_parameters"] = json!({ "rope_type": "linear", "rope_theta": 1e4, "factor": 4.0 }));
    assert_eq!(kind(&linear.unwrap()), RopeKind::Linear { factor: 4.0 });
    let scaled = with_config(|c| {
        c["rope_parameters"] =
            json!({ "rope_type": "linear", "rope_theta": 1e4, "factor": 4.0, "partial_rotary_factor": 0.5 });
    });
    let error = scaled.unwrap_err();
    assert!(error.contains("partial_rotary_factor") && error.contains("partial rotary"), "{error}");
    let phi = |c: &mut Value| {
        c["model_type"] = "phi3".into();
        c["rope_parameters"]["partial_rotary_factor"] = 0.75.into();
    };
    assert_eq!(with_config(phi).unwrap().config.layers()[0].attention.rope.rotary_dim, 12);
    assert!(with_config(|c| c["rope_parameters"] = json!({ "rope_type": "linear" })).unwrap_err().contains("factor"));
}

type Tensors = BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>;

/// A copy of a fixture with edited tensors.
fn edited(model: &str, edit: impl FnOnce(&mut Tensors)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "generation_config.json"] {
        std::fs::copy(fixture(model).join(name), dir.path().join(name)).unwrap();
    }
    let bytes = std::fs::read(fixture(model).join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Tensors = file
        .tensors()
        .into_iter()
        .map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect();
    edit(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    std::fs::write(dir.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    dir
}

fn scale(data: &mut [u8], by: f32) {
    for chunk in data.as_chunks_mut::<4>().0 {
        *chunk = (f32::from_le_bytes(*chunk) * by).to_le_bytes();
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";

#[test]
fn an_output_projection_of_its_own_is_used_though_the_config_ties_it() {
    let model = "llama_tied_llama3_rope";
    let tied = |edit: &dyn Fn(&mut Tensors)| {
        let dir = edited(model, edit);
        let checkpoint = Checkpoint::open(dir.path(), WeightSource::Files).unwrap();
        checkpoint.config.decoder.as_ref().unwrap().tied_embeddings
    };
    assert!(tied(&|_| ()));
    let copy = |t: &mut Tensors| t["model.embed_tokens.weight"].clone();
    assert!(tied(&|t| {
        let table = copy(t);
        t.insert("lm_head.weight".into(), table);
    }));
    assert!(tied(&|t| {
        let table = t.remove(EMBEDDING).unwrap();
        t.insert("lm_head.weight".into(), table);
    }));
    assert!(!tied(&|t| {
        let mut table = copy(t);
        scale(&mut table.2, 1.5);
        t.insert("lm_head.weight".into(), table);
    }));
}

/// Runs `weldment` in `dir` with a cache of its own; gives exit code and stderr.
fn weldment(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weldment"));
    command.args(arguments).current_dir(dir).env("XDG_CACHE_HOME", dir.join("cache")).env("NO_COLOR", "1");
    let out = command.output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

const SMALL: [&str; 4] = ["--dim", "tokens=1..16", "--max-seq", "32"];

#[test]
fn logits_that_are_nan_fail_and_name_the_op() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("ids.json"), "[5, 6, 7]").unwrap();
    let logits = place.path().join("l.safetensors");
    let eval = |model: &Path, more: &[&str]| {
        let _ = std::fs::remove_file(&logits);
        let head = ["eval", model.to_str().unwrap(), "--tokens", "ids.json", "--logits", "l.safetensors"];
        let found = weldment(place.path(), &[&head[..], &SMALL, more].concat());
        assert!(logits.exists(), "{found:?}");
        let left: Vec<_> = std::fs::read_dir(place.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains(".values")), "{left:?}");
        found
    };
    // Sums that pass 65504 in the second layer.
    let large = edited("llama", |t| {
        scale(&mut t.get_mut("model.layers.1.mlp.down_proj.weight").unwrap().2, 1e3);
        scale(&mut t.get_mut("model.layers.1.mlp.up_proj.weight").unwrap().2, 1e3);
    });
    for more in [&[][..], &["--stepwise"]] {
        let (code, said) = eval(large.path(), &[&["--dtype", "f16"], more].concat());
        assert_eq!(code, Some(1), "{said}");
        for part in ["NaN", "layers.1.mlp.", "--dtype bf16", "f32 would hold"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    assert_eq!(eval(large.path(), &["--dtype", "f32"]).0, Some(0));
    let broken = edited("llama", |t| {
        t.get_mut("model.layers.1.self_attn.o_proj.weight").unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let (code, said) = eval(broken.path(), &[]);
    assert_eq!(code, Some(1), "{said}");
    for part in ["layers.1.self_attn.o_proj", "no --dtype would hold", "model.layers.1.self_attn.o_proj.weight"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_weights_file_that_is_named_is_looked_at_though_a_pack_is_cached() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("ids.json"), "[5, 6, 7]").unwrap();
    let model = edited("llama", |_| ());
    let good = model.path().to_str().unwrap();
    let (code, said) = weldment(place.path(), &[&["compile", good, "-o", "m.weld"][..], &SMALL].concat());
    assert_eq!(code, Some(0), "{said}");
    let eval = |weights: &str| {
        weldment(
            place.path(),
            &["eval", "m.weld", "--tokens", "ids.json", "--logits", "l.safetensors", "--weights-file", weights],
        )
    };
    assert_eq!(eval(good).0, Some(0));
    assert!(std::fs::read_dir(place.path().join("cache/weldment/packs")).unwrap().count() > 0);
    assert_eq!(eval(good).0, Some(0));
    let file = model.path().join("model.safetensors");
    assert_eq!(eval(file.to_str().unwrap()).0, Some(0));
    let (code, said) = eval("absent.safetensors");
    assert!(code == Some(2) && said.contains("absent.safetensors"), "{code:?} {said}");
    // The same size, other content; then another size; then right again.
    let bytes = std::fs::read(&file).unwrap();
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(&file, &other).unwrap();
    let (code, said) = eval(good);
    assert!(code == Some(2) && said.contains("differs"), "{code:?} {said}");
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(eval(good).0, Some(2));
    std::fs::write(&file, &bytes).unwrap();
    assert_eq!(eval(good).0, Some(0));
    // Without a name nothing has to be there: the pack is enough.
    std::fs::remove_file(&file).unwrap();
    let (code, said) = weldment(place.path(), &["eval", "m.weld", "--tokens", "ids.json", "--logits", "l.safetensors"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(eval(good).0, Some(2));
}
