//! What passes ask of a target: may this op run there, and what would it cost. Kernel libraries implement it from the
//! one declaration each kernel family makes, so match guards, near-miss texts and selection cannot disagree.

use crate::specialise::Threshold;
use std::fmt;
use weldment_ir::{Category, DType, Op, OpKind, TensorType};

/// Why a target has no kernel for an op: the precondition that failed, what was found and what would be accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Refusal {
    /// The precondition's name: `hidden size`, `weight dtype`.
    pub precondition: &'static str,
    /// The value found.
    pub found: String,
    /// The values accepted.
    pub accepted: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} found, {} accepted", self.precondition, self.found, self.accepted)
    }
}

/// The kernels of a target, seen from the graph.
pub trait TargetModel {
    /// Has the target a kernel for this op with these operand and result types?
    ///
    /// # Errors
    /// The failing precondition.
    fn supports(&self, op: &Op, operands: &[TensorType], results: &[TensorType]) -> Result<(), Refusal>;

    /// Nanoseconds of one execution (launch, bytes over bandwidth, work) with the symbols at `dims`.
    fn cost(&self, op: &Op, operands: &[TensorType], results: &[TensorType], dims: &dyn Fn(&str) -> u64) -> f64;

    /// Values of symbols at which another kernel, or another form of it, would be chosen for the op.
    fn thresholds(&self, op: &Op, operands: &[TensorType], results: &[TensorType]) -> Vec<Threshold> {
        let _ = (op, operands, results);
        Vec::new()
    }
}

/// A target that has every kernel and prices launches, bytes and multiply-adds: a test double, and the model used
/// where no target is given.
#[derive(Clone, Debug)]
pub struct ReferenceTarget {
    /// Nanoseconds a launch.
    pub launch: f64,
    /// Bytes a nanosecond.
    pub bandwidth: f64,
    /// f32 multiply-adds a nanosecond; integer ones are four times as fast.
    pub rate: f64,
}

impl Default for ReferenceTarget {
    fn default() -> Self {
        ReferenceTarget { launch: 1000.0, bandwidth: 40.0, rate: 50.0 }
    }
}

impl TargetModel for ReferenceTarget {
    fn supports(&self, _: &Op, _: &[TensorType], _: &[TensorType]) -> Result<(), Refusal> {
        Ok(())
    }

    fn cost(&self, op: &Op, operands: &[TensorType], results: &[TensorType], dims: &dyn Fn(&str) -> u64) -> f64 {
        match op.kind().info().category {
            Category::Leaf => return 0.0,
            // Views are renamed places, except where elements would have to move.
            Category::View if !matches!(op.kind(), OpKind::Concat | OpKind::Transpose) => return 0.0,
            _ => {}
        }
        let effort = op.effort(operands, results, dims);
        let [read, written, operations] = [effort.read, effort.written, effort.operations].map(|n| n as f64);
        // What other ranks hold comes over a link, and each waits for all: several launches' worth.
        if op.communicates() {
            let ranks = op.world().unwrap_or(1) as f64;
            return 5.0 * self.launch + (read * ranks + written) / self.bandwidth;
        }
        // int8 dot products, or f32 ones that first expand a block format.
        let blocks = operands.iter().skip(1).any(|t| t.dtype.is_block());
        let rate = match (operands.first().map(|x| x.dtype), blocks) {
            (Some(DType::Q8A), _) => self.rate * 4.0,
            (_, true) => self.rate * 0.5,
            _ => self.rate,
        };
        let work = if op.kind().info().category == Category::Contraction { operations / rate } else { 0.0 };
        self.launch + ((read + written) / self.bandwidth).max(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weldment_ir::Dim;

    #[test]
    fn integer_matmul_is_cheaper_and_views_are_free() {
        let target = ReferenceTarget::default();
        let dims = |_: &str| 1u64;
        let (x, xq) = (TensorType::fixed(DType::F32, &[1, 576]), TensorType::fixed(DType::Q8A, &[1, 576]));
        let (w, y) = (TensorType::fixed(DType::Q4_1, &[576, 576]), TensorType::fixed(DType::F32, &[1, 576]));
        let op = Op::Matmul { dtype: DType::F32 };
        let float = target.cost(&op, &[x.clone(), w.clone()], std::slice::from_ref(&y), &dims);
        let int = target.cost(&op, &[xq, w], std::slice::from_ref(&y), &dims);
        assert!(int < float, "{int} < {float}");
        // Scores with rows to skip come a little cheaper.
        let score = |skip: i64| {
            let types = [[2, 4, 64].as_slice(), &[2, 4], &[9, 1, 64, 16], &[2], &[2], &[1, 9]];
            let operands: Vec<TensorType> = types.iter().map(|s| TensorType::fixed(DType::F32, s)).collect();
            let op = Op::IndexScores { columns: vec![Dim::Const(4096)], skip };
            target.cost(&op, &operands, &[TensorType::fixed(DType::F32, &[2, 4096])], &dims)
        };
        assert!(score(16) < score(0));
        let view = Op::Reshape { shape: vec![Dim::Const(576)] };
        assert_eq!(target.cost(&view, &[x], &[TensorType::fixed(DType::F32, &[576])], &dims), 0.0);
    }
}
