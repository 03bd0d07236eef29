//! The order of rules is free. That of passes is not: cutting, saturation, extraction and stamping each read what the one
//! before made, so there is one order of passes that their dependencies allow, and nothing to permute.

use super::support::{Decoder, Random, TINY, listing};
use crate::Numerics;
use crate::egraph::Limits;
use crate::pipeline::{Options, rebuild, select, solve_units};
use crate::probe::Probe;
use crate::rules::{Rule, all};
use crate::solve::Solver;
use crate::target::ReferenceTarget;
use weldment_ir::{DType, Graph};

/// The optimised graph and the account of it (places with their reasons, chains of rewrites, counts) with the rules in another order.
fn in_order(graph: &Graph, shuffle: &mut dyn FnMut(&mut Vec<&Rule>)) -> String {
    let (all, policy) = (all(), Numerics::default_for(graph));
    let (mut rules, barred) = select(&all, policy, &Options::default());
    shuffle(&mut rules);
    let (target, limits, probe) = (&ReferenceTarget::default(), Limits::default(), &Probe::default());
    let dims = |_: &str| 1u64;
    let solver = Solver { rules, barred, target, limits, probe, dims: &dims, favour_made: false };
    let units = solve_units(graph, &solver, true).unwrap_or_else(|e| panic!("{e}"));
    let mut text = listing(&rebuild(graph, &units).unwrap_or_else(|e| panic!("{e}")).0);
    for (_, r) in &units.recipes {
        let chains: Vec<_> = r.steps.iter().map(|s| (&s.op, &s.chain, &s.origins)).collect();
        text += &format!("{:?} {chains:?} {:?} {} {}\n", r.sites, r.matches, r.e_nodes, r.iterations);
    }
    text
}

#[test]
fn the_order_of_rules_does_not_matter() {
    let q4 = Decoder { weights: DType::Q4_1, v_weights: DType::Q4_1, hidden: 256, heads: 4, inner: 256, ..TINY };
    let bf16 = Decoder { dtype: DType::BF16, weights: DType::BF16, v_weights: DType::BF16, ..TINY };
    let mixed = Decoder { qkv_bias: true, qk_norm: true, v_weights: DType::Q6K, ..q4 };
    for config in [TINY, q4, bf16, mixed] {
        let graph = config.build();
        let first = in_order(&graph, &mut |_| {});
        let mut random = Random(0x1234_5678_9ABC_DEF1);
        for _ in 0..20 {
            let found = in_order(&graph, &mut |rules| {
                for i in (1..rules.len()).rev() {
                    rules.swap(i, random.below(i as u64 + 1) as usize);
                }
            });
            assert_eq!(first, found);
        }
    }
}
