//! Weight layouts, declared once: the compiler states which one a kernel wants, the runtime packs into it.
//!
//! All are little-endian and made of whole tiles. `N` is the number of output features (rows of the logical matrix), `K` the
//! reduction length (its columns).

use crate::dtype::DType;
use serde::{Deserialize, Serialize};

/// How the bytes of a pack item lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// The logical bytes as they are; sources one after the other.
    Raw(Raw),
    /// `[ceil(N / n_tile)][K][n_tile]`, or with pairs of k adjacent; rows past N are zero.
    RowsInterleaved(RowsInterleaved),
    /// Quants with scales and minima by tile and group.
    AffineBlocks(AffineBlocks),
}

/// Most rows of a tile: a matrix of one row takes as many in a pack.
pub const MAX_TILE_ROWS: u32 = 1024;

/// The logical bytes as they are. Where `dtype` differs from the source's, f16 and bf16 widen to f32 (exact) and block formats
/// are decoded to f32 (value rounded once to f32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Raw {
    /// Element type in the pack.
    pub dtype: DType,
}

/// A float matrix `[N, K]` as `[ceil(N / n_tile)][K][n_tile]`, or as `[ceil(N / n_tile)][ceil(K / 2)][n_tile][2]` with `k_pair`.
/// Several sources are concatenated along N.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RowsInterleaved {
    /// Element type in the pack: f32, f16 or bf16 (sources of a narrower float type widen exactly, block formats decode to f32), or FP8 as it is.
    pub dtype: DType,
    /// Rows per tile.
    pub n_tile: u32,
    /// Two sources of equal N, alternating tile by tile: tile 0 of the first, tile 0 of the second, tile 1 of the first, ...
    #[serde(default, skip_serializing_if = "is_false")]
    pub pair_interleave: bool,
    /// Elements 2i and 2i + 1 of a row are adjacent: one 32-bit lane, as dots of 16-bit pairs read them. Only for f16 and bf16;
    /// where K is odd, the second element of the last pair is zero.
    #[serde(default, skip_serializing_if = "is_false")]
    pub k_pair: bool,
}

/// A block-quantised matrix `[N, K]` as `[ceil(N / n_tile)][K / group]` blocks of
/// `quants | n_tile scales | n_tile minima (if has_min)`; the value is `q * scale (+ min)`.
///
/// Quants of 8 bits lie `[group / 4][n_tile][4]`. Quants of 4 bits: byte `[i][row][j]` of `[group / 8][n_tile][4]` holds
/// element `4 i + j` of the group in its low nibble and element `group / 2 + 4 i + j` in its high nibble. Unsigned 4-bit
/// quants without minima (q4_0) mean `(q - 8) * scale`. Rows past N are zero bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AffineBlocks {
    /// Bits per quant: 4 or 8.
    pub bits: u8,
    /// 8-bit quants are i8 rather than u8.
    pub signed: bool,
    /// Rows per tile.
    pub n_tile: u32,
    /// Elements along K that share a scale: 16 or 32.
    pub group: u32,
    /// A minimum is stored beside each scale.
    pub has_min: bool,
    /// Type of scales and minima: f16 (bit-exact copies of the source's) or f32.
    pub scale: DType,
    /// See [`RowsInterleaved::pair_interleave`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub pair_interleave: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
pub(super) fn is_false(value: &bool) -> bool {
    !*value
}

impl Layout {
    /// Rows per tile: 1 for raw.
    pub const fn n_tile(&self) -> u32 {
        match self {
            Layout::Raw(_) => 1,
            Layout::RowsInterleaved(l) => l.n_tile,
            Layout::AffineBlocks(l) => l.n_tile,
        }
    }

    /// True if two sources alternate tile by tile.
    pub const fn pair_interleave(&self) -> bool {
        match self {
            Layout::Raw(_) => false,
            Layout::RowsInterleaved(l) => l.pair_interleave,
            Layout::AffineBlocks(l) => l.pair_interleave,
        }
    }

    /// Bytes of one tile of `n_tile` rows and all `k` columns; `None` if `k` does not divide or the layout is malformed.
    pub fn tile_bytes(&self, k: u64) -> Option<u64> {
        match self {
            Layout::Raw(l) => l.dtype.byte_size(&[k]).ok(),
            Layout::RowsInterleaved(l) => l.tile_bytes(k),
            Layout::AffineBlocks(l) => l.tile_bytes(k),
        }
    }

    /// Bytes of sources with the given row counts and `k` columns, concatenated along N (see `pair_interleave` for pairs).
    /// `None` on overflow, or where the layout does not accept the shape.
    pub fn packed_bytes(&self, rows: &[u64], k: u64) -> Option<u64> {
        self.tile_count(rows)?.checked_mul(self.tile_bytes(k)?).filter(|n| *n <= i64::MAX as u64)
    }

    /// Tiles of sources with the given row counts.
    pub fn tile_count(&self, rows: &[u64]) -> Option<u64> {
        let tile = u64::from(self.n_tile());
        if tile == 0 {
            return None;
        }
        if self.pair_interleave() {
            return match rows {
                [first, second] if first == second => first.div_ceil(tile).checked_mul(2),
                _ => None,
            };
        }
        Some(rows.iter().try_fold(0u64, |n, r| n.checked_add(*r))?.div_ceil(tile))
    }
}

impl RowsInterleaved {
    /// True if the fields agree with each other and with what the packer knows.
    pub const fn is_well_formed(&self) -> bool {
        if self.n_tile == 0 || self.n_tile > MAX_TILE_ROWS {
            return false;
        }
        match self.dtype {
            DType::F32 => !self.k_pair,
            DType::F16 | DType::BF16 => true,
            DType::F8E4M3 | DType::F8E4M3Fnuz => !self.k_pair,
            _ => false,
        }
    }

    /// Elements of one row that lie together.
    pub const fn k_step(&self) -> usize {
        1 + self.k_pair as usize
    }

    /// Bytes of one tile of `n_tile` rows and all `k` columns; `None` on overflow, or if the layout is malformed.
    pub fn tile_bytes(&self, k: u64) -> Option<u64> {
        if !self.is_well_formed() {
            return None;
        }
        let padded = k.checked_next_multiple_of(self.k_step() as u64)?;
        padded.checked_mul(u64::from(self.n_tile))?.checked_mul(self.dtype.block_bytes() as u64)
    }
}

impl AffineBlocks {
    /// True if the fields agree with each other and with what the packer knows.
    pub const fn is_well_formed(&self) -> bool {
        matches!(self.bits, 4 | 8)
            && (self.bits == 8 || !self.signed)
            && matches!(self.group, 16 | 32)
            && matches!(self.scale, DType::F16 | DType::F32)
            && self.n_tile > 0
            && self.n_tile <= MAX_TILE_ROWS
    }

    /// Bytes of the quants of one tile and group.
    pub const fn quant_bytes(&self) -> usize {
        self.group as usize * self.n_tile as usize * self.bits as usize / 8
    }

    /// Bytes of one scale or minimum.
    pub const fn scale_bytes(&self) -> usize {
        self.scale.block_bytes()
    }

    /// Bytes of the quants, scales and minima of one tile and group.
    pub const fn block_bytes(&self) -> usize {
        self.quant_bytes() + self.n_tile as usize * self.scale_bytes() * (1 + self.has_min as usize)
    }

    /// Bytes of one tile of `n_tile` rows and all `k` columns.
    pub fn tile_bytes(&self, k: u64) -> Option<u64> {
        if !self.is_well_formed() || !k.is_multiple_of(u64::from(self.group)) {
            return None;
        }
        (k / u64::from(self.group)).checked_mul(self.block_bytes() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_bounded() {
        let rows = |n_tile| RowsInterleaved { dtype: DType::F32, n_tile, pair_interleave: false, k_pair: false };
        let bytes = |n_tile| Layout::RowsInterleaved(rows(n_tile)).packed_bytes(&[1], 8);
        assert_eq!(bytes(16), Some(16 * 8 * 4));
        assert_eq!(bytes(MAX_TILE_ROWS), Some(1024 * 8 * 4));
        assert_eq!([0, MAX_TILE_ROWS + 1, u32::MAX].map(bytes), [None; 3]);
    }
}
