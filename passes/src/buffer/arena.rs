//! The arena: buffers get offsets so that no two that an epoch needs share a byte; then the plan is put together.

use super::places::{Buffer, Draft, Slot};
use super::{BufferError, BufferPlan, CopyRecord, Region, Step, View};
use crate::probe::shuffle;

/// Arena offsets are multiples of a cache line.
const ALIGN: u64 = 64;

/// A buffer with the epochs that need it.
#[derive(Clone, Copy, Debug)]
struct Span {
    buffer: usize,
    bytes: u64,
    first: usize,
    last: usize,
}

/// Epochs between the first and last step that touches each arena buffer; untouched buffers have none.
fn spans(draft: &Draft<'_>, epochs: &[usize]) -> Vec<Span> {
    let mut range: Vec<Option<(usize, usize)>> = vec![None; draft.buffers.len()];
    for (step, epoch) in draft.steps.iter().zip(epochs) {
        let slots = step.reads.iter().map(|r| r.slot.buffer).chain(step.writes.iter().map(|w| w.buffer));
        for buffer in slots.chain(step.scratch) {
            let (first, last) = range[buffer].get_or_insert((*epoch, *epoch));
            *first = (*first).min(*epoch);
            *last = (*last).max(*epoch);
        }
    }
    let placed = draft.buffers.iter().enumerate().filter(|(_, b)| b.region == Region::Arena);
    let span = |(buffer, what): (usize, &Buffer)| {
        let (first, last) = range[buffer]?;
        Some(Span { buffer, bytes: what.bytes.max(1), first, last })
    };
    placed.filter_map(span).collect()
}

/// Offsets in the order given, each at the lowest free place; the arena's size.
fn pack(order: &[Span], offsets: &mut [u64]) -> Option<u64> {
    let mut total = 0u64;
    let mut placed: Vec<(u64, u64, Span)> = Vec::with_capacity(order.len());
    for span in order {
        let bytes = span.bytes.checked_next_multiple_of(ALIGN)?;
        let mut at = 0u64;
        // `placed` is sorted by offset, so one walk finds the first gap.
        for (start, end, other) in &placed {
            if other.first > span.last || span.first > other.last {
                continue;
            }
            if *start >= at.checked_add(bytes)? {
                break;
            }
            at = at.max(*end);
        }
        let end = at.checked_add(bytes)?;
        let position = placed.partition_point(|(start, _, _)| *start < at);
        placed.insert(position, (at, end, *span));
        offsets[span.buffer] = at;
        total = total.max(end);
    }
    Some(total)
}

/// The most bytes alive in one epoch.
fn lower_bound(spans: &[Span], epochs: usize) -> u64 {
    let alive = |epoch: usize| {
        let live = spans.iter().filter(|s| s.first <= epoch && epoch <= s.last);
        live.map(|s| s.bytes.saturating_add(ALIGN - 1) / ALIGN * ALIGN).fold(0, u64::saturating_add)
    };
    (0..epochs).map(alive).max().unwrap_or(0)
}

/// Places the arena and writes the plan.
pub(super) fn finish(draft: Draft<'_>, epochs: &[usize], chaos: Option<u64>) -> Result<BufferPlan, BufferError> {
    let mut order = spans(&draft, epochs);
    let count = epochs.iter().max().map_or(0, |e| e + 1);
    let arena_lower_bound = lower_bound(&order, count);
    let too_large = || BufferError::TooLarge(format!("the arena of `{}`", draft.graph.name));
    // Two greedy orders; neither is always better.
    let mut offsets = vec![0u64; draft.buffers.len()];
    order.sort_by_key(|s| (std::cmp::Reverse(s.bytes), s.first, s.buffer));
    let mut arena_bytes = pack(&order, &mut offsets).ok_or_else(too_large)?;
    let mut by_time = offsets.clone();
    order.sort_by_key(|s| (s.first, std::cmp::Reverse(s.bytes), s.buffer));
    let other = pack(&order, &mut by_time).ok_or_else(too_large)?;
    if other < arena_bytes {
        (arena_bytes, offsets) = (other, by_time);
    }
    // The rank of a step among those of its epoch.
    let mut rank: Vec<usize> = (0..draft.steps.len()).collect();
    if let Some(seed) = chaos {
        shuffle(&mut rank, seed);
        shuffle(&mut order, seed);
        arena_bytes = pack(&order, &mut offsets).ok_or_else(too_large)?;
    }
    if arena_bytes > i64::MAX as u64 {
        return Err(too_large());
    }

    let view = |slot: &Slot| View {
        region: draft.buffers[slot.buffer].region.clone(),
        offset: offsets[slot.buffer].saturating_add(slot.offset),
        strides: slot.strides.clone(),
    };
    let mut turn: Vec<usize> = (0..draft.steps.len()).collect();
    turn.sort_by_key(|s| (epochs[*s], rank[*s]));
    let mut steps = Vec::with_capacity(turn.len());
    let mut copies = Vec::new();
    let mut hoisted = std::collections::BTreeSet::new();
    let mut previous = None;
    for at in turn {
        let step = &draft.steps[at];
        for read in &step.reads {
            if let Region::Weights(v) = &draft.buffers[read.slot.buffer].region {
                hoisted.insert(*v);
            }
        }
        if let Some((source, reason, bytes)) = step.copy.clone() {
            copies.push(CopyRecord { step: steps.len(), source, bytes, reason });
        }
        steps.push(Step {
            kind: step.kind.clone(),
            reads: step.reads.iter().map(|r| view(&r.slot)).collect(),
            writes: step.writes.iter().map(view).collect(),
            barrier: previous.is_some_and(|p| p != epochs[at]),
            scratch: step.scratch.map(|b| offsets[b]),
        });
        previous = Some(epochs[at]);
    }
    let places = draft.places.iter().map(|results| results.iter().map(|s| s.as_ref().map(view)).collect()).collect();
    Ok(BufferPlan {
        places,
        steps,
        copies,
        hoisted: hoisted.into_iter().collect(),
        inputs: draft.inputs,
        outputs: draft.outputs,
        states: draft.states,
        arena_bytes,
        arena_lower_bound,
    })
}
