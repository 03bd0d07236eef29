//! Stepping: a batch of sequences in, rows of logits out.

use super::{Session, StepInput, Stream};
use crate::artifact::Manifest;
use crate::comm::group::step_signature;
use crate::comm::member::Member;
use crate::error::{Error, Result};
use crate::graph::{Between, Dims, EntryGraph, Regions};
use crate::values::ValueLog;

impl Session {
    /// Runs one step and returns logits `[R, vocab]`, row-major f32. Allocates nothing.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the value that is outside its range; nothing was run then. [`Error::Driver`] if the device
    /// failed.
    pub fn step(&mut self, input: &StepInput<'_>) -> Result<&[f32]> {
        self.enqueue(input)?;
        self.logits()
    }

    /// Enqueues one step without waiting for it; the values of `input` are copied. Steps run in the order of the calls.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn enqueue(&mut self, input: &StepInput<'_>) -> Result<()> {
        let entry = self.step.as_ref().map(|step| step.entry).ok_or_else(|| {
            let message = "the artifact has no entry that takes a step of sequences: call one of its entries by name";
            Error::Unsupported(message.into())
        })?;
        let point = self.manifest.entries.get(entry);
        let point = point.ok_or_else(|| Error::Unsupported(format!("the artifact has no entry {entry}")))?;
        self.checked.check(&self.manifest, point, input)?;
        if let Some(member) = &self.member {
            let StepInput { tokens, positions, seq_starts, logit_rows, .. } = *input;
            let inputs = [tokens, positions, seq_starts, logit_rows];
            let signature = step_signature(entry, self.checked.dims().values(), &inputs);
            member.group().enter(signature)?;
        }
        let (inputs, count) = self.checked.bytes(&self.manifest, entry, input);
        let running = Running {
            entries: &mut self.entries,
            stream: &mut self.stream,
            manifest: &self.manifest,
            regions: &self.regions,
            values: &mut self.values,
            member: self.member.as_ref(),
        };
        let variant = running.replay(entry, self.checked.dims(), &inputs[..count])?;
        self.last = (entry, variant);
        self.checked.begun(point, input);
        self.rows = input.logit_rows.len();
        if let Some(shapes) = &mut self.shapes {
            let [tokens, sequences, rows] =
                [input.tokens.len(), input.seq_starts.len().saturating_sub(1), self.rows].map(|n| n as u64);
            let width = (input.block_tables.len() as u64).checked_div(sequences).unwrap_or_default();
            let last = input.positions.iter().copied().max().unwrap_or_default();
            shapes.record(self.last.1, [tokens, sequences, width, rows, u64::from(last.unsigned_abs()) + 1]);
        }
        Ok(())
    }

    /// Waits until every enqueued step is done.
    ///
    /// # Errors
    /// If one of them failed.
    pub fn wait(&mut self) -> Result<()> {
        match &self.member {
            None => self.stream.synchronize(),
            Some(member) => member.wait(&mut *self.stream.backend),
        }
    }

    /// Waits for the last step and returns its logits `[R, vocab]`, row-major f32; none before the first step.
    ///
    /// # Errors
    /// If a step failed.
    pub fn logits(&mut self) -> Result<&[f32]> {
        let Some(step) = &self.step else { return Ok(&[]) };
        let count = self.rows * step.columns;
        let Some(output) = self.regions.outputs.get(step.output) else { return Ok(&[]) };
        if let (Some(host), true) = (&step.logits, count > 0) {
            self.stream.backend.download(output, host, count * 4)?;
        }
        match &self.member {
            None => self.stream.synchronize()?,
            Some(member) => member.wait(&mut *self.stream.backend)?,
        }
        step.logits.as_ref().unwrap_or(output).as_f32(count)
    }
}

/// What a replay needs of a session beside what was checked.
pub(super) struct Running<'s> {
    pub entries: &'s mut [EntryGraph],
    pub stream: &'s mut Stream,
    pub manifest: &'s Manifest,
    pub regions: &'s Regions,
    pub values: &'s mut Option<ValueLog>,
    pub member: Option<&'s Member>,
}

impl Running<'_> {
    /// Enqueues what entry `entry` does with `inputs` at sizes `dims`; the variant that does it.
    pub fn replay(self, entry: usize, dims: &Dims, inputs: &[&[u8]]) -> Result<usize> {
        let Running { entries, stream, manifest, regions, values, member } = self;
        let captured = entries.get_mut(entry);
        let captured = captured.ok_or_else(|| Error::Unsupported(format!("the artifact has no entry {entry}")))?;
        let mut note = values.as_mut().map(|values| {
            move |variant: usize, launch: usize| values.record((entry, variant, launch), manifest, dims, regions)
        });
        let between: Option<Between<'_>> = match &mut note {
            Some(note) => Some(note),
            None => None,
        };
        let replayed = captured.replay(manifest, &mut *stream.backend, dims, inputs, between);
        match member {
            None => replayed,
            Some(member) => member.replayed(replayed),
        }
    }
}
