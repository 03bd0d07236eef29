//! Which rewrites led to a node. A node may be derived in several ways; the one with fewest rewrites explains it, ties by
//! the names of the rules, so that the account depends neither on the order of rules nor on class ids.

use super::facts::Net;
use super::language::ENode;
use crate::rules::Rule;
use egg::Language;
use indexmap::{IndexMap, IndexSet};

/// A node that a rule made, and the nodes that the rule matched.
#[derive(Clone, Debug)]
struct Derivation {
    made: ENode,
    rule: usize,
    from: Vec<ENode>,
}

/// What is written down while rules are applied.
#[derive(Clone, Debug)]
pub(super) struct Provenance {
    originals: Vec<ENode>,
    derivations: Vec<Derivation>,
}

/// The account of one node: rewrites in all, and the rules in the order in which one built on the other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    rewrites: u32,
    chain: Vec<usize>,
}

impl Provenance {
    /// Starts with the nodes of an e-graph before any rule.
    pub fn new(net: &Net) -> Provenance {
        let originals = net.classes().flat_map(|class| class.iter().cloned()).collect();
        Provenance { originals, derivations: Vec::new() }
    }

    /// Rule `rule` made `made` out of `from`.
    pub fn record(&mut self, made: Vec<ENode>, rule: usize, from: &[ENode]) {
        self.derivations.extend(made.into_iter().map(|made| Derivation { made, rule, from: from.to_vec() }));
    }

    /// The chain of rules for each node (canonical) that only rules made.
    pub fn chains(self, net: &Net, rules: &[&Rule]) -> IndexMap<ENode, Vec<usize>> {
        let canonical = |node: ENode| node.map_children(|c| net.find(c));
        let originals: IndexSet<ENode> = self.originals.into_iter().map(canonical).collect();
        let mut seen: IndexSet<(ENode, usize, Vec<ENode>)> = IndexSet::with_capacity(self.derivations.len());
        for d in self.derivations {
            let made = canonical(d.made);
            if !originals.contains(&made) {
                let from = d.from.into_iter().map(canonical).filter(|n| !originals.contains(n)).collect();
                seen.insert((made, d.rule, from));
            }
        }
        let name = |rule: &usize| rules.get(*rule).map_or("", |r| r.name);
        let mut accounts: IndexMap<ENode, Account> = IndexMap::new();
        // Accounts only get shorter; the bound is a guard, never reached by a finite set of derivations.
        for _ in 0..=seen.len() {
            let mut changed = false;
            for (made, rule, from) in &seen {
                let Some(found) = account(&accounts, *rule, from) else { continue };
                let names = |a: &Account| a.chain.iter().map(name).collect::<Vec<&str>>();
                let better = accounts.get(made).is_none_or(|known| {
                    found.rewrites < known.rewrites
                        || (found.rewrites == known.rewrites && names(&found) < names(known))
                });
                if better {
                    accounts.insert(made.clone(), found);
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        accounts.into_iter().map(|(node, account)| (node, account.chain)).collect()
    }
}

/// The account of a node made by `rule` from these; `None` while one of them has none.
fn account(accounts: &IndexMap<ENode, Account>, rule: usize, from: &[ENode]) -> Option<Account> {
    let mut out = Account { rewrites: 1, chain: Vec::new() };
    for (i, node) in from.iter().enumerate() {
        let step = accounts.get(node)?;
        if !from[..i].contains(node) {
            out.rewrites = out.rewrites.saturating_add(step.rewrites);
        }
        let more: Vec<usize> = step.chain.iter().copied().filter(|r| !out.chain.contains(r)).collect();
        out.chain.extend(more);
    }
    // A rule that acted twice is named where it acted last.
    out.chain.retain(|r| *r != rule);
    out.chain.push(rule);
    Some(out)
}
