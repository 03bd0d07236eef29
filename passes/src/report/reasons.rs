//! Why an anchor was left as it was.

use super::Reason;
use super::anchors::{Anchor, Test};
use super::near::{Closest, Ground, Obstacle, closest, closest_at, mark_node, mark_output, merge_obstacle};
use crate::egraph::ENode;
use crate::solve::{Solved, Solver};
use crate::units::Operand;
use egg::Id;
use std::collections::BTreeSet;
use weldment_ir::OpKind;

/// Why an anchor was left as it was; `into` are the steps that compute what it would have absorbed.
pub(super) fn reason(
    solver: &Solver<'_>,
    solved: &Solved<'_>,
    ground: &Ground<'_>,
    anchor: &Anchor,
    into: &BTreeSet<u32>,
) -> Reason {
    let live: Vec<usize> = (0..solver.rules.len()).filter(|i| solver.rules[*i].group == Some(anchor.group)).collect();
    let near = match anchor.test {
        Test::Joined => merge_obstacle(solver, ground, anchor.group, &anchor.at),
        Test::Absorbed(kinds) => match written_out(solver, solved, ground, anchor) {
            Written::Whole(places) => closest_at(solver, ground, anchor.group, &places),
            Written::Broken(found) => return explained(found),
            Written::No => closest(solver, solved, ground, anchor.group, &anchor.at, kinds),
        },
        Test::Int8 | Test::Dropped => closest(solver, solved, ground, anchor.group, &anchor.at, &[]),
    };
    match near {
        // With no rule left to come close, why there is none says most.
        Some(Closest { barred: Some(text), .. }) if live.is_empty() => Reason::Barred { text: text.to_owned() },
        Some(found) if found.obstacle.is_some() || found.barred.is_some() => explained(found),
        found => unchosen(solver, solved, ground, anchor, into, &live, found.as_ref()),
    }
}

/// A norm that an anchor of `add_rms_norm` names by its root, as it is written out.
enum Written<'a> {
    /// The anchor names a norm.
    No,
    /// Where it was found to be a norm.
    Whole(Vec<(Id, OpKind)>),
    /// It is none, and this is why.
    Broken(Closest<'a>),
}

fn written_out<'a>(solver: &'a Solver<'a>, solved: &Solved<'_>, ground: &Ground<'_>, anchor: &Anchor) -> Written<'a> {
    let root = anchor.at.first().is_some_and(|n| ground.kind(*n) == OpKind::Rsqrt);
    if anchor.group != "add_rms_norm" || !root {
        return Written::No;
    }
    match closest(solver, solved, ground, "rms_norm", &anchor.at, &[OpKind::RmsNorm]) {
        Some(found) if found.obstacle.is_some() || found.barred.is_some() => Written::Broken(found),
        Some(found) => Written::Whole(found.root.map(|id| (id, OpKind::RmsNorm)).into_iter().collect()),
        None => Written::No,
    }
}

fn explained(found: Closest<'_>) -> Reason {
    match (found.obstacle, found.barred) {
        (Some(obstacle), _) => near_miss(found.rule.name, obstacle),
        (None, why) => Reason::Barred { text: why.unwrap_or_default().to_owned() },
    }
}

fn near_miss(rule: &str, obstacle: Obstacle) -> Reason {
    Reason::NearMiss {
        rule: rule.to_owned(),
        predicate: obstacle.predicate,
        found: obstacle.found,
        accepted: obstacle.accepted,
        change: obstacle.change,
        at: obstacle.at,
    }
}

/// The rule matched, and extraction took another form, or had to keep what the fusion absorbs.
fn unchosen(
    solver: &Solver<'_>,
    solved: &Solved<'_>,
    ground: &Ground<'_>,
    anchor: &Anchor,
    into: &BTreeSet<u32>,
    live: &[usize],
    found: Option<&Closest<'_>>,
) -> Reason {
    let by = found.map(|c| other_readers(ground, c)).unwrap_or_default();
    let made = |node: &ENode| solved.log.made.get(node).is_some_and(|chain| chain.iter().any(|r| live.contains(r)));
    let root = found.and_then(|c| c.root).map(|id| solved.net.find(id));
    let taken = |class: Id| match solved.owner.contains_key(&class) {
        true => solved.extraction.chosen(class).is_some_and(made),
        // Absorbed in turn.
        false => true,
    };
    if !by.is_empty() && root.is_some_and(taken) {
        let change = format!("let nothing but the fusion read it: {}", list(&by));
        return Reason::AlsoRead { by, change };
    }
    let places = standing(solved, ground, &anchor.absorbed).into_iter().chain(root);
    let cost = solved.extraction.cost_with(places.filter(|class| !taken(*class)), &made);
    let extra = cost.unwrap_or(solved.extraction.cost).saturating_sub(solved.extraction.cost);
    let steps = into.iter().map(|s| &solved.steps[*s as usize]);
    let names: BTreeSet<&str> = steps.clone().map(|s| s.op.kind().info().name).collect();
    let competing: BTreeSet<&str> = steps
        .flat_map(|s| &s.chain)
        .filter_map(|name| solver.rules.iter().find(|r| r.name == *name)?.group)
        .filter(|g| *g != anchor.group)
        .collect();
    let chosen = names.into_iter().collect::<Vec<_>>().join("+");
    let change = match (by.is_empty(), competing.first()) {
        (false, _) => format!("let nothing but the fusion read what it absorbs: {}", list(&by)),
        (true, Some(group)) => format!("--disable {group}, which competes"),
        (true, None) => format!("none that pays: {chosen} is faster here"),
    };
    Reason::Dearer { chosen, extra_ns: extra / 1024, by, change }
}

fn list(by: &BTreeSet<String>) -> String {
    by.iter().cloned().collect::<Vec<_>>().join(", ")
}

/// Who else reads what the fusion would absorb: nodes and outputs, as marks.
fn other_readers(ground: &Ground<'_>, found: &Closest<'_>) -> BTreeSet<String> {
    let ops: BTreeSet<Id> = found.ops.iter().map(|id| ground.net.find(*id)).collect();
    let inner: Vec<u32> =
        ops.iter().filter(|id| Some(**id) != found.root).flat_map(|id| ground.at(*id)).copied().collect();
    let mut by = BTreeSet::new();
    for node in &inner {
        let users = ground.users[*node as usize].iter().map(|u| u.0);
        by.extend(users.filter(|u| ground.class(*u).is_some_and(|c| !ops.contains(&c))).map(mark_node));
        for (i, (operand, _)) in ground.unit.outputs.iter().enumerate() {
            if matches!(operand, Operand::Local(n, _) if n == node) {
                by.insert(mark_output(i));
            }
        }
    }
    by
}

/// The classes, computed in the end, that nodes went into: their own, or those of their nearest readers.
fn standing(solved: &Solved<'_>, ground: &Ground<'_>, nodes: &[u32]) -> BTreeSet<Id> {
    let mut open: Vec<u32> = nodes.to_vec();
    let mut seen: BTreeSet<u32> = nodes.iter().copied().collect();
    let mut out = BTreeSet::new();
    while let Some(node) = open.pop() {
        match solved.class(node).filter(|c| solved.owner.contains_key(c)) {
            Some(class) => {
                out.insert(class);
            }
            None => open.extend(ground.users[node as usize].iter().map(|u| u.0).filter(|u| seen.insert(*u))),
        }
    }
    out
}
