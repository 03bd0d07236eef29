//! Ops that move elements and compute nothing.

use super::domain::{Domain, Fault};
use super::tensor::{Data, Tensor};
use std::sync::Arc;

/// Row-major strides.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

/// Calls `visit` with the source offset of each element of `shape` in row-major order, `step[i]` being the source stride of dim i.
fn walk(shape: &[usize], step: &[usize], base: usize, mut visit: impl FnMut(usize)) {
    let count: usize = shape.iter().product();
    let mut index = vec![0usize; shape.len()];
    let mut at = base;
    for _ in 0..count {
        visit(at);
        for d in (0..shape.len()).rev() {
            index[d] += 1;
            at += step[d];
            if index[d] < shape[d] {
                break;
            }
            at -= step[d] * shape[d];
            index[d] = 0;
        }
    }
}

/// Elements of `a` picked by strides: the result has `shape`.
fn pick<D: Domain>(
    a: &Tensor<D::Value>,
    shape: &[usize],
    step: &[usize],
    base: usize,
) -> Result<Tensor<D::Value>, Fault> {
    let count = shape.iter().product();
    let data = if let Some(ints) = a.as_ints() {
        let mut out = Vec::with_capacity(count);
        walk(shape, step, base, |i| out.push(ints[i]));
        Data::Ints(Arc::new(out))
    } else {
        let values = a.reals::<D>()?;
        let mut out = Vec::with_capacity(count);
        walk(shape, step, base, |i| out.push(values[i]));
        Data::Values(Arc::new(out))
    };
    Ok(Tensor { dtype: a.dtype, shape: shape.to_vec(), data })
}

pub(super) fn transpose<D: Domain>(
    a: &Tensor<D::Value>,
    permutation: &[i64],
    shape: &[usize],
) -> Result<Tensor<D::Value>, Fault> {
    let from = strides(&a.shape);
    let step: Option<Vec<usize>> =
        permutation.iter().map(|i| usize::try_from(*i).ok().and_then(|i| from.get(i).copied())).collect();
    pick::<D>(a, shape, &step.ok_or("permutation out of range")?, 0)
}

pub(super) fn slice<D: Domain>(
    a: &Tensor<D::Value>,
    axis: i64,
    start: i64,
    shape: &[usize],
) -> Result<Tensor<D::Value>, Fault> {
    let (Ok(axis), Ok(start)) = (usize::try_from(axis), usize::try_from(start)) else {
        return Err("negative axis or start".into());
    };
    let size = a.shape.get(axis).copied().unwrap_or(0);
    let end = shape.get(axis).and_then(|n| start.checked_add(*n));
    if end.is_none_or(|end| end > size) {
        return Err(format!("start {start} of axis {axis} is outside {:?}", a.shape).into());
    }
    let step = strides(&a.shape);
    if !matches!(a.data, Data::Ints(_)) && a.shape[..axis].iter().all(|n| *n == 1) {
        // A contiguous run: a row range of a stored weight is read alone.
        let mut out = vec![D::ZERO; shape.iter().product()];
        a.read::<D>(start * step[axis], &mut out, &mut Vec::new())?;
        return Ok(Tensor::values(a.dtype, shape.to_vec(), out));
    }
    pick::<D>(a, shape, &step, start * step[axis])
}

pub(super) fn concat<D: Domain>(
    parts: &[Tensor<D::Value>],
    axis: i64,
    shape: &[usize],
) -> Result<Tensor<D::Value>, Fault> {
    let axis = usize::try_from(axis).ok().filter(|i| *i < shape.len()).ok_or("axis out of range")?;
    let outer: usize = shape[..axis].iter().product();
    let run = |p: &Tensor<D::Value>| -> usize { p.shape[axis..].iter().product() };
    let count = shape.iter().product();
    let dtype = parts.first().ok_or("no parts")?.dtype;
    fn join<T: Copy>(parts: &[(&[T], usize)], outer: usize, count: usize) -> Vec<T> {
        let mut out = Vec::with_capacity(count);
        for i in 0..outer {
            parts.iter().for_each(|(values, run)| out.extend_from_slice(&values[i * run..(i + 1) * run]));
        }
        out
    }
    if !dtype.is_float() {
        let ints: Result<Vec<_>, Fault> = parts.iter().map(|p| Ok((p.integers()?, run(p)))).collect();
        return Ok(Tensor::ints(dtype, shape.to_vec(), join(&ints?, outer, count)));
    }
    let values: Vec<_> = parts.iter().map(Tensor::reals::<D>).collect::<Result<_, Fault>>()?;
    let views: Vec<_> = values.iter().zip(parts).map(|(v, p)| (&v[..], run(p))).collect();
    Ok(Tensor::values(dtype, shape.to_vec(), join(&views, outer, count)))
}

/// `a` with size-1 and missing leading dims repeated; the same tensor if nothing repeats.
pub(super) fn broadcast<D: Domain>(a: &Tensor<D::Value>, shape: &[usize]) -> Result<Tensor<D::Value>, Fault> {
    if a.shape == shape {
        return Ok(a.clone());
    }
    let missing = shape.len().checked_sub(a.shape.len()).ok_or("the operand has more dims than the result")?;
    let from = strides(&a.shape);
    let mut step = vec![0; shape.len()];
    for (i, size) in a.shape.iter().enumerate() {
        // Symbols of different names may stand for different sizes; the shape rules only equate names.
        if *size == shape[missing + i] {
            step[missing + i] = from[i];
        } else if *size != 1 {
            return Err(format!("shape {:?} does not broadcast to {shape:?}", a.shape).into());
        }
    }
    pick::<D>(a, shape, &step, 0)
}
