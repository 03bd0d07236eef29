//! What fuses does not depend on how a graph is written: no-op views, reshapes, foldable casts, commuted operands,
//! `(1 + w)` norms and odd epsilons at random places leave the coverage of every fusion as it is.

mod support;

use std::collections::BTreeMap;
use support::obscure::Obscure;
use support::{Decoder, Random, TINY, assert_ring_equal, listing, optimise};
use weldment_ir::{DType, Graph};
use weldment_passes::report::Report;
use weldment_passes::shard::shard;
use weldment_passes::{Numerics, Options};

/// Seeds for each model: `WELDMENT_OBSCURE_SEEDS`, or 50.
fn seeds() -> u64 {
    std::env::var("WELDMENT_OBSCURE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(50)
}

/// Places fused, fused as the fusion's own op, and counted, by fusion; launches.
fn coverage(report: &Report) -> (BTreeMap<String, [usize; 3]>, usize) {
    let row = |g: &weldment_passes::report::GroupReport| (g.name.clone(), [g.gone(), g.fused(), g.anchors.len()]);
    (report.groups.iter().map(row).collect(), report.launches_after)
}

/// Graphs of one rank, and of each of two and of four.
fn graphs() -> Vec<(&'static str, Graph)> {
    let sharded = |decoder: Decoder, world| shard(&decoder.build(), world).expect("it divides");
    let four = Decoder { layers: 2, heads: 4, kv_heads: 2, ..TINY };
    let half = Decoder { dtype: DType::BF16, weights: DType::BF16, v_weights: DType::BF16, qkv_bias: true, ..four };
    let mut out: Vec<_> = models().into_iter().map(|(name, decoder)| (name, decoder.build())).collect();
    out.push(("f32 on 2 ranks", sharded(four, 2)));
    out.push(("bf16 on 4 ranks", sharded(half, 4)));
    out
}

fn models() -> Vec<(&'static str, Decoder)> {
    let two = Decoder { layers: 2, ..TINY };
    let q4 = Decoder { weights: DType::Q4_1, v_weights: DType::Q4_1, hidden: 256, heads: 4, inner: 256, ..two };
    vec![
        ("f32", two),
        ("bf16", Decoder { dtype: DType::BF16, weights: DType::BF16, v_weights: DType::BF16, qkv_bias: true, ..two }),
        ("q4_1", q4),
        ("q4_1 with biases and head norms", Decoder { qkv_bias: true, qk_norm: true, ..q4 }),
    ]
}

#[test]
fn obscured_graphs_fuse_alike() {
    let mut failed = Vec::new();
    for (name, plain) in graphs() {
        let expected = coverage(&optimise(&plain, &Options::default()).report);
        for seed in 1..=seeds() {
            let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let one_in = [2, 4, 10, 30][(seed % 4) as usize];
            let graph = Obscure { one_in }.graph(&plain, &mut random);
            let out = optimise(&graph, &Options::default());
            let found = coverage(&out.report);
            if found != expected {
                failed.push(format!("{name}, seed {seed}: {}", difference(&expected, &found)));
                if std::env::var_os("WELDMENT_OBSCURE_SHOW").is_some() {
                    println!("{}\n{}\n{}", listing(&graph), listing(&out.graph), out.report);
                    break;
                }
            }
        }
    }
    assert!(failed.is_empty(), "{} obscured graphs fuse otherwise:\n{}", failed.len(), failed.join("\n"));
}

fn difference(a: &(BTreeMap<String, [usize; 3]>, usize), b: &(BTreeMap<String, [usize; 3]>, usize)) -> String {
    let groups =
        a.0.iter().filter(|(k, v)| b.0.get(*k) != Some(v)).map(|(k, v)| format!("{k} {v:?} -> {:?}", b.0.get(k)));
    let mut out: Vec<String> = groups.collect();
    if a.1 != b.1 {
        out.push(format!("launches {} -> {}", a.1, b.1));
    }
    out.join(", ")
}

#[test]
fn obscured_graphs_stay_the_same_function() {
    for (_, decoder) in models() {
        let plain = Decoder { layers: 1, ..decoder }.build();
        for seed in 1..=2 {
            let graph = Obscure { one_in: 2 }.graph(&plain, &mut Random(seed * 0x51_7CC1_B727_2202));
            assert_ring_equal(&graph, &optimise(&graph, &Options::default()).graph, true, 1);
        }
    }
}

/// A view that another layer's path names stands at a border between units; no match is lost to it. Which of two fusions
/// takes an add is not compared here: the search of a whole obscured graph may end at a form of as many launches.
#[test]
fn stamping_loses_nothing_in_obscured_graphs() {
    for (name, plain) in graphs() {
        for seed in 1..=6 {
            let graph = Obscure { one_in: 3 }.graph(&plain, &mut Random(seed * 0x2545_F491_4F6C_DD1D));
            let whole = Options { unit_stamping: false, ..Options::default() };
            let (stamped, whole) = (optimise(&graph, &Options::default()), optimise(&graph, &whole));
            let fused = |report: &Report| {
                let (groups, launches) = coverage(report);
                (groups.into_iter().map(|(name, [fused, _, of])| (name, fused, of)).collect::<Vec<_>>(), launches)
            };
            assert_eq!(fused(&stamped.report), fused(&whole.report), "{name}, seed {seed}");
        }
    }
}

/// The default policy lets everything here fire.
#[test]
fn models_are_optimised_under_their_default_policy() {
    let policy = |graph: &Graph| Numerics::default_for(graph);
    let found: Vec<Numerics> = models().iter().map(|(_, d)| policy(&d.build())).collect();
    assert_eq!(found, [Numerics::Rounding, Numerics::Rounding, Numerics::Approx, Numerics::Approx]);
}
