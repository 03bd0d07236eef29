//! Near misses: for a place that was left as it was, the closest rule of the fusion, the predicate that fails with its
//! values, and the smallest change that would let the rule match.

mod merge;
mod partial;
mod pattern;
mod search;
mod words;

use crate::egraph::{Term, sides};
use crate::rules::{Answer, Body, Condition, Rule};
use crate::solve::{Solved, Solver};
use egg::{Id, Subst};
pub(crate) use merge::merge_obstacle;
use partial::{Edit, Partial};
use pattern::Tree;
pub(crate) use search::Ground;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use weldment_ir::OpKind;
pub(crate) use words::{Place, mark_node, mark_output, resolve};

/// What kept a rule from matching.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Obstacle {
    pub predicate: String,
    pub found: String,
    pub accepted: String,
    pub change: String,
    /// Nodes of the unit where it was found.
    pub at: Vec<u32>,
}

/// The rule that comes closest at a place.
pub(crate) struct Closest<'a> {
    pub rule: &'a Rule,
    /// Why it may not fire.
    pub barred: Option<&'a str>,
    /// What fails first; `None` if it matches.
    pub obstacle: Option<Obstacle>,
    /// Classes of the ops that it matched.
    pub ops: Vec<Id>,
    pub root: Option<Id>,
    cost: usize,
    size: usize,
}

/// The rules that may fire, then those that may not.
fn everything<'a>(solver: &'a Solver<'a>) -> impl Iterator<Item = (&'a Rule, Option<&'a str>)> {
    let live = solver.rules.iter().map(|r| (*r, None));
    live.chain(solver.barred.iter().map(|(r, why)| (*r, Some(why.as_str()))))
}

/// The rule of `group` that comes closest where `nodes` stand. Of rules that match, one that makes what does all of `kinds` goes
/// first, if any are given.
pub(crate) fn closest<'a>(
    solver: &'a Solver<'a>,
    solved: &Solved<'_>,
    ground: &Ground<'_>,
    group: &str,
    nodes: &[u32],
    kinds: &[OpKind],
) -> Option<Closest<'a>> {
    let rules: Vec<_> = everything(solver).filter(|(r, _)| r.group == Some(group)).collect();
    let mut places: Vec<(Id, OpKind)> =
        nodes.iter().filter_map(|n| Some((ground.class(*n)?, ground.kind(*n)))).collect();
    let finishes = |rule: &Rule| kinds.is_empty() || makes(rule, kinds);
    let found = best_of(solver, ground, &rules, &places);
    // A rule on the way (silu from sigmoid) matched: what it made is where the rest of the fusion starts.
    let on_the_way = found.as_ref().is_some_and(|c| c.obstacle.is_none() && !finishes(c.rule));
    if !on_the_way {
        return found;
    }
    let rest: Vec<_> = rules.iter().copied().filter(|(r, _)| finishes(r)).collect();
    places.extend(found.iter().filter_map(|c| c.root).flat_map(|root| {
        let made = solved.net[root].iter().filter(|n| {
            solved
                .log
                .made
                .get(*n)
                .is_some_and(|chain| chain.last().is_some_and(|r| solver.rules[*r].group == Some(group)))
        });
        made.filter_map(|n| match n {
            crate::egraph::ENode::Op(kind, _) => Some((solved.net.find(root), *kind)),
            _ => None,
        })
        .collect::<Vec<_>>()
    }));
    best_of(solver, ground, &rest, &places).or(found)
}

/// The rule of `group` that comes closest where ops of these kinds stand in these classes.
pub(crate) fn closest_at<'a>(
    solver: &'a Solver<'a>,
    ground: &Ground<'_>,
    group: &str,
    places: &[(Id, OpKind)],
) -> Option<Closest<'a>> {
    let rules: Vec<_> = everything(solver).filter(|(r, _)| r.group == Some(group)).collect();
    best_of(solver, ground, &rules, places)
}

/// Does the right side of a rule hold one of these ops?
fn makes(rule: &Rule, kinds: &[OpKind]) -> bool {
    let Body::Rewrite { right, .. } = &rule.body else { return true };
    right.iter().flat_map(|(_, p)| p.iter()).any(|node| match node {
        egg::ENodeOrVar::ENode(crate::egraph::ENode::Op(kind, _)) => kind.does_all(kinds),
        _ => false,
    })
}

fn best_of<'a>(
    solver: &'a Solver<'a>,
    ground: &Ground<'_>,
    rules: &[(&'a Rule, Option<&'a str>)],
    places: &[(Id, OpKind)],
) -> Option<Closest<'a>> {
    let mut found: Vec<Closest<'a>> = Vec::new();
    for (rule, barred) in rules {
        let Some(tree) = ground.tree(rule) else { continue };
        for (class, kind) in places {
            for way in tree.ways_to(*kind) {
                let Some(inner) = tree.at(&way) else { continue };
                let below = ground.down(inner, *class, None);
                for partial in below.iter().flat_map(|p| ground.up(tree, &way, *class, p)) {
                    found.push(judge(solver, ground, rule, *barred, tree, partial));
                }
            }
        }
    }
    let best = found.iter().enumerate().min_by_key(|(_, c)| c.key()).map(|(i, _)| i)?;
    let mut best = found.swap_remove(best);
    // Where one of several ops would do, the accepted ones are named together.
    if let Some(obstacle) = &mut best.obstacle {
        let same = |c: &&Closest<'_>| c.cost == best.cost && c.barred.is_none() == best.barred.is_none();
        let accepted: BTreeSet<&str> = found
            .iter()
            .filter(same)
            .filter_map(|c| c.obstacle.as_ref())
            .filter(|o| o.predicate == obstacle.predicate && o.found == obstacle.found)
            .map(|o| o.accepted.as_str())
            .chain([obstacle.accepted.as_str()])
            .collect();
        if accepted.len() > 1 {
            let accepted = accepted.into_iter().collect::<Vec<_>>().join(" or ");
            obstacle.change = obstacle.change.replacen(&obstacle.accepted, &accepted, 1);
            obstacle.accepted = accepted;
        }
    }
    Some(best)
}

impl Closest<'_> {
    /// Fewest edits, then a rule that may fire, then the larger pattern; the rest makes the choice unique.
    fn key(&self) -> (usize, bool, Reverse<usize>, &str, Option<&Obstacle>) {
        (self.cost, self.barred.is_some(), Reverse(self.size), self.rule.name, self.obstacle.as_ref())
    }
}

/// The first thing that fails in a partial match: an edit, then a condition, then the right side.
fn judge<'a>(
    solver: &'a Solver<'a>,
    ground: &Ground<'_>,
    rule: &'a Rule,
    barred: Option<&'a str>,
    tree: &Tree,
    partial: Partial,
) -> Closest<'a> {
    let (mut cost, mut obstacle) = (partial.cost, None);
    if let Some(edit) = partial.edits.first() {
        obstacle = Some(words::edit(ground, edit, explain_step(solver, ground, edit)));
    }
    let subst = subst_of(&partial);
    for (failed, answer) in conditions(rule, ground, &subst) {
        cost += 1;
        obstacle.get_or_insert_with(|| {
            let at = failed_at(ground, &partial);
            words::condition(failed, answer, at)
        });
    }
    if let (None, Some(root)) = (&obstacle, partial.root)
        && let Some(refused) = refusal(solver, ground, rule, root, &subst)
    {
        cost += 1;
        obstacle = Some(Obstacle { at: ground.at(root).to_vec(), ..refused });
    }
    Closest { rule, barred, obstacle, ops: partial.ops, root: partial.root, cost, size: tree.size() }
}

fn subst_of(partial: &Partial) -> Subst {
    let mut subst = Subst::with_capacity(partial.bound.len());
    for (v, id, _) in &partial.bound {
        if subst.get(*v).is_none() {
            subst.insert(*v, *id);
        }
    }
    subst
}

/// Conditions that fail, with the answer.
fn conditions<'r>(rule: &'r Rule, ground: &Ground<'_>, subst: &Subst) -> Vec<(&'r Condition, (String, String))> {
    let Body::Rewrite { conditions, .. } = &rule.body else { return Vec::new() };
    let bound = conditions.iter().filter(|c| c.is_bound(subst));
    bound
        .filter_map(|c| match c.holds(ground.net, subst) {
            Answer::Proven => None,
            Answer::Unknown { found, accepted } => Some((c, (found, accepted))),
        })
        .collect()
}

/// Where a condition failed: the place of the match.
fn failed_at(ground: &Ground<'_>, partial: &Partial) -> Vec<u32> {
    partial.root.map(|root| ground.at(root).to_vec()).unwrap_or_default()
}

/// Why the right side of a match is refused: a type rule or a kernel's precondition.
fn refusal(solver: &Solver<'_>, ground: &Ground<'_>, rule: &Rule, root: Id, subst: &Subst) -> Option<Obstacle> {
    let Body::Rewrite { right, derived, .. } = &rule.body else { return None };
    let mut attrs = Vec::new();
    for d in derived {
        match d.value(ground.net, subst) {
            Some(value) => attrs.push(value),
            None if d.args().iter().all(|v| subst.get(*v).is_some()) => {
                return Some(words::plain("attributes", "a value that is not known", "a known value"));
            }
            None => return None,
        }
    }
    let terms: Vec<(Id, Term)> = sides(right, root, subst, &attrs);
    let refused = terms.iter().find_map(|(_, term)| term.check(ground.net, solver.target).err())?;
    Some(words::plain(&refused.predicate, &refused.found, &refused.accepted))
}

/// Why a view or a cast that stands between stays there: the rule that would move it, and what fails.
fn explain_step(solver: &Solver<'_>, ground: &Ground<'_>, edit: &Edit) -> Option<words::Stays> {
    let Edit::Between { by, reader, class, .. } = edit else { return None };
    let by_kind = ground.kind(*by);
    let helpers = everything(solver).filter_map(|(rule, barred)| {
        let tree = ground.tree(rule)?;
        let direct = matches!(tree, Tree::Op { kind, children, .. }
            if *kind == *reader && children.iter().any(|c| c.kind() == Some(by_kind)));
        direct.then_some((rule, barred, tree))
    });
    let readers: BTreeSet<Id> = match class {
        Some(class) => [*class].into(),
        None => ground.users[*by as usize].iter().filter_map(|(u, _)| ground.class(*u)).collect(),
    };
    let mut found: Vec<words::Stays> = Vec::new();
    for (rule, barred, tree) in helpers {
        for class in &readers {
            for partial in ground.down(tree, *class, None).iter().filter(|p| p.cost == 0) {
                let subst = subst_of(partial);
                let failed = conditions(rule, ground, &subst).into_iter().next();
                let why = match (failed, barred) {
                    (Some((c, (found, accepted))), _) => format!("{} is {found}, {accepted} is accepted", c.predicate),
                    (None, Some(why)) => why.to_owned(),
                    (None, None) => match refusal(solver, ground, rule, *class, &subst) {
                        Some(o) => format!("{} is {}, {} is accepted", o.predicate, o.found, o.accepted),
                        None => continue,
                    },
                };
                found.push(words::Stays { rule: rule.name, why });
            }
        }
    }
    found.into_iter().min()
}
