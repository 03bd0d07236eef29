//! Few tokens on a GPU: weights stream through registers once, every place of a row keeps its own partial sum, and a single
//! reduction at the end adds them up. A thread has several independent 16-byte loads of weights under way in each step.

use super::{Left, Right, Share, joined};
use crate::choices::Choices;
use crate::kernels::row::elem_of;
use crate::kernels::schedule::{all_of, steps};
use crate::kernels::weights::{Words, load_words};
use crate::tile::{Builder, Elem, Reduction, V};
use std::fmt;
use weldment_artifact::AffineBlocks;
use weldment_ir::DType;

/// Rows of x above which matrix units are better used, padding and all.
pub const MOST_ROWS: u64 = 4;
/// Threads of a block, as far as a row has so many 16-byte pieces.
const THREADS: u64 = 256;
/// 16-byte loads of weights that a thread has under way.
const IN_FLIGHT: u64 = 8;
/// Blocks under which a program takes fewer output rows: four for each of an H200's 132 multiprocessors, less a few.
const LEAST_BLOCKS: u64 = 480;

/// Tile sizes.
pub struct Tiling {
    /// Rows of x.
    pub x_rows: u32,
    /// The last row of x that is certain to be in memory.
    last_row: u32,
    /// Output columns, which are rows of weights.
    pub n: u32,
    /// Elements of a row in a step; of block formats, groups.
    step: u32,
    /// Block size.
    pub threads: u32,
}

impl fmt::Display for Tiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row sums of {}x{}, {} a step, {} threads", self.x_rows, self.n, self.step, self.threads)
    }
}

impl Tiling {
    /// For products of `x_rows` by `n` over `k`, `matrices` of them side by side.
    pub fn new(
        choices: &Choices,
        [x_rows, n, k]: [u64; 3],
        matrices: usize,
        dtype: DType,
        blocks: Option<&AffineBlocks>,
    ) -> Tiling {
        let last_row = x_rows.saturating_sub(1) as u32;
        let x_rows = x_rows.next_power_of_two();
        let sums = x_rows * matrices as u64;
        if let Some(layout) = blocks {
            // A word is four or eight quants; four neighbouring output rows make 16 bytes.
            let words = u64::from(Words::of(layout)) * u64::from(layout.n_tile);
            let groups = (k / u64::from(layout.group)).next_power_of_two();
            let step = groups.min((THREADS * 4 * (IN_FLIGHT / 2) / words / sums.min(4)).max(1));
            let threads = (step * words / 4).clamp(64, THREADS).next_power_of_two();
            return Tiling {
                x_rows: x_rows as u32,
                last_row,
                n: layout.n_tile,
                step: step as u32,
                threads: threads as u32,
            };
        }
        let lanes = 16 / elem_of(dtype).unwrap_or(Elem::F32).bytes();
        let step = k.next_power_of_two().min(THREADS * lanes);
        let threads = (step / lanes).clamp(64, THREADS);
        let mut rows = (IN_FLIGHT / sums).max(1);
        while rows > 1 && n.div_ceil(rows) < LEAST_BLOCKS {
            rows /= 2;
        }
        // Short rows: enough of them to give every thread a load.
        rows = rows.max(threads * lanes / step);
        if let Some(fixed) = choices.gemv_rows {
            rows = u64::from(fixed).min((threads * 64 / step).max(1));
        }
        Tiling { x_rows: x_rows as u32, last_row, n: rows as u32, step: step as u32, threads: threads as u32 }
    }
}

/// The program's tile [x_rows, n] of the result.
pub fn product(b: &mut Builder, plan: &Tiling, share: &Share, x: &Left<'_>, w: &Right) -> V {
    let sums = match w {
        Right::Rows(_) => float_sums(b, plan, share, x, w),
        Right::Blocks { .. } => block_sums(b, plan, share, x, w),
    };
    // [n] of each row of x, matrices inside.
    let matrices = sums.len() / plan.x_rows as usize;
    let rows: Vec<V> = sums.chunks(matrices).map(|products| joined(b, products)).collect();
    if rows.len() == 1 { rows[0] } else { b.stack(&rows) }
}

/// Sums [1, n] by row of x and matrix.
fn float_sums(b: &mut Builder, plan: &Tiling, share: &Share, x: &Left<'_>, w: &Right) -> Vec<V> {
    let Right::Rows(matrices) = w else { return Vec::new() };
    let x_elem = elem_of(x.ty.dtype).unwrap_or(Elem::F32);
    let count = plan.x_rows as usize * matrices.len();
    let nothing = b.float_tile(&[plan.n, plan.step], 0.0);
    let rows = share.columns.map(|m| b.reshape(m, &[plan.n, 1]));
    let sums = steps(b, share.k, u64::from(plan.step), &vec![nothing; count], |b, at, mask, carried| {
        let columns = mask.map(|m| b.reshape(m, &[1, plan.step]));
        let weights: Vec<V> = matrices
            .iter()
            .map(|w| {
                let from = b.scale(at, w.column);
                let from = b.add(w.base, from);
                let mask = all_of(b, &[columns, rows], &[plan.n, plan.step]);
                let tile = b.load(w.param, from, w.elem, &[plan.n, plan.step], &[w.row, w.column], mask);
                b.to_f32(tile)
            })
            .collect();
        let mut next = Vec::new();
        for i in 0..plan.x_rows {
            let from = b.scale(at, x_elem.bytes() as i64);
            let from = b.add(x.base, from);
            let from = b.offset(from, i64::from(i.min(plan.last_row)) * x.stride);
            let row = b.load(x.param, from, x_elem, &[1, plan.step], &[0, x_elem.bytes() as i64], columns);
            let row = b.to_f32(row);
            for weights in &weights {
                next.push(b.fma(*weights, row, carried[next.len()]));
            }
        }
        next
    });
    sums.into_iter()
        .map(|s| {
            let s = b.reduce(Reduction::Sum, s, 1);
            b.reshape(s, &[1, plan.n])
        })
        .collect()
}

/// As [`float_sums`], from block formats: each thread takes whole words of quants and their group's scale.
fn block_sums(b: &mut Builder, plan: &Tiling, share: &Share, x: &Left<'_>, w: &Right) -> Vec<V> {
    let Right::Blocks { param, starts, layout } = w else { return Vec::new() };
    let x_elem = elem_of(x.ty.dtype).unwrap_or(Elem::F32);
    let size = x_elem.bytes() as i64;
    let (groups, words, group) = (plan.step, Words::of(layout), layout.group);
    let count = plan.x_rows as usize * starts.len();
    let nothing = b.float_tile(&[groups, words, plan.n], 0.0);
    let all = share.k / u64::from(group);
    let sums = steps(b, all, u64::from(groups), &vec![nothing; count], |b, at, mask, carried| {
        let present = mask.map(|m| b.reshape(m, &[groups, 1, 1]));
        let quants: Vec<Words> = starts
            .iter()
            .map(|start| {
                let from = b.scale(at, layout.block_bytes() as i64);
                let from = b.add(*start, from);
                load_words(b, *param, from, layout, groups, present)
            })
            .collect();
        let mut next = Vec::new();
        for i in 0..plan.x_rows {
            let from = b.scale(at, i64::from(group) * size);
            let from = b.add(x.base, from);
            let from = b.offset(from, i64::from(i.min(plan.last_row)) * x.stride);
            // x as each word's elements want it, and its sum over the word.
            let mask = all_of(b, &[present], &[groups, words, 1]);
            let mut pieces = Vec::new();
            for element in Words::elements(layout) {
                let from = b.offset(from, i64::from(element) * size);
                let strides = [i64::from(group) * size, 4 * size, 0];
                let piece = b.load(x.param, from, x_elem, &[groups, words, 1], &strides, mask);
                pieces.push(b.to_f32(piece));
            }
            let total = pieces.iter().copied().reduce(|x, y| b.add(x, y));
            for q in &quants {
                let mut sum = b.float_tile(&[groups, words, plan.n], 0.0);
                for (values, piece) in q.values.iter().zip(&pieces) {
                    sum = b.fma(*values, *piece, sum);
                }
                let mut acc = carried[next.len()];
                if let Some(total) = total {
                    if q.zero != 0.0 {
                        let zero = b.float(-q.zero);
                        let correction = b.mul(total, zero);
                        sum = b.add(sum, correction);
                    }
                    if let Some(minimum) = q.minimum {
                        acc = b.fma(minimum, total, acc);
                    }
                }
                next.push(b.fma(sum, q.scale, acc));
            }
        }
        next
    });
    sums.into_iter()
        .map(|s| {
            let s = b.reshape(s, &[groups * words, plan.n]);
            b.reduce(Reduction::Sum, s, 0)
        })
        .collect()
}
