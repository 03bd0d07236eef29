//! `weldment verify` from outside: regions of models, chaos, fuel, and artifacts in which something was planted.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use weldment_runtime::Artifact;
use weldment_runtime::artifact::{Manifest, Region, write_artifact};

const SMALL: [&str; 6] = ["--dim", "tokens=1..32", "--dim", "seqs=1..2", "--max-seq", "64"];

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        std::fs::write(place.path("ids.json"), "[5, 6, 7, 8, 9, 10]").unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Exit code, stdout and stderr.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weldment"));
        command.args(arguments).current_dir(self.0.path()).env("XDG_CACHE_HOME", self.path("cache"));
        let out = command.env("NO_COLOR", "1").output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (out.status.code(), text(out.stdout), text(out.stderr))
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.run(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {out}\n{err}");
        out
    }

    /// Compiles a fixture with its weights inside.
    fn compile(&self, model: &str, more: &[&str]) {
        let model = fixture(model);
        let line = ["compile", model.as_str(), "-o", "m.weld", "--weights", "embed"];
        self.ok(&[line.as_slice(), &SMALL, more].concat());
    }

    /// Writes `bad.weld`: the artifact with its manifest or its weights changed.
    fn plant(&self, change: impl FnOnce(&mut Manifest, &mut Vec<u8>)) {
        let artifact = Artifact::open(self.path("m.weld")).unwrap();
        let mut manifest = artifact.manifest().clone();
        let names: Vec<String> = manifest.sections.iter().map(|s| s.name.clone()).collect();
        let mut bytes: Vec<Vec<u8>> = names.iter().map(|n| artifact.section(n).unwrap().to_vec()).collect();
        let weights = names.iter().position(|n| n == "weights").unwrap();
        change(&mut manifest, &mut bytes[weights]);
        let sections: Vec<(&str, &[u8])> =
            names.iter().map(String::as_str).zip(bytes.iter().map(Vec::as_slice)).collect();
        write_artifact(&self.path("bad.weld"), manifest, &sections).unwrap();
    }

    /// What `verify --tokens` says of the planted artifact: its first difference.
    #[track_caller]
    fn first_difference(&self, model: &str) -> Value {
        let model = fixture(model);
        let line = ["verify", "bad.weld", "--tokens", "ids.json", "--source", model.as_str(), "--json"];
        let (code, out, err) = self.run(&line);
        assert_eq!(code, Some(1), "{out}\n{err}");
        let value: Value = serde_json::from_str(&out).unwrap();
        let first = value["first"].clone();
        assert!(first.is_object(), "{value:#}");
        assert!(err.contains(first["paths"][0].as_str().unwrap()), "{err}");
        first
    }
}

fn fixture(model: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny").join(model);
    path.canonicalize().unwrap().to_string_lossy().into_owned()
}

#[test]
fn every_fused_region_of_a_model_holds() {
    let place = Place::new();
    for (model, more) in [("llama", &[][..]), ("qwen3", &["--dtype", "bf16"]), ("qwen2", &["--fp-policy", "reassoc"])] {
        let model = fixture(model);
        let line = [["verify", model.as_str(), "--json", "--chaos", "2"].as_slice(), &SMALL, more].concat();
        let value: Value = serde_json::from_str(&place.ok(&line)).unwrap();
        assert_eq!(value["failed"].as_array().map(Vec::len), Some(0));
        let variants = value["variants"].as_array().unwrap();
        assert_eq!(variants.len(), 2);
        for variant in variants {
            let regions = variant["regions"].as_array().unwrap();
            let fused = |op: &str| regions.iter().any(|r| r["ops"].as_array().unwrap().iter().any(|o| o == op));
            assert!(fused("matmul_silu_mul") && fused("rope_cache_write"), "{variant:#}");
            // Layers of one shape are one row.
            assert!(regions.iter().any(|r| r["places"].as_u64() > Some(1)), "{variant:#}");
        }
    }
}

#[test]
fn artifacts_are_rebuilt_from_what_they_record() {
    let place = Place::new();
    place.compile("llama", &["--disable", "silu_mul", "--chaos", "7"]);
    let model = fixture("llama");
    let regions = place.ok(&["verify", "m.weld", "--source", model.as_str()]);
    assert!(regions.contains("rope_cache_write") && !regions.contains("silu_mul"), "{regions}");
    assert!(!regions.contains("chaos"), "{regions}");
    let out = place.ok(&["verify", "m.weld", "--tokens", "ids.json", "--every-launch", "--source", model.as_str()]);
    assert!(out.contains("launches compared, all as the interpreter has them"), "{out}");
    // Another model's artifact is not this one's.
    let other = fixture("qwen3");
    let (code, _, err) = place.run(&["verify", "m.weld", "--tokens", "ids.json", "--source", other.as_str()]);
    assert_eq!(code, Some(2), "{err}");
    let (code, _, err) = place.run(&["verify", model.as_str(), "--tokens", "ids.json"]);
    assert!(code == Some(2) && err.contains("--tokens"), "{err}");
}

#[test]
fn a_swapped_argument_is_named() {
    let place = Place::new();
    place.compile("llama", &[]);
    place.plant(|manifest, _| {
        let sources = manifest.sources.clone();
        for variant in &mut manifest.programs[0].entries[0].variants {
            let attends = |l: &&mut weldment_runtime::artifact::Launch| {
                sources[l.source as usize].iter().any(|s| s == "layers.1.self_attn.attention")
            };
            for launch in variant.launches.iter_mut().filter(attends) {
                let states: Vec<usize> =
                    (0..launch.args.len()).filter(|i| matches!(launch.args[*i].region, Region::State(_))).collect();
                assert_eq!(states.len(), 2);
                launch.args.swap(states[0], states[1]);
            }
        }
    });
    let first = place.first_difference("llama");
    assert_eq!(first["paths"][0], "layers.1.self_attn.attention");
    assert_eq!(first["op"], "attention");
}

#[test]
fn artifacts_of_several_ranks_are_stepped_through() {
    let place = Place::new();
    let llama = fixture("llama");
    for more in [&["--tp", "2"][..], &["--tp", "2", "--set", "token_splits=2", "--set", "all_reduce=2"]] {
        place.compile("llama", more);
        let line = ["verify", "m.weld", "--tokens", "ids.json", "--every-launch", "--source", llama.as_str()];
        let out = place.ok(&line);
        assert!(out.contains("launches compared, all as the interpreter has them"), "{out}");
    }
    // The norm that a fused all-reduce gives is handed on in place of its sum.
    place.plant(|manifest, _| {
        let sources = manifest.sources.clone();
        for variant in &mut manifest.programs[0].entries[0].variants {
            let of = |l: &&mut weldment_runtime::artifact::Launch| {
                let sums = l.args.iter().any(|a| matches!(a.region, Region::Slab));
                sums && sources[l.source as usize].iter().any(|s| s.starts_with("layers.1."))
            };
            for launch in variant.launches.iter_mut().filter(of) {
                let written: Vec<usize> =
                    (0..launch.args.len()).filter(|i| matches!(launch.args[*i].region, Region::Arena)).collect();
                let [.., first, second] = written[..] else { panic!("{:?}", launch.args) };
                launch.args.swap(first, second);
            }
        }
    });
    let first = place.first_difference("llama");
    assert!(first["op"].as_str().unwrap().starts_with("all_reduce"), "{first:#}");
    assert!(
        first["paths"].as_array().unwrap().iter().any(|p| p.as_str().unwrap().starts_with("layers.1.")),
        "{first:#}"
    );
}

#[test]
fn a_changed_weight_is_named() {
    for (model, place_of) in [("llama", "layers.1.mlp.down_proj"), ("qwen2", "layers.0.self_attn.o_proj")] {
        let place = Place::new();
        place.compile(model, &[]);
        place.plant(|manifest, weights| {
            let tensors = &manifest.weights.tensors;
            let holds = |index: &u32| {
                let name = tensors[*index as usize].name.as_str();
                name.contains(place_of) && name.ends_with("weight")
            };
            let item = manifest.programs[0].pack.items.iter().find(|item| item.tensors.iter().any(holds)).unwrap();
            let at = item.offset as usize;
            weights[at..at + 4].copy_from_slice(&64f32.to_le_bytes());
        });
        let first = place.first_difference(model);
        assert!(first["paths"].as_array().unwrap().iter().any(|p| p == place_of), "{first:#}");
        assert!(first["types"].as_str().unwrap().contains("->") && first["apart"].as_f64() > first["bound"].as_f64());
    }
}

#[test]
fn fuel_is_counted_and_nothing_breaks_a_sound_model() {
    let place = Place::new();
    let model = fixture("llama");
    let out = place.ok(&[["verify", model.as_str(), "--bisect-fuel"].as_slice(), &SMALL].concat());
    assert_eq!(out.matches("no rewrite breaks a region").count(), 2, "{out}");
    let none = place.ok(&[["verify", model.as_str(), "--fuel", "0"].as_slice(), &SMALL].concat());
    assert!(none.contains(": 0 fused regions"), "{none}");
}

/// A line without its figures.
fn shape_of(line: &str) -> String {
    let figure = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-');
    let words = line.split_whitespace().map(|w| {
        if w.starts_with(|c: char| c.is_ascii_digit()) && w.chars().all(|c| figure(c) || c == 'e') { "#" } else { w }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn the_page_shows_what_the_commands_print() {
    let place = Place::new();
    std::os::unix::fs::symlink(fixture("llama"), place.path("model")).unwrap();
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/verify.md")).unwrap();
    let (mut commands, mut printed) = (0, Vec::new());
    for line in page.lines().filter_map(|l| l.strip_prefix("    ")) {
        if let Some(command) = line.strip_prefix("$ weldment ") {
            let out = place.ok(&command.split_whitespace().collect::<Vec<_>>());
            printed = out.lines().map(shape_of).collect();
            commands += 1;
        } else if line != "..." {
            assert!(printed.contains(&shape_of(line)), "{line}\nis not printed:\n{}", printed.join("\n"));
        }
    }
    assert!(commands >= 7, "{commands}");
}

#[test]
fn text_graphs_take_chaos_and_fuel() {
    let place = Place::new();
    let mlp = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/mlp.wir");
    let mlp = mlp.to_string_lossy();
    let fused = place.ok(&["opt", &mlp]);
    assert_eq!(place.ok(&["opt", &mlp, "--chaos", "5"]), fused);
    let plain = place.ok(&["opt", &mlp, "--passes", "compact"]);
    assert_eq!(place.ok(&["opt", &mlp, "--fuel", "0"]).matches(" = ").count(), plain.matches(" = ").count());
    assert_ne!(fused.matches(" = ").count(), plain.matches(" = ").count());
    assert!(place.ok(&["verify", &mlp]).contains("fused regions"));
}
