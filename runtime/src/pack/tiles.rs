//! Packs tiles of rows into a layout. A tile's rows are gathered first, so that concatenation, pairs and padding need one rule.

use super::formats::{decode_row, encode_row, is_decodable, split};
use crate::DType;
use crate::artifact::block::block_format;
use crate::artifact::{AffineBlocks, Layout, RowsInterleaved};

/// Says why sources of `dtype` cannot be packed into `layout`; `None` if they can.
pub fn refusal(layout: &Layout, dtype: DType) -> Option<String> {
    let ok = match layout {
        Layout::Raw(l) => l.dtype == dtype || (is_decodable(dtype) && is_plain_float(l.dtype)),
        Layout::RowsInterleaved(l) => {
            l.is_well_formed() && (l.dtype == dtype || (is_decodable(dtype) && is_plain_float(l.dtype)))
        }
        Layout::AffineBlocks(l) => block_format(dtype).is_some_and(|f| f.fits(l)),
    };
    if ok { None } else { Some(format!("{dtype} cannot be packed into {layout:?}")) }
}

const fn is_plain_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Where a row of a tile comes from: `(source, row)`, or `None` for padding.
///
/// `rows` are the sources' row counts; `tile` and `lane` locate the row in the layout.
pub fn row_of(layout: &Layout, rows: &[u64], tile: u64, lane: u64) -> Option<(usize, u64)> {
    let n_tile = u64::from(layout.n_tile());
    if layout.pair_interleave() {
        let row = (tile / 2) * n_tile + lane;
        let source = (tile % 2) as usize;
        return (row < *rows.get(source)?).then_some((source, row));
    }
    let mut row = tile * n_tile + lane;
    for (source, count) in rows.iter().enumerate() {
        if row < *count {
            return Some((source, row));
        }
        row -= count;
    }
    None
}

/// Packs one tile. `rows` holds `n_tile` logical rows of `dtype` with `k` elements each; an empty slice is padding. `out` is
/// zeroed or holds old bytes: every byte is written. `scratch` is reused between calls.
pub fn pack_tile(layout: &Layout, dtype: DType, rows: &[&[u8]], k: usize, out: &mut [u8], scratch: &mut Vec<f32>) {
    match layout {
        Layout::Raw(l) => {
            let row = rows.first().copied().unwrap_or(&[]);
            if l.dtype == dtype {
                out.copy_from_slice(&row[..out.len().min(row.len())]);
            } else {
                scratch.resize(k, 0.0);
                decode_row(dtype, row, scratch);
                encode_row(l.dtype, scratch, out);
            }
        }
        Layout::RowsInterleaved(l) => rows_interleaved(l, dtype, rows, k, out, scratch),
        Layout::AffineBlocks(l) => affine_blocks(l, dtype, rows, out),
    }
}

fn rows_interleaved(
    l: &RowsInterleaved,
    dtype: DType,
    rows: &[&[u8]],
    k: usize,
    out: &mut [u8],
    scratch: &mut Vec<f32>,
) {
    let (n_tile, element) = (l.n_tile as usize, l.dtype.block_bytes());
    // What one row has in one place: an element or a pair.
    let word = element * l.k_step();
    scratch.resize(k, 0.0);
    let mut padded = vec![0u8; (k * element).next_multiple_of(word)];
    for (lane, row) in rows.iter().enumerate() {
        let encoded = &mut padded[..k * element];
        if row.is_empty() {
            encoded.fill(0);
        } else if l.dtype == dtype {
            encoded.copy_from_slice(row);
        } else {
            decode_row(dtype, row, scratch);
            encode_row(l.dtype, scratch, encoded);
        }
        let columns = out.chunks_exact_mut(n_tile * word);
        if word == 1 {
            for (column, e) in columns.zip(&padded) {
                column[lane] = *e;
            }
        } else if word == 4 {
            for (column, e) in columns.zip(padded.chunks_exact(4)) {
                column[lane * 4..lane * 4 + 4].copy_from_slice(e);
            }
        } else {
            for (column, e) in columns.zip(padded.chunks_exact(2)) {
                column[lane * 2..lane * 2 + 2].copy_from_slice(e);
            }
        }
    }
}

fn affine_blocks(l: &AffineBlocks, dtype: DType, rows: &[&[u8]], out: &mut [u8]) {
    // Formats whose quants and scales go over as they are: a transpose of 32-bit words.
    let native = l.scale == DType::F16
        && match dtype {
            DType::Q4_0 | DType::Q4_1 => l.bits == 4,
            DType::Q8_0 => l.bits == 8,
            _ => false,
        };
    let (n_tile, scale_bytes) = (l.n_tile as usize, l.scale_bytes());
    for (lane, row) in rows.iter().enumerate() {
        if row.is_empty() {
            for block in out.chunks_exact_mut(l.block_bytes()) {
                clear_lane(l, block, lane);
            }
            continue;
        }
        let groups = out.chunks_exact_mut(l.block_bytes());
        if native {
            let header = if l.has_min { 4 } else { 2 };
            for (block, source) in groups.zip(row.chunks_exact(dtype.block_bytes())) {
                let (quants, scales) = block.split_at_mut(l.quant_bytes());
                let lines = quants.chunks_exact_mut(n_tile * 4);
                for (line, word) in lines.zip(source[header..].chunks_exact(4)) {
                    line[lane * 4..lane * 4 + 4].copy_from_slice(word);
                }
                scales[lane * 2..lane * 2 + 2].copy_from_slice(&source[0..2]);
                if l.has_min {
                    scales[(n_tile + lane) * 2..(n_tile + lane) * 2 + 2].copy_from_slice(&source[2..4]);
                }
            }
            continue;
        }
        let per_block = dtype.block_elements() / l.group as usize;
        for (index, block) in groups.enumerate() {
            let at = (index / per_block) * dtype.block_bytes();
            let g = split(dtype, &row[at..at + dtype.block_bytes()], index % per_block);
            let (quants, scales) = block.split_at_mut(l.quant_bytes());
            put_quants(l, dtype, &g.q, quants, lane);
            put_scale(l.scale, g.scale, &mut scales[lane * scale_bytes..(lane + 1) * scale_bytes]);
            if l.has_min {
                let at = (n_tile + lane) * scale_bytes;
                put_scale(l.scale, g.min, &mut scales[at..at + scale_bytes]);
            }
        }
    }
}

fn put_quants(l: &AffineBlocks, dtype: DType, q: &[i8; 32], quants: &mut [u8], lane: usize) {
    let (n_tile, group) = (l.n_tile as usize, l.group as usize);
    if l.bits == 8 {
        for (i, word) in q[..group].chunks_exact(4).enumerate() {
            let at = (i * n_tile + lane) * 4;
            for (o, v) in quants[at..at + 4].iter_mut().zip(word) {
                *o = *v as u8;
            }
        }
        return;
    }
    let zero = if dtype == DType::Q4_0 { 8 } else { 0 };
    let (low, high) = q[..group].split_at(group / 2);
    for (i, (low, high)) in low.chunks_exact(4).zip(high.chunks_exact(4)).enumerate() {
        let at = (i * n_tile + lane) * 4;
        for ((o, low), high) in quants[at..at + 4].iter_mut().zip(low).zip(high) {
            *o = ((low + zero) as u8 & 15) | (((high + zero) as u8) << 4);
        }
    }
}

fn put_scale(dtype: DType, value: f32, out: &mut [u8]) {
    // f16 scales are exact: `fits` admits them only for formats whose scales are f16.
    encode_row(dtype, &[value], out);
}

fn clear_lane(l: &AffineBlocks, block: &mut [u8], lane: usize) {
    let (n_tile, scale_bytes) = (l.n_tile as usize, l.scale_bytes());
    let (quants, scales) = block.split_at_mut(l.quant_bytes());
    for line in quants.chunks_exact_mut(n_tile * 4) {
        line[lane * 4..lane * 4 + 4].fill(0);
    }
    for half in scales.chunks_exact_mut(n_tile * scale_bytes) {
        half[lane * scale_bytes..(lane + 1) * scale_bytes].fill(0);
    }
}
