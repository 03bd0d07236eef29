//! Random weights for models of which only the shapes are at hand. The runtime's generator is used, which makes any row of any
//! tensor alone: an artifact that says `random:SEED` then means the bytes that were compiled.

use rayon::prelude::*;
use weldment_ir::DType;
use weldment_runtime::pack::random::RandomTensor;

/// Rows made by one task.
const ROWS: usize = 64;

/// Little-endian elements of a tensor of a plain float `dtype`.
pub(super) fn random_bytes(seed: u64, name: &str, dtype: DType, shape: &[u64]) -> Vec<u8> {
    let tensor = RandomTensor::new(name, seed, dtype, shape);
    let row = tensor.row_bytes().max(1);
    let size = dtype.byte_size(shape).ok().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let mut out = vec![0u8; size];
    out.par_chunks_mut(row * ROWS).enumerate().for_each(|(chunk, rows)| {
        for (i, row) in rows.chunks_mut(row).enumerate() {
            tensor.fill_row((chunk * ROWS + i) as u64, row);
        }
    });
    out
}
