//! Any graph runs: entries called by name, from the command line and from Rust, beside the interpreter.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use weldment_compiler::checkpoint::graph::random;
use weldment_compiler::driver::{CompileOptions, FusionOptions, Quiet, Timeline, build_artifact, plan_targets};
use weldment_ir::interpret::{Binding, Bindings, F64, Options, interpret};
use weldment_ir::{Graph, Op, text, verify};
use weldment_runtime::cli::tensors;
use weldment_runtime::session::{Call, TensorBuf, TensorView};
use weldment_runtime::{Artifact, DType, Device, Session, SessionOptions, StepInput};

/// A model's step, an embedding of its tokens, a feed-forward of any rows, and rows picked from a matrix whose rows are symbolic.
const ENTRIES: &str = r#"
graph @step (T: 0..16 tokens, B: 0..4 sequences, R: 0..16 logit_rows) {
  %ids = input {name: "tokens", dtype: i32, shape: [T], role: tokens}
  %rows = input {name: "logit_rows", dtype: i32, shape: [R], role: logit_rows}
  %table = weight {name: "embed", dtype: f32, shape: [40, 32]}
  %h = gather(%table, %ids) {dtype: f32}
  %picked = gather(%h, %rows) {dtype: f32}
  %logits = matmul(%picked, %table) {dtype: f32}
  output result "logits" = %logits
}
graph @embed (T: 0..16 tokens) {
  %ids = input {name: "tokens", dtype: i32, shape: [T], role: tokens}
  %table = weight {name: "embed", dtype: f32, shape: [40, 32]}
  %h = gather(%table, %ids) {dtype: f32}
  output result "hidden" = %h
}
graph @mlp (M: 1..24, K: 1..10) {
  %x = input {name: "x", dtype: f32, shape: [M, 32]}
  %mask = input {name: "mask", dtype: f32, shape: [K, M, 1]}
  %up = weight {name: "up", dtype: f32, shape: [48, 32]}
  %u = matmul(%x, %up) {dtype: f32}
  %a = silu(%u)
  %spread = broadcast(%a) {shape: [K, M, 48]}
  %y = mul(%spread, %mask)
  output result "y" = %y
  output result "a" = %a
}
graph @by_sequence (T: 0..16 tokens, B: 0..4 sequences) {
  %of = input {name: "of", dtype: i32, shape: [T], role: sequences}
  %table = weight {name: "two", dtype: f32, shape: [2, 16]}
  %h = gather(%table, %of) {dtype: f32}
  output result "h" = %h
}
graph @pick (M: 1..24, I: 0..8) {
  %x = input {name: "x", dtype: f32, shape: [M, 32]}
  %at = input {name: "at", dtype: i32, shape: [I]}
  %y = gather(%x, %at) {dtype: f32}
  output result "y" = %y
}
"#;

fn graphs() -> Vec<Graph> {
    let graphs = text::parse_all(ENTRIES).unwrap();
    graphs.iter().for_each(|graph| verify(graph).unwrap());
    graphs
}

fn artifact(dir: &Path) -> PathBuf {
    artifact_of(dir, &graphs())
}

fn artifact_of(dir: &Path, graphs: &[Graph]) -> PathBuf {
    let checkpoint = random(graphs, Path::new("entries.wir"), 5).unwrap();
    let options = CompileOptions {
        targets: vec!["host".into()],
        fusion: FusionOptions::default(),
        embed: false,
        max_seq: 64,
        emit: Default::default(),
        recorded: Vec::new(),
        threads: 1,
    };
    let mut timeline = Timeline::default();
    let planned = plan_targets(graphs, &options.targets, &options.fusion, &mut timeline, &mut Quiet).unwrap();
    let path = dir.join("entries.weld");
    build_artifact(graphs, &checkpoint, &planned, &options, &path, &mut timeline, &mut Quiet).unwrap();
    path
}

fn session(dir: &Path) -> Session {
    let artifact = Artifact::open(artifact(dir)).unwrap();
    let options = SessionOptions { cache: None, ..SessionOptions::default() };
    Session::new(&artifact, &Device::host(2).unwrap(), options).unwrap()
}

fn floats(shape: &[u64], seed: u64) -> TensorBuf {
    let count: u64 = shape.iter().product();
    let value = |i: u64| ((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0;
    TensorBuf {
        dtype: DType::F32,
        shape: shape.to_vec(),
        bytes: (0..count).flat_map(|i| value(i).to_le_bytes()).collect(),
    }
}

fn ints(values: &[i32]) -> TensorBuf {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    TensorBuf { dtype: DType::I32, shape: vec![values.len() as u64], bytes }
}

fn of_f32(tensor: &TensorBuf) -> Vec<f64> {
    tensor.bytes.as_chunks().0.iter().map(|raw| f64::from(f32::from_le_bytes(*raw))).collect()
}

/// Outputs of an entry, interpreted.
fn interpreted(entry: &str, dims: &[(&str, u64)], inputs: &[(&str, &TensorBuf)]) -> BTreeMap<String, Vec<f64>> {
    let graphs = graphs();
    let checkpoint = random(&graphs, Path::new("entries.wir"), 5).unwrap();
    let graph = graphs.into_iter().find(|graph| graph.name == entry).unwrap();
    let mut bindings = Bindings::new();
    for id in graph.ids() {
        if let Op::Weight { name, dtype, .. } = &graph.node(id).op {
            let shape: Vec<usize> =
                graph.node(id).types[0].constant_shape().unwrap().iter().map(|n| *n as usize).collect();
            bindings.insert(name, Binding::encoded(&shape, *dtype, checkpoint.shared_bytes(name).unwrap()));
        }
    }
    for (name, tensor) in inputs {
        let shape: Vec<usize> = tensor.shape.iter().map(|n| *n as usize).collect();
        let held = match tensor.dtype {
            DType::F32 => Binding::f64(&shape, of_f32(tensor)),
            _ => Binding::ints(
                &shape,
                tensor.bytes.as_chunks().0.iter().map(|raw| i64::from(i32::from_le_bytes(*raw))).collect(),
            ),
        };
        bindings.insert(name, held);
    }
    let dims = dims.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
    let outputs = interpret::<F64>(&graph, &dims, &bindings, &Options::default()).unwrap();
    outputs.iter().map(|(name, tensor)| (name.to_string(), tensor.as_values().unwrap_or(&[]).to_vec())).collect()
}

fn close(found: &TensorBuf, expected: &[f64], what: &str) {
    let found = of_f32(found);
    assert_eq!(found.len(), expected.len(), "{what}");
    let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart < 1e-5, "{what}: {apart}");
}

#[test]
fn entries_give_what_the_interpreter_does_at_every_size() {
    let dir = tempfile::tempdir().unwrap();
    let mut session = session(dir.path());
    for (m, k) in [(1, 1), (1, 10), (3, 2), (16, 10), (17, 3), (24, 1), (24, 10)] {
        let (x, mask) = (floats(&[m, 32], m), floats(&[k, m, 1], k));
        let inputs = [("mask", mask.view()), ("x", x.view())];
        let found = session.call("mlp", &Call { inputs: &inputs, ..Call::default() }).unwrap();
        let expected = interpreted("mlp", &[("M", m), ("K", k)], &[("x", &x), ("mask", &mask)]);
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["y", "a"]);
        assert_eq!((&found[0].1.shape, &found[1].1.shape), (&vec![k, m, 48], &vec![m, 48]));
        found.iter().for_each(|(name, tensor)| close(tensor, &expected[name], &format!("{name} at {m}, {k}")));
        for at in [vec![], vec![0], (0..m as i32).rev().take(8).collect::<Vec<i32>>()] {
            let at = ints(&at);
            let inputs = [("x", x.view()), ("at", at.view())];
            let found = session.call("pick", &Call { inputs: &inputs, ..Call::default() }).unwrap();
            let expected = interpreted("pick", &[("M", m), ("I", at.shape[0])], &[("x", &x), ("at", &at)]);
            close(&found[0].1, &expected["y"], "picked rows");
        }
    }
    // Entries of roles take a step, any of them; a step without tokens is one.
    for tokens in [&[][..], &[7], &[0, 39, 5]] {
        let (count, rows) = (tokens.len() as i32, (0..tokens.len() as i32).collect::<Vec<i32>>());
        let starts = [0, count];
        let seq_starts = if count == 0 { &starts[..1] } else { &starts[..] };
        let positions = rows.clone();
        let step = StepInput { tokens, positions: &positions, seq_starts, block_tables: &[], logit_rows: &rows };
        let found = session.call("embed", &Call { step: Some(step), ..Call::default() }).unwrap();
        let ids = ints(tokens);
        let expected = interpreted("embed", &[("T", tokens.len() as u64)], &[("tokens", &ids)]);
        close(&found[0].1, &expected["hidden"], "embedded tokens");
        let row_ids = ints(&rows);
        let dims = [("T", tokens.len() as u64), ("B", 1), ("R", rows.len() as u64)];
        let expected = interpreted("step", &dims, &[("tokens", &ids), ("logit_rows", &row_ids)]);
        let called = session.call("step", &Call { step: Some(step), ..Call::default() }).unwrap();
        close(&called[0].1, &expected["logits"], "logits of a call");
        let logits = session.step(&step).unwrap();
        assert_eq!(logits.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), of_f32(&called[0].1));
        // No rows asked for: nothing comes, nothing fails.
        let silent = StepInput { logit_rows: &[], ..step };
        assert_eq!(session.step(&silent).unwrap().len(), 0);
    }
}

#[test]
fn calls_that_do_not_fit_are_refused_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let mut session = session(dir.path());
    let (x, short, mask) = (floats(&[3, 32], 1), floats(&[3, 31], 1), floats(&[2, 3, 1], 1));
    let mut refused = |entry: &str, inputs: &[(&str, TensorView<'_>)], dims: &[(&str, u64)], said: &str| {
        let error = session.call(entry, &Call { step: None, inputs, dims }).unwrap_err().to_string();
        assert!(error.contains(said), "{entry}: {error}");
    };
    refused("none", &[], &[], "it has [step, embed, mlp, by_sequence, pick]");
    refused("mlp", &[("x", x.view())], &[], "input mask is missing: f32[K, M, 1]");
    refused("mlp", &[("x", short.view()), ("mask", mask.view())], &[], "f32[M, 32] is accepted");
    refused("mlp", &[("x", x.view()), ("mask", mask.view()), ("z", x.view())], &[], "it takes [x, mask]");
    let other = floats(&[2, 4, 1], 1);
    refused("mlp", &[("x", x.view()), ("mask", other.view())], &[], "M is 4 by input mask, 3 by another input");
    refused("mlp", &[("x", x.view()), ("mask", mask.view())], &[("K", 7)], "K is 2 by input mask, 7 by what was given");
    let many = floats(&[25, 32], 1);
    refused("mlp", &[("x", many.view()), ("mask", mask.view())], &[], "M = 25 is outside the compiled range 1..=24");
    let cut = TensorView { bytes: &x.bytes[..x.bytes.len() - 4], ..x.view() };
    refused("mlp", &[("x", cut), ("mask", mask.view())], &[], "its shape asks for 384");
    let wrong = ints(&[1, 2, 3]);
    refused("mlp", &[("x", wrong.view()), ("mask", mask.view())], &[], "input x is i32[3]");
    for at in [-1, 3, i32::MAX, i32::MIN] {
        let at = ints(&[0, at]);
        refused("pick", &[("x", x.view()), ("at", at.view())], &[], "0..3 are accepted");
    }
    refused("embed", &[], &[("T", 1)], "input tokens has the role tokens: the call needs a step");
    // The table has 40 rows, whatever the vocabulary is said to be.
    let step = StepInput { tokens: &[40], positions: &[0], seq_starts: &[0, 1], block_tables: &[], logit_rows: &[] };
    let error = session.call("embed", &Call { step: Some(step), ..Call::default() }).unwrap_err().to_string();
    assert!(error.contains("token id 40 is outside the vocabulary 0..40"), "{error}");
    // What the step says, nobody else does.
    let step = StepInput { tokens: &[1], ..step };
    let dims = [("T", 16)];
    let error = session.call("embed", &Call { step: Some(step), inputs: &[], dims: &dims }).unwrap_err().to_string();
    assert!(error.contains("T is 16 by what was given, 1 by the step"), "{error}");
    // A third sequence has no row in a table of two.
    let three = StepInput {
        tokens: &[1, 2, 3],
        positions: &[0, 0, 0],
        seq_starts: &[0, 1, 2, 3],
        block_tables: &[],
        logit_rows: &[],
    };
    let error = session.call("by_sequence", &Call { step: Some(three), ..Call::default() }).unwrap_err().to_string();
    assert!(error.contains("2 among of (sequences); 0..2 are accepted"), "{error}");
    let two = StepInput { tokens: &[1, 2], positions: &[0, 0], seq_starts: &[0, 1, 2], ..three };
    assert_eq!(session.call("by_sequence", &Call { step: Some(two), ..Call::default() }).unwrap()[0].1.shape, [2, 16]);
    let rows = StepInput { logit_rows: &[0, 0, 0], ..two };
    assert!(session.step(&rows).unwrap_err().to_string().contains("3 logit rows of 2 tokens"));
}

/// A cache of 32 positions a block in a pool of others, and a step with a symbol that no step says.
#[test]
fn graphs_that_no_session_could_serve_are_refused() {
    let text = |pool: &str, context: &str| {
        format!(
            r#"graph @step (T: 0..8 tokens, B: 0..2 sequences, P: 1..4 blocks(N), R: 0..8 logit_rows, N: 1..8 pool({pool}), C: 1..128{context}) {{
  %ids = input {{name: "tokens", dtype: i32, shape: [T], role: tokens}}
  %at = input {{name: "positions", dtype: i32, shape: [T], role: positions}}
  %of = input {{name: "sequence_ids", dtype: i32, shape: [T], role: sequences}}
  %tables = input {{name: "block_tables", dtype: i32, shape: [B, P], role: blocks}}
  %rows = input {{name: "logit_rows", dtype: i32, shape: [R], role: logit_rows}}
  %w = weight {{name: "w", dtype: f32, shape: [50, 16]}}
  %h = gather(%w, %ids) {{dtype: f32}}
  %heads = reshape(%h) {{shape: [T, 1, 16]}}
  %before = state {{name: "k", dtype: f32, shape: [N, 1, 32, 16]}}
  %after = cache_write(%before, %heads, %at, %of, %tables) {{transposed: false}}
  %picked = gather(%h, %rows) {{dtype: f32}}
  output result "logits" = %picked
  output state "k" = %after
}}"#
        )
    };
    let error = verify(&text::parse(&text("64", " context")).unwrap()).unwrap_err().to_string();
    assert!(error.contains("has 32 positions a block; pool N declares 64"), "{error}");
    let step = |context: &str| {
        let graph = text::parse(&text("32", context)).unwrap();
        verify(&graph).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let artifact = Artifact::open(artifact_of(dir.path(), &[graph])).unwrap();
        artifact.manifest().step()
    };
    assert_eq!((step(" context"), step("")), (Some(0), None));
}

fn weldment(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weldment"))
        .args(arguments)
        .current_dir(dir)
        .env("XDG_CACHE_HOME", dir.join("cache"))
        .output()
        .unwrap()
}

#[test]
fn any_graph_runs_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| weldment(dir.path(), arguments);
    std::fs::write(dir.path().join("entries.wir"), ENTRIES).unwrap();
    let (x, mask) = (floats(&[5, 32], 2), floats(&[4, 5, 1], 3));
    tensors::write(&dir.path().join("x.safetensors"), "x", x.view()).unwrap();
    tensors::write(&dir.path().join("mask.safetensors"), "anything", mask.view()).unwrap();
    let inputs = ["--input", "x=x.safetensors", "--input", "mask=mask.safetensors", "--output", "y=y.safetensors"];
    let expected = interpreted("mlp", &[("M", 5), ("K", 4)], &[("x", &x), ("mask", &mask)]);
    let compiled = run(&["compile", "entries.wir", "--weights", "random:5", "--target", "host", "-o", "e.weld"]);
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    for model in [&["entries.wir", "--weights", "random:5"][..], &["e.weld"]] {
        let done = run(&[&["eval"], model, &inputs[..], &["--repeat", "3"]].concat());
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        // The output that no file is named for is described.
        assert_eq!(String::from_utf8_lossy(&done.stdout), "a: f32[5, 48]\n");
        close(&tensors::read(&dir.path().join("y.safetensors"), "y").unwrap(), &expected["y"], "y");
        std::fs::remove_file(dir.path().join("y.safetensors")).unwrap();
        let measured =
            run(&[&["bench"], model, &["--entry", "mlp", "--size", "M=8", "--seconds", "0.05", "--json"]].concat());
        assert!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));
        let line: serde_json::Value = serde_json::from_slice(&measured.stdout).unwrap();
        assert_eq!((&line["entry"], &line["sizes"]["M"], &line["sizes"]["K"]), (&"mlp".into(), &8.into(), &10.into()));
        assert!(line["ms_per_call"].as_f64().unwrap() > 0.0);
    }
    // Nothing says where the weights come from: they are made up, and that is said.
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/mlp.wir");
    let x = floats(&[3, 64], 1);
    tensors::write(&dir.path().join("x64.safetensors"), "x", x.view()).unwrap();
    let example = example.to_str().unwrap();
    let done = run(&["eval", example, "--input", "x=x64.safetensors", "--output", "y=y.safetensors"]);
    assert!(done.status.success() && String::from_utf8_lossy(&done.stderr).contains("made up from seed 0"), "{done:?}");
    assert_eq!(tensors::read(&dir.path().join("y.safetensors"), "y").unwrap().shape, [3, 64]);
    for (arguments, said) in [
        (&["eval", "e.weld", "--input", "x=x.safetensors", "--output", "y=o.safetensors"][..], "--entry is needed"),
        (&["eval", "e.weld", "--entry", "mlp", "--input", "x=none.safetensors"], "none.safetensors"),
        (&["eval", "e.weld", "--input", "q=x.safetensors"], "no entry of [step, embed, mlp, by_sequence, pick]"),
        (&["eval", "e.weld", "--entry", "mlp", "--output", "z=o.safetensors"], "gives [y, a]"),
        (&["bench", "e.weld", "--entry", "step"], "bench without --entry measures steps"),
    ] {
        let refused = run(arguments);
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(2) && text.contains(said), "{arguments:?}: {text}");
    }
}
