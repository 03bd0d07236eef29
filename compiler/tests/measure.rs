//! What is measured and recorded, from outside: ladders, comparisons, shapes of steps, choices that were fixed. Structure and
//! counts, not speed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use weldment_codegen::choices::Choices;
use weldment_passes::rules::GROUPS;

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

    fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weldment"));
        command.args(arguments).current_dir(self.dir.path()).env("XDG_CACHE_HOME", self.path("cache"));
        command.env("NO_COLOR", "1").envs(variables.iter().copied()).output().unwrap()
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let out = self.run(arguments, &[]);
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    #[track_caller]
    fn fails(&self, arguments: &[&str]) -> String {
        let out = self.run(arguments, &[]);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    #[track_caller]
    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap()
    }
}

fn fixture() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/llama");
    path.canonicalize().unwrap().to_string_lossy().into_owned()
}

const SMALL: [&str; 6] = ["--dim", "tokens=1..64", "--dim", "seqs=1..2", "--max-seq", "64"];
const WORKLOAD: [&str; 6] = ["--context", "40", "--prefill", "20", "--rounds", "2"];

#[test]
fn a_ladder_goes_from_everything_off_to_everything_on() {
    let place = Place::new();
    let model = fixture();
    let bench = [&["bench", &model, "--ladder", "--json", "--html", "ladder.html"][..], &SMALL, &WORKLOAD].concat();
    let ladder: Value = serde_json::from_str(&place.ok(&bench)).unwrap();
    assert_eq!(json!([ladder["batch"], ladder["context"], ladder["prefill"], ladder["rounds"]]), json!([1, 40, 20, 2]));
    let rungs = ladder["rungs"].as_array().unwrap();
    let names: Vec<&str> = rungs.iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names[..2], ["everything off", "+ rules of no fusion"]);
    let fusions: Vec<String> = GROUPS.iter().map(|g| format!("+ {g}")).collect();
    assert_eq!(names[2..], fusions);

    // The ends are what a report of the same model counts.
    let explain = [&["explain", &model, "--format", "json"][..], &SMALL].concat();
    let reports: Value = serde_json::from_str(&place.ok(&explain)).unwrap();
    assert_eq!(rungs[0]["launches"], reports["decode"]["launches_before"]);
    assert_eq!(rungs.last().unwrap()["launches"], reports["decode"]["launches_after"]);
    assert_eq!(rungs[0]["delta_percent"], Value::Null);
    for pair in rungs.windows(2) {
        let number = |name: &str| pair[1][name].as_f64().unwrap();
        assert!(number("ms_per_step") > 0.0 && number("tokens_per_second") > 0.0 && number("bytes_per_step") > 0.0);
        assert!(pair[1]["launches"].as_u64() <= pair[0]["launches"].as_u64(), "{pair:?}");
        let range: Vec<f64> = pair[1]["ms_range"].as_array().unwrap().iter().map(|m| m.as_f64().unwrap()).collect();
        assert!(range[0] <= number("ms_per_step") && number("ms_per_step") <= range[1]);
        if pair[1]["same"] == true {
            assert_eq!((&pair[1]["ms_per_step"], number("delta_percent")), (&pair[0]["ms_per_step"], 0.0));
        }
    }
    assert!(rungs.iter().any(|r| r["same"] == true) && rungs.iter().filter(|r| r["same"] == false).count() > 3);

    // The plot is in the page of the ladder, and in a report that is given the ladder.
    std::fs::write(place.path("ladder.json"), ladder.to_string()).unwrap();
    place
        .ok(&[&["explain", &model, "--format", "html", "--ladder", "ladder.json", "-o", "both.html"][..], &SMALL]
            .concat());
    for page in ["ladder.html", "both.html"] {
        let page = std::fs::read_to_string(place.path(page)).unwrap();
        assert_eq!(page.matches("<rect class=\"bar").count(), rungs.len());
        assert!(page.contains("<th scope=\"row\">+ silu_mul</th>") && page.contains("id=\"coverage\""));
    }
    std::fs::write(place.path("ladder.json"), "[]").unwrap();
    let said = place.fails(&["explain", &model, "--format", "html", "--ladder", "ladder.json"]);
    assert!(said.contains("ladder.json"), "{said}");
}

#[test]
fn one_pass_off_is_compared_with_everything_on() {
    let place = Place::new();
    let model = fixture();
    let line = [&["bench", &model, "--vs-disable", "rope_cache_write"][..], &SMALL, &WORKLOAD].concat();
    let ladder: Value = serde_json::from_str(&place.ok(&[&line[..], &["--json"]].concat())).unwrap();
    let rungs = ladder["rungs"].as_array().unwrap();
    assert_eq!(rungs.iter().map(|r| &r["name"]).collect::<Vec<_>>(), ["everything on", "without rope_cache_write"]);
    // One launch a layer.
    assert_eq!(rungs[1]["launches"].as_u64(), rungs[0]["launches"].as_u64().map(|n| n + 3));
    assert!(rungs[1]["delta_percent"].is_number());
    assert!(place.ok(&line).contains("without rope_cache_write"));

    let said = place.fails(&[&["bench", &model, "--vs-disable", "nothing"][..], &SMALL].concat());
    assert!(said.contains("nothing") && said.contains("rope_cache_write"), "{said}");
    place.ok(&[&["compile", &model, "-o", "m.weld"][..], &SMALL].concat());
    assert!(place.fails(&["bench", "m.weld", "--ladder"]).contains("model"));
    assert!(place.fails(&["bench", &model, "--html", "a.html"]).contains("--ladder"));
}

#[test]
fn shapes_of_steps_are_recorded_only_when_asked_for() {
    let place = Place::new();
    let model = fixture();
    place.ok(&[&["compile", &model, "-o", "m.weld"][..], &SMALL].concat());
    std::fs::write(place.path("ids.json"), "[5, 6, 7, 8, 9]").unwrap();
    let line = ["run", "m.weld", "--weights-file", &model, "--tokens", "ids.json", "--max-tokens", "4", "--ignore-eos"];
    let plain = place.ok(&line);
    assert!(!place.path("shapes.json").exists());
    assert_eq!(place.ok(&[&line[..], &["--shapes", "shapes.json"]].concat()), plain);
    let found = place.json("shapes.json");
    // A prefill of 5 tokens, then a token a step: the last token is not fed back.
    assert_eq!(found["steps"], 4);
    let by_variant = |v: usize, name: &str| found["variants"][v]["dims"][name].clone();
    assert_eq!((&found["variants"][0]["steps"], &found["variants"][1]["steps"]), (&json!(3), &json!(1)));
    assert_eq!(found["variants"][0]["guards"]["T"], json!([0, 1]));
    assert_eq!(by_variant(0, "context"), json!({"min": 6, "max": 8, "mean": 7.0}));
    assert_eq!(by_variant(1, "T"), json!({"min": 5, "max": 5, "mean": 5.0}));
    assert_eq!(
        found["variants"][1]["shapes"],
        json!([{"T": [5, 8], "B": [1, 1], "P": [1, 1], "R": [1, 1], "context": [5, 8], "steps": 1}])
    );

    // A model that is compiled first, and the variable instead of the option.
    std::fs::remove_file(place.path("shapes.json")).unwrap();
    let line = [&["run", &model, "--tokens", "ids.json", "--max-tokens", "4", "--ignore-eos"][..], &SMALL].concat();
    let out = place.run(&line, &[("WELDMENT_SHAPES", "shapes.json")]);
    assert_eq!(String::from_utf8(out.stdout).unwrap(), plain);
    assert_eq!(place.json("shapes.json"), found);
}

#[test]
fn values_are_read_between_launches_and_never_under_capture() {
    let place = Place::new();
    let model = fixture();
    std::fs::write(place.path("ids.json"), "[5, 6, 7, 8, 9]").unwrap();
    place.ok(&[&["compile", &model, "-o", "m.weld"][..], &SMALL].concat());
    place.ok(&[&["compile", &model, "-o", "plain.weld", "--set", "record_results=0"][..], &SMALL].concat());
    let line = |artifact: &'static str, more: &[&'static str]| -> Vec<String> {
        let head = ["eval", artifact, "--weights-file", &model, "--tokens", "ids.json", "--logits", "l.safetensors"];
        head.iter().chain(more).map(|s| (*s).to_owned()).collect()
    };
    let accepted = |line: &[String]| -> String {
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        place.ok(&line)
    };
    let refused = |line: &[String]| -> String {
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        place.fails(&line)
    };
    let said = refused(&line("m.weld", &["--values", "v.json"]));
    assert!(said.contains("captured") && !place.path("v.json").exists(), "{said}");
    let said = refused(&line("plain.weld", &["--values", "v.json", "--uncaptured"]));
    assert!(said.contains("record_results=0"), "{said}");

    accepted(&line("m.weld", &[]));
    let logits = std::fs::read(place.path("l.safetensors")).unwrap();
    accepted(&line("m.weld", &["--values", "v.json", "--uncaptured"]));
    assert_eq!(std::fs::read(place.path("l.safetensors")).unwrap(), logits);
    let found = place.json("v.json");
    let launches = found["variants"][1]["launches"].as_array().unwrap();
    assert_eq!(found["variants"][1]["steps"], 1);
    let results = launches.iter().flat_map(|l| l["results"].as_array().unwrap());
    assert!(results.clone().count() > 20);
    for result in results {
        let number = |name: &str| result[name].as_f64().unwrap();
        assert_eq!((number("nan"), number("infinite")), (0.0, 0.0), "{result}");
        assert!(
            number("min") <= number("mean") && number("mean") <= number("max") && number("absmax") > 0.0,
            "{result}"
        );
        let magnitudes: f64 = result["magnitudes"].as_array().unwrap().iter().map(|m| m[1].as_f64().unwrap()).sum();
        assert_eq!(magnitudes + number("zero"), number("finite"), "{result}");
    }
    // The last launch made the logits, of which the file holds as many.
    let last = &launches.last().unwrap()["results"][0];
    let file = safetensors::SafeTensors::deserialize(&logits).unwrap();
    let values: Vec<f64> = file
        .tensor("logits")
        .unwrap()
        .data()
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f64::from(f32::from_le_bytes(*b)))
        .collect();
    assert_eq!(last["finite"].as_u64(), Some(values.len() as u64));
    assert_eq!(last["max"].as_f64(), values.iter().copied().reduce(f64::max));
    assert_eq!(last["min"].as_f64(), values.iter().copied().reduce(f64::min));
}

#[test]
fn every_choice_is_listed_can_be_fixed_and_is_recorded() {
    let place = Place::new();
    let model = fixture();
    let options: Value = serde_json::from_str(&place.ok(&["options", "--json"])).unwrap();
    for choice in Choices::TABLE {
        let row = options.as_array().unwrap().iter().find(|r| r["name"] == choice.name && r["kind"] == "setting");
        let row = row.unwrap_or_else(|| panic!("{}", choice.name));
        assert_eq!(row["values"], json!(choice.accepted.list()));
        assert!(row["default"].is_string() && row["doc"].is_string());
    }
    let compile =
        |more: &[&str]| place.ok(&[&["compile", &model, "-o", "m.weld", "--json"][..], &SMALL, more].concat());
    let launches = |text: String| serde_json::from_str::<Value>(&text).unwrap()["launches"].as_array().unwrap().len();
    assert_eq!(launches(compile(&[])), 2);
    assert_eq!(launches(compile(&["--set", "token_splits=0"])), 1);
    let manifest = place.ok(&["inspect", "m.weld", "manifest", "--json"]);
    assert!(manifest.contains("token_splits=0"), "{manifest}");
    // Launches that cost nothing leave little to fuse for; the report says what was preferred.
    let explain = |more: &[&str]| place.ok(&[&["explain", &model][..], &SMALL, more].concat());
    assert!(!explain(&[]).contains("kept"));
    let cheap =
        explain(&["--set", "cost_launch_ns=0", "--set", "cost_memory_gbps=1000000", "--set", "cost_vector_rate=1"]);
    assert!(cheap != explain(&[]), "{cheap}");
    let said = place.fails(&["explain", &model, "--set", "token_splits=9"]);
    assert!(said.contains("0, 1, 2"), "{said}");
}

/// The bench of collectives: graphs, artifacts of every form, a table. On the host here; docs/collectives.md has what GPUs gave.
#[test]
fn collectives_are_timed_by_form() {
    let place = Place::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/bench/collectives.py");
    let python = |arguments: &[&str]| {
        let mut command = Command::new("python3");
        command.arg(script).args(arguments).current_dir(place.dir.path()).env("XDG_CACHE_HOME", place.path("cache"));
        let out = command.output().unwrap();
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let weldment = env!("CARGO_BIN_EXE_weldment");
    let model = ["--world", "2", "--hidden", "64", "--most", "8", "--target", "x86-64-v3"];
    python(&[&["compile", "c", "--weldment", weldment][..], &model].concat());
    let device = ["--device", "host", "--tokens", "1,5", "--pairs", "1", "--seconds", "0.02"];
    let table = python(&[&["time", "c", "--runtime", weldment][..], &device].concat());
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1], ["tokens", "auto", "one", "two", "lost"], "{table}");
    assert_eq!([rows[2][0], rows[3][0]], ["1", "5"], "{table}");
    assert!(rows[2..].iter().flatten().all(|cell| cell.parse::<f64>().is_ok_and(f64::is_finite)), "{table}");
}
