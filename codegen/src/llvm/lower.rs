//! Walks a tile program and emits the host function: program loop, structured control flow, value storage.
//!
//! A tile of shape [.., N] becomes one LLVM vector of N lanes per row (a plain scalar where N is 1); LLVM's type
//! legalisation splits long rows into machine vectors.

use super::LlvmError;
use super::host::HostTarget;
use super::ops::Ops;
use super::slot;
use crate::setup::Symbols;
use crate::tile::{Inst, Kernel, Stmt, TileType, V};
use inkwell::IntPredicate;
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::values::{BasicValue, BasicValueEnum, IntValue, PhiValue, PointerValue};
use std::ops::Deref;

/// The LLVM values of one tile, a value per row.
pub(super) type Rows<'c> = Vec<BasicValueEnum<'c>>;

pub(super) struct Lower<'c, 'k> {
    ops: Ops<'c, 'k>,
    pub kernel: &'k Kernel,
    pub target: &'k HostTarget,
    pub params: Vec<PointerValue<'c>>,
    dims: Vec<IntValue<'c>>,
    program: Vec<IntValue<'c>>,
    rows: Vec<Option<Rows<'c>>>,
    /// Loads read only by dots: their elements are fetched at the dot, as broadcasts from memory.
    pub deferred: Vec<Option<(PointerValue<'c>, Vec<i64>)>>,
    only_in_dots: Vec<bool>,
}

impl<'c, 'k> Deref for Lower<'c, 'k> {
    type Target = Ops<'c, 'k>;
    fn deref(&self) -> &Ops<'c, 'k> {
        &self.ops
    }
}

/// Marks values whose every use is the left side of a dot.
fn find_only_in_dots(kernel: &Kernel) -> Vec<bool> {
    fn visit(block: &[Stmt], other: &mut Vec<bool>, dots: &mut Vec<bool>) {
        for stmt in block {
            match &stmt.inst {
                Inst::Dot { acc, a, b } | Inst::DotBf16 { acc, a, b } => {
                    dots[a.0 as usize] = true;
                    other[acc.0 as usize] = true;
                    other[b.0 as usize] = true;
                }
                Inst::DotI8 { a, b, .. } => {
                    dots[a.0 as usize] = true;
                    other[b.0 as usize] = true;
                }
                inst => operands(inst, &mut |v| other[v.0 as usize] = true),
            }
            if let Inst::For { body, .. } | Inst::If { body, .. } = &stmt.inst {
                visit(body, other, dots);
            }
        }
    }
    let mut other = vec![false; kernel.types.len()];
    let mut dots = other.clone();
    visit(&kernel.body, &mut other, &mut dots);
    dots.iter().zip(&other).map(|(d, o)| *d && !*o).collect()
}

/// Calls `f` on each operand (loop bodies excluded).
pub(super) fn operands(inst: &Inst, f: &mut dyn FnMut(V)) {
    match inst {
        Inst::Int(_) | Inst::Float(_) | Inst::ProgramId(_) | Inst::Dim(_) | Inst::Iota => {}
        Inst::Unary(_, a)
        | Inst::Convert(_, a)
        | Inst::Bitcast(a)
        | Inst::Broadcast(a)
        | Inst::Reshape(a)
        | Inst::Reduce(_, a, _)
        | Inst::Row(a, _) => f(*a),
        Inst::Binary(_, a, b) | Inst::Compare(_, a, b) | Inst::DotI8 { a, b, .. } => {
            [a, b].into_iter().for_each(|v| f(*v))
        }
        Inst::Fma(a, b, c)
        | Inst::Select(a, b, c)
        | Inst::Dot { acc: a, a: b, b: c }
        | Inst::DotBf16 { acc: a, a: b, b: c } => {
            [a, b, c].into_iter().for_each(|v| f(*v));
        }
        Inst::Stack(parts) => parts.iter().for_each(|v| f(*v)),
        Inst::Load { address, mask } | Inst::Arrive { address, mask, .. } => {
            f(address.offset);
            address.gather.iter().chain(mask).for_each(|v| f(*v));
        }
        Inst::Store { address, value, mask } | Inst::Push { address, value, mask } => {
            f(address.offset);
            f(*value);
            address.gather.iter().chain(mask).for_each(|v| f(*v));
        }
        Inst::Signal { address, value, .. } | Inst::Await { address, value, .. } => {
            f(address.offset);
            f(*value);
        }
        Inst::For { start, end, init, next, .. } => {
            f(*start);
            f(*end);
            init.iter().chain(next).for_each(|v| f(*v));
        }
        Inst::If { condition, .. } => f(*condition),
    }
}

/// Emits `kernel` as `void name(ptr args, ptr dims, i64 begin, i64 end)` into `module`.
pub(super) fn lower<'c>(
    context: &'c Context,
    module: &Module<'c>,
    kernel: &Kernel,
    target: &HostTarget,
    symbols: &Symbols,
) -> Result<(), LlvmError> {
    let (ptr, i64t) = (context.ptr_type(Default::default()), context.i64_type());
    let signature = context.void_type().fn_type(&[ptr.into(), ptr.into(), i64t.into(), i64t.into()], false);
    let function = module.add_function(&kernel.name, signature, None);
    target.mark(context, function);
    let builder = context.create_builder();
    builder.position_at_end(context.append_basic_block(function, "entry"));
    let argument = |i: u32| function.get_nth_param(i).ok_or_else(|| LlvmError::Llvm("missing parameter".into()));
    let (args, dims_ptr) = (argument(0)?.into_pointer_value(), argument(1)?.into_pointer_value());
    let (begin, end) = (argument(2)?.into_int_value(), argument(3)?.into_int_value());
    let mut lower = Lower {
        ops: Ops { context, module, builder, function },
        kernel,
        target,
        params: Vec::new(),
        dims: Vec::new(),
        program: Vec::new(),
        rows: vec![None; kernel.types.len()],
        deferred: vec![None; kernel.types.len()],
        only_in_dots: find_only_in_dots(kernel),
    };
    for i in 0..kernel.params.len() {
        let at = lower.byte_offset(args, 8 * i as i64)?;
        let loaded = lower.builder.build_load(ptr, at, "arg")?;
        lower.invariant(loaded)?;
        lower.params.push(loaded.into_pointer_value());
    }
    for i in 0..kernel.symbols.len() {
        // All kernels share one dims block, in the manifest's order of symbols.
        let at = lower.byte_offset(dims_ptr, 8 * slot(symbols, &kernel.symbols[i])?)?;
        let loaded = lower.builder.build_load(i64t, at, "dim")?;
        lower.invariant(loaded)?;
        lower.dims.push(loaded.into_int_value());
    }
    lower.programs(begin, end)?;
    Ok(())
}

impl<'c> Lower<'c, '_> {
    /// The loop over linear program indices and their split into grid coordinates.
    fn programs(&mut self, begin: IntValue<'c>, end: IntValue<'c>) -> Result<(), LlvmError> {
        let mut sizes = Vec::new();
        for axis in &self.kernel.grid {
            let constant = |n: u64| self.context.i64_type().const_int(n, false);
            sizes.push(match axis.symbol {
                None => constant(axis.mul),
                Some(s) => {
                    let n = self.builder.build_int_mul(self.dims[s as usize], constant(axis.mul), "")?;
                    let n = self.builder.build_int_add(n, constant(axis.div - 1), "")?;
                    self.builder.build_int_unsigned_div(n, constant(axis.div), "")?
                }
            });
        }
        let zero = self.context.i64_type().const_zero();
        self.counted(begin, end, 1, &[], |lower, index, _| {
            let x = lower.builder.build_int_unsigned_rem(index, sizes[0], "x")?;
            let rest = lower.builder.build_int_unsigned_div(index, sizes[0], "")?;
            let y = lower.builder.build_int_unsigned_rem(rest, sizes[1], "y")?;
            let z = lower.builder.build_int_unsigned_div(rest, sizes[1], "z")?;
            let only_x = lower.kernel.grid[1..].iter().all(|a| a.symbol.is_none() && a.mul == 1);
            lower.program = if only_x { vec![index, zero, zero] } else { vec![x, y, z] };
            lower.block(&lower.kernel.body)?;
            Ok(Vec::new())
        })?;
        self.builder.build_return(None)?;
        Ok(())
    }

    pub fn ty(&self, v: V) -> &TileType {
        &self.kernel.types[v.0 as usize]
    }

    pub fn get(&self, v: V) -> Result<&Rows<'c>, LlvmError> {
        self.rows[v.0 as usize]
            .as_ref()
            .ok_or_else(|| LlvmError::Tile(format!("%{} has no value in {}", v.0, self.kernel.name)))
    }

    pub fn scalar(&self, v: V) -> Result<IntValue<'c>, LlvmError> {
        match self.get(v)?.first() {
            Some(BasicValueEnum::IntValue(x)) => Ok(*x),
            _ => Err(LlvmError::Tile(format!("%{} is not an integer scalar in {}", v.0, self.kernel.name))),
        }
    }

    fn block(&mut self, block: &[Stmt]) -> Result<(), LlvmError> {
        for stmt in block {
            match (&stmt.inst, stmt.value) {
                (Inst::Load { address, mask: None }, Some(v))
                    if self.only_in_dots[v.0 as usize] && address.gather.is_none() =>
                {
                    let base =
                        self.dynamic_offset(self.params[address.param.0 as usize], self.scalar(address.offset)?)?;
                    self.deferred[v.0 as usize] = Some((base, address.strides.clone()));
                }
                (Inst::For { start, end, step, init, index, carried, body, next, results }, _) => {
                    let (start, end) = (self.scalar(*start)?, self.scalar(*end)?);
                    let mut flat = Vec::new();
                    for v in init {
                        flat.extend(self.get(*v)?.iter().copied());
                    }
                    let out = self.counted(start, end, *step, &flat, |lower, i, values| {
                        lower.rows[index.0 as usize] = Some(vec![i.into()]);
                        lower.scatter(carried, values);
                        lower.block(body)?;
                        let mut flat = Vec::new();
                        for v in next {
                            flat.extend(lower.get(*v)?.iter().copied());
                        }
                        Ok(flat)
                    })?;
                    self.scatter(results, &out);
                }
                (Inst::If { condition, body }, _) => {
                    let condition = self.scalar(*condition)?;
                    self.when(condition, |lower| lower.block(body))?;
                }
                (Inst::Store { address, value, mask }, _) => self.store(address, *value, *mask)?,
                (Inst::Push { address, value, mask }, _) => self.push(address, *value, *mask)?,
                (Inst::Signal { address, value, release }, _) => self.signal(address, *value, *release)?,
                (Inst::Await { address, value, waiting }, _) => self.wait_for(address, *value, *waiting)?,
                (Inst::ProgramId(axis), Some(v)) => {
                    self.rows[v.0 as usize] = Some(vec![self.program[*axis as usize].into()])
                }
                (Inst::Dim(symbol), Some(v)) => {
                    self.rows[v.0 as usize] = Some(vec![self.dims[*symbol as usize].into()])
                }
                (inst, Some(v)) => {
                    let rows = self.instruction(inst, v)?;
                    self.rows[v.0 as usize] = Some(rows);
                }
                (inst, None) => return Err(LlvmError::Tile(format!("{inst:?} without a value"))),
            }
        }
        Ok(())
    }

    /// Hands flat row values back to tile values.
    fn scatter(&mut self, values: &[V], flat: &[BasicValueEnum<'c>]) {
        let mut at = 0;
        for v in values {
            let n = self.ty(*v).rows();
            self.rows[v.0 as usize] = Some(flat[at..at + n].to_vec());
            at += n;
        }
    }

    /// A loop `for i in start..end step` with carried row values.
    fn counted(
        &mut self,
        start: IntValue<'c>,
        end: IntValue<'c>,
        step: i64,
        init: &[BasicValueEnum<'c>],
        body: impl FnOnce(&mut Self, IntValue<'c>, &[BasicValueEnum<'c>]) -> Result<Rows<'c>, LlvmError>,
    ) -> Result<Rows<'c>, LlvmError> {
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
        let carried: Rows<'c> = phis.iter().map(|p| p.as_basic_value()).collect();
        let next = body(self, i, &carried)?;
        let step = self.context.i64_type().const_int(step as u64, true);
        let following = self.builder.build_int_add(i, step, "")?;
        let last = self.current_block()?;
        self.builder.build_unconditional_branch(head)?;
        index.add_incoming(&[(&following, last)]);
        for (phi, v) in phis.iter().zip(&next) {
            phi.add_incoming(&[(v as &dyn BasicValue<'c>, last)]);
        }
        self.builder.position_at_end(after);
        Ok(carried)
    }

    /// Emits `body` under a scalar condition.
    pub fn when(
        &mut self,
        condition: IntValue<'c>,
        body: impl FnOnce(&mut Self) -> Result<(), LlvmError>,
    ) -> Result<(), LlvmError> {
        let inside = self.context.append_basic_block(self.function, "then");
        let after = self.context.append_basic_block(self.function, "end");
        self.builder.build_conditional_branch(condition, inside, after)?;
        self.builder.position_at_end(inside);
        body(self)?;
        self.builder.build_unconditional_branch(after)?;
        self.builder.position_at_end(after);
        Ok(())
    }
}
