//! Chooses a layout for every tile of a program before code is emitted.
//!
//! Loads of large tiles, dots and reductions have layouts of their own; everything else takes the layout of what it is
//! combined with. A small tile that is broadcast against a large one, and the operands of a dot, are loaded in the layout
//! that their user wants, so that nothing has to move between threads. Constants, index vectors and broadcasts have no layout:
//! they are emitted anew wherever they are wanted.

use super::dot::DotPlan;
use super::layout::{Layout, bits, broadcast_bits, first_bit, log2};
use crate::target::GpuArch;
use crate::tile::{Address, Binary, Inst, Kernel, Stmt, TileType, V};
use std::collections::BTreeMap;

/// Layouts by value; `None` for values that are emitted where they are used.
pub struct Inferred<'k> {
    kernel: &'k Kernel,
    arch: GpuArch,
    thread_bits: usize,
    layouts: Vec<Option<Layout>>,
    /// The instruction that defines a value; loop values have none.
    definitions: Vec<Option<&'k Inst>>,
    /// Loads whose every user asks for a layout of its own.
    weak: Vec<bool>,
    /// Carried value, its initial value, its next value.
    loops: BTreeMap<V, (V, V)>,
    /// i64 scalars: log2 of the largest power of two that divides them.
    zeros: Vec<u32>,
    plans: BTreeMap<V, DotPlan>,
}

/// Layouts of all tiles of `kernel`.
///
/// # Errors
/// If a tile has a dim that is not a power of two, or a dot has no instruction.
pub fn infer(kernel: &Kernel, arch: GpuArch) -> Result<Inferred<'_>, String> {
    if let Some(t) = kernel.types.iter().find(|t| t.shape.iter().any(|d| !d.is_power_of_two())) {
        return Err(format!("a tile {t}; dims on GPUs are powers of two"));
    }
    let n = kernel.types.len();
    let mut out = Inferred {
        kernel,
        arch,
        thread_bits: log2(kernel.threads) as usize,
        layouts: vec![None; n],
        definitions: vec![None; n],
        weak: vec![false; n],
        loops: BTreeMap::new(),
        zeros: vec![0; n],
        plans: BTreeMap::new(),
    };
    out.define(&kernel.body);
    let mut strong = vec![false; n];
    let mut used = vec![false; n];
    users(&kernel.body, &mut |inst| out.use_of(inst, &mut strong, &mut used));
    for (v, weak) in out.weak.iter_mut().enumerate() {
        *weak = used[v] && !strong[v];
    }
    out.block(&kernel.body)?;
    Ok(out)
}

fn users<'k>(block: &'k [Stmt], f: &mut impl FnMut(&'k Inst)) {
    for stmt in block {
        f(&stmt.inst);
        if let Inst::For { body, .. } | Inst::If { body, .. } = &stmt.inst {
            users(body, f);
        }
    }
}

impl<'k> Inferred<'k> {
    fn define(&mut self, block: &'k [Stmt]) {
        for stmt in block {
            if let Some(v) = stmt.value {
                self.definitions[v.0 as usize] = Some(&stmt.inst);
                self.zeros[v.0 as usize] = self.zeros_of(&stmt.inst);
            }
            if let Inst::For { start, step, index, carried, init, next, body, results, .. } = &stmt.inst {
                self.zeros[index.0 as usize] = self.zeros[start.0 as usize].min((*step as u64).trailing_zeros());
                for (((c, i), n), r) in carried.iter().zip(init).zip(next).zip(results) {
                    self.loops.insert(*c, (*i, *n));
                    self.loops.insert(*r, (*c, *n));
                }
                self.define(body);
            }
            if let Inst::If { body, .. } = &stmt.inst {
                self.define(body);
            }
        }
    }

    fn zeros_of(&self, inst: &Inst) -> u32 {
        let of = |v: &V| self.zeros[v.0 as usize];
        match inst {
            Inst::Int(0) => 63,
            Inst::Int(n) => n.trailing_zeros(),
            Inst::Binary(Binary::Add | Binary::Sub | Binary::Or, a, b) => of(a).min(of(b)),
            Inst::Binary(Binary::Mul, a, b) => (of(a) + of(b)).min(63),
            Inst::Binary(Binary::And, a, b) => of(a).max(of(b)),
            Inst::Select(_, a, b) => of(a).min(of(b)),
            Inst::Binary(Binary::Min | Binary::Max, a, b) => of(a).min(of(b)),
            Inst::Broadcast(a) | Inst::Reshape(a) => of(a),
            _ => 0,
        }
    }

    /// Notes how a single instruction uses its operands: by broadcast and dot, or as they are.
    fn use_of(&self, inst: &Inst, strong: &mut [bool], used: &mut [bool]) {
        let mut mark = |v: &V, is_strong: bool| {
            let mut next = Some(*v);
            while let Some(at) = next {
                used[at.0 as usize] = true;
                strong[at.0 as usize] |= is_strong;
                next = self.definitions[at.0 as usize].and_then(|inst| self.passed(inst));
            }
        };
        match inst {
            Inst::Select(condition, ..) if self.passed(inst).is_some() => mark(condition, true),
            inst if self.passed(inst).is_some() => {}
            // What joins a product or a reduction is wanted as that lies.
            Inst::Binary(_, a, b) => {
                let (a_lies, b_lies) = (self.is_computed(*a), self.is_computed(*b));
                mark(a, a_lies || !b_lies);
                mark(b, b_lies || !a_lies);
            }
            Inst::Broadcast(a) => mark(a, false),
            Inst::Dot { a, b, .. } => [a, b].into_iter().for_each(|v| mark(v, false)),
            // Places are wanted as the tile is whose elements they place.
            Inst::Load { address: Address { gather: Some(gather), .. }, .. }
            | Inst::Arrive { address: Address { gather: Some(gather), .. }, .. } => mark(gather, false),
            // What a loop carries is wanted as the loop's body wants it.
            Inst::For { start, end, init, next, .. } => {
                [start, end].into_iter().for_each(|v| mark(v, true));
                init.iter().chain(next).for_each(|v| mark(v, false));
            }
            other => crate::llvm::lower::operands(other, &mut |v| mark(&v, true)),
        }
    }

    /// The one operand whose layout is the result's and may be had for the asking: such instructions pass the question what
    /// layout is wanted on to what they read.
    fn passed(&self, inst: &Inst) -> Option<V> {
        match inst {
            Inst::Convert(_, a) | Inst::Reshape(a) | Inst::Unary(_, a) => Some(*a),
            Inst::Binary(_, a, b) | Inst::Select(_, a, b) if self.is_splat(*b) => Some(*a),
            Inst::Binary(_, a, b) | Inst::Select(_, a, b) if self.is_splat(*a) => Some(*b),
            _ => None,
        }
    }

    /// True for what a product or a reduction leaves, which has a layout of its own.
    fn is_computed(&self, v: V) -> bool {
        match self.definitions[v.0 as usize] {
            Some(Inst::Reduce(..) | Inst::Dot { .. }) => true,
            Some(inst) => self.passed(inst).is_some_and(|a| self.is_computed(a)),
            None => false,
        }
    }

    /// True for a scalar and for a tile of one.
    fn is_splat(&self, v: V) -> bool {
        match self.definitions[v.0 as usize] {
            _ if bits(&self.ty(v).shape) == 0 => true,
            Some(Inst::Int(_) | Inst::Float(_)) => true,
            Some(Inst::Broadcast(a) | Inst::Reshape(a) | Inst::Convert(_, a)) => self.is_splat(*a),
            _ => false,
        }
    }

    pub fn ty(&self, v: V) -> &'k TileType {
        &self.kernel.types[v.0 as usize]
    }

    /// The layout that a value is emitted in; `None` if it is emitted where it is used.
    pub fn layout(&self, v: V) -> Option<&Layout> {
        self.layouts[v.0 as usize].as_ref()
    }

    /// Plan of the dot that defines `v`.
    pub fn plan(&self, v: V) -> Option<&DotPlan> {
        self.plans.get(&v)
    }

    /// log2 of the bytes that are known to divide an address's start.
    pub fn start_zeros(&self, address: &Address) -> u32 {
        let align = self.kernel.params[address.param.0 as usize].align.max(1).trailing_zeros();
        self.zeros[address.offset.0 as usize].min(align)
    }

    /// log2 of the bytes that are known to divide every element of an integer tile.
    pub fn divisor(&self, v: V) -> u32 {
        self.zeros[v.0 as usize]
    }

    /// True for values that cost nothing to make again.
    pub fn is_lazy(&self, v: V) -> bool {
        if self.ty(v).shape.iter().all(|d| *d == 1) {
            return false;
        }
        match self.definitions[v.0 as usize] {
            Some(Inst::Int(_) | Inst::Float(_) | Inst::Iota | Inst::Broadcast(_) | Inst::Reshape(_)) => true,
            Some(Inst::Unary(_, a) | Inst::Convert(_, a)) => self.is_cheap(*a),
            Some(Inst::Binary(_, a, b) | Inst::Compare(_, a, b)) => self.is_cheap(*a) && self.is_cheap(*b),
            Some(Inst::Fma(a, b, c) | Inst::Select(a, b, c)) => [a, b, c].into_iter().all(|v| self.is_cheap(*v)),
            _ => false,
        }
    }

    /// Lazy all the way down: a reshape or broadcast of a loaded tile is free itself, but what is computed from it is not.
    fn is_cheap(&self, v: V) -> bool {
        if bits(&self.ty(v).shape) == 0 {
            return true;
        }
        match self.definitions[v.0 as usize] {
            Some(Inst::Broadcast(a) | Inst::Reshape(a)) => self.is_cheap(*a),
            _ => self.is_lazy(v),
        }
    }

    /// The instruction that defines a value.
    pub fn definition(&self, v: V) -> Option<&'k Inst> {
        self.definitions[v.0 as usize]
    }

    /// The layout in which memory at these strides is best accessed.
    pub fn access(&self, address: &Address, ty: &TileType) -> Layout {
        let mut axes: Vec<usize> = (0..ty.shape.len()).filter(|a| ty.shape[*a] > 1).collect();
        // Repeated elements (stride 0) last; among equals the inner dim first.
        axes.sort_by_key(|a| (address.strides[*a] == 0, address.strides[*a].unsigned_abs(), usize::MAX - a));
        let mut order = Vec::new();
        for axis in &axes {
            let first = first_bit(&ty.shape, *axis);
            order.extend(first..first + log2(ty.shape[*axis]));
        }
        let widest = 16 / ty.elem.bytes();
        let run = axes.first().filter(|a| address.strides[**a] == ty.elem.bytes() as i64).map_or(1, |a| ty.shape[*a]);
        let vector = log2((widest as u32).min(run)) as usize;
        // Spread a small tile over all threads rather than give a few of them wide accesses.
        let spare = order.len().saturating_sub(self.thread_bits);
        Layout::blocked(&order, vector.min(spare), self.thread_bits)
    }

    /// The layout of what other ranks push: as one of their rows lies, those of all ranks in the same thread.
    fn arrival(&self, address: &Address, ty: &TileType) -> Layout {
        let ones = vec![1; ty.shape.len().saturating_sub(1)];
        let row = TileType { elem: ty.elem, shape: ones.into_iter().chain(ty.shape.last().copied()).collect() };
        let mut layout = self.access(address, &row);
        layout.regs.extend(bits(&row.shape)..bits(&ty.shape));
        layout
    }

    /// A layout for a value that nothing asks for: neighbours in one thread as far as all threads have work.
    pub fn plain(&self, ty: &TileType) -> Layout {
        let order: Vec<u8> = (0..bits(&ty.shape)).collect();
        let spare = order.len().saturating_sub(self.thread_bits);
        Layout::blocked(&order, spare.min(log2((16 / ty.elem.bytes()) as u32) as usize), self.thread_bits)
    }

    /// Asks for `v` in `layout`; the first to ask decides.
    fn demand(&mut self, v: V, layout: &Layout) {
        if self.layouts[v.0 as usize].is_some() || bits(&self.ty(v).shape) == 0 {
            return;
        }
        match self.definitions[v.0 as usize] {
            Some(Inst::Int(_) | Inst::Float(_) | Inst::Iota) => {}
            Some(Inst::Broadcast(a)) => {
                let sliced = layout.sliced(&self.ty(*a).shape, &self.ty(v).shape);
                self.demand(*a, &sliced);
            }
            Some(Inst::Reshape(a)) => self.demand(*a, layout),
            Some(Inst::Load { address, .. }) => {
                self.layouts[v.0 as usize] = Some(layout.clone());
                self.demand_places(address, self.ty(v), layout);
            }
            Some(
                inst @ (Inst::Unary(..)
                | Inst::Convert(..)
                | Inst::Binary(..)
                | Inst::Compare(..)
                | Inst::Fma(..)
                | Inst::Select(..)),
            ) => {
                if !self.is_lazy(v) {
                    self.layouts[v.0 as usize] = Some(layout.clone());
                }
                let mut operands = Vec::new();
                crate::llvm::lower::operands(inst, &mut |v| operands.push(v));
                operands.into_iter().for_each(|o| self.demand(o, layout));
            }
            Some(Inst::Bitcast(a)) => {
                self.layouts[v.0 as usize] = Some(layout.clone());
                let (from, to) = (self.ty(*a).elem.bytes(), self.ty(v).elem.bytes());
                if from > to && narrowed(layout, log2((from / to) as u32)).is_some() {
                    let own = layout.map(|b| b.checked_sub(log2((from / to) as u32)));
                    self.demand(*a, &own);
                }
            }
            Some(_) => self.layouts[v.0 as usize] = Some(layout.clone()),
            None => {
                self.layouts[v.0 as usize] = Some(layout.clone());
                if let Some((init, next)) = self.loops.get(&v).copied() {
                    self.demand(init, layout);
                    self.demand(next, layout);
                }
            }
        }
    }

    /// Asks for the places of a tile's elements as the tile lies.
    fn demand_places(&mut self, address: &Address, ty: &TileType, layout: &Layout) {
        if let Some(gather) = address.gather {
            let sliced = layout.sliced(&self.ty(gather).shape, &ty.shape);
            self.demand(gather, &sliced);
        }
    }

    /// The layout a value has or takes on.
    fn settled(&mut self, v: V) -> Layout {
        if bits(&self.ty(v).shape) == 0 {
            return Layout::uniform(self.thread_bits);
        }
        if let Some(l) = self.known(v) {
            return l;
        }
        let layout = match self.definitions[v.0 as usize] {
            Some(Inst::Load { address, .. }) => self.access(address, self.ty(v)),
            _ => self.plain(self.ty(v)),
        };
        self.demand(v, &layout);
        layout
    }

    /// The layout of a value, seen through reshapes.
    fn known(&self, v: V) -> Option<Layout> {
        match (&self.layouts[v.0 as usize], self.definitions[v.0 as usize]) {
            (Some(l), _) => Some(l.clone()),
            (None, Some(Inst::Reshape(a))) => self.known(*a),
            _ => None,
        }
    }

    fn block(&mut self, block: &'k [Stmt]) -> Result<(), String> {
        for stmt in block {
            self.inst(stmt)?;
        }
        Ok(())
    }

    fn inst(&mut self, stmt: &'k Stmt) -> Result<(), String> {
        match (&stmt.inst, stmt.value) {
            (Inst::Load { address, mask, .. }, Some(v)) => {
                if !self.weak[v.0 as usize] && bits(&self.ty(v).shape) > 0 && self.layouts[v.0 as usize].is_none() {
                    self.layouts[v.0 as usize] = Some(self.access(address, self.ty(v)));
                }
                if let Some(l) = self.known(v) {
                    if let Some(mask) = mask {
                        self.demand(*mask, &l);
                    }
                    self.demand_places(address, self.ty(v), &l);
                }
            }
            (Inst::Arrive { address, mask, .. }, Some(v)) => {
                let l = self.arrival(address, self.ty(v));
                if let Some(mask) = mask {
                    self.demand(*mask, &l);
                }
                self.demand_places(address, self.ty(v), &l);
                self.layouts[v.0 as usize] = Some(l);
            }
            (Inst::Store { address, value, mask } | Inst::Push { address, value, mask }, _) => {
                if bits(&self.ty(*value).shape) > 0 && self.known(*value).is_none() {
                    let l = self.access(address, self.ty(*value));
                    self.demand(*value, &l);
                }
                if let (Some(mask), Some(l)) = (mask, self.known(*value)) {
                    self.demand(*mask, &l);
                }
            }
            (Inst::Reduce(_, a, axis), Some(v)) => {
                let shape = &self.ty(*a).shape;
                let (first, size) = (first_bit(shape, *axis as usize), log2(shape[*axis as usize]));
                let lanes = log2(self.arch.wave()) as usize;
                let l = self.settled(*a).reduced(first, size, lanes).without(first, size);
                if bits(&self.ty(v).shape) > 0 {
                    self.layouts[v.0 as usize] = Some(l);
                }
            }
            (Inst::Dot { acc, a, b }, Some(v)) => {
                let shape = &self.ty(*acc).shape;
                let k = *self.ty(*a).shape.last().ok_or("a dot of scalars")?;
                let plan = DotPlan::new(self.arch, self.ty(*a).elem, shape, k, self.kernel.threads)?;
                self.demand(*a, &plan.a);
                self.demand(*b, &plan.b);
                self.demand(*acc, &plan.c);
                self.layouts[v.0 as usize] = Some(plan.c.clone());
                self.plans.insert(v, plan);
            }
            (Inst::For { init, carried, next, results, body, .. }, _) => {
                for (c, i) in carried.iter().zip(init) {
                    self.layouts[c.0 as usize] = self.known(*i);
                }
                self.block(body)?;
                for (c, n) in carried.iter().zip(next) {
                    let l = self.known(*c).or_else(|| self.known(*n));
                    let l = match l {
                        Some(l) => l,
                        None => self.settled(*n),
                    };
                    if bits(&self.ty(*c).shape) > 0 {
                        self.demand(*c, &l);
                    }
                }
                // What was inferred without knowing the carried layouts is inferred again.
                self.block(body)?;
                for ((c, i), r) in carried.iter().zip(init).zip(results) {
                    if let Some(l) = self.known(*c) {
                        self.demand(*i, &l);
                        self.layouts[r.0 as usize] = Some(l);
                    }
                }
            }
            (Inst::If { body, .. }, _) => self.block(body)?,
            (Inst::Bitcast(a), Some(v)) => {
                let (from, to) = (self.ty(*a).elem.bytes(), self.ty(v).elem.bytes());
                if let (Some(l), None) = (self.known(*a), &self.layouts[v.0 as usize]) {
                    self.layouts[v.0 as usize] = if from >= to {
                        Some(widened(&l, log2((from / to) as u32)))
                    } else {
                        let size = log2((to / from) as u32);
                        Some(
                            narrowed(&l, size)
                                .map_or_else(|| self.plain(self.ty(v)), |_| l.map(|b| b.checked_sub(size))),
                        )
                    };
                }
            }
            (Inst::Stack(parts), Some(v)) => {
                let part = self.ty(parts[0]);
                if parts.iter().any(|p| self.ty(*p) != part) || !parts.len().is_power_of_two() {
                    return Err("a stack of unequal parts".into());
                }
                let l = parts.iter().find_map(|p| self.known(*p)).unwrap_or_else(|| self.plain(part));
                parts.iter().for_each(|p| self.demand(*p, &l));
                let mut stacked = l;
                let first = bits(&part.shape);
                stacked.regs.extend(first..first + log2(parts.len() as u32));
                self.layouts[v.0 as usize] = Some(stacked);
            }
            (Inst::Row(a, _), Some(v)) => {
                let shape = &self.ty(*a).shape;
                let (first, size) = (first_bit(shape, 0), log2(shape[0]));
                let l = self.settled(*a).without(first, size);
                self.layouts[v.0 as usize] = Some(l);
            }
            (
                inst @ (Inst::Unary(..)
                | Inst::Binary(..)
                | Inst::Fma(..)
                | Inst::Compare(..)
                | Inst::Select(..)
                | Inst::Convert(..)),
                Some(v),
            ) => {
                if bits(&self.ty(v).shape) == 0 || self.is_lazy(v) {
                    return Ok(());
                }
                let mut operands = Vec::new();
                crate::llvm::lower::operands(inst, &mut |o| operands.push(o));
                let known = self.layouts[v.0 as usize].clone().or_else(|| operands.iter().find_map(|o| self.known(*o)));
                if let Some(l) = known {
                    self.layouts[v.0 as usize] = Some(l.clone());
                    operands.into_iter().for_each(|o| self.demand(o, &l));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// A layout of the narrower elements that a wide one splits into: the parts are neighbours in registers.
pub fn widened(l: &Layout, size: u8) -> Layout {
    let mut out = l.map(|b| Some(b + size));
    out.regs.splice(0..0, 0..size);
    out
}

/// `Some` if the lowest `size` element bits are the lowest register bits.
pub fn narrowed(l: &Layout, size: u8) -> Option<()> {
    (l.regs.len() >= size as usize && l.regs.iter().zip(0..size).all(|(r, b)| *r == b)).then_some(())
}

/// Element bit map of a broadcast from `from` to `to`.
pub fn broadcast_map(from: &TileType, to: &TileType) -> Vec<Option<u8>> {
    broadcast_bits(&from.shape, &to.shape)
}
