//! What only moves elements.

use super::cell::Kind;
use super::{Draft, flat, size};
use crate::request::{Request, Tensor, refuse};
use crate::tile::{Binary, Builder, V};
use weldment_ir::{Category, DType, Dim, Op};
use weldment_passes::target::Refusal;

/// A move of elements that share bytes as a move of those bytes, where rows lie in whole ones on both sides.
pub fn as_bytes<'r>(r: &Request<'r>) -> Option<Request<'r>> {
    let block = r.results[0].ty.dtype.block_elements() as u64;
    let moves = r.op.kind().info().category == Category::View || matches!(r.op, Op::Shard { .. });
    if !moves || block == 1 {
        return None;
    }
    let bytes = r.results[0].ty.dtype.block_bytes() as u64;
    let in_bytes = |t: &Tensor| -> Option<Tensor> {
        let mut t = t.clone();
        t.ty.dtype = DType::U8;
        let last = t.ty.last_constant().filter(|n| n.is_multiple_of(block))?;
        let (inner, outer) = t.strides.split_last_mut()?;
        if (*inner != 1 && last != 1) || outer.iter().any(|n| !n.is_multiple_of(block)) {
            return None;
        }
        *inner = 1;
        outer.iter_mut().for_each(|n| *n = *n / block * bytes);
        *t.ty.shape.last_mut()? = Dim::Const(last / block * bytes);
        Some(t)
    };
    // Along the last dim only whole tensors and their parts in front of it are the same in bytes.
    let keeps = match r.op {
        Op::Slice { axis, .. } => *axis + 1 < r.operands[0].ty.rank() as i64,
        Op::Transpose { permutation } => permutation.last() == Some(&(permutation.len() as i64 - 1)),
        Op::Broadcast { .. } => r.operands[0].ty.shape.last() == r.results[0].ty.shape.last(),
        _ => true,
    };
    let operands = r.operands.iter().map(in_bytes).collect::<Option<Vec<_>>>().filter(|_| keeps)?;
    let results = r.results.iter().map(in_bytes).collect::<Option<Vec<_>>>()?;
    Some(Request { operands, results, ..r.clone() })
}

/// Reshapes by the row-major order of the dims of the step; the other views by their own rules. A copy is a reshape to the same
/// shape.
pub fn copy(d: &mut Draft<'_, '_>) -> Result<(), Refusal> {
    if d.r.results[0].ty.dtype.is_block() {
        return refuse("rows of blocks", &d.r.results[0].ty, "whole blocks along a constant last dim");
    }
    let (op, to) = (d.r.op, d.r.results[0].ty.shape.clone());
    d.each(Kind::Stored, |b, operands, index| {
        let from = &operands[0].tensor.ty.shape;
        let source = match op {
            Op::Reshape { .. } if *from != to => {
                let place = flat(b, index, &to);
                unflat(b, place, from)
            }
            Op::Transpose { permutation } => {
                let mut source = index.to_vec();
                for (i, axis) in index.iter().zip(permutation) {
                    source[axis.unsigned_abs() as usize] = *i;
                }
                source
            }
            Op::Slice { axis, start, .. } => {
                let mut source = index.to_vec();
                let axis = axis.unsigned_abs() as usize;
                source[axis] = b.offset(source[axis], *start);
                source
            }
            _ => index.to_vec(),
        };
        operands[0].stored(b, &source)
    });
    Ok(())
}

/// Indices of the element at a place in row-major order.
fn unflat(b: &mut Builder, place: V, shape: &[Dim]) -> Vec<V> {
    let mut rest = place;
    let mut index = Vec::with_capacity(shape.len());
    for dim in shape.iter().rev() {
        let n = size(b, dim);
        index.push(b.binary(Binary::Rem, rest, n));
        rest = b.div(rest, n);
    }
    index.reverse();
    index
}
