//! What one execution of an op costs in bytes and operations, whatever the machine: derived from the op's axes and types. Every price
//! of the compiler starts here.

use crate::op::{Category, Op};
use crate::signature::{Axis, Index, Mark, Signature};
use crate::types::{Dim, TensorType};
use std::collections::BTreeMap;

/// Bytes and operations. All of it saturates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effort {
    /// Bytes that are read. Of an axis that an operand picks from, what it picks alone.
    pub read: u64,
    /// Bytes that are written: of a state, the new elements alone.
    pub written: u64,
    /// Multiply-adds of a contraction; elements of the results of any other op.
    pub operations: u64,
}

impl Effort {
    /// Bytes that are moved.
    pub fn bytes(&self) -> u64 {
        self.read.saturating_add(self.written)
    }
}

/// Of a hundred parts, those that are left where rows that need no scores have none: a little less, so that the form that skips wins,
/// however many rows those are.
const NOT_SKIPPED: u64 = 95;

/// A dim with the symbols at `dims`.
pub fn dim_at(dim: &Dim, dims: &dyn Fn(&str) -> u64) -> u64 {
    match dim {
        Dim::Const(n) => *n,
        Dim::Sym(s) => dims(s),
    }
}

/// Bytes of one value with the symbols at `dims`; 0 where they do not fit in 63 bits or leave a partial block.
pub fn bytes_at(t: &TensorType, dims: &dyn Fn(&str) -> u64) -> u64 {
    let shape: Vec<u64> = t.shape.iter().map(|d| dim_at(d, dims)).collect();
    t.dtype.byte_size(&shape).unwrap_or(0)
}

impl Op {
    /// The op's effort with the symbols at `dims`: nothing for leaves. Views count what would be moved if they could not be renamed.
    pub fn effort(&self, operands: &[TensorType], results: &[TensorType], dims: &dyn Fn(&str) -> u64) -> Effort {
        let category = self.kind().info().category;
        if category == Category::Leaf {
            return Effort::default();
        }
        let work = Work { op: self, operands, results, dims, axes: self.signature(operands, results) };
        let (read, written) = work.moved(category);
        let effort = Effort { read, written, operations: work.operations(category) };
        match self {
            Op::IndexScores { skip: 1.., .. } => {
                let share = |n: u64| (n / 100).saturating_mul(NOT_SKIPPED);
                Effort { read: share(effort.read), operations: share(effort.operations), ..effort }
            }
            _ => effort,
        }
    }
}

struct Work<'a> {
    op: &'a Op,
    operands: &'a [TensorType],
    results: &'a [TensorType],
    dims: &'a dyn Fn(&str) -> u64,
    axes: Signature,
}

impl Work<'_> {
    /// Bytes read and written.
    fn moved(&self, category: Category) -> (u64, u64) {
        let writes_state = category == Category::StateWrite;
        let read = (usize::from(writes_state)..self.operands.len()).map(|i| self.read(i));
        let written = match self.operands.get(1) {
            // What is written is as large as what it is made of.
            Some(x) if writes_state => bytes_at(x, self.dims),
            _ => self.results.iter().fold(0u64, |sum, t| sum.saturating_add(bytes_at(t, self.dims))),
        };
        (read.fold(0, u64::saturating_add), written)
    }

    fn elements(&self, t: &TensorType) -> u64 {
        t.shape.iter().fold(1u64, |n, d| n.saturating_mul(dim_at(d, self.dims)))
    }

    /// Bytes that are read of an operand.
    fn read(&self, operand: usize) -> u64 {
        let t = &self.operands[operand];
        let all = bytes_at(t, self.dims);
        let picked = self.axes.operands[operand].iter().enumerate().find_map(|(axis, a)| match a.mark {
            Mark::Picked(by) => Some((axis, by)),
            _ => None,
        });
        let Some((axis, by)) = picked else { return all };
        let held = t.shape.get(axis).map_or(1, |d| dim_at(d, self.dims)).max(1);
        let picks = self.operands.get(by).map_or(1, |index| self.picks(index));
        // Blocks of a cache are read once, whoever names them; rows of a table once a name.
        let picks = if self.op.paged().is_some_and(|p| p.caches.contains(&operand)) { picks.min(held) } else { picks };
        (all / held).saturating_mul(picks)
    }

    /// Elements that an index names: of block tables, those that the op's window reaches.
    fn picks(&self, index: &TensorType) -> u64 {
        let all = self.elements(index);
        let Op::Attention { window: window @ 1.., .. } = self.op else { return all };
        let slots = self.operands.get(1).and_then(TensorType::last_constant).unwrap_or(1).max(1);
        let tokens = self.operands.first().and_then(|q| q.shape.first()).map_or(1, |d| dim_at(d, self.dims));
        // A window of each token of a sequence ends somewhere among its new positions.
        let seen = window.unsigned_abs().saturating_add(tokens).div_ceil(slots).saturating_add(1);
        let sequences = index.shape.first().map_or(1, |d| dim_at(d, self.dims));
        all.min(sequences.saturating_mul(seen))
    }

    fn operations(&self, category: Category) -> u64 {
        if category != Category::Contraction {
            return self.results.iter().fold(0, |sum, t| sum.saturating_add(self.elements(t)));
        }
        // Each operand that shares an index with the first one which no result has is multiplied with it. Scales are, too, but an
        // index has more elements than they.
        let mut sizes: BTreeMap<Index, u64> = BTreeMap::new();
        let axes = self.axes.operands.iter().zip(self.operands).chain(self.axes.results.iter().zip(self.results));
        for (axes, t) in axes.clone() {
            for (axis, dim) in axes.iter().zip(&t.shape) {
                if let Some(index) = axis.index {
                    let size = sizes.entry(index).or_insert(1);
                    *size = (*size).max(dim_at(dim, self.dims));
                }
            }
        }
        let of = |axes: &[Axis]| -> Vec<Index> { axes.iter().filter_map(|a| a.index).collect() };
        let results: Vec<Index> = self.axes.results.iter().flat_map(|axes| of(axes)).collect();
        let Some((first, others)) = self.axes.operands.split_first() else { return 0 };
        let first = of(first);
        let whole = |(axes, t): (&Vec<Axis>, &TensorType)| {
            let full = |(axis, dim): (&Axis, &Dim)| axis.index.is_none_or(|i| sizes[&i] == dim_at(dim, self.dims));
            axes.iter().zip(&t.shape).all(full)
        };
        let products = others.iter().zip(&self.operands[1..]).filter(|(axes, t)| {
            let contracted = |i: &Index| first.contains(i) && !results.contains(i) && i.name != "slot";
            of(axes).iter().any(contracted) && whole((axes, t))
        });
        products.fold(0u64, |sum, (axes, _)| {
            let mut all: Vec<Index> = first.iter().chain(&results).copied().chain(of(axes)).collect();
            all.retain(|i| i.name != "slot");
            all.sort_unstable();
            all.dedup();
            sum.saturating_add(all.iter().fold(1u64, |n, i| n.saturating_mul(sizes[i])))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::attr::Real;

    fn of(op: &Op, operands: &[TensorType]) -> Effort {
        let dims = |s: &str| if s == "T" { 3 } else { 8 };
        op.effort(operands, &op.infer(operands).expect("types that fit"), &dims)
    }

    fn typed(dtype: DType, shape: &[Dim]) -> TensorType {
        TensorType::new(dtype, shape.to_vec())
    }

    #[test]
    fn bytes_are_what_is_touched() {
        let (t, n) = (Dim::sym("T"), Dim::sym("N"));
        let x = typed(DType::F32, &[t.clone(), 2.into(), 4.into()]);
        let positions = typed(DType::I32, std::slice::from_ref(&t));
        let table = typed(DType::F32, &[64.into(), 4.into()]);
        // Operand and result of 96 bytes, 3 positions, 3 of 64 rows of 16 bytes.
        let rope = of(&Op::Rope { interleaved: false }, &[x.clone(), positions.clone(), table]);
        assert_eq!((rope.read, rope.written), (96 + 12 + 48, 96));
        // The cache of 8 blocks is written at 3 positions.
        let cache = typed(DType::F32, &[n.clone(), 2.into(), 16.into(), 4.into()]);
        let keys = typed(DType::F32, &[n, 2.into(), 4.into(), 16.into()]);
        let tables = typed(DType::I32, &[1.into(), 2.into()]);
        let write = [cache.clone(), x.clone(), positions.clone(), positions.clone(), tables.clone()];
        let write = of(&Op::CacheWrite { transposed: false }, &write);
        assert_eq!((write.read, write.written), (96 + 12 + 12 + 8, 96));
        // Attention reads the two blocks that its table names, of 512 bytes each, of both caches.
        let operands = [x, keys, cache, positions.clone(), positions, tables];
        let attention = |window| of(&Op::Attention { scale: Real(1.0), dtype: DType::F32, window }, &operands);
        assert_eq!(attention(0).bytes(), 96 + 2 * 2 * 512 + 12 + 12 + 8 + 96);
        assert_eq!(attention(2), attention(0), "tables as short as the window");
        let gather = [typed(DType::BF16, &[50.into(), 8.into()]), typed(DType::I32, &[5.into()])];
        assert_eq!(of(&Op::Gather { dtype: DType::F32 }, &gather).bytes(), 5 * 16 + 20 + 5 * 32);
    }

    #[test]
    fn multiply_adds_are_counted_a_product() {
        let f = |shape: &[u64]| TensorType::fixed(DType::F32, shape);
        let dtype = DType::F32;
        let operations = |op: &Op, operands: &[TensorType]| of(op, operands).operations;
        assert_eq!(operations(&Op::Matmul { dtype }, &[f(&[2, 3, 8]), f(&[5, 8])]), 2 * 3 * 8 * 5);
        assert_eq!(operations(&Op::MatmulAdd { dtype }, &[f(&[3, 8]), f(&[5, 8]), f(&[5])]), 3 * 8 * 5);
        assert_eq!(operations(&Op::MatmulSiluMul { dtype }, &[f(&[3, 8]), f(&[5, 8]), f(&[5, 8])]), 2 * 3 * 8 * 5);
        let codes = |shape: &[u64]| TensorType::fixed(DType::F8E4M3, shape);
        let scaled = Op::ScaledMatmul { rows: 5, columns: 4, dtype };
        assert_eq!(operations(&scaled, &[codes(&[3, 8]), f(&[3, 2]), codes(&[5, 8]), f(&[1, 2])]), 3 * 8 * 5);
        assert_eq!(operations(&Op::Add {}, &[f(&[3, 8]), f(&[8])]), 24);
        let score = |skip: i64| {
            let types = [[2, 4, 64].as_slice(), &[2, 4], &[9, 1, 64, 16], &[2], &[2], &[1, 9]];
            let mut operands: Vec<TensorType> = types.iter().map(|s| f(s)).collect();
            operands[3..].iter_mut().for_each(|t| t.dtype = DType::I32);
            of(&Op::IndexScores { columns: vec![Dim::Const(4096)], skip }, &operands)
        };
        assert_eq!(score(0).operations, 2 * 4 * 64 * 4096);
        assert!(score(16).operations < score(0).operations && score(16).read < score(0).read);
    }
}
