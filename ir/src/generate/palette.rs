//! What graphs draw sizes and dtypes from.

use super::Random;
use crate::DType;

/// Sizes and dtypes that a graph, or a number of graphs that share kernels, is drawn from.
#[derive(Clone, Debug)]
pub struct Palette {
    /// Widths of the last dim.
    pub(super) widths: Vec<u64>,
    /// Dtypes of activations.
    pub(super) floats: Vec<DType>,
    /// Stored dtypes of matrices.
    pub(super) matrices: Vec<DType>,
    /// Epsilons of norms.
    pub(super) epsilons: Vec<f64>,
    /// Elements of a head.
    pub(super) depth: u64,
    /// Positions of a cache block.
    pub(super) slots: u64,
    /// KV heads, and query heads to each.
    pub(super) heads: [u64; 2],
    /// Sizes do not fit every op: those that do not take them are left out.
    pub(super) ragged: bool,
}

const F32: DType = DType::F32;
/// Widths of whole blocks of 32.
const WHOLE: [u64; 2] = [32, 64];
/// Widths that are no whole blocks, and one of several loop steps.
const RAGGED: [u64; 5] = [7, 24, 40, 72, 160];
const FORMATS: [DType; 9] =
    [DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q4K, DType::Q5K, DType::Q6K, DType::MxFp4];

impl Palette {
    /// Widths of whole blocks, every activation dtype, the formats that have an encoder.
    pub fn whole() -> Palette {
        Palette {
            widths: WHOLE.to_vec(),
            floats: vec![F32, F32, F32, DType::BF16, DType::F16],
            matrices: vec![F32, DType::BF16, DType::Q8_0, DType::Q4_1],
            epsilons: vec![1e-5],
            depth: 8,
            slots: 8,
            heads: [2, 2],
            ragged: false,
        }
    }

    /// A few of everything that there is.
    pub fn random(seed: u64) -> Palette {
        let mut random = Random::new(seed);
        let mut one = |of: &[u64]| *random.pick(of).unwrap_or(&8);
        let other = if one(&[0, 1]) == 1 { one(&RAGGED) } else { one(&[32, 64, 128]) };
        let widths = vec![one(&WHOLE), other];
        let (depth, slots, heads) = (one(&[8, 8, 32, 20]), one(&[8, 8, 16]), [one(&[1, 2, 3]), one(&[1, 2, 4])]);
        let half = *random.pick(&[DType::BF16, DType::F16]).unwrap_or(&F32);
        let floats = if random.one_in(4) { vec![DType::BF16, DType::F16] } else { vec![F32, F32, half] };
        let plain = *random.pick(&[F32, F32, DType::BF16, DType::F16]).unwrap_or(&F32);
        let mut format = || *random.pick(&FORMATS).unwrap_or(&DType::Q8_0);
        let matrices = vec![plain, plain, format(), format()];
        let epsilons = vec![*random.pick(&[1e-5, 1e-6, 1e-3, 0.0625]).unwrap_or(&1e-5)];
        Palette { widths, floats, matrices, epsilons, depth, slots, heads, ragged: true }
    }
}
