//! Stride arithmetic: how a view op looks when its operand's bytes stay where they are.
//!
//! A physical buffer is laid out for the maximum of every symbol, so strides are constants while the logical dims of a
//! step may be smaller. Two dims may therefore be merged or split only when both are constant.

use super::BufferError;
use weldment_artifact::limits::ROW_MULTIPLE;
use weldment_ir::{DType, Dim, Graph, NodeId, TensorType};

/// Whether a buffer's symbolic dims leave room for a tail kernel's surplus rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Padding {
    /// Every symbolic dim is a multiple of [`ROW_MULTIPLE`]: buffers that kernels write.
    Every,
    /// Only the leading dim is: inputs, whose inner strides the caller knows from the ranges alone.
    Leading,
    /// Exact maxima: states and static values.
    None,
}

/// Physical dims of a buffer for `ty`: constants, and symbols at their maximum.
pub(super) fn physical_dims(graph: &Graph, ty: &TensorType, padding: Padding) -> Result<Vec<u64>, BufferError> {
    let dim = |(i, dim): (usize, &Dim)| match dim {
        Dim::Const(n) => Ok(*n),
        Dim::Sym(s) => {
            let range = graph.symbols().get(s).ok_or_else(|| BufferError::UndeclaredSymbol(s.to_string()))?;
            let padded = match padding {
                Padding::Every => true,
                Padding::Leading => i == 0,
                Padding::None => false,
            };
            let max = if padded { range.max.checked_next_multiple_of(ROW_MULTIPLE) } else { Some(range.max) };
            max.ok_or_else(|| BufferError::TooLarge(ty.to_string()))
        }
    };
    ty.shape.iter().enumerate().map(dim).collect()
}

/// True for an input with inner symbolic dims that is read as block tables alone. Steps are far smaller than the largest, so their
/// tables lie one row after the other ([`super::External::dense`]).
pub(super) fn is_dense_input(graph: &Graph, input: NodeId) -> bool {
    let symbolic = |ty: &TensorType| ty.shape.iter().skip(1).any(|d| d.constant().is_none());
    graph.node(input).types.first().is_some_and(symbolic)
        && !graph.outputs().iter().any(|o| o.value.node == input)
        && graph.users(input).all(|(user, using)| {
            graph.node(user).op.paged().is_some_and(|paged| paged.block_tables == using.operand as usize)
        })
}

/// Row-major strides in elements. The caller has checked the byte size, so the products fit.
pub(super) fn contiguous(dims: &[u64]) -> Vec<u64> {
    let mut strides = vec![1u64; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(dims[i].max(1));
    }
    strides
}

/// Strides in elements of a state whose dims lie in `order`, outermost first. `None` if it is no permutation, or a symbolic dim
/// (other than the outermost, whose size no stride depends on) or a block format is involved.
pub(super) fn reordered(ty: &TensorType, order: &[usize]) -> Option<Vec<u64>> {
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    if sorted != (0..ty.rank()).collect::<Vec<_>>() || ty.dtype.is_block() {
        return None;
    }
    let mut strides = vec![1u64; ty.rank()];
    let mut stride = 1u64;
    for (at, axis) in order.iter().enumerate().rev() {
        strides[*axis] = stride;
        if at > 0 {
            stride = stride.checked_mul(ty.shape[*axis].constant()?)?;
        }
    }
    Some(strides)
}

/// Bytes from the start of a tensor to element `index`, if that is the start of a block.
pub(super) fn byte_offset(dtype: DType, index: u64) -> Option<u64> {
    let block = dtype.block_elements() as u64;
    index.is_multiple_of(block).then(|| index / block).and_then(|n| n.checked_mul(dtype.block_bytes() as u64))
}

/// Strides of `to` over the bytes of `from`, if some strides express the same row-major order.
pub(super) fn reshape(from: &[Dim], strides: &[u64], to: &[Dim]) -> Option<Vec<u64>> {
    let one = Dim::Const(1);
    let source: Vec<(&Dim, u64)> = from.iter().zip(strides.iter().copied()).filter(|(d, _)| **d != one).collect();
    let target: Vec<(usize, &Dim)> = to.iter().enumerate().filter(|(_, d)| **d != one).collect();
    if from.iter().chain(to).any(|d| *d == Dim::Const(0)) {
        return None;
    }
    let mut out = vec![0u64; to.len()];
    let (mut i, mut j) = (0, 0);
    while i < source.len() || j < target.len() {
        let ((from_dim, stride), (at, to_dim)) = (*source.get(i)?, *target.get(j)?);
        if from_dim == to_dim {
            out[at] = stride;
            (i, j) = (i + 1, j + 1);
            continue;
        }
        // A group of constant dims on each side with the same product; a symbol inside it has no strides.
        let (mut a, mut b) = (from_dim.constant()?, to_dim.constant()?);
        let (first_i, first_j) = (i, j);
        (i, j) = (i + 1, j + 1);
        while a != b {
            if a < b {
                let (dim, inner) = *source.get(i)?;
                let dim = dim.constant()?;
                if source[i - 1].1 != inner.checked_mul(dim)? {
                    return None;
                }
                a = a.checked_mul(dim)?;
                i += 1;
            } else {
                b = b.checked_mul(target.get(j)?.1.constant()?)?;
                j += 1;
            }
        }
        debug_assert!(first_i < i);
        let mut running = source[i - 1].1;
        for (at, dim) in target[first_j..j].iter().rev() {
            out[*at] = running;
            running = running.saturating_mul(dim.constant()?);
        }
    }
    // A dim of 1 is never stepped over; it gets the stride that a contiguous tensor would have there.
    for k in (0..to.len()).rev().filter(|k| to[*k] == one) {
        out[k] = match to.get(k + 1) {
            Some(next) => out[k + 1].saturating_mul(next.constant().unwrap_or(1)),
            None => 1,
        };
    }
    Some(out)
}

/// Strides of a transpose: result dim i is operand dim `permutation[i]`.
pub(super) fn transpose(strides: &[u64], permutation: &[i64]) -> Option<Vec<u64>> {
    permutation.iter().map(|p| usize::try_from(*p).ok().and_then(|p| strides.get(p).copied())).collect()
}

/// Strides of the operand of a transpose whose result has `strides`.
pub(super) fn transpose_back(strides: &[u64], permutation: &[i64]) -> Option<Vec<u64>> {
    let mut out = vec![0; strides.len()];
    for (stride, p) in strides.iter().zip(permutation) {
        *out.get_mut(usize::try_from(*p).ok()?)? = *stride;
    }
    Some(out)
}

/// Strides of a broadcast: repeated dims have stride 0.
pub(super) fn broadcast(from: &[Dim], strides: &[u64], to: &[Dim]) -> Option<Vec<u64>> {
    let lead = to.len().checked_sub(from.len())?;
    let stride = |(i, dim): (usize, &Dim)| match i.checked_sub(lead) {
        Some(k) if from[k] == *dim => strides[k],
        _ => 0,
    };
    Some(to.iter().enumerate().map(stride).collect())
}

/// True if block formats can be read through `strides`: whole blocks, contiguous inside a row.
pub(super) fn whole_blocks(dtype: DType, shape: &[Dim], strides: &[u64]) -> bool {
    let block = dtype.block_elements() as u64;
    let Some((last, outer)) = strides.split_last() else { return true };
    block == 1 || ((*last == 1 || shape.last() == Some(&Dim::Const(1))) && outer.iter().all(|s| s % block == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(text: &str) -> Vec<Dim> {
        text.split_whitespace().map(|d| d.parse().map_or_else(|_| Dim::sym(d), Dim::Const)).collect()
    }

    #[track_caller]
    fn check(from: &str, strides: &[u64], to: &str, expect: Option<&[u64]>) {
        assert_eq!(reshape(&dims(from), strides, &dims(to)).as_deref(), expect);
    }

    #[test]
    fn reshapes_that_strides_express() {
        check("T 576", &[960, 1], "T 9 64", Some(&[960, 64, 1]));
        check("T 9 64", &[960, 64, 1], "T 576", Some(&[960, 1]));
        check("T 9 64", &[64, 6400, 1], "T 576", None);
        check("6 4", &[4, 1], "2 12", Some(&[12, 1]));
        check("6 4", &[8, 1], "2 12", None);
        check("6 4", &[8, 1], "2 3 4", Some(&[24, 8, 1]));
        check("T 1 5", &[5, 5, 1], "1 T 5 1", Some(&[5, 5, 1, 1]));
        check("B P", &[256, 1], "P B", None);
        check("6 T 4", &[400, 4, 1], "T 24", None);
        check("6 T", &[100, 1], "2 3 T", Some(&[300, 100, 1]));
        check("T 4 2", &[1, 0, 0], "T 8", Some(&[1, 0]));
        check("", &[], "1 1", Some(&[1, 1]));
        check("1", &[1], "", Some(&[]));
    }

    #[test]
    fn blocks_stay_whole() {
        assert!(whole_blocks(DType::Q8A, &dims("T 64"), &[128, 1]));
        assert!(!whole_blocks(DType::Q8A, &dims("T 64"), &[100, 1]));
        assert_eq!(byte_offset(DType::Q8A, 64), Some(2 * DType::Q8A.block_bytes() as u64));
        assert_eq!(byte_offset(DType::Q8A, 16), None);
    }
}
