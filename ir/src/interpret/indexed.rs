//! Ops that depend on integer operands: gather and rotary embeddings.

use super::domain::{Domain, Fault, Options, RopeSpec, widens};
use super::tensor::Tensor;
use crate::DType;

/// `index` as a place below `size`.
pub(super) fn place(what: &str, index: i64, size: usize) -> Result<usize, Fault> {
    usize::try_from(index)
        .ok()
        .filter(|i| *i < size)
        .ok_or_else(|| format!("{what} {index} is out of range; 0..{size} is accepted").into())
}

pub(super) fn gather<D: Domain>(
    table: &Tensor<D::Value>,
    indices: &Tensor<D::Value>,
    dtype: DType,
    shape: &[usize],
    options: &Options,
) -> Result<Tensor<D::Value>, Fault> {
    let &[rows, width] = table.shape.as_slice() else { return Err("the table is not a matrix".into()) };
    let mut out = vec![D::ZERO; shape.iter().product()];
    let mut scratch = Vec::new();
    for (index, row) in indices.integers()?.iter().zip(out.chunks_mut(width.max(1))) {
        table.read::<D>(place("index", *index, rows)? * width, row, &mut scratch)?;
    }
    if !widens(table.dtype, dtype) {
        D::round(&mut out, dtype, options);
    }
    Ok(Tensor::values(dtype, shape.to_vec(), out))
}

/// `gather` from rank `rank`'s part of a table that `world` ranks hold: rows of other parts are 0.
pub(super) fn gather_part<D: Domain>(
    part: &Tensor<D::Value>,
    indices: &Tensor<D::Value>,
    (rank, world): (usize, usize),
    shape: &[usize],
    dtype: DType,
    options: &Options,
) -> Result<Tensor<D::Value>, Fault> {
    let &[rows, width] = part.shape.as_slice() else { return Err("the table is not a matrix".into()) };
    let whole = rows.checked_mul(world).ok_or("the table is too large")?;
    let mut out = vec![D::ZERO; shape.iter().product()];
    let mut scratch = Vec::new();
    for (index, row) in indices.integers()?.iter().zip(out.chunks_mut(width.max(1))) {
        let index = place("index", *index, whole)?;
        if index / rows.max(1) == rank {
            part.read::<D>(index % rows * width, row, &mut scratch)?;
            if !widens(part.dtype, dtype) {
                D::round(row, dtype, options);
            }
        }
    }
    Ok(Tensor::values(dtype, shape.to_vec(), out))
}

pub(super) fn rope_table<D: Domain>(
    spec: &RopeSpec,
    factors: Option<&Tensor<D::Value>>,
    options: &Options,
) -> Result<Tensor<D::Value>, Fault> {
    let shape = vec![spec.positions, spec.dim];
    if spec.positions.checked_mul(spec.dim).is_none_or(|n| n > options.max_elements) {
        return Err("the table is too large".into());
    }
    let factors = factors.map(Tensor::reals::<D>).transpose()?;
    let factor = |column: usize| factors.as_ref().and_then(|f| f.get(column % (spec.dim / 2).max(1)).copied());
    let mut values: Vec<D::Value> = Vec::with_capacity(spec.positions * spec.dim);
    for row in 0..spec.positions {
        values.extend((0..spec.dim).map(|column| D::rope(spec, row, column, factor(column))));
    }
    D::round(&mut values, DType::F32, options);
    Ok(Tensor::values(DType::F32, shape, values))
}

/// Rotates the first R elements of each head of x [T, H, D] by table rows; the rest pass through.
pub(super) fn rope<D: Domain>(
    x: &Tensor<D::Value>,
    positions: &Tensor<D::Value>,
    table: &Tensor<D::Value>,
    interleaved: bool,
    options: &Options,
) -> Result<Tensor<D::Value>, Fault> {
    let (&[_, heads, depth], &[rows, rotary]) = (x.shape.as_slice(), table.shape.as_slice()) else {
        return Err("x or the table has another rank".into());
    };
    let mut values = x.reals::<D>()?.into_owned();
    let table = table.reals::<D>()?;
    let half = rotary / 2;
    if rotary > depth || heads * depth == 0 {
        return Err(format!("{rotary} rotary elements of heads of {depth}").into());
    }
    for (token, position) in values.chunks_mut(heads * depth).zip(positions.integers()?) {
        let row = place("position", *position, rows)? * rotary;
        let (cos, sin) = table[row..row + rotary].split_at(half);
        for head in token.chunks_mut(depth) {
            for i in 0..half {
                let (low, high) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let (a, b) = (head[low], head[high]);
                head[low] = D::sub(D::mul(a, cos[i]), D::mul(b, sin[i]));
                head[high] = D::add(D::mul(b, cos[i]), D::mul(a, sin[i]));
            }
            // Only what was computed is rounded: the rest is of x's dtype already.
            D::round(&mut head[..rotary], x.dtype, options);
        }
    }
    Ok(Tensor::values(x.dtype, x.shape.clone(), values))
}
