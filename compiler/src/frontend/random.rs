//! Random weights for models of which only the shapes are at hand: a counter-based generator, so that any element of any
//! tensor can be made alone, in any order, by any number of threads.

use super::layout::Role;
use rayon::prelude::*;
use weldment_ir::DType;
use weldment_ir::codec::{Overflow, encode};

/// Elements made by one task.
const CHUNK: usize = 1 << 16;

/// SplitMix64's output function (Steele, Lea, Flood 2014) of state `n`.
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The key of a tensor's stream: seed and name hashed.
fn stream(seed: u64, name: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    let mut key = [0; 8];
    key.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(key)
}

/// Little-endian elements `shape` of a plain float `dtype`: uniform with the variance that keeps activations of order one
/// (1 for the embedding, 1/in for projections), norms around 1.
pub(super) fn random_bytes(seed: u64, name: &str, role: Role, dtype: DType, shape: &[u64]) -> Vec<u8> {
    let elements = shape.iter().fold(1usize, |n, d| n.saturating_mul(usize::try_from(*d).unwrap_or(usize::MAX)));
    let key = stream(seed, name);
    let fan_in = shape.last().copied().unwrap_or(1).max(1) as f32;
    // A uniform value on [-a, a] has variance a^2 / 3.
    let (centre, reach) = match role {
        Role::Embedding => (0.0, 3f32.sqrt()),
        Role::Projection => (0.0, (3.0 / fan_in).sqrt()),
        Role::Norm | Role::RopeFactors => (1.0, 0.1),
        Role::Bias => (0.0, 0.1),
    };
    let value = |i: usize| {
        let unit = (mix(key.wrapping_add(i as u64)) >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
        centre + reach * unit
    };
    let size = dtype.block_bytes();
    let mut out = vec![0u8; elements.saturating_mul(size)];
    out.par_chunks_mut(CHUNK * size).enumerate().for_each(|(chunk, bytes)| {
        let start = chunk * CHUNK;
        let values: Vec<f32> = (start..start + bytes.len() / size).map(value).collect();
        // Only plain floats are asked for (see `Checkpoint`), and those always encode.
        if let Ok(encoded) = encode(dtype, &values, Overflow::Saturate) {
            bytes.copy_from_slice(&encoded);
        }
    });
    out
}
