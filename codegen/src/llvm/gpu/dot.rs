//! Which matrix instruction a dot takes, and how its operands lie.
//!
//! Element bits of the operands: a [S, M, K], b [S, K, N], c [S, M, N], the last dim lowest. The order of k within an
//! instruction is free as long as both operands agree, so each thread takes `2^vector` elements that are neighbours along k:
//! operands then load in 16-byte pieces straight from rows of memory. The columns of an NVIDIA instruction are assigned to n
//! likewise: a thread then holds neighbours of a row of C, which store in 16-byte pieces, and a C is the left operand of a
//! following dot as it lies.
//!
//! Fragment tables: PTX ISA "Matrix Fragments for mma.m16n8k16"; AMD's matrix instruction calculator for
//! v_mfma_f32_16x16x16 (rows of A and columns of B over lane % 16, four k per lane group; four rows of C per lane group).

use super::layout::{Layout, log2};
use crate::target::GpuArch;
use crate::tile::Elem;

/// How a contraction runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Fused multiply-adds of one thread each.
    Fma,
    /// NVIDIA `mma.sync.m16n8k16`.
    Mma,
    /// AMD 16x16 MFMA over `2^k_bits` elements of k per lane: 2 (x16) or 3 (x32, gfx950).
    Mfma {
        /// log2 of the k elements of a lane.
        k_bits: u8,
    },
}

/// Operand layouts of one dot.
#[derive(Clone, Debug)]
pub struct DotPlan {
    /// Instruction.
    pub unit: Unit,
    /// Left operand.
    pub a: Layout,
    /// Right operand.
    pub b: Layout,
    /// Accumulator.
    pub c: Layout,
    /// log2 of M, N, K.
    pub m: u8,
    /// See `m`.
    pub n: u8,
    /// See `m`.
    pub k: u8,
}

/// Element bits by role: the three operands number them differently.
struct Roles {
    m: u8,
    n: u8,
    k: u8,
}

/// A bit of M, N, K or S.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    M(u8),
    N(u8),
    K(u8),
    S(u8),
}

impl Roles {
    fn a(&self, role: Role) -> Option<u8> {
        match role {
            Role::K(i) => Some(i),
            Role::M(i) => Some(self.k + i),
            Role::S(i) => Some(self.k + self.m + i),
            Role::N(_) => None,
        }
    }

    fn b(&self, role: Role) -> Option<u8> {
        match role {
            Role::N(i) => Some(i),
            Role::K(i) => Some(self.n + i),
            Role::S(i) => Some(self.n + self.k + i),
            Role::M(_) => None,
        }
    }

    fn c(&self, role: Role) -> Option<u8> {
        match role {
            Role::N(i) => Some(i),
            Role::M(i) => Some(self.n + i),
            Role::S(i) => Some(self.n + self.m + i),
            Role::K(_) => None,
        }
    }
}

impl DotPlan {
    /// The plan of acc [.., M, N] += a [.., M, K] b [.., K, N] of `elem`.
    ///
    /// # Errors
    /// If no unit takes the shape.
    pub fn new(arch: GpuArch, elem: Elem, acc: &[u32], k: u32, threads: u32) -> Result<DotPlan, String> {
        let rank = acc.len();
        let (m, n, k) = (log2(acc[rank - 2]), log2(acc[rank - 1]), log2(k));
        let s = if rank == 3 { log2(acc[0]) } else { 0 };
        let roles = Roles { m, n, k };
        let matrix = elem != Elem::F32;
        if matrix && (m < 4 || n < if arch.is_amd() { 4 } else { 3 } || k < 4) {
            return Err(format!("a dot of {elem:?} {acc:?} over {}; at least 16x16 over 16 is expected", 1 << k));
        }
        if matrix && !matches!(elem, Elem::BF16 | Elem::F16) {
            return Err(format!("a dot of {elem:?}; f32, bf16 or f16 is expected"));
        }
        let lane_bits = log2(arch.wave()) as usize;
        let wave_bits = log2(threads) as usize - lane_bits;
        let vector = 3.min(k.saturating_sub(2));
        // Columns of C that a thread holds as neighbours; `columns` and the next bit go over lanes.
        let columns = 3.min(n.saturating_sub(2));
        use Role::{K, M, N, S};
        // Bits inside one instruction: lanes of A and B side, and registers of C.
        let (lanes_a, lanes_b, lanes_c, c_regs, m_unit, n_unit): (Vec<Role>, Vec<Role>, Vec<Role>, Vec<Role>, u8, u8) =
            if !matrix {
                // Threads over N first, then M; K stays in registers.
                let mut over: Vec<Role> = (0..n).map(N).chain((0..m).map(M)).take(lane_bits).collect();
                let (m_unit, n_unit) = (
                    over.iter().filter(|r| matches!(r, M(_))).count() as u8,
                    over.iter().filter(|r| matches!(r, N(_))).count() as u8,
                );
                over.truncate(lane_bits);
                (over.clone(), over.clone(), over, Vec::new(), m_unit, n_unit)
            } else if arch.is_amd() {
                let k_lanes = [K(vector), K(vector + 1)];
                let side = |f: fn(u8) -> Role| (0..4).map(f).chain(k_lanes).collect::<Vec<_>>();
                let c = (0..4).map(N).chain([M(2), M(3)]).collect();
                (side(M), side(N), c, vec![M(0), M(1)], 4, 4)
            } else {
                let k_lanes = [K(vector), K(vector + 1)];
                let side = |roles: [Role; 3]| k_lanes.into_iter().chain(roles).collect::<Vec<_>>();
                let c = vec![N(columns), N(columns + 1), M(0), M(1), M(2)];
                let right = side([N(0), N(columns), N(columns + 1)]);
                (side([M(0), M(1), M(2)]), right, c, vec![N(0), M(3)], 4, columns + 2)
            };
        // Neighbouring columns stay in one thread.
        let kept: Vec<Role> = if matrix && !arch.is_amd() { (1..columns).map(N).collect() } else { Vec::new() };
        let outer: Vec<Role> = (0..s).map(S).chain((n_unit..n).map(N)).chain((m_unit..m).map(M)).collect();
        let (over_waves, outer) = outer.split_at(wave_bits.min(outer.len()));
        let rest: Vec<Role> = kept.into_iter().chain(outer.iter().copied()).collect();
        // Without matrix units a tile smaller than a wave leaves lanes idle.
        let pad = |mut lanes: Vec<Option<u8>>| {
            lanes.resize(lane_bits, None);
            lanes
        };
        let threads_of = |lanes: &[Role], f: &dyn Fn(Role) -> Option<u8>| {
            let mut out = pad(lanes.iter().map(|r| f(*r)).collect());
            out.extend(over_waves.iter().map(|r| f(*r)));
            out.resize(lane_bits + wave_bits, None);
            out
        };
        let k_threads = |r: Role| matches!(r, K(i) if matrix && (i == vector || i == vector + 1));
        let k_regs: Vec<Role> = (0..k).map(K).filter(|r| !k_threads(*r)).collect();
        // Registers in M or N that an operand holds of one instruction, beside those over lanes.
        let inner_a: Vec<Role> = if matrix && !arch.is_amd() { vec![M(3)] } else { Vec::new() };
        let regs_of = |inner: &[Role], f: &dyn Fn(Role) -> Option<u8>| -> Vec<u8> {
            k_regs.iter().chain(inner).chain(&rest).filter_map(|r| f(*r)).collect()
        };
        let c_all: Vec<u8> = c_regs.iter().chain(&rest).filter_map(|r| roles.c(*r)).collect();
        Ok(DotPlan {
            unit: match (matrix, arch) {
                (false, _) => Unit::Fma,
                (true, GpuArch::Sm90a) => Unit::Mma,
                (true, GpuArch::Gfx950) if vector == 3 => Unit::Mfma { k_bits: 3 },
                (true, _) => Unit::Mfma { k_bits: 2 },
            },
            a: Layout { regs: regs_of(&inner_a, &|r| roles.a(r)), threads: threads_of(&lanes_a, &|r| roles.a(r)) },
            b: Layout { regs: regs_of(&[], &|r| roles.b(r)), threads: threads_of(&lanes_b, &|r| roles.b(r)) },
            c: Layout { regs: c_all, threads: threads_of(&lanes_c, &|r| roles.c(r)) },
            m,
            n,
            k,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element of every operand is somewhere, and the k bits of a and b lie alike.
    #[test]
    fn operands_cover_their_tiles_and_agree_on_k() {
        for arch in GpuArch::ALL {
            for elem in [Elem::BF16, Elem::F16, Elem::F32] {
                for (acc, k, threads) in
                    [(&[16, 16][..], 16, 64), (&[32, 64], 64, 256), (&[4, 16, 32], 128, 256), (&[64, 128], 32, 128)]
                {
                    let p = DotPlan::new(arch, elem, acc, k, threads).unwrap();
                    let s = if acc.len() == 3 { log2(acc[0]) } else { 0 };
                    for (l, total) in [(&p.a, p.m + p.k + s), (&p.b, p.k + p.n + s), (&p.c, p.m + p.n + s)] {
                        let mut held: Vec<u8> =
                            l.regs.iter().copied().chain(l.threads.iter().flatten().copied()).collect();
                        held.sort_unstable();
                        assert_eq!(held, (0..total).collect::<Vec<_>>(), "{arch:?} {elem:?} {acc:?} {l:?}");
                    }
                    let k_of = |l: &Layout, first: u8| -> Vec<(usize, u8)> {
                        let at = l.threads.iter().enumerate().filter_map(|(i, b)| b.map(|b| (i, b)));
                        at.filter(|(_, b)| (first..first + p.k).contains(b)).map(|(i, b)| (i, b - first)).collect()
                    };
                    assert_eq!(k_of(&p.a, 0), k_of(&p.b, p.n));
                }
            }
        }
    }
}
