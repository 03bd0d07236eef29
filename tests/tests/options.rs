//! Options, numbers of ranks and numbers of rows together: bugs hid where no test combined them. A model of several ranks, compiled for
//! the host with each choice of kernels, computes what it computes by default on one rank, at every number of tokens around which a
//! kernel or a variant changes.
#![cfg(target_arch = "x86_64")]

mod tiny_llama;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tiny_llama::Model;
use weldment_codegen::choices::Choices;
use weldment_ir::{DType, OpKind};
use weldment_runtime::comm::{Group, GroupOptions, Ranks};
use weldment_runtime::{Artifact, Device, Session, SessionOptions};
use weldment_tests::cases::cases;
use weldment_tests::execute::{random_values, reference};
use weldment_tests::programs::interpret_programs;

/// Sizes around those at which variants split (1, 16, 32, 64) and collectives go from a program a row to fewer (32).
const TOKENS: &[usize] = &[1, 2, 15, 16, 17, 31, 32, 33, 34, 60, 63, 64];

/// Choices that change what host kernels do or how variants are cut.
const HOST: &[&str] = &[
    "",
    "token_splits=0",
    "token_splits=2",
    "all_reduce=0",
    "all_reduce=1",
    "all_reduce=2",
    "all_reduce=2 token_splits=2",
    "all_reduce=3 token_splits=0",
    "gemm_rows=1 attention_sharing=1 token_splits=2",
    "gemm_rows=16 attention_sharing=2",
    "unit_stamping=0 record_results=1",
];

/// Choices that change what kernels of matrix products do on GPUs, and those that change attention's.
const GPU_PRODUCTS: &[&str] = &[
    "gemv_tokens=0",
    "gemv_tokens=1 gemv_rows=1",
    "gemv_rows=16",
    "gemm_tile_rows=16 gemm_wide_columns=128",
    "gemm_tile_rows=128 gemm_tile_columns=16",
    "gemm_tile_rows=64 gemm_tile_columns=64 gemm_wide_columns=64",
];
const GPU_ATTENTION: &[&str] = &[
    "attention_threads=64 attention_splits=1",
    "attention_threads=256 attention_splits=16",
    "attention_splits=4 attention_sharing=1",
    "attention_sharing=2 attention_tile_tokens=2",
    "attention_tile_tokens=257 attention_splits=2",
];

fn choices(text: &str) -> Choices {
    let mut choices = Choices::default();
    for word in text.split_whitespace() {
        let (key, value) = word.split_once('=').expect("key=value");
        choices.set(key, value).expect("a choice");
    }
    choices
}

/// Logits of prefills of each of [`TOKENS`], as rank 0 gives them.
fn logits(artifact: &Artifact) -> Vec<Vec<f32>> {
    static JOBS: AtomicU32 = AtomicU32::new(0);
    let job = format!("options {} {}", std::process::id(), JOBS.fetch_add(1, Ordering::Relaxed));
    let world = artifact.manifest().world;
    let run = |rank: u32| {
        let group = (world > 1).then(|| {
            let options = GroupOptions { deadline: Duration::from_secs(30) };
            Group::join(Ranks::local(rank, world, job.as_str()), options).expect("the others")
        });
        let options =
            SessionOptions { cache: None, weights_file: Some(tiny_llama::folder()), group, ..Default::default() };
        let mut session = Session::new(artifact, &Device::host(1).expect("a host"), options).expect("a session");
        let each = |count: &usize| {
            let tokens: Vec<i32> = (0..*count as i32).map(|t| t * 7 % 50).collect();
            session.eval(&tokens, false).expect("a prefill")
        };
        TOKENS.iter().map(each).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world).map(|rank| scope.spawn(move || run(rank))).collect();
        let mut ranks = threads.into_iter().map(|t| t.join().expect("a rank"));
        let first = ranks.next().expect("rank 0");
        ranks.for_each(|other| assert!(other == first, "ranks differ"));
        first
    })
}

#[test]
fn every_choice_on_every_number_of_ranks_and_rows() {
    let model = Model { dtype: DType::F32, ..Model::default() };
    let compiled = |model: &Model| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        logits(&model.compiled(dir.path(), &["host"]))
    };
    let expected = compiled(&model);
    for world in [1, 2, 4] {
        for text in HOST {
            let found = compiled(&Model { world, choices: choices(text), ..model.clone() });
            for ((expected, found), tokens) in expected.iter().zip(&found).zip(TOKENS) {
                let scale = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
                let worst = expected.iter().zip(found).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                let same = expected.len() == found.len() && worst <= 1e-4 * scale;
                assert!(same, "{world} ranks, `{text}`, {tokens} tokens: differ by {worst} of {scale}");
            }
        }
    }
}

/// The emulator's cases stand around the sizes at which kernels change; each family's are run with each choice that it heeds.
#[test]
fn every_choice_of_gpu_kernels_on_every_family() {
    let cases: Vec<_> = cases().into_iter().filter(|case| case.ranks.is_none()).collect();
    let run = |target: &str| {
        let mut ran = 0;
        for case in &cases {
            let has = |wanted: &[OpKind]| case.graph.ids().any(|id| wanted.contains(&case.graph.node(id).op.kind()));
            let products = has(&[OpKind::Matmul, OpKind::MatmulAdd, OpKind::MatmulSiluMul, OpKind::ScaledMatmul]);
            let attention = has(&[OpKind::Attention, OpKind::SparseAttention]);
            let heeded = [(products, GPU_PRODUCTS), (attention, GPU_ATTENTION)];
            let texts = heeded.iter().filter(|(heeds, _)| *heeds).flat_map(|(_, texts)| texts.iter());
            let texts: Vec<&&str> = texts.collect();
            if texts.is_empty() {
                continue;
            }
            let values = random_values(&case.graph, &case.dims, case.given.clone(), 7).expect("values");
            let expected = reference(&case.graph, &case.dims, &values).expect("the interpreter takes the case");
            for text in texts {
                let what = format!("{target} {text}, {}", case.name);
                let found = interpret_programs(&case.graph, &case.dims, &values, &format!("{target} {text}"))
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                let d = (case.difference)(&expected, &found);
                assert!(d <= case.tolerance, "{what}: difference {d} over {}", case.tolerance);
                ran += 1;
            }
        }
        ran
    };
    let ran: usize = std::thread::scope(|scope| {
        let targets = ["gfx942", "sm_90a"].map(|target| scope.spawn(move || run(target)));
        targets.into_iter().map(|target| target.join().expect("no difference")).sum()
    });
    assert!(ran > 200, "{ran} combinations");
}
