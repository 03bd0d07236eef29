//! Several small programs as one: on a GPU a launch costs more than they do. Program ids along the last grid axis pick the part.

use super::{
    Access, Address, Binary, Compare, Elem, GridAxis, Inst, Kernel, Param, ParamInfo, Stmt, TileType, V, Waiting,
};

/// What a part's numbers become in the whole.
struct Shift<'s> {
    values: u32,
    params: u32,
    /// Index in the whole of each symbol of the part.
    symbols: &'s [u32],
}

impl Shift<'_> {
    fn v(&self, v: V) -> V {
        V(v.0 + self.values)
    }

    fn all(&self, list: &[V]) -> Vec<V> {
        list.iter().map(|v| self.v(*v)).collect()
    }

    fn address(&self, a: &Address) -> Address {
        Address {
            param: Param(a.param.0 + self.params),
            offset: self.v(a.offset),
            gather: a.gather.map(|g| self.v(g)),
            strides: a.strides.clone(),
            align: a.align,
        }
    }

    fn waiting(&self, w: Waiting) -> Waiting {
        Waiting { comm: Param(w.comm.0 + self.params), slab: Param(w.slab.0 + self.params) }
    }

    fn block(&self, block: &[Stmt]) -> Vec<Stmt> {
        block.iter().map(|s| Stmt { value: s.value.map(|v| self.v(v)), inst: self.inst(&s.inst) }).collect()
    }

    fn inst(&self, inst: &Inst) -> Inst {
        let v = |v: &V| self.v(*v);
        let mask = |m: &Option<V>| m.map(|m| self.v(m));
        match inst {
            Inst::Int(_) | Inst::Float(_) | Inst::ProgramId(_) | Inst::Iota => inst.clone(),
            Inst::Dim(s) => Inst::Dim(self.symbols.get(*s as usize).copied().unwrap_or(*s)),
            Inst::Unary(op, a) => Inst::Unary(*op, v(a)),
            Inst::Binary(op, a, b) => Inst::Binary(*op, v(a), v(b)),
            Inst::Fma(a, b, c) => Inst::Fma(v(a), v(b), v(c)),
            Inst::Compare(op, a, b) => Inst::Compare(*op, v(a), v(b)),
            Inst::Select(a, b, c) => Inst::Select(v(a), v(b), v(c)),
            Inst::Convert(how, a) => Inst::Convert(*how, v(a)),
            Inst::Bitcast(a) => Inst::Bitcast(v(a)),
            Inst::Broadcast(a) => Inst::Broadcast(v(a)),
            Inst::Reshape(a) => Inst::Reshape(v(a)),
            Inst::Stack(parts) => Inst::Stack(self.all(parts)),
            Inst::Row(a, i) => Inst::Row(v(a), *i),
            Inst::Reduce(op, a, axis) => Inst::Reduce(*op, v(a), *axis),
            Inst::Load { address, mask: m } => Inst::Load { address: self.address(address), mask: mask(m) },
            Inst::Store { address, value, mask: m } => {
                Inst::Store { address: self.address(address), value: v(value), mask: mask(m) }
            }
            Inst::Push { address, value, mask: m } => {
                Inst::Push { address: self.address(address), value: v(value), mask: mask(m) }
            }
            Inst::Arrive { address, mask: m, empty, waiting } => Inst::Arrive {
                address: self.address(address),
                mask: mask(m),
                empty: *empty,
                waiting: self.waiting(*waiting),
            },
            Inst::Signal { address, value, release } => {
                Inst::Signal { address: self.address(address), value: v(value), release: *release }
            }
            Inst::Await { address, value, waiting } => {
                Inst::Await { address: self.address(address), value: v(value), waiting: self.waiting(*waiting) }
            }
            Inst::Dot { acc, a, b } => Inst::Dot { acc: v(acc), a: v(a), b: v(b) },
            Inst::DotBf16 { acc, a, b } => Inst::DotBf16 { acc: v(acc), a: v(a), b: v(b) },
            Inst::DotI8 { a, b, signed, max } => Inst::DotI8 { a: v(a), b: v(b), signed: *signed, max: *max },
            Inst::For { start, end, step, init, index, carried, body, next, results } => Inst::For {
                start: v(start),
                end: v(end),
                step: *step,
                init: self.all(init),
                index: v(index),
                carried: self.all(carried),
                body: self.block(body),
                next: self.all(next),
                results: self.all(results),
            },
            Inst::If { condition, body } => Inst::If { condition: v(condition), body: self.block(body) },
        }
    }
}

/// The symbol and factors of a grid axis, comparable between kernels.
fn axis<'k>(kernel: &'k Kernel, axis: &GridAxis) -> (Option<&'k str>, u64, u64) {
    (axis.symbol.map(|s| kernel.symbols[s as usize].as_str()), axis.mul, axis.div)
}

/// True if [`join`] takes these kernels: alike along the first axis, constant along the second, and no third.
pub fn joinable(a: &Kernel, b: &Kernel) -> bool {
    let plain = |k: &Kernel| k.grid[1].symbol.is_none() && k.grid[2] == GridAxis::constant(1);
    axis(a, &a.grid[0]) == axis(b, &b.grid[0]) && plain(a) && plain(b)
}

/// One kernel that does what `parts` do, whose parameters are theirs in turn. The parts are independent of each other, and
/// [`joinable`] in pairs.
pub fn join(parts: &[&Kernel]) -> Kernel {
    let family = parts.first().map_or("join", |k| k.family);
    let mut whole = Kernel {
        name: String::new(),
        family,
        moves_only: parts.iter().all(|k| k.moves_only),
        params: Vec::new(),
        symbols: Vec::new(),
        grid: [GridAxis::constant(1), GridAxis::constant(1), GridAxis::constant(parts.len() as u64)],
        threads: parts.iter().map(|k| k.threads).max().unwrap_or(1),
        types: Vec::new(),
        body: Vec::new(),
    };
    let scalar = |elem| TileType { elem, shape: Vec::new() };
    fn define(whole: &mut Kernel, ty: TileType, inst: Inst) -> V {
        whole.types.push(ty);
        let v = V(whole.types.len() as u32 - 1);
        whole.body.push(Stmt { value: Some(v), inst });
        v
    }
    let second = define(&mut whole, scalar(Elem::I64), Inst::ProgramId(1));
    let third = define(&mut whole, scalar(Elem::I64), Inst::ProgramId(2));
    for (i, part) in parts.iter().enumerate() {
        let mut symbols = Vec::new();
        for name in &part.symbols {
            let at = whole.symbols.iter().position(|s| s == name).unwrap_or_else(|| {
                whole.symbols.push(name.clone());
                whole.symbols.len() - 1
            });
            symbols.push(at as u32);
        }
        if i == 0 {
            whole.grid[0] = part.grid[0].clone();
            whole.grid[0].symbol = part.grid[0].symbol.map(|s| symbols[s as usize]);
        }
        whole.grid[1].mul = whole.grid[1].mul.max(part.grid[1].mul);
        let own = define(&mut whole, scalar(Elem::I64), Inst::Int(i as i64));
        let here = define(&mut whole, scalar(Elem::I1), Inst::Compare(Compare::Equal, third, own));
        let end = define(&mut whole, scalar(Elem::I64), Inst::Int(part.grid[1].mul as i64));
        let inside = define(&mut whole, scalar(Elem::I1), Inst::Compare(Compare::Less, second, end));
        let condition = define(&mut whole, scalar(Elem::I1), Inst::Binary(Binary::And, here, inside));
        let shift = Shift { values: whole.types.len() as u32, params: whole.params.len() as u32, symbols: &symbols };
        let body = shift.block(&part.body);
        whole.types.extend(part.types.iter().cloned());
        whole.params.extend(part.params.iter().map(|p| ParamInfo { name: format!("{}{i}", p.name), ..p.clone() }));
        whole.body.push(Stmt { value: None, inst: Inst::If { condition, body } });
    }
    debug_assert!(whole.params.iter().any(|p| p.access == Access::Write), "a kernel that writes nothing");
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::{Builder, verify};

    /// out[t, h] = x[t, h] + n for `heads` heads.
    fn part(heads: u64, n: f64) -> Kernel {
        let mut b = Builder::new("rope");
        b.threads(64);
        let (x, out) = (b.param("x", Access::Read), b.param("out", Access::Write));
        b.grid_symbol(0, "T", 1, 1);
        b.grid_constant(1, heads);
        let (token, head) = (b.program_id(0), b.program_id(1));
        let at = b.scale(token, 64 * heads as i64);
        let own = b.scale(head, 64);
        let at = b.add(at, own);
        let v = b.load_row(x, at, Elem::F32, 16);
        let n = b.float(n);
        let v = b.add(v, n);
        b.store_row(out, at, v);
        b.finish(String::new())
    }

    #[test]
    fn parts_keep_their_programs() {
        let (a, c) = (part(8, 1.0), part(2, 2.0));
        assert!(joinable(&a, &c));
        let whole = join(&[&a, &c]);
        verify(&whole).unwrap();
        assert_eq!(whole.grid[1], GridAxis::constant(8));
        assert_eq!(whole.grid[2], GridAxis::constant(2));
        assert_eq!((whole.params.len(), whole.symbols.len()), (4, 1));
        let mut other = part(8, 1.0);
        other.grid[0].div = 2;
        assert!(!joinable(&a, &other));
    }
}
