//! Paged KV cache: a pool of blocks, and the table of blocks that a sequence has.

use crate::error::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The free ids, descending, so that the lowest is popped first.
type Free = Mutex<Vec<i32>>;

/// The KV blocks of a session. Ids are `0..blocks`; the lowest free one is handed out first.
#[derive(Debug)]
pub struct BlockPool {
    free: Arc<Free>,
    blocks: usize,
}

impl BlockPool {
    /// A pool of `blocks` free blocks.
    pub fn new(blocks: usize) -> BlockPool {
        let blocks = blocks.min(i32::MAX as usize);
        BlockPool { free: Arc::new(Mutex::new((0..blocks as i32).rev().collect())), blocks }
    }

    /// Blocks in all.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Blocks not in use.
    pub fn free_blocks(&self) -> usize {
        lock(&self.free).len()
    }

    /// A new, empty sequence of this pool.
    pub fn new_sequence(&self) -> Sequence {
        Sequence { blocks: Vec::new(), positions: 0, free: Arc::clone(&self.free) }
    }

    /// Extends `sequence` so that it has room for `positions` positions of `kv_block` each.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if too few blocks are free, or the sequence is of another pool; it is left as it was.
    pub fn reserve(&self, sequence: &mut Sequence, positions: usize, kv_block: usize) -> Result<()> {
        if !Arc::ptr_eq(&self.free, &sequence.free) {
            return Err(Error::InvalidInput("the sequence is another session's: its KV blocks are not here".into()));
        }
        let wanted = positions.div_ceil(kv_block.max(1));
        let missing = wanted.saturating_sub(sequence.blocks.len());
        let mut free = lock(&self.free);
        let Some(left) = free.len().checked_sub(missing) else {
            return Err(Error::InvalidInput(format!(
                "{positions} positions need {missing} more KV blocks, {} of {} are free",
                free.len(),
                self.blocks
            )));
        };
        sequence.blocks.extend(free.drain(left..).rev());
        Ok(())
    }
}

/// The ids; a panic elsewhere leaves them whole.
fn lock(free: &Free) -> MutexGuard<'_, Vec<i32>> {
    free.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One sequence's place in the KV cache of a session, which gets the blocks back when the sequence drops.
#[derive(Debug)]
pub struct Sequence {
    blocks: Vec<i32>,
    pub(crate) positions: usize,
    free: Arc<Free>,
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

impl Drop for Sequence {
    fn drop(&mut self) {
        let mut free = lock(&self.free);
        free.append(&mut self.blocks);
        free.sort_unstable_by(|a, b| b.cmp(a));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_go_round() {
        let pool = BlockPool::new(4);
        let (mut a, mut b) = (pool.new_sequence(), pool.new_sequence());
        pool.reserve(&mut a, 17, 16).unwrap();
        pool.reserve(&mut b, 16, 16).unwrap();
        assert_eq!((a.blocks(), b.blocks()), (&[0, 1][..], &[2][..]));
        assert!(pool.reserve(&mut b, 64, 16).is_err());
        assert_eq!(b.blocks(), [2]);
        drop(a);
        pool.reserve(&mut b, 64, 16).unwrap();
        assert_eq!(b.blocks(), [2, 0, 1, 3]);
        assert_eq!(pool.free_blocks(), 0);
        let other = BlockPool::new(4);
        assert!(other.reserve(&mut b, 80, 16).is_err());
        drop(b);
        assert_eq!((pool.free_blocks(), other.free_blocks()), (4, 4));
    }
}
