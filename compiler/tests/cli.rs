//! The command line from outside: a tiny model compiled, run, evaluated against transformers' logits, inspected, compared.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[allow(dead_code, reason = "its main is for `cargo run --example`")]
#[path = "../../examples/embed.rs"]
mod embed;

/// A folder for outputs and an own cache.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        // Cargo puts weldmentc beside weldment.
        let mut command = Command::new(env!("CARGO_BIN_EXE_weldment"));
        command.args(arguments).current_dir(self.dir.path()).env("XDG_CACHE_HOME", self.path("cache"));
        command.env("NO_COLOR", "1").output().unwrap()
    }

    /// Runs a command that must succeed and gives its stdout.
    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let out = self.run(arguments);
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs a command that must fail with `code` and gives its stderr.
    #[track_caller]
    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let out = self.run(arguments);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
        text
    }
}

fn fixture(model: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny").join(model);
    path.canonicalize().unwrap().to_string_lossy().into_owned()
}

const SMALL: [&str; 6] = ["--dim", "tokens=1..64", "--dim", "seqs=1..2", "--max-seq", "64"];

fn logits(path: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn compile(place: &Place, model: &str, output: &str, more: &[&str]) -> String {
    let model = fixture(model);
    let head = ["compile", model.as_str(), "-o", output];
    place.ok(&[head.as_slice(), &SMALL, more].concat())
}

#[test]
fn goldens_hold_in_artifacts() {
    let of = |model: &'static str| (model, model);
    let directories =
        ["llama", "llama_tied_llama3_rope", "qwen2", "qwen3", "llama_sharded", "llama_tied_legacy_config"];
    let windowed = ["mistral", "phi3", "granite", "olmo2", "gemma3", "phi3_longrope_long"];
    let files = [
        ("mistral", "mistral/model.gguf"),
        ("phi3", "phi3/model.gguf"),
        ("gemma3_scalar16", "gemma3_scalar16/model.gguf"),
    ];
    for (name, model) in directories.map(of).into_iter().chain(windowed.map(of)).chain(files) {
        let place = Place::new();
        compile(&place, model, "m.weld", &[]);
        is_golden(&place, name, &fixture(model));
    }
}

/// `m.weld` with these weights gives the logits of the tiny model's golden file, as a prefill and step by step.
#[track_caller]
fn is_golden(place: &Place, model: &str, weights: &str) {
    let golden = format!("{}/golden.safetensors", fixture(model));
    let expected = logits(Path::new(&golden), "logits");
    for more in [&[][..], &["--stepwise"]] {
        let head = ["eval", "m.weld", "--tokens", &golden, "--logits", "out.safetensors", "--weights-file", weights];
        place.ok(&[head.as_slice(), more].concat());
        let found = logits(&place.path("out.safetensors"), "logits");
        assert_eq!(found.len(), expected.len());
        let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-3, "{weights} {more:?}: {apart}");
    }
}

/// Blocks of the cache may have any number of positions.
#[test]
fn caches_have_blocks_of_any_size() {
    for block in ["1", "5", "8", "32", "64", "100"] {
        let place = Place::new();
        compile(&place, "mistral", "m.weld", &["--kv-block", block]);
        is_golden(&place, "mistral", &fixture("mistral"));
    }
    let model = fixture("mistral");
    assert!(Place::new().fails(2, &["compile", &model, "--kv-block", "0"]).contains("1 to 65536"));
}

/// A choice of kernels may be fixed for some ops alone.
#[test]
fn choices_are_fixed_for_ops_that_are_named() {
    let place = Place::new();
    let tiles = |set: &str| {
        compile(&place, "llama", "m.weld", &["--set", set, "--emit", "tile"]);
        std::fs::read_to_string(place.path("host.tile")).unwrap()
    };
    let (all, one, none) = (tiles("gemm_rows=2"), tiles("gemm_rows@layers.0.mlp.*=2"), tiles("gemm_rows@layers.9.*=2"));
    assert!(all != one && one != none && all != none);
    let model = fixture("llama");
    let message = place.fails(2, &["compile", &model, "--set", "token_splits@matmul=1"]);
    assert!(message.contains("gemm_rows or"), "{message}");
}

/// Rope scaling that depends on how long sequences get is fixed by --max-seq, which is said.
#[test]
fn frequencies_that_max_seq_decides_are_told() {
    let place = Place::new();
    let line = |model: &str, max_seq: &'static str| {
        let model = fixture(model);
        let out = place.run(&["compile", &model, "--max-seq", max_seq, "-o", "m.weld"]);
        assert!(out.status.success());
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    assert!(line("phi3_longrope_long", "64").contains("the long factors are used, since --max-seq 64 is over"));
    assert!(line("phi3_longrope_short", "16").contains("the short factors are used"));
    assert!(line("llama_dynamic_inside", "32").contains("frequencies are those of"));
    assert!(!line("llama_linear", "32").contains("rope scaling"));
}

#[test]
fn a_model_is_compiled_once_and_then_found_in_the_cache() {
    let place = Place::new();
    std::fs::write(place.path("ids.json"), "[5, 6, 7]").unwrap();
    let model = fixture("llama");
    let line = ["run", model.as_str(), "--tokens", "ids.json", "--max-tokens", "4", "--ignore-eos"];
    let first = place.ok(&[line.as_slice(), &SMALL].concat());
    assert_eq!(first.split_whitespace().count(), 4, "{first}");
    let artifacts = || std::fs::read_dir(place.path("cache/weldment/artifacts")).unwrap().count();
    assert_eq!(artifacts(), 1);
    assert_eq!(place.ok(&[line.as_slice(), &SMALL].concat()), first);
    assert_eq!(artifacts(), 1);
    let interpreted = place.ok(&[line.as_slice(), &SMALL, &["--interpret"]].concat());
    assert_eq!(interpreted.split_whitespace().collect::<Vec<_>>(), first.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn artifacts_do_not_depend_on_places_or_threads() {
    let (a, b) = (Place::new(), Place::new());
    compile(&a, "llama", "m.weld", &["--threads", "1"]);
    compile(&b, "llama", "m.weld", &["--threads", "2"]);
    assert_eq!(std::fs::read(a.path("m.weld")).unwrap(), std::fs::read(b.path("m.weld")).unwrap());
    let other = b.path("m.weld").to_string_lossy().into_owned();
    assert_eq!(a.ok(&["diff", "m.weld", &other]), "");
    compile(&b, "qwen3", "m.weld", &[]);
    assert!(a.fails(1, &["diff", "m.weld", &other]).contains("differ"));
}

#[test]
fn reports_requirements_and_forms() {
    let place = Place::new();
    let model = fixture("llama");
    let text = compile(
        &place,
        "llama",
        "m.weld",
        &["--require", "add_rms_norm=all", "--emit", "ir,fused,tile,llvm,asm,object"],
    );
    assert!(text.contains("add_rms_norm"), "{text}");
    for name in ["model.wir", "host.decode.wir", "host.tile", "host.ll", "host.s", "host.o"] {
        assert!(place.path(name).is_file(), "{name}");
    }
    let stored = place.ok(&["explain", "m.weld", "--format", "json"]);
    let fresh = place.ok(&[["explain", model.as_str(), "--format", "json"].as_slice(), &SMALL].concat());
    assert_eq!(stored, fresh);
    let text = |model: &[&str]| place.ok(&[&["explain"], model].concat());
    let cold = [[model.as_str()].as_slice(), &SMALL].concat();
    assert_eq!(text(&["m.weld"]), text(&cold), "a warm start says what a cold one does");
    assert!(text(&["m.weld"]).contains("silu_mul"), "{}", text(&["m.weld"]));
    // One place, in both forms.
    let here = place.ok(&["explain", "m.weld", "layers.0.mlp"]);
    assert!(here.contains("matmul_silu_mul by silu_mul, matmul_silu_mul: saves 3 launches"), "{here}");
    let here = place.ok(&["explain", "m.weld", "layers.0.mlp", "--format", "json"]);
    let here: serde_json::Value = serde_json::from_str(&here).unwrap();
    let decode = &here["decode"];
    assert_eq!(decode["path"], "layers.0.mlp");
    assert!(decode["nodes"].as_array().is_some_and(|n| !n.is_empty()), "{decode}");
    assert!(decode["launches_saved"].as_i64().is_some_and(|n| n > 0), "{decode}");
    let wrong = place.fails(2, &["explain", "m.weld", "layers.0.mpl"]);
    assert!(wrong.contains("layers.0.mlp"), "{wrong}");
    assert!(place.ok(&["inspect", "m.weld", "kernels"]).contains("matmul"));
    let failed =
        [["compile", model.as_str(), "-o", "n.weld", "--require", "add_rms_norm=999"].as_slice(), &SMALL].concat();
    let failed = place.fails(1, &failed);
    assert!(failed.contains("999") && failed.contains("decode"), "{failed}");
    for wrong in ["add_rms_norm", "no_such_fusion=1", "add_rms_norm>=all", "add_rms_norm=many"] {
        let failed = [["explain", model.as_str(), "--require", wrong].as_slice(), &SMALL].concat();
        let said = place.fails(2, &failed);
        assert!(said.contains(wrong.split(['=', '>']).next().unwrap_or_default()), "{said}");
    }
    assert!(!place.path("n.weld").exists());
    assert!(place.ok(&[["verify", model.as_str()].as_slice(), &SMALL].concat()).contains("ring equal"));
}

#[test]
fn a_difference_is_told_by_option_place_and_reason() {
    let place = Place::new();
    compile(&place, "llama", "a.weld", &[]);
    compile(&place, "llama", "b.weld", &["--disable", "silu_mul"]);
    let shown = place.run(&["diff", "a.weld", "b.weld"]);
    assert_eq!(shown.status.code(), Some(1));
    let text = String::from_utf8(shown.stdout).unwrap();
    for part in [
        "disable: not given -> silu_mul",
        "variant decode",
        "launches: ",
        "lost: silu_mul at layers.0.mlp.act_fn and ",
        "switched off by --disable silu_mul",
        "kernels: ",
        "sections with other bytes: code.0, report",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let json = place.run(&["diff", "a.weld", "b.weld", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["same"], false);
    assert_eq!(json["options"][0]["b"], "silu_mul");
    let lost = json["variants"][0]["fusions"].as_array().unwrap();
    assert!(lost.iter().any(|f| f["fusion"] == "silu_mul" && f["change"] == "lost"), "{lost:?}");
    let same = place.ok(&["diff", "a.weld", "a.weld", "--json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&same).unwrap(), serde_json::json!({"same": true}));
}

#[test]
fn one_artifact_for_gpus_and_the_host() {
    let place = Place::new();
    let targets = ["--target", "gfx942,sm_90,x86-64-v3,gfx950", "--dtype", "bf16"];
    compile(&place, "llama", "a.weld", &targets);
    compile(&place, "llama", "b.weld", &[targets.as_slice(), &["--threads", "1"]].concat());
    assert!(std::fs::read(place.path("a.weld")).unwrap() == std::fs::read(place.path("b.weld")).unwrap());
    compile(&place, "llama", "b.weld", &[targets.as_slice(), &["--emit", "asm,llvm,object"]].concat());
    // Texts beside the code leave it as it is.
    assert!(std::fs::read(place.path("a.weld")).unwrap() == std::fs::read(place.path("b.weld")).unwrap());
    for name in ["gfx942.hsaco", "gfx942.s", "gfx950.ll", "gfx950.hsaco", "sm_90a.ptx", "x86-64-v3.o"] {
        assert!(place.path(name).is_file(), "{name}");
    }
    let programs: serde_json::Value =
        serde_json::from_str(&place.ok(&["inspect", "a.weld", "kernels", "--json"])).unwrap();
    let names: Vec<&str> = programs.as_array().unwrap().iter().filter_map(|p| p["target"].as_str()).collect();
    assert_eq!(names, ["gfx942", "sm_90a", "x86-64-v3", "gfx950"]);
    let kernel = &programs[0]["kernels"][0];
    assert!(kernel["threads"].as_u64() > Some(0) && kernel["resources"]["vgprs"].as_u64() > Some(0), "{kernel}");
    assert!(place.ok(&["inspect", "a.weld", "kernels"]).contains("occupancy"));
    assert!(place.ok(&["inspect", "a.weld", "graph"]).contains("gfx942 step variant 2"));
    assert!(place.ok(&["targets"]).contains("gfx90a"));
    let model = fixture("llama");
    let line = ["compile", model.as_str(), "-o", "c.weld", "--weights", "embed", "--target", "gfx942,host"];
    assert!(place.fails(2, &[line.as_slice(), &SMALL].concat()).contains("one target"));
}

#[test]
fn a_dumped_graph_compiles_again() {
    let place = Place::new();
    let model = fixture("llama");
    compile(&place, "llama", "a.weld", &["--emit", "ir"]);
    place.ok(&["compile", "model.wir", "--checkpoint", &model, "-o", "b.weld"]);
    std::fs::write(place.path("ids.json"), "[5, 6, 7]").unwrap();
    let run = |artifact: &str| {
        place.ok(&[
            "run",
            artifact,
            "--tokens",
            "ids.json",
            "--max-tokens",
            "4",
            "--ignore-eos",
            "--weights-file",
            &model,
        ])
    };
    assert_eq!(run("a.weld"), run("b.weld"));
}

#[test]
fn the_embedding_example_runs() {
    let place = Place::new();
    compile(&place, "llama", "m.weld", &["--weights", "embed"]);
    embed::generate(&place.path("m.weld")).unwrap();
}

#[test]
fn the_text_example_optimises() {
    let place = Place::new();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/mlp.wir");
    let example = example.to_string_lossy();
    let text = place.ok(&["opt", &example, "--passes", "fuse,bufferise"]);
    assert!(text.contains("matmul_silu_mul") && text.contains("epochs"), "{text}");
    std::fs::write(place.path("again.wir"), &text).unwrap();
    place.ok(&["opt", "again.wir"]);
}

/// Graphs at the edge of what a manifest can say compile, or are refused by their own fault: no artifact is called corrupt that
/// was never written.
#[test]
fn odd_graphs_are_never_a_corrupt_manifest() {
    let place = Place::new();
    let graph = |range: &str, ty: &str, op: &str| {
        format!(
            "graph @g (C: 1..8, P: 1..1, T: {range}) {{\n  %x = input {{name: \"x\", dtype: f32, shape: {ty}}} @ \"x\"\n  \
             %y = {op} @ \"y\"\n  output result \"y\" = %y\n}}\n"
        )
    };
    let cases = [
        (graph("1..4", "[T, 0]", "neg(%x)"), ""),
        (graph("1..4", "[]", "neg(%x)"), ""),
        (graph("1..4", "[T, 64]", "reshape(%x) {shape: [64, T]}"), ""),
        (graph("1..4", "[64, T]", "neg(%x)"), ""),
        (graph("1..1000000000000", "[T, 64]", "neg(%x)"), "T: 1..1000000000000; dims up to 2147483648 are accepted"),
    ];
    for (text, fault) in cases {
        std::fs::write(place.path("g.wir"), &text).unwrap();
        let out = place.run(&["compile", "g.wir", "--weights", "random:1", "-o", "g.weld"]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!said.contains("manifest") && !said.contains("panicked"), "{text}{said}");
        match fault.is_empty() {
            true => assert!(out.status.success(), "{text}{said}"),
            false => assert!(out.status.code() == Some(2) && said.contains(fault), "{text}{said}"),
        }
    }
}

#[test]
fn bad_usage_is_named() {
    let place = Place::new();
    let model = fixture("llama");
    for (arguments, expect) in [
        (&["compile", "/nowhere.gguf"][..], "/nowhere.gguf"),
        (&["compile", &model, "--target", "z80"], "z80"),
        (&["compile", &model, "--tp", "3"], "--tp 3: layers.0.self_attn.q_proj"),
        (&["compile", &model, "--tp", "0"], "--tp"),
        (&["compile", &model, "--tp", "65"], "1 to 64 ranks"),
        (&["compile", &model, "--max-seq", "99999999"], "--max-seq"),
        (&["compile", &model, "--disable", "nothing"], "nothing"),
        (&["compile", &model, "-o", "/nowhere/x.weld"], "/nowhere/x.weld"),
        (&["run", "m.weld", "--prompt", "x"], "m.weld"),
        (&["opt", "/nowhere.wir"], "/nowhere.wir"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let text = place.fails(2, arguments);
        assert!(text.contains(expect), "{arguments:?}: {text}");
    }
    assert_eq!(
        std::fs::read_dir(place.dir.path())
            .unwrap()
            .filter(|e| { e.as_ref().is_ok_and(|e| e.path().extension().is_some_and(|x| x == "weld" || x == "tmp")) })
            .count(),
        0
    );
}
