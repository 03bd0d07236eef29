//! What the e-graph knows of each class: types, static-ness, a uniform value, a range, and where the class first stood
//! in the graph. Facts of a class are true of every node in it, so they only grow.

use super::language::ENode;
use egg::{Analysis, DidMerge, EGraph, Id};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weldment_ir::{Attr, Category, Dim, IrError, Op, OpKind, Range, Real, TensorType};

/// An e-graph over the op table.
pub type Net = EGraph<ENode, Facts>;

/// What is known of a leaf.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeafFacts {
    /// Its type.
    pub ty: TensorType,
    /// True if it depends on weights and constants alone.
    pub fixed: bool,
}

/// Facts of a value class.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueFacts {
    /// Result types: one, or one a result for a node with several.
    pub types: Arc<[TensorType]>,
    /// True if it depends on weights and constants alone, so that it is computed once and costs nothing in a step.
    pub fixed: bool,
    /// The value of every element, where it is the same known number.
    pub uniform: Option<Real>,
    /// Bounds of every element.
    pub range: Option<(Real, Real)>,
    /// Smallest index, in the graph before any rule, of a node in this class.
    pub order: Option<u32>,
    /// True if, before any rule, the value fed a gate (silu, gelu, sigmoid). Names a merged set; no condition reads it.
    pub gate: bool,
}

/// The analysis data of a class.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// An attribute.
    Attr(Attr),
    /// A value.
    Value(ValueFacts),
    /// A node that does not type; never added by rules, which infer first.
    Untyped,
}

impl Data {
    /// Facts of a value class.
    pub fn value(&self) -> Option<&ValueFacts> {
        match self {
            Data::Value(v) => Some(v),
            _ => None,
        }
    }

    /// The type of a single-result value class.
    pub fn ty(&self) -> Option<&TensorType> {
        self.value().and_then(|v| v.types.first())
    }

    /// The attribute.
    pub fn attr(&self) -> Option<&Attr> {
        match self {
            Data::Attr(a) => Some(a),
            _ => None,
        }
    }
}

/// The analysis: leaves, and any contradiction found while merging.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Leaf facts by [`ENode::Leaf`] index.
    pub leaves: Vec<LeafFacts>,
    /// Ranges of the symbolic dims: of one variant, as every e-graph is.
    pub ranges: BTreeMap<Arc<str>, Range>,
    /// Places, in the graph before any rule, of values that only choose the positions of a top-k. Names a merged set, as `gate` does.
    pub scoring: BTreeSet<u32>,
    /// Set when two classes of different types were merged: a wrong rule.
    pub conflict: Option<String>,
}

impl Facts {
    /// The largest value of a dim.
    pub fn most(&self, dim: &Dim) -> Option<u64> {
        match dim {
            Dim::Const(n) => Some(*n),
            Dim::Sym(s) => self.ranges.get(s).map(|r| r.max),
        }
    }
}

/// The op of an e-node and its operand types.
///
/// # Errors
/// If an attribute or operand is not what the table says.
pub fn typed_op(net: &Net, kind: OpKind, operands: &[Id], attrs: &[Id]) -> Result<(Op, Vec<TensorType>), IrError> {
    let wrong = |message: &str| IrError::InvalidOp { op: kind.info().name, message: message.to_owned() };
    let values: Option<Vec<Attr>> = attrs.iter().map(|id| net[*id].data.attr().cloned()).collect();
    let op = ENode::op(kind, &values.ok_or_else(|| wrong("a value stands where an attribute is expected"))?)?;
    let types: Option<Vec<TensorType>> = operands.iter().map(|id| net[*id].data.ty().cloned()).collect();
    Ok((op, types.ok_or_else(|| wrong("an operand has no type"))?))
}

/// Facts of an op's results from its operands' facts.
pub fn value_facts(op: &Op, types: Vec<TensorType>, operands: &[&ValueFacts]) -> ValueFacts {
    let info = op.kind().info();
    let fixed = !matches!(op, Op::Input { .. } | Op::State { .. })
        && info.category != Category::StateWrite
        && !op.communicates()
        && operands.iter().all(|o| o.fixed);
    let uniform = uniform(op, operands);
    let range = uniform.map(|u| (u, u)).or_else(|| range(op, operands));
    ValueFacts { types: types.into(), fixed, uniform, range, order: None, gate: false }
}

fn uniform(op: &Op, operands: &[&ValueFacts]) -> Option<Real> {
    let at = |i: usize| operands.get(i).and_then(|o: &&ValueFacts| o.uniform).map(|r| r.0);
    let value = match op {
        // Other dtypes would need the value rounded to them first; all of them hold these.
        Op::Constant { value, dtype }
            if *dtype == weldment_ir::DType::F32
                || (dtype.is_compute_float() && value.0.fract() == 0.0 && value.0.abs() <= 256.0) =>
        {
            value.0
        }
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } | Op::Broadcast { .. } => at(0)?,
        Op::Neg {} => -at(0)?,
        _ => return None,
    };
    Some(Real(value)).filter(|r| r.0.is_finite())
}

fn range(op: &Op, operands: &[&ValueFacts]) -> Option<(Real, Real)> {
    let at = |i: usize| operands.get(i).and_then(|o: &&ValueFacts| o.range);
    match op {
        Op::Sigmoid {} | Op::Softmax {} => Some((Real(0.0), Real(1.0))),
        Op::Tanh {} => Some((Real(-1.0), Real(1.0))),
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } | Op::Broadcast { .. } => at(0),
        Op::ReduceMax { .. } => at(0),
        Op::Neg {} => at(0).map(|(low, high)| (Real(-high.0), Real(-low.0))),
        Op::Maximum {} => match (at(0), at(1)) {
            (Some(a), Some(b)) => Some((a.0.max(b.0), a.1.max(b.1))),
            _ => None,
        },
        Op::Minimum {} => match (at(0), at(1)) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.min(b.1))),
            _ => None,
        },
        _ => None,
    }
}

impl Analysis<ENode> for Facts {
    type Data = Data;

    fn make(net: &mut Net, node: &ENode, _: Id) -> Data {
        match node {
            ENode::Attr(a) => Data::Attr(a.clone()),
            ENode::Leaf(i) => net.analysis.leaves.get(*i as usize).map_or(Data::Untyped, |leaf| {
                Data::Value(ValueFacts {
                    types: Arc::from([leaf.ty.clone()]),
                    fixed: leaf.fixed,
                    uniform: None,
                    range: None,
                    order: None,
                    gate: false,
                })
            }),
            ENode::Result(i, [child]) => match net[*child].data.value() {
                Some(v) => v.types.get(*i as usize).map_or(Data::Untyped, |t| {
                    Data::Value(ValueFacts { types: Arc::from([t.clone()]), uniform: None, range: None, ..v.clone() })
                }),
                None => Data::Untyped,
            },
            ENode::Op(kind, _) => {
                let (operands, attrs) = node.split();
                let typed = typed_op(net, *kind, operands, attrs)
                    .and_then(|(op, types)| Ok((op.infer(&types)?, op)))
                    .ok()
                    .map(|(results, op)| {
                        let facts: Vec<&ValueFacts> = operands.iter().filter_map(|o| net[*o].data.value()).collect();
                        Data::Value(value_facts(&op, results, &facts))
                    });
                typed.unwrap_or(Data::Untyped)
            }
        }
    }

    fn merge(&mut self, a: &mut Data, b: Data) -> DidMerge {
        if *a == b {
            return DidMerge(false, false);
        }
        let (Data::Value(a), Data::Value(b)) = (&mut *a, &b) else {
            self.conflict.get_or_insert_with(|| format!("{a:?} and {b:?} were merged"));
            return DidMerge(false, true);
        };
        if a.types != b.types {
            self.conflict.get_or_insert_with(|| format!("{:?} and {:?} were merged", a.types, b.types));
        }
        let before = a.clone();
        a.fixed |= b.fixed;
        a.gate |= b.gate;
        a.uniform = a.uniform.or(b.uniform);
        a.range = match (a.range, b.range) {
            (Some(x), Some(y)) => Some((x.0.max(y.0), x.1.min(y.1))),
            (x, y) => x.or(y),
        };
        a.order = match (a.order, b.order) {
            (Some(x), Some(y)) => Some(x.min(y)),
            (x, y) => x.or(y),
        };
        DidMerge(*a != before, *a != *b)
    }
}
