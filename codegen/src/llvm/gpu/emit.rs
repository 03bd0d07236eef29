//! Walks a tile program and emits the GPU kernel: every thread of a block holds its registers of every tile, control flow is
//! the same for all threads, and tiles change layout through shared memory.

use super::infer::{Inferred, broadcast_map, infer, narrowed, widened};
use super::layout::{Layout, bits, dropped, first_bit, log2};
use crate::llvm::LlvmError;
use crate::llvm::ops::{Ops, int_constant};
use crate::llvm::slot;
use crate::setup::Symbols;
use crate::target::GpuArch;
use crate::tile::{Conversion, Elem, Inst, Kernel, Stmt, TileType, Unary, V};
use indexmap::IndexMap;
use inkwell::context::Context;
use inkwell::module::{Linkage, Module};
use inkwell::types::BasicTypeEnum;
use inkwell::values::{BasicValue, BasicValueEnum, FunctionValue, GlobalValue, IntValue, PhiValue, PointerValue};
use inkwell::{AddressSpace, IntPredicate};
use std::ops::Deref;

/// A thread's elements of a tile, by register index.
pub type Regs<'c> = Vec<BasicValueEnum<'c>>;

/// Memory that all threads of a grid see.
pub const GLOBAL: u16 = 1;
/// Memory of a block.
pub const SHARED: u16 = 3;

pub(in crate::llvm) struct Emit<'c, 'k> {
    ops: Ops<'c, 'k>,
    pub kernel: &'k Kernel,
    pub arch: GpuArch,
    pub inferred: Inferred<'k>,
    pub params: Vec<PointerValue<'c>>,
    dims: Vec<IntValue<'c>>,
    program: Vec<IntValue<'c>>,
    /// i32 index in the block.
    pub thread: IntValue<'c>,
    pub thread_bits: usize,
    values: Vec<Option<Regs<'c>>>,
    /// Tiles in other layouts than their own, by scope: what is made in a loop's body ends with it.
    scopes: Vec<IndexMap<(V, Layout), Regs<'c>>>,
    shared: Option<GlobalValue<'c>>,
    shared_bytes: u32,
    /// Parameters stored to since the last barrier.
    pub dirty: Vec<bool>,
    /// Whether the launches before this one are known to be over.
    pub waited: bool,
    /// Whether programs wait for other ranks.
    pub ahead_of_ranks: bool,
    /// Loops and ifs around the current statement.
    depth: usize,
}

/// True if the instruction, or one inside it, reads or writes memory that other launches write.
fn touches_variables(kernel: &Kernel, inst: &Inst) -> bool {
    match inst {
        Inst::Load { address, .. } => !kernel.params[address.param.0 as usize].constant,
        Inst::Store { .. } | Inst::Push { .. } | Inst::Arrive { .. } | Inst::Signal { .. } | Inst::Await { .. } => true,
        Inst::For { body, .. } | Inst::If { body, .. } => body.iter().any(|s| touches_variables(kernel, &s.inst)),
        _ => false,
    }
}

impl<'c, 'k> Deref for Emit<'c, 'k> {
    type Target = Ops<'c, 'k>;
    fn deref(&self) -> &Ops<'c, 'k> {
        &self.ops
    }
}

/// Emits `kernel` into `function`, whose parameters are the kernel's and the dims block.
pub(in crate::llvm) fn emit<'c>(
    context: &'c Context,
    module: &Module<'c>,
    function: FunctionValue<'c>,
    kernel: &Kernel,
    arch: GpuArch,
    symbols: &Symbols,
) -> Result<(), LlvmError> {
    let inferred = infer(kernel, arch).map_err(|e| LlvmError::Tile(format!("{}: {e}", kernel.name)))?;
    let builder = context.create_builder();
    builder.position_at_end(context.append_basic_block(function, "entry"));
    let ops = Ops { context, module, builder, function };
    let argument = |i: usize| {
        let p = function.get_nth_param(i as u32).ok_or_else(|| LlvmError::Llvm("missing parameter".into()))?;
        Ok::<_, LlvmError>(p.into_pointer_value())
    };
    let params = (0..kernel.params.len()).map(argument).collect::<Result<Vec<_>, _>>()?;
    let dims_block = argument(kernel.params.len())?;
    let i32t = context.i32_type();
    let register = |name: &str| Ok::<_, LlvmError>(ops.intrinsic(name, &[], &[], i32t.into())?.into_int_value());
    let names = if arch.is_amd() {
        [
            "llvm.amdgcn.workitem.id.x",
            "llvm.amdgcn.workgroup.id.x",
            "llvm.amdgcn.workgroup.id.y",
            "llvm.amdgcn.workgroup.id.z",
        ]
    } else {
        [
            "llvm.nvvm.read.ptx.sreg.tid.x",
            "llvm.nvvm.read.ptx.sreg.ctaid.x",
            "llvm.nvvm.read.ptx.sreg.ctaid.y",
            "llvm.nvvm.read.ptx.sreg.ctaid.z",
        ]
    };
    let thread = register(names[0])?;
    let mut program = Vec::new();
    for (axis, grid) in kernel.grid.iter().enumerate() {
        let one = grid.symbol.is_none() && grid.mul == 1;
        let id = if one { i32t.const_zero() } else { register(names[1 + axis])? };
        program.push(ops.builder.build_int_z_extend(id, context.i64_type(), "")?);
    }
    let mut dims = Vec::new();
    for symbol in &kernel.symbols {
        let at = ops.byte_offset(dims_block, 8 * slot(symbols, symbol)?)?;
        let loaded = ops.builder.build_load(context.i64_type(), at, symbol)?;
        ops.invariant(loaded)?;
        dims.push(loaded.into_int_value());
    }
    let mut emit = Emit {
        ops,
        kernel,
        arch,
        inferred,
        params,
        dims,
        program,
        thread,
        thread_bits: log2(kernel.threads) as usize,
        values: vec![None; kernel.types.len()],
        scopes: vec![IndexMap::new()],
        shared: None,
        shared_bytes: 0,
        dirty: vec![false; kernel.params.len()],
        waited: arch.is_amd(),
        ahead_of_ranks: kernel.waits(),
        depth: 0,
    };
    if !emit.waited {
        // Programmatic dependent launch: the next kernel may start, up to its own wait, as soon as all blocks of this one have.
        emit.call("llvm.nvvm.griddepcontrol.launch.dependents", &[])?;
    }
    emit.leave_surplus()?;
    emit.block(&kernel.body)?;
    emit.builder.build_return(None)?;
    emit.place_shared()
}

impl<'c, 'k> Emit<'c, 'k> {
    /// A grid covers the variant's maximum: programs past this step's size end at once.
    fn leave_surplus(&mut self) -> Result<(), LlvmError> {
        for (axis, grid) in self.kernel.grid.iter().enumerate() {
            let Some(symbol) = grid.symbol else { continue };
            let constant = |n: u64| self.context.i64_type().const_int(n, false);
            // id < ceil(d * mul / div) where id * div < d * mul.
            let limit = self.builder.build_int_mul(self.dims[symbol as usize], constant(grid.mul), "")?;
            let first = self.builder.build_int_mul(self.program[axis], constant(grid.div), "")?;
            let inside = self.builder.build_int_compare(IntPredicate::ULT, first, limit, "")?;
            let stay = self.context.append_basic_block(self.function, "program");
            let leave = self.context.append_basic_block(self.function, "surplus");
            self.builder.build_conditional_branch(inside, stay, leave)?;
            self.builder.position_at_end(leave);
            if !self.arch.is_amd() {
                // A kernel of surplus programs alone must not be over before the launches ahead of it are.
                self.call("llvm.nvvm.griddepcontrol.wait", &[])?;
            }
            self.builder.build_return(None)?;
            self.builder.position_at_end(stay);
        }
        Ok(())
    }

    pub fn ty(&self, v: V) -> &'k TileType {
        &self.kernel.types[v.0 as usize]
    }

    pub fn i32(&self, n: u64) -> IntValue<'c> {
        self.context.i32_type().const_int(n, false)
    }

    /// The layout a value is emitted in.
    fn own_layout(&self, v: V) -> Layout {
        let ty = self.ty(v);
        if bits(&ty.shape) == 0 {
            return Layout::uniform(self.thread_bits);
        }
        match (self.inferred.layout(v), self.inferred.definition(v)) {
            (Some(l), _) => l.clone(),
            (None, Some(Inst::Load { address, .. })) => self.inferred.access(address, ty),
            (None, Some(Inst::Reshape(a))) => self.own_layout(*a),
            _ => self.inferred.plain(ty),
        }
    }

    /// The layout of a tile as its users find it.
    pub fn natural(&self, v: V) -> Layout {
        self.own_layout(v)
    }

    /// A tile in the layout asked for.
    pub fn get(&mut self, v: V, layout: &Layout) -> Result<Regs<'c>, LlvmError> {
        if bits(&self.ty(v).shape) == 0 {
            return match (&self.values[v.0 as usize], self.inferred.definition(v)) {
                (Some(r), _) => Ok(r.clone()),
                (None, Some(inst)) => self.instruction(inst, v, layout),
                (None, None) => Err(self.undefined(v)),
            };
        }
        if let Some(found) = self.scopes.iter().rev().find_map(|s| s.get(&(v, layout.clone()))) {
            return Ok(found.clone());
        }
        let regs = if self.inferred.is_lazy(v) {
            let inst = self.inferred.definition(v).ok_or_else(|| self.undefined(v))?;
            self.instruction(inst, v, layout)?
        } else {
            let own = self.own_layout(v);
            let regs = self.values[v.0 as usize].clone().ok_or_else(|| self.undefined(v))?;
            if own == *layout {
                return Ok(regs);
            } else {
                self.relayout(regs, self.ty(v).elem, bits(&self.ty(v).shape), &own, layout)?
            }
        };
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert((v, layout.clone()), regs.clone());
        }
        Ok(regs)
    }

    fn undefined(&self, v: V) -> LlvmError {
        LlvmError::Tile(format!("%{} has no value in {}", v.0, self.kernel.name))
    }

    /// A rank-0 integer.
    pub fn scalar(&mut self, v: V) -> Result<IntValue<'c>, LlvmError> {
        match self.get(v, &Layout::uniform(self.thread_bits))?.first() {
            Some(BasicValueEnum::IntValue(x)) => Ok(*x),
            _ => Err(LlvmError::Tile(format!("%{} is not an integer scalar in {}", v.0, self.kernel.name))),
        }
    }

    /// Emits the instruction that defines `v` in `layout`.
    fn instruction(&mut self, inst: &'k Inst, v: V, layout: &Layout) -> Result<Regs<'c>, LlvmError> {
        let ty = self.ty(v);
        let each =
            |e: &mut Self, a: V, f: &dyn Fn(&Self, BasicValueEnum<'c>) -> Result<BasicValueEnum<'c>, LlvmError>| {
                let a = e.get(a, layout)?;
                a.into_iter().map(|x| f(e, x)).collect::<Result<Regs<'c>, _>>()
            };
        let scalar = self.elem_type(ty.elem);
        match inst {
            Inst::Int(n) => Ok(vec![int_constant(scalar, *n); layout.count()]),
            Inst::Float(x) => Ok(vec![scalar.into_float_type().const_float(*x).into(); layout.count()]),
            Inst::Iota => self.iota(ty, layout),
            Inst::Unary(op @ (Unary::Exp2 | Unary::Reciprocal), a) => {
                let (name, overloaded) = match (op, self.arch.is_amd()) {
                    (Unary::Exp2, true) => ("llvm.amdgcn.exp2", true),
                    (Unary::Exp2, false) => ("llvm.nvvm.ex2.approx", true),
                    (_, true) => ("llvm.amdgcn.rcp", true),
                    (_, false) => ("llvm.nvvm.rcp.approx.ftz.f", false),
                };
                each(self, *a, &|e, x| {
                    let ty = x.get_type();
                    let types = if overloaded { &[ty][..] } else { &[] };
                    e.intrinsic(name, types, &[x], ty)
                })
            }
            Inst::Unary(op, a) => each(self, *a, &|e, x| e.unary(*op, x)),
            Inst::Convert(how, a) => {
                let from = self.ty(*a).elem;
                if self.has_narrow_pairs() && (*how, from, ty.elem) == (Conversion::Float, Elem::F32, Elem::BF16) {
                    let regs = self.get(*a, layout)?;
                    return self.narrow_pairs(&regs);
                }
                each(self, *a, &|e, x| e.convert(*how, x, from, ty.elem, 1))
            }
            Inst::Binary(op, a, b) => {
                let (a, b) = (self.get(*a, layout)?, self.get(*b, layout)?);
                a.into_iter().zip(b).map(|(a, b)| self.binary(*op, a, b)).collect()
            }
            Inst::Compare(op, a, b) => {
                let (a, b) = (self.get(*a, layout)?, self.get(*b, layout)?);
                a.into_iter().zip(b).map(|(a, b)| self.compare(*op, a, b)).collect()
            }
            Inst::Fma(a, b, c) => {
                let (a, b, c) = (self.get(*a, layout)?, self.get(*b, layout)?, self.get(*c, layout)?);
                a.into_iter().zip(b).zip(c).map(|((a, b), c)| self.fma(a, b, c)).collect()
            }
            Inst::Select(c, a, b) => {
                let (c, a, b) = (self.get(*c, layout)?, self.get(*a, layout)?, self.get(*b, layout)?);
                c.into_iter().zip(a).zip(b).map(|((c, a), b)| self.select(c, a, b)).collect()
            }
            Inst::Reshape(a) => self.get(*a, layout),
            Inst::Broadcast(a) => {
                let from = self.ty(*a);
                let map = broadcast_map(from, ty);
                let operand = self.get(*a, &layout.map(|b| map[b as usize]))?;
                Ok((0..layout.count()).map(|r| operand[layout.mapped_register(r, |b| map[b as usize])]).collect())
            }
            Inst::Bitcast(a) => self.bitcast(*a, ty, layout),
            Inst::Stack(parts) => {
                let first = bits(&self.ty(parts[0]).shape);
                let part = layout.map(|b| (b < first).then_some(b));
                if (first..bits(&ty.shape)).any(|b| !layout.in_registers(b)) {
                    let mut own = part.clone();
                    own.regs.extend(first..bits(&ty.shape));
                    let stacked = self.instruction(inst, v, &own)?;
                    return self.relayout(stacked, ty.elem, bits(&ty.shape), &own, layout);
                }
                let parts = parts.iter().map(|p| self.get(*p, &part)).collect::<Result<Vec<_>, _>>()?;
                Ok((0..layout.count())
                    .map(|r| {
                        let which = (layout.element(r) >> first) as usize;
                        parts[which][layout.mapped_register(r, |b| (b < first).then_some(b))]
                    })
                    .collect())
            }
            Inst::Row(a, i) => {
                let shape = &self.ty(*a).shape;
                let (first, size) = (first_bit(shape, 0), log2(shape[0]));
                let mut whole = layout.clone();
                whole.regs.extend(first..first + size);
                let rows = self.get(*a, &whole)?;
                let n = layout.count();
                Ok(rows[n * *i as usize..n * (*i as usize + 1)].to_vec())
            }
            Inst::Reduce(op, a, axis) => {
                let from = self.natural(*a);
                let shape = &self.ty(*a).shape;
                let (first, size) = (first_bit(shape, *axis as usize), log2(shape[*axis as usize]));
                let regs = self.get(*a, &from)?;
                let (regs, reduced) = self.reduce(*op, regs, ty.elem, &from, first, size)?;
                let own = reduced.map(|b| dropped(b, first, size));
                if own == *layout || bits(&ty.shape) == 0 {
                    return Ok(regs);
                }
                self.relayout(regs, ty.elem, bits(&ty.shape), &own, layout)
            }
            Inst::Load { address, mask, .. } => self.load(address, ty, *mask, layout),
            Inst::Arrive { address, mask, empty, waiting } => {
                self.arrive((address, *mask), ty, *empty, *waiting, layout)
            }
            Inst::Dot { acc, a, b } => self.dot(v, *acc, *a, *b),
            Inst::ProgramId(axis) => Ok(vec![self.program[*axis as usize].into()]),
            Inst::Dim(symbol) => Ok(vec![self.dims[*symbol as usize].into()]),
            Inst::DotBf16 { .. }
            | Inst::DotI8 { .. }
            | Inst::Store { .. }
            | Inst::Push { .. }
            | Inst::Signal { .. }
            | Inst::Await { .. }
            | Inst::For { .. }
            | Inst::If { .. } => Err(LlvmError::Tile(format!("{}: {inst:?} on a GPU", self.kernel.name))),
        }
    }

    /// Two f32 are made two bf16 by one instruction.
    fn has_narrow_pairs(&self) -> bool {
        matches!(self.arch, GpuArch::Sm90a | GpuArch::Gfx950)
    }

    /// f32 as bf16, in pairs: one conversion of two costs what one of one does, and few are begun a cycle.
    fn narrow_pairs(&self, regs: &[BasicValueEnum<'c>]) -> Result<Regs<'c>, LlvmError> {
        let mut out = Vec::with_capacity(regs.len());
        for pair in regs.chunks(2) {
            let (narrow, bits) = (self.context.bf16_type(), self.context.i16_type());
            if let [x] = pair {
                let narrow = self.builder.build_float_trunc(x.into_float_value(), narrow, "")?;
                out.push(self.builder.build_bit_cast(narrow, bits, "")?);
                continue;
            }
            let wide = self.gather_lanes(pair)?.into_vector_value();
            let narrow = self.builder.build_float_trunc(wide, narrow.vec_type(2), "")?;
            let words = self.builder.build_bit_cast(narrow, bits.vec_type(2), "")?;
            out.extend([self.extract(words, 0)?, self.extract(words, 1)?]);
        }
        Ok(out)
    }

    fn iota(&mut self, ty: &TileType, layout: &Layout) -> Result<Regs<'c>, LlvmError> {
        let last = log2(ty.shape.last().copied().unwrap_or(1));
        let strides = |b: u8| if b < last { 1i64 << b } else { 0 };
        let own = self.thread_part(layout, &strides)?;
        let kind = self.elem_type(ty.elem).into_int_type();
        let own = self.builder.build_int_z_extend_or_bit_cast(own, kind, "")?;
        (0..layout.count())
            .map(|r| {
                let n = layout.element(r) & ((1 << last) - 1);
                Ok(self.builder.build_or(own, kind.const_int(n, false), "")?.into())
            })
            .collect()
    }

    /// Sum of the strides of the element bits that the thread index holds, as i32. Runs of bits whose strides double are one
    /// shift, mask and multiply.
    pub fn thread_part(&self, layout: &Layout, stride: &dyn Fn(u8) -> i64) -> Result<IntValue<'c>, LlvmError> {
        let strides: Vec<i64> = layout.threads.iter().map(|b| b.map_or(0, stride)).collect();
        let mut sum = self.i32(0);
        let mut at = 0;
        while at < strides.len() {
            let mut end = at + 1;
            while end < strides.len() && strides[at] != 0 && strides[end] == strides[end - 1] * 2 {
                end += 1;
            }
            if strides[at] != 0 {
                let scale = i32::try_from(strides[at]).map_err(|_| {
                    LlvmError::Tile(format!("{}: a stride of {} bytes in a tile", self.kernel.name, strides[at]))
                })?;
                let mut part = self.builder.build_right_shift(self.thread, self.i32(at as u64), false, "")?;
                if end < self.thread_bits {
                    part = self.builder.build_and(part, self.i32((1 << (end - at)) - 1), "")?;
                }
                let part =
                    self.builder.build_int_mul(part, self.context.i32_type().const_int(scale as u64, true), "")?;
                sum = self.builder.build_int_add(sum, part, "")?;
            }
            at = end;
        }
        Ok(sum)
    }

    fn bitcast(&mut self, a: V, ty: &TileType, layout: &Layout) -> Result<Regs<'c>, LlvmError> {
        let from = self.ty(a).clone();
        let (from_bytes, to_bytes) = (from.elem.bytes(), ty.elem.bytes());
        let to = self.elem_type(ty.elem);
        if from_bytes == to_bytes {
            let regs = self.get(a, layout)?;
            return regs.into_iter().map(|x| Ok(self.builder.build_bit_cast(x, to, "")?)).collect();
        }
        if from_bytes > to_bytes {
            let size = log2((from_bytes / to_bytes) as u32);
            if narrowed(layout, size).is_none() {
                let own = widened(&layout.map(|b| b.checked_sub(size)), size);
                let regs = self.bitcast(a, ty, &own)?;
                return self.relayout(regs, ty.elem, bits(&ty.shape), &own, layout);
            }
            let wide = self.get(a, &layout.map(|b| b.checked_sub(size)))?;
            let parts = 1u32 << size;
            let mut out = Vec::new();
            for x in wide {
                let v = self.builder.build_bit_cast(x, self.row_type(ty.elem, parts), "")?;
                for i in 0..parts {
                    out.push(self.extract(v, i)?);
                }
            }
            return Ok(out);
        }
        let size = log2((to_bytes / from_bytes) as u32);
        let parts = self.get(a, &widened(layout, size))?;
        parts.chunks(1 << size).map(|p| Ok(self.builder.build_bit_cast(self.gather_lanes(p)?, to, "")?)).collect()
    }

    /// The same tile in another layout.
    pub fn relayout(
        &mut self,
        regs: Regs<'c>,
        elem: Elem,
        tile_bits: u8,
        from: &Layout,
        to: &Layout,
    ) -> Result<Regs<'c>, LlvmError> {
        if from == to {
            return Ok(regs);
        }
        if from.threads == to.threads {
            return Ok((0..to.count()).map(|r| regs[from.register(to.element(r))]).collect());
        }
        let (kind, bytes) = match elem {
            Elem::I1 => (self.context.i8_type().into(), 1),
            other => (self.elem_type(other), other.bytes()),
        };
        let size = bytes << tile_bits;
        if size > u64::from(self.arch.shared_bytes())
            && let Some(bit) = from.regs.iter().copied().find(|b| to.in_registers(*b))
        {
            return self.relayout_halves(&regs, elem, tile_bits, from, to, bit);
        }
        let base = self.shared_base(size)?;
        self.barrier()?;
        let stride = |b: u8| (bytes as i64) << b;
        let own = self.thread_part(from, &stride)?;
        let run = from.run(bytes, stride);
        self.replicas(from, |e| {
            for group in from.groups(&run) {
                let mut parts = Vec::new();
                for x in group.iter().map(|r| regs[*r]) {
                    parts.push(if elem == Elem::I1 {
                        e.builder.build_int_z_extend(x.into_int_value(), e.context.i8_type(), "")?.into()
                    } else {
                        x
                    });
                }
                let at = e.shared_at(base, own, (from.element(group[0]) * bytes) as i64)?;
                let store = e.builder.build_store(at, e.gather_lanes(&parts)?)?;
                store.set_alignment((bytes << run.len()) as u32).map_err(|e| LlvmError::Llvm(e.to_string()))?;
            }
            Ok(())
        })?;
        self.barrier()?;
        let own = self.thread_part(to, &stride)?;
        let run = to.run(bytes, stride);
        let width = 1u32 << run.len();
        let row: BasicTypeEnum<'c> = if width == 1 { kind } else { crate::llvm::ops::vector_of(kind, width).into() };
        let mut out: Regs<'c> = vec![self.elem_type(elem).const_zero(); to.count()];
        for group in to.groups(&run) {
            let at = self.shared_at(base, own, (to.element(group[0]) * bytes) as i64)?;
            let loaded = self.builder.build_load(row, at, "")?;
            if let Some(i) = loaded.as_instruction_value() {
                i.set_alignment(bytes as u32 * width).map_err(|e| LlvmError::Llvm(e.to_string()))?;
            }
            for (lane, r) in group.iter().enumerate() {
                let x = self.extract(loaded, lane as u32)?;
                out[*r] = if elem == Elem::I1 {
                    self.builder.build_int_truncate(x.into_int_value(), self.context.bool_type(), "")?.into()
                } else {
                    x
                };
            }
        }
        Ok(out)
    }

    /// Exchanges a tile that is too large for shared memory in two halves, by an element bit that registers hold before and after.
    fn relayout_halves(
        &mut self,
        regs: &[BasicValueEnum<'c>],
        elem: Elem,
        tile_bits: u8,
        from: &Layout,
        to: &Layout,
        bit: u8,
    ) -> Result<Regs<'c>, LlvmError> {
        let half = |l: &Layout| l.map(|b| dropped(b, bit, 1));
        let mut out: Regs<'c> = vec![self.elem_type(elem).const_zero(); to.count()];
        for value in 0..2u64 {
            let of = |l: &Layout, r: usize| l.element(r) >> bit & 1 == value;
            let part: Regs<'c> = (0..from.count()).filter(|r| of(from, *r)).map(|r| regs[r]).collect();
            let moved = self.relayout(part, elem, tile_bits - 1, &half(from), &half(to))?;
            for (r, x) in (0..to.count()).filter(|r| of(to, *r)).zip(moved) {
                out[r] = x;
            }
        }
        Ok(out)
    }

    /// Runs `body` in one of the threads that hold the same elements, where several do.
    pub fn replicas(
        &mut self,
        layout: &Layout,
        body: impl FnOnce(&mut Self) -> Result<(), LlvmError>,
    ) -> Result<(), LlvmError> {
        let spare: u64 = layout.threads.iter().enumerate().filter(|(_, b)| b.is_none()).map(|(i, _)| 1 << i).sum();
        if spare == 0 {
            return body(self);
        }
        let own = self.builder.build_and(self.thread, self.i32(spare), "")?;
        let first = self.builder.build_int_compare(IntPredicate::EQ, own, self.i32(0), "")?;
        self.when(first, body)
    }

    /// The block's scratch memory, at least `bytes` long.
    pub fn shared_base(&mut self, bytes: u64) -> Result<PointerValue<'c>, LlvmError> {
        if bytes > u64::from(self.arch.shared_bytes()) {
            return Err(LlvmError::Tile(format!(
                "{}: {bytes} bytes of shared memory; {} is accepted on {}",
                self.kernel.name,
                self.arch.shared_bytes(),
                self.arch.cpu()
            )));
        }
        self.shared_bytes = self.shared_bytes.max(bytes as u32);
        let global = match self.shared {
            Some(g) => g,
            None => {
                // The size is known when the program ends: until then the largest stands for it.
                let ty = self.context.i8_type().array_type(self.arch.shared_bytes());
                let g = self.module.add_global(
                    ty,
                    Some(AddressSpace::from(SHARED)),
                    &format!("{}_scratch", self.kernel.name),
                );
                g.set_linkage(Linkage::Internal);
                g.set_initializer(&ty.get_undef());
                g.set_alignment(16);
                self.shared = Some(g);
                g
            }
        };
        Ok(global.as_pointer_value())
    }

    fn place_shared(&mut self) -> Result<(), LlvmError> {
        let Some(large) = self.shared else { return Ok(()) };
        let ty = self.context.i8_type().array_type(self.shared_bytes.next_multiple_of(16));
        let exact =
            self.module.add_global(ty, Some(AddressSpace::from(SHARED)), &format!("{}_shared", self.kernel.name));
        exact.set_linkage(Linkage::Internal);
        exact.set_initializer(&ty.get_undef());
        exact.set_alignment(16);
        large.as_pointer_value().replace_all_uses_with(exact.as_pointer_value());
        // SAFETY: every use of the global was replaced in the line above.
        unsafe { large.delete() };
        Ok(())
    }

    /// Address of a byte of scratch: base, the thread's part, a constant.
    pub fn shared_at(
        &self,
        base: PointerValue<'c>,
        own: IntValue<'c>,
        bytes: i64,
    ) -> Result<PointerValue<'c>, LlvmError> {
        let at = self.dynamic_offset(base, own)?;
        let constant = self.context.i32_type().const_int(bytes as u64, true);
        self.dynamic_offset(at, constant)
    }

    /// Waits for all threads of the block; their shared and global writes are then seen by all of them.
    pub fn barrier(&mut self) -> Result<(), LlvmError> {
        self.dirty.iter_mut().for_each(|d| *d = false);
        if !self.arch.is_amd() {
            let all = self.i32(0).into();
            return self.call("llvm.nvvm.barrier.cta.sync.aligned.all", &[all]);
        }
        if self.thread_bits > 6 {
            self.fence(inkwell::AtomicOrdering::Release)?;
            self.call("llvm.amdgcn.s.barrier", &[])?;
            self.fence(inkwell::AtomicOrdering::Acquire)
        } else {
            // One wave runs in lock step: its own accesses only have to stay in order.
            self.fence(inkwell::AtomicOrdering::AcquireRelease)
        }
    }

    fn fence(&self, ordering: inkwell::AtomicOrdering) -> Result<(), LlvmError> {
        super::machine::workgroup_fence(&self.ops, ordering)
    }

    /// Calls an intrinsic that gives nothing.
    pub fn call(&self, name: &str, args: &[BasicValueEnum<'c>]) -> Result<(), LlvmError> {
        let missing = || LlvmError::Intrinsic(name.to_owned());
        let function = inkwell::intrinsics::Intrinsic::find(name)
            .and_then(|i| i.get_declaration(self.module, &[]))
            .ok_or_else(missing)?;
        let args: Vec<_> = args.iter().map(|a| (*a).into()).collect();
        self.builder.build_call(function, &args, "")?;
        Ok(())
    }

    /// Weights may be read before the launches ahead are over, everything else only afterwards. Said at the top level of the
    /// program, so that every block says it once.
    fn wait_for_launches(&mut self, stmt: &Stmt) -> Result<(), LlvmError> {
        if !self.waited && self.depth == 0 && touches_variables(self.kernel, &stmt.inst) {
            self.waited = true;
            self.call("llvm.nvvm.griddepcontrol.wait", &[])?;
        }
        Ok(())
    }

    fn block(&mut self, block: &'k [Stmt]) -> Result<(), LlvmError> {
        for stmt in block {
            self.wait_for_launches(stmt)?;
            match (&stmt.inst, stmt.value) {
                (Inst::For { start, end, step, init, index, carried, body, next, results }, _) => {
                    let (start, end) = (self.scalar(*start)?, self.scalar(*end)?);
                    let layouts: Vec<Layout> = carried.iter().map(|c| self.own_layout(*c)).collect();
                    let mut flat = Vec::new();
                    for (v, l) in init.iter().zip(&layouts) {
                        flat.extend(self.get(*v, l)?);
                    }
                    let out = self.counted(start, end, *step, &flat, |e, i, values| {
                        e.values[index.0 as usize] = Some(vec![i.into()]);
                        e.scatter(carried, &layouts, values);
                        e.nested(body)?;
                        let mut flat = Vec::new();
                        for (v, l) in next.iter().zip(&layouts) {
                            flat.extend(e.get(*v, l)?);
                        }
                        Ok(flat)
                    })?;
                    self.scatter(results, &layouts, &out);
                }
                (Inst::If { condition, body }, _) => {
                    let condition = self.scalar(*condition)?;
                    self.when(condition, |e| e.nested(body))?;
                }
                (Inst::Store { address, value, mask }, _) => self.store(address, *value, *mask)?,
                (Inst::Push { address, value, mask }, _) => self.push(address, *value, *mask)?,
                (Inst::Signal { address, value, release }, _) => self.signal(address, *value, *release)?,
                (Inst::Await { address, value, waiting }, _) => self.wait_for(address, *value, *waiting)?,
                (_, Some(v)) if self.inferred.is_lazy(v) => {}
                (inst, Some(v)) => {
                    let layout = self.own_layout(v);
                    let regs = self.instruction(inst, v, &layout)?;
                    self.values[v.0 as usize] = Some(regs);
                }
                (inst, None) => return Err(LlvmError::Tile(format!("{inst:?} without a value"))),
            }
        }
        Ok(())
    }

    fn nested(&mut self, body: &'k [Stmt]) -> Result<(), LlvmError> {
        self.depth += 1;
        let result = self.block(body);
        self.depth -= 1;
        result
    }

    fn scatter(&mut self, values: &[V], layouts: &[Layout], flat: &[BasicValueEnum<'c>]) {
        let mut at = 0;
        for (v, l) in values.iter().zip(layouts) {
            self.values[v.0 as usize] = Some(flat[at..at + l.count()].to_vec());
            at += l.count();
        }
    }

    /// A loop `for i in start..end step` with carried registers.
    fn counted(
        &mut self,
        start: IntValue<'c>,
        end: IntValue<'c>,
        step: i64,
        init: &[BasicValueEnum<'c>],
        body: impl FnOnce(&mut Self, IntValue<'c>, &[BasicValueEnum<'c>]) -> Result<Regs<'c>, LlvmError>,
    ) -> Result<Regs<'c>, LlvmError> {
        let here = self.current_block()?;
        let head = self.context.append_basic_block(self.function, "head");
        let inside = self.context.append_basic_block(self.function, "body");
        let after = self.context.append_basic_block(self.function, "after");
        self.builder.build_unconditional_branch(head)?;
        self.builder.position_at_end(head);
        let index = self.builder.build_phi(self.context.i64_type(), "i")?;
        index.add_incoming(&[(&start, here)]);
        let phis = init
            .iter()
            .map(|v| self.builder.build_phi(v.get_type(), "carried"))
            .collect::<Result<Vec<PhiValue<'c>>, _>>()?;
        for (phi, v) in phis.iter().zip(init) {
            phi.add_incoming(&[(v, here)]);
        }
        let i = index.as_basic_value().into_int_value();
        let more = self.builder.build_int_compare(IntPredicate::SLT, i, end, "")?;
        self.builder.build_conditional_branch(more, inside, after)?;
        self.builder.position_at_end(inside);
        let carried: Regs<'c> = phis.iter().map(|p| p.as_basic_value()).collect();
        // A store late in the body is seen by loads early in the next trip.
        let written = self.dirty.clone();
        self.scopes.push(IndexMap::new());
        let next = body(self, i, &carried)?;
        self.scopes.pop();
        if self.dirty.iter().any(|d| *d) {
            self.barrier()?;
        }
        self.dirty = written;
        let following = self.builder.build_int_add(i, self.context.i64_type().const_int(step as u64, true), "")?;
        let last = self.current_block()?;
        self.builder.build_unconditional_branch(head)?;
        index.add_incoming(&[(&following, last)]);
        for (phi, v) in phis.iter().zip(&next) {
            phi.add_incoming(&[(v as &dyn BasicValue<'c>, last)]);
        }
        self.builder.position_at_end(after);
        Ok(carried)
    }

    /// Emits `body` under a condition; what it makes is gone afterwards.
    pub fn when(
        &mut self,
        condition: IntValue<'c>,
        body: impl FnOnce(&mut Self) -> Result<(), LlvmError>,
    ) -> Result<(), LlvmError> {
        let inside = self.context.append_basic_block(self.function, "then");
        let after = self.context.append_basic_block(self.function, "end");
        self.builder.build_conditional_branch(condition, inside, after)?;
        self.builder.position_at_end(inside);
        self.scopes.push(IndexMap::new());
        body(self)?;
        self.scopes.pop();
        self.builder.build_unconditional_branch(after)?;
        self.builder.position_at_end(after);
        Ok(())
    }
}
