//! The layouts read back, element by element: the reference that packing is tested against, and that kernels may be.

use super::tiles::row_of;
use crate::DType;
use crate::artifact::{AffineBlocks, Layout};
use half::{bf16, f16};

/// Decodes a packed item to one row-major f32 matrix `[rows, k]` per source. Slow and plain.
///
/// `bytes` is the item, `q4_0` says that unsigned 4-bit quants without minima are centred (they always are).
pub fn unpack(layout: &Layout, rows: &[u64], k: usize, bytes: &[u8]) -> Vec<Vec<f32>> {
    let mut out: Vec<Vec<f32>> = rows.iter().map(|n| vec![f32::NAN; *n as usize * k]).collect();
    let (Some(tiles), Some(tile_bytes)) = (layout.tile_count(rows), layout.tile_bytes(k as u64)) else {
        return out;
    };
    for tile in 0..tiles {
        let start = (tile * tile_bytes) as usize;
        let body = &bytes[start..start + tile_bytes as usize];
        for lane in 0..u64::from(layout.n_tile()) {
            let Some((source, row)) = row_of(layout, rows, tile, lane) else { continue };
            for column in 0..k {
                out[source][row as usize * k + column] = element(layout, body, lane as usize, column);
            }
        }
    }
    out
}

fn scalar(dtype: DType, bytes: &[u8], index: usize) -> f32 {
    match dtype {
        DType::F32 => {
            f32::from_le_bytes([bytes[index * 4], bytes[index * 4 + 1], bytes[index * 4 + 2], bytes[index * 4 + 3]])
        }
        DType::F16 => f16::from_le_bytes([bytes[index * 2], bytes[index * 2 + 1]]).to_f32(),
        _ => bf16::from_le_bytes([bytes[index * 2], bytes[index * 2 + 1]]).to_f32(),
    }
}

fn element(layout: &Layout, tile: &[u8], lane: usize, column: usize) -> f32 {
    match layout {
        Layout::Raw(l) => scalar(l.dtype, tile, column),
        Layout::RowsInterleaved(l) => {
            let step = l.k_step();
            scalar(l.dtype, tile, (column / step * l.n_tile as usize + lane) * step + column % step)
        }
        Layout::AffineBlocks(l) => affine(l, tile, lane, column),
    }
}

fn affine(l: &AffineBlocks, tile: &[u8], lane: usize, column: usize) -> f32 {
    let (n_tile, group) = (l.n_tile as usize, l.group as usize);
    let block = &tile[(column / group) * l.block_bytes()..][..l.block_bytes()];
    let (quants, scales) = block.split_at(l.quant_bytes());
    let i = column % group;
    let q = if l.bits == 8 {
        let byte = quants[((i / 4) * n_tile + lane) * 4 + i % 4];
        if l.signed { f32::from(byte as i8) } else { f32::from(byte) }
    } else {
        let j = i % (group / 2);
        let byte = quants[((j / 4) * n_tile + lane) * 4 + j % 4];
        let nibble = if i < group / 2 { byte & 15 } else { byte >> 4 };
        f32::from(nibble) - if l.has_min { 0.0 } else { 8.0 }
    };
    let min = if l.has_min { scalar(l.scale, scales, n_tile + lane) } else { 0.0 };
    q * scalar(l.scale, scales, lane) + min
}
