//! GPU forms: few tokens keep a partial sum for each place of a row until its run of K ends; many go through matrix units as bf16, which
//! holds every FP8 number.

use super::{Bound, Shape, runs};
use crate::kernels::schedule::{self, all_of, below, steps};
use crate::request::{Built, Request, RowSpace, last_dim, row_stride};
use crate::target::GpuArch;
use crate::tile::{Builder, Conversion, Elem, Reduction, V};
use weldment_passes::target::Refusal;

/// Rows of x up to which partial sums are kept apart.
const FEW: u64 = 4;
/// Threads of a block of the form for few rows, each with 16 codes of a weight's row at a time.
const THREADS: u64 = 256;
/// Codes that a thread loads at a time.
const CODES: u64 = 16;

/// Tile sizes.
struct Tiling {
    m: u32,
    /// The last row that is certain to be in memory.
    last_row: u32,
    n: u32,
    /// Elements of K in a step.
    k: u32,
    threads: u32,
    few: bool,
}

impl Tiling {
    fn new(shape: &Shape, most: u64, arch: GpuArch) -> Tiling {
        // Columns of a tile lie in one block of scales, or each has its own.
        let apart = if shape.rows == 1 || shape.rows >= shape.n { u64::MAX } else { 1 << shape.rows.trailing_zeros() };
        let k = shape.run.next_power_of_two();
        if most <= FEW || apart < 16 {
            let k = k.min(THREADS * CODES);
            // Long runs are read by a whole block, short ones by a few threads for each of several rows.
            let n = (THREADS * CODES / k).clamp(1, 32).min(apart).min(shape.n.next_power_of_two());
            let threads = (n * k / CODES).clamp(64, THREADS).next_power_of_two() as u32;
            let last_row = most.clamp(1, FEW) as u32 - 1;
            return Tiling {
                last_row,
                m: most.min(FEW).next_power_of_two() as u32,
                n: n as u32,
                k: k as u32,
                threads,
                few: true,
            };
        }
        let m = most.clamp(16, 32).next_power_of_two() as u32;
        let n = 64.min(apart).min(shape.n.next_power_of_two().max(16)) as u32;
        let threads = (n / 16 * arch.wave()).clamp(64, 256);
        Tiling { m, last_row: m - 1, n, k: k.clamp(16, 64) as u32, threads, few: false }
    }
}

/// The GPU's kernel.
pub fn build(r: &Request<'_>, arch: GpuArch) -> Result<Built, Refusal> {
    let x = &r.operands[0];
    let space = RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
    let n = last_dim(&r.results[0])?;
    // Tokens and rows of logits are bounded by the variant; nothing is known of other symbols.
    let most = r.most_rows(&space).unwrap_or(u64::MAX);
    let plan = Tiling::new(&Shape::of(r)?, most, arch);
    let mut b = Builder::new(if plan.few { "gemv" } else { "gemm" });
    let bound = Bound::new(&mut b, r)?;
    b.threads(plan.threads);
    let (row_axis, column_axis) = if plan.few { (1, 0) } else { (0, 1) };
    b.grid_constant(column_axis, n.div_ceil(u64::from(plan.n)));
    space.grid(&mut b, row_axis, u64::from(plan.m));
    let (row, column) = (b.program_id(row_axis as u32), b.program_id(column_axis as u32));
    let first = [b.scale(row, i64::from(plan.m)), b.scale(column, i64::from(plan.n))];
    let columns = (!n.is_multiple_of(u64::from(plan.n))).then(|| {
        let mask = below(&mut b, first[1], plan.n, n);
        b.reshape(mask, &[1, plan.n])
    });
    let ragged = plan.m > 1 && (space.symbol.is_some() || !space.mul.is_multiple_of(u64::from(plan.m)));
    let rows = ragged.then(|| {
        let count = space.count(&mut b);
        schedule::present(&mut b, first[0], count, plan.m)
    });
    // Bufferisation leaves room for a multiple of 16 tokens: nothing comes of surplus rows that are read.
    let room = r.counts_tokens(&space) && crate::request::has_room(&space, r.max_tokens, most, plan.m);
    let tile = Tile { plan: &plan, first, rows: rows.filter(|_| !room), columns };
    let value = if plan.few { few(&mut b, r, &bound, &tile)? } else { many(&mut b, r, &bound, &tile)? };
    let mask = all_of(&mut b, &[rows, columns], &[plan.m, plan.n]);
    bound.store(&mut b, r, value, first, mask)?;
    let unit = if plan.few { "row sums" } else { "dots of bf16" };
    let form = format!("{unit} {}x{}x{}, {} threads", plan.m, plan.n, plan.k, plan.threads);
    let kernel = b.finish(String::new());
    Ok(bound.finish(r, kernel, &form))
}

/// A program's share of the result.
struct Tile<'p> {
    plan: &'p Tiling,
    first: [V; 2],
    /// i1 [m, 1] for loads of x, where rows may be missing.
    rows: Option<V>,
    /// i1 [1, n].
    columns: Option<V>,
}

/// Byte offsets of the program's first rows of x and w.
fn bases(b: &mut Builder, r: &Request<'_>, shape: &Shape, tile: &Tile<'_>) -> Result<[V; 2], Refusal> {
    let x = b.scale(tile.first[0], row_stride(&r.operands[0])?);
    Ok([x, b.scale(tile.first[1], shape.k as i64)])
}

/// Sums of products in dots [m, k] x [k, n].
fn many(b: &mut Builder, r: &Request<'_>, bound: &Bound, tile: &Tile<'_>) -> Result<V, Refusal> {
    let Tiling { m, n, k, .. } = *tile.plan;
    let shape = bound.shape;
    let [x_base, w_base] = bases(b, r, &shape, tile)?;
    let x_stride = row_stride(&r.operands[0])?;
    let [x_format, w_format] = bound.formats;
    let nothing = b.float_tile(&[m, n], 0.0);
    let mut outcome = Ok(());
    let total = runs(b, &shape, nothing, |b, start, total| {
        let nothing = b.float_tile(&[m, n], 0.0);
        let sum = steps(b, shape.run, u64::from(k), &[nothing], |b, i, mask, carried| {
            let at = b.add(start, i);
            let present = mask.map(|p| b.reshape(p, &[1, k]));
            let mask_x = all_of(b, &[tile.rows, present], &[m, k]);
            let from = b.add(x_base, at);
            let codes = b.load(bound.x, from, Elem::I8, &[m, k], &[x_stride, 1], mask_x);
            let left = x_format.decode(b, codes);
            let left = b.convert(Conversion::Float, left, Elem::BF16);
            let present = mask.map(|p| b.reshape(p, &[k, 1]));
            let mask_w = all_of(b, &[tile.columns, present], &[k, n]);
            let from = b.add(w_base, at);
            let codes = b.load(bound.w, from, Elem::I8, &[k, n], &[1, shape.k as i64], mask_w);
            let right = w_format.decode(b, codes);
            let right = b.convert(Conversion::Float, right, Elem::BF16);
            vec![b.dot(carried[0], left, right)]
        })[0];
        let scale = bound.scales(b, r, start, tile.first, [m, n], [tile.rows, tile.columns]);
        let scale = scale.unwrap_or_else(|e| {
            outcome = Err(e);
            total
        });
        b.fma(sum, scale, total)
    });
    outcome.map(|()| total)
}

/// Sums of products by place, [n, k] for each row of x, added up along k at the end of a run.
fn few(b: &mut Builder, r: &Request<'_>, bound: &Bound, tile: &Tile<'_>) -> Result<V, Refusal> {
    let Tiling { m, n, k, .. } = *tile.plan;
    let shape = bound.shape;
    let [x_base, w_base] = bases(b, r, &shape, tile)?;
    let x_stride = row_stride(&r.operands[0])?;
    let [x_format, w_format] = bound.formats;
    let rows = tile.columns.map(|c| b.reshape(c, &[n, 1]));
    let nothing = b.float_tile(&[m, n], 0.0);
    let mut outcome = Ok(());
    let total = runs(b, &shape, nothing, |b, start, total| {
        let nothing = b.float_tile(&[n, k], 0.0);
        let sums = steps(b, shape.run, u64::from(k), &vec![nothing; m as usize], |b, i, mask, carried| {
            let at = b.add(start, i);
            let present = mask.map(|p| b.reshape(p, &[1, k]));
            let mask_w = all_of(b, &[rows, present], &[n, k]);
            let from = b.add(w_base, at);
            let codes = b.load(bound.w, from, Elem::I8, &[n, k], &[shape.k as i64, 1], mask_w);
            let weights = w_format.decode(b, codes);
            let mut next = Vec::new();
            for (row, sum) in carried.iter().enumerate() {
                let from = b.add(x_base, at);
                let from = b.offset(from, (row as i64).min(i64::from(tile.plan.last_row)) * x_stride);
                let codes = b.load(bound.x, from, Elem::I8, &[1, k], &[0, 1], present);
                let x = x_format.decode(b, codes);
                next.push(b.fma(weights, x, *sum));
            }
            next
        });
        let products: Vec<V> = sums
            .into_iter()
            .map(|s| {
                let s = b.reduce(Reduction::Sum, s, 1);
                b.reshape(s, &[1, n])
            })
            .collect();
        let sum = if products.len() == 1 { products[0] } else { b.stack(&products) };
        let scale = bound.scales(b, r, start, tile.first, [m, n], [tile.rows, tile.columns]);
        let scale = scale.unwrap_or_else(|e| {
            outcome = Err(e);
            total
        });
        b.fma(sum, scale, total)
    });
    outcome.map(|()| total)
}
