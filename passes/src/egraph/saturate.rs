//! The saturation loop: every rule is searched, every match applied, until nothing changes. Limits count nodes and
//! iterations, never time, so that output cannot depend on the machine. At a limit the loop ends with what it has found.

use super::facts::Net;
use super::language::ENode;
use super::provenance::Provenance;
use super::term::Term;
use crate::PassError;
use crate::probe::Probe;
use crate::rules::{Answer, Body, Premises, Rule};
use crate::target::TargetModel;
use egg::{Id, Language, PatternAst, Subst, Var};
use indexmap::{IndexMap, IndexSet};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use weldment_ir::Attr;

/// Where saturation stops, finished or not.
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

/// What happened while saturating.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// For each e-node that only rules made (canonical): the rules that led to it, in the order in which one built on the
    /// other.
    pub made: IndexMap<ENode, Vec<usize>>,
    /// Rules that fired, by root class (canonical).
    pub fired: IndexMap<Id, BTreeSet<usize>>,
    /// Values that a rule which fired at a class (canonical) has no use for any more.
    pub dropped: IndexMap<Id, BTreeSet<Id>>,
    /// Matches applied, by rule.
    pub matches: BTreeMap<usize, usize>,
    /// Rounds.
    pub iterations: usize,
    /// The limit that ended the search before it was finished, and the rule that matched most often.
    pub limit: Option<String>,
}

/// What tells a match from others: rule, root class, classes bound.
type Key = (usize, Id, Vec<Id>);

/// One match to apply.
struct Match {
    key: Key,
    subst: Option<Subst>,
    equal: Vec<(Id, Term)>,
    /// The nodes matched.
    from: Vec<ENode>,
}

/// Applies `rules` until nothing changes, a limit is reached, or the probe's fuel is spent.
///
/// # Errors
/// If a rule merges values of different types.
pub fn saturate(
    net: &mut Net,
    rules: &[&Rule],
    target: &dyn TargetModel,
    limits: &Limits,
    probe: &Probe,
    graph_nodes: usize,
) -> Result<Log, PassError> {
    let mut log = Log::default();
    let mut done: IndexSet<Key> = IndexSet::new();
    let budget = limits.nodes.saturating_add(limits.nodes_per_node.saturating_mul(graph_nodes));
    net.rebuild();
    let mut provenance = Provenance::new(net);
    let mut distinct: IndexSet<Key> = IndexSet::new();
    let mut unused: Vec<(usize, Id, Id)> = Vec::new();
    loop {
        let mut matches = search(net, rules, &done);
        probe.shuffle(&mut matches, log.iterations);
        let (mut changed, mut full) = (false, false);
        for m in matches {
            full = net.total_size() > budget;
            if full || probe.is_spent() {
                break;
            }
            let (rule, root) = (m.key.0, m.key.1);
            unused.extend(unused_values(rules, &m));
            if apply(net, rules, target, m, &mut provenance, &mut done) {
                changed = true;
                probe.spend(rules.get(rule).map_or("none", |r| r.name), place(net, root));
            }
            if net.analysis.conflict.is_some() {
                break;
            }
        }
        net.rebuild();
        if let Some(message) = net.analysis.conflict.take() {
            return Err(PassError::Unsound { message });
        }
        log.iterations += 1;
        if changed && !full && log.iterations < limits.iterations {
            continue;
        }
        // The same match may have been seen before and after classes were merged.
        for (rule, root, bound) in done {
            let key = (rule, net.find(root), bound.into_iter().map(|id| net.find(id)).collect::<Vec<Id>>());
            if distinct.insert(key) {
                log.fired.entry(net.find(root)).or_default().insert(rule);
                *log.matches.entry(rule).or_default() += 1;
            }
        }
        for (rule, root, value) in unused {
            if log.fired.get(&net.find(root)).is_some_and(|fired| fired.contains(&rule)) {
                log.dropped.entry(net.find(root)).or_default().insert(net.find(value));
            }
        }
        if changed || full {
            log.limit = Some(reached(&log, rules, limits, full.then_some(budget)));
        }
        log.made = provenance.chains(net, rules);
        return Ok(log);
    }
}

/// What a limit says of itself.
fn reached(log: &Log, rules: &[&Rule], limits: &Limits, budget: Option<usize>) -> String {
    let name = |rule: &usize| rules.get(*rule).map_or("none", |r| r.name);
    let limit = budget.map_or_else(|| format!("{} iterations", limits.iterations), |n| format!("{n} e-nodes"));
    match log.matches.iter().max_by_key(|(rule, n)| (**n, std::cmp::Reverse(name(rule)))) {
        Some((rule, n)) => format!("{limit}; {} matched most often ({n} times)", name(rule)),
        None => limit,
    }
}

/// Matches not applied yet whose conditions hold. Nothing is applied before all are found, so that what is found does not
/// depend on the order of rules.
fn search(net: &Net, rules: &[&Rule], done: &IndexSet<Key>) -> Vec<Match> {
    let mut out = Vec::new();
    for (i, rule) in rules.iter().enumerate() {
        match &rule.body {
            Body::Rewrite { left, sources, conditions, .. } => {
                for (root, subst) in Rule::search(left, net) {
                    let key = (i, net.find(root), bound(rule, &subst, net));
                    if done.contains(&key) || conditions.iter().any(|c| c.holds(net, &subst) != Answer::Proven) {
                        continue;
                    }
                    let mut from = Vec::new();
                    for term in sources.iter().filter_map(|(_, source)| Term::instantiate(source, &subst)) {
                        term.nodes(net, &mut from);
                    }
                    out.push(Match { key, subst: Some(subst), equal: Vec::new(), from });
                }
            }
            Body::Custom { find, .. } => {
                for p in find(net, &Premises::default()).proposals {
                    let classes =
                        p.equal.iter().flat_map(|(id, t)| [net.find(*id)].into_iter().chain(term_classes(t, net)));
                    let key = (i, net.find(p.root), classes.collect());
                    if !done.contains(&key) {
                        out.push(Match { key, subst: None, equal: p.equal, from: p.from });
                    }
                }
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
    provenance: &mut Provenance,
    done: &mut IndexSet<Key>,
) -> bool {
    let (index, root, _) = m.key;
    let Some(rule) = rules.get(index) else { return false };
    let mut equal = m.equal;
    if let (Body::Rewrite { right, derived, .. }, Some(mut subst)) = (&rule.body, m.subst) {
        if !derived.iter().all(|d| d.bind(net, &mut subst)) {
            return false;
        }
        equal.extend(sides(right, root, &subst, &[]));
    }
    for (class, term) in &equal {
        let Ok(facts) = term.check(net, target) else { return false };
        if net[*class].data.value().is_none_or(|v| v.types != facts.types) {
            let message = format!("rule {} gives {:?} for {:?}", rule.name, facts.types, net[*class].data);
            net.analysis.conflict.get_or_insert(message);
            return false;
        }
    }
    let (mut changed, mut made) = (false, Vec::new());
    for (class, term) in &equal {
        let before = net.total_size();
        let id = term.add(net, &mut made);
        changed |= net.total_size() != before;
        changed |= net.union(*class, id);
    }
    provenance.record(made, index, &m.from);
    done.insert(m.key);
    changed
}

/// Rule, root and value for each value of a match that the rule has no use for any more.
fn unused_values(rules: &[&Rule], m: &Match) -> Vec<(usize, Id, Id)> {
    let (Some(Body::Rewrite { dropped, .. }), Some(subst)) = (rules.get(m.key.0).map(|r| &r.body), &m.subst) else {
        return Vec::new();
    };
    dropped.iter().filter_map(|v| Some((m.key.0, m.key.1, *subst.get(*v)?))).collect()
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

/// The right side's terms, each with the class that it equals.
pub(crate) fn sides(
    right: &[(Option<Var>, PatternAst<ENode>)],
    root: Id,
    subst: &Subst,
    derived: &[(Var, Attr)],
) -> Vec<(Id, Term)> {
    let side = |(var, pattern): &(Option<Var>, PatternAst<ENode>)| {
        let class = match var {
            Some(v) => subst.get(*v).copied(),
            None => Some(root),
        };
        class.zip(Term::instantiate_with(pattern, subst, derived))
    };
    right.iter().filter_map(side).collect()
}

fn bound(rule: &Rule, subst: &Subst, net: &Net) -> Vec<Id> {
    let Body::Rewrite { sources, .. } = &rule.body else { return Vec::new() };
    let mut ids = Vec::new();
    for node in sources.iter().flat_map(|(_, p)| p.iter()) {
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
