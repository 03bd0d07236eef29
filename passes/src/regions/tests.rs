//! Regions of decoders, chaos, and wrong rules that must be seen and named.

use super::{Effort, Regions, RingVerdict, bisect_fuel, judge, smallest_failing};
use crate::pipeline::{Optimised, Options, optimise_by};
use crate::rules::{self, Numerics, Rule, rule};
use crate::target::ReferenceTarget;
use std::collections::{BTreeMap, BTreeSet};
use weldment_ir::{Category, DType, Graph};

#[path = "../../tests/support/mod.rs"]
mod support;

use support::{Decoder, TINY, assert_ring_equal};

const QUANTISED: Decoder =
    Decoder { weights: DType::Q4_1, v_weights: DType::Q4_1, hidden: 256, heads: 4, inner: 256, ..TINY };

fn decoders() -> [Decoder; 5] {
    [
        TINY,
        Decoder { dtype: DType::BF16, weights: DType::BF16, v_weights: DType::BF16, ..TINY },
        QUANTISED,
        Decoder { qkv_bias: true, qk_norm: true, v_weights: DType::Q6K, ..QUANTISED },
        Decoder { qkv_bias: true, qk_norm: true, dtype: DType::F16, ..TINY },
    ]
}

fn optimised(graph: &Graph, options: &Options, rules: &[Rule]) -> Optimised {
    optimise_by(graph, &ReferenceTarget::default(), options, rules).unwrap_or_else(|e| panic!("{e}"))
}

/// What differs, by the region's paths.
fn failures(graph: &Graph, out: &Optimised, rules: &[Rule]) -> BTreeMap<BTreeSet<String>, String> {
    let regions = Regions::new(graph, out, rules);
    let mut found = BTreeMap::new();
    let mut known = BTreeSet::new();
    for region in regions.all().unwrap() {
        if known.insert(region.key()) {
            let verdict = judge(&regions, &region, &Effort::default());
            if let Some(failure) = verdict.unwrap_or_else(|e| panic!("{:?}: {e}", region.paths)).failed {
                found.insert(region.paths.clone(), format!("{failure}\n{}\n{}", region.before, region.after));
            }
        }
    }
    found
}

#[test]
fn every_rewritten_node_is_in_a_small_region_that_holds() {
    let rules = rules::all();
    for config in decoders() {
        let graph = config.build();
        let out = optimised(&graph, &Options::default(), &rules);
        let regions = Regions::new(&graph, &out, &rules);
        let all = regions.all().unwrap();
        let covered: BTreeSet<u32> = all.iter().flat_map(|r| &r.nodes).map(|id| id.index() as u32).collect();
        for node in out.report.nodes.iter().filter(|n| !n.rules.is_empty()) {
            assert!(covered.contains(&node.node), "{node:?}");
        }
        let distinct: BTreeSet<String> = all.iter().map(|r| r.key()).collect();
        println!("{} regions, {} distinct", all.len(), distinct.len());
        for region in &all {
            let runs = |g: &Graph| {
                let ops = g.ids().map(|id| g.node(id).op.kind().info().category);
                ops.filter(|c| !matches!(c, Category::Leaf | Category::View)).count()
            };
            println!("  {:?} {:?} {} {:?}", region.ops, region.rules, region.class, region.paths);
            assert!(runs(&region.before) <= 16, "{:?}\n{}\n{}", region.paths, region.before, region.after);
        }
        let layers = config.layers as usize;
        assert!(
            all.len() >= 4 * layers && distinct.len() <= all.len().div_ceil(layers) + 8,
            "{} of {}",
            distinct.len(),
            all.len()
        );
        assert_eq!(failures(&graph, &out, &rules), BTreeMap::new());
    }
}
