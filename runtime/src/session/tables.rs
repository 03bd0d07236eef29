//! What a session knows of its KV blocks: how far each is filled, and who names it in a step.

use crate::artifact::{Dim, InputRole, Manifest};
use crate::error::{Error, Result};

/// A KV block.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// Positions that hold what a step has computed, from the block's first on.
    filled: u32,
    /// The last step that named the block, counted from 1.
    step: u32,
}

/// The KV blocks of a session, and how the kernels want the table of a step to lie.
#[derive(Debug)]
pub(super) struct Tables {
    blocks: Vec<Block>,
    step: u32,
    trusted: bool,
    /// Positions of a block.
    kv_block: usize,
    /// Entries from row to row, where that is not the step's own width.
    pitch: Option<usize>,
    /// The table at that pitch.
    spread: Vec<i32>,
}

impl Tables {
    /// Of `blocks` blocks, none of them filled.
    ///
    /// # Errors
    /// If the artifact's input of block tables is no matrix.
    pub(super) fn new(manifest: &Manifest, blocks: usize, trusted: bool) -> Result<Tables> {
        let pitch = match manifest.inputs.iter().find(|input| input.role == InputRole::Blocks) {
            None => None,
            Some(input) => match &input.shape[..] {
                [_, Dim::Symbol(_)] if input.dense => None,
                [_, Dim::Symbol(name)] => manifest.symbol(name).and_then(|(_, s)| usize::try_from(s.max).ok()),
                [_, Dim::Const(width)] => usize::try_from(*width).ok(),
                _ => return Err(Error::Unsupported(format!("input {} must be [sequences, blocks]", input.name))),
            },
        };
        let kv_block = manifest.block_positions().max(1) as usize;
        let blocks = vec![Block::default(); blocks];
        Ok(Tables { blocks, step: 0, trusted, kv_block, pitch, spread: Vec::new() })
    }

    /// Blocks in all.
    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Stops asking what blocks hold and who shares them.
    pub(super) fn trust(&mut self) {
        self.trusted = true;
    }

    /// A step begins.
    pub(super) fn begin(&mut self) {
        if self.step == u32::MAX {
            self.blocks.iter_mut().for_each(|block| block.step = 0);
            self.step = 0;
        }
        self.step += 1;
    }

    /// Does a sequence whose first new position is `first` own the blocks of `table`, up to that of its last position, and are the
    /// positions before `first` computed? Ids are within the pool.
    ///
    /// # Errors
    /// What is not so, in words.
    pub(super) fn owns(&mut self, table: &[i32], first: usize) -> std::result::Result<(), String> {
        if self.trusted {
            return Ok(());
        }
        let mut before = first;
        for (at, id) in table.iter().enumerate() {
            let Some(block) = self.blocks.get_mut(*id as usize) else { continue };
            if block.step == self.step {
                return Err(format!(
                    "shares KV block {id} with another sequence or with itself; a caller that shares blocks on purpose says so \
                     (SessionOptions::trusts_tables)"
                ));
            }
            block.step = self.step;
            let wanted = before.min(self.kv_block);
            if (block.filled as usize) < wanted {
                let missing = at * self.kv_block + block.filled as usize;
                return Err(format!(
                    "goes on at position {first}, but position {missing} was not computed; a caller that filled KV block {id} \
                     otherwise says so (SessionOptions::trusts_tables)"
                ));
            }
            before -= wanted;
        }
        Ok(())
    }

    /// The positions `first..end` of the sequence with `table` are about to be computed: what its blocks held behind them is void.
    pub(super) fn fill(&mut self, table: &[i32], first: usize, end: usize) {
        let own = end.div_ceil(self.kv_block);
        for (at, id) in table.iter().enumerate().take(own).skip(first / self.kv_block) {
            if let Some(block) = self.blocks.get_mut(*id as usize) {
                block.filled = end.saturating_sub(at * self.kv_block).min(self.kv_block) as u32;
            }
        }
    }

    /// Lays out the table of a step, of rows of `width`; see [`Tables::lying`].
    ///
    /// # Errors
    /// In words, if the rows are longer than the artifact's.
    pub(super) fn lay(&mut self, table: &[i32], width: usize) -> std::result::Result<(), String> {
        let Some(pitch) = self.pitch else { return Ok(()) };
        if width > pitch {
            return Err(format!("block tables of {width} entries a sequence; at most {pitch} are accepted"));
        }
        self.spread.clear();
        for row in table.chunks(width.max(1)) {
            self.spread.extend_from_slice(row);
            self.spread.resize(self.spread.len() + pitch - row.len(), -1);
        }
        Ok(())
    }

    /// The `table` that was last laid out, as kernels read it.
    pub(super) fn lying<'t>(&'t self, table: &'t [i32]) -> &'t [i32] {
        if self.pitch.is_some() { &self.spread } else { table }
    }
}
