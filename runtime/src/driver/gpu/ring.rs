//! The step block on the device, and the ring of pinned slots that steps are written to before one copy brings them there.
//!
//! The block holds the dims (8 bytes a symbol, padded to 64), then every input at a multiple of 64. Slots are written while
//! earlier steps run; an event after every few copies says when their slots may be written again.

use super::api::*;
use super::guards::{EventGuard, Pinned, SharedApi};
use crate::error::{Error, Result};

/// Slots of a ring.
pub const SLOTS: usize = 8;
/// Slots that share an event: a step costs a copy and a launch, and only every fourth an event too.
const GROUP: usize = 4;

/// Where dims and inputs lie in a step block.
#[derive(Clone, Debug)]
pub struct StepLayout {
    symbols: usize,
    /// `(offset, bytes)` of each input.
    inputs: Vec<(usize, usize)>,
    bytes: usize,
}

impl StepLayout {
    /// The layout for `symbols` symbols and inputs of these sizes; `None` if it overflows.
    pub fn new(symbols: usize, input_bytes: &[usize]) -> Option<StepLayout> {
        let mut at = symbols.checked_mul(8)?.checked_next_multiple_of(64)?;
        let mut inputs = Vec::with_capacity(input_bytes.len());
        for bytes in input_bytes {
            inputs.push((at, *bytes));
            at = at.checked_add(*bytes)?.checked_next_multiple_of(64)?;
        }
        Some(StepLayout { symbols, inputs, bytes: at.max(64) })
    }

    /// Size of the block.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Offset of byte `offset` of input `index`; `None` past its end.
    pub fn input(&self, index: usize, offset: usize) -> Option<usize> {
        let (at, bytes) = self.inputs.get(index)?;
        (offset <= *bytes).then_some(at + offset)
    }

    /// Writes a step to `slot` and returns the bytes that must be copied: up to the end of the last input that has any.
    fn write(&self, slot: &mut [u8], dims: &[i64], inputs: &[&[u8]]) -> Result<usize> {
        if dims.len() != self.symbols || inputs.len() != self.inputs.len() {
            return Err(Error::Driver(format!(
                "a step of {} symbols and {} inputs was captured, not of {} and {}",
                self.symbols,
                self.inputs.len(),
                dims.len(),
                inputs.len()
            )));
        }
        for (index, ((_, bytes), input)) in self.inputs.iter().zip(inputs).enumerate() {
            if input.len() > *bytes {
                let found = input.len();
                return Err(Error::Driver(format!("input {index} has {found} bytes, captured were {bytes}")));
            }
        }
        for (out, dim) in slot.chunks_exact_mut(8).zip(dims) {
            out.copy_from_slice(&dim.to_le_bytes());
        }
        let mut used = self.symbols * 8;
        for ((at, _), input) in self.inputs.iter().zip(inputs) {
            if let Some(out) = slot.get_mut(*at..at + input.len())
                && !input.is_empty()
            {
                out.copy_from_slice(input);
                used = at + input.len();
            }
        }
        Ok(used.next_multiple_of(16).clamp(16, self.bytes))
    }
}

/// The slots. Who owns the ring waits for the device before dropping it.
#[derive(Debug)]
pub struct Ring {
    layout: StepLayout,
    /// `copied[g]` comes when the copies from group g's slots are done; recorded where true.
    copied: Vec<(EventGuard, bool)>,
    memory: Pinned,
    next: usize,
    last: (usize, usize),
}

impl Ring {
    /// A ring of zeroed slots.
    pub fn new(api: &SharedApi, layout: StepLayout) -> Result<Ring> {
        let bytes =
            layout.bytes.checked_mul(SLOTS).ok_or_else(|| Error::Driver("the inputs' size overflows".into()))?;
        let memory = Pinned::new(api, bytes)?;
        let copied = (0..SLOTS / GROUP).map(|_| Ok((EventGuard::new(api, false)?, false))).collect::<Result<_>>()?;
        Ok(Ring { layout, copied, memory, next: 0, last: (0, 0) })
    }

    /// The layout of a slot.
    pub fn layout(&self) -> &StepLayout {
        &self.layout
    }

    /// Writes a step into the next slot, waiting for the copies from its group where they may not be done, and returns where it
    /// lies and how many bytes must be copied.
    pub fn write(&mut self, dims: &[i64], inputs: &[&[u8]]) -> Result<(*const u8, usize)> {
        if self.next.is_multiple_of(GROUP)
            && let Some((event, recorded @ true)) = self.copied.get_mut(self.next / GROUP)
        {
            event.synchronize().map_err(|e| e.during("waiting for an earlier step"))?;
            *recorded = false;
        }
        let start = self.next * self.layout.bytes;
        let Some(slot) = self.memory.slice_mut(start, self.layout.bytes) else {
            return Err(Error::Driver("a slot lies outside its ring".into()));
        };
        let used = self.layout.write(slot, dims, inputs)?;
        self.last = (start, used);
        Ok((self.memory.pointer().wrapping_add(start), used))
    }

    /// The slot written last and its size.
    pub fn last(&self) -> (*const u8, usize) {
        (self.memory.pointer().wrapping_add(self.last.0), self.last.1)
    }

    /// Says that the copy from the slot was enqueued in `stream`.
    pub fn copied(&mut self, stream: StreamHandle) -> ApiResult<()> {
        let group = self.next / GROUP;
        self.next = (self.next + 1) % SLOTS;
        if self.next.is_multiple_of(GROUP)
            && let Some((event, recorded)) = self.copied.get_mut(group)
        {
            event.record(stream)?;
            *recorded = true;
        }
        Ok(())
    }

    /// Forgets all copies in flight; the caller has waited for them.
    pub fn reset(&mut self) {
        self.next = 0;
        for (_, recorded) in &mut self.copied {
            *recorded = false;
        }
    }
}
