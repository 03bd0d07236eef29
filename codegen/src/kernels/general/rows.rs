//! How programs share out the elements of a result.

use super::cell::{Cell, Kind};
use super::{size, with};
use crate::kernels::pointwise::coordinates;
use crate::request::RowSpace;
use crate::target::Target;
use crate::tile::{Builder, V};
use weldment_ir::Dim;

/// Most programs that share a row of a GPU.
const ACROSS: u64 = 1024;

/// The rows of a tensor along its last dim: programs take rows along grid axis 0, as far as constants and one symbol go, and loop over
/// the other symbols. On a GPU programs along axis 1 share a row.
pub struct Rows {
    shape: Vec<Dim>,
    /// Dims that a program's number stands for, and those that a program loops over.
    dealt: Vec<usize>,
    looped: Vec<usize>,
    across: u64,
}

impl Rows {
    /// Rows of a tensor of `shape`, shared by programs that store `step` elements at a time; with `None` each has a whole row.
    pub fn new(b: &mut Builder, target: &Target, shape: &[Dim], step: Option<u64>) -> Rows {
        let lead = 0..shape.len().saturating_sub(1);
        let first = lead.clone().find(|i| shape[*i].constant().is_none());
        let (dealt, looped): (Vec<usize>, Vec<usize>) =
            lead.partition(|i| shape[*i].constant().is_some() || Some(*i) == first);
        let dims: Vec<Dim> = dealt.iter().map(|i| shape[*i].clone()).collect();
        // At most one symbol is among them.
        if let Ok(space) = RowSpace::of(&dims) {
            space.grid(b, 0, 1);
        }
        let steps = match (step, shape.last()) {
            (Some(step), Some(Dim::Const(n))) => n.div_ceil(step).clamp(1, ACROSS),
            (Some(_), Some(Dim::Sym(_))) => ACROSS,
            _ => 1,
        };
        let across = if target.gpu().is_some() { steps } else { 1 };
        b.grid_constant(1, across);
        Rows { shape: shape.to_vec(), dealt, looped, across }
    }

    /// Calls `body` with the leading indices of each row of this program.
    pub fn each(&self, b: &mut Builder, body: &mut dyn FnMut(&mut Builder, &[V])) {
        let dims: Vec<Dim> = self.dealt.iter().map(|i| self.shape[*i].clone()).collect();
        let program = b.program_id(0);
        let own = coordinates(b, program, &dims);
        let zero = b.int(0);
        let mut index = vec![zero; self.shape.len().saturating_sub(1)];
        for (axis, i) in self.dealt.iter().zip(own) {
            index[*axis] = i;
        }
        self.descend(b, &self.looped, &mut index, body);
    }

    fn descend(&self, b: &mut Builder, axes: &[usize], index: &mut Vec<V>, body: &mut dyn FnMut(&mut Builder, &[V])) {
        let Some((axis, rest)) = axes.split_first() else { return body(b, index) };
        let (zero, end) = (b.int(0), size(b, &self.shape[*axis]));
        b.for_loop(zero, end, 1, &[], |b, i, _| {
            index[*axis] = i;
            self.descend(b, rest, index, body);
            Vec::new()
        });
    }

    /// Stores this program's part of the row at `lead`: `value` gives each element in the form of `kind`, given its index.
    pub fn write(
        &self,
        b: &mut Builder,
        out: &Cell<'_>,
        lead: &[V],
        kind: Kind,
        value: &mut dyn FnMut(&mut Builder, &[V]) -> V,
    ) {
        let Some(last) = self.shape.last() else {
            let v = value(b, &[]);
            return out.store(b, &[], kind, v);
        };
        let end = size(b, last);
        let step = out.step() as i64;
        let start = if self.across > 1 {
            let id = b.program_id(1);
            b.scale(id, step)
        } else {
            b.int(0)
        };
        write_run(b, out, lead, kind, [start, end], step * self.across as i64, value);
    }
}

/// Stores elements of the row at `lead` within `[start, end)`: as many as are stored at a time, from every `stride`-th on.
pub fn write_run(
    b: &mut Builder,
    out: &Cell<'_>,
    lead: &[V],
    kind: Kind,
    [start, end]: [V; 2],
    stride: i64,
    value: &mut dyn FnMut(&mut Builder, &[V]) -> V,
) {
    b.for_loop(start, end, stride, &[], |b, j, _| {
        let index = with(lead, j);
        match out.step() {
            1 => {
                let v = value(b, &index);
                out.store(b, &index, kind, v);
            }
            2 => {
                let low = value(b, &index);
                // A row of a symbol may end inside a byte: what is beside its last element is nobody's.
                let (next, last) = (b.offset(j, 1), b.offset(end, -1));
                let next = b.min(next, last);
                let high = value(b, &with(lead, next));
                out.store_pair(b, &index, kind, [low, high]);
            }
            _ => out.store_q8a(b, &index, |b, i| {
                let j = b.add(j, i);
                value(b, &with(lead, j))
            }),
        }
        Vec::new()
    });
}
