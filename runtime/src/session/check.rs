//! What a step must be before it runs, and the bytes that its inputs then have.

use super::StepInput;
use super::tables::Tables;
use crate::artifact::{Dim, Indices, InputRole, Manifest, SymbolRole};
use crate::driver::bytes_of;
use crate::error::{Error, Result};
use crate::graph::Dims;

/// As many inputs as there are kinds.
pub(crate) const MAX_INPUTS: usize = 5;

/// The steps of an artifact with so many KV blocks: whatever passes [`Checked::check`] makes its kernels stay within their buffers.
#[derive(Debug)]
pub(crate) struct Checked {
    dims: Dims,
    tables: Tables,
    /// Token ids are below this: the vocabulary, or rows of a table that they pick from.
    ids: u32,
    /// Positions are below this: the model's, or rows of a table.
    positions: usize,
    /// `[T]`, derived from `seq_starts`.
    sequence_ids: Vec<i32>,
}

impl Checked {
    /// Steps of `manifest`; `trusted` as [`super::SessionOptions::trusts_tables`].
    ///
    /// # Errors
    /// If the pool has another size than the artifact accepts.
    pub(crate) fn new(manifest: &Manifest, blocks: usize, trusted: bool) -> Result<Checked> {
        let mut dims = Dims::new(&manifest.symbols);
        dims.set(manifest, &SymbolRole::POOL, blocks)?;
        let tokens = manifest.symbol_of(&SymbolRole::Tokens).map_or(1, |(_, s)| s.max) as usize;
        let sequence_ids = Vec::with_capacity(tokens.min(1 << 20));
        let bounded = |role: InputRole, most: u32| {
            let inputs = manifest.inputs.iter().filter(|input| input.role == role);
            let bounds = inputs.filter_map(|input| match &input.indices {
                Indices::Bounded(bounds) => Some(bounds),
                _ => None,
            });
            let constant = bounds.flatten().filter_map(|bound| match bound.below {
                Dim::Const(n) => Some(n.saturating_mul(bound.times)),
                Dim::Symbol(_) => None,
            });
            constant.map(|n| u32::try_from(n).unwrap_or(u32::MAX)).fold(most, u32::min)
        };
        let ids = bounded(InputRole::Tokens, manifest.model.vocab_size);
        let positions = bounded(InputRole::Positions, manifest.model.max_seq) as usize;
        Ok(Checked { dims, tables: Tables::new(manifest, blocks, trusted)?, ids, positions, sequence_ids })
    }

    /// From now on block tables are the caller's business.
    pub(crate) fn trust_tables(&mut self) {
        self.tables.trust();
    }

    /// The dims block of the last step.
    pub(crate) fn dims(&self) -> &Dims {
        &self.dims
    }

    /// The inputs of entry `entry`, whose inputs all have roles, for `input`, which was the last to be checked; and how many these are.
    pub(crate) fn bytes<'i>(
        &'i self,
        manifest: &Manifest,
        entry: usize,
        input: &StepInput<'i>,
    ) -> ([&'i [u8]; MAX_INPUTS], usize) {
        let mut inputs: [&[u8]; MAX_INPUTS] = [&[]; MAX_INPUTS];
        let Some(point) = manifest.entries.get(entry) else { return (inputs, 0) };
        for (slot, binding) in inputs.iter_mut().zip(manifest.inputs_of(point)) {
            *slot = self.of_role(binding.role, input);
        }
        (inputs, point.inputs.len().min(MAX_INPUTS))
    }

    /// What an input of that role holds in `input`, which was the last to be checked; nothing if it is plain.
    pub(super) fn of_role<'i>(&'i self, role: InputRole, input: &StepInput<'i>) -> &'i [u8] {
        bytes_of(match role {
            InputRole::Tokens => input.tokens,
            InputRole::Positions => input.positions,
            InputRole::Sequences => &self.sequence_ids,
            InputRole::Blocks => self.tables.lying(input.block_tables),
            InputRole::LogitRows => input.logit_rows,
            InputRole::Plain => &[],
        })
    }

    /// Sizes of a call that is no step: every symbol at its smallest, the pool as large as it is.
    ///
    /// # Errors
    /// None in practice: the pool was checked.
    pub(super) fn clear(&mut self, manifest: &Manifest) -> Result<()> {
        self.dims = Dims::new(&manifest.symbols);
        self.dims.set(manifest, &SymbolRole::POOL, self.tables.blocks())
    }

    /// The dims block, to be filled in.
    pub(super) fn dims_mut(&mut self) -> &mut Dims {
        &mut self.dims
    }

    /// Validates a step, sets the dims and derives the sequence ids.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the value that is outside its range.
    pub(crate) fn check(&mut self, manifest: &Manifest, input: &StepInput<'_>) -> Result<()> {
        let bad = |text: String| Err(Error::InvalidInput(text));
        let StepInput { tokens, positions, seq_starts, block_tables, logit_rows } = *input;
        let block = manifest.block_positions() as usize;
        let paged = manifest.symbol_of(&SymbolRole::BLOCKS).is_some();
        let sequences = seq_starts.len().saturating_sub(1);
        if positions.len() != tokens.len() {
            return bad(format!("{} positions for {} tokens", positions.len(), tokens.len()));
        }
        if !block_tables.len().is_multiple_of(sequences.max(1)) || (sequences == 0 && !block_tables.is_empty()) {
            return bad(format!("{} block table entries for {sequences} sequences", block_tables.len()));
        }
        let width = match block_tables.len().checked_div(sequences) {
            Some(width) => width,
            None => manifest.symbol_of(&SymbolRole::BLOCKS).map_or(0, |(_, symbol)| symbol.min as usize),
        };
        for (role, value) in [
            (SymbolRole::Tokens, tokens.len()),
            (SymbolRole::Sequences, sequences),
            (SymbolRole::BLOCKS, width),
            (SymbolRole::LogitRows, logit_rows.len()),
            (SymbolRole::POOL, self.tables.blocks()),
        ] {
            self.dims.set(manifest, &role, value)?;
        }
        if let Some(id) = tokens.iter().find(|id| **id < 0 || **id as u32 >= self.ids) {
            return bad(format!("token id {id} is outside the vocabulary 0..{}", self.ids));
        }
        if let Some(row) = logit_rows.iter().find(|row| **row < 0 || **row as usize >= tokens.len()) {
            return bad(format!("logit row {row} is outside the step's tokens 0..{}", tokens.len()));
        }
        // -1..blocks, by one comparison of each and no early end, so that many are checked at once.
        let blocks = u32::try_from(self.tables.blocks()).unwrap_or(u32::MAX).min(1 << 31);
        let wrong = |id: i32| id.wrapping_add(1) as u32 > blocks;
        if block_tables.iter().fold(false, |any, id| any | wrong(*id)) {
            let id = block_tables.iter().copied().find(|id| wrong(*id)).unwrap_or_default();
            return bad(format!("KV block {id} is outside the pool 0..{blocks}"));
        }
        if seq_starts.first() != Some(&0) || seq_starts.last().is_none_or(|last| *last as i64 != tokens.len() as i64) {
            return bad(format!("seq_starts must run from 0 to {}", tokens.len()));
        }
        self.tables.lay(block_tables, width).or_else(bad)?;
        self.tables.begin();
        self.sequence_ids.clear();
        let mut context = 1;
        for (sequence, range) in seq_starts.windows(2).enumerate() {
            let &[start, end] = range else { continue };
            if end < start || end as usize > tokens.len() {
                return bad(format!("seq_starts descends at sequence {sequence}"));
            }
            let own = &positions[start as usize..end as usize];
            let Some(first) = own.first() else { continue };
            if *first < 0 {
                return bad(format!("position {first} of sequence {sequence}; positions start at 0"));
            }
            if let Some([before, position]) = own.array_windows().find(|[a, b]| a.checked_add(1) != Some(*b)) {
                return bad(format!(
                    "positions of sequence {sequence} do not follow each other: {position} after {before}"
                ));
            }
            let after = *first as usize + own.len();
            context = context.max(after);
            // Attention reads every block up to the last position, so all must be there.
            let needed = if paged { after.div_ceil(block) } else { 0 };
            if needed > width || after > self.positions {
                let last = after - 1;
                return bad(format!(
                    "position {last} of sequence {sequence} needs {needed} KV blocks, its table has {width}; the artifact was \
                     compiled for positions 0..{}",
                    self.positions
                ));
            }
            let table = &block_tables[sequence * width..][..needed];
            if table.iter().fold(false, |any, id| any | (*id < 0)) {
                let at = table.iter().position(|id| *id < 0).unwrap_or_default();
                return bad(format!("sequence {sequence} has no KV block for position {}", at * block));
            }
            self.tables.owns(table, *first as usize).or_else(|what| bad(format!("sequence {sequence} {what}")))?;
            self.sequence_ids.extend(own.iter().map(|_| sequence as i32));
        }
        self.dims.set(manifest, &SymbolRole::Context, context)
    }

    /// The step `input`, which was the last to be checked, is on its way: what its positions held before is void.
    pub(crate) fn begun(&mut self, input: &StepInput<'_>) {
        let sequences = input.seq_starts.len().saturating_sub(1).max(1);
        let width = input.block_tables.len() / sequences;
        for (range, table) in input.seq_starts.windows(2).zip(input.block_tables.chunks(width.max(1))) {
            let &[start, end] = range else { continue };
            if let Some(first) = input.positions.get(start as usize).filter(|_| end > start) {
                self.tables.fill(table, *first as usize, *first as usize + (end - start) as usize);
            }
        }
    }
}
