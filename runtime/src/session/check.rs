//! What a step must be before it runs, and the bytes that its inputs then have.

use super::StepInput;
use super::tables::Tables;
use crate::artifact::{Binding, Dim, EntryPoint, Indices, InputRole, Manifest, SymbolRole};
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
        Ok(Checked { dims, tables: Tables::new(manifest, blocks, trusted)?, sequence_ids })
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
    pub(crate) fn check(&mut self, manifest: &Manifest, point: &EntryPoint, input: &StepInput<'_>) -> Result<()> {
        self.clear(manifest)?;
        let bad = |text: String| Err(Error::InvalidInput(text));
        let StepInput { tokens, positions, seq_starts, block_tables, logit_rows } = *input;
        let model = &manifest.model;
        let block = manifest.block_positions() as usize;
        let paged = manifest.inputs_of(point).any(|binding| binding.role == InputRole::Blocks);
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
        if let Some(id) = tokens.iter().find(|id| **id < 0 || **id as u32 >= model.vocab_size) {
            return bad(format!("token id {id} is outside the vocabulary 0..{}", model.vocab_size));
        }
        if logit_rows.len() > tokens.len() {
            return bad(format!(
                "{} logit rows of {} tokens; as many as there are at most",
                logit_rows.len(),
                tokens.len()
            ));
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
            if needed > width || after > model.max_seq as usize {
                let last = after - 1;
                return bad(format!(
                    "position {last} of sequence {sequence} needs {needed} KV blocks, its table has {width}; the artifact was \
                     compiled for positions 0..{}",
                    model.max_seq
                ));
            }
            let table = &block_tables[sequence * width..][..needed];
            if table.iter().fold(false, |any, id| any | (*id < 0)) {
                let at = table.iter().position(|id| *id < 0).unwrap_or_default();
                return bad(format!("sequence {sequence} has no KV block for position {}", at * block));
            }
            // What writes no states must find all that it looks at.
            let computed = if point.writes_states { *first as usize } else { after };
            self.tables.owns(table, computed).or_else(|what| bad(format!("sequence {sequence} {what}")))?;
            self.sequence_ids.extend(own.iter().map(|_| sequence as i32));
        }
        self.dims.set(manifest, &SymbolRole::Context, context)?;
        self.check_bounds(manifest, point, input)
    }

    /// Do the numbers of a step, by which kernels find elements, lie within what they pick from?
    fn check_bounds(&self, manifest: &Manifest, point: &EntryPoint, input: &StepInput<'_>) -> Result<()> {
        for binding in manifest.inputs_of(point).filter(|binding| !binding.role.is_plain()) {
            let values = match binding.role {
                InputRole::Tokens => input.tokens,
                InputRole::Positions => input.positions,
                InputRole::Sequences => &self.sequence_ids,
                InputRole::LogitRows => input.logit_rows,
                InputRole::Blocks => input.block_tables,
                InputRole::Plain => &[],
            };
            let Some(range) = index_range(manifest, &self.dims, binding)? else { continue };
            if let Some(value) = values.iter().find(|value| !range.contains(&i64::from(**value))) {
                let (name, role) = (&binding.name, binding.role);
                let range = format!("{}..{}", range.start, range.end);
                return Err(Error::InvalidInput(format!("{value} among {name} ({role}); {range} are accepted")));
            }
        }
        Ok(())
    }

    /// The step `input`, which was the last to be checked, is on its way: what its positions held before is void.
    pub(crate) fn begun(&mut self, point: &EntryPoint, input: &StepInput<'_>) {
        if !point.writes_states {
            return;
        }
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

/// The size that a dim has.
pub(super) fn size(manifest: &Manifest, dims: &Dims, dim: &Dim) -> u64 {
    match dim {
        Dim::Const(n) => *n,
        Dim::Symbol(name) => manifest.symbol(name).map_or(0, |(index, _)| dims.get(index).max(0) as u64),
    }
}

/// What the values of an input may be where kernels find elements by them; none where they may be anything.
///
/// # Errors
/// [`Error::Unsupported`] if the graph computes indices from them.
pub(super) fn index_range(manifest: &Manifest, dims: &Dims, binding: &Binding) -> Result<Option<std::ops::Range<i64>>> {
    let bounds = match &binding.indices {
        Indices::Free => return Ok(None),
        Indices::Bounded(bounds) => bounds,
        Indices::Computed => {
            let message = format!(
                "input {}: the graph computes indices from it, which cannot be checked; an input that is an index itself is accepted",
                binding.name
            );
            return Err(Error::Unsupported(message));
        }
    };
    let least = bounds.iter().map(|bound| bound.least).max().unwrap_or(i64::MIN);
    let below = bounds.iter().map(|bound| size(manifest, dims, &bound.below).saturating_mul(bound.times)).min();
    Ok(Some(least..i64::try_from(below.unwrap_or(u64::MAX)).unwrap_or(i64::MAX)))
}
