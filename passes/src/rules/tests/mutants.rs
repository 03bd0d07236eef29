//! The law's own gate: wrong siblings of every rule ([`super::mutate`]) must be caught by what a rule is held against.
//!
//! A mutant is caught if it proposes something unequal or of another type, or if the op table or a condition refuses it
//! wherever the rule itself fires. A mutant that lives is either equivalent, with its proof in [`EQUIVALENT`], or shows a
//! hole: a condition that does nothing, or an instance that `draw.rs` does not draw.
//!
//! `cargo test -p weldment-passes --lib mutants -- --nocapture` prints the score; `WELDMENT_RULE=name` takes one rule.

use super::customs;
use super::draw::{Instance, draw};
use super::equivalent::EQUIVALENT;
use super::gate::{Equal, Verdict, compare, over_rules, rewritten};
use super::mutate::{Mutation, left, of_left, of_terms, terms};
use super::support::Random;
use crate::rules::{Answer, Body, Premises, Rule};
use std::collections::BTreeSet;

/// Draws in which a mutant must be caught.
const DRAWS: u64 = 1500;
/// Draws for one with another condition, until it has done this often what the rule does not, or for one that seldom fires.
const CONDITION_DRAWS: u64 = 60_000;
const EXTRA: u64 = 1000;
/// Draws after which a mutant counts as never firing, if the rule fired this often.
const FIRED: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// By the values or types of an instance.
    Unequal,
    /// It fires nowhere, while the rule does.
    NeverFires,
    /// Nothing told it from the rule.
    Lives,
    /// It proposes what the rule proposes, each time.
    Same,
}

/// What a rule, or its sibling, proposes on an instance.
fn proposals(rule: &Rule, mutation: Option<&Mutation>, instance: &mut Instance) -> Vec<Equal> {
    let found: Vec<Equal> = match &rule.body {
        Body::Rewrite { conditions, .. } => {
            let mut holds = true;
            for (i, c) in conditions.iter().enumerate() {
                let proven = c.holds(&instance.net, &instance.subst) == Answer::Proven;
                holds &= match mutation {
                    Some(Mutation::Drop(n, _)) if *n == i => true,
                    Some(Mutation::Invert(n, _)) if *n == i => !proven,
                    _ => proven,
                };
            }
            if holds { rewritten(rule, instance).into_iter().collect() } else { Vec::new() }
        }
        Body::Custom { find, .. } => {
            let premises = match mutation {
                Some(Mutation::Grant(premise)) => Premises::without(premise),
                _ => Premises::default(),
            };
            instance.net.rebuild();
            find(&instance.net, &premises).proposals.into_iter().map(|p| p.equal).collect()
        }
    };
    match mutation {
        Some(mutation) => found.iter().filter_map(|equal| terms(equal, mutation, instance)).collect(),
        None => found,
    }
}

fn instance(rule: &Rule, mutation: Option<&Mutation>, random: &mut Random) -> Option<Instance> {
    match (&rule.body, mutation) {
        (Body::Rewrite { sources, .. }, Some(mutation)) => draw(&left(sources, mutation), random),
        (Body::Rewrite { sources, .. }, None) => draw(sources, random),
        (Body::Custom { .. }, _) => customs::draw(rule.name, random),
    }
}

fn fate(rule: &Rule, mutation: &Mutation) -> Fate {
    let mut random = Random(0xD1B5_4A32_D192_ED03);
    let (mut fired, mut own, mut extra) = (0u64, 0u64, 0u64);
    let condition = matches!(mutation, Mutation::Drop(..) | Mutation::Invert(..));
    let open = !known(rule.name, &mutation.to_string());
    for draws in 0.. {
        // A condition may seldom fail where all others hold, and few instances may suit a sibling.
        let seldom = condition || fired < FIRED;
        let enough = if open && fired > 0 && seldom { CONDITION_DRAWS } else { DRAWS };
        if draws >= enough && (fired > 0 || own >= FIRED) || draws >= CONDITION_DRAWS || extra > EXTRA {
            break;
        }
        let Some(mut instance) = instance(rule, Some(mutation), &mut random) else { continue };
        let original = proposals(rule, None, &mut instance);
        own += u64::from(!original.is_empty());
        for equal in proposals(rule, Some(mutation), &mut instance) {
            let same = original.contains(&equal);
            if same && !matches!(mutation, Mutation::Split(..) | Mutation::Widen(..) | Mutation::LeftOp(..)) {
                fired += 1;
                continue;
            }
            match compare(&instance, &equal, rule, &mut random) {
                Verdict::Wrong(_) => return Fate::Unequal,
                Verdict::Equal(_) => {
                    fired += 1;
                    extra += u64::from(!same);
                }
                Verdict::Redraw | Verdict::Refused => {}
            }
        }
    }
    match (fired, extra) {
        (0, _) => Fate::NeverFires,
        (_, 0) if matches!(mutation, Mutation::Term(..) | Mutation::Exchange) => Fate::Same,
        _ => Fate::Lives,
    }
}

/// Every mutation of a rule: of its left side, and of what it proposes on the first instances where it fires.
fn mutations(rule: &Rule) -> BTreeSet<Mutation> {
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let mut out: BTreeSet<Mutation> = of_left(rule).into_iter().collect();
    let mut fired = 0;
    for _ in 0..20 * DRAWS {
        let Some(mut instance) = instance(rule, None, &mut random) else { continue };
        for equal in proposals(rule, None, &mut instance) {
            if matches!(compare(&instance, &equal, rule, &mut random), Verdict::Equal(_)) {
                out.extend(of_terms(&equal));
                fired += 1;
            }
        }
        if fired >= 3 {
            break;
        }
    }
    out
}

/// Is this mutant listed with a proof?
fn known(rule: &str, mutant: &str) -> bool {
    EQUIVALENT.iter().any(|(r, m, _)| *r == rule && *m == mutant)
}

#[test]
fn wrong_siblings_of_every_rule_are_caught() {
    let only = std::env::var("WELDMENT_RULE").ok();
    let fates = over_rules(|rule| {
        if only.as_ref().is_some_and(|name| name != rule.name) {
            return Vec::new();
        }
        mutations(rule).into_iter().map(|m| (fate(rule, &m), m.to_string())).collect()
    });
    let (mut caught, mut made, mut by_value, mut same) = (0, 0, 0, 0);
    let (mut lives, mut few) = (Vec::new(), Vec::new());
    let mut used = BTreeSet::new();
    for (rule, fates) in &fates {
        let mut own = 0;
        for (fate, mutant) in fates {
            match fate {
                Fate::Same => same += 1,
                Fate::Lives if known(rule, mutant) => drop(used.insert((*rule, mutant.clone()))),
                Fate::Lives => {
                    made += 1;
                    lives.push(format!("{rule}: {mutant}"));
                }
                Fate::Unequal | Fate::NeverFires => {
                    made += 1;
                    own += 1;
                    caught += 1;
                    by_value += usize::from(*fate == Fate::Unequal);
                }
            }
        }
        println!("{rule}: {own} wrong siblings caught");
        if own < 5 && only.as_ref().is_none_or(|name| name == rule) {
            few.push(*rule);
        }
    }
    println!(
        "{made} mutants, {caught} caught ({by_value} by values or types, {} never fire): score {:.2} %; {} equivalent, {same} the same",
        caught - by_value,
        100.0 * caught as f64 / made.max(1) as f64,
        used.len()
    );
    assert!(lives.is_empty(), "mutants that live:\n{}", lives.join("\n"));
    assert!(few.is_empty(), "rules with fewer than five wrong siblings: {few:?}");
    let stale: Vec<_> = EQUIVALENT.iter().filter(|(r, m, _)| !used.contains(&(*r, (*m).to_owned()))).collect();
    assert!(only.is_some() || stale.is_empty(), "listed as equivalent and caught, or not made at all: {stale:#?}");
}
