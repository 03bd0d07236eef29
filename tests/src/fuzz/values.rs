//! Values for a graph: dyadic, so that sums are exact in any order, or with full mantissas.

use crate::execute::{Stored, Values, resolve};
use std::collections::BTreeMap;
use weldment_ir::generate::{Random, random_bindings, random_dims};
use weldment_ir::interpret::BindingData;
use weldment_ir::{DType, Graph, Op, codec};

/// Values for every input, weight and state: small integers times a power of two, but in half of the cases a float leaf in three
/// has full mantissas. Integers are valid for the ops that read them, and tokens start anywhere in their sequences.
///
/// # Errors
/// If a symbol has no size or a leaf is too large.
pub(super) fn draw_values(graph: &Graph, dims: &BTreeMap<String, u64>, seed: u64) -> Result<Values, String> {
    let mut values = Values::new();
    let dyadic = Random::new(seed ^ 2).one_in(2);
    let integers = random_bindings(graph, dims, seed).map_err(|e| e.to_string())?;
    for id in graph.ids() {
        let (Op::Input { name, .. } | Op::Weight { name, .. } | Op::State { name, .. }) = &graph.node(id).op else {
            continue;
        };
        let ty = &graph.node(id).types[0];
        let shape = resolve(ty, dims);
        let mut random = Random::new(name.bytes().fold(seed, |k, b| Random::new(k ^ u64::from(b)).bits()));
        let stored = match integers.get(name).map(|b| &b.data) {
            Some(BindingData::Ints(ints)) => Stored::integers(ty.dtype, &shape, ints),
            _ if ty.dtype.is_block() => blocks(ty.dtype, &shape, &mut random),
            _ => floats(ty.dtype, &shape, dyadic, &mut random),
        };
        values.insert(name.to_string(), stored);
    }
    start_late(dims, &mut values, seed);
    Ok(values)
}

/// Moves the tokens of each sequence on, as far as its block table goes around.
fn start_late(dims: &BTreeMap<String, u64>, values: &mut Values, seed: u64) {
    let Some(&sequences) = dims.get("B") else { return };
    let Some(Stored { bytes: ids, .. }) = values.get("sequence_ids").cloned() else { return };
    let room = dims.get("P").map_or(1, |pages| pages * SLOTS);
    let Some(positions) = values.get_mut("positions") else { return };
    let starts: Vec<u64> = {
        let mut random = Random::new(seed ^ 1);
        (0..sequences).map(|_| random.below(room)).collect()
    };
    let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    for (position, id) in positions.bytes.chunks_mut(4).zip(ids.chunks(4)) {
        let start = starts.get(word(id) as usize).copied().unwrap_or(0);
        let moved = (u64::from(word(position)) + start) % room;
        position.copy_from_slice(&(moved as u32).to_le_bytes());
    }
}

/// Positions that a block of the generator's caches holds.
const SLOTS: u64 = 8;

/// Sizes for the symbols. No more tokens than the block tables have places: two writes to one place would have no order.
pub(super) fn draw_dims(graph: &Graph, seed: u64) -> BTreeMap<String, u64> {
    let mut dims = random_dims(graph, seed);
    let room = ["B", "P"].iter().filter_map(|s| dims.get(*s)).product::<u64>() * SLOTS;
    if let Some(tokens) = dims.get_mut("T") {
        *tokens = (*tokens).min(room);
    }
    dims
}

fn floats(dtype: DType, shape: &[u64], dyadic: bool, random: &mut Random) -> Stored {
    let count: u64 = shape.iter().product();
    // Of the order of one, or so small that the epsilon of a norm counts, or large.
    let exponent = if random.one_in(6) { random.below(18) as i32 - 12 } else { -(random.below(6) as i32) };
    let scale = 2f32.powi(exponent);
    let full = !dyadic && random.one_in(3);
    let values: Vec<f32> = (0..count)
        .map(|_| match full {
            // 24 random bits; narrower dtypes round them.
            true => (random.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0) * scale * 4.0,
            false => (random.below(17) as f32 - 8.0) * scale,
        })
        .collect();
    let bytes = codec::encode(dtype, &values, codec::Overflow::Saturate).unwrap_or_default();
    Stored { dtype, shape: shape.to_vec(), bytes }
}

/// Random quants under scales and minima that are powers of two, so that decoded values are dyadic.
fn blocks(dtype: DType, shape: &[u64], random: &mut Random) -> Stored {
    let count = shape.iter().product::<u64>() as usize / dtype.block_elements();
    let mut stored = Stored { dtype, shape: shape.to_vec(), bytes: Vec::new() };
    if dtype == DType::Q8A {
        let values: Vec<f32> = (0..count * 32).map(|_| random.small() as f32).collect();
        stored.bytes = codec::encode(dtype, &values, codec::Overflow::Saturate).unwrap_or_default();
        return stored;
    }
    for _ in 0..count {
        let mut block: Vec<u8> = (0..dtype.block_bytes()).map(|_| random.bits() as u8).collect();
        for at in Stored::scale_offsets(dtype) {
            let sign = if random.one_in(3) { -1.0 } else { 1.0 };
            let scale = half::f16::from_f32(sign * 2f32.powi(-8 + random.below(3) as i32));
            block[*at..*at + 2].copy_from_slice(&scale.to_le_bytes());
        }
        if dtype == DType::MxFp4 {
            block[0] = 122 + random.below(4) as u8;
        }
        stored.bytes.extend(block);
    }
    stored
}
