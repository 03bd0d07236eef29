//! The binary from outside: data on stdout, messages on stderr, exit codes.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

#[allow(dead_code, reason = "each test binary uses its own part")]
mod common;

use std::path::Path;
use std::process::Command;

/// Exit code, stdout, stderr.
fn run(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_weldment-rt"))
        .args(arguments)
        .current_dir(dir)
        .env("XDG_CACHE_HOME", dir.join("cache"))
        .env_remove("WELDMENT_LOG")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    common::write_tiny(&dir.path().join("m.weld"));
    std::fs::write(dir.path().join("ids.json"), "[1, 2]").unwrap();
    dir
}

#[test]
fn run_prints_ids() {
    let dir = folder();
    let (code, out, err) = run(dir.path(), &["run", "m.weld", "--tokens", "ids.json", "--threads", "2"]);
    assert_eq!((code, out.as_str()), (0, "3 4 5 6\n"), "{err}");
    assert!(err.contains("tokens/s"), "{err}");
    let arguments = ["run", "m.weld", "--tokens=ids.json", "--ignore-eos", "--max-tokens", "6", "--json"];
    let (code, out, _) = run(dir.path(), &arguments);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["ids"], &json["stop"]), (0, &serde_json::json!([3, 4, 5, 6, 7, 0]), &"max_tokens".into()));
    assert!(json["first_token_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn eval_writes_logits() {
    let dir = folder();
    let arguments = ["eval", "m.weld", "--tokens", "ids.json", "--logits"];
    assert_eq!(run(dir.path(), &[&arguments[..], &["a.safetensors"]].concat()).0, 0);
    assert_eq!(run(dir.path(), &[&arguments[..], &["b.safetensors", "--stepwise"]].concat()).0, 0);
    let read = |name| std::fs::read(dir.path().join(name)).unwrap();
    assert_eq!(read("a.safetensors"), read("b.safetensors"));
    let (code, out, err) = run(dir.path(), &[&arguments[..], &["no/such/folder/c.safetensors"]].concat());
    assert_eq!((code, out.as_str()), (2, ""), "{err}");
}

#[test]
fn bench_inspect_verify_and_doctor() {
    let dir = folder();
    let (code, out, err) =
        run(dir.path(), &["bench", "m.weld", "--json", "--context", "33", "--prefill", "10", "--batch", "3"]);
    assert_eq!(code, 0, "{err}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    for key in [
        "decode_tokens_per_second",
        "prefill_tokens_per_second",
        "ms_per_step",
        "bytes_per_step",
        "read_bandwidth_gbps",
    ] {
        assert!(json[key].as_f64().unwrap() > 0.0, "{key}");
    }
    // 36 bytes a token by the launch's estimate, and 3 KV blocks of 128 bytes for each of 3 sequences.
    assert_eq!(json["bytes_per_step"], 3 * 36 + 3 * 3 * 128);
    for view in ["manifest", "memory", "graph", "kernels"] {
        let (code, out, _) = run(dir.path(), &["inspect", "m.weld", view]);
        assert!(code == 0 && out.contains(if view == "memory" { "scale" } else { "next" }), "{view}: {out}");
    }
    assert!(run(dir.path(), &["inspect", "m.weld"]).1.contains("every hash checked"));
    assert_eq!(run(dir.path(), &["verify", "m.weld", "--hashes"]).0, 0);
    assert!(run(dir.path(), &["doctor"]).1.contains("features"));
    let path = dir.path().join("m.weld");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (code, _, err) = run(dir.path(), &["verify", "m.weld", "--hashes"]);
    assert!(code == 1 && err.contains("weights"), "{err}");
    assert_eq!(run(dir.path(), &["inspect", "m.weld"]).0, 2);
}

#[test]
fn bad_input_ends_with_2_and_no_data() {
    let dir = folder();
    std::fs::write(dir.path().join("bad.json"), "[8]").unwrap();
    std::fs::write(dir.path().join("long.json"), format!("[1{}]", ", 1".repeat(64))).unwrap();
    let cases: [(&[&str], &str); 14] = [
        (&[], "command is missing"),
        (&["fly"], "unknown command fly"),
        (&["run", "m.weld"], "--tokens or --prompt"),
        (&["run", "--tokens", "ids.json"], "artifact is missing"),
        (&["run", "none.weld", "--tokens", "ids.json"], "none.weld"),
        (&["run", "ids.json", "--tokens", "ids.json"], "shorter than"),
        (&["run", "m.weld", "--tokens", "none.json"], "none.json"),
        (&["run", "m.weld", "--tokens", "bad.json"], "0..8"),
        (&["run", "m.weld", "--tokens", "long.json"], "1..=64"),
        (&["run", "m.weld", "--prompt", "hello"], "tokenizer"),
        (&["run", "m.weld", "--tokens", "ids.json", "--temperature", "-1"], "temperature"),
        (&["run", "m.weld", "--tokens", "ids.json", "--logits", "x"], "does not take --logits"),
        (&["bench", "m.weld", "--context", "65"], "1..=64"),
        (&["verify", "m.weld"], "--hashes"),
    ];
    for (arguments, expected) in cases {
        let (code, out, err) = run(dir.path(), arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(err.contains(expected), "{arguments:?}: {err}");
    }
    assert_eq!(run(dir.path(), &["--help"]).0, 0);
    assert_eq!(run(dir.path(), &["run", "--help"]).0, 0);
}
