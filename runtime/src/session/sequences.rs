//! Steps of one sequence: its KV blocks, its positions, and inputs that are longer than a step.

use super::{Session, StepInput};
use crate::artifact::SymbolRole;
use crate::error::{Error, Result};
use crate::memory::Sequence;

impl Session {
    /// Computes `tokens` (at least one) as the next positions of `sequence` and returns the logits of the last, `[vocab]`.
    /// Long inputs run as several steps of at most the compiled number of tokens.
    ///
    /// # Errors
    /// If the sequence would grow past the compiled range, KV blocks run out, or a token id is outside the vocabulary.
    pub fn extend(&mut self, sequence: &mut Sequence, tokens: &[i32]) -> Result<&[f32]> {
        self.extend_rows(sequence, tokens, false, &mut |_| Ok(()))?;
        let Some(step) = &self.step else { return Ok(&[]) };
        match step.logits.as_ref().or(self.regions.outputs.get(step.output)) {
            Some(output) => output.as_f32(step.columns),
            None => Ok(&[]),
        }
    }

    /// As [`Session::extend`], giving `rows` the logits `[R, vocab]` of each step: of every token if `all`, else of the last of
    /// the step; none in a step that others follow, where the artifact can do without.
    ///
    /// # Errors
    /// As [`Session::extend`], and whatever `rows` returns.
    pub fn extend_rows(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[i32],
        all: bool,
        rows: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let (max_tokens, max_rows) =
            (self.range(&SymbolRole::Tokens).1.max(1), self.range(&SymbolRole::LogitRows).1.max(1));
        let limit = self.max_positions();
        let total = sequence.positions + tokens.len();
        if total > limit {
            return Err(Error::InvalidInput(format!(
                "{} tokens after {} positions: the artifact was compiled for sequences of 1..={limit} positions (--max-seq)",
                tokens.len(),
                sequence.positions
            )));
        }
        if tokens.is_empty() {
            return Err(Error::InvalidInput("no tokens: a step needs at least one".into()));
        }
        self.reserve(sequence, total)?;
        let chunk = if all { max_tokens.min(max_rows) } else { max_tokens };
        let width = sequence.blocks().len().max(self.range(&SymbolRole::BLOCKS).0);
        let mut table = sequence.blocks().to_vec();
        table.resize(width, -1);
        // A chunk that others follow is not asked for logits, where the artifact can do without.
        let none = self.range(&SymbolRole::LogitRows).0 == 0;
        let mut left = tokens.len();
        for tokens in tokens.chunks(chunk) {
            left -= tokens.len();
            let first = sequence.positions as i32;
            let positions: Vec<i32> = (first..first + tokens.len() as i32).collect();
            let last = tokens.len() as i32 - 1;
            let wanted: Vec<i32> = match all {
                true => (0..=last).collect(),
                false if none && left > 0 => Vec::new(),
                false => vec![last],
            };
            let seq_starts = [0, tokens.len() as i32];
            let input = StepInput {
                tokens,
                positions: &positions,
                seq_starts: &seq_starts,
                block_tables: &table,
                logit_rows: &wanted,
            };
            rows(self.step(&input)?)?;
            sequence.positions += tokens.len();
        }
        Ok(())
    }

    /// Gives `sequence` KV blocks for `positions` positions in all.
    ///
    /// # Errors
    /// If too few are free, or the sequence is another session's.
    pub fn reserve(&self, sequence: &mut Sequence, positions: usize) -> Result<()> {
        self.pool.reserve(sequence, positions, self.manifest.block_positions() as usize)
    }

    /// A new, empty sequence of this session. It gives its KV blocks back when it drops.
    pub fn new_sequence(&self) -> Sequence {
        self.pool.new_sequence()
    }

    /// Logits of every token of one sequence, `[T, vocab]` row-major: as prefill, or one token at a time if `stepwise`.
    ///
    /// # Errors
    /// As [`Session::extend`].
    pub fn eval(&mut self, tokens: &[i32], stepwise: bool) -> Result<Vec<f32>> {
        let vocab = self.manifest.model.vocab_size as usize;
        let mut logits = Vec::with_capacity(tokens.len().min(self.max_positions()).saturating_mul(vocab));
        let mut sequence = self.new_sequence();
        let mut keep = |rows: &[f32]| {
            logits.extend_from_slice(rows);
            Ok(())
        };
        let mut result = Ok(());
        for part in tokens.chunks(if stepwise { 1 } else { tokens.len().max(1) }) {
            result = self.extend_rows(&mut sequence, part, true, &mut keep);
            if result.is_err() {
                break;
            }
        }
        if tokens.is_empty() {
            result = Err(Error::InvalidInput("no tokens to evaluate".into()));
        }
        result.map(|()| logits)
    }
}
