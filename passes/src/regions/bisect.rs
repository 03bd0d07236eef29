//! Which rewrite breaks a graph: the smallest fuel at which a region differs.

use super::{Effort, Regions, judge};
use crate::error::PassError;
use crate::pipeline::{Optimised, Options, optimise_by};
use crate::probe::Rewrite;
use crate::rules::Rule;
use crate::target::TargetModel;
use std::collections::BTreeSet;
use weldment_ir::Graph;

/// The rewrite that breaks a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Culprit {
    /// The smallest fuel at which a region differs: the number of the rewrite.
    pub fuel: u64,
    /// The rewrite.
    pub rewrite: Rewrite,
    /// Source paths of the region that differs.
    pub region: BTreeSet<String>,
    /// How it differs.
    pub failure: String,
}

/// The smallest `n` in `1..=total` for which `fails` holds, if it holds for `total`; of several, one at whose predecessor it
/// does not.
///
/// # Errors
/// Those of `fails`.
pub fn smallest_failing<E>(total: u64, mut fails: impl FnMut(u64) -> Result<bool, E>) -> Result<Option<u64>, E> {
    if total == 0 || !fails(total)? {
        return Ok(None);
    }
    let (mut good, mut bad) = (0, total);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fails(middle)? {
            bad = middle;
        } else {
            good = middle;
        }
    }
    Ok(Some(bad))
}

/// The first region that differs, and how.
fn first_failure(
    graph: &Graph,
    optimised: &Optimised,
    effort: &Effort,
) -> Result<Option<(BTreeSet<String>, String)>, PassError> {
    let regions = Regions::new(graph, optimised);
    let mut known = BTreeSet::new();
    for region in regions.all()? {
        if known.insert(region.key())
            && let Some(failure) = judge(&regions, &region, effort)?.failed
        {
            return Ok(Some((region.paths, failure)));
        }
    }
    Ok(None)
}

/// Finds the rewrite of `rules` whose application makes a region of `graph` differ, by fuel: `None` if no region does.
///
/// # Errors
/// Those of optimisation and of interpretation.
pub fn bisect_fuel(
    graph: &Graph,
    target: &dyn TargetModel,
    options: &Options,
    rules: &[Rule],
    effort: &Effort,
) -> Result<Option<Culprit>, PassError> {
    let optimised = |fuel| optimise_by(graph, target, &Options { fuel, ..options.clone() }, rules);
    let total = optimised(options.fuel)?.rewrites;
    let fails = |n| Ok::<_, PassError>(first_failure(graph, &optimised(Some(n))?, effort)?.is_some());
    let Some(fuel) = smallest_failing(total, fails)? else { return Ok(None) };
    let at = optimised(Some(fuel))?;
    let found = first_failure(graph, &at, effort)?;
    Ok(found.zip(at.last_rewrite).map(|((region, failure), rewrite)| Culprit { fuel, rewrite, region, failure }))
}
