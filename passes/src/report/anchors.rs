//! Anchors: where each fusion could happen, counted on a unit before any rule, and what became of them.

use super::Outcome;
use super::near::Ground;
use super::reasons::reason;
use super::traces::Traces;
use crate::solve::{Solved, Solver, Source, gates};
use crate::units::{Operand, Unit};
use std::collections::{BTreeMap, BTreeSet};
use weldment_ir::{Attr, Category, DType, Op, OpKind};

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
    pub group: &'static str,
    /// Nodes that name it.
    pub at: Vec<u32>,
    /// Nodes that the fusion absorbs.
    pub absorbed: Vec<u32>,
    pub test: Test,
}

/// When an anchor is fused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    /// No absorbed node is still computed by an op of its own kind; ops that do all of these are the fusion's own.
    Absorbed(&'static [OpKind]),
    /// The absorbed node is computed by an op of its own kind no more, if it is computed at all.
    Dropped,
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

/// Every anchor of a unit, by node order.
pub(crate) fn anchors(unit: &Unit) -> Vec<Anchor> {
    let mut out = Vec::new();
    let (users, traces) = (unit.users(), Traces::new(unit));
    let feeds = |i: u32, kinds: &[OpKind]| {
        users[i as usize].iter().any(|(u, _)| kinds.contains(&unit.nodes[*u as usize].op.kind()))
    };
    let scoring = unit.scoring();
    // A node feeds a product at once, or with a view, a cast or one elementwise op between.
    let near_product = |i: u32| {
        feeds(i, &[OpKind::Mul])
            || users[i as usize].iter().any(|(u, _)| {
                let category = unit.nodes[*u as usize].op.kind().info().category;
                matches!(category, Category::View | Category::Elementwise) && feeds(*u, &[OpKind::Mul])
            })
    };
    let gates = gates(unit);
    let mut sets: BTreeMap<(Operand, bool), Vec<u32>> = BTreeMap::new();
    for (i, node) in unit.nodes.iter().enumerate() {
        let i = i as u32;
        let behind = |operand: usize, kind| node.operands.get(operand).and_then(|o| traces.comes_from(*o, kind));
        let mut add = |group, at: Vec<u32>, absorbed: u32, kinds: &'static [OpKind]| {
            out.push(Anchor { group, at, absorbed: vec![absorbed], test: Test::Absorbed(kinds) });
        };
        match node.op.kind() {
            OpKind::Rsqrt => {
                add("rms_norm", vec![i], i, &[OpKind::RmsNorm]);
                if let Some(sum) = traces.squared(i).and_then(|x| traces.comes_from(x, OpKind::Add)) {
                    add("add_rms_norm", vec![i], sum, &[OpKind::Add, OpKind::RmsNorm]);
                }
            }
            OpKind::RmsNorm => {
                if let Some(sum) = behind(0, OpKind::Add) {
                    add("add_rms_norm", vec![i], sum, &[OpKind::Add, OpKind::RmsNorm]);
                }
            }
            // Every one that has ranks to wait for, whatever reads it.
            OpKind::AllReduce if node.op.world() != Some(1) => {
                add("allreduce_rms_norm", vec![i], i, &[OpKind::AllReduce, OpKind::RmsNorm]);
            }
            OpKind::Quantise if [OpKind::RmsNorm, OpKind::AddRmsNorm].iter().any(|kind| behind(0, *kind).is_some()) => {
                add("norm_quantise", vec![i], i, &[OpKind::RmsNorm, OpKind::Quantise]);
            }
            OpKind::Silu => add("silu_mul", vec![i], i, &[OpKind::Silu, OpKind::Mul]),
            OpKind::Sigmoid if near_product(i) => add("silu_mul", vec![i], i, &[OpKind::Silu, OpKind::Mul]),
            OpKind::CacheWrite => {
                if let Some(rope) = behind(1, OpKind::Rope) {
                    add("rope_cache_write", vec![rope], rope, &[OpKind::Rope, OpKind::CacheWrite]);
                }
            }
            OpKind::Add if [0, 1].into_iter().any(|o| behind(o, OpKind::Matmul).is_some()) => {
                add("matmul_epilogue", vec![i], i, &[OpKind::Matmul, OpKind::Add]);
            }
            OpKind::Topk => {
                out.push(Anchor { group: "topk_window", at: vec![i], absorbed: vec![i], test: Test::Dropped });
            }
            OpKind::IndexScores if feeds(i, &[OpKind::Topk]) => add("topk_rows", vec![i], i, &[OpKind::Topk]),
            OpKind::SparseAttention => add("dense_window", vec![i], i, &[OpKind::Attention]),
            OpKind::Cast => {
                // Widening rounds nothing, and a producer that rounds to this dtype already has nothing left to do.
                let named = |op: &Op| op.attrs().into_iter().find(|a| matches!(a, Attr::DType(_)));
                let wanted = named(&node.op).filter(|d| *d != Attr::DType(DType::F32));
                let rounds = |operand: Operand| {
                    let Operand::Local(n, _) = operand else { return false };
                    let made = &unit.nodes[n as usize].op;
                    let computes = !matches!(made.kind(), OpKind::Cast | OpKind::Constant);
                    computes && wanted.is_some() && named(made).is_some_and(|d| Some(d) != wanted)
                };
                let producer = node.operands.first().map(|o| traces.through_views(*o));
                // An elementwise op of one operand may stand between.
                let near = producer.and_then(|p| {
                    let Operand::Local(n, _) = p else { return None };
                    let between = &unit.nodes[n as usize];
                    match (between.op.kind().info().category, between.operands.as_slice()) {
                        (Category::Elementwise, [only]) => Some(traces.through_views(*only)),
                        _ => None,
                    }
                });
                if [producer, near].into_iter().flatten().any(rounds) {
                    add("cast_into_producer", vec![i], i, &[]);
                }
            }
            OpKind::ScaledMatmul => {
                if let Some(x) = node.operands.first() {
                    sets.entry((traces.root(*x), scoring.contains(&i))).or_default().push(i);
                }
            }
            OpKind::Matmul => {
                if let Some(x) = node.operands.first() {
                    sets.entry((traces.root(*x), scoring.contains(&i))).or_default().push(i);
                }
                if traces.slot_type(node.operands.get(1)).is_some_and(|(w, _)| w.dtype.is_block()) {
                    out.push(Anchor { group: "int8_activations", at: vec![i], absorbed: vec![i], test: Test::Int8 });
                }
            }
            _ => {}
        }
    }
    for members in sets.into_values().filter(|m| m.len() > 1) {
        let subjects: Vec<u32> = members.iter().map(|m| biased(&traces, &users, *m)).collect();
        let gate = subjects.iter().chain(&members).any(|m| gates[*m as usize]);
        let group = if gate { "merged_gate_up" } else { "merged_qkv" };
        out.push(Anchor { group, at: members, absorbed: subjects, test: Test::Joined });
    }
    out.sort_by_key(|a| a.at.first().copied());
    out
}

/// The sum of a matmul and its static bias, or the matmul.
fn biased(traces: &Traces<'_>, users: &[Vec<(u32, u32)>], matmul: u32) -> u32 {
    let unit = traces.unit;
    match users[matmul as usize].as_slice() {
        [(user, position)] if unit.nodes[*user as usize].op.kind() == OpKind::Add => {
            let other = unit.nodes[*user as usize].operands.get(1 - (*position as usize).min(1));
            match traces.slot_type(other) {
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
pub(crate) fn outcome(
    solver: &Solver<'_>,
    solved: &Solved<'_>,
    ground: &Ground<'_>,
    owners: &[BTreeSet<u32>],
    anchor: &Anchor,
) -> Outcome {
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
    if into.is_empty() && anchor.test != Test::Dropped {
        return Outcome::Absorbed { by: "nothing".into() };
    }
    let fused = match anchor.test {
        Test::Dropped => !anchor.absorbed.iter().any(standing),
        Test::Absorbed(kinds) => {
            let gone = !anchor.absorbed.iter().any(standing);
            let elsewhere = gone && !kinds.is_empty() && !into.iter().any(|s| kind(*s).does_all(kinds));
            // A rule of the fusion may have come half way: silu stands where its parts were.
            let half_way = into.iter().any(|s| {
                let last = solved.steps[*s as usize].chain.last();
                last.is_some_and(|name| solver.rules.iter().any(|r| r.name == *name && r.group == Some(anchor.group)))
            });
            if elsewhere && !half_way {
                return Outcome::Absorbed { by: names };
            }
            gone && !elsewhere
        }
        Test::Joined => into.len() == 1,
        Test::Int8 => into.iter().all(|s| reads_int8(solved, *s)) && !into.is_empty(),
    };
    match fused {
        true => Outcome::Fused { into: if names.is_empty() { "nothing".into() } else { names } },
        false => Outcome::Kept { reason: reason(solver, solved, ground, anchor, &into) },
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
