//! No model here copies anything in a step: by the plans for every target, and by the nodes of captured graphs.

mod tiny_llama;

use hip_double::{Double, locate};
use std::path::{Path, PathBuf};
use std::process::Command;
use weldment_codegen::select::KernelLibrary;
use weldment_codegen::setup::Setup;
use weldment_codegen::target::Target;
use weldment_codegen::{Externals, Statics, VariantPlan, prepare};
use weldment_compiler::checkpoint::WeightSource;
use weldment_compiler::driver::{EntryOptions, FusionOptions, Quiet, Timeline, model_graph, open, plan_targets};
use weldment_ir::{DType, Dim, Graph, Op, OutputKind, Value};
use weldment_passes::buffer::{StepKind, bufferise};
use weldment_runtime::{Artifact, Device, Session, SessionOptions};

const TARGETS: [&str; 4] = ["x86-64-v3", "sm_90a", "gfx942", "gfx950"];

fn models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny");
    let entries = std::fs::read_dir(folder).expect("the fixtures").map(|e| e.expect("an entry").path());
    let mut models: Vec<PathBuf> = entries.filter(|p| p.join("golden.safetensors").exists()).collect();
    models.sort();
    models
}

#[test]
fn no_model_copies_on_any_target() {
    let models = models();
    assert!(models.len() >= 18, "{models:?}");
    let targets = TARGETS.map(str::to_owned);
    let (mut shared, mut plans) = (0, 0);
    for model in &models {
        let checkpoint = open(model, WeightSource::Files).expect("a fixture opens");
        for dtype in [None, Some(DType::BF16)] {
            let graph = model_graph(&checkpoint, &EntryOptions { dtype, ..EntryOptions::default() });
            let (fusion, mut timeline) = (FusionOptions::default(), Timeline::default());
            let planned =
                plan_targets(&[graph.expect("a graph")], &targets, &fusion, &mut timeline, &mut Quiet).expect("plans");
            for target in &planned {
                for variant in &target.variants {
                    let what = format!("{} {} {}", model.display(), target.target.name(), variant.name);
                    let plan = &variant.plan;
                    assert_eq!(plan.copies, [], "{what}");
                    assert!(plan.steps.iter().all(|s| matches!(s.kind, StepKind::Kernel(_))), "{what}");
                    let (bytes, bound) = (plan.arena_bytes, plan.arena_lower_bound);
                    assert!(bytes * 10 <= bound * 11, "{what}: an arena of {bytes} bytes, {bound} alive at once");
                    let in_place = |s: &&weldment_passes::buffer::Step| s.writes.iter().any(|w| s.reads.contains(w));
                    shared += plan.steps.iter().filter(in_place).count();
                    plans += 1;
                }
            }
        }
    }
    // State writes at least, and residual adds on the host.
    assert!(plans >= 100 && shared > 4 * plans, "{plans} plans, {shared} steps in place");
}

/// A graph without weights.
struct NoStatics;

impl Statics for NoStatics {
    fn weight(&mut self, name: &str) -> Result<u32, String> {
        Err(format!("no weight {name}"))
    }

    fn computed(&mut self, _: &Graph, _: Value) -> Result<u32, String> {
        Err("nothing to compute".into())
    }
}

#[test]
fn a_copy_is_a_launch_that_says_so() {
    let mut g = Graph::new("twice");
    g.declare_symbol("T", 1, 64);
    let shape = vec![Dim::sym("T"), Dim::Const(32)];
    let x = g.push("x", Op::input("x", DType::F32, shape), &[]).expect("an input");
    let y = g.push("layers.0.tanh", Op::Tanh {}, &[x]).expect("a tanh");
    g.output("y", OutputKind::Result, y);
    g.output("again", OutputKind::Result, y);
    for name in TARGETS {
        let setup = Setup::of(Target::named(name).expect("a target"), &g);
        let library = KernelLibrary { setup: setup.clone(), max_tokens: 64 };
        let plan = bufferise(&g, &library).expect("a plan");
        let externals = Externals::alone(&plan);
        let variant = VariantPlan {
            name: "all",
            graph: &g,
            plan: &plan,
            setup: &setup,
            max_tokens: 64,
            guards: Vec::new(),
            externals: &externals,
        };
        let prepared = prepare(&[variant], &mut NoStatics).expect("launches");
        let kernels: Vec<_> = prepared.kernels().collect();
        let launches = &prepared.variants()[0].launches;
        let moves: Vec<bool> = launches.iter().map(|l| kernels[l.kernel as usize].moves_only).collect();
        assert_eq!(moves, [false, true], "{name}");
        let copy = launches[1].copy.as_ref().expect("a reason");
        assert_eq!((launches[0].copy.as_ref(), copy.source.as_str(), copy.bytes), (None, "again", 64 * 32 * 4));
        assert!(copy.reason.contains("already writes to another slot"), "{copy:?}");
    }
}

/// Captures the artifact's step, decodes a token and asks the captured graph.
fn decode(artifact: &Artifact, device: &Device) {
    let options = SessionOptions { cache: None, weights_file: Some(tiny_llama::folder()), ..SessionOptions::default() };
    let mut session = Session::new(artifact, device, options).expect("a session");
    let mut sequence = session.new_sequence();
    for tokens in [&[1, 2, 3][..], &[4]] {
        session.extend(&mut sequence, tokens).expect("a step");
        assert_eq!(session.last_copies(), []);
    }
    let (launches, nodes) = session.last_nodes();
    assert!(nodes.kernels > 10 && nodes.kernels == launches, "{nodes:?}");
    assert_eq!((nodes.copies, nodes.fills, nodes.others), (0, 0, 0));
    drop(sequence);
}

#[test]
fn captured_graphs_have_no_copies() {
    const CHILD: &str = "WELDMENT_COPIES_CHILD";
    if let Some(path) = std::env::var_os(CHILD) {
        let double = Double::open().expect("the double");
        decode(&Artifact::open(Path::new(&path)).expect("it opens"), &Device::hip(0).expect("a device"));
        assert!(double.count("hipGraphKernelNodeGetParams") > 20);
        assert_eq!(double.violations(), [] as [&str; 0]);
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let made = tiny_llama::artifact(dir.path(), &["x86-64-v3", "gfx942"], 16);
    decode(&made, &Device::host(1).expect("the host"));
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["captured_graphs_have_no_copies", "--exact", "--nocapture"])
        .env(CHILD, dir.path().join("m.weld"))
        .env("WELDMENT_HIP_LIBRARY", locate().expect("the double's library"))
        .output()
        .expect("a child");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
