//! Order of state writes: a write in place comes after every reader of the version it overwrites. A reader that itself
//! needs the write's result reads a snapshot instead, a counted copy.

use super::layout::Padding;
use super::places::{Draft, DraftStep, Read};
use super::{BufferError, Region, StepKind};
use std::collections::BTreeSet;

/// Adds write-after-read order on states, and the snapshots it cannot do without.
pub(super) fn order(draft: &mut Draft<'_>) -> Result<(), BufferError> {
    finals(draft);
    for (write, version) in draft.in_place.clone() {
        for reader in 0..draft.steps.len() {
            for operand in 0..draft.steps[reader].reads.len() {
                let is_target = reader == write && operand == 0;
                if draft.steps[reader].reads[operand].version != Some(version) || is_target {
                    continue;
                }
                if reader == write || depends(&draft.steps, reader, write) {
                    snapshot(draft, reader, operand, write)?;
                } else {
                    draft.steps[write].after.insert(reader);
                }
            }
        }
    }
    Ok(())
}

/// A copy into a state that is not a write of it comes after all that touches the state.
fn finals(draft: &mut Draft<'_>) {
    let touches = |step: &DraftStep, buffer: usize| {
        step.reads.iter().map(|r| r.slot.buffer).chain(step.writes.iter().map(|w| w.buffer)).any(|b| b == buffer)
    };
    for step in 0..draft.steps.len() {
        let is_copy = matches!(draft.steps[step].kind, StepKind::Copy { .. });
        let Some(buffer) = draft.steps[step].writes.first().map(|w| w.buffer) else { continue };
        if is_copy && matches!(draft.buffers[buffer].region, Region::State(_)) {
            let others = (0..draft.steps.len()).filter(|o| *o != step && touches(&draft.steps[*o], buffer));
            let others: Vec<usize> = others.collect();
            draft.steps[step].after.extend(others);
        }
    }
}

/// Does `step` come after `earlier`?
fn depends(steps: &[DraftStep], step: usize, earlier: usize) -> bool {
    let mut seen = BTreeSet::new();
    let mut stack = vec![step];
    while let Some(at) = stack.pop() {
        if at == earlier {
            return true;
        }
        if seen.insert(at) {
            stack.extend(steps[at].after.iter().copied());
        }
    }
    false
}

/// Gives operand `operand` of `reader` a copy of what it reads, made before `write`.
fn snapshot(draft: &mut Draft<'_>, reader: usize, operand: usize, write: usize) -> Result<(), BufferError> {
    let read = draft.steps[reader].reads[operand].clone();
    let slot = draft.buffer(Region::Arena, &read.ty, Padding::Every)?;
    let bytes = draft.bytes(&read.ty)?;
    let source = match draft.steps[reader].kind {
        StepKind::Kernel(id) => draft.source(id),
        StepKind::Copy { value, .. } => draft.source(value.node),
    };
    // What the write waits for is what made the version; a snapshot waits for the same.
    let after = match read.version.map(|v| v.node) {
        Some(node) => (0..draft.steps.len()).filter(|s| draft.steps[*s].kind == StepKind::Kernel(node)).collect(),
        None => BTreeSet::new(),
    };
    let reason = "reads a state version after a write to it".to_owned();
    let copied = Read { slot: slot.clone(), version: None, ..read.clone() };
    draft.steps.push(DraftStep {
        kind: StepKind::Copy { value: read.value, ty: read.ty.clone() },
        reads: vec![read],
        writes: vec![slot],
        after,
        scratch: None,
        copy: Some((source, reason, bytes)),
    });
    let copy = draft.steps.len() - 1;
    draft.steps[reader].reads[operand] = copied;
    draft.steps[reader].after.insert(copy);
    draft.steps[write].after.insert(copy);
    Ok(())
}
