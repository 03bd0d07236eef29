//! What a person turns to find a wrong rewrite: `--chaos SEED` perturbs what must not matter (the order in which matches
//! are applied, ties of extraction), `--fuel N` lets only the first N rewrites happen.

use std::cell::Cell;
use std::collections::BTreeSet;
use weldment_ir::generate::Random;

/// A rewrite that changed an e-graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// The rule.
    pub rule: &'static str,
    /// Source paths of the place, where the unit it happened in stands first.
    pub paths: BTreeSet<String>,
}

/// Perturbation and fuel of one optimisation. Fuel is counted over all its distinct units, in the order in which they are
/// solved.
#[derive(Debug, Default)]
pub struct Probe {
    chaos: Option<u64>,
    fuel: Option<u64>,
    used: Cell<u64>,
    last: Cell<Option<(&'static str, Option<u32>)>>,
}

impl Probe {
    /// A probe with a seed and a number of rewrites; `None` perturbs nothing and has no end.
    pub fn new(chaos: Option<u64>, fuel: Option<u64>) -> Probe {
        Probe { chaos, fuel, ..Probe::default() }
    }

    /// True if no further rewrite may happen.
    pub fn is_spent(&self) -> bool {
        self.fuel.is_some_and(|fuel| self.used.get() >= fuel)
    }

    /// Counts a rewrite by `rule`, at a node of the unit where that is known.
    pub fn spend(&self, rule: &'static str, node: Option<u32>) {
        self.used.set(self.used.get() + 1);
        self.last.set(Some((rule, node)));
    }

    /// Rewrites so far.
    pub fn used(&self) -> u64 {
        self.used.get()
    }

    /// Rule and unit node of the last rewrite.
    pub fn last(&self) -> Option<(&'static str, Option<u32>)> {
        self.last.get()
    }

    /// Perturbs the order of `items`, differently in each `round`; leaves it without a seed.
    pub fn shuffle<T>(&self, items: &mut [T], round: usize) {
        if let Some(seed) = self.chaos {
            shuffle(items, seed.wrapping_add((round as u64) << 32));
        }
    }

    /// What tie breaks by hash start from; 0 without a seed.
    pub fn salt(&self) -> u64 {
        self.chaos.map_or(0, |seed| Random::new(seed).bits())
    }
}

/// Fisher and Yates, by `seed`.
pub(crate) fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut random = Random::new(seed);
    for i in (1..items.len()).rev() {
        items.swap(i, random.below(i as u64 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuel_ends_and_orders_follow_the_seed() {
        let probe = Probe::new(None, Some(2));
        assert!(!probe.is_spent());
        probe.spend("a", None);
        probe.spend("b", Some(3));
        assert!(probe.is_spent());
        assert_eq!((probe.used(), probe.last()), (2, Some(("b", Some(3)))));
        let order = |chaos, round| {
            let mut items: Vec<u32> = (0..20).collect();
            Probe::new(chaos, None).shuffle(&mut items, round);
            items
        };
        assert_eq!(order(None, 1), (0..20).collect::<Vec<u32>>());
        assert_eq!(order(Some(7), 1), order(Some(7), 1));
        assert_ne!(order(Some(7), 1), order(Some(8), 1));
        assert_ne!(order(Some(7), 1), order(Some(7), 2));
    }
}
