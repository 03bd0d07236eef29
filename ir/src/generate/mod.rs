//! Random well-typed graphs and values for them, from a seed: what rule tests, fuzzing and round-trip tests draw from.

mod build;
mod motif;
mod palette;
mod values;

pub use build::{Accepts, Wanted, random_graph, random_graph_of};
pub use motif::Motif;
pub use palette::Palette;
pub use values::{random_bindings, random_dims};

/// splitmix64: small, seeded, the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A stream of its own for each seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// 0..`n`; 0 when `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64 }
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `items`; `None` if there are none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len() as u64) as usize)
    }

    /// A multiple of 1/64 in -2..2, so that sums of a few products stay exact in f32.
    pub fn small(&mut self) -> f64 {
        (self.below(257) as f64 - 128.0) / 64.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpret::{F64, Options, Ring, interpret};
    use crate::{Category, IrError, OpKind, text, verify};
    use std::collections::BTreeSet;

    #[test]
    fn graphs_verify_run_and_are_reproducible() {
        let mut kinds = BTreeSet::new();
        for seed in 0..150 {
            let graph = random_graph(seed, 24).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert_eq!(verify::verify_all(&graph), [], "seed {seed}\n{graph}");
            kinds.extend(graph.ids().map(|id| graph.node(id).op.kind()));
            let text = text::print(&graph);
            assert_eq!(text, text::print(&random_graph(seed, 24).unwrap()));
            assert_eq!(text, text::print(&text::parse(&text).unwrap()));

            let dims = random_dims(&graph, seed);
            let bindings = random_bindings(&graph, &dims, seed).unwrap();
            let options = Options::default();
            let out = interpret::<F64>(&graph, &dims, &bindings, &options);
            assert_eq!(out.unwrap_or_else(|e| panic!("seed {seed}: {e}\n{graph}")).len(), graph.outputs().len());
            match interpret::<Ring>(&graph, &dims, &bindings, &options) {
                Ok(_) | Err(IrError::ZeroDivisor { .. }) => {}
                Err(e) => panic!("seed {seed}: {e}\n{graph}"),
            }
        }
        // Collectives come of sharding such graphs.
        let local = OpKind::ALL.iter().filter(|k| k.info().category != Category::Collective);
        let missing: Vec<_> = local.filter(|k| !kinds.contains(k)).collect();
        assert!(missing.is_empty(), "never generated: {missing:?}");
    }
}
