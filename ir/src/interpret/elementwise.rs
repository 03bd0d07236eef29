//! Elementwise ops, reductions and norms.

use super::domain::{Domain, Fault, Options};
use super::eval::{finish, number};
use super::function::Function;
use super::tensor::{Tensor, wrap};
use super::view;
use crate::op::Op;

/// The table's binary ops, with numpy broadcasting.
pub(super) fn arithmetic<D: Domain>(
    op: &Op,
    o: &[Tensor<D::Value>],
    shape: &[usize],
    options: &Options,
) -> Result<Tensor<D::Value>, Fault> {
    let (a, b) = (view::broadcast::<D>(&o[0], shape)?, view::broadcast::<D>(&o[1], shape)?);
    let dtype = a.dtype;
    if let (Some(a), Some(b)) = (a.as_ints(), b.as_ints()) {
        let ints: Result<Vec<i64>, Fault> =
            a.iter().zip(b).map(|(x, y)| Ok(wrap(dtype, integer(op, *x, *y)?))).collect();
        return Ok(Tensor::ints(dtype, shape.to_vec(), ints?));
    }
    let (a, b) = (a.reals::<D>()?, b.reals::<D>()?);
    let pairs = a.iter().copied().zip(b.iter().copied());
    let (values, exact): (Vec<D::Value>, bool) = match op {
        Op::Add {} => (pairs.map(|(x, y)| D::add(x, y)).collect(), false),
        Op::Sub {} => (pairs.map(|(x, y)| D::sub(x, y)).collect(), false),
        Op::Mul {} => (pairs.map(|(x, y)| D::mul(x, y)).collect(), false),
        Op::Div {} => (pairs.map(|(x, y)| D::div(x, y)).collect::<Option<_>>().ok_or(Fault::ZeroDivisor)?, false),
        Op::Maximum {} => (pairs.map(|(x, y)| D::max(x, y)).collect(), true),
        Op::Minimum {} => (pairs.map(|(x, y)| D::min(x, y)).collect(), true),
        other => return Err(format!("{} is not arithmetic", other.kind()).into()),
    };
    Ok(finish::<D>(dtype, shape, values, exact, options))
}

/// Integer arithmetic before wrapping; division truncates.
fn integer(op: &Op, a: i64, b: i64) -> Result<i64, Fault> {
    Ok(match op {
        Op::Add {} => a.wrapping_add(b),
        Op::Sub {} => a.wrapping_sub(b),
        Op::Mul {} => a.wrapping_mul(b),
        Op::Div {} if b == 0 => return Err("integer division by zero".into()),
        Op::Div {} => a.wrapping_div(b),
        Op::Maximum {} => a.max(b),
        Op::Minimum {} => a.min(b),
        other => return Err(format!("{} is not arithmetic", other.kind()).into()),
    })
}

pub(super) fn less<D: Domain>(o: &[Tensor<D::Value>], shape: &[usize]) -> Result<Tensor<D::Value>, Fault> {
    let (a, b) = (view::broadcast::<D>(&o[0], shape)?, view::broadcast::<D>(&o[1], shape)?);
    let flags = if let (Some(a), Some(b)) = (a.as_ints(), b.as_ints()) {
        a.iter().zip(b).map(|(x, y)| i64::from(x < y)).collect()
    } else {
        let (a, b) = (a.reals::<D>()?, b.reals::<D>()?);
        a.iter().zip(b.iter()).map(|(x, y)| i64::from(D::greater(*y, *x))).collect()
    };
    Ok(Tensor::ints(crate::DType::Bool, shape.to_vec(), flags))
}

pub(super) fn select<D: Domain>(o: &[Tensor<D::Value>], shape: &[usize]) -> Result<Tensor<D::Value>, Fault> {
    let condition = view::broadcast::<D>(&o[0], shape)?;
    let (b, c) = (view::broadcast::<D>(&o[1], shape)?, view::broadcast::<D>(&o[2], shape)?);
    let condition = condition.integers()?;
    fn pick<T: Copy>(condition: &[i64], b: &[T], c: &[T]) -> Vec<T> {
        condition.iter().zip(b.iter().zip(c)).map(|(p, (x, y))| if *p != 0 { *x } else { *y }).collect()
    }
    if let (Some(x), Some(y)) = (b.as_ints(), c.as_ints()) {
        return Ok(Tensor::ints(b.dtype, shape.to_vec(), pick(condition, x, y)));
    }
    Ok(Tensor::values(b.dtype, shape.to_vec(), pick(condition, &b.reals::<D>()?, &c.reals::<D>()?)))
}

/// `reduce_sum`, `reduce_mean`, `reduce_max` along `axis`.
pub(super) fn reduce<D: Domain>(
    op: &Op,
    a: &Tensor<D::Value>,
    axis: i64,
    shape: &[usize],
    options: &Options,
) -> Result<Tensor<D::Value>, Fault> {
    let axis = usize::try_from(axis).ok().filter(|i| *i < a.shape.len()).ok_or("axis out of range")?;
    let values = a.reals::<D>()?;
    let length = a.shape[axis];
    let inner: usize = a.shape[axis + 1..].iter().product();
    let outer: usize = a.shape[..axis].iter().product();
    if matches!(op, Op::ReduceMax { .. }) && length == 0 && outer * inner > 0 {
        return Err("the maximum of no elements".into());
    }
    let mut out = Vec::with_capacity(outer * inner);
    for block in values.chunks(length.saturating_mul(inner).max(1)).take(outer) {
        for i in 0..inner {
            let mut line = (0..length).map(|j| block[j * inner + i]);
            out.push(match op {
                Op::ReduceMax { .. } => {
                    let first = line.next().ok_or("the maximum of no elements")?;
                    line.fold(first, D::max)
                }
                Op::ReduceMean { .. } => D::div(D::sum(line), D::int(length as i64)).ok_or(Fault::ZeroDivisor)?,
                _ => D::sum(line),
            });
        }
    }
    // Sums of no elements: `chunks` above saw none.
    if length == 0 {
        let zero = match op {
            Op::ReduceMean { .. } if outer * inner > 0 => return Err("the mean of no elements".into()),
            _ => D::ZERO,
        };
        out.resize(outer * inner, zero);
    }
    let exact = matches!(op, Op::ReduceMax { .. });
    Ok(finish::<D>(a.dtype, shape, out, exact, options))
}

/// x * rsqrt(mean(x^2) + eps) * w over rows of `w.len()`, not rounded.
pub(super) fn rms_norm<D: Domain>(x: &[D::Value], w: &[D::Value], eps: f64) -> Result<Vec<D::Value>, Fault> {
    let eps = number::<D>(eps)?;
    let width = D::int(w.len() as i64);
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks(w.len().max(1)) {
        let mean = D::div(D::dot(row, row), width).ok_or(Fault::ZeroDivisor)?;
        let scale = D::apply(Function::Rsqrt, D::add(mean, eps));
        out.extend(row.iter().zip(w).map(|(v, g)| D::mul(D::mul(*v, scale), *g)));
    }
    Ok(out)
}
