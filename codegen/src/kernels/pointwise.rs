//! Elementwise ops, casts (quantisation included) and copies: any strides, numpy broadcasting; one program a row, or a tile of
//! rows on GPUs.

use super::row::{elem_of, element_offset, for_row, store_f32};
use super::schedule::{self, ELEMENTS, GRID_LIMIT, all_of, below, param, threads_for};
use crate::family::{Addressing, Family, Sharing, Strides};
use crate::request::{Argument, Built, Request, RowSpace, Tensor, refuse, require};
use crate::target::Target;
use crate::tile::{Access, Binary, Builder, Compare, Conversion, Elem, Param, V};
use weldment_ir::{Category, DType, Dim, Op, OpKind};
use weldment_passes::target::Refusal;

/// Elementwise ops, and views that must move.
pub struct Pointwise;

impl Family for Pointwise {
    fn runs(&self, kind: OpKind) -> bool {
        matches!(kind.info().category, Category::Elementwise | Category::View)
    }

    fn addressing(&self, _: OpKind) -> Addressing {
        Addressing { operands: &[Strides::Any], results: Strides::Any, shares: Sharing::Elements }
    }

    /// Preconditions of the family.
    fn check(&self, r: &Request<'_>) -> Result<(), Refusal> {
        // Elements stay where they are along every dim: a reshape that moves a symbol across constants does not.
        if let (Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. }, [x]) = (r.op, &r.operands[..]) {
            let to = &r.results[0].ty;
            require(x.ty.shape == to.shape, "shape", &x.ty, to)?;
        }
        if let Some(bytes) = as_bytes(r) {
            return self.check(&bytes);
        }
        let out = &r.results[0];
        let shape = padded_shape(out);
        RowSpace::of(&shape[..shape.len() - 1])?;
        for t in &r.operands {
            require(
                elem_of(t.ty.dtype).is_some(),
                "operand dtype",
                t.ty.dtype,
                "a plain scalar dtype other than f8 and f4",
            )?;
        }
        let dtype = out.ty.dtype;
        require(
            dtype == DType::Q8A || elem_of(dtype).is_some(),
            "result dtype",
            dtype,
            "f32, f16, bf16, an integer, bool or q8a",
        )?;
        if dtype == DType::Q8A {
            let last = out.ty.last_constant().unwrap_or(0);
            require(last > 0 && last.is_multiple_of(32), "last dim for q8a", last, "a multiple of 32")?;
            require(out.strides.last() == Some(&1), "last stride for q8a", format!("{:?}", out.strides), "1")?;
        }
        if let Some(t) = r.operands.iter().find(|t| matches!(t.ty.dtype, DType::I64 | DType::U32 | DType::U8)) {
            let copies = matches!(
                r.op.kind(),
                OpKind::Reshape | OpKind::Transpose | OpKind::Slice | OpKind::Broadcast | OpKind::Concat
            );
            require(copies, "operand dtype", t.ty.dtype, "f32, f16, bf16, i32, i8 or bool")?;
        }
        match (r.op, r.operands.first().map(|t| t.ty.dtype)) {
            (Op::Cast { dtype }, Some(from)) => castable(from, *dtype),
            // A sum of bools may be 2, which is stored as 1.
            (Op::Add {} | Op::Sub {}, Some(DType::Bool)) => {
                refuse("operand dtype", DType::Bool, "f32, f16, bf16, i32 or i8")
            }
            (Op::Div {}, Some(from)) => require(from.is_float(), "operand dtype", from, "f32, f16 or bf16"),
            _ => Ok(()),
        }
    }

    fn build(&self, r: &Request<'_>) -> Result<Built, Refusal> {
        self.check(r)?;
        if let Some(bytes) = as_bytes(r) {
            return self.build(&bytes);
        }
        let out = &r.results[0];
        let shape = padded_shape(out);
        let padded = shape.len() != out.ty.rank();
        let copy = r.op.kind().info().category == weldment_ir::Category::View;
        let mut b = Builder::new(if copy { "copy" } else { "pointwise" });
        if copy {
            b.moves_only();
        }
        let params: Vec<_> = (0..r.operands.len())
            .map(|i| param(&mut b, r.target(), &format!("in{i}"), &r.operands[i], Access::Read))
            .collect();
        let out_param = param(&mut b, r.target(), "out", out, Access::Write);
        super::schedule::round_coarsely(&mut b, r.target(), out);
        let strides: Vec<Vec<i64>> =
            r.operands.iter().chain([out]).map(|t| broadcast_strides(t, &shape, padded)).collect();
        let last = shape.last().and_then(Dim::constant).unwrap_or(1);
        let failure = std::cell::Cell::new(None);
        let value = |b: &mut Builder, inputs: &[V], shape: &[u32]| {
            let from = r.operands.first().map(|t| t.ty.dtype);
            let value = compute(b, r.op, inputs, from, out.ty.dtype).unwrap_or_else(|e| {
                failure.set(Some(e));
                inputs[0]
            });
            b.broadcast(value, shape)
        };
        match r.target() {
            Target::Host(_) => {
                RowSpace::of(&shape[..shape.len() - 1])?.grid(&mut b, 0, 1);
                let row = b.program_id(0);
                let index = coordinates(&mut b, row, &shape[..shape.len() - 1]);
                let bases: Vec<V> = strides.iter().map(|s| row_base(&mut b, &index, s)).collect();
                let out_base = bases[r.operands.len()];
                let out_step = if last == 1 { 0 } else { strides[r.operands.len()][shape.len() - 1] };
                for_row(&mut b, last, 32, &[], |b, i, width, _| {
                    let mut inputs = Vec::new();
                    for ((t, base), s) in r.operands.iter().zip(&bases).zip(&strides) {
                        let step = s[shape.len() - 1];
                        let at = b.scale(i, step);
                        let at = b.add(*base, at);
                        let elem = elem_of(t.ty.dtype).unwrap_or(Elem::I8);
                        inputs.push(b.load(params[inputs.len()], at, elem, &[width], &[step], None));
                    }
                    let value = value(b, &inputs, &[width]);
                    if out.ty.dtype == DType::Q8A {
                        let at = element_offset(b, DType::Q8A, i);
                        let at = b.add(out_base, at);
                        store_f32(b, out_param, at, DType::Q8A, value);
                    } else {
                        let at = b.scale(i, out_step);
                        let at = b.add(out_base, at);
                        b.store(out_param, at, &[out_step], value, None);
                    }
                    Vec::new()
                });
            }
            Target::Gpu(_) => {
                let tile = Tile::new(&mut b, &shape, &strides)?;
                let inputs: Vec<V> = r
                    .operands
                    .iter()
                    .enumerate()
                    .map(|(i, t)| tile.load(&mut b, params[i], elem_of(t.ty.dtype).unwrap_or(Elem::I8), i))
                    .collect();
                let value = value(&mut b, &inputs, &tile.shape);
                tile.store(&mut b, out_param, r.operands.len(), value);
            }
        }
        if let Some(e) = failure.take() {
            return Err(e);
        }
        let mut arguments: Vec<Argument> = (0..r.operands.len()).map(Argument::Operand).collect();
        arguments.push(Argument::Result(0));
        let summary = format!("{} -> {}", r.op.kind(), out.ty);
        Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
    }
}

/// What moves 8-bit floats as what moves bytes. Two 4-bit floats are a byte where whole rows of them lie as they are read.
fn as_bytes<'r>(r: &Request<'r>) -> Option<Request<'r>> {
    let moves = r.op.kind().info().category == weldment_ir::Category::View;
    let dtype = r.results[0].ty.dtype;
    let packed = dtype.block_elements() == 2;
    if !moves || dtype.is_block() || !dtype.is_float() || dtype.block_bytes() != 1 {
        return None;
    }
    let in_bytes = |t: &Tensor| -> Option<Tensor> {
        let mut t = t.clone();
        t.ty.dtype = DType::U8;
        if packed {
            let last = t.ty.last_constant().filter(|n| n % 2 == 0)?;
            let (inner, outer) = t.strides.split_last_mut()?;
            if *inner != 1 || outer.iter().any(|n| n % 2 != 0) {
                return None;
            }
            outer.iter_mut().for_each(|n| *n /= 2);
            *t.ty.shape.last_mut()? = Dim::Const(last / 2);
        }
        Some(t)
    };
    if packed && r.operands.iter().any(|t| t.ty.shape != r.results[0].ty.shape) {
        return None;
    }
    let operands = r.operands.iter().map(in_bytes).collect::<Option<_>>()?;
    let results = r.results.iter().map(in_bytes).collect::<Option<_>>()?;
    Some(Request { operands, results, ..r.clone() })
}

/// Is each value of `from` stored as the same value of `to` is? A bool is 0 or 1, whatever an i8 may be.
fn same_bits(from: DType, to: DType) -> bool {
    let stored_alike = elem_of(from).is_some() && elem_of(from) == elem_of(to) && from.is_float() == to.is_float();
    stored_alike && (to != DType::Bool || from == DType::Bool)
}

/// Casts that a kernel does.
fn castable(from: DType, to: DType) -> Result<(), Refusal> {
    let done = match (from.is_float(), to.is_float()) {
        (true, false) => false,
        (false, false) => same_bits(from, to) || matches!(to, DType::I8 | DType::I32),
        _ => true,
    };
    require(done, "cast", format!("{from} to {to}"), "float to float, integer to float, integer to i8 or i32")
}

/// The shape with a last dim of 1 appended where the last is symbolic or missing: rows then are single elements.
fn padded_shape(t: &Tensor) -> Vec<Dim> {
    let mut shape = t.ty.shape.clone();
    if t.ty.last_constant().is_none() {
        shape.push(Dim::Const(1));
    }
    shape
}

/// Byte strides of `t` broadcast to `shape` (0 where it repeats).
fn broadcast_strides(t: &Tensor, shape: &[Dim], padded: bool) -> Vec<i64> {
    let rank = t.ty.rank() + usize::from(padded);
    (0..shape.len())
        .map(|i| match (i + rank).checked_sub(shape.len()) {
            Some(j) if j < t.ty.rank() && (t.ty.shape[j] != Dim::Const(1) || shape[i] == Dim::Const(1)) => {
                t.byte_stride(j)
            }
            _ => 0,
        })
        .collect()
}

/// A GPU program's tile [rows, width] of the result, with the start and strides of every tensor in it.
struct Tile {
    shape: [u32; 2],
    present: Option<V>,
    columns: Option<V>,
    bases: Vec<V>,
    strides: Vec<[i64; 2]>,
}

impl Tile {
    /// The tile of this program. The innermost leading dims that lie at one stride in every tensor are its rows; the others are
    /// split off the grid's x or y axis, and long rows are cut along z.
    fn new(b: &mut Builder, shape: &[Dim], strides: &[Vec<i64>]) -> Result<Tile, Refusal> {
        let last = shape.len() - 1;
        let lead: Vec<usize> = (0..last).filter(|i| shape[*i] != Dim::Const(1)).collect();
        let folds = |outer: usize, inner: usize| {
            let size = shape[inner].constant();
            strides.iter().all(|s| size.is_some_and(|n| s[outer] == s[inner] * n as i64))
        };
        let mut split = lead.len().saturating_sub(1);
        while split > 0 && folds(lead[split - 1], lead[split]) {
            split -= 1;
        }
        let space = |dims: &[usize]| RowSpace::of(&dims.iter().map(|i| shape[*i].clone()).collect::<Vec<_>>());
        let (mut outer, mut inner) = (space(&lead[..split])?, space(&lead[split..])?);
        if inner.symbol.is_some() && outer.mul > GRID_LIMIT {
            (split, outer, inner) = (lead.len(), space(&lead)?, space(&[])?);
        }
        let n = shape[last].constant().unwrap_or(1);
        let width = n.next_power_of_two().min(ELEMENTS);
        let mut rows = ELEMENTS / width;
        if inner.symbol.is_none() {
            rows = rows.min(inner.mul.next_power_of_two());
        }
        b.threads(threads_for(rows * width, 8));
        let blocks = inner.mul.div_ceil(rows);
        b.grid_constant(2, n.div_ceil(width));
        let x = b.program_id(0);
        let (outer_index, block) = if inner.symbol.is_some() {
            inner.grid(b, 0, rows);
            outer.grid(b, 1, 1);
            (b.program_id(1), x)
        } else {
            RowSpace { mul: outer.mul * blocks, ..outer.clone() }.grid(b, 0, 1);
            if blocks == 1 {
                (x, b.int(0))
            } else {
                let per = b.int(blocks as i64);
                (b.div(x, per), b.binary(Binary::Rem, x, per))
            }
        };
        let first = b.scale(block, rows as i64);
        let ragged = rows > 1 && (inner.symbol.is_some() || !inner.mul.is_multiple_of(rows));
        let present = ragged.then(|| {
            let count = inner.count(b);
            schedule::present(b, first, count, rows as u32)
        });
        let start = if n > width {
            let piece = b.program_id(2);
            b.scale(piece, width as i64)
        } else {
            b.int(0)
        };
        let columns = (!n.is_multiple_of(width)).then(|| {
            let mask = below(b, start, width as u32, n);
            b.reshape(mask, &[1, width as u32])
        });
        let outer_dims: Vec<Dim> = lead[..split].iter().map(|i| shape[*i].clone()).collect();
        let index = coordinates(b, outer_index, &outer_dims);
        let (mut bases, mut steps) = (Vec::new(), Vec::new());
        for s in strides {
            let outer: Vec<i64> = lead[..split].iter().map(|i| s[*i]).collect();
            let row = lead.get(lead.len().wrapping_sub(1)).filter(|_| split < lead.len()).map_or(0, |i| s[*i]);
            let column = if n == 1 { 0 } else { s[last] };
            let mut base = row_base(b, &index, &outer);
            for (index, stride) in [(first, row), (start, column)] {
                let part = b.scale(index, stride);
                base = b.add(base, part);
            }
            bases.push(base);
            steps.push([row, column]);
        }
        Ok(Tile { shape: [rows as u32, width as u32], present, columns, bases, strides: steps })
    }

    /// Tensor `i` of the strides given; dims along which it repeats keep size 1.
    fn load(&self, b: &mut Builder, param: Param, elem: Elem, i: usize) -> V {
        let [row, column] = self.strides[i];
        let shape = [if row == 0 { 1 } else { self.shape[0] }, if column == 0 { 1 } else { self.shape[1] }];
        let masks = [self.present.filter(|_| row != 0), self.columns.filter(|_| column != 0)];
        let mask = all_of(b, &masks, &shape);
        b.load(param, self.bases[i], elem, &shape, &[row, column], mask)
    }

    fn store(&self, b: &mut Builder, param: Param, i: usize, value: V) {
        let mask = all_of(b, &[self.present, self.columns], &self.shape);
        b.store(param, self.bases[i], &self.strides[i], value, mask);
    }
}

/// Coordinates along dims of a row-major index.
pub(super) fn coordinates(b: &mut Builder, index: V, lead: &[Dim]) -> Vec<V> {
    let mut rest = index;
    let mut out = vec![rest; lead.len()];
    for (i, dim) in lead.iter().enumerate().rev() {
        if i == 0 {
            out[0] = rest;
            break;
        }
        let size = match dim {
            Dim::Const(n) => b.int(*n as i64),
            Dim::Sym(s) => b.dim(s),
        };
        out[i] = b.binary(Binary::Rem, rest, size);
        rest = b.div(rest, size);
    }
    out
}

/// Byte offset of a row by its coordinates.
pub(super) fn row_base(b: &mut Builder, index: &[V], strides: &[i64]) -> V {
    let mut base = b.int(0);
    for (i, s) in index.iter().zip(strides) {
        if *s != 0 {
            let part = b.scale(*i, *s);
            base = b.add(base, part);
        }
    }
    base
}

/// The op on one tile; floats compute in f32 and round once to the result's dtype.
fn compute(b: &mut Builder, op: &Op, inputs: &[V], from: Option<DType>, to: DType) -> Result<V, Refusal> {
    if op.kind().info().category == weldment_ir::Category::View {
        return Ok(inputs[0]);
    }
    if let (Op::Cast { .. }, Some(from)) = (op, from) {
        return cast(b, inputs[0], from, to);
    }
    let float = from.is_none_or(DType::is_compute_float) || matches!(op, Op::Select { .. });
    let mut v: Vec<V> = inputs.to_vec();
    if float {
        for x in &mut v {
            if b.ty(*x).elem.is_float() {
                *x = b.to_f32(*x);
            }
        }
    } else {
        for x in &mut v {
            *x = b.convert(Conversion::Signed, *x, Elem::I32);
        }
    }
    let value = match op {
        Op::Select {} => {
            let zero = b.int_of(Elem::I8, &[], 0);
            let off = b.compare(Compare::Equal, v[0], zero);
            b.select(off, v[2], v[1])
        }
        op => arithmetic(b, op, &v)?,
    };
    Ok(round_to(b, value, to))
}

/// The op on f32, or on integers of one width but for division; comparisons give i1.
///
/// # Errors
/// For ops that are no arithmetic.
pub(super) fn arithmetic(b: &mut Builder, op: &Op, v: &[V]) -> Result<V, Refusal> {
    let float = b.ty(v[0]).elem == Elem::F32;
    Ok(match op {
        Op::Add {} => b.add(v[0], v[1]),
        Op::Sub {} => b.sub(v[0], v[1]),
        Op::Mul {} => b.mul(v[0], v[1]),
        Op::Div {} if float => b.div(v[0], v[1]),
        Op::Maximum {} => b.max(v[0], v[1]),
        Op::Minimum {} => b.min(v[0], v[1]),
        Op::Less {} => b.compare(Compare::Less, v[0], v[1]),
        Op::Neg {} => b.neg(v[0]),
        Op::Exp {} => b.exp(v[0]),
        Op::Silu {} => b.silu(v[0]),
        Op::Gelu {} => b.gelu(v[0]),
        Op::Tanh {} => b.tanh(v[0]),
        Op::Sigmoid {} => b.sigmoid(v[0]),
        Op::Sqrt {} => b.sqrt(v[0]),
        Op::Rsqrt {} => {
            let one = b.float(1.0);
            let root = b.sqrt(v[0]);
            b.div(one, root)
        }
        Op::SiluMul { .. } => {
            let gate = b.silu(v[0]);
            b.mul(gate, v[1])
        }
        other => {
            return refuse("elementwise op", other.kind(), "float arithmetic, or +, -, *, min, max, < of integers");
        }
    })
}

/// A value as the element that `to` is stored as; quantised activations stay f32.
fn round_to(b: &mut Builder, v: V, to: DType) -> V {
    let how = match b.ty(v).elem {
        Elem::I1 => Conversion::Unsigned,
        Elem::I8 | Elem::I32 | Elem::I64 => Conversion::Signed,
        _ => Conversion::Float,
    };
    match elem_of(to) {
        Some(elem) if elem != b.ty(v).elem => b.convert(how, v, elem),
        _ => v,
    }
}

fn cast(b: &mut Builder, v: V, from: DType, to: DType) -> Result<V, Refusal> {
    match (from.is_float(), to.is_float()) {
        _ if same_bits(from, to) => Ok(v),
        (true, true) => {
            let v = b.to_f32(v);
            Ok(round_to(b, v, to))
        }
        (false, true) => {
            let v = if from == DType::Bool { b.convert(Conversion::Unsigned, v, Elem::I32) } else { v };
            let v = b.to_f32(v);
            Ok(round_to(b, v, to))
        }
        (false, false) if matches!(to, DType::I8 | DType::I32) => {
            let how = if from == DType::Bool { Conversion::Unsigned } else { Conversion::Signed };
            let elem = elem_of(to).unwrap_or(Elem::I32);
            Ok(b.convert(how, v, elem))
        }
        _ => refuse("cast", format!("{from} to {to}"), "float to float, integer to float, integer to i8 or i32"),
    }
}
