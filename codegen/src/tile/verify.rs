//! Checks a tile program: operands defined before use, types as the instruction demands, addresses of the right rank.

use super::{Address, Conversion, Elem, Inst, Kernel, Param, Stmt, TileType, V, Waiting};

/// Checks `kernel`.
///
/// # Errors
/// The first broken rule, as a sentence naming the kernel and the value.
pub fn verify(kernel: &Kernel) -> Result<(), String> {
    let mut scope = Scope { kernel, defined: vec![false; kernel.types.len()] };
    scope.block(&kernel.body).map_err(|e| format!("tile program {}: {e}", kernel.name))
}

struct Scope<'k> {
    kernel: &'k Kernel,
    defined: Vec<bool>,
}

impl Scope<'_> {
    fn ty(&self, v: V) -> Result<&TileType, String> {
        match self.defined.get(v.0 as usize) {
            Some(true) => Ok(&self.kernel.types[v.0 as usize]),
            _ => Err(format!("%{} is used before it is defined", v.0)),
        }
    }

    fn scalar(&self, v: V, elem: Elem) -> Result<(), String> {
        let t = self.ty(v)?;
        if t.shape.is_empty() && t.elem == elem {
            Ok(())
        } else {
            Err(format!("%{} is {t}, a scalar {elem:?} is expected", v.0))
        }
    }

    fn define(&mut self, v: V) -> Result<(), String> {
        match self.defined.get_mut(v.0 as usize) {
            Some(d) if !*d => {
                *d = true;
                Ok(())
            }
            _ => Err(format!("%{} is defined twice", v.0)),
        }
    }

    fn address(&self, a: &Address, t: &TileType, mask: Option<V>) -> Result<(), String> {
        self.scalar(a.offset, Elem::I64)?;
        if a.param.0 as usize >= self.kernel.params.len() {
            return Err(format!("parameter {} of {}", a.param.0, self.kernel.params.len()));
        }
        if a.strides.len() != t.shape.len() {
            return Err(format!("{} strides for a tile {t}", a.strides.len()));
        }
        if let Some(gather) = a.gather {
            let g = self.ty(gather)?;
            let fits = g.elem == Elem::I64
                && g.shape.len() == t.shape.len()
                && g.lanes() == 1
                && g.shape.iter().zip(&t.shape).all(|(g, t)| *g == 1 || g == t);
            if !fits {
                return Err(format!("byte offsets {g} for a tile {t}"));
            }
        }
        if let Some(mask) = mask {
            let m = self.ty(mask)?;
            let fits = m.elem == Elem::I1
                && (m.shape == t.shape || m.shape.is_empty() || (m.lanes() == 1 && m.rows() == t.rows()));
            if !fits {
                return Err(format!("mask {m} for a tile {t}"));
            }
        }
        Ok(())
    }

    fn waiting(&self, w: Waiting) -> Result<(), String> {
        let known = |p: Param| (p.0 as usize) < self.kernel.params.len();
        if known(w.comm) && known(w.slab) { Ok(()) } else { Err(format!("{w:?} names no parameters")) }
    }

    /// A word that is signalled or waited for: i32.
    fn word(&self, address: &Address, value: V) -> Result<(), String> {
        self.scalar(value, Elem::I32)?;
        self.address(address, self.ty(value)?, None)
    }

    fn block(&mut self, block: &[Stmt]) -> Result<(), String> {
        for stmt in block {
            self.inst(stmt)?;
            if let Some(v) = stmt.value {
                self.define(v)?;
            }
        }
        Ok(())
    }

    fn alike(&self, values: &[V]) -> Result<(), String> {
        let first = self.ty(values[0])?;
        for v in values {
            if self.ty(*v)? != first {
                return Err(format!("{} beside {first}", self.ty(*v)?));
            }
        }
        Ok(())
    }

    fn inst(&mut self, stmt: &Stmt) -> Result<(), String> {
        match &stmt.inst {
            Inst::Int(_) | Inst::Float(_) | Inst::ProgramId(_) | Inst::Dim(_) | Inst::Iota => Ok(()),
            Inst::Unary(_, a) | Inst::Broadcast(a) | Inst::Reshape(a) | Inst::Bitcast(a) => self.ty(*a).map(|_| ()),
            Inst::Binary(_, a, b) | Inst::Compare(_, a, b) => self.alike(&[*a, *b]),
            Inst::Fma(a, b, c) => self.alike(&[*a, *b, *c]),
            Inst::Select(c, a, b) => {
                self.alike(&[*a, *b])?;
                if self.ty(*c)?.elem == Elem::I1 { Ok(()) } else { Err("a select condition that is not i1".into()) }
            }
            Inst::Convert(how, a) => {
                let from = self.ty(*a)?.elem.is_float();
                let ok = match how {
                    Conversion::Float | Conversion::FloatToSigned => from,
                    _ => !from,
                };
                if ok { Ok(()) } else { Err(format!("{how:?} of {}", self.ty(*a)?)) }
            }
            Inst::Stack(parts) => parts.iter().try_for_each(|p| self.ty(*p).map(|_| ())),
            Inst::Row(a, i) => {
                let t = self.ty(*a)?;
                if t.shape.len() == 2 && *i < t.shape[0] { Ok(()) } else { Err(format!("row {i} of {t}")) }
            }
            Inst::Reduce(_, a, axis) => {
                let t = self.ty(*a)?;
                if (*axis as usize) < t.shape.len() { Ok(()) } else { Err(format!("axis {axis} of {t}")) }
            }
            Inst::Load { address, mask } => {
                let v = stmt.value.ok_or("a load without a value")?;
                let t = self.kernel.types.get(v.0 as usize).ok_or("a value without a type")?;
                self.address(address, t, *mask)
            }
            Inst::Store { address, value, mask } => {
                let t = self.ty(*value)?.clone();
                self.address(address, &t, *mask)
            }
            Inst::Push { address, value, mask } => {
                let t = self.ty(*value)?.clone();
                self.address(address, &t, *mask)
            }
            Inst::Arrive { address, mask, empty, waiting } => {
                let v = stmt.value.ok_or("an arrival without a value")?;
                let t = self.kernel.types.get(v.0 as usize).ok_or("a value without a type")?;
                let fits = match t.elem.bytes() {
                    2 => *empty <= 0xffff,
                    4 => true,
                    _ => false,
                };
                if !fits {
                    return Err(format!("{empty:#x} for an element of {t}"));
                }
                self.waiting(*waiting)?;
                self.address(address, t, *mask)
            }
            Inst::Signal { address, value, .. } => self.word(address, *value),
            Inst::Await { address, value, waiting } => {
                self.waiting(*waiting)?;
                self.word(address, *value)
            }
            Inst::Dot { acc, a, b } => self.batched_dot(*acc, *a, *b),
            Inst::DotBf16 { acc, a, b } => self.dot(Some(*acc), *a, *b, 2),
            Inst::DotI8 { a, b, .. } => self.dot(None, *a, *b, 4),
            Inst::For { start, end, init, index, carried, body, next, results, .. } => {
                self.scalar(*start, Elem::I64)?;
                self.scalar(*end, Elem::I64)?;
                self.define(*index)?;
                for (c, i) in carried.iter().zip(init) {
                    self.define(*c)?;
                    self.alike(&[*c, *i])?;
                }
                self.block(body)?;
                for (c, n) in carried.iter().zip(next) {
                    self.alike(&[*c, *n])?;
                }
                results.iter().try_for_each(|r| self.define(*r))
            }
            Inst::If { condition, body } => {
                self.scalar(*condition, Elem::I1)?;
                self.block(body)
            }
        }
    }

    /// Shapes of a plain contraction, with an optional leading batch dim.
    fn batched_dot(&self, acc: V, a: V, b: V) -> Result<(), String> {
        let (c, ta, tb) = (self.ty(acc)?, self.ty(a)?, self.ty(b)?);
        let fits = match (&c.shape[..], &ta.shape[..], &tb.shape[..]) {
            ([m, n], [m2, k], [k2, n2]) => (m, n, k) == (m2, n2, k2),
            ([s, m, n], [s2, m2, k], [s3, k2, n2]) => (s, s, m, n, k) == (s2, s3, m2, n2, k2),
            _ => false,
        };
        if fits && ta.elem == tb.elem && c.elem == Elem::F32 {
            Ok(())
        } else {
            Err(format!("{c} + a dot of {ta} and {tb}"))
        }
    }

    /// Shapes of a contraction whose right side keeps `group` k elements adjacent.
    fn dot(&self, acc: Option<V>, a: V, b: V, group: u32) -> Result<(), String> {
        let (ta, tb) = (self.ty(a)?, self.ty(b)?);
        let fits = ta.shape.len() == 2
            && tb.shape.len() == 2
            && ta.shape[1] == tb.shape[0] * group
            && tb.shape[1] % group == 0;
        let acc_fits = match acc {
            Some(acc) => self.ty(acc)?.shape == [ta.shape[0], tb.lanes() / group],
            None => true,
        };
        if fits && acc_fits { Ok(()) } else { Err(format!("a dot of {ta} and {tb}")) }
    }
}
