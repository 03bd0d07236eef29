//! Sums, maxima, softmaxes, norms and quantisation along an axis.

use super::cell::Kind;
use super::rows::{Rows, write_run};
use super::{Draft, largest, size, sum, with};
use crate::kernels::quantise::{Scale, format};
use crate::request::{last_dim, refuse};
use crate::tile::{Builder, Conversion, Elem, V};
use weldment_ir::{DType, Dim, Op};
use weldment_passes::target::Refusal;

/// An i64 count as f32.
fn count_of(b: &mut Builder, n: V) -> V {
    b.to_f32(n)
}

/// `reduce_sum`, `reduce_mean` and `reduce_max`.
pub fn one_axis(d: &mut Draft<'_, '_>) -> Result<(), Refusal> {
    let op = d.r.op;
    let (Op::ReduceSum { axis } | Op::ReduceMean { axis } | Op::ReduceMax { axis }) = op else {
        return refuse("op", op.kind(), "a reduction");
    };
    let axis = axis.unsigned_abs() as usize;
    let length: Dim = d.r.operands[0].ty.shape[axis].clone();
    d.each(Kind::Real, |b, operands, index| {
        let count = size(b, &length);
        let term = |b: &mut Builder, i: V| {
            let mut at = index.to_vec();
            at[axis] = i;
            operands[0].real(b, &at)
        };
        match op {
            Op::ReduceMax { .. } => largest(b, count, f64::NEG_INFINITY, term),
            Op::ReduceMean { .. } => {
                let (total, count) = (sum(b, count, term), count_of(b, count));
                b.div(total, count)
            }
            _ => sum(b, count, term),
        }
    });
    Ok(())
}

/// Softmax along the last dim.
pub fn softmax(d: &mut Draft<'_, '_>) {
    let Draft { r, b, operands, results, .. } = d;
    let (x, out) = (operands[0], results[0]);
    let shape = &out.tensor.ty.shape;
    let rows = Rows::new(b, r.target(), shape, None);
    rows.each(b, &mut |b, lead| {
        let Some(last) = shape.last() else {
            // Of one number: 1.
            return rows.write(b, &out, lead, Kind::Real, &mut |b, _| b.float(1.0));
        };
        let count = size(b, last);
        let top = largest(b, count, f64::NEG_INFINITY, |b, i| x.real(b, &with(lead, i)));
        let raised = |b: &mut Builder, i: V| {
            let v = x.real(b, &with(lead, i));
            let v = b.sub(v, top);
            b.exp(v)
        };
        let total = sum(b, count, raised);
        rows.write(b, &out, lead, Kind::Real, &mut |b, index| {
            let v = raised(b, index[index.len() - 1]);
            b.div(v, total)
        });
    });
}

/// Norms, with and without a residual, rounded and quantised.
pub fn norm(d: &mut Draft<'_, '_>) -> Result<(), Refusal> {
    let Draft { r, b, operands, results, .. } = d;
    let (eps, residual, codes) = match r.op {
        Op::RmsNorm { eps, .. } => (*eps, false, None),
        Op::AddRmsNorm { eps, .. } => (*eps, true, None),
        Op::RmsNormQuantise { eps, format, group, .. } => (*eps, false, Some((*format, group.unsigned_abs()))),
        Op::AddRmsNormQuantise { eps, format, group, .. } => (*eps, true, Some((*format, group.unsigned_abs()))),
        op => return refuse("op", op.kind(), "a norm"),
    };
    let (x, w) = (operands[0], operands[operands.len() - 1]);
    let norm = results[if codes.is_some() { 2 } else { 0 }];
    let added = residual.then(|| (operands[1], results[results.len() - 1]));
    let shape = &x.tensor.ty.shape;
    let Some(last) = shape.last() else { return refuse("rank", 0, "1 or more") };
    let rows = Rows::new(b, r.target(), shape, None);
    let mut outcome = Ok(());
    rows.each(b, &mut |b, lead| {
        let count = size(b, last);
        if let Some((residual, sum)) = added {
            rows.write(b, &sum, lead, Kind::Real, &mut |b, index| {
                let (v, other) = (x.real(b, index), residual.real(b, index));
                b.add(v, other)
            });
        }
        // The norm is of the sum as stored, rounded once.
        let value = |b: &mut Builder, index: &[V]| match added {
            Some((_, sum)) => sum.real(b, index),
            None => x.real(b, index),
        };
        let squares = sum(b, count, |b, i| {
            let v = value(b, &with(lead, i));
            b.mul(v, v)
        });
        let count = count_of(b, count);
        let mean = b.div(squares, count);
        let eps = b.float(eps.0);
        let mean = b.add(mean, eps);
        let root = b.sqrt(mean);
        let one = b.float(1.0);
        let scale = b.div(one, root);
        let normed = |b: &mut Builder, index: &[V]| {
            let v = value(b, index);
            let v = b.mul(v, scale);
            let w = w.real(b, &index[index.len() - 1..]);
            b.mul(v, w)
        };
        // Codes first: the norm may take the bytes of x.
        if let Some((format, group)) = codes {
            let groups = last.constant().map_or(0, |n| n / group);
            let done = quantise_row(b, [&results[0], &results[1]], lead, (format, group, groups), &normed);
            outcome = std::mem::replace(&mut outcome, Ok(())).and(done);
        }
        rows.write(b, &norm, lead, Kind::Real, &mut |b, index| normed(b, index));
    });
    outcome
}

/// Codes and scales of groups along the last dim.
pub fn quantise(d: &mut Draft<'_, '_>, dtype: DType, group: i64) -> Result<(), Refusal> {
    let Draft { r, b, operands, results, .. } = d;
    let x = operands[0];
    let group = group.unsigned_abs().max(1);
    let groups = last_dim(x.tensor)? / group;
    let rows = Rows::new(b, r.target(), &x.tensor.ty.shape, None);
    let mut outcome = Ok(());
    rows.each(b, &mut |b, lead| {
        let value = |b: &mut Builder, index: &[V]| x.real(b, index);
        let done = quantise_row(b, [&results[0], &results[1]], lead, (dtype, group, groups), &value);
        outcome = std::mem::replace(&mut outcome, Ok(())).and(done);
    });
    outcome
}

/// Quantises the row at `lead`, whose elements `value` gives.
fn quantise_row(
    b: &mut Builder,
    [codes, scales]: [&super::Cell<'_>; 2],
    lead: &[V],
    (dtype, group, groups): (DType, u64, u64),
    value: &dyn Fn(&mut Builder, &[V]) -> V,
) -> Result<(), Refusal> {
    let format = format(dtype)?;
    let (zero, end) = (b.int(0), b.int(groups as i64));
    b.for_loop(zero, end, 1, &[], |b, g, _| {
        let (start, count) = (b.scale(g, group as i64), b.int(group as i64));
        let amax = largest(b, count, 0.0, |b, i| {
            let i = b.add(start, i);
            let v = value(b, &with(lead, i));
            b.abs(v)
        });
        let scale = Scale::new(b, dtype, format, amax);
        let end = b.add(start, count);
        write_run(b, codes, lead, Kind::Stored, [start, end], codes.step() as i64, &mut |b, index| {
            let v = value(b, index);
            let code = scale.codes(b, format, v);
            b.convert(Conversion::Signed, code, Elem::I8)
        });
        scales.store(b, &with(lead, g), Kind::Stored, scale.stored);
        Vec::new()
    });
    Ok(())
}
