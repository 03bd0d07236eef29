//! Sparse attention's choice of positions: the indexer's logits, the highest of them, and the whole window.

use super::attention::{Layout, Pages};
use super::domain::{Domain, Fault};
use super::tensor::Tensor;
use crate::DType;

/// 0, 1, 2, ..., in a tensor of `shape` [size].
pub(super) fn iota<V: Copy>(shape: &[usize]) -> Tensor<V> {
    Tensor::ints(DType::I32, shape.to_vec(), (0..shape.iter().product::<usize>() as i64).collect())
}

/// Logits over operands (q, weights, keys, positions, sequence_ids, block_tables), [T, columns], not rounded.
pub(super) fn index_scores<D: Domain>(
    o: &[Tensor<D::Value>],
    columns: usize,
    skip: i64,
) -> Result<Vec<D::Value>, Fault> {
    let [q, weights, keys, positions, ids, tables] = o else { return Err("wrong arity".into()) };
    let (&[tokens, heads, depth], &[blocks, _, _, slots]) = (q.shape.as_slice(), keys.shape.as_slice()) else {
        return Err("q or keys has another rank".into());
    };
    let pages = Pages::new([positions, ids, tables], slots, blocks)?;
    let layout = Layout { heads: 1, slots, depth, transposed: true };
    let (q, weights, keys) = (q.reals::<D>()?, weights.reals::<D>()?, keys.reals::<D>()?);
    let mut out = vec![D::ZERO; tokens * columns];
    let mut key = vec![D::ZERO; depth];
    for (t, row) in out.chunks_mut(columns.max(1)).enumerate().take(tokens) {
        let (sequence, position) = pages.token(t)?;
        if i64::try_from(position).is_ok_and(|p| p < skip) {
            continue;
        }
        for (s, score) in row.iter_mut().enumerate().take(position + 1) {
            let (block, slot) = pages.present(sequence, s)?;
            let (base, step) = layout.line(block, 0, slot);
            key.iter_mut().enumerate().for_each(|(i, x)| *x = keys[base + i * step]);
            for head in t * heads..(t + 1) * heads {
                let product = D::dot(&q[head * depth..][..depth], &key);
                if D::greater(product, D::ZERO) {
                    *score = D::add(*score, D::mul(weights[head], product));
                }
            }
        }
    }
    Ok(out)
}

/// The columns of each row's `k` highest scores among those up to its position, ascending, -1 after them.
pub(super) fn topk<D: Domain>(
    scores: &Tensor<D::Value>,
    positions: &Tensor<D::Value>,
    shape: &[usize],
) -> Result<Tensor<D::Value>, Fault> {
    let (&[_, columns], &[tokens, k]) = (scores.shape.as_slice(), shape) else {
        return Err("scores or the result has another rank".into());
    };
    let values = scores.reals::<D>()?;
    let mut out = vec![-1; tokens * k];
    for (t, (position, row)) in positions.integers()?.iter().zip(out.chunks_mut(k.max(1))).enumerate() {
        let window = usize::try_from(position.saturating_add(1)).unwrap_or(0);
        if window > columns {
            return Err(format!("position {position} of token {t}; one of the {columns} columns is expected").into());
        }
        let scores = &values[t * columns..][..window];
        let mut best: Vec<usize> = (0..window).collect();
        if window > k {
            // Descending by score, then ascending by column: the sort is stable.
            best.sort_by(|a, b| D::order(scores[*b], scores[*a]));
            best.truncate(k);
            best.sort_unstable();
        }
        row.iter_mut().zip(best).for_each(|(cell, column)| *cell = column as i64);
    }
    Ok(Tensor::ints(DType::I32, shape.to_vec(), out))
}

/// j where j is at most the row's position, else -1.
pub(super) fn window<V: Copy>(positions: &Tensor<V>, shape: &[usize]) -> Result<Tensor<V>, Fault> {
    let &[tokens, k] = shape else { return Err("the result is not a matrix".into()) };
    let mut out = Vec::with_capacity(tokens * k);
    for position in positions.integers()? {
        out.extend((0..k as i64).map(|j| if j <= *position { j } else { -1 }));
    }
    Ok(Tensor::ints(DType::I32, shape.to_vec(), out))
}
