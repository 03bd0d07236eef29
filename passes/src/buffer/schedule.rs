//! The schedule: steps in as few epochs as their order allows, then late where that keeps less alive. Collectives are a chain: ranks meet in
//! one after the other, in the order of the graph.

use super::places::Draft;
use super::{BufferError, Region, StepKind};
use std::collections::{BTreeMap, BTreeSet};
use weldment_ir::generate::Random;

/// The epoch of each step. Steps of one epoch do not depend on each other; the number of epochs is that of the longest
/// chain, which is the fewest barriers possible.
pub(super) fn epochs(draft: &Draft<'_>, chaos: Option<u64>) -> Result<Vec<usize>, BufferError> {
    let count = draft.steps.len();
    let mut followers = vec![Vec::new(); count];
    let mut waiting: Vec<usize> = draft.steps.iter().map(|s| s.after.len()).collect();
    for (step, draft_step) in draft.steps.iter().enumerate() {
        for before in &draft_step.after {
            followers[*before].push(step);
        }
    }
    let mut ready: BTreeSet<usize> = (0..count).filter(|s| waiting[*s] == 0).collect();
    let mut order = Vec::with_capacity(count);
    while let Some(step) = ready.pop_first() {
        order.push(step);
        for next in &followers[step] {
            waiting[*next] -= 1;
            if waiting[*next] == 0 {
                ready.insert(*next);
            }
        }
    }
    if order.len() != count {
        return Err(BufferError::Cycle(draft.graph.name.clone()));
    }
    // Each after the one before it in this order, which is the same on every rank and stays one of the steps' orders.
    let meets = |step: &usize| match draft.steps[*step].kind {
        StepKind::Kernel(id) => draft.graph.node(id).op.communicates(),
        StepKind::Copy { .. } => false,
    };
    let chain: Vec<usize> = order.iter().copied().filter(meets).collect();
    for (before, after) in chain.iter().zip(chain.iter().skip(1)) {
        followers[*before].push(*after);
    }
    let mut epoch = vec![0usize; count];
    for step in &order {
        for next in &followers[*step] {
            epoch[*next] = epoch[*next].max(epoch[*step] + 1);
        }
    }
    sink(draft, &order, &followers, &mut epoch);
    if let Some(seed) = chaos {
        delay(&order, &followers, &mut epoch, seed);
    }
    Ok(epoch)
}

/// Moves every step to a random epoch between its own and its first follower's.
fn delay(order: &[usize], followers: &[Vec<usize>], epoch: &mut [usize], seed: u64) {
    let mut random = Random::new(seed);
    for step in order.iter().rev().copied() {
        if let Some(first) = followers[step].iter().map(|f| epoch[*f]).min() {
            epoch[step] += random.below((first - epoch[step]) as u64) as usize;
        }
    }
}

/// Moves a step to just before its first follower if the results it would hold meanwhile outweigh its operands.
fn sink(draft: &Draft<'_>, order: &[usize], followers: &[Vec<usize>], epoch: &mut [usize]) {
    let mut readers: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (step, draft_step) in draft.steps.iter().enumerate() {
        for read in &draft_step.reads {
            readers.entry(read.slot.buffer).or_default().insert(step);
        }
    }
    let arena = |buffer: usize| match draft.buffers[buffer].region {
        Region::Arena => draft.buffers[buffer].bytes,
        _ => 0,
    };
    for step in order.iter().rev().copied() {
        let Some(latest) = followers[step].iter().map(|f| epoch[*f] - 1).min() else { continue };
        if latest <= epoch[step] {
            continue;
        }
        let written: BTreeSet<usize> = draft.steps[step].writes.iter().map(|w| w.buffer).collect();
        let read: BTreeSet<usize> = draft.steps[step].reads.iter().map(|r| r.slot.buffer).collect();
        let gain: u64 = written.iter().map(|b| arena(*b)).fold(0, u64::saturating_add);
        let loss = read.iter().filter(|b| {
            let others = readers.get(b).into_iter().flatten().filter(|s| **s != step);
            others.map(|s| epoch[*s]).max().is_none_or(|last| last < latest)
        });
        if gain > loss.map(|b| arena(*b)).fold(0, u64::saturating_add) {
            epoch[step] = latest;
        }
    }
}
