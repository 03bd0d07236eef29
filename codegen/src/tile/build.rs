//! Builds tile programs: one method per instruction, with numpy broadcasting of operands.

use super::{
    Access, Address, Binary, Compare, Conversion, Elem, GridAxis, Inst, Kernel, Param, ParamInfo, Reduction, Stmt,
    TileType, Unary, V, Waiting,
};

/// Builds one [`Kernel`]. Misuse (shapes that do not broadcast) is a bug in a kernel family and panics; a kernel family
/// never sees data from outside without its preconditions having been checked.
pub struct Builder {
    kernel: Kernel,
    blocks: Vec<Vec<Stmt>>,
    /// Results are rounded to 16 bits on a GPU: its own units for transcendentals are exact enough.
    pub(super) coarse: bool,
}

fn joined(a: &[u32], b: &[u32]) -> Vec<u32> {
    let rank = a.len().max(b.len());
    let at = |s: &[u32], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            (x, y) => panic!("tile dims {x} and {y} do not broadcast: {a:?} and {b:?}"),
        })
        .collect()
}

impl Builder {
    /// An empty kernel of `family`.
    pub fn new(family: &'static str) -> Builder {
        let kernel = Kernel {
            name: String::new(),
            family,
            moves_only: false,
            params: Vec::new(),
            symbols: Vec::new(),
            grid: [GridAxis::constant(1), GridAxis::constant(1), GridAxis::constant(1)],
            threads: 128,
            types: Vec::new(),
            body: Vec::new(),
        };
        Builder { kernel, blocks: vec![Vec::new()], coarse: false }
    }

    /// Says that the kernel only moves data.
    pub fn moves_only(&mut self) {
        self.kernel.moves_only = true;
    }

    /// Says that what is computed is rounded to 16 bits, on a GPU.
    pub fn round_coarsely(&mut self) {
        self.coarse = true;
    }

    /// Declares the next pointer parameter, of which no alignment is known.
    pub fn param(&mut self, name: &str, access: Access) -> Param {
        self.aligned_param(name, access, 1, false)
    }

    /// Declares the next pointer parameter: `align` bytes divide it; `constant` ones are weights.
    pub fn aligned_param(&mut self, name: &str, access: Access, align: u32, constant: bool) -> Param {
        self.kernel.params.push(ParamInfo { name: name.to_owned(), access, align, constant });
        Param(self.kernel.params.len() as u32 - 1)
    }

    /// Sets the threads of a block on a GPU.
    pub fn threads(&mut self, threads: u32) {
        assert!(threads.is_power_of_two(), "{threads} threads");
        self.kernel.threads = threads;
    }

    fn symbol(&mut self, name: &str) -> u32 {
        let symbols = &mut self.kernel.symbols;
        symbols.iter().position(|s| s == name).unwrap_or_else(|| {
            symbols.push(name.to_owned());
            symbols.len() - 1
        }) as u32
    }

    /// Sets a grid axis to a constant.
    pub fn grid_constant(&mut self, axis: usize, n: u64) {
        self.kernel.grid[axis] = GridAxis::constant(n);
    }

    /// Sets a grid axis to `ceil(symbol * mul / div)`.
    pub fn grid_symbol(&mut self, axis: usize, symbol: &str, mul: u64, div: u64) {
        let symbol = Some(self.symbol(symbol));
        self.kernel.grid[axis] = GridAxis { symbol, mul, div };
    }

    /// The finished kernel.
    pub fn finish(mut self, name: String) -> Kernel {
        self.kernel.name = name;
        self.kernel.body = self.blocks.pop().expect("the outermost block");
        self.kernel
    }

    /// Type of a value.
    pub fn ty(&self, v: V) -> &TileType {
        &self.kernel.types[v.0 as usize]
    }

    fn shape(&self, v: V) -> Vec<u32> {
        self.ty(v).shape.clone()
    }

    fn value(&mut self, elem: Elem, shape: Vec<u32>) -> V {
        self.kernel.types.push(TileType { elem, shape });
        V(self.kernel.types.len() as u32 - 1)
    }

    fn emit(&mut self, value: Option<V>, inst: Inst) {
        self.blocks.last_mut().expect("an open block").push(Stmt { value, inst });
    }

    fn define(&mut self, elem: Elem, shape: Vec<u32>, inst: Inst) -> V {
        let v = self.value(elem, shape);
        self.emit(Some(v), inst);
        v
    }

    /// i64 constant.
    pub fn int(&mut self, n: i64) -> V {
        self.define(Elem::I64, vec![], Inst::Int(n))
    }

    /// Integer constant of any element type and shape.
    pub fn int_of(&mut self, elem: Elem, shape: &[u32], n: i64) -> V {
        self.define(elem, shape.to_vec(), Inst::Int(n))
    }

    /// f32 scalar constant.
    pub fn float(&mut self, x: f64) -> V {
        self.define(Elem::F32, vec![], Inst::Float(x))
    }

    /// f32 tile constant.
    pub fn float_tile(&mut self, shape: &[u32], x: f64) -> V {
        self.define(Elem::F32, shape.to_vec(), Inst::Float(x))
    }

    /// Program index along an axis.
    pub fn program_id(&mut self, axis: u32) -> V {
        self.define(Elem::I64, vec![], Inst::ProgramId(axis))
    }

    /// A symbolic dim's value in this step.
    pub fn dim(&mut self, name: &str) -> V {
        let symbol = self.symbol(name);
        self.define(Elem::I64, vec![], Inst::Dim(symbol))
    }

    /// 0..n of `elem`.
    pub fn iota(&mut self, elem: Elem, n: u32) -> V {
        self.define(elem, vec![n], Inst::Iota)
    }

    /// Broadcasts to a shape; a no-op if it already has it.
    pub fn broadcast(&mut self, v: V, shape: &[u32]) -> V {
        if self.ty(v).shape == shape {
            return v;
        }
        assert_eq!(joined(&self.shape(v), shape), shape, "broadcast of {} to {shape:?}", self.ty(v));
        let elem = self.ty(v).elem;
        self.define(elem, shape.to_vec(), Inst::Broadcast(v))
    }

    fn unary(&mut self, op: Unary, a: V) -> V {
        let t = self.ty(a).clone();
        self.define(t.elem, t.shape, Inst::Unary(op, a))
    }

    /// -a.
    pub fn neg(&mut self, a: V) -> V {
        self.unary(Unary::Neg, a)
    }

    /// |a|.
    pub fn abs(&mut self, a: V) -> V {
        self.unary(Unary::Abs, a)
    }

    /// Square root.
    pub fn sqrt(&mut self, a: V) -> V {
        self.unary(Unary::Sqrt, a)
    }

    /// Nearest integer, ties to even.
    pub fn round(&mut self, a: V) -> V {
        self.unary(Unary::Round, a)
    }

    /// 2^a, on GPUs.
    pub fn exp2(&mut self, a: V) -> V {
        self.unary(Unary::Exp2, a)
    }

    /// 1 / a within 1 ulp, on GPUs.
    pub fn reciprocal(&mut self, a: V) -> V {
        self.unary(Unary::Reciprocal, a)
    }

    /// Any binary operation, operands broadcast.
    pub fn binary(&mut self, op: Binary, a: V, b: V) -> V {
        assert_eq!(self.ty(a).elem, self.ty(b).elem, "{op:?} of {} and {}", self.ty(a), self.ty(b));
        let shape = joined(&self.shape(a), &self.shape(b));
        let (a, b) = (self.broadcast(a, &shape), self.broadcast(b, &shape));
        let elem = self.ty(a).elem;
        self.define(elem, shape, Inst::Binary(op, a, b))
    }

    /// a + b.
    pub fn add(&mut self, a: V, b: V) -> V {
        self.binary(Binary::Add, a, b)
    }

    /// a - b.
    pub fn sub(&mut self, a: V, b: V) -> V {
        self.binary(Binary::Sub, a, b)
    }

    /// a * b.
    pub fn mul(&mut self, a: V, b: V) -> V {
        self.binary(Binary::Mul, a, b)
    }

    /// a / b.
    pub fn div(&mut self, a: V, b: V) -> V {
        self.binary(Binary::Div, a, b)
    }

    /// Larger of a and b.
    pub fn max(&mut self, a: V, b: V) -> V {
        self.binary(Binary::Max, a, b)
    }

    /// Smaller of a and b.
    pub fn min(&mut self, a: V, b: V) -> V {
        self.binary(Binary::Min, a, b)
    }

    /// i64 `a * n`.
    pub fn scale(&mut self, a: V, n: i64) -> V {
        if n == 1 {
            return a;
        }
        let n = self.int(n);
        self.mul(a, n)
    }

    /// i64 `a + n`.
    pub fn offset(&mut self, a: V, n: i64) -> V {
        if n == 0 {
            return a;
        }
        let n = self.int(n);
        self.add(a, n)
    }

    /// a * b + c, one rounding.
    pub fn fma(&mut self, a: V, b: V, c: V) -> V {
        let shape = joined(&joined(&self.shape(a), &self.shape(b)), &self.shape(c));
        let (a, b, c) = (self.broadcast(a, &shape), self.broadcast(b, &shape), self.broadcast(c, &shape));
        self.define(Elem::F32, shape, Inst::Fma(a, b, c))
    }

    /// Comparison, operands broadcast.
    pub fn compare(&mut self, op: Compare, a: V, b: V) -> V {
        let shape = joined(&self.shape(a), &self.shape(b));
        let (a, b) = (self.broadcast(a, &shape), self.broadcast(b, &shape));
        self.define(Elem::I1, shape, Inst::Compare(op, a, b))
    }

    /// condition ? a : b, all broadcast.
    pub fn select(&mut self, condition: V, a: V, b: V) -> V {
        let shape = joined(&joined(&self.shape(condition), &self.shape(a)), &self.shape(b));
        let (condition, a, b) =
            (self.broadcast(condition, &shape), self.broadcast(a, &shape), self.broadcast(b, &shape));
        let elem = self.ty(a).elem;
        self.define(elem, shape, Inst::Select(condition, a, b))
    }

    /// Conversion to another element type; a no-op where it is the same.
    pub fn convert(&mut self, how: Conversion, v: V, elem: Elem) -> V {
        if self.ty(v).elem == elem {
            return v;
        }
        let shape = self.shape(v);
        self.define(elem, shape, Inst::Convert(how, v))
    }

    /// Floats of any width to f32, integers (signed) to f32.
    pub fn to_f32(&mut self, v: V) -> V {
        let how = if self.ty(v).elem.is_float() { Conversion::Float } else { Conversion::SignedToFloat };
        self.convert(how, v, Elem::F32)
    }

    /// Same bits as another element type; the last dim scales.
    pub fn bitcast(&mut self, v: V, elem: Elem) -> V {
        let mut shape = self.shape(v);
        if let Some(last) = shape.last_mut() {
            *last = (u64::from(*last) * self.ty(v).elem.bytes() / elem.bytes()) as u32;
        }
        self.define(elem, shape, Inst::Bitcast(v))
    }

    /// Same elements under another shape with the same last dim.
    pub fn reshape(&mut self, v: V, shape: &[u32]) -> V {
        let elem = self.ty(v).elem;
        self.define(elem, shape.to_vec(), Inst::Reshape(v))
    }

    /// Joins tiles along the first dim.
    pub fn stack(&mut self, parts: &[V]) -> V {
        let mut shape = self.shape(parts[0]);
        shape[0] = parts.iter().map(|p| self.ty(*p).shape[0]).sum();
        let elem = self.ty(parts[0]).elem;
        self.define(elem, shape, Inst::Stack(parts.to_vec()))
    }

    /// Row `i` of the first dim of a [R, N] tile, as [1, N].
    pub fn row(&mut self, v: V, i: u32) -> V {
        let (elem, lanes) = (self.ty(v).elem, self.ty(v).lanes());
        self.define(elem, vec![1, lanes], Inst::Row(v, i))
    }

    /// Reduces an axis to size 1.
    pub fn reduce(&mut self, op: Reduction, v: V, axis: u32) -> V {
        let mut shape = self.shape(v);
        shape[axis as usize] = 1;
        let elem = self.ty(v).elem;
        self.define(elem, shape, Inst::Reduce(op, v, axis))
    }

    /// Loads a tile at `param + offset` with byte `strides`.
    pub fn load(&mut self, param: Param, offset: V, elem: Elem, shape: &[u32], strides: &[i64], mask: Option<V>) -> V {
        let address = Address { param, offset, gather: None, strides: strides.to_vec(), align: elem.bytes() as u32 };
        self.define(elem, shape.to_vec(), Inst::Load { address, mask })
    }

    /// Loads a tile at `param + offset + gather[index]` with byte `strides`; `gather` as [`Address::gather`] says.
    #[allow(clippy::too_many_arguments, reason = "an address, a type and a mask, as in `load`")]
    pub fn load_gather(
        &mut self,
        param: Param,
        offset: V,
        gather: V,
        elem: Elem,
        shape: &[u32],
        strides: &[i64],
        mask: Option<V>,
    ) -> V {
        let align = elem.bytes() as u32;
        let address = Address { param, offset, gather: Some(gather), strides: strides.to_vec(), align };
        self.define(elem, shape.to_vec(), Inst::Load { address, mask })
    }

    /// Loads one row of `n` contiguous elements.
    pub fn load_row(&mut self, param: Param, offset: V, elem: Elem, n: u32) -> V {
        self.load(param, offset, elem, &[n], &[elem.bytes() as i64], None)
    }

    /// Loads a scalar.
    pub fn load_scalar(&mut self, param: Param, offset: V, elem: Elem) -> V {
        self.load(param, offset, elem, &[], &[], None)
    }

    /// Stores a tile.
    pub fn store(&mut self, param: Param, offset: V, strides: &[i64], value: V, mask: Option<V>) {
        let align = self.ty(value).elem.bytes() as u32;
        let address = Address { param, offset, gather: None, strides: strides.to_vec(), align };
        self.emit(None, Inst::Store { address, value, mask });
    }

    /// Stores a tile at `param + offset + gather[index]`; `gather` as [`Address::gather`] says.
    pub fn store_gather(&mut self, param: Param, offset: V, gather: V, strides: &[i64], value: V, mask: Option<V>) {
        let align = self.ty(value).elem.bytes() as u32;
        let address = Address { param, offset, gather: Some(gather), strides: strides.to_vec(), align };
        self.emit(None, Inst::Store { address, value, mask });
    }

    /// Stores one contiguous row, or a scalar.
    pub fn store_row(&mut self, param: Param, offset: V, value: V) {
        let t = self.ty(value);
        let strides: Vec<i64> = t.shape.iter().map(|_| t.elem.bytes() as i64).collect();
        self.store(param, offset, &strides, value, None);
    }

    /// Stores a tile where other ranks look for it.
    pub fn push(&mut self, param: Param, offset: V, strides: &[i64], value: V, mask: Option<V>) {
        let address = self.place(param, offset, strides, value);
        self.emit(None, Inst::Push { address, value, mask });
    }

    /// Waits for a tile of `ty` that other ranks push to `param + offset + gather[index]`; `empty` is the element that stands for
    /// nothing.
    pub fn arrive(
        &mut self,
        (param, offset, gather, strides): (Param, V, Option<V>, &[i64]),
        ty: TileType,
        mask: Option<V>,
        empty: u32,
        waiting: Waiting,
    ) -> V {
        let align = ty.elem.bytes() as u32;
        let address = Address { param, offset, gather, strides: strides.to_vec(), align };
        self.define(ty.elem, ty.shape, Inst::Arrive { address, mask, empty, waiting })
    }

    /// Stores an i32 word once all threads of the program are here.
    pub fn signal(&mut self, param: Param, offset: V, value: V, release: bool) {
        let address = self.place(param, offset, &[], value);
        self.emit(None, Inst::Signal { address, value, release });
    }

    /// Waits until an i32 word has come as far as `value`.
    pub fn wait_for(&mut self, param: Param, offset: V, value: V, waiting: Waiting) {
        let address = self.place(param, offset, &[], value);
        self.emit(None, Inst::Await { address, value, waiting });
    }

    fn place(&self, param: Param, offset: V, strides: &[i64], value: V) -> Address {
        Address { param, offset, gather: None, strides: strides.to_vec(), align: self.ty(value).elem.bytes() as u32 }
    }

    /// acc + a b.
    pub fn dot(&mut self, acc: V, a: V, b: V) -> V {
        let shape = self.shape(acc);
        self.define(Elem::F32, shape, Inst::Dot { acc, a, b })
    }

    /// acc + a b, bf16 pairs.
    pub fn dot_bf16(&mut self, acc: V, a: V, b: V) -> V {
        let shape = self.shape(acc);
        self.define(Elem::F32, shape, Inst::DotBf16 { acc, a, b })
    }

    /// a b in i32.
    pub fn dot_i8(&mut self, a: V, b: V, signed: bool, max: u32) -> V {
        let shape = vec![self.ty(a).shape[0], self.ty(b).lanes() / 4];
        self.define(Elem::I32, shape, Inst::DotI8 { a, b, signed, max })
    }

    /// A counted loop with carried values; the closure gives the next ones.
    pub fn for_loop(
        &mut self,
        start: V,
        end: V,
        step: i64,
        init: &[V],
        body: impl FnOnce(&mut Builder, V, &[V]) -> Vec<V>,
    ) -> Vec<V> {
        let index = self.value(Elem::I64, vec![]);
        let copies = |b: &mut Builder| -> Vec<V> {
            init.iter()
                .map(|v| {
                    let t = b.ty(*v).clone();
                    b.value(t.elem, t.shape)
                })
                .collect()
        };
        let (carried, results) = (copies(self), copies(self));
        self.blocks.push(Vec::new());
        let next = body(self, index, &carried);
        let body = self.blocks.pop().expect("the loop's block");
        assert_eq!(next.len(), init.len(), "carried values");
        let inst =
            Inst::For { start, end, step, init: init.to_vec(), index, carried, body, next, results: results.clone() };
        self.emit(None, inst);
        results
    }

    /// Runs `body` (stores) where the scalar condition holds.
    pub fn if_then(&mut self, condition: V, body: impl FnOnce(&mut Builder)) {
        self.blocks.push(Vec::new());
        body(self);
        let body = self.blocks.pop().expect("the if's block");
        self.emit(None, Inst::If { condition, body });
    }
}
