//! Results in the bytes of operands that die with the step: a residual add needs no memory of its own. Which kernels can do that
//! is theirs to say ([`super::KernelNeeds::shares`]); that an operand dies is seen from the steps that touch its buffer.

use super::places::{Draft, DraftStep, Slot};
use super::{Region, StepKind};
use std::collections::BTreeSet;
use weldment_ir::Value;

/// The steps that touch a buffer; of those that all others come after, the last stands for all.
#[derive(Clone, Debug, Default)]
struct Touched {
    readers: Vec<usize>,
    writers: Vec<usize>,
}

/// Joins the buffers of results and dying operands. No step has to wait for another because of it, so the schedule stays as short
/// as it was.
pub(super) fn in_place(draft: &mut Draft<'_>) {
    let mut touched = vec![Touched::default(); draft.buffers.len()];
    for (index, step) in draft.steps.iter().enumerate() {
        step.reads.iter().for_each(|r| touched[r.slot.buffer].readers.push(index));
        step.writes.iter().for_each(|w| touched[w.buffer].writers.push(index));
    }
    let depths = depths(&draft.steps);
    // The buffer that each has become a part of.
    let mut home = Homes((0..draft.buffers.len()).collect());
    for step in 0..draft.steps.len() {
        for result in 0..draft.steps[step].writes.len() {
            let operand = (0..draft.steps[step].reads.len())
                .find(|operand| takes_over(draft, &home, &touched, &depths, step, *operand, result));
            let Some(operand) = operand else { continue };
            let (from, to) =
                (draft.steps[step].writes[result].buffer, home.of(draft.steps[step].reads[operand].slot.buffer));
            // The step writes the result, after all that touched the operand.
            touched[to] = std::mem::take(&mut touched[from]);
            home.0[from] = to;
        }
    }
    let settle = |slot: &mut Slot| slot.buffer = home.of(slot.buffer);
    for step in &mut draft.steps {
        step.reads.iter_mut().for_each(|r| settle(&mut r.slot));
        step.writes.iter_mut().for_each(settle);
    }
    draft.places.iter_mut().flatten().flatten().for_each(settle);
}

/// The buffer that each buffer has become a part of, step by step.
struct Homes(Vec<usize>);

impl Homes {
    fn of(&self, mut buffer: usize) -> usize {
        while self.0[buffer] != buffer {
            buffer = self.0[buffer];
        }
        buffer
    }
}

/// The longest chain of steps before each; 0 for steps in a circle, which the schedule refuses.
fn depths(steps: &[DraftStep]) -> Vec<usize> {
    let mut depths = vec![0; steps.len()];
    let mut waiting: Vec<usize> = steps.iter().map(|s| s.after.len()).collect();
    let mut followers = vec![Vec::new(); steps.len()];
    for (step, draft_step) in steps.iter().enumerate() {
        draft_step.after.iter().for_each(|before| followers[*before].push(step));
    }
    let mut ready: Vec<usize> = (0..steps.len()).filter(|s| waiting[*s] == 0).collect();
    while let Some(step) = ready.pop() {
        for next in &followers[step] {
            depths[*next] = depths[*next].max(depths[step] + 1);
            waiting[*next] -= 1;
            if waiting[*next] == 0 {
                ready.push(*next);
            }
        }
    }
    depths
}

/// Does `step` come after `earlier`? Whatever lies between is deeper than the earlier one.
fn depends(steps: &[DraftStep], depths: &[usize], step: usize, earlier: usize) -> bool {
    let mut seen = BTreeSet::new();
    let mut stack = vec![step];
    while let Some(at) = stack.pop() {
        if steps[at].after.contains(&earlier) {
            return true;
        }
        stack.extend(steps[at].after.iter().filter(|s| depths[**s] > depths[earlier] && seen.insert(**s)));
    }
    false
}

/// Can `result` of `step` take the bytes of `operand`? Both fill a buffer alone and alike, the kernel allows it, and whatever else
/// touches the operand's buffer comes before the step anyway.
fn takes_over(
    draft: &Draft<'_>,
    home: &Homes,
    touched: &[Touched],
    depths: &[usize],
    step: usize,
    operand: usize,
    result: usize,
) -> bool {
    let this = &draft.steps[step];
    let StepKind::Kernel(node) = this.kind else { return false };
    let (read, write) = (&this.reads[operand], &this.writes[result]);
    let (from, to) = (write.buffer, home.of(read.slot.buffer));
    let made = Value { node, result: result as u32 };
    let (operand_type, result_type) = (draft.graph.type_of(read.value), draft.graph.type_of(made));
    let unit = |t: &weldment_ir::TensorType| (t.dtype.block_bytes(), t.dtype.block_elements());
    let in_arena = |buffer: usize| draft.buffers[buffer].region == Region::Arena;
    let alike = home.of(from) != to
        && in_arena(from)
        && in_arena(to)
        && draft.buffers[from].bytes == draft.buffers[to].bytes
        && (read.slot.offset, write.offset) == (0, 0)
        && read.slot.strides == write.strides
        && operand_type.shape == result_type.shape
        && unit(operand_type) == unit(result_type);
    if !alike || home.of(from) != from || touched[from].writers != [step] {
        return false;
    }
    // Every other operand in these bytes is the same elements, and every other result lies elsewhere.
    let others_agree = this.reads.iter().enumerate().all(|(i, r)| {
        home.of(r.slot.buffer) != to
            || ((r.slot.offset, &r.slot.strides) == (0, &write.strides)
                && draft.graph.type_of(r.value).shape == result_type.shape
                && draft.needs.shares(draft.graph, node, i, result))
    });
    let results_apart = this.writes.iter().enumerate().all(|(i, w)| i == result || home.of(w.buffer) != to);
    let dies = || {
        let all = touched[to].readers.iter().chain(&touched[to].writers);
        all.filter(|other| **other != step).all(|other| depends(&draft.steps, depths, step, *other))
    };
    others_agree && results_apart && dies()
}
