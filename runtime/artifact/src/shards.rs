//! The parts of tensors that ranks pack.

use crate::manifest::{Manifest, Pack, PackItem, Program, Shard, Tensor};

/// Packs of ranks in one section start at multiples of this.
const SECTION_STRIDE: u64 = 4096;

impl Manifest {
    /// Bytes from the pack of one rank to that of the next where packs are embedded; `None` on overflow.
    pub fn embedded_stride(&self, program: &Program) -> Option<u64> {
        program.pack.bytes.checked_next_multiple_of(SECTION_STRIDE)
    }
}

impl PackItem {
    /// Which part of its tensor number `at` a rank takes; `None` for the whole.
    pub fn shard(&self, at: usize) -> Option<Shard> {
        self.shards.get(at).copied().flatten()
    }
}

impl Shard {
    /// The part that a rank takes.
    pub fn part(&self, rank: u32) -> u64 {
        u64::from(rank / self.replicas.max(1))
    }
}

impl Tensor {
    /// The shape of every part of the tensor; `None` if the dim does not exist or does not divide, or blocks would be cut.
    pub fn part_shape(&self, shard: Shard) -> Option<Vec<u64>> {
        let mut shape = self.shape.clone();
        let axis = shard.axis as usize;
        let last = axis + 1 == shape.len();
        let dim = shape.get_mut(axis)?;
        let parts = u64::from(shard.parts);
        if parts == 0 || !dim.is_multiple_of(parts) {
            return None;
        }
        *dim /= parts;
        let whole = !last || dim.is_multiple_of(self.dtype.block_elements() as u64);
        whole.then_some(shape)
    }
}

impl Pack {
    /// The key of what `rank` packs: ranks that take the same parts share a pack.
    pub fn key_of(&self, rank: u32) -> String {
        let shards = || self.items.iter().flat_map(|item| &item.shards).flatten();
        if shards().next().is_none() || self.key.is_empty() {
            return self.key.clone();
        }
        let mut hash = blake3::Hasher::new();
        hash.update(self.key.as_bytes());
        for shard in shards() {
            hash.update(&shard.part(rank).to_le_bytes());
        }
        hash.finalize().to_hex().to_string()
    }
}
