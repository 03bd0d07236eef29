//! Many tokens on a GPU: tiles of x against tiles of weights on matrix units, or as fused multiply-adds where the operands are
//! not both bf16 or both f16. Operands are read straight in the units' layout. Few rows of x leave most of a GPU idle, so K is
//! then split over the waves of a block, whose sums meet at the end.

use super::{Left, Right, Rows, Share, joined};
use crate::choices::Choices;
use crate::kernels::row::elem_of;
use crate::kernels::schedule::{all_of, steps};
use crate::kernels::weights::load_quads;
use crate::target::GpuArch;
use crate::tile::{Builder, Conversion, Elem, Reduction, V};
use std::fmt;
use weldment_artifact::AffineBlocks;
use weldment_ir::DType;

/// Blocks that keep a large GPU busy: two for each of an H200's 132 multiprocessors.
const ENOUGH_BLOCKS: u64 = 264;
/// Blocks that leave few of its multiprocessors idle.
const FEWEST_BLOCKS: u64 = 96;

/// Tile sizes.
pub struct Tiling {
    /// Rows of x.
    pub m: u32,
    /// Output columns.
    pub n: u32,
    /// Elements along K of one dot; of block formats, groups of four.
    k: u32,
    /// Parts of a step along K, each a wave's (or several waves') own.
    split: u32,
    /// Element type of the dots' operands.
    elem: Elem,
    /// Block size.
    pub threads: u32,
}

impl fmt::Display for Tiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dots of {:?} {}x{}x{}", self.elem, self.m, self.n, self.k)?;
        write!(f, ", K in {}, {} threads", self.split, self.threads)
    }
}

impl Tiling {
    /// For products of up to `rows` by `n` over `k`, `matrices` of them side by side, of these dtypes.
    pub fn new(
        arch: GpuArch,
        choices: &Choices,
        [rows, n, k]: [u64; 3],
        matrices: usize,
        [x, w]: [DType; 2],
        blocks: Option<&AffineBlocks>,
    ) -> Tiling {
        let x_elem = elem_of(x).unwrap_or(Elem::F32);
        let matrix = x_elem != Elem::F32 && (blocks.is_some() || elem_of(w) == Some(x_elem));
        let elem = if matrix { x_elem } else { Elem::F32 };
        let wave = arch.wave();
        let rows_of = |most: u32| (rows.min(u64::from(most)).next_power_of_two() as u32).max(16);
        // Up to 64 tokens are mostly far fewer: two tiles of 32 read weights twice at worst.
        let most = if !matrix {
            16
        } else if rows > 64 {
            64
        } else {
            32
        };
        // More sums than this do not stay in registers.
        let room = match (matrix, blocks) {
            (false, _) => 16,
            (true, Some(_)) => 64,
            (true, None) => 128,
        };
        let m = choices.gemm_tile_rows.map_or(rows_of(most), |fixed| fixed.min(room));
        if let Some(layout) = blocks {
            // A wave takes a group; of a 4-bit one, two halves in turn. Without matrix units four elements at a time fit.
            let quads = if layout.bits == 4 { layout.group / 8 } else { layout.group / 4 };
            let groups = (k / u64::from(layout.group)).next_power_of_two();
            // Sums of 64 rows take the registers of eight waves.
            let split = groups.min(if m > 32 { 4 } else { 8 }) as u32;
            let k = if matrix { quads } else { 1 };
            return Tiling { m, n: layout.n_tile, k, split, elem, threads: (split * wave).clamp(64, 512) };
        }
        if !matrix {
            // x is the same for all lanes of a wave: 16 rows of 4 elements are what registers hold.
            let n = (n.next_power_of_two() as u32).clamp(16, 64);
            let split = ((k.next_power_of_two() / 4).clamp(1, 4)) as u32;
            return Tiling { m, n, k: 4, split, elem, threads: 256 };
        }
        let blocks_of = |n_tile: u32| n.div_ceil(u64::from(n_tile)).saturating_mul(rows.div_ceil(u64::from(m)));
        let along_k = |k_tile: u32| k.next_power_of_two().clamp(16, u64::from(k_tile)) as u32;
        if rows > 64 {
            // Waves stand side by side along n.
            let wide = if matrices == 1 { 128 } else { 64 };
            let n = if blocks_of(wide) >= ENOUGH_BLOCKS / 2 { wide } else { 64 };
            let n = choices.gemm_wide_columns.map_or(n, |fixed| fixed.min(wide));
            let threads = if n == 128 { 256 } else { 128 };
            return Tiling { m, n, k: along_k(64), split: 1, elem, threads: threads.max(wave) };
        }
        // Every program reads all of x, so narrow tiles of columns would read it more often than the weights; but nearly all
        // multiprocessors must have one.
        let k_tile = along_k(if m == 64 { 32 } else { 64 });
        let steps = k.next_power_of_two() / u64::from(k_tile);
        let fixed = choices.gemm_tile_columns;
        if fixed.is_none() && blocks_of(64) >= 2 * ENOUGH_BLOCKS && matrices == 1 {
            let split = steps.clamp(1, 4) as u32;
            return Tiling { m, n: 64, k: k_tile, split, elem, threads: (split * wave).max(64) };
        }
        let tile = [64, 32].into_iter().find(|n| blocks_of(*n) >= FEWEST_BLOCKS).unwrap_or(16);
        let tile = fixed.unwrap_or(tile);
        // A wave takes 16 columns and a part of K, at least four steps of it.
        let waves = if matrices > 1 || m == 64 { 256 } else { 512 } / wave;
        let beside = (tile / 16).min(waves / 2);
        let split = (steps / 4).clamp(1, u64::from(waves / beside)) as u32;
        Tiling { m, n: tile, k: k_tile, split, elem, threads: (split * beside * wave).max(64) }
    }

    /// Zeros to add to.
    fn nothing(&self, b: &mut Builder) -> V {
        b.float_tile(&[self.split, self.m, self.n], 0.0)
    }

    /// The dots' operand type from what was loaded.
    fn operand(&self, b: &mut Builder, v: V) -> V {
        if self.elem == Elem::F32 { b.to_f32(v) } else { b.convert(Conversion::Float, v, self.elem) }
    }
}

/// The program's tile [m, n] of the result.
pub fn product(b: &mut Builder, plan: &Tiling, share: &Share, x: &Left<'_>, w: &Right) -> V {
    let sums = match w {
        Right::Rows(matrices) => float_sums(b, plan, share, x, matrices),
        Right::Blocks { .. } => block_sums(b, plan, share, x, w),
    };
    let products: Vec<V> = sums
        .into_iter()
        .map(|s| {
            let s = b.reduce(Reduction::Sum, s, 0);
            b.reshape(s, &[plan.m, plan.n])
        })
        .collect();
    joined(b, &products)
}

/// Masks of x's rows [1, m, 1] and of the output's columns [1, 1, n].
fn edges(b: &mut Builder, plan: &Tiling, share: &Share) -> (Option<V>, Option<V>) {
    let rows = share.read.map(|m| b.reshape(m, &[1, plan.m, 1]));
    let columns = share.columns.map(|m| b.reshape(m, &[1, 1, plan.n]));
    (rows, columns)
}

fn float_sums(b: &mut Builder, plan: &Tiling, share: &Share, x: &Left<'_>, matrices: &[Rows]) -> Vec<V> {
    let x_elem = elem_of(x.ty.dtype).unwrap_or(Elem::F32);
    let size = x_elem.bytes() as i64;
    let Tiling { m, n, k, split, .. } = *plan;
    let (rows, columns) = edges(b, plan, share);
    let init: Vec<V> = matrices.iter().map(|_| plan.nothing(b)).collect();
    let load_x = |b: &mut Builder, at: V, mask: Option<V>| {
        let from = b.scale(at, size);
        let from = b.add(x.base, from);
        let present = mask.map(|p| b.reshape(p, &[split, 1, k]));
        let mask = all_of(b, &[rows, present], &[split, m, k]);
        let a = b.load(x.param, from, x_elem, &[split, m, k], &[i64::from(k) * size, x.stride, size], mask);
        plan.operand(b, a)
    };
    let load_w = |b: &mut Builder, w: &Rows, at: V, mask: Option<V>| {
        let present = mask.map(|p| b.reshape(p, &[split, k, 1]));
        let mask = all_of(b, &[columns, present], &[split, k, n]);
        let from = b.scale(at, w.column);
        let from = b.add(w.base, from);
        let strides = [i64::from(k) * w.column, w.column, w.row];
        b.load(w.param, from, w.elem, &[split, k, n], &strides, mask)
    };
    let step = u64::from(split * k);
    if share.k.is_multiple_of(step) && share.k > step {
        // The weights of the next step are under way while this one's are multiplied.
        let (start, last) = (b.int(0), b.int((share.k - step) as i64));
        let first: Vec<V> = matrices.iter().map(|w| load_w(b, w, start, None)).collect();
        let multiply = |b: &mut Builder, at: V, carried: &[V]| -> Vec<V> {
            let a = load_x(b, at, None);
            let (sums, tiles) = carried.split_at(matrices.len());
            let pairs = sums.iter().zip(tiles);
            pairs
                .map(|(acc, tile)| {
                    let tile = plan.operand(b, *tile);
                    b.dot(*acc, a, tile)
                })
                .collect()
        };
        let init: Vec<V> = init.into_iter().chain(first).collect();
        let done = b.for_loop(start, last, step as i64, &init, |b, at, carried| {
            let ahead = b.offset(at, step as i64);
            let next: Vec<V> = matrices.iter().map(|w| load_w(b, w, ahead, None)).collect();
            multiply(b, at, carried).into_iter().chain(next).collect()
        });
        return multiply(b, last, &done);
    }
    steps(b, share.k, step, &init, |b, at, mask, carried| {
        let a = load_x(b, at, mask);
        let pairs = matrices.iter().zip(carried);
        pairs
            .map(|(w, acc)| {
                let tile = load_w(b, w, at, mask);
                let tile = plan.operand(b, tile);
                b.dot(*acc, a, tile)
            })
            .collect()
    })
}

fn block_sums(b: &mut Builder, plan: &Tiling, share: &Share, x: &Left<'_>, w: &Right) -> Vec<V> {
    let Right::Blocks { param, starts, layout } = w else { return Vec::new() };
    let x_elem = elem_of(x.ty.dtype).unwrap_or(Elem::F32);
    let size = x_elem.bytes() as i64;
    let Tiling { m, n, k: quads, split, .. } = *plan;
    let group = i64::from(layout.group);
    let (rows, _) = edges(b, plan, share);
    let init: Vec<V> = starts.iter().map(|_| plan.nothing(b)).collect();
    let all = share.k / u64::from(layout.group);
    steps(b, all, u64::from(split), &init, |b, at, mask, carried| {
        let present = mask.map(|p| b.reshape(p, &[split, 1, 1]));
        let a_mask = all_of(b, &[rows, present], &[split, m, quads * 4]);
        let mut sums = carried.to_vec();
        let count = layout.group / if layout.bits == 4 { 8 } else { 4 };
        for first in (0..count).step_by(quads as usize) {
            for (start, acc) in starts.iter().zip(&mut sums) {
                let from = b.scale(at, layout.block_bytes() as i64);
                let from = b.add(*start, from);
                for (values, element) in load_quads(b, *param, from, layout, [split, first, quads], present) {
                    let from = b.scale(at, group * size);
                    let from = b.add(x.base, from);
                    let from = b.offset(from, i64::from(element) * size);
                    let strides = [group * size, x.stride, size];
                    let a = b.load(x.param, from, x_elem, &[split, m, quads * 4], &strides, a_mask);
                    let a = plan.operand(b, a);
                    let values = b.convert(Conversion::Float, values, plan.elem);
                    let values = b.reshape(values, &[split, quads * 4, n]);
                    *acc = b.dot(*acc, a, values);
                }
            }
        }
        sums
    })
}
