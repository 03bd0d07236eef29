//! Text of a tile program, for `--emit tile` and tests.

use super::{Access, Address, GridAxis, Inst, Kernel, Stmt, V};
use std::fmt::{self, Write};

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel @{} ({}) grid [", self.name, self.family)?;
        for (i, axis) in self.grid.iter().enumerate() {
            let sep = if i == 0 { "" } else { ", " };
            match axis {
                GridAxis { symbol: None, mul, .. } => write!(f, "{sep}{mul}")?,
                GridAxis { symbol: Some(s), mul, div } => {
                    write!(f, "{sep}ceil({}*{mul}/{div})", self.symbols[*s as usize])?
                }
            }
        }
        f.write_str("] (")?;
        for (i, param) in self.params.iter().enumerate() {
            let mark = match (param.access, param.constant) {
                (Access::Write, _) => "mut ",
                (_, true) => "const ",
                _ => "",
            };
            write!(f, "{}{mark}${}", if i == 0 { "" } else { ", " }, param.name)?;
            if param.align > 1 {
                write!(f, "@{}", param.align)?;
            }
        }
        f.write_str(") ")?;
        // The default, which hosts have no use for, goes unsaid.
        if self.threads != 128 {
            write!(f, "threads {} ", self.threads)?;
        }
        f.write_str("{\n")?;
        let mut text = String::new();
        block(self, &self.body, 1, &mut text)?;
        f.write_str(&text)?;
        f.write_str("}\n")
    }
}

fn list(values: &[V]) -> String {
    values.iter().map(|v| format!("%{}", v.0)).collect::<Vec<_>>().join(", ")
}

fn address(k: &Kernel, a: &Address, mask: &Option<V>) -> String {
    let mask = mask.map_or(String::new(), |m| format!(" mask %{}", m.0));
    let gather = a.gather.map_or(String::new(), |g| format!(" + %{}", g.0));
    format!("${}[%{}{gather}] strides {:?}{mask}", k.params[a.param.0 as usize].name, a.offset.0, a.strides)
}

fn block(k: &Kernel, stmts: &[Stmt], depth: usize, out: &mut String) -> fmt::Result {
    let pad = "  ".repeat(depth);
    for stmt in stmts {
        out.push_str(&pad);
        if let Some(v) = stmt.value {
            write!(out, "%{}: {} = ", v.0, k.types[v.0 as usize])?;
        }
        match &stmt.inst {
            Inst::Int(n) => writeln!(out, "{n}")?,
            Inst::Float(x) => writeln!(out, "{x:?}")?,
            Inst::ProgramId(axis) => writeln!(out, "program_id {axis}")?,
            Inst::Dim(s) => writeln!(out, "dim {}", k.symbols[*s as usize])?,
            Inst::Iota => writeln!(out, "iota")?,
            Inst::Unary(op, a) => writeln!(out, "{} %{}", format!("{op:?}").to_lowercase(), a.0)?,
            Inst::Binary(op, a, b) => writeln!(out, "{} {}", format!("{op:?}").to_lowercase(), list(&[*a, *b]))?,
            Inst::Fma(a, b, c) => writeln!(out, "fma {}", list(&[*a, *b, *c]))?,
            Inst::Compare(op, a, b) => writeln!(out, "compare {op:?} {}", list(&[*a, *b]))?,
            Inst::Select(c, a, b) => writeln!(out, "select {}", list(&[*c, *a, *b]))?,
            Inst::Convert(how, a) => writeln!(out, "convert {how:?} %{}", a.0)?,
            Inst::Bitcast(a) => writeln!(out, "bitcast %{}", a.0)?,
            Inst::Broadcast(a) => writeln!(out, "broadcast %{}", a.0)?,
            Inst::Reshape(a) => writeln!(out, "reshape %{}", a.0)?,
            Inst::Stack(parts) => writeln!(out, "stack {}", list(parts))?,
            Inst::Row(a, i) => writeln!(out, "row %{} {i}", a.0)?,
            Inst::Reduce(op, a, axis) => writeln!(out, "reduce {op:?} %{} axis {axis}", a.0)?,
            Inst::Load { address: a, mask } => writeln!(out, "load {}", address(k, a, mask))?,
            Inst::Store { address: a, value, mask } => writeln!(out, "store %{} -> {}", value.0, address(k, a, mask))?,
            Inst::Push { address: a, value, mask } => writeln!(out, "push %{} -> {}", value.0, address(k, a, mask))?,
            Inst::Arrive { address: a, mask, empty, .. } => {
                writeln!(out, "arrive {} empty {empty:#x}", address(k, a, mask))?
            }
            Inst::Signal { address: a, value, release } => {
                let order = if *release { "release" } else { "relaxed" };
                writeln!(out, "signal {order} %{} -> {}", value.0, address(k, a, &None))?
            }
            Inst::Await { address: a, value, .. } => writeln!(out, "await {} from %{}", address(k, a, &None), value.0)?,
            Inst::Dot { acc, a, b } => writeln!(out, "dot {}", list(&[*acc, *a, *b]))?,
            Inst::DotBf16 { acc, a, b } => writeln!(out, "dot_bf16 {}", list(&[*acc, *a, *b]))?,
            Inst::DotI8 { a, b, signed, max } => writeln!(out, "dot_i8 {} signed {signed} max {max}", list(&[*a, *b]))?,
            Inst::For { start, end, step, init, index, carried, body, next, results } => {
                writeln!(
                    out,
                    "{} = for %{} in %{}..%{} step {step} carry ({}) = ({}) {{",
                    list(results),
                    index.0,
                    start.0,
                    end.0,
                    list(carried),
                    list(init)
                )?;
                block(k, body, depth + 1, out)?;
                writeln!(out, "{pad}  next {}", list(next))?;
                writeln!(out, "{pad}}}")?;
            }
            Inst::If { condition, body } => {
                writeln!(out, "if %{} {{", condition.0)?;
                block(k, body, depth + 1, out)?;
                writeln!(out, "{pad}}}")?;
            }
        }
    }
    Ok(())
}
