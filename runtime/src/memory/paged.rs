//! Paged KV cache: a pool of blocks, and the table of blocks that a sequence has.

use crate::error::{Error, Result};

/// The free blocks of a session's KV cache. Ids are `0..blocks`; the lowest free one is handed out first.
#[derive(Debug)]
pub struct BlockPool {
    /// Descending, so that the lowest id is popped first.
    free: Vec<i32>,
    blocks: usize,
}

impl BlockPool {
    /// A pool of `blocks` free blocks.
    pub fn new(blocks: usize) -> BlockPool {
        let blocks = blocks.min(i32::MAX as usize);
        BlockPool { free: (0..blocks as i32).rev().collect(), blocks }
    }

    /// Blocks in all.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Blocks not in use.
    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }

    /// Extends `sequence` so that it has room for `positions` positions of `kv_block` each.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if too few blocks are free; the sequence is left as it was.
    pub fn reserve(&mut self, sequence: &mut Sequence, positions: usize, kv_block: usize) -> Result<()> {
        let wanted = positions.div_ceil(kv_block.max(1));
        let missing = wanted.saturating_sub(sequence.blocks.len());
        if missing > self.free.len() {
            return Err(Error::InvalidInput(format!(
                "{positions} positions need {missing} more KV blocks, {} of {} are free",
                self.free.len(),
                self.blocks
            )));
        }
        for _ in 0..missing {
            sequence.blocks.extend(self.free.pop());
        }
        Ok(())
    }

    /// Takes the blocks of `sequence` back.
    pub fn release(&mut self, sequence: Sequence) {
        self.free.extend(sequence.blocks);
        self.free.sort_unstable_by(|a, b| b.cmp(a));
    }
}

/// One sequence's place in the KV cache.
#[derive(Debug, Default)]
pub struct Sequence {
    pub(crate) blocks: Vec<i32>,
    pub(crate) positions: usize,
}

impl Sequence {
    /// Positions that have been computed.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// KV block ids, in order of position.
    pub fn blocks(&self) -> &[i32] {
        &self.blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_go_round() {
        let mut pool = BlockPool::new(4);
        let (mut a, mut b) = (Sequence::default(), Sequence::default());
        pool.reserve(&mut a, 17, 16).unwrap();
        pool.reserve(&mut b, 16, 16).unwrap();
        assert_eq!((a.blocks(), b.blocks()), (&[0, 1][..], &[2][..]));
        assert!(pool.reserve(&mut b, 64, 16).is_err());
        assert_eq!(b.blocks(), [2]);
        pool.release(a);
        pool.reserve(&mut b, 64, 16).unwrap();
        assert_eq!(b.blocks(), [2, 0, 1, 3]);
        assert_eq!(pool.free_blocks(), 0);
    }
}
