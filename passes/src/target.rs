//! What passes ask of a target: may this op run there, and what would it cost. Kernel libraries implement it from the
//! one declaration each kernel family makes, so match guards, near-miss texts and selection cannot disagree.

use crate::specialise::Threshold;
use std::fmt;
use weldment_ir::{Category, DType, Dim, Op, OpKind, TensorType};

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

/// Bytes of one value with the symbols at `dims`; 0 where they do not fit in 63 bits or leave a partial block.
pub fn bytes_at(t: &TensorType, dims: &dyn Fn(&str) -> u64) -> u64 {
    let shape: Vec<u64> = t.shape.iter().map(|d| dim_at(d, dims)).collect();
    t.dtype.byte_size(&shape).unwrap_or(0)
}

/// A dim with the symbols at `dims`.
pub fn dim_at(dim: &Dim, dims: &dyn Fn(&str) -> u64) -> u64 {
    match dim {
        Dim::Const(n) => *n,
        Dim::Sym(s) => dims(s),
    }
}

/// Bytes that one launch of an op reads and writes with the symbols at `dims`: all of its operands and results, except
/// that rows picked by an index are read alone, a cache is written at the new positions alone, and attention reads the
/// blocks that its block table names. 0 for leaves and views.
pub fn traffic(op: &Op, operands: &[TensorType], results: &[TensorType], dims: &dyn Fn(&str) -> u64) -> u64 {
    if matches!(op.kind().info().category, Category::Leaf | Category::View) {
        return 0;
    }
    let all = |types: &[TensorType]| types.iter().fold(0u64, |sum, t| sum.saturating_add(bytes_at(t, dims)));
    let written = all(results);
    match (op, operands) {
        (Op::Gather { .. } | Op::GatherPart { .. }, [_, indices]) => {
            written.saturating_mul(2).saturating_add(bytes_at(indices, dims))
        }
        (Op::Rope { .. }, [x, positions, table]) => {
            let rows = rows_of(table, positions, dims);
            all(&[x.clone(), positions.clone()]).saturating_add(rows).saturating_add(written)
        }
        (Op::CacheWrite { .. }, [_, x, indices @ ..]) => {
            bytes_at(x, dims).saturating_mul(2).saturating_add(all(indices))
        }
        (Op::RopeCacheWrite { .. }, [_, x, positions, table, indices @ ..]) => {
            let indices = all(indices).saturating_add(bytes_at(positions, dims));
            let rows = rows_of(table, positions, dims);
            bytes_at(x, dims).saturating_mul(2).saturating_add(indices).saturating_add(rows)
        }
        (Op::Attention { window, .. }, [q, caches @ .., _, _, tables]) => {
            let sizes: Vec<u64> = tables.shape.iter().map(|d| dim_at(d, dims)).collect();
            // A window of each token of a sequence ends somewhere among its new positions.
            let seen = match (u64::try_from(*window), caches.first().and_then(TensorType::last_constant)) {
                (Ok(window @ 1..), Some(slots @ 1..)) => {
                    let tokens = q.shape.first().map_or(1, |d| dim_at(d, dims));
                    window.saturating_add(tokens).div_ceil(slots).saturating_add(1)
                }
                _ => u64::MAX,
            };
            let blocks = match sizes[..] {
                [sequences, width] => sequences.saturating_mul(width.min(seen)),
                _ => 1,
            };
            let read = caches.iter().filter(|t| t.rank() == 4).fold(0u64, |sum, cache| {
                let held = cache.shape.first().map_or(1, |n| dim_at(n, dims)).max(1);
                let block = bytes_at(cache, dims) / held;
                sum.saturating_add(block.saturating_mul(blocks.min(held)))
            });
            let indices = all(&operands[operands.len() - 3..]);
            bytes_at(q, dims).saturating_add(read).saturating_add(indices).saturating_add(written)
        }
        _ => all(operands).saturating_add(written),
    }
}

/// Bytes of the rows of a table that an index picks, one each.
fn rows_of(table: &TensorType, index: &TensorType, dims: &dyn Fn(&str) -> u64) -> u64 {
    let rows = table.shape.first().map_or(1, |n| dim_at(n, dims)).max(1);
    let picked = index.shape.iter().fold(1u64, |n, d| n.saturating_mul(dim_at(d, dims)));
    (bytes_at(table, dims) / rows).saturating_mul(picked)
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
        let bytes = |types: &[TensorType]| types.iter().map(|t| bytes_at(t, dims) as f64).sum::<f64>();
        let elements = |t: &TensorType| t.shape.iter().map(|d| dim_at(d, dims) as f64).product::<f64>();
        let (mut read, written) = (bytes(operands), bytes(results));
        let mut work = 0.0;
        match op {
            Op::Gather { .. } | Op::GatherPart { .. } => read = 2.0 * written,
            // What other ranks hold comes over a link, and each waits for all: several launches' worth.
            op if op.communicates() => {
                let ranks = op.world().unwrap_or(1) as f64;
                return 5.0 * self.launch + (read * ranks + written) / self.bandwidth;
            }
            // A write touches the new positions only.
            Op::CacheWrite { .. } | Op::RopeCacheWrite { .. } => {
                let moved = operands.get(1).map_or(0.0, |x| bytes_at(x, dims) as f64);
                return self.launch + 2.0 * moved / self.bandwidth;
            }
            // Keys are read once a sequence, up to the context; rows below `skip` read none.
            Op::IndexScores { skip, .. } => {
                if let ([q, weights, keys, ..], [scores]) = (operands, results) {
                    let columns = scores.shape.last().map_or(1.0, |c| dim_at(c, dims) as f64);
                    let depth = keys.shape.get(2).map_or(1.0, |d| dim_at(d, dims) as f64);
                    let share = if *skip > 0 { 0.95 } else { 1.0 };
                    let once = columns * depth * keys.dtype.block_bytes() as f64;
                    read = share * (bytes(&[q.clone(), weights.clone()]) + once);
                    work = share * elements(q) * columns / self.rate;
                }
            }
            Op::Matmul { .. } | Op::MatmulAdd { .. } | Op::MatmulSiluMul { .. } => {
                if let [x, w, ..] = operands {
                    let weights = if matches!(op, Op::MatmulSiluMul { .. }) { 2.0 } else { 1.0 };
                    let rows = elements(x) / x.shape.last().map_or(1.0, |k| (dim_at(k, dims) as f64).max(1.0));
                    // int8 dot products, or f32 ones that first expand a block format.
                    let rate = match (x.dtype, w.dtype.is_block()) {
                        (DType::Q8A, _) => self.rate * 4.0,
                        (_, true) => self.rate * 0.5,
                        _ => self.rate,
                    };
                    work = weights * rows * elements(w) / rate;
                }
            }
            _ => {}
        }
        self.launch + ((read + written) / self.bandwidth).max(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_what_a_launch_touches() {
        let dims = |s: &str| if s == "T" { 3 } else { 8 };
        let of = |dtype, shape: Vec<Dim>| TensorType::new(dtype, shape);
        let (t, n) = (Dim::sym("T"), Dim::sym("N"));
        let x = of(DType::F32, vec![t.clone(), Dim::Const(2), Dim::Const(4)]);
        let positions = of(DType::I32, vec![t.clone()]);
        let table = of(DType::F32, vec![Dim::Const(64), Dim::Const(4)]);
        // Operand and result of 96 bytes, 3 positions, 3 of 64 rows of 16 bytes.
        let rope = Op::Rope { interleaved: false };
        let operands = [x.clone(), positions.clone(), table];
        assert_eq!(traffic(&rope, &operands, std::slice::from_ref(&x), &dims), 96 + 96 + 12 + 48);
        // The cache of 8 blocks is written at 3 positions.
        let cache = of(DType::F32, vec![n, Dim::Const(2), Dim::Const(16), Dim::Const(4)]);
        let tables = of(DType::I32, vec![Dim::Const(1), Dim::Const(2)]);
        let operands = [cache.clone(), x.clone(), positions.clone(), positions.clone(), tables.clone()];
        let write = Op::CacheWrite { transposed: false };
        assert_eq!(traffic(&write, &operands, std::slice::from_ref(&cache), &dims), 96 + 96 + 12 + 12 + 8);
        // Attention reads the two blocks that its table names, of 512 bytes each, of both caches.
        let operands = [x.clone(), cache.clone(), cache, positions.clone(), positions, tables];
        let attention = Op::Attention { scale: weldment_ir::Real(1.0), dtype: DType::F32, window: 0 };
        let found = traffic(&attention, &operands, std::slice::from_ref(&x), &dims);
        assert_eq!(found, 96 + 2 * 2 * 512 + 12 + 12 + 8 + 96);
        let view = Op::Reshape { shape: vec![Dim::Const(24)] };
        assert_eq!(traffic(&view, std::slice::from_ref(&x), std::slice::from_ref(&x), &dims), 0);
    }

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
