//! Which bytes a step touches, and whether two steps touch a common one: strided sets, compared exactly.

use crate::buffer::View;
use weldment_ir::TensorType;

/// Comparisons of strided sets that one question may take; a question that needs more is answered with yes.
const BUDGET: u32 = 1 << 16;

/// Runs of `width` bytes, one for every combination of the loops.
#[derive(Clone, Debug)]
pub(super) struct Footprint {
    base: u64,
    /// (count, stride in bytes), largest stride first; counts over 1, strides over 0.
    loops: Vec<(u64, u64)>,
    /// 0 for a tensor without elements.
    width: u64,
    /// An index moves and the address does not.
    repeats: bool,
}

impl Footprint {
    /// The bytes of a tensor of `ty` at `view` when its dims are `dims`. `None` if an address overflows or a block is split.
    pub fn new(ty: &TensorType, view: &View, dims: &[u64]) -> Option<Footprint> {
        let (block, bytes) = (ty.dtype.block_elements() as u64, ty.dtype.block_bytes() as u64);
        let mut out = Footprint { base: view.offset, loops: Vec::new(), width: bytes, repeats: false };
        if dims.contains(&0) {
            out.width = 0;
            return Some(out);
        }
        for (axis, (count, stride)) in dims.iter().zip(&view.strides).enumerate() {
            let last = axis + 1 == dims.len();
            let (count, stride) = match (last, block) {
                (true, 2..) => {
                    // Inside a block elements are neighbours; blocks are neighbours of each other.
                    let whole = *stride == 1 && count.is_multiple_of(block);
                    whole.then_some((count / block, bytes))?
                }
                _ if *count == 1 => (1, 0),
                _ => (*count, stride.is_multiple_of(block).then_some(stride / block)?.checked_mul(bytes)?),
            };
            match (count, stride) {
                (1, _) => {}
                (_, 0) => out.repeats = true,
                _ => out.loops.push((count, stride)),
            }
        }
        out.loops.sort_by_key(|(_, stride)| std::cmp::Reverse(*stride));
        out.reach()?.checked_add(out.base)?;
        out.merge();
        Some(out)
    }

    /// `bytes` bytes from `base` on.
    pub fn run(base: u64, bytes: u64) -> Footprint {
        Footprint { base, loops: Vec::new(), width: bytes, repeats: false }
    }

    /// Joins loops that touch neighbours, innermost first.
    fn merge(&mut self) {
        while let Some((count, stride)) = self.loops.pop() {
            if stride == self.width {
                self.width *= count;
                continue;
            }
            match self.loops.last_mut() {
                Some((outer, outer_stride)) if *outer_stride == stride * count => {
                    (*outer, *outer_stride) = (*outer * count, stride);
                }
                _ => {
                    self.loops.push((count, stride));
                    break;
                }
            }
        }
    }

    /// Bytes from the first to the last touched; `None` on overflow.
    fn reach(&self) -> Option<u64> {
        self.loops.iter().try_fold(self.width, |n, (count, stride)| n.checked_add((count - 1).checked_mul(*stride)?))
    }

    /// The first byte.
    pub fn start(&self) -> u64 {
        self.base
    }

    /// One past the last byte.
    pub fn end(&self) -> u64 {
        if self.width == 0 { 0 } else { self.reach().and_then(|n| n.checked_add(self.base)).unwrap_or(u64::MAX) }
    }

    /// True if no two elements share a byte (sufficient: each loop steps over all that lies inside it).
    pub fn is_injective(&self) -> bool {
        let mut inside = self.width;
        !self.repeats
            && self.loops.iter().rev().all(|(count, stride)| {
                let apart = *stride >= inside;
                inside = (count - 1).saturating_mul(*stride).saturating_add(inside);
                apart
            })
    }

    /// Do the two sets have a byte in common?
    pub fn meets(&self, other: &Footprint) -> bool {
        meet(self.clone(), other.clone(), &mut BUDGET.clone())
    }

    /// Leaves only the iterations of the outermost loop that reach into `start..end`; false if none does.
    fn clip(&mut self, start: u64, end: u64) -> bool {
        let Some((count, stride)) = self.loops.first().copied() else { return true };
        let row = self.reach().unwrap_or(u64::MAX) - (count - 1) * stride;
        // Iteration i covers base + i * stride .. + row.
        let first = start.saturating_sub(self.base.saturating_add(row) - 1).div_ceil(stride);
        let last = (end.saturating_sub(1)).saturating_sub(self.base) / stride;
        if end <= self.base || first > last.min(count - 1) {
            return false;
        }
        let left = last.min(count - 1) - first + 1;
        self.base += first * stride;
        if left == 1 {
            self.loops.remove(0);
        } else {
            self.loops[0].0 = left;
        }
        true
    }
}

fn meet(mut a: Footprint, mut b: Footprint, budget: &mut u32) -> bool {
    loop {
        if a.width == 0 || b.width == 0 || a.base >= b.end() || b.base >= a.end() {
            return false;
        }
        if *budget == 0 {
            return true;
        }
        *budget -= 1;
        match (a.loops.first().copied(), b.loops.first().copied()) {
            (None, None) => return true,
            (Some((_, s)), Some((_, t)))
                if s == t && inner(&a).end() - a.base <= s && inner(&b).end() - b.base <= s =>
            {
                return same_stride(a, b, s, budget);
            }
            (x, y) => {
                // The coarser set is halved, after what does not reach the other is clipped away.
                if x.map_or(0, |l| l.1) < y.map_or(0, |l| l.1) {
                    std::mem::swap(&mut a, &mut b);
                }
                if !a.clip(b.base, b.end()) {
                    return false;
                }
                if a.loops.is_empty() {
                    continue;
                }
                let (low, high) = halves(a);
                if meet(low, b.clone(), budget) {
                    return true;
                }
                a = high;
            }
        }
    }
}

/// One iteration of the outermost loop.
fn inner(f: &Footprint) -> Footprint {
    Footprint { loops: f.loops[1..].to_vec(), ..f.clone() }
}

fn halves(f: Footprint) -> (Footprint, Footprint) {
    let (count, stride) = f.loops[0];
    let part = |first: u64, count: u64| {
        let mut part = f.clone();
        part.base += first * stride;
        if count == 1 {
            part.loops.remove(0);
        } else {
            part.loops[0].0 = count;
        }
        part
    };
    (part(0, count / 2), part(count / 2, count - count / 2))
}

/// Two sets of rows at one stride, no row longer than it: only equal rows and neighbours can meet.
fn same_stride(mut a: Footprint, mut b: Footprint, stride: u64, budget: &mut u32) -> bool {
    if b.base < a.base {
        std::mem::swap(&mut a, &mut b);
    }
    let rows = (b.base - a.base) / stride;
    let at = |f: &Footprint, base: u64| Footprint { base, ..inner(f) };
    let b_row = at(&b, (b.base - a.base) % stride);
    let count = a.loops[0].0;
    (rows < count && meet(at(&a, 0), b_row.clone(), budget))
        || (rows + 1 < count && meet(at(&a, stride), b_row, budget))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use weldment_ir::generate::Random;
    use weldment_ir::{DType, Dim};

    fn bytes(f: &Footprint) -> BTreeSet<u64> {
        let starts = f.loops.iter().fold(vec![f.base], |all, (count, stride)| {
            all.iter().flat_map(|at| (0..*count).map(move |i| at + i * stride)).collect()
        });
        starts.iter().flat_map(|at| *at..at + f.width).collect()
    }

    fn random(random: &mut Random) -> Footprint {
        let dtype = *random.pick(&[DType::I8, DType::F16, DType::F32, DType::Q8A]).unwrap();
        let block = dtype.block_elements() as u64;
        let rank = 1 + random.below(3) as usize;
        let mut dims: Vec<u64> = (0..rank).map(|_| 1 + random.below(5)).collect();
        let mut strides: Vec<u64> = (0..rank).map(|_| random.below(14) * block).collect();
        if block > 1 {
            dims[rank - 1] *= block;
            strides[rank - 1] = 1;
        }
        let ty = TensorType::new(dtype, dims.iter().map(|d| Dim::Const(*d)).collect::<Vec<_>>());
        let view = View { region: crate::buffer::Region::Arena, offset: random.below(90), strides };
        Footprint::new(&ty, &view, &dims).unwrap()
    }

    #[test]
    fn strided_sets_meet_where_their_bytes_do() {
        let mut r = Random::new(3);
        let (mut met, mut injective) = (0, 0);
        for case in 0..20_000 {
            let (a, b) = (random(&mut r), random(&mut r));
            let (x, y) = (bytes(&a), bytes(&b));
            assert_eq!(a.end(), x.last().unwrap() + 1);
            assert_eq!(a.meets(&b), !x.is_disjoint(&y), "case {case}: {a:?} {b:?}");
            let elements: u64 = a.loops.iter().map(|l| l.0).product::<u64>() * a.width;
            assert!(!a.is_injective() || x.len() as u64 == elements, "case {case}: {a:?}");
            met += usize::from(a.meets(&b));
            injective += usize::from(a.is_injective());
        }
        assert!((1000..19_000).contains(&met) && injective > 2000, "{met} met, {injective} injective");
    }

    #[test]
    fn parts_of_long_rows_are_told_apart_at_once() {
        let part = |offset, n| {
            let ty = TensorType::new(DType::F16, vec![Dim::Const(8192), Dim::Const(n)]);
            let view = View { region: crate::buffer::Region::Arena, offset, strides: vec![960, 1] };
            Footprint::new(&ty, &view, &[8192, n]).unwrap()
        };
        let mut budget = 20;
        assert!(!meet(part(0, 576), part(1152, 384), &mut budget));
        assert!(meet(part(0, 577), part(1152, 384), &mut budget));
        assert!(!meet(part(0, 576), part(1152 + 1920 * 5, 384), &mut budget));
        assert!(budget > 0);
    }
}
