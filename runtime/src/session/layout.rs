//! How the tensors of a call lie in inputs and outputs: rows of a caller lie one after the other, those of kernels are laid out for the
//! largest sizes, so that strides are constants.

use crate::artifact::limits::ROW_MULTIPLE;
use crate::artifact::{Binding, Dim, Manifest};
use crate::error::{Error, Result};

/// Runs of bytes that are contiguous on both sides.
#[derive(Debug)]
pub(super) struct Layout {
    /// Sizes of the dims that are walked, outermost first.
    outer: Vec<usize>,
    /// Bytes from one index of each to the next on the kernels' side.
    strides: Vec<usize>,
    /// Bytes of a run.
    run: usize,
}

/// Which side of an entry a binding is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Inner dims are as large as in the largest call, or (dense) as in this one.
    Input,
    /// Every symbolic dim has room for whole tiles of rows.
    Output,
}

impl Layout {
    /// That of `binding` in a call in which it has `shape`.
    ///
    /// # Errors
    /// If its size overflows.
    pub fn new(manifest: &Manifest, binding: &Binding, shape: &[u64], side: Side) -> Result<Layout> {
        let overflow = || Error::InvalidInput(format!("the size of {} overflows", binding.name));
        let physical = |(axis, dim): (usize, &Dim)| match dim {
            Dim::Const(n) => Some(*n),
            Dim::Symbol(_) if binding.dense => shape.get(axis).copied(),
            Dim::Symbol(name) => {
                let most = manifest.symbol(name)?.1.max;
                if side == Side::Output { most.checked_next_multiple_of(ROW_MULTIPLE) } else { Some(most) }
            }
        };
        let dims: Option<Vec<u64>> = binding.shape.iter().enumerate().map(physical).collect();
        let dims = dims.ok_or_else(overflow)?;
        // The dims that are whole on both sides make a run with the one before them.
        let whole = dims.iter().zip(shape).rev().take_while(|(a, b)| a == b).count();
        let split = dims.len().saturating_sub(whole + 1);
        let bytes = |dims: &[u64]| {
            let bytes = binding.dtype.byte_size(dims).ok().and_then(|n| usize::try_from(n).ok());
            bytes.ok_or_else(overflow)
        };
        let strides = (0..split).map(|axis| bytes(&dims[axis + 1..])).collect::<Result<_>>()?;
        let outer: Option<Vec<usize>> = shape[..split].iter().map(|n| usize::try_from(*n).ok()).collect();
        Ok(Layout { outer: outer.ok_or_else(overflow)?, strides, run: bytes(&shape[split..])? })
    }

    /// Bytes that a caller's tensor has.
    pub fn bytes(&self) -> Option<usize> {
        self.outer.iter().try_fold(self.run, |n, d| n.checked_mul(*d))
    }

    /// Bytes up to the end of the last run on the kernels' side.
    pub fn extent(&self) -> Option<usize> {
        let steps = self.outer.iter().zip(&self.strides);
        let last =
            steps.clone().try_fold(0usize, |at, (n, stride)| at.checked_add(n.checked_sub(1)?.checked_mul(*stride)?));
        if self.outer.contains(&0) { Some(0) } else { last?.checked_add(self.run) }
    }

    /// Hands `take` where each run starts on the kernels' side, in the caller's order, and its bytes.
    ///
    /// # Errors
    /// Whatever `take` returns.
    pub fn runs(&self, take: &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<()> {
        self.walk(0, 0, take)
    }

    fn walk(&self, axis: usize, at: usize, take: &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<()> {
        let (Some(n), Some(stride)) = (self.outer.get(axis), self.strides.get(axis)) else { return take(at, self.run) };
        (0..*n).try_for_each(|i| self.walk(axis + 1, at + i * stride, take))
    }
}
