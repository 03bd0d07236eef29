//! Anchors: where each fusion could happen, counted on a unit before any rule, and what became of them.

use super::{Outcome, Reason};
use crate::egraph::ENode;
use crate::solve::{Solved, Solver, Source, gates};
use crate::units::{Operand, Unit};
use std::collections::{BTreeMap, BTreeSet};
use weldment_ir::{Attr, Category, DType, Op, OpKind, TensorType};

/// An anchor's place in a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    pub group: &'static str,
    /// Nodes that name it.
    pub nodes: Vec<u32>,
}

/// An anchor.
#[derive(Clone, Debug)]
pub(crate) struct Anchor {
    group: &'static str,
    /// Nodes that name it.
    at: Vec<u32>,
    /// Nodes that the fusion absorbs.
    absorbed: Vec<u32>,
    test: Test,
}

/// When an anchor is fused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    /// No absorbed node is still computed by an op of its own kind; these ops are the fusion's own.
    Absorbed(&'static [OpKind]),
    /// The absorbed nodes come from one matmul, or from a fused gate.
    Joined,
    /// The matmul reads q8a.
    Int8,
}

impl Anchor {
    pub(crate) fn site(&self) -> Site {
        Site { group: self.group, nodes: self.at.clone() }
    }
}

/// The type of an operand, where it is a view of a slot.
fn slot_type(unit: &Unit, operand: Option<&Operand>) -> Option<(TensorType, bool)> {
    match operand.map(|o| through_views(unit, *o)) {
        Some(Operand::Slot(i)) => unit.slots.get(i as usize).map(|s| (s.ty.clone(), s.fixed)),
        _ => None,
    }
}

/// An operand with views of one operand and casts that lose nothing taken off.
fn through_views(unit: &Unit, mut operand: Operand) -> Operand {
    while let Operand::Local(i, _) = operand {
        let node = &unit.nodes[i as usize];
        match (node.op.kind().info().category, &node.op, node.operands.as_slice()) {
            (Category::View, _, [only]) => operand = *only,
            (_, Op::Cast { dtype }, [only]) if dtype_of(unit, *only) == Some(*dtype) => operand = *only,
            (_, Op::Cast { dtype }, [only]) => match widened(unit, through_views(unit, *only)) {
                Some(inner) if dtype_of(unit, inner) == Some(*dtype) => operand = inner,
                _ => break,
            },
            _ => break,
        }
    }
    operand
}

/// The 16-bit value that an operand is a cast to f32 of.
fn widened(unit: &Unit, operand: Operand) -> Option<Operand> {
    let Operand::Local(i, _) = operand else { return None };
    let node = &unit.nodes[i as usize];
    let half = |o: &Operand| matches!(dtype_of(unit, *o), Some(DType::F16 | DType::BF16));
    match (&node.op, node.operands.as_slice()) {
        (Op::Cast { dtype: DType::F32 }, [only]) if half(only) => Some(*only),
        _ => None,
    }
}

/// The dtype that an operand's op names, or else that of its own first operand.
fn dtype_of(unit: &Unit, mut operand: Operand) -> Option<DType> {
    loop {
        let node = match operand {
            Operand::Slot(i) => return unit.slots.get(i as usize).map(|s| s.ty.dtype),
            Operand::Local(i, _) => unit.nodes.get(i as usize)?,
        };
        let named = node.op.attrs().into_iter().find_map(|a| match a {
            Attr::DType(d) => Some(d),
            _ => None,
        });
        if named.is_some() {
            return named;
        }
        operand = *node.operands.first()?;
    }
}

/// Every anchor of a unit, by node order.
pub(crate) fn anchors(unit: &Unit) -> Vec<Anchor> {
    let mut out = Vec::new();
    let users = unit.users();
    let feeds = |i: u32, kinds: &[OpKind]| {
        users[i as usize].iter().any(|(u, _)| kinds.contains(&unit.nodes[*u as usize].op.kind()))
    };
    let gates = gates(unit);
    let mut sets: BTreeMap<Operand, Vec<u32>> = BTreeMap::new();
    for (i, node) in unit.nodes.iter().enumerate() {
        let i = i as u32;
        let from = |operand: usize| node.operands.get(operand).and_then(|o| unit.origin(*o));
        let kind_of = |n: Option<u32>| n.map(|n| unit.nodes[n as usize].op.kind());
        let mut add = |group, at: Vec<u32>, absorbed: u32, kinds: &'static [OpKind]| {
            out.push(Anchor { group, at, absorbed: vec![absorbed], test: Test::Absorbed(kinds) });
        };
        match node.op.kind() {
            OpKind::Rsqrt => add("rms_norm", vec![i], i, &[OpKind::RmsNorm, OpKind::AddRmsNorm]),
            OpKind::RmsNorm => {
                if let (Some(sum), Some(OpKind::Add)) = (from(0), kind_of(from(0))) {
                    add("add_rms_norm", vec![i], sum, &[OpKind::AddRmsNorm]);
                }
            }
            OpKind::Silu => add("silu_mul", vec![i], i, &[OpKind::SiluMul]),
            OpKind::Sigmoid if feeds(i, &[OpKind::Mul]) => add("silu_mul", vec![i], i, &[OpKind::SiluMul]),
            OpKind::CacheWrite => {
                if let (Some(rope), Some(OpKind::Rope)) = (from(1), kind_of(from(1))) {
                    add("rope_cache_write", vec![rope], rope, &[OpKind::RopeCacheWrite]);
                }
            }
            OpKind::Add if [from(0), from(1)].into_iter().any(|n| kind_of(n) == Some(OpKind::Matmul)) => {
                add("matmul_epilogue", vec![i], i, &[OpKind::MatmulAdd]);
            }
            OpKind::Cast => {
                // What a 16-bit value is cast to rounds nothing that its producer computes.
                let producer = node.operands.first().map(|o| through_views(unit, *o));
                let single = Attr::DType(DType::F32);
                let rounds = |n: u32| {
                    let made = &unit.nodes[n as usize].op;
                    made.attrs().contains(&single) && made.kind() != OpKind::Cast && !node.op.attrs().contains(&single)
                };
                if matches!(producer, Some(Operand::Local(n, _)) if rounds(n)) {
                    add("cast_into_producer", vec![i], i, &[]);
                }
            }
            OpKind::Matmul => {
                if let Some((w, true)) = slot_type(unit, node.operands.get(1)) {
                    if let Some(x) = node.operands.first() {
                        sets.entry(through_views(unit, *x)).or_default().push(i);
                    }
                    if w.dtype.is_block() {
                        out.push(Anchor {
                            group: "int8_activations",
                            at: vec![i],
                            absorbed: vec![i],
                            test: Test::Int8,
                        });
                    }
                }
            }
            _ => {}
        }
    }
    for members in sets.into_values().filter(|m| m.len() > 1) {
        let subjects: Vec<u32> = members.iter().map(|m| biased(unit, &users, *m)).collect();
        let gate = subjects.iter().chain(&members).any(|m| gates[*m as usize]);
        let group = if gate { "merged_gate_up" } else { "merged_qkv" };
        out.push(Anchor { group, at: members, absorbed: subjects, test: Test::Joined });
    }
    out.sort_by_key(|a| a.at.first().copied());
    out
}

/// The sum of a matmul and its static bias, or the matmul.
fn biased(unit: &Unit, users: &[Vec<(u32, u32)>], matmul: u32) -> u32 {
    match users[matmul as usize].as_slice() {
        [(user, position)] if unit.nodes[*user as usize].op.kind() == OpKind::Add => {
            let other = unit.nodes[*user as usize].operands.get(1 - (*position as usize).min(1));
            match slot_type(unit, other) {
                Some((t, true)) if t.rank() == 1 => *user,
                _ => matmul,
            }
        }
        _ => matmul,
    }
}

/// The steps that compute an owner's value, through views and results.
fn behind_views(solved: &Solved<'_>, mut step: u32) -> u32 {
    loop {
        let s = &solved.steps[step as usize];
        match (s.op.kind().info().category, s.operands.as_slice()) {
            (Category::View, [Source::Node(next, _)]) => step = *next,
            _ => return step,
        }
    }
}

/// What became of an anchor.
pub(crate) fn outcome(solver: &Solver<'_>, solved: &Solved<'_>, owners: &[BTreeSet<u32>], anchor: &Anchor) -> Outcome {
    let mut into: BTreeSet<u32> = BTreeSet::new();
    for node in &anchor.absorbed {
        into.extend(owners[*node as usize].iter().map(|o| behind_views(solved, *o)));
    }
    let kind = |step: u32| solved.steps[step as usize].op.kind();
    let names: BTreeSet<&str> = into.iter().map(|s| kind(*s).info().name).collect();
    let names = names.into_iter().collect::<Vec<_>>().join("+");
    let standing = |node: &u32| {
        let class = solved.class(*node).and_then(|c| solved.owner.get(&c));
        class.is_some_and(|step| kind(*step) == solved.unit.nodes[*node as usize].op.kind())
    };
    let fused = match anchor.test {
        Test::Absorbed(kinds) => {
            let gone = !anchor.absorbed.iter().any(standing);
            if gone && !kinds.is_empty() && !into.iter().any(|s| kinds.contains(&kind(*s))) {
                return Outcome::Elsewhere { into: if names.is_empty() { "nothing".into() } else { names } };
            }
            gone
        }
        Test::Joined => into.len() == 1,
        Test::Int8 => into.iter().all(|s| reads_int8(solved, *s)) && !into.is_empty(),
    };
    match fused {
        true => Outcome::Fused { into: names },
        false => Outcome::Kept { reason: reason(solver, solved, anchor, names) },
    }
}

fn reads_int8(solved: &Solved<'_>, step: u32) -> bool {
    let mut operand = solved.steps[step as usize].operands.first();
    while let Some(Source::Node(i, _)) = operand {
        let made = &solved.steps[*i as usize];
        match (made.op.kind().info().category, made.operands.as_slice()) {
            (Category::View, [only]) => operand = Some(only),
            _ => return made.op.attrs().contains(&Attr::DType(DType::Q8A)),
        }
    }
    matches!(operand, Some(Source::Slot(_, crate::units::Carried::Cast(DType::Q8A))))
}

/// The classes, computed in the end, that nodes went into: their own, or those of their nearest readers.
fn standing(solved: &Solved<'_>, nodes: &[u32]) -> BTreeSet<egg::Id> {
    let users = solved.unit.users();
    let mut open: Vec<u32> = nodes.to_vec();
    let mut seen: BTreeSet<u32> = nodes.iter().copied().collect();
    let mut out = BTreeSet::new();
    while let Some(node) = open.pop() {
        match solved.class(node).filter(|c| solved.owner.contains_key(c)) {
            Some(class) => {
                out.insert(class);
            }
            None => open.extend(users[node as usize].iter().map(|u| u.0).filter(|u| seen.insert(*u))),
        }
    }
    out
}

fn reason(solver: &Solver<'_>, solved: &Solved<'_>, anchor: &Anchor, chosen: String) -> Reason {
    let in_group = |rule: &crate::rules::Rule| rule.group == Some(anchor.group);
    let live: Vec<usize> = (0..solver.rules.len()).filter(|i| in_group(solver.rules[*i])).collect();
    if live.is_empty() {
        let text = solver.barred.iter().find(|(r, _)| in_group(r)).map(|(_, why)| why.clone());
        return text.map_or(Reason::NoPattern, |text| Reason::Barred { text });
    }
    let places: Vec<egg::Id> = anchor.at.iter().chain(&anchor.absorbed).filter_map(|n| solved.class(*n)).collect();
    let fired = places
        .iter()
        .any(|class| solved.log.fired.get(class).is_some_and(|rules| rules.iter().any(|r| live.contains(r))));
    for class in &standing(solved, &anchor.absorbed) {
        let made = |node: &ENode| solved.log.made.get(node).is_some_and(|rules| rules.iter().any(|r| live.contains(r)));
        let taken = solved.extraction.chosen(*class).is_some_and(made);
        if fired
            && !taken
            && let Some(cost) = solved.extraction.cost_with(*class, &made)
        {
            let extra_ns = cost.saturating_sub(solved.extraction.cost) / 1024;
            return Reason::Dearer { chosen, extra_ns };
        }
    }
    for class in &places {
        let near = solved.log.misses.get(class).and_then(|m| m.iter().find(|m| live.contains(&m.rule)));
        if let Some(m) = near {
            return Reason::NearMiss {
                rule: solver.rules[m.rule].name.to_owned(),
                predicate: m.predicate.clone(),
                found: m.found.clone(),
                accepted: m.accepted.clone(),
            };
        }
    }
    let text = solver.barred.iter().find(|(r, _)| in_group(r)).map(|(_, why)| why.clone());
    text.map_or(Reason::NoPattern, |text| Reason::Barred { text })
}
