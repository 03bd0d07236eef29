//! The saturation loop: every rule is searched, every match applied, until nothing changes. Limits count nodes and
//! iterations, never time, so that output cannot depend on the machine; reaching one is an error.

use super::facts::Net;
use super::language::ENode;
use super::term::Term;
use crate::PassError;
use crate::probe::Probe;
use crate::rules::{Answer, Body, Rule};
use crate::target::TargetModel;
use egg::{Id, Language, Subst};
use indexmap::IndexMap;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Where saturation stops with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// E-nodes a node of the graph.
    pub nodes_per_node: usize,
    /// E-nodes beside those.
    pub nodes: usize,
    /// Rounds of search and apply.
    pub iterations: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { nodes_per_node: 60, nodes: 2000, iterations: 40 }
    }
}

/// A place where a rule's pattern matched and a condition or a kernel said no.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NearMiss {
    /// The rule, by its place in the list given to [`saturate`].
    pub rule: usize,
    /// The predicate.
    pub predicate: String,
    /// Found.
    pub found: String,
    /// Accepted.
    pub accepted: String,
}

/// What happened while saturating.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// For each e-node a rule made (canonical): the rules that led to it.
    pub made: IndexMap<ENode, BTreeSet<usize>>,
    /// Near misses by class (canonical).
    pub misses: IndexMap<Id, BTreeSet<NearMiss>>,
    /// Rules that fired, by root class (canonical).
    pub fired: IndexMap<Id, BTreeSet<usize>>,
    /// Values that a rule which fired at a class (canonical) has no use for any more.
    pub dropped: IndexMap<Id, BTreeSet<Id>>,
    /// Matches applied, by rule.
    pub matches: BTreeMap<usize, usize>,
    /// Rounds.
    pub iterations: usize,
}

impl Log {
    /// Rewrites every key to its canonical class.
    fn canonicalise(&mut self, net: &Net) {
        let mut made: IndexMap<ENode, BTreeSet<usize>> = IndexMap::with_capacity(self.made.len());
        for (node, rules) in self.made.drain(..) {
            let node = node.map_children(|c| net.find(c));
            // Two derivations of one node: the shorter chain explains it, ties by rule order.
            let keep = made.entry(node).or_insert_with(|| rules.clone());
            if (rules.len(), &rules) < (keep.len(), keep) {
                *keep = rules;
            }
        }
        self.made = made;
        let mut fired: IndexMap<Id, BTreeSet<usize>> = IndexMap::new();
        for (id, rules) in self.fired.drain(..) {
            fired.entry(net.find(id)).or_default().extend(rules);
        }
        self.fired = fired;
        let mut misses: IndexMap<Id, BTreeSet<NearMiss>> = IndexMap::new();
        for (id, found) in self.misses.drain(..) {
            misses.entry(net.find(id)).or_default().extend(found);
        }
        self.misses = misses;
        let mut dropped: IndexMap<Id, BTreeSet<Id>> = IndexMap::new();
        for (id, values) in self.dropped.drain(..) {
            dropped.entry(net.find(id)).or_default().extend(values.iter().map(|v| net.find(*v)));
        }
        self.dropped = dropped;
    }
}

/// One match to apply.
struct Match {
    rule: usize,
    root: Id,
    subst: Option<Subst>,
    equal: Vec<(Id, Term)>,
}

/// Applies `rules` until nothing changes, or the probe's fuel is spent.
///
/// # Errors
/// At a limit, naming the rule with most matches; if a rule merges values of different types.
pub fn saturate(
    net: &mut Net,
    rules: &[&Rule],
    target: &dyn TargetModel,
    limits: &Limits,
    probe: &Probe,
    graph_nodes: usize,
) -> Result<Log, PassError> {
    let mut log = Log::default();
    let mut done: HashSet<(usize, Id, Vec<Id>)> = HashSet::new();
    let budget = limits.nodes + limits.nodes_per_node * graph_nodes;
    net.rebuild();
    loop {
        let mut matches = search(net, rules, &mut log);
        probe.shuffle(&mut matches, log.iterations);
        let mut changed = false;
        for m in matches {
            if probe.is_spent() {
                break;
            }
            let (rule, root) = (m.rule, m.root);
            if apply(net, rules, target, m, &mut log, &mut done) {
                changed = true;
                probe.spend(rules.get(rule).map_or("none", |r| r.name), place(net, root));
            }
            if net.analysis.conflict.is_some() {
                break;
            }
        }
        net.rebuild();
        log.canonicalise(net);
        if let Some(message) = net.analysis.conflict.take() {
            return Err(PassError::Unsound { message });
        }
        log.iterations += 1;
        if !changed {
            return Ok(log);
        }
        let full = net.total_number_of_nodes() > budget;
        if full || log.iterations >= limits.iterations {
            let (rule, matches) = log
                .matches
                .iter()
                .max_by_key(|(rule, n)| (**n, std::cmp::Reverse(**rule)))
                .map_or((0, 0), |(r, n)| (*r, *n));
            return Err(PassError::Limit {
                limit: if full { format!("{budget} e-nodes") } else { format!("{} iterations", limits.iterations) },
                rule: rules.get(rule).map_or("none", |r| r.name),
                matches,
            });
        }
    }
}

fn search(net: &Net, rules: &[&Rule], log: &mut Log) -> Vec<Match> {
    let mut out = Vec::new();
    for (i, rule) in rules.iter().enumerate() {
        match &rule.body {
            Body::Rewrite { left, .. } => out.extend(Rule::search(left, net).into_iter().map(|(root, subst)| Match {
                rule: i,
                root,
                subst: Some(subst),
                equal: Vec::new(),
            })),
            Body::Custom(find) => {
                let found = find(net);
                for m in found.misses {
                    let miss =
                        NearMiss { rule: i, predicate: m.predicate.into(), found: m.found, accepted: m.accepted };
                    log.misses.entry(m.root).or_default().insert(miss);
                }
                out.extend(found.proposals.into_iter().map(|p| Match {
                    rule: i,
                    root: p.root,
                    subst: None,
                    equal: p.equal,
                }));
            }
        }
    }
    out
}

/// Applies one match; true if the e-graph changed.
fn apply(
    net: &mut Net,
    rules: &[&Rule],
    target: &dyn TargetModel,
    m: Match,
    log: &mut Log,
    done: &mut HashSet<(usize, Id, Vec<Id>)>,
) -> bool {
    let Some(rule) = rules.get(m.rule) else { return false };
    let key = match &m.subst {
        Some(subst) => bound(rule, subst, net),
        None => m.equal.iter().flat_map(|(id, t)| [net.find(*id)].into_iter().chain(term_classes(t, net))).collect(),
    };
    let key = (m.rule, net.find(m.root), key);
    if done.contains(&key) {
        return false;
    }
    let mut miss = |predicate: String, found: String, accepted: String| {
        let miss = NearMiss { rule: m.rule, predicate, found, accepted };
        log.misses.entry(m.root).or_default().insert(miss);
        false
    };
    let mut equal = m.equal;
    let (mut origins, mut unused) = (BTreeSet::new(), Vec::new());
    if let (Body::Rewrite { sources, right, derived, conditions, dropped, .. }, Some(mut subst)) = (&rule.body, m.subst)
    {
        unused.extend(dropped.iter().filter_map(|v| subst.get(*v).copied()));
        for c in conditions {
            if let Answer::Unknown { found, accepted } = c.holds(net, &subst) {
                return miss(c.predicate.to_owned(), found, accepted);
            }
        }
        if !derived.iter().all(|d| d.bind(net, &mut subst)) {
            return false;
        }
        for (var, pattern) in right {
            let class = match var {
                Some(v) => subst.get(*v).copied(),
                None => Some(m.root),
            };
            if let (Some(class), Some(term)) = (class, Term::instantiate(pattern, &subst)) {
                equal.push((class, term));
            }
        }
        let mut matched = Vec::new();
        for source in sources {
            if let Some(term) = Term::instantiate(source, &subst) {
                term.nodes(net, &mut matched);
            }
        }
        for node in &matched {
            origins.extend(log.made.get(node).into_iter().flatten().copied());
        }
    }
    for (class, term) in &equal {
        match term.check(net, target) {
            Err(r) => return miss(r.predicate, r.found, r.accepted),
            Ok(facts) => {
                if net[*class].data.value().is_none_or(|v| v.types != facts.types) {
                    let message = format!("rule {} gives {:?} for {:?}", rule.name, facts.types, net[*class].data);
                    net.analysis.conflict.get_or_insert(message);
                    return false;
                }
            }
        }
    }
    origins.insert(m.rule);
    let before = net.number_of_classes();
    let mut changed = false;
    for (class, term) in &equal {
        let id = term.add(net, &mut |node| {
            changed = true;
            log.made.entry(node.clone()).or_insert_with(|| origins.clone());
        });
        changed |= net.union(*class, id);
    }
    changed |= net.number_of_classes() != before;
    done.insert(key);
    log.fired.entry(m.root).or_default().insert(m.rule);
    if !unused.is_empty() {
        log.dropped.entry(m.root).or_default().extend(unused);
    }
    *log.matches.entry(m.rule).or_default() += 1;
    changed
}

/// The unit node that a class stands for: its own, else the last that it is computed from.
fn place(net: &Net, root: Id) -> Option<u32> {
    let mut seen = HashSet::new();
    let mut layer = vec![net.find(root)];
    while !layer.is_empty() {
        let known = layer.iter().filter_map(|id| net[*id].data.value()?.order).max();
        if known.is_some() {
            return known;
        }
        let below = layer.iter().flat_map(|id| net[*id].iter()).flat_map(|n| n.children().iter());
        layer = below.map(|id| net.find(*id)).filter(|id| seen.insert(*id)).collect();
    }
    None
}

fn bound(rule: &Rule, subst: &Subst, net: &Net) -> Vec<Id> {
    let Body::Rewrite { sources, .. } = &rule.body else { return Vec::new() };
    let mut ids = Vec::new();
    for node in sources.iter().flat_map(|p| p.iter()) {
        if let egg::ENodeOrVar::Var(v) = node {
            ids.extend(subst.get(*v).map(|id| net.find(*id)));
        }
    }
    ids
}

fn term_classes(term: &Term, net: &Net) -> Vec<Id> {
    match term {
        Term::Class(id) => vec![net.find(*id)],
        Term::Attr(_) => Vec::new(),
        Term::Op(_, children) => children.iter().flat_map(|c| term_classes(c, net)).collect(),
        Term::Result(_, inner) => term_classes(inner, net),
    }
}
