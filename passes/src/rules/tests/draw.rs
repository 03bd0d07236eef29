//! Random instances of a rule's left side, drawn from its patterns alone: from the root down, each op asks its operands
//! for types that would suit it, and the op table has the last word. Types that a condition refuses are drawn as well as
//! types that it accepts, so a rule without its condition meets what the condition kept away.

use super::support::Random;
use crate::egraph::{ENode, Facts, LeafFacts, Net, Term, typed_op};
use egg::{ENodeOrVar, Id, PatternAst, Subst, Var};
use std::collections::BTreeMap;
use std::sync::Arc;
use weldment_ir::{Attr, AttrKind, DType, Dim, Graph, IrError, Op, OpKind, Real, Shape, TensorType, Value};

/// Elements of one value of an instance, symbols counted at their largest.
const MAX_ELEMENTS: u64 = 512;
/// Largest size of a symbol.
pub(super) const MAX_SYMBOL: u64 = 4;

/// Columns of scores: as many as there are positions (two blocks of two), or a few more.
const WINDOWS: [u64; 3] = [4, 4, 5];

/// What a leaf is in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaf {
    Input,
    Weight,
    State,
}

/// A left side in an e-graph of its own.
pub(super) struct Instance {
    pub net: Net,
    /// The variables of the patterns.
    pub subst: Subst,
    /// The class that the rule matches at.
    pub root: Id,
    /// What variables are bound to, values and attributes.
    pub bound: Vec<Id>,
    leaves: Vec<Leaf>,
    /// Every node, operands first.
    nodes: Vec<(Id, ENode)>,
}

impl Instance {
    /// Without nodes.
    pub fn new() -> Instance {
        Instance {
            net: Net::new(Facts::default()),
            subst: Subst::default(),
            root: Id::from(0),
            bound: Vec::new(),
            leaves: Vec::new(),
            nodes: Vec::new(),
        }
    }

    /// A leaf; None if no tensor has this type.
    pub fn leaf(&mut self, leaf: Leaf, ty: TensorType) -> Option<Id> {
        let op = Op::input("leaf", ty.dtype, ty.shape.clone());
        op.infer(&[]).ok()?;
        let index = self.leaves.len() as u32;
        self.leaves.push(leaf);
        self.net.analysis.leaves.push(LeafFacts { ty, fixed: leaf == Leaf::Weight });
        let id = self.node(ENode::Leaf(index));
        self.bound.push(id);
        Some(id)
    }

    pub fn attr(&mut self, attr: Attr) -> Id {
        self.node(ENode::Attr(attr))
    }

    /// A node over classes; None if the op table refuses it or it is larger than instances are.
    pub fn op(&mut self, kind: OpKind, operands: &[Id], attrs: &[Attr]) -> Option<Id> {
        let mut children = operands.to_vec();
        for attr in attrs {
            children.push(self.attr(attr.clone()));
        }
        let id = self.node(ENode::Op(kind, children.into()));
        let facts = self.net[id].data.value()?;
        let room = facts.types.iter().all(|t| elements(&t.shape).is_some_and(|n| n <= MAX_ELEMENTS));
        room.then_some(id)
    }

    fn node(&mut self, node: ENode) -> Id {
        let known = self.net.lookup(node.clone());
        let id = self.net.add(node.clone());
        if known.is_none() {
            self.nodes.push((id, node));
        }
        id
    }

    pub fn ty(&self, id: Id) -> Option<&TensorType> {
        self.net[id].data.ty()
    }

    /// The graph of the left side, with the value of each class; `emit` adds terms to it.
    pub fn graph(&self) -> Result<(Graph, BTreeMap<Id, Value>), IrError> {
        let mut graph = Graph::new("instance");
        for symbol in ["T", "U", "B", "P", "N"] {
            graph.declare_symbol(symbol, 1, MAX_SYMBOL);
        }
        let mut values: BTreeMap<Id, Value> = BTreeMap::new();
        for (id, node) in &self.nodes {
            let value = match node {
                ENode::Attr(_) => continue,
                ENode::Leaf(i) => {
                    let ty = &self.net.analysis.leaves[*i as usize].ty;
                    let name: Arc<str> = format!("leaf{i}").into();
                    let (dtype, shape) = (ty.dtype, ty.shape.clone());
                    let op = match self.leaves[*i as usize] {
                        Leaf::Input => Op::input(&name, dtype, shape),
                        Leaf::Weight => Op::Weight { name, dtype, shape },
                        Leaf::State => Op::State { name, dtype, shape },
                    };
                    Value { node: graph.add(op, &[], Default::default())?, result: 0 }
                }
                ENode::Result(result, [of]) => Value { result: *result, ..values[of] },
                ENode::Op(kind, _) => {
                    let (operands, attrs) = node.split();
                    let (op, _) = typed_op(&self.net, *kind, operands, attrs)?;
                    let operands: Vec<Value> = operands.iter().map(|o| values[o]).collect();
                    Value { node: graph.add(op, &operands, Default::default())?, result: 0 }
                }
            };
            values.insert(*id, value);
        }
        Ok((graph, values))
    }

    /// Adds a term over the instance's classes to its graph.
    pub fn emit(&self, graph: &mut Graph, values: &BTreeMap<Id, Value>, term: &Term) -> Result<Value, IrError> {
        match term {
            Term::Class(id) => Ok(values[id]),
            Term::Result(i, of) => Ok(Value { result: *i, ..self.emit(graph, values, of)? }),
            Term::Op(kind, children) => {
                let (mut operands, mut attrs) = (Vec::new(), Vec::new());
                for child in children {
                    match child {
                        Term::Attr(a) => attrs.push(a.clone()),
                        Term::Class(id) if self.net[*id].data.attr().is_some() => {
                            attrs.extend(self.net[*id].data.attr().cloned());
                        }
                        other => operands.push(self.emit(graph, values, other)?),
                    }
                }
                let node = graph.add(Op::from_attrs(*kind, &attrs)?, &operands, Default::default())?;
                Ok(Value { node, result: 0 })
            }
            Term::Attr(_) => Err(IrError::UnknownOp("an attribute where a value is expected".into())),
        }
    }
}

fn elements(shape: &[Dim]) -> Option<u64> {
    shape.iter().try_fold(1u64, |n, d| n.checked_mul(d.constant().unwrap_or(MAX_SYMBOL)))
}

/// The patterns of a left side.
pub(super) type Patterns = Vec<(Option<Var>, PatternAst<ENode>)>;

/// Draws one instance; None where the types did not come out, which asks for another draw.
pub(super) fn draw(patterns: &Patterns, random: &mut Random) -> Option<Instance> {
    let mut draw = Draw { patterns, instance: Instance::new(), random };
    let (name, first) = patterns.first()?;
    let want = draw.any_type();
    let root = draw.term(first, last(first), Some(&want))?;
    if let Some(name) = name {
        draw.instance.subst.insert(*name, root);
    }
    draw.instance.root = root;
    // Patterns whose class no other pattern reads.
    for (name, pattern) in patterns.iter().skip(1) {
        let drawn = name.is_some_and(|n| draw.instance.subst.get(n).is_some());
        if !drawn {
            let id = draw.term(pattern, last(pattern), None)?;
            name.map(|n| draw.instance.subst.insert(n, id));
        }
    }
    Some(draw.instance)
}

fn last(pattern: &PatternAst<ENode>) -> usize {
    pattern.len() - 1
}

struct Draw<'a> {
    patterns: &'a Patterns,
    instance: Instance,
    random: &'a mut Random,
}

impl Draw<'_> {
    fn one_in(&mut self, n: u64) -> bool {
        self.random.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.random.below(items.len() as u64) as usize].clone()
    }

    fn dim(&mut self) -> Dim {
        let n = self.pick(&[1, 2, 2, 3, 4, 4, 8, 32, 32, 0, 0, 0, 0]);
        if n > 0 { Dim::Const(n) } else { self.pick(&[Dim::sym("T"), Dim::sym("T"), Dim::sym("U")]) }
    }

    /// A size that a contraction or a block can run over.
    fn width(&mut self) -> u64 {
        self.pick(&[1, 2, 3, 4, 4, 8, 32, 32, 64])
    }

    fn shape(&mut self) -> Shape {
        let rank = self.pick(&[1, 2, 2, 2, 3, 3]);
        let mut shape: Shape = (1..rank).map(|_| self.dim()).collect();
        let width = self.width();
        shape.push(if self.one_in(6) { self.dim() } else { Dim::Const(width) });
        shape
    }

    fn float(&mut self) -> DType {
        self.pick(&[DType::F32, DType::F32, DType::F32, DType::BF16, DType::BF16, DType::F16])
    }

    fn any_type(&mut self) -> TensorType {
        let dtype = match self.random.below(16) {
            0 => self.pick(&[DType::I32, DType::U8, DType::I64, DType::F8E4M3, DType::F8E5M2Fnuz, DType::F4E2M1]),
            1 | 2 => DType::Q8A,
            _ => self.float(),
        };
        TensorType::new(dtype, self.shape())
    }

    fn term(&mut self, pattern: &PatternAst<ENode>, at: usize, want: Option<&TensorType>) -> Option<Id> {
        match &pattern.as_ref()[at] {
            ENodeOrVar::Var(v) => self.variable(*v, want, Leaf::Input),
            ENodeOrVar::ENode(ENode::Attr(a)) => Some(self.instance.attr(a.clone())),
            ENodeOrVar::ENode(ENode::Leaf(_)) => None,
            ENodeOrVar::ENode(ENode::Result(i, [of])) => {
                let of = self.term(pattern, usize::from(*of), want)?;
                Some(self.instance.node(ENode::Result(*i, [of])))
            }
            ENodeOrVar::ENode(node @ ENode::Op(kind, _)) => {
                let (operands, attrs) = node.split();
                let bound: Vec<Option<Attr>> = attrs.iter().map(|a| self.bound(pattern, usize::from(*a))).collect();
                let (mut ids, mut types) = (Vec::new(), Vec::new());
                for (i, operand) in operands.iter().enumerate() {
                    let hint = self.operand(*kind, i, want, &types, &bound);
                    let leaf = if hint.is_some() { self.leaf_of(*kind, i) } else { Leaf::Input };
                    let id = match &pattern.as_ref()[usize::from(*operand)] {
                        ENodeOrVar::Var(v) => self.variable(*v, hint.as_ref(), leaf)?,
                        _ => self.term(pattern, usize::from(*operand), hint.as_ref())?,
                    };
                    types.push(self.instance.ty(id)?.clone());
                    ids.push(id);
                }
                let mut values: Vec<Attr> = Vec::new();
                for (i, at) in attrs.iter().enumerate() {
                    // An operand may have bound it in the meantime.
                    let value = match self.bound(pattern, usize::from(*at)) {
                        Some(value) => value,
                        None => self.attribute(*kind, i, want, &types, &values)?,
                    };
                    if let ENodeOrVar::Var(v) = &pattern.as_ref()[usize::from(*at)] {
                        let id = self.instance.attr(value.clone());
                        self.instance.bound.push(id);
                        self.instance.subst.insert(*v, id);
                    }
                    values.push(value);
                }
                self.instance.op(*kind, &ids, &values)
            }
        }
    }

    /// The attribute at this place of a pattern, if it is written out or known already.
    fn bound(&self, pattern: &PatternAst<ENode>, at: usize) -> Option<Attr> {
        match &pattern.as_ref()[at] {
            ENodeOrVar::ENode(ENode::Attr(a)) => Some(a.clone()),
            ENodeOrVar::Var(v) => self.instance.net[*self.instance.subst.get(*v)?].data.attr().cloned(),
            ENodeOrVar::ENode(_) => None,
        }
    }

    fn variable(&mut self, v: Var, want: Option<&TensorType>, leaf: Leaf) -> Option<Id> {
        if let Some(id) = self.instance.subst.get(v) {
            return Some(*id);
        }
        let patterns = self.patterns;
        let id = match patterns.iter().find(|(name, _)| *name == Some(v)) {
            Some((_, pattern)) => self.term(pattern, last(pattern), want)?,
            None => {
                let ty = want.cloned().unwrap_or_else(|| self.any_type());
                self.value(leaf, ty)?
            }
        };
        self.instance.subst.insert(v, id);
        Some(id)
    }

    /// A leaf, or now and then a known number.
    fn value(&mut self, leaf: Leaf, ty: TensorType) -> Option<Id> {
        let small = elements(&ty.shape) == Some(1);
        if ty.dtype.is_compute_float() && leaf != Leaf::State && (small && !self.one_in(3) || self.one_in(6)) {
            let value = Real(self.pick(&[0.0, -0.0, 0.0625, 1e-6, 3.3e-7, 0.1, 1.0, -0.5]));
            let scalar = self.instance.op(OpKind::Constant, &[], &[Attr::Real(value), Attr::DType(ty.dtype)])?;
            return match ty.shape.is_empty() {
                true => Some(scalar),
                false => self.instance.op(OpKind::Broadcast, &[scalar], &[Attr::Shape(ty.shape)]),
            };
        }
        self.instance.leaf(leaf, ty)
    }

    fn leaf_of(&mut self, kind: OpKind, operand: usize) -> Leaf {
        match (kind, operand) {
            (OpKind::CacheWrite | OpKind::RopeCacheWrite, 0)
            | (OpKind::Attention | OpKind::SparseAttention, 1 | 2)
            | (OpKind::IndexScores, 2) => Leaf::State,
            (OpKind::Matmul | OpKind::MatmulAdd | OpKind::MatmulSiluMul, 1..) => {
                self.pick(&[Leaf::Weight, Leaf::Weight, Leaf::Weight, Leaf::Input])
            }
            (OpKind::SiluMul, 1) => self.pick(&[Leaf::Input, Leaf::Weight]),
            _ => self.pick(&[Leaf::Input, Leaf::Input, Leaf::Input, Leaf::Weight]),
        }
    }

    /// A type for operand `i` that may give the op the result type `want`; earlier operands are known.
    fn operand(
        &mut self,
        kind: OpKind,
        i: usize,
        want: Option<&TensorType>,
        known: &[TensorType],
        attrs: &[Option<Attr>],
    ) -> Option<TensorType> {
        let want = want.cloned().unwrap_or_else(|| self.any_type());
        let float = if want.dtype.is_compute_float() { want.dtype } else { self.float() };
        let mostly = |draw: &mut Self, dtype: DType| if draw.one_in(8) { draw.float() } else { dtype };
        let tokens = |t: &TensorType| t.shape.first().cloned();
        let typed = |dtype: DType, shape: &[Dim]| Some(TensorType::new(dtype, shape));
        match (kind, i) {
            (OpKind::Add | OpKind::Sub | OpKind::Mul | OpKind::Div | OpKind::Maximum | OpKind::Minimum, _) => {
                let other = known.first().cloned().unwrap_or(want);
                let shape = match self.random.below(16) {
                    0..3 => self.repeated(&other.shape),
                    3 | 9 => self.widened(&other.shape),
                    4 | 5 => Vec::new(),
                    10 => other.shape.iter().filter(|d| **d != Dim::Const(1)).cloned().collect(),
                    6..9 => other.shape[other.rank().saturating_sub(1)..].to_vec(),
                    _ => other.shape,
                };
                typed(other.dtype, &shape)
            }
            (OpKind::Cast, _) => {
                let stored = [DType::BF16, DType::F16, DType::F32, want.dtype, want.dtype];
                let rare = [DType::Q8_0, DType::Q8A, DType::I32, DType::F8E4M3];
                let dtype = if self.one_in(8) { self.pick(&rare) } else { self.pick(&stored) };
                typed(dtype, &want.shape)
            }
            (OpKind::ReduceSum | OpKind::ReduceMean | OpKind::ReduceMax, _) => {
                let mut shape = want.shape;
                let ones: Vec<usize> = (0..shape.len()).filter(|a| shape[*a] == Dim::Const(1)).collect();
                if !ones.is_empty() {
                    let axis = self.pick(&ones);
                    shape[axis] = Dim::Const(self.width());
                }
                typed(float, &shape)
            }
            (OpKind::Reshape, _) => typed(want.dtype, &self.regrouped(&want.shape)),
            (OpKind::Transpose, _) => typed(want.dtype, &self.shuffled(&want.shape)),
            (OpKind::Slice, _) => {
                let mut shape = want.shape;
                let axis = match attrs.first() {
                    Some(Some(Attr::Int(axis))) => usize::try_from(*axis).ok()?,
                    _ => self.random.below(shape.len().max(1) as u64) as usize,
                };
                let block = if axis + 1 == shape.len() { want.dtype.block_elements() as u64 } else { 1 };
                *shape.get_mut(axis)? = Dim::Const(self.pick(&[1, 2, 3, 4, 8]) * block);
                typed(want.dtype, &shape)
            }
            (OpKind::Broadcast, _) => typed(want.dtype, &self.repeated(&want.shape)),
            (OpKind::RmsNorm | OpKind::RmsNormQuantise, 1) | (OpKind::AddRmsNorm | OpKind::AddRmsNormQuantise, 2) => {
                let dtype = mostly(self, known[0].dtype);
                typed(dtype, &known[0].shape[known[0].rank().checked_sub(1)?..])
            }
            (OpKind::AddRmsNorm | OpKind::AddRmsNormQuantise | OpKind::SiluMul, 1) => known.first().cloned(),
            (OpKind::Matmul | OpKind::MatmulAdd | OpKind::MatmulSiluMul, 0) => {
                let mut shape = want.shape;
                *shape.last_mut()? = Dim::Const(self.width());
                let blocks = shape.last().and_then(Dim::constant).is_some_and(|k| k % 32 == 0);
                typed(if blocks && self.one_in(5) { DType::Q8A } else { mostly(self, float) }, &shape)
            }
            (OpKind::Matmul | OpKind::MatmulAdd, 1) | (OpKind::MatmulSiluMul, 1) => {
                let depth = known[0].shape.last()?.clone();
                let blocks = depth.constant().is_some_and(|k| k % 32 == 0);
                let formats = [DType::Q4_1, DType::Q8_0, DType::MxFp4, DType::F8E4M3, DType::BF16];
                let dtype = if blocks && self.one_in(2) { self.pick(&formats) } else { mostly(self, DType::F32) };
                typed(dtype, &[want.shape.last()?.clone(), depth])
            }
            (OpKind::MatmulAdd, 2) => typed(self.float(), &self.repeated(&want.shape)),
            (OpKind::MatmulSiluMul, 2) => known.get(1).cloned(),
            (OpKind::Rope, 0) => match want.shape.as_slice() {
                [t, h, _] if t.constant().is_none() => {
                    let depth = Dim::Const(self.pick(&[2, 4, 8]));
                    typed(float, &[t.clone(), h.clone(), depth])
                }
                _ => typed(float, &[Dim::sym("T"), Dim::Const(self.pick(&[1, 2])), Dim::Const(4)]),
            },
            (OpKind::Rope, 1) => typed(DType::I32, &[tokens(&known[0])?]),
            (OpKind::Rope, 2) => {
                let depth = known[0].last_constant()?;
                let rotary = if self.one_in(3) { 2 } else { depth };
                typed(DType::F32, &[Dim::Const(8), Dim::Const(rotary)])
            }
            (OpKind::CacheWrite, 0) => {
                let (slots, depth) = (self.pick(&[2, 4]), self.pick(&[2, 4, 4]));
                typed(float, &[Dim::Const(4), Dim::Const(self.pick(&[1, 2])), Dim::Const(slots), Dim::Const(depth)])
            }
            (OpKind::CacheWrite, 1) => {
                let dtype = mostly(self, known[0].dtype);
                let depth = known[0].shape[self.pick(&[2, 3])].clone();
                typed(dtype, &[Dim::sym("T"), known[0].shape[1].clone(), depth])
            }
            (OpKind::CacheWrite, 2 | 3) => typed(DType::I32, &[tokens(&known[1])?]),
            (OpKind::CacheWrite, 4) | (OpKind::Attention | OpKind::IndexScores, 5) | (OpKind::SparseAttention, 6) => {
                typed(DType::I32, &[Dim::Const(2), Dim::Const(2)])
            }
            (OpKind::Attention | OpKind::SparseAttention | OpKind::IndexScores, 0) => {
                let (heads, depth) = (self.pick(&[1, 2, 4]), self.pick(&[2, 4, 32]));
                typed(float, &[Dim::sym("T"), Dim::Const(heads), Dim::Const(depth)])
            }
            (OpKind::Attention | OpKind::SparseAttention, 1 | 2) => {
                let (d, heads) = (known[0].shape[2].clone(), Dim::Const(self.pick(&[1, 1, 2])));
                let cache = |h: Dim| if i == 1 { [4.into(), h, d, 2.into()] } else { [4.into(), h, 2.into(), d] };
                typed(float, &cache(if i == 1 { heads } else { known[1].shape[1].clone() }))
            }
            (OpKind::Attention | OpKind::IndexScores, 3 | 4) | (OpKind::SparseAttention, 4 | 5) | (OpKind::Topk, 1) => {
                typed(DType::I32, &[tokens(&known[0])?])
            }
            (OpKind::SparseAttention, 3) => typed(DType::I32, &[tokens(&known[0])?, Dim::Const(self.pick(&WINDOWS))]),
            (OpKind::IndexScores, 1) => typed(mostly(self, float), &known[0].shape[..2]),
            (OpKind::IndexScores, 2) => {
                typed(float, &[Dim::Const(4), Dim::Const(1), known[0].shape[2].clone(), Dim::Const(2)])
            }
            // Rows that a norm may read as they are, or wider.
            (OpKind::AllReduce, _) => typed(float, &want.shape),
            (OpKind::Topk, 0) => typed(DType::F32, &[Dim::sym("T"), Dim::Const(self.pick(&WINDOWS))]),
            (OpKind::Window, 0) => typed(DType::I32, &[Dim::sym("T")]),
            // Ops whose operands are like their result.
            _ => typed(float, &want.shape),
        }
    }

    /// A value for attribute `i`; operands and earlier attributes are known.
    fn attribute(
        &mut self,
        kind: OpKind,
        i: usize,
        want: Option<&TensorType>,
        known: &[TensorType],
        before: &[Attr],
    ) -> Option<Attr> {
        let first = known.first();
        let (name, attr_kind) = kind.info().attrs[i];
        Some(match (kind, name, attr_kind) {
            (OpKind::Reshape, ..) => {
                let from = first?;
                let fits = |want: &&TensorType| {
                    Op::Reshape { shape: want.shape.clone() }.infer(std::slice::from_ref(from)).is_ok()
                };
                Attr::Shape(match want.filter(fits) {
                    Some(want) => want.shape.clone(),
                    None => self.regrouped(&from.shape),
                })
            }
            (OpKind::Broadcast, ..) => Attr::Shape(match want {
                Some(want) => want.shape.clone(),
                None => self.widened(&first?.shape),
            }),
            (OpKind::Transpose, ..) => {
                let rank = first?.rank();
                let order: Vec<i64> = (0..rank as i64).collect();
                Attr::Ints(if self.one_in(3) { order } else { self.shuffled(&order) })
            }
            (_, "axis", _) => Attr::Int(match (kind, self.random.below(2)) {
                (OpKind::ReduceSum | OpKind::ReduceMean | OpKind::ReduceMax, 1) => first?.rank() as i64 - 1,
                _ => self.random.below(first?.rank().max(1) as u64) as i64,
            }),
            (OpKind::Slice, "start" | "end", _) => {
                let Some(Attr::Int(axis)) = before.first() else { return None };
                let axis = usize::try_from(*axis).ok()?;
                let size = first?.shape.get(axis)?.constant()? as i64;
                let block = if axis + 1 == first?.rank() { first?.dtype.block_elements() as i64 } else { 1 };
                let whole = self.one_in(3);
                Attr::Int(match before.get(1) {
                    None if whole => 0,
                    None => self.random.below((size / block).max(1) as u64) as i64 * block,
                    Some(_) if whole => size,
                    Some(Attr::Int(start)) => {
                        start + block * (1 + self.random.below(((size - start) / block).max(1) as u64) as i64)
                    }
                    Some(_) => return None,
                })
            }
            (_, "eps", _) => Attr::Real(Real(self.pick(&[0.0, 0.0625, 1e-6, 3.3e-7, 0.1]))),
            (_, "scale", _) => Attr::Real(Real(self.pick(&[0.5, 1.0, 0.25]))),
            (OpKind::Quantise, "dtype", _) | (OpKind::RmsNormQuantise | OpKind::AddRmsNormQuantise, "format", _) => {
                Attr::DType(self.pick(&[DType::F8E4M3, DType::F8E4M3Fnuz, DType::F4E2M1]))
            }
            (OpKind::RmsNormQuantise | OpKind::AddRmsNormQuantise, "dtype", _) => Attr::DType(self.float()),
            (_, "group", _) => {
                let width = first?.last_constant().filter(|k| *k > 0)?;
                Attr::Int(self.pick(&[width, width, 32.min(width), 2.min(width), 1]) as i64)
            }
            (_, _, AttrKind::DType) => Attr::DType(match want {
                Some(want) if kind == OpKind::Cast || !self.one_in(6) => want.dtype,
                _ => self.float(),
            }),
            (OpKind::Topk | OpKind::Window, "k", _) => match want.and_then(TensorType::last_constant) {
                Some(k) if WINDOWS.contains(&k) && !self.one_in(4) => Attr::Int(k as i64),
                _ => Attr::Int(self.pick(&[1, 2, 3, 4, 5])),
            },
            (OpKind::IndexScores, "columns", _) => {
                let wanted =
                    want.and_then(|t| t.shape.last().cloned()).filter(|d| d.constant().is_some_and(|n| n >= 4));
                Attr::Shape(vec![wanted.unwrap_or(Dim::Const(self.pick(&WINDOWS)))])
            }
            (_, "world", _) => Attr::Int(self.pick(&[2, 2, 3, 4])),
            (OpKind::IndexScores, "skip", _) => Attr::Int(self.pick(&[0, 1, 2, 3])),
            (OpKind::Attention, "window", _) => Attr::Int(self.pick(&[0, 0, 1, 2, 3])),
            (_, _, AttrKind::Flag) => Attr::Flag(self.one_in(2)),
            _ => return None,
        })
    }

    /// A shape that broadcasts to this one.
    fn repeated(&mut self, shape: &[Dim]) -> Shape {
        let cut = if self.one_in(2) { self.random.below(shape.len() as u64 + 1) as usize } else { 0 };
        shape[cut..].iter().map(|d| if self.one_in(4) { Dim::Const(1) } else { d.clone() }).collect()
    }

    /// A shape that this one broadcasts to.
    fn widened(&mut self, shape: &[Dim]) -> Shape {
        let mut out: Shape = self.pick(&[vec![], vec![Dim::Const(2)], vec![Dim::sym("T")]]);
        for dim in shape {
            let dim = if *dim == Dim::Const(1) { self.dim() } else { dim.clone() };
            out.push(dim);
        }
        out
    }

    fn shuffled<T: Clone>(&mut self, items: &[T]) -> Vec<T> {
        let mut out = items.to_vec();
        for i in (1..out.len()).rev() {
            out.swap(i, self.random.below(i as u64 + 1) as usize);
        }
        out
    }

    /// A shape with the same elements: dims cut, joined, moved, and dims of 1 added and taken away.
    fn regrouped(&mut self, shape: &[Dim]) -> Shape {
        let mut out = shape.to_vec();
        for _ in 0..=self.random.below(3) {
            let at = self.random.below(out.len().max(1) as u64) as usize;
            match (self.random.below(5), out.get(at).and_then(Dim::constant), out.get(at + 1).and_then(Dim::constant)) {
                (0, ..) if out.len() < 5 => out.insert(at, Dim::Const(1)),
                (1, Some(n), _) if n.is_multiple_of(2) => {
                    out[at] = Dim::Const(n / 2);
                    out.insert(at + usize::from(n != 64), Dim::Const(2));
                }
                (2, Some(a), Some(b)) => {
                    out[at] = Dim::Const(a * b);
                    out.remove(at + 1);
                }
                (3, Some(1), _) => drop(out.remove(at)),
                (4, ..) if at + 1 < out.len() => out.swap(at, at + 1),
                _ => {}
            }
        }
        out
    }
}
