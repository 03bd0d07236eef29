//! The arena: buffers get offsets so that no two that an epoch needs share a byte; then the plan is put together.

use super::packing::{self, ALIGN, Packed, Span};
use super::places::{Buffer, Draft, Slot};
use super::{BufferError, BufferPlan, CopyRecord, Region, Step, View};
use crate::probe::shuffle;

/// Epochs between the first and last step that touches each arena buffer; untouched buffers have none.
fn spans(draft: &Draft<'_>, epochs: &[usize]) -> Vec<(usize, Span)> {
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
        let bytes = what.bytes.max(1).checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX);
        Some((buffer, Span { bytes, first, last }))
    };
    placed.filter_map(span).collect()
}

/// Places the arena and writes the plan.
pub(super) fn finish(draft: Draft<'_>, epochs: &[usize], chaos: Option<u64>) -> Result<BufferPlan, BufferError> {
    let (buffers, spans): (Vec<usize>, Vec<Span>) = spans(&draft, epochs).into_iter().unzip();
    let arena_lower_bound = packing::lower_bound(&spans);
    let packed = packing::pack(&spans, chaos).filter(|packed| packed.bytes <= i64::MAX as u64);
    let Packed { bytes: arena_bytes, offsets: placed } =
        packed.ok_or_else(|| BufferError::TooLarge(format!("the arena of `{}`", draft.graph.name)))?;
    let mut offsets = vec![0u64; draft.buffers.len()];
    for (buffer, offset) in buffers.into_iter().zip(placed) {
        offsets[buffer] = offset;
    }
    // The rank of a step among those of its epoch.
    let mut rank: Vec<usize> = (0..draft.steps.len()).collect();
    if let Some(seed) = chaos {
        shuffle(&mut rank, seed);
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
