//! Where the values of a unit come from, through ops that compute nothing.

use crate::units::{Operand, Unit};
use weldment_ir::{Attr, Category, DType, Op, OpKind, TensorType};

/// Where the values of a unit come from, found once for all nodes, operands first.
pub(super) struct Traces<'a> {
    pub unit: &'a Unit,
    /// What a node's operand is, apart from its dtype and its shape: for ops that give one operand another of either.
    renamed: Vec<Option<Operand>>,
    /// The same for views and casts that lose nothing.
    viewed: Vec<Option<Operand>>,
    /// The dtype that a node's op names, or else that of its first operand.
    dtypes: Vec<Option<DType>>,
}

impl<'a> Traces<'a> {
    pub fn new(unit: &'a Unit) -> Traces<'a> {
        let count = unit.nodes.len();
        let mut out = Traces {
            unit,
            renamed: Vec::with_capacity(count),
            viewed: Vec::with_capacity(count),
            dtypes: Vec::with_capacity(count),
        };
        for node in &unit.nodes {
            let named = node.op.attrs().into_iter().find_map(|a| match a {
                Attr::DType(d) => Some(d),
                _ => None,
            });
            let view = node.op.kind().info().category == Category::View;
            let (renamed, viewed) = match (&node.op, node.operands.as_slice()) {
                (Op::Cast { dtype }, [only]) => (Some(out.root(*only)), out.recast(*only, *dtype)),
                (_, [only]) if view => (Some(out.root(*only)), Some(out.through_views(*only))),
                // A rank's part of a weight is a part of a weight.
                (Op::Shard { .. }, [only]) => (None, Some(out.through_views(*only))),
                _ => (None, None),
            };
            let dtype = named.or_else(|| node.operands.first().and_then(|o| out.dtype(*o)));
            out.renamed.push(renamed);
            out.viewed.push(viewed);
            out.dtypes.push(dtype);
        }
        out
    }

    /// What a cast of an operand to this dtype is, where no cast is needed for it.
    fn recast(&self, only: Operand, dtype: DType) -> Option<Operand> {
        let inner = self.through_views(only);
        if self.dtype(only) == Some(dtype) {
            return Some(inner);
        }
        // Widened before, and back now.
        let Operand::Local(i, _) = inner else { return None };
        let node = &self.unit.nodes[i as usize];
        let (Op::Cast { dtype: DType::F32 }, [narrow]) = (&node.op, node.operands.as_slice()) else { return None };
        let half = matches!(dtype, DType::F16 | DType::BF16) && self.dtype(*narrow) == Some(dtype);
        half.then(|| self.through_views(*narrow))
    }

    fn dtype(&self, operand: Operand) -> Option<DType> {
        match operand {
            Operand::Slot(i) => self.unit.slots.get(i as usize).map(|s| s.ty.dtype),
            Operand::Local(i, _) => *self.dtypes.get(i as usize)?,
        }
    }

    /// An operand, apart from its dtype and its shape.
    pub fn root(&self, operand: Operand) -> Operand {
        let Operand::Local(i, _) = operand else { return operand };
        self.renamed[i as usize].unwrap_or(operand)
    }

    /// An operand with views of one operand and casts that lose nothing taken off.
    pub fn through_views(&self, operand: Operand) -> Operand {
        let Operand::Local(i, _) = operand else { return operand };
        self.viewed[i as usize].unwrap_or(operand)
    }

    /// The node that an operand's value comes from, through views and casts that only rename.
    fn origin(&self, operand: Operand) -> Option<u32> {
        match self.root(operand) {
            Operand::Local(i, _) => Some(i),
            Operand::Slot(_) => None,
        }
    }

    /// The type of an operand and whether it is static, where it is a view of a slot.
    pub fn slot_type(&self, operand: Option<&Operand>) -> Option<(TensorType, bool)> {
        match operand.map(|o| self.through_views(*o)) {
            Some(Operand::Slot(i)) => self.unit.slots.get(i as usize).map(|s| (s.ty.clone(), s.fixed)),
            _ => None,
        }
    }

    /// The node of this kind that an operand comes from: through views, casts and at most one other op that hands its operand on,
    /// which is in the way of a fusion and does not make the place another one.
    pub fn comes_from(&self, operand: Operand, kind: OpKind) -> Option<u32> {
        let is = |n: &u32| self.unit.nodes[*n as usize].op.kind() == kind;
        let near = self.origin(operand)?;
        if is(&near) {
            return Some(near);
        }
        let between = &self.unit.nodes[near as usize];
        let category = between.op.kind().info().category;
        let passes = matches!(category, Category::Elementwise | Category::View | Category::Reduction)
            && !matches!(between.op.kind(), OpKind::Add | OpKind::RmsNorm | OpKind::AddRmsNorm);
        between.operands.iter().filter(|_| passes).find_map(|o| self.origin(*o).filter(is))
    }

    /// The value whose mean square a root is taken of: the operand of the nearest product of a value with itself.
    pub fn squared(&self, root: u32) -> Option<Operand> {
        let mut open = vec![(root, 0)];
        while let Some((node, depth)) = open.pop() {
            let local = &self.unit.nodes[node as usize];
            if let (OpKind::Mul, [a, b]) = (local.op.kind(), local.operands.as_slice())
                && a == b
            {
                return Some(*a);
            }
            // Root, epsilon, mean, product, with room for a view or a cast.
            let next = local.operands.iter().filter_map(|o| self.origin(*o));
            open.extend(next.filter(|_| depth < 5).map(|n| (n, depth + 1)));
        }
        None
    }
}
