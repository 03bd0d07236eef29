//! Sparse attention end to end on the example: the top-k short cut in captured graphs, by bits and by what is launched.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::path::{Path, PathBuf};
use weldment_artifact::SymbolRole;
use weldment_compiler::checkpoint::Checkpoint;
use weldment_compiler::checkpoint::graph;
use weldment_compiler::driver::{
    CompileOptions, FusionOptions, Quiet, Reference, Timeline, build_artifact, plan_targets,
};
use weldment_ir::generate::Random;
use weldment_ir::{Graph, text, verify};
use weldment_passes::specialise::narrow;
use weldment_runtime::artifact::{Program, Variant};
use weldment_runtime::{Artifact, Device, Session, SessionOptions, StepInput};

/// The example's k, vocabulary and limits.
const K: usize = 32;
const VOCAB: i32 = 128;
const MAX_SEQ: usize = 128;
const MAX_TOKENS: usize = 64;

fn example() -> Graph {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/sparse_decoder.wir");
    let graph = text::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    verify(&graph).unwrap();
    graph
}

fn checkpoint(entry: &Graph) -> Checkpoint {
    graph::random(std::slice::from_ref(entry), Path::new("sparse_decoder.wir"), 3).unwrap()
}

/// Compiles `entry` for a target, with the fusions `off`.
fn artifact(dir: &Path, name: &str, entry: &Graph, target: &str, off: &[&str]) -> PathBuf {
    let checkpoint = checkpoint(entry);
    let fusion = FusionOptions { disabled: off.iter().map(|s| (*s).to_owned()).collect(), ..FusionOptions::default() };
    let options = CompileOptions {
        targets: vec![target.to_owned()],
        fusion,
        embed: false,
        max_seq: MAX_SEQ as u64,
        emit: weldment_codegen::llvm::Emit::default(),
        recorded: Vec::new(),
        threads: 1,
    };
    let mut timeline = Timeline::default();
    let planned =
        plan_targets(std::slice::from_ref(entry), &options.targets, &options.fusion, &mut timeline, &mut Quiet)
            .unwrap();
    let path = dir.join(name);
    build_artifact(std::slice::from_ref(entry), &checkpoint, &planned, &options, &path, &mut timeline, &mut Quiet)
        .unwrap();
    path
}

fn session(path: &Path) -> Session {
    Session::new(&Artifact::open(path).unwrap(), &Device::host(1).unwrap(), SessionOptions::default()).unwrap()
}

/// Launches of a variant whose kernel or source is an indexer's scores or a top-k; the key write is neither.
fn scoring_launches(program: &Program, variant: &Variant, sources: &[Vec<String>]) -> usize {
    let scores = |path: &String| path.ends_with(".scores") || path.ends_with(".topk");
    let launches = variant.launches.iter().filter(|l| {
        let family = program.kernels[l.kernel as usize].family.as_str();
        matches!(family, "index_scores" | "topk" | "window") || sources[l.source as usize].iter().any(scores)
    });
    launches.count()
}

/// Largest context of each variant with its scoring launches, its launches, and its cache writes.
fn launches(path: &Path) -> Vec<(u64, usize, usize, usize)> {
    let artifact = Artifact::open(path).unwrap();
    let manifest = artifact.manifest();
    let (context, symbol) = manifest.symbol_of(&SymbolRole::Context).unwrap();
    let program = &manifest.programs[0];
    let describe = |v: &Variant| {
        let guard = v.guards.iter().find(|g| g.symbol as usize == context);
        let written = |l: &&weldment_runtime::artifact::Launch| {
            manifest.sources[l.source as usize].iter().any(|s| s.ends_with("indexer.k_cache"))
        };
        let writes = v.launches.iter().filter(written).count();
        (guard.map_or(symbol.max, |g| g.max), scoring_launches(program, v, &manifest.sources), v.launches.len(), writes)
    };
    program.entries[0].variants.iter().map(describe).collect()
}

#[test]
fn short_contexts_launch_neither_indexer_nor_topk() {
    let (dir, entry) = (tempfile::tempdir().unwrap(), example());
    for target in ["x86-64-v3", "gfx942", "sm_90a"] {
        let found = launches(&artifact(dir.path(), "on.weld", &entry, target, &[]));
        assert!(found.iter().any(|v| v.0 == K as u64) && found.iter().any(|v| v.0 == MAX_SEQ as u64), "{found:?}");
        for (context, scoring, _, writes) in &found {
            assert_eq!(*scoring == 0, *context == K as u64, "{target} {found:?}");
            // Both layers' keys are written whatever the context: later steps need them.
            assert!(*writes >= 1, "{target} {found:?}");
        }
        // Static: no sequence outgrows k.
        let short = narrow(&entry, "C", 1, K as u64);
        let found = launches(&artifact(dir.path(), "short.weld", &short, target, &[]));
        assert!(found.iter().all(|v| v.1 == 0 && v.3 >= 1), "{target} {found:?}");
        // Switched off, contexts make no difference and their variants are one.
        let found = launches(&artifact(dir.path(), "off.weld", &entry, target, &["topk_window"]));
        assert!(found.iter().all(|v| v.0 == MAX_SEQ as u64 && v.1 > 0), "{target} {found:?}");
    }
}

/// Sequences in several sessions that take the same steps.
struct Steps {
    sessions: Vec<Session>,
    /// Tokens so far of each sequence.
    lengths: Vec<usize>,
    random: Random,
}

impl Steps {
    fn new(paths: &[PathBuf], sequences: usize, seed: u64) -> Steps {
        Steps {
            sessions: paths.iter().map(|p| session(p)).collect(),
            lengths: vec![0; sequences],
            random: Random::new(seed),
        }
    }

    /// One step that adds `chunks[i]` tokens to sequence i (0 leaves it out): logits of every token, by session.
    fn step(&mut self, chunks: &[usize]) -> Vec<Vec<f32>> {
        const BLOCK: usize = 16;
        let width = MAX_SEQ / BLOCK;
        let (mut positions, mut starts, mut tables) = (Vec::new(), vec![0i32], Vec::new());
        for (i, chunk) in chunks.iter().enumerate().filter(|(_, n)| **n > 0) {
            positions.extend((self.lengths[i]..self.lengths[i] + chunk).map(|p| p as i32));
            starts.push(positions.len() as i32);
            // Blocks of a sequence lie apart, in an order of their own.
            tables.extend((0..width).map(|b| ((b * 5 + 3) % width * chunks.len() + i) as i32));
            self.lengths[i] += chunk;
        }
        let tokens: Vec<i32> = positions.iter().map(|_| self.random.below(VOCAB as u64) as i32).collect();
        let rows: Vec<i32> = (0..tokens.len() as i32).collect();
        let input = StepInput {
            tokens: &tokens,
            positions: &positions,
            seq_starts: &starts,
            block_tables: &tables,
            logit_rows: &rows,
        };
        self.sessions.iter_mut().map(|s| s.step(&input).unwrap().to_vec()).collect()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// On and off give the same bits in mixed batches: decode and prefill chunks on both sides of the border and across it.
#[test]
fn the_short_cut_changes_no_bit() {
    let (dir, entry) = (tempfile::tempdir().unwrap(), example());
    let paths = [
        artifact(dir.path(), "on.weld", &entry, "host", &[]),
        artifact(dir.path(), "rows.weld", &entry, "host", &["topk_window"]),
        artifact(dir.path(), "off.weld", &entry, "host", &["topk_window", "topk_rows"]),
    ];
    let mut steps = Steps::new(&paths, 4, 11);
    let count = std::env::var("WELDMENT_SPARSE_STEPS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let mut near = 0;
    for _ in 0..count {
        let mut chunks = vec![0; 4];
        while chunks.iter().all(|n| *n == 0) {
            for (i, chunk) in chunks.iter_mut().enumerate() {
                if steps.lengths[i] > K + 8 || steps.random.below(40) == 0 {
                    steps.lengths[i] = 0;
                }
                // Up to the border or two short of it or past it, one token, or none.
                let short = (K - 2 + steps.random.below(5) as usize).saturating_sub(steps.lengths[i]);
                *chunk = match steps.random.below(6) {
                    0 => short.min(MAX_TOKENS / 4),
                    1 => 1 + steps.random.below(12) as usize,
                    2 => 0,
                    _ => 1,
                };
            }
        }
        let found = steps.step(&chunks);
        near += steps.lengths.iter().filter(|n| n.abs_diff(K) <= 2).count();
        for other in &found[1..] {
            assert_eq!(bits(&found[0]), bits(other), "{chunks:?} of {:?}", steps.lengths);
        }
    }
    assert!(near > count / 4, "{near} sequences near the border in {count} steps");
}

/// Every step of a sequence that grows through the border is what the interpreter computes, by single tokens and by chunks.
#[test]
fn growing_through_the_border_equals_the_interpreter() {
    let (dir, entry) = (tempfile::tempdir().unwrap(), example());
    let path = artifact(dir.path(), "m.weld", &entry, "host", &[]);
    for chunk in [1, 7, K + 1] {
        let mut reference = Reference::of_graph(entry.clone(), &checkpoint(&entry)).unwrap();
        let mut session = session(&path);
        let mut sequence = session.new_sequence();
        let tokens: Vec<i32> = (0..K as i32 + 12).map(|i| (i * 37 + 5) % VOCAB).collect();
        for part in tokens.chunks(chunk) {
            let expected = reference.step(&part.iter().map(|t| *t as u32).collect::<Vec<_>>()).unwrap();
            let last = &expected[expected.len() - VOCAB as usize..];
            let found = session.extend(&mut sequence, part).unwrap();
            let scale = last.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
            for (a, b) in found.iter().zip(last) {
                assert!((f64::from(*a) - b).abs() < 2e-4 * scale, "chunks of {chunk}: {a} and {b}");
            }
        }
    }
}
