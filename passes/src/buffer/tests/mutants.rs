//! Wrong plans: right ones with one thing changed. Those that compute something else when they are executed must all be rejected by
//! the checker; those that do not are harmless and only counted.

use super::super::*;
use super::Picky;
use super::machine::{Pure, execute, extreme};
use super::random::any;
use std::collections::BTreeMap;
use weldment_ir::generate::{Random, random_dims};

/// Changes one thing in a plan; false if there is nothing of the kind.
type Mutation = fn(&Graph, &mut BufferPlan, &mut Random) -> bool;

const MUTATIONS: [(&str, Mutation); 16] = [
    ("a read's offset shifted", |_, plan, r| shift(plan, r, false)),
    ("a write's offset shifted", |_, plan, r| shift(plan, r, true)),
    ("a read's stride changed", |_, plan, r| restride(plan, r, false)),
    ("a write's stride changed", |_, plan, r| restride(plan, r, true)),
    ("two arena buffers overlapped", overlap),
    ("a barrier removed", |_, plan, r| {
        let barriers: Vec<usize> = (0..plan.steps.len()).filter(|s| plan.steps[*s].barrier).collect();
        r.pick(&barriers).map(|s| plan.steps[*s].barrier = false).is_some()
    }),
    ("a state write moved before a reader", state_write_earlier),
    ("a step moved earlier", |_, plan, r| {
        let Some(from) = below(r, plan.steps.len()).filter(|s| *s > 0) else { return false };
        let to = r.below(from as u64) as usize;
        move_step(plan, from, to);
        true
    }),
    ("a copy dropped", |_, plan, r| {
        let copies: Vec<usize> = plan.copies.iter().map(|c| c.step).collect();
        r.pick(&copies).map(|s| drop_step(plan, *s)).is_some()
    }),
    ("a step dropped", |_, plan, r| below(r, plan.steps.len()).map(|s| drop_step(plan, s)).is_some()),
    ("two operands swapped", |_, plan, r| {
        let steps: Vec<usize> = (0..plan.steps.len()).filter(|s| plan.steps[*s].reads.len() > 1).collect();
        let Some(s) = r.pick(&steps) else { return false };
        let reads = &mut plan.steps[*s].reads;
        let (a, b) = (r.below(reads.len() as u64) as usize, r.below(reads.len() as u64) as usize);
        reads.swap(a, b);
        a != b
    }),
    ("a slot taken from another step", |_, plan, r| {
        let (Some(a), Some(b)) = (below(r, plan.steps.len()), below(r, plan.steps.len())) else { return false };
        let view = plan.steps[b].writes[0].clone();
        let write = &mut plan.steps[a].writes[0];
        let same = write.strides.len() == view.strides.len();
        *write = view;
        a != b && same
    }),
    ("an operand taken from another step", |_, plan, r| {
        let (Some(a), Some(b)) = (below(r, plan.steps.len()), below(r, plan.steps.len())) else { return false };
        let from: Vec<View> = plan.steps[b].reads.iter().chain(&plan.steps[b].writes).cloned().collect();
        let Some(to) = below(r, plan.steps[a].reads.len()) else { return false };
        let rank = plan.steps[a].reads[to].strides.len();
        let fit: Vec<&View> = from.iter().filter(|v| v.strides.len() == rank).collect();
        r.pick(&fit).map(|view| plan.steps[a].reads[to] = (*view).clone()).is_some()
    }),
    ("an output left unwritten", |_, plan, r| {
        let writes = |s: &Step| s.writes.iter().position(|w| matches!(w.region, Region::Output(_) | Region::State(_)));
        let steps: Vec<(usize, usize)> =
            plan.steps.iter().enumerate().filter_map(|(i, s)| Some((i, writes(s)?))).collect();
        let Some((s, w)) = r.pick(&steps).copied() else { return false };
        let size = plan.outputs.iter().chain(&plan.states).map(|e| e.bytes).max().unwrap_or(0);
        let write = &mut plan.steps[s].writes[w];
        (write.region, write.offset) = (Region::Arena, plan.arena_bytes);
        plan.arena_bytes += size;
        true
    }),
    ("scratch bytes moved", |_, plan, r| {
        let steps: Vec<usize> = (0..plan.steps.len()).filter(|s| plan.steps[*s].scratch.is_some()).collect();
        let Some(s) = r.pick(&steps) else { return false };
        plan.steps[*s].scratch = Some(r.below(plan.arena_bytes / 64 + 1) * 64);
        true
    }),
    ("the arena made smaller", |_, plan, r| {
        let less = 64 * (1 + r.below(4));
        plan.arena_bytes = plan.arena_bytes.saturating_sub(less);
        plan.arena_bytes > 0
    }),
];

fn below(r: &mut Random, n: usize) -> Option<usize> {
    (n > 0).then(|| r.below(n as u64) as usize)
}

fn any_view<'p>(plan: &'p mut BufferPlan, r: &mut Random, write: bool) -> Option<&'p mut View> {
    let step = below(r, plan.steps.len())?;
    let step = &mut plan.steps[step];
    let views = if write { &mut step.writes } else { &mut step.reads };
    let at = below(r, views.len())?;
    views.get_mut(at)
}

fn shift(plan: &mut BufferPlan, r: &mut Random, write: bool) -> bool {
    let by = *r.pick(&[4u64, 8, 64, 72, 128, 1024]).unwrap_or(&4);
    let down = r.one_in(2);
    let Some(view) = any_view(plan, r, write) else { return false };
    let moved = if down { view.offset.checked_sub(by) } else { view.offset.checked_add(by) };
    moved.map(|offset| view.offset = offset).is_some()
}

fn restride(plan: &mut BufferPlan, r: &mut Random, write: bool) -> bool {
    let (kind, a, b) = (r.below(4), r.bits(), r.bits());
    let Some(view) = any_view(plan, r, write) else { return false };
    let rank = view.strides.len() as u64;
    if rank == 0 {
        return false;
    }
    let (a, b) = ((a % rank) as usize, (b % rank) as usize);
    let before = view.strides.clone();
    match kind {
        0 => view.strides.swap(a, b),
        1 => view.strides[a] += 1,
        2 => view.strides[a] *= 2,
        _ => view.strides[a] /= 2,
    }
    view.strides != before
}

/// Everything at one arena offset goes to another.
fn overlap(_: &Graph, plan: &mut BufferPlan, r: &mut Random) -> bool {
    let views = plan.steps.iter().flat_map(|s| s.writes.iter().chain(&s.reads)).filter(|v| v.region == Region::Arena);
    let offsets: Vec<u64> = views.map(|v| v.offset).collect();
    let (Some(from), Some(to)) = (r.pick(&offsets).copied(), r.pick(&offsets).copied()) else { return false };
    for view in plan.steps.iter_mut().flat_map(|s| s.writes.iter_mut().chain(&mut s.reads)) {
        if view.region == Region::Arena && view.offset == from {
            view.offset = to;
        }
    }
    from != to
}

/// Moves a step; the barriers stay where they were in the order, and the copies' records follow their steps.
fn move_step(plan: &mut BufferPlan, from: usize, to: usize) {
    let barriers: Vec<bool> = plan.steps.iter().map(|s| s.barrier).collect();
    let mut order: Vec<usize> = (0..plan.steps.len()).collect();
    let step = order.remove(from);
    order.insert(to, step);
    let steps: Vec<Step> = order.iter().map(|s| plan.steps[*s].clone()).collect();
    plan.steps = steps.into_iter().zip(barriers).map(|(step, barrier)| Step { barrier, ..step }).collect();
    for copy in &mut plan.copies {
        copy.step = order.iter().position(|s| *s == copy.step).unwrap_or(copy.step);
    }
}

fn drop_step(plan: &mut BufferPlan, at: usize) {
    let gone = plan.steps.remove(at);
    if let Some(next) = plan.steps.get_mut(at) {
        next.barrier |= gone.barrier;
    }
    plan.copies.retain(|c| c.step != at);
    plan.copies.iter_mut().filter(|c| c.step > at).for_each(|c| c.step -= 1);
}

fn state_write_earlier(_: &Graph, plan: &mut BufferPlan, r: &mut Random) -> bool {
    let state = |s: &Step| s.writes.iter().find(|w| matches!(w.region, Region::State(_))).map(|w| w.region.clone());
    let mut pairs = Vec::new();
    for (write, step) in plan.steps.iter().enumerate() {
        let Some(region) = state(step) else { continue };
        let reads = |s: &usize| plan.steps[*s].reads.iter().any(|v| v.region == region);
        pairs.extend((0..write).filter(reads).map(|reader| (write, reader)));
    }
    r.pick(&pairs).copied().map(|(write, reader)| move_step(plan, write, reader)).is_some()
}

/// Does the plan compute the graph? Executed on the extremes of all dims and between, both ways through each epoch.
fn computes(runs: &[Pure<'_>], plan: &BufferPlan, needs: &dyn KernelNeeds) -> bool {
    runs.iter().all(|pure| execute(pure, plan, needs, false).is_ok())
}

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    /// Compute something else, and are rejected.
    rejected: u32,
    /// Compute the same, and are rejected or accepted: not counted as wrong.
    harmless: [u32; 2],
}

/// `WELDMENT_PLAN_MUTANTS` (1500 by default) mutants that compute something else, all rejected.
#[test]
fn wrong_plans_are_rejected() {
    let wanted: u32 = std::env::var("WELDMENT_PLAN_MUTANTS").map_or(1500, |n| n.parse().expect("a number of mutants"));
    let mut counts: BTreeMap<&str, Count> = BTreeMap::new();
    let mut seed = 1_000_000;
    while counts.values().map(|c| c.rejected).sum::<u32>() < wanted {
        seed += 1;
        let g = any(seed);
        let mut r = Random::new(seed);
        let runs = [extreme(&g, true), random_dims(&g, seed)].map(|dims| Pure::new(&g, dims, seed));
        let needs: &dyn KernelNeeds = if seed.is_multiple_of(3) { &AnyStrides } else { &Picky };
        let right = bufferise(&g, needs).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        for (name, mutate) in MUTATIONS {
            let mut plan = right.clone();
            if !mutate(&g, &mut plan, &mut r) || plan == right {
                continue;
            }
            let verdict = check(&g, &plan, needs);
            let count = counts.entry(name).or_default();
            match (computes(&runs, &plan, needs), &verdict) {
                (false, Err(_)) => count.rejected += 1,
                (true, Err(_)) => count.harmless[0] += 1,
                (true, Ok(())) => count.harmless[1] += 1,
                (false, Ok(())) => panic!("seed {seed}, {name}: accepted\n{g}\n{right:#?}\n{plan:#?}"),
            }
        }
    }
    for (name, count) in &counts {
        println!("{name:<40} {count:?}");
    }
    for (name, _) in MUTATIONS {
        let count = counts.get(name).copied().unwrap_or_default();
        assert!(count.rejected >= wanted / 300, "{name}: {count:?}");
    }
    // A checker that rejects everything would not do: plans that only wait too often, or lie elsewhere, are right.
    assert!(
        counts["a barrier removed"].harmless[1] > 0 || counts["a step moved earlier"].harmless[1] > 0,
        "{counts:?}"
    );
}

/// Changes that every plan survives.
#[test]
fn right_plans_in_other_forms_are_accepted() {
    for seed in 0..150 {
        let g = any(seed);
        let mut plan = bufferise(&g, &AnyStrides).unwrap();
        plan.steps.iter_mut().skip(1).for_each(|s| s.barrier = true);
        assert_eq!(check(&g, &plan, &AnyStrides), Ok(()), "seed {seed}: more barriers");
        for view in plan.steps.iter_mut().flat_map(|s| s.reads.iter_mut().chain(&mut s.writes)) {
            view.offset += if view.region == Region::Arena { 192 } else { 0 };
        }
        plan.steps.iter_mut().for_each(|s| s.scratch = s.scratch.map(|at| at + 192));
        plan.arena_bytes += 192;
        assert_eq!(check(&g, &plan, &AnyStrides), Ok(()), "seed {seed}: the arena elsewhere");
    }
}
