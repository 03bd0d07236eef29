//! The same function in other words: no-op views, reshapes, foldable casts, commuted operands, `(1 + w)` norms and odd
//! epsilons, at random places of a graph. What fuses must not depend on them.

use super::Random;
use std::collections::BTreeMap;
use weldment_ir::{Category, DType, Dim, Graph, Op, OpKind, Real, TensorType, Value};

/// What to insert, and how often: one place in so many.
#[derive(Clone, Copy)]
pub struct Obscure {
    pub one_in: u64,
}

struct Copy<'a> {
    out: Graph,
    random: &'a mut Random,
    one_in: u64,
}

impl Obscure {
    /// The graph with insertions. Values change where a norm's weight or epsilon does; types and outputs do not.
    pub fn graph(&self, graph: &Graph, random: &mut Random) -> Graph {
        let mut out = Graph::new(&graph.name);
        for (name, range) in graph.symbols() {
            out.declare_symbol(name, range.min, range.max);
        }
        let mut copy = Copy { out, random, one_in: self.one_in };
        let mut map: BTreeMap<Value, Value> = BTreeMap::new();
        for id in graph.ids() {
            let node = graph.node(id);
            let path = node.sources.iter().next().map_or("", |s| &**s);
            let mut operands: Vec<Value> = node.operands.iter().map(|v| map[v]).collect();
            if matches!(node.op.kind(), OpKind::Add | OpKind::Mul) && copy.random.below(2) == 0 {
                operands.reverse();
            }
            for (i, operand) in operands.iter_mut().enumerate() {
                // Versions of a state stay as they are: a write names its state.
                let state = node.op.kind().info().category == Category::StateWrite && i == 0
                    || node.op.kind() == OpKind::Attention && (i == 1 || i == 2);
                if !state && copy.random.below(copy.one_in) == 0 {
                    *operand = copy.views(path, *operand);
                }
            }
            let op = copy.reworded(path, node.op.clone(), &mut operands);
            let wrapped = copy.random.below(copy.one_in) == 0;
            let made = match wrapped.then(|| copy.wrap(path, &op, &operands)).flatten() {
                Some(value) => value,
                None => {
                    let node = copy.out.add(op, &operands, node.sources.clone()).expect("the same types");
                    Value { node, result: 0 }
                }
            };
            for result in 0..node.types.len() as u32 {
                map.insert(Value { node: id, result }, Value { result, ..made });
            }
        }
        for output in graph.outputs() {
            copy.out.output(&output.name, output.kind.clone(), map[&output.value]);
        }
        copy.out
    }
}

impl Copy<'_> {
    fn push(&mut self, path: &str, op: Op, operands: &[Value]) -> Value {
        self.out.push(path, op, operands).expect("an insertion that types")
    }

    /// Another epsilon, and a norm's weight as Gemma has it.
    fn reworded(&mut self, path: &str, op: Op, operands: &mut [Value]) -> Op {
        let Op::RmsNorm { dtype, .. } = op else { return op };
        let w = self.out.type_of(operands[1]).clone();
        if self.random.below(3) == 0 {
            let one = self.push(path, Op::Constant { value: Real(1.0), dtype: w.dtype }, &[]);
            let pair = if self.random.below(2) == 0 { [one, operands[1]] } else { [operands[1], one] };
            operands[1] = self.push(path, Op::Add {}, &pair);
        }
        let eps = [1e-5, 3.3e-7, 0.1, 1e-6][self.random.below(4) as usize];
        Op::RmsNorm { eps: Real(eps), dtype }
    }

    /// One or two views or casts that change nothing.
    fn views(&mut self, path: &str, mut value: Value) -> Value {
        for _ in 0..=self.random.below(2) {
            value = self.view(path, value);
        }
        value
    }

    fn view(&mut self, path: &str, value: Value) -> Value {
        let t: TensorType = self.out.type_of(value).clone();
        let reshape = |shape: &[Dim]| Op::Reshape { shape: shape.to_vec() };
        let rank = t.rank();
        match self.random.below(9) {
            0 => self.push(path, reshape(&t.shape), &[value]),
            1 | 2 if rank > 0 => {
                let mut shape = t.shape.clone();
                shape.insert(self.random.below(rank as u64) as usize, Dim::Const(1));
                let split = self.push(path, reshape(&shape), &[value]);
                self.push(path, reshape(&t.shape), &[split])
            }
            3 if rank > 0 && !t.dtype.is_block() => {
                let Some(n) = t.last_constant().filter(|n| n % 4 == 0) else { return value };
                let mut shape = t.shape.clone();
                shape[rank - 1] = Dim::Const(n / 4);
                shape.push(Dim::Const(4));
                let split = self.push(path, reshape(&shape), &[value]);
                self.push(path, reshape(&t.shape), &[split])
            }
            4 if !t.dtype.is_block() => self.push(path, Op::Cast { dtype: t.dtype }, &[value]),
            5 if matches!(t.dtype, DType::BF16 | DType::F16) => {
                let wide = self.push(path, Op::Cast { dtype: DType::F32 }, &[value]);
                self.push(path, Op::Cast { dtype: t.dtype }, &[wide])
            }
            6 if rank == 2 && !t.dtype.is_block() => {
                let turned = self.push(path, Op::Transpose { permutation: vec![1, 0] }, &[value]);
                self.push(path, Op::Transpose { permutation: vec![1, 0] }, &[turned])
            }
            7 => match t.shape.iter().position(|d| d.constant().is_some()) {
                Some(axis) => {
                    let end = t.shape[axis].constant().unwrap_or(0) as i64;
                    self.push(path, Op::Slice { axis: axis as i64, start: 0, end }, &[value])
                }
                None => value,
            },
            8 if rank > 0 && t.shape[rank - 1].constant().is_some() => {
                self.push(path, Op::Concat { axis: rank as i64 - 1 }, &[value])
            }
            _ if !t.dtype.is_block() => self.push(path, Op::Broadcast { shape: t.shape.clone() }, &[value]),
            _ => value,
        }
    }

    /// A row-wise op between a reshape with one more dim of 1 and the reshape back.
    fn wrap(&mut self, path: &str, op: &Op, operands: &[Value]) -> Option<Value> {
        let row_wise = matches!(
            op.kind(),
            OpKind::Add
                | OpKind::Mul
                | OpKind::Silu
                | OpKind::Sigmoid
                | OpKind::RmsNorm
                | OpKind::Matmul
                | OpKind::Cast
        );
        let types: Vec<TensorType> = operands.iter().map(|v| self.out.type_of(*v).clone()).collect();
        let result = op.infer(&types).ok()?.remove(0);
        let first = types.first()?.clone();
        if !row_wise || first.rank() < 2 || first.rank() > 3 {
            return None;
        }
        let at = self.random.below(first.rank() as u64) as usize;
        let mut shape = first.shape.clone();
        shape.insert(at, Dim::Const(1));
        let mut inner = operands.to_vec();
        for (i, t) in types.iter().enumerate() {
            // Weights and row vectors stay as they are.
            if i == 0 || matches!(op.kind(), OpKind::Add | OpKind::Mul) && t.rank() > 1 {
                if t.shape != first.shape {
                    return None;
                }
                inner[i] = self.push(path, Op::Reshape { shape: shape.clone() }, &[operands[i]]);
            }
        }
        let made = self.push(path, op.clone(), &inner);
        Some(self.push(path, Op::Reshape { shape: result.shape }, &[made]))
    }
}
