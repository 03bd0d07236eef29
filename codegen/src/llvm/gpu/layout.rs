//! How a tile lies over the threads of a block.
//!
//! Tiles on GPUs have power-of-two dims, so an element is a string of index bits (row-major, the last dim lowest). A layout
//! says for each bit of a register index and of a thread index which element bit it stands for. Blocked tiles and the
//! fragments of matrix instructions are all of this form, and a reshape changes nothing.

/// Distribution of `2^bits` elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Element bit of each register index bit, lowest first.
    pub regs: Vec<u8>,
    /// Element bit of each thread index bit (lanes lowest, then waves); `None` repeats the tile.
    pub threads: Vec<Option<u8>>,
}

/// Fewest registers of a reduction's result that waves deal out.
const FEWEST_DEALT: usize = 4;

/// log2 of a tile dim.
pub fn log2(n: u32) -> u8 {
    n.trailing_zeros() as u8
}

/// Element bits of a tile of `shape`.
pub fn bits(shape: &[u32]) -> u8 {
    shape.iter().map(|d| log2(*d)).sum()
}

/// Index of the first element bit of dim `axis`.
pub fn first_bit(shape: &[u32], axis: usize) -> u8 {
    bits(&shape[axis + 1..])
}

/// Element bit of the operand for each element bit of a tile of shape `to` broadcast from `from`.
pub fn broadcast_bits(from: &[u32], to: &[u32]) -> Vec<Option<u8>> {
    let mut out = Vec::new();
    for axis in (0..to.len()).rev() {
        let own = (axis + from.len()).checked_sub(to.len());
        for bit in 0..log2(to[axis]) {
            out.push(own.filter(|own| from[*own] != 1).map(|own| first_bit(from, own) + bit));
        }
    }
    out
}

impl Layout {
    /// One element, the same in every thread.
    pub fn uniform(thread_bits: usize) -> Layout {
        Layout { regs: Vec::new(), threads: vec![None; thread_bits] }
    }

    /// Element bits in `order`: `vector` of them in registers, the next over the threads, the rest in registers again.
    pub fn blocked(order: &[u8], vector: usize, thread_bits: usize) -> Layout {
        let vector = vector.min(order.len());
        let over = thread_bits.min(order.len() - vector);
        let mut threads: Vec<Option<u8>> = order[vector..vector + over].iter().map(|b| Some(*b)).collect();
        threads.resize(thread_bits, None);
        let regs = order[..vector].iter().chain(&order[vector + over..]).copied().collect();
        Layout { regs, threads }
    }

    /// Registers of a thread.
    pub fn count(&self) -> usize {
        1 << self.regs.len()
    }

    /// Register bits that step through neighbours in memory of `bytes` wide elements, up to 16 bytes: `stride` gives the bytes
    /// between elements that differ in one element bit.
    pub fn run(&self, bytes: u64, stride: impl Fn(u8) -> i64) -> Vec<usize> {
        let mut out = Vec::new();
        while bytes << (out.len() + 1) <= 16 {
            let wanted = (bytes << out.len()) as i64;
            match self.regs.iter().position(|b| stride(*b) == wanted) {
                Some(at) => out.push(at),
                None => break,
            }
        }
        out
    }

    /// Groups of registers: those of a group differ in the register bits `run` alone, in its order.
    pub fn groups(&self, run: &[usize]) -> Vec<Vec<usize>> {
        let mask: usize = run.iter().map(|at| 1 << at).sum();
        let lane = |i: usize| -> usize { run.iter().enumerate().map(|(bit, at)| (i >> bit & 1) << at).sum() };
        (0..self.count())
            .filter(|r| r & mask == 0)
            .map(|r| (0..1 << run.len()).map(|i| r | lane(i)).collect())
            .collect()
    }

    /// Element bits that register `r` contributes.
    pub fn element(&self, r: usize) -> u64 {
        self.regs.iter().enumerate().map(|(i, bit)| ((r >> i & 1) as u64) << bit).sum()
    }

    /// The register that holds the element bits `element` (bits held by threads are ignored).
    pub fn register(&self, element: u64) -> usize {
        self.regs.iter().enumerate().map(|(i, bit)| ((element >> bit & 1) as usize) << i).sum()
    }

    /// True if registers hold the element bit.
    pub fn in_registers(&self, bit: u8) -> bool {
        self.regs.contains(&bit)
    }

    /// The layout with every element bit replaced; register bits that map to nothing are dropped.
    pub fn map(&self, f: impl Fn(u8) -> Option<u8>) -> Layout {
        Layout {
            regs: self.regs.iter().filter_map(|b| f(*b)).collect(),
            threads: self.threads.iter().map(|b| b.and_then(&f)).collect(),
        }
    }

    /// Register of the mapped layout that stands where register `r` of this one does.
    pub fn mapped_register(&self, r: usize, f: impl Fn(u8) -> Option<u8>) -> usize {
        let kept = self.regs.iter().enumerate().filter(|(_, b)| f(**b).is_some());
        kept.enumerate().map(|(to, (from, _))| (r >> from & 1) << to).sum()
    }

    /// Of an operand that is broadcast to this tile.
    pub fn sliced(&self, from: &[u32], to: &[u32]) -> Layout {
        let bits = broadcast_bits(from, to);
        self.map(|b| bits[b as usize])
    }

    /// After a reduction of `size` element bits from `first` on, with element bits numbered as before. Threads that held parts
    /// hold the same results, except that waves which held parts of many deal them out among themselves: what each reads of
    /// the others' parts is then its own share. `lanes`: log2 of the threads of a wave.
    pub fn reduced(&self, first: u8, size: u8, lanes: usize) -> Layout {
        let kept = |b: u8| dropped(b, first, size).map(|_| b);
        let mut out = self.map(kept);
        if out.count() >= FEWEST_DEALT {
            for (at, bit) in self.threads.iter().enumerate().skip(lanes) {
                if bit.is_some_and(|b| kept(b).is_none()) {
                    out.threads[at] = out.regs.pop();
                }
            }
        }
        out
    }

    /// With the numbers of `size` element bits from `first` on gone.
    pub fn without(&self, first: u8, size: u8) -> Layout {
        self.map(|b| dropped(b, first, size))
    }
}

/// Element bit after bits `first..first + size` are gone.
pub fn dropped(bit: u8, first: u8, size: u8) -> Option<u8> {
    match bit {
        b if b < first => Some(b),
        b if b < first + size => None,
        b => Some(b - size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_covers_each_element_once() {
        let l = Layout::blocked(&[0, 1, 2, 3, 4, 5, 6, 7, 8], 2, 5);
        let mut seen = vec![0; 512];
        for t in 0..32u64 {
            let own: u64 = l.threads.iter().enumerate().map(|(i, b)| (t >> i & 1) << b.unwrap()).sum();
            for r in 0..l.count() {
                assert_eq!(l.register(l.element(r)), r);
                seen[(own | l.element(r)) as usize] += 1;
            }
        }
        assert!(seen.iter().all(|n| *n == 1));
    }

    #[test]
    fn broadcasts_and_reductions_drop_bits() {
        assert_eq!(broadcast_bits(&[4, 1], &[4, 8]), [None, None, None, Some(0), Some(1)]);
        assert_eq!(broadcast_bits(&[8], &[4, 8]), [Some(0), Some(1), Some(2), None, None]);
        let l = Layout::blocked(&[0, 1, 2, 3, 4], 1, 3);
        assert_eq!(l.without(0, 3), Layout { regs: vec![1], threads: vec![None, None, Some(0)] });
        assert_eq!(l.mapped_register(3, |b| dropped(b, 0, 3)), 1);
    }
    #[test]
    fn waves_deal_out_what_they_reduced() {
        // Bits 3 and 4 over waves; bits 0, 1, 2 in registers; lanes hold bit 5.
        let l = Layout { regs: vec![0, 1, 2], threads: vec![Some(5), Some(3), Some(4)] };
        let dealt = Layout { regs: vec![0], threads: vec![Some(5), Some(2), Some(1)] };
        assert_eq!(l.reduced(3, 2, 1), dealt);
        // Lanes keep the same results, and so do waves where there are few.
        assert_eq!(l.reduced(5, 1, 1), Layout { regs: vec![0, 1, 2], threads: vec![None, Some(3), Some(4)] });
        assert_eq!(l.reduced(1, 4, 1), Layout { regs: vec![0], threads: vec![Some(5), None, None] });
    }
}
