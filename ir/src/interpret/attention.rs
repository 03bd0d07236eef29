//! Paged KV caches: writes, and attention over all or some of the positions a token may see.

use super::domain::{Domain, Fault, Options};
use super::eval::{cast, number};
use super::indexed::place;
use super::tensor::{Data, Tensor};
use std::sync::Arc;

/// Where tokens live: positions [T], sequence ids [T] and block tables [B, P].
pub(super) struct Pages<'a> {
    positions: &'a [i64],
    ids: &'a [i64],
    tables: &'a [i64],
    /// B
    sequences: usize,
    /// P
    width: usize,
    /// Positions a block holds.
    slots: usize,
    /// Blocks of the cache.
    blocks: usize,
}

impl<'a> Pages<'a> {
    pub(super) fn new<V: Copy>(
        [positions, ids, tables]: [&'a Tensor<V>; 3],
        slots: usize,
        blocks: usize,
    ) -> Result<Pages<'a>, Fault> {
        let &[sequences, width] = tables.shape.as_slice() else { return Err("block_tables is not a matrix".into()) };
        if slots == 0 {
            return Err("a cache block without slots".into());
        }
        Ok(Pages {
            positions: positions.integers()?,
            ids: ids.integers()?,
            tables: tables.integers()?,
            sequences,
            width,
            slots,
            blocks,
        })
    }

    /// The sequence and position of token `t`.
    pub(super) fn token(&self, t: usize) -> Result<(usize, usize), Fault> {
        let id = *self.ids.get(t).ok_or("sequence_ids is short")?;
        let position = *self.positions.get(t).ok_or("positions is short")?;
        Ok((
            place("sequence id", id, self.sequences)?,
            place("position", position, self.width.saturating_mul(self.slots))?,
        ))
    }

    /// Block and slot of a position that is read, so that it must have a block.
    pub(super) fn present(&self, sequence: usize, position: usize) -> Result<(usize, usize), Fault> {
        let missing = || format!("position {position} of sequence {sequence} has no cache block");
        Ok(self.locate(sequence, position)?.ok_or_else(missing)?)
    }

    /// Block and slot of a position; `None` where the table has -1.
    fn locate(&self, sequence: usize, position: usize) -> Result<Option<(usize, usize)>, Fault> {
        match self.tables[sequence * self.width + position / self.slots] {
            -1 => Ok(None),
            block => Ok(Some((place("cache block", block, self.blocks)?, position % self.slots))),
        }
    }
}

/// A cache's dims and order: [N, H, S, D], or [N, H, D, S] when transposed.
pub(super) struct Layout {
    pub(super) heads: usize,
    pub(super) slots: usize,
    pub(super) depth: usize,
    pub(super) transposed: bool,
}

impl Layout {
    /// The offset of element 0 and the step to the next.
    pub(super) fn line(&self, block: usize, head: usize, slot: usize) -> (usize, usize) {
        let base = (block * self.heads + head) * self.slots * self.depth;
        if self.transposed { (base + slot, self.slots) } else { (base + slot * self.depth, 1) }
    }
}

pub(super) fn cache_write<D: Domain>(
    cache: Tensor<D::Value>,
    x: &Tensor<D::Value>,
    pages: [&Tensor<D::Value>; 3],
    transposed: bool,
    options: &Options,
) -> Result<Tensor<D::Value>, Fault> {
    let (&[blocks, heads, a, b], &[tokens, _, depth]) = (cache.shape.as_slice(), x.shape.as_slice()) else {
        return Err("cache or x has another rank".into());
    };
    let slots = if transposed { b } else { a };
    let layout = Layout { heads, slots, depth, transposed };
    let pages = Pages::new(pages, slots, blocks)?;
    let (dtype, shape) = (cache.dtype, cache.shape.clone());
    let x = cast::<D>(x, dtype, options)?;
    let x = x.reals::<D>()?;
    let mut values = match cache.data {
        Data::Values(v) => v,
        _ => Arc::new(cache.reals::<D>()?.into_owned()),
    };
    let cells = Arc::make_mut(&mut values);
    for t in 0..tokens {
        let (sequence, position) = pages.token(t)?;
        let Some((block, slot)) = pages.locate(sequence, position)? else { continue };
        for head in 0..heads {
            let (base, step) = layout.line(block, head, slot);
            let from = &x[(t * heads + head) * depth..][..depth];
            from.iter().enumerate().for_each(|(i, v)| cells[base + i * step] = *v);
        }
    }
    Ok(Tensor { dtype, shape, data: Data::Values(values) })
}

/// Causal attention over operands (q, k_cache, v_cache, positions, sequence_ids, block_tables), of the last `window` positions unless
/// that is 0: [T, Hq, D], not rounded.
pub(super) fn attention<D: Domain>(o: &[Tensor<D::Value>], scale: f64, window: i64) -> Result<Vec<D::Value>, Fault> {
    let [q, k, v, pages @ ..] = o else { return Err("wrong arity".into()) };
    let window = usize::try_from(window).ok().filter(|n| *n > 0).unwrap_or(usize::MAX);
    attend::<D>([q, k, v], pages, scale, |_, position| Ok(((position + 1).saturating_sub(window)..=position).collect()))
}

/// Attention over the positions that `indices` [T, K] names, of those at most the token's own: operands (q, k_cache, v_cache, indices,
/// positions, sequence_ids, block_tables), [T, Hq, D], not rounded.
pub(super) fn sparse_attention<D: Domain>(o: &[Tensor<D::Value>], scale: f64) -> Result<Vec<D::Value>, Fault> {
    let [q, k, v, indices, pages @ ..] = o else { return Err("wrong arity".into()) };
    let &[_, width] = indices.shape.as_slice() else { return Err("indices is not a matrix".into()) };
    let indices = indices.integers()?;
    attend::<D>([q, k, v], pages, scale, |t, position| {
        let row = indices.get(t * width..(t + 1) * width).ok_or("indices is short")?;
        Ok(row.iter().filter_map(|i| usize::try_from(*i).ok()).filter(|i| *i <= position).collect())
    })
}

/// Attention of each token over the positions that `seen` gives for the token and its own position.
fn attend<D: Domain>(
    [q, k, v]: [&Tensor<D::Value>; 3],
    pages: &[Tensor<D::Value>],
    scale: f64,
    seen: impl Fn(usize, usize) -> Result<Vec<usize>, Fault>,
) -> Result<Vec<D::Value>, Fault> {
    let [positions, ids, tables] = pages else { return Err("wrong arity".into()) };
    let (&[tokens, query_heads, depth], &[blocks, heads, _, slots]) = (q.shape.as_slice(), k.shape.as_slice()) else {
        return Err("q or k_cache has another rank".into());
    };
    let pages = Pages::new([positions, ids, tables], slots, blocks)?;
    let k_layout = Layout { heads, slots, depth, transposed: true };
    let v_layout = Layout { transposed: false, ..k_layout };
    let (q, k, v) = (q.reals::<D>()?, k.reals::<D>()?, v.reals::<D>()?);
    let scale = number::<D>(scale)?;
    let group = query_heads.checked_div(heads).filter(|n| *n > 0).ok_or("fewer query heads than KV heads")?;

    let mut out = Vec::with_capacity(q.len());
    let (mut places, mut scores, mut key) = (Vec::new(), Vec::new(), vec![D::ZERO; depth]);
    for t in 0..tokens {
        let (sequence, position) = pages.token(t)?;
        places.clear();
        for p in seen(t, position)? {
            places.push(pages.present(sequence, p)?);
        }
        for head in 0..query_heads {
            let query = &q[(t * query_heads + head) * depth..][..depth];
            scores.clear();
            for (block, slot) in &places {
                let (base, step) = k_layout.line(*block, head / group, *slot);
                key.iter_mut().enumerate().for_each(|(i, x)| *x = k[base + i * step]);
                scores.push(D::mul(D::dot(query, &key), scale));
            }
            D::softmax(&mut scores).ok_or(Fault::ZeroDivisor)?;
            let start = out.len();
            out.resize(start + depth, D::ZERO);
            for (weight, (block, slot)) in scores.iter().zip(&places) {
                let (base, _) = v_layout.line(*block, head / group, *slot);
                for (o, x) in out[start..].iter_mut().zip(&v[base..base + depth]) {
                    *o = D::add(*o, D::mul(*weight, *x));
                }
            }
        }
    }
    Ok(out)
}
