//! Contractions over weights.

use super::domain::{Domain, Fault, Options};
use super::tensor::{Data, Tensor};

/// x [.., K] times w [N, K] transposed, row-major [.., N], not rounded. Each weight row is decoded once, whatever the number of x rows.
pub(super) fn matmul<D: Domain>(
    x: &Tensor<D::Value>,
    w: &Tensor<D::Value>,
    options: &Options,
) -> Result<Vec<D::Value>, Fault> {
    let &[features, depth] = w.shape.as_slice() else { return Err("w is not a matrix".into()) };
    let rows: usize = x.shape.iter().rev().skip(1).product();
    let x = x.reals::<D>()?;
    let count = rows.checked_mul(features).filter(|n| *n <= options.max_elements).ok_or("the result is too large")?;
    let mut out = vec![D::ZERO; count];
    if depth == 0 || count == 0 {
        return Ok(out);
    }
    let mut buffer = vec![D::ZERO; depth];
    let mut scratch = Vec::new();
    for n in 0..features {
        let row: &[D::Value] = match &w.data {
            Data::Values(v) => v.get(n * depth..(n + 1) * depth).ok_or("w is short")?,
            _ => {
                w.read::<D>(n * depth, &mut buffer, &mut scratch)?;
                &buffer
            }
        };
        for (t, line) in x.chunks_exact(depth).enumerate() {
            out[t * features + n] = D::dot(line, row);
        }
    }
    Ok(out)
}

/// Codes [.., K] with scales times weights with scales of blocks of `rows` x `columns`, transposed; row-major [.., N], not rounded.
/// The shape rule has been applied: the widths of groups and blocks divide K, and one of them the other.
pub(super) fn scaled_matmul<D: Domain>(
    operands: &[Tensor<D::Value>],
    block: [i64; 2],
    options: &Options,
) -> Result<Vec<D::Value>, Fault> {
    let [codes, scales, w, w_scales] = operands else { return Err("wrong arity".into()) };
    let &[features, depth] = w.shape.as_slice() else { return Err("w is not a matrix".into()) };
    let [block_rows, columns] = block.map(|n| usize::try_from(n).unwrap_or(0).max(1));
    let groups = scales.shape.last().copied().unwrap_or(1).max(1);
    let group = (depth / groups).max(1);
    let run = group.min(columns);
    let rows: usize = codes.shape.iter().rev().skip(1).product();
    let count = rows.checked_mul(features).filter(|n| *n <= options.max_elements).ok_or("the result is too large")?;
    let (x, scales, w_scales) = (codes.reals::<D>()?, scales.reals::<D>()?, w_scales.reals::<D>()?);
    let mut out = vec![D::ZERO; count];
    let mut row = vec![D::ZERO; depth];
    let mut scratch = Vec::new();
    for n in 0..features {
        w.read::<D>(n * depth, &mut row, &mut scratch)?;
        let own = w_scales.get(n / block_rows * (depth / columns)..).ok_or("w_scales are short")?;
        for (t, line) in x.chunks_exact(depth.max(1)).enumerate() {
            let runs = line.chunks(run).zip(row.chunks(run)).enumerate();
            out[t * features + n] = D::sum(runs.map(|(i, (a, b))| {
                let scale = D::mul(scales[t * groups + i * run / group], own[i * run / columns]);
                D::mul(D::dot(a, b), scale)
            }));
        }
    }
    Ok(out)
}
