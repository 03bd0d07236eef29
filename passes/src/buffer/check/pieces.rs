//! What a view shows, element by element: a read of a view op's result is turned into reads of its operands, until the value is
//! one that some step has written. The arithmetic is this file's own; nothing of the pass that made the plan is used.

use weldment_ir::{Dim, Graph, NodeId, Op, TensorType, Value};

/// Pieces that one read may fall into.
const MOST: usize = 1 << 13;

/// Elements of `value` with their places. Index `base` is at `at`; each loop steps through one dim. Places count in bytes times
/// the elements of a block, so that an element inside a block has one too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub value: Value,
    pub base: Vec<u64>,
    pub at: i128,
    pub loops: Vec<Loop>,
}

/// `count` elements, `step` apart in dim `dim` and `stride` apart in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loop {
    pub dim: usize,
    pub step: u64,
    pub count: u64,
    pub stride: i128,
}

impl Piece {
    /// All of `value`, read through `strides` (in elements) from byte `offset` on.
    pub fn whole(graph: &Graph, value: Value, offset: u64, strides: &[u64], most: &dyn Fn(&Dim) -> u64) -> Piece {
        let ty = graph.type_of(value);
        let unit = ty.dtype.block_bytes() as i128;
        let loops = ty.shape.iter().zip(strides).enumerate().map(|(dim, (size, stride))| Loop {
            dim,
            step: 1,
            count: most(size),
            stride: i128::from(*stride) * unit,
        });
        let loops = loops.filter(|l| l.count != 1).collect();
        let at = i128::from(offset) * ty.dtype.block_elements() as i128;
        Piece { value, base: vec![0; ty.rank()], at, loops }
    }

    /// True if the elements are where a tensor at `offset` with `strides` has them.
    pub fn lies_in(&self, ty: &TensorType, offset: u64, strides: &[u64]) -> bool {
        let unit = ty.dtype.block_bytes() as i128;
        let index: i128 = self.base.iter().zip(strides).map(|(i, s)| i128::from(*i) * i128::from(*s)).sum();
        self.at == i128::from(offset) * ty.dtype.block_elements() as i128 + index * unit
            && self.loops.iter().all(|l| {
                let stride = strides.get(l.dim).map(|s| i128::from(*s) * i128::from(l.step) * unit);
                stride == Some(l.stride)
            })
    }

    /// The same elements as elements of the operands of `node`, a view op. `None` if they are not, or in too many pieces.
    pub fn back(&self, graph: &Graph, node: NodeId) -> Option<Vec<Piece>> {
        let view = graph.node(node);
        let operand = *view.operands.first()?;
        let from = &graph.type_of(operand).shape;
        let to = &view.types.first()?.shape;
        match &view.op {
            Op::Transpose { permutation } => {
                let axis = |dim: usize| usize::try_from(*permutation.get(dim)?).ok();
                let mut out = Piece { value: operand, base: vec![0; from.len()], ..self.clone() };
                for (dim, index) in self.base.iter().enumerate() {
                    *out.base.get_mut(axis(dim)?)? = *index;
                }
                for l in &mut out.loops {
                    l.dim = axis(l.dim)?;
                }
                Some(vec![out])
            }
            Op::Slice { axis, start, .. } => {
                let mut out = Piece { value: operand, ..self.clone() };
                *out.base.get_mut(usize::try_from(*axis).ok()?)? += u64::try_from(*start).ok()?;
                Some(vec![out])
            }
            Op::Broadcast { .. } => {
                let lead = to.len().checked_sub(from.len())?;
                let kept = |dim: usize| dim.checked_sub(lead).filter(|d| from[*d] == to[dim]);
                let mut out = Piece { value: operand, base: vec![0; from.len()], at: self.at, loops: Vec::new() };
                for (dim, index) in self.base.iter().enumerate() {
                    if let Some(d) = kept(dim) {
                        out.base[d] = *index;
                    }
                }
                for l in &self.loops {
                    match kept(l.dim) {
                        Some(dim) => out.loops.push(Loop { dim, ..*l }),
                        // A repeated element has one place.
                        None if l.stride == 0 => {}
                        None => return None,
                    }
                }
                Some(vec![out])
            }
            Op::Concat { axis } => self.parts(graph, node, usize::try_from(*axis).ok()?),
            Op::Reshape { .. } => self.regrouped(operand, from, to),
            _ => None,
        }
    }

    /// One iteration of loop `which`.
    fn iteration(&self, which: usize, i: u64) -> Piece {
        let mut out = self.clone();
        let l = out.loops.remove(which);
        out.base[l.dim] += i * l.step;
        out.at += i128::from(i) * l.stride;
        out
    }

    /// Pieces of the parts of a concat.
    fn parts(&self, graph: &Graph, node: NodeId, axis: usize) -> Option<Vec<Piece>> {
        let mut starts = vec![0u64];
        for part in &graph.node(node).operands {
            starts.push(starts.last()?.checked_add(graph.type_of(*part).shape.get(axis)?.constant()?)?);
        }
        let part_of = |index: u64| starts.windows(2).position(|w| (w[0]..w[1]).contains(&index));
        let mut open = vec![self.clone()];
        let mut out = Vec::new();
        while let Some(piece) = open.pop() {
            if open.len() + out.len() > MOST {
                return None;
            }
            let first = *piece.base.get(axis)?;
            let along = |l: &&Loop| l.dim == axis;
            let last = first + piece.loops.iter().filter(along).map(|l| (l.count - 1) * l.step).sum::<u64>();
            let part = part_of(first)?;
            if last < starts[part + 1] {
                let mut inside = Piece { value: graph.node(node).operands[part], ..piece };
                inside.base[axis] -= starts[part];
                out.push(inside);
                continue;
            }
            // Cut the loop of the largest step at the part's end, or take it apart where others share the axis.
            let (which, l) =
                piece.loops.iter().enumerate().filter(|(_, l)| l.dim == axis).max_by_key(|(_, l)| l.step)?;
            if piece.loops.iter().filter(along).count() > 1 {
                open.extend((0..l.count).map(|i| piece.iteration(which, i)));
                continue;
            }
            let fit = (starts[part + 1] - first).div_ceil(l.step);
            let mut rest = piece.iteration(which, fit);
            if l.count - fit > 1 {
                rest.loops.push(Loop { count: l.count - fit, ..*l });
            }
            let mut head = piece.clone();
            head.loops[which].count = fit;
            if fit == 1 {
                head.loops.remove(which);
            }
            open.extend([rest, head]);
        }
        Some(out)
    }

    /// Pieces of the operand of a reshape: dims fall into groups of equal products, and in each group the linear index counts.
    fn regrouped(&self, operand: Value, from: &[Dim], to: &[Dim]) -> Option<Vec<Piece>> {
        let (mut pieces, mut i, mut j) =
            (vec![Piece { value: operand, base: vec![0; from.len()], at: self.at, loops: Vec::new() }], 0, 0);
        while i < from.len() || j < to.len() {
            if from.get(i) == Some(&Dim::Const(1)) {
                i += 1;
            } else if to.get(j) == Some(&Dim::Const(1)) {
                j += 1;
            } else if from.get(i)? == to.get(j)? {
                for piece in &mut pieces {
                    piece.base[i] = self.base[j];
                    piece.loops.extend(self.loops.iter().filter(|l| l.dim == j).map(|l| Loop { dim: i, ..*l }));
                }
                (i, j) = (i + 1, j + 1);
            } else {
                let (first_i, first_j) = (i, j);
                let (mut a, mut b) = (from[i].constant()?, to[j].constant()?);
                (i, j) = (i + 1, j + 1);
                while a != b {
                    if a < b {
                        a = a.checked_mul(from.get(i)?.constant()?)?;
                        i += 1;
                    } else {
                        b = b.checked_mul(to.get(j)?.constant()?)?;
                        j += 1;
                    }
                }
                let inside = self.linear(to, first_j..j)?;
                let sizes: Vec<u64> = from[first_i..i].iter().map(Dim::constant).collect::<Option<_>>()?;
                let spread = spread(inside.0, inside.1, &sizes)?;
                let mut joined = Vec::with_capacity(pieces.len() * spread.len());
                for piece in &pieces {
                    for (base, at, loops) in &spread {
                        let mut piece = piece.clone();
                        piece.base[first_i..i].copy_from_slice(base);
                        piece.at += at;
                        piece.loops.extend(loops.iter().map(|l| Loop { dim: l.dim + first_i, ..*l }));
                        joined.push(piece);
                    }
                }
                if joined.len() > MOST {
                    return None;
                }
                pieces = joined;
            }
        }
        Some(pieces)
    }

    /// The loops over `dims` with steps in linear elements of the group, and the group's first index.
    fn linear(&self, shape: &[Dim], dims: std::ops::Range<usize>) -> Option<(u64, Vec<Loop>)> {
        let mut suffix = 1u64;
        let (mut base, mut loops) = (0u64, Vec::new());
        for dim in dims.rev() {
            base = base.checked_add(self.base[dim].checked_mul(suffix)?)?;
            for l in self.loops.iter().filter(|l| l.dim == dim) {
                loops.push(Loop { dim: 0, step: l.step.checked_mul(suffix)?, ..*l });
            }
            suffix = suffix.checked_mul(shape[dim].constant()?)?;
        }
        Some((base, loops))
    }
}

/// First index, place beside the group's, loops.
type Spread = (Vec<u64>, i128, Vec<Loop>);

/// A linear range as indices of `sizes`: each loop belongs to the dim whose elements it steps over whole; one that carries into
/// the next dim is split there, or taken apart.
fn spread(base: u64, loops: Vec<Loop>, sizes: &[u64]) -> Option<Vec<Spread>> {
    let mut suffix = vec![1u64; sizes.len()];
    for k in (1..sizes.len()).rev() {
        suffix[k - 1] = suffix[k].checked_mul(sizes[k])?;
    }
    let mut open = vec![(base, 0i128, loops)];
    let mut out = Vec::new();
    while let Some((base, at, loops)) = open.pop() {
        if open.len() + out.len() > MOST {
            return None;
        }
        let digits: Vec<u64> = suffix.iter().zip(sizes).map(|(p, n)| base / p % n).collect();
        // The coarsest dim whose suffix divides the step.
        let place = |l: &Loop| suffix.iter().position(|p| l.step.is_multiple_of(*p) && *p <= l.step);
        let placed: Option<Vec<usize>> = loops.iter().map(place).collect();
        let placed = placed?;
        let reach = |k: usize| {
            let on = loops.iter().zip(&placed).filter(|(_, dim)| **dim == k);
            digits[k] + on.map(|(l, _)| (l.count - 1) * (l.step / suffix[k])).sum::<u64>()
        };
        let Some(over) = (0..sizes.len()).find(|k| reach(*k) >= sizes[*k]) else {
            let loops =
                loops.iter().zip(&placed).map(|(l, k)| Loop { dim: *k, step: l.step / suffix[*k], ..*l }).collect();
            out.push((digits, at, loops));
            continue;
        };
        let on = loops.iter().enumerate().filter(|(i, _)| placed[*i] == over);
        let (which, l) = on.max_by_key(|(_, l)| (l.count - 1) * l.step)?;
        let (mut rest, l) = (loops.clone(), *l);
        rest.remove(which);
        // Iterations until the dim is passed through once.
        let turn = sizes[over].checked_mul(suffix[over])?;
        if over > 0 && turn.is_multiple_of(l.step) && l.count > turn / l.step && l.count.is_multiple_of(turn / l.step) {
            let inner = turn / l.step;
            rest.push(Loop { step: turn, count: l.count / inner, stride: l.stride * i128::from(inner), ..l });
            rest.push(Loop { count: inner, ..l });
            rest.retain(|l| l.count > 1);
            open.push((base, at, rest));
            continue;
        }
        for i in 0..l.count {
            open.push((base.checked_add(i * l.step)?, at + i128::from(i) * l.stride, rest.clone()));
        }
        if open.len() > MOST {
            return None;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use weldment_ir::DType;
    use weldment_ir::generate::Random;

    /// Place of every element.
    fn places(pieces: &[Piece]) -> BTreeMap<(Value, Vec<u64>), Vec<i128>> {
        let mut out: BTreeMap<(Value, Vec<u64>), Vec<i128>> = BTreeMap::new();
        for piece in pieces {
            let all = piece.loops.iter().fold(vec![(piece.base.clone(), piece.at)], |all, l| {
                let step = |(base, at): &(Vec<u64>, i128), i: u64| {
                    let mut base = base.clone();
                    base[l.dim] += i * l.step;
                    (base, at + i128::from(i) * l.stride)
                };
                all.iter().flat_map(|one| (0..l.count).map(move |i| step(one, i))).collect()
            });
            all.into_iter().for_each(|(base, at)| out.entry((piece.value, base)).or_default().push(at));
        }
        out.values_mut().for_each(|p| p.sort_unstable());
        out
    }

    fn indices(dims: &[u64]) -> Vec<Vec<u64>> {
        dims.iter().fold(vec![Vec::new()], |all, d| {
            all.iter().flat_map(|i| (0..*d).map(move |k| [i.as_slice(), &[k]].concat())).collect()
        })
    }

    fn consts(g: &Graph, v: Value) -> Vec<u64> {
        g.type_of(v).constant_shape().unwrap()
    }

    /// Random chains of views: the pieces' elements are those that walking the chain index by index gives.
    #[test]
    fn pieces_are_what_the_views_show() {
        let mut r = Random::new(11);
        let mut chained = 0;
        for case in 0..3000 {
            let mut g = Graph::new("views");
            let input = |g: &mut Graph, name: &str, shape: &[u64]| {
                let shape = shape.iter().map(|d| Dim::Const(*d)).collect();
                g.push(name, Op::input(name, DType::F32, shape), &[]).unwrap()
            };
            let x = input(&mut g, "x", &[4, 6, 2]);
            let mut v = x;
            for _ in 0..1 + r.below(6) {
                let dims = consts(&g, v);
                let axis = r.below(dims.len() as u64) as usize;
                let count: u64 = dims.iter().product();
                let op = match r.below(5) {
                    0 => {
                        let factors: Vec<u64> = (1..=count).filter(|n| count.is_multiple_of(*n)).collect();
                        let a = *r.pick(&factors).unwrap();
                        let inner: Vec<u64> = (1..=count / a).filter(|n| (count / a).is_multiple_of(*n)).collect();
                        let b = *r.pick(&inner).unwrap();
                        Op::Reshape { shape: [a, b, count / a / b].map(Dim::Const).to_vec() }
                    }
                    1 => {
                        let mut permutation: Vec<i64> = (0..dims.len() as i64).collect();
                        permutation.rotate_left(axis);
                        Op::Transpose { permutation }
                    }
                    2 => {
                        let start = r.below(dims[axis]) as i64;
                        let end = start + 1 + r.below(dims[axis] - start as u64) as i64;
                        Op::Slice { axis: axis as i64, start, end }
                    }
                    3 if count < 200 => Op::Concat { axis: axis as i64 },
                    _ if count < 200 && dims.len() < 5 => {
                        Op::Broadcast { shape: std::iter::once(2).chain(dims.clone()).map(Dim::Const).collect() }
                    }
                    _ => continue,
                };
                let operands = if matches!(op, Op::Concat { .. }) {
                    let name = format!("p{}", g.len());
                    let other = input(&mut g, &name, &dims);
                    vec![v, other, v]
                } else {
                    vec![v]
                };
                v = g.push("v", op, &operands).unwrap();
                chained += 1;
            }
            // Strides that keep every element apart, 0 where a broadcast is the last op.
            let dims = consts(&g, v);
            let mut strides = vec![1u64; dims.len()];
            (0..dims.len() - 1).rev().for_each(|i| strides[i] = strides[i + 1] * dims[i + 1] + r.below(3));
            let most = |d: &Dim| d.constant().unwrap();
            let mut expect: BTreeMap<(Value, Vec<u64>), Vec<i128>> = BTreeMap::new();
            let broadcasts = |g: &Graph, v: Value| matches!(g.node(v.node).op, Op::Broadcast { .. });
            if broadcasts(&g, v) {
                strides[0] = 0;
            }
            for index in indices(&dims) {
                let at: u64 = 40 + index.iter().zip(&strides).map(|(i, s)| i * s * 4).sum::<u64>();
                expect.entry(origin(&g, v, index)).or_default().push(i128::from(at));
            }
            expect.values_mut().for_each(|p| (p.sort_unstable(), p.dedup()).0);
            let mut open = vec![Piece::whole(&g, v, 40, &strides, &most)];
            let mut done = Vec::new();
            let mut refused = false;
            while let Some(piece) = open.pop() {
                if matches!(g.node(piece.value.node).op, Op::Input { .. }) {
                    done.push(piece);
                    continue;
                }
                match piece.back(&g, piece.value.node) {
                    Some(pieces) => open.extend(pieces),
                    // Only a repeated element at several places is no element of the operand.
                    None => {
                        assert!(broadcasts(&g, piece.value), "case {case}: {piece:?}\n{g}");
                        refused = true;
                        break;
                    }
                }
            }
            let mut found = places(&done);
            found.values_mut().for_each(|p| p.dedup());
            assert!(refused || found == expect, "case {case}\n{g}");
        }
        assert!(chained > 5000, "{chained}");
    }

    /// The input element behind an element of `v`.
    fn origin(g: &Graph, v: Value, mut index: Vec<u64>) -> (Value, Vec<u64>) {
        let node = g.node(v.node);
        let from = node.operands.first().map(|o| consts(g, *o)).unwrap_or_default();
        match &node.op {
            Op::Transpose { permutation } => {
                let mut source = vec![0; index.len()];
                permutation.iter().zip(&index).for_each(|(p, i)| source[*p as usize] = *i);
                origin(g, node.operands[0], source)
            }
            Op::Slice { axis, start, .. } => {
                index[*axis as usize] += *start as u64;
                origin(g, node.operands[0], index)
            }
            Op::Broadcast { .. } => origin(g, node.operands[0], index[index.len() - from.len()..].to_vec()),
            Op::Concat { axis } => {
                let part = node.operands.iter().find(|o| {
                    let size = consts(g, **o)[*axis as usize];
                    let inside = index[*axis as usize] < size;
                    if !inside {
                        index[*axis as usize] -= size;
                    }
                    inside
                });
                origin(g, *part.unwrap(), index)
            }
            Op::Reshape { .. } => {
                let linear = consts(g, v).iter().zip(&index).fold(0, |n, (d, i)| n * d + i);
                let mut rest = linear;
                let mut source = vec![0; from.len()];
                for k in (0..from.len()).rev() {
                    source[k] = rest % from[k];
                    rest /= from[k];
                }
                origin(g, node.operands[0], source)
            }
            _ => (v, index),
        }
    }
}
