//! How each value is held: decided forwards, and again from the start with fewer splits wherever one met an op without a form for it.

use super::{path, shapes};
use crate::error::PassError;
use std::collections::{BTreeMap, BTreeSet};
use weldment_ir::{Dim, Graph, NodeId, Op, OpKind, OutputKind, TensorType, Value};

/// Equal parts along an axis; the ranks that share one are world / parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cut {
    pub axis: usize,
    pub parts: u64,
}

/// What an op does on a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Itself, on what the rank holds.
    Local,
    /// Itself; its results are summed over ranks.
    Reduced,
    /// Itself, and so is the bias that its one reader adds: the reader's sum is summed over ranks.
    Partial,
    /// Adds to a partial value what only rank 0 is to add: this operand.
    Bias(usize),
    /// A gather from a part of the table's rows; its result is summed over ranks.
    GatherPart,
}

/// A node's part in the plan.
#[derive(Clone, Debug)]
pub(super) struct Role {
    pub form: Form,
    /// How static operands are cut; a value that is computed in the step is held as it is read already.
    pub operands: Vec<Option<Cut>>,
    /// How the results are held.
    pub results: Option<Cut>,
}

/// How a graph is spread over ranks, by node.
pub(super) struct Spread {
    pub roles: Vec<Role>,
    pub fixed: Vec<bool>,
}

/// How a value is held while the plan is made.
#[derive(Clone, Debug)]
enum Held {
    /// The same on all ranks.
    Whole,
    /// Split, and the matmuls that split it.
    Split(Cut, BTreeSet<NodeId>),
    /// Its sum over ranks is meant.
    Partial,
    /// Not known in this round: something before it changes in the next.
    Unknown,
}

/// What the rounds found out. Parts only shrink, so they end.
#[derive(Default)]
struct Findings {
    /// The most parts that a matmul's rows can be split into, where that is not the world, and the node that says so.
    parts: BTreeMap<NodeId, (u64, NodeId)>,
    /// How states are held: by what is written into them. None is whole.
    states: BTreeMap<NodeId, Option<(Cut, BTreeSet<NodeId>)>>,
    changed: bool,
}

impl Findings {
    /// `seeds` are split into `parts` at most, as `because` can take no more.
    fn lower(&mut self, seeds: &BTreeSet<NodeId>, parts: u64, because: NodeId) {
        for seed in seeds {
            let known = self.parts.entry(*seed).or_insert((u64::MAX, because));
            if parts < known.0 {
                *known = (parts, because);
                self.changed = true;
            }
        }
    }
}

/// Decides how `graph`, which has no dead nodes, is spread over `world` ranks.
///
/// # Errors
/// [`PassError::Shard`] for what does not divide.
pub(super) fn spread(graph: &Graph, world: u64) -> Result<Spread, PassError> {
    let fixed = graph.statics();
    let mut findings = Findings::default();
    loop {
        findings.changed = false;
        let mut round =
            Round { graph, fixed: &fixed, world, findings: &mut findings, held: Vec::new(), roles: Vec::new() };
        for id in graph.ids() {
            let (role, held) = round.node(id)?;
            round.roles.push(role);
            round.held.push(held);
        }
        round.outputs();
        let Round { roles, held, .. } = round;
        if findings.changed {
            continue;
        }
        // Nothing splits what these states hold.
        let open: Vec<NodeId> = graph.ids().filter(|id| is_open(graph, &held, *id)).collect();
        if open.is_empty() {
            return Ok(Spread { roles, fixed });
        }
        findings.states.extend(open.into_iter().map(|id| (id, None)));
    }
}

fn is_open(graph: &Graph, held: &[Held], id: NodeId) -> bool {
    matches!(graph.node(id).op, Op::State { .. }) && matches!(held[id.index()], Held::Unknown)
}

struct Round<'a> {
    graph: &'a Graph,
    fixed: &'a [bool],
    world: u64,
    findings: &'a mut Findings,
    held: Vec<Held>,
    roles: Vec<Role>,
}

type Decision = Result<(Role, Held), PassError>;

impl Round<'_> {
    fn ty(&self, v: Value) -> &TensorType {
        self.graph.type_of(v)
    }

    fn is_fixed(&self, v: Value) -> bool {
        self.fixed[v.node.index()]
    }

    /// How an operand is held. Static values are whole, and cut as their readers want.
    fn of(&self, v: Value) -> &Held {
        &self.held[v.node.index()]
    }

    fn whole(&self, id: NodeId) -> (Role, Held) {
        let operands = vec![None; self.graph.node(id).operands.len()];
        (Role { form: Form::Local, operands, results: None }, Held::Whole)
    }

    fn unknown(&self, id: NodeId) -> (Role, Held) {
        (self.whole(id).0, Held::Unknown)
    }

    fn split(&self, operands: Vec<Option<Cut>>, cut: Cut, seeds: BTreeSet<NodeId>) -> (Role, Held) {
        (Role { form: Form::Local, operands, results: Some(cut) }, Held::Split(cut, seeds))
    }

    /// The splits of a node's operands: none if all are whole.
    fn splits(&self, id: NodeId) -> Vec<(usize, Cut, BTreeSet<NodeId>)> {
        let operands = self.graph.node(id).operands.iter().enumerate();
        let split = |(i, v): (usize, &Value)| match self.of(*v) {
            Held::Split(cut, seeds) => Some((i, *cut, seeds.clone())),
            _ => None,
        };
        operands.filter_map(split).collect()
    }

    /// This op has no form for the splits it is given: they are not made.
    fn refuse(&mut self, id: NodeId) -> (Role, Held) {
        for (_, _, seeds) in self.splits(id) {
            self.findings.lower(&seeds, 1, id);
        }
        self.unknown(id)
    }

    fn node(&mut self, id: NodeId) -> Decision {
        let node = self.graph.node(id);
        if let Op::State { .. } = node.op {
            return Ok(match self.findings.states.get(&id) {
                None => self.unknown(id),
                Some(None) => self.whole(id),
                Some(Some((cut, seeds))) => self.split(Vec::new(), *cut, seeds.clone()),
            });
        }
        if self.fixed[id.index()] {
            return Ok(self.whole(id));
        }
        if matches!(node.op, Op::CacheWrite { .. } | Op::RopeCacheWrite { .. }) {
            return Ok(self.state_write(id));
        }
        if node.operands.iter().any(|v| matches!(self.of(*v), Held::Unknown)) {
            return Ok(self.unknown(id));
        }
        if node.operands.iter().any(|v| matches!(self.of(*v), Held::Partial)) {
            return Ok(self.bias(id));
        }
        let splits = self.splits(id);
        match node.op.kind() {
            OpKind::Matmul | OpKind::MatmulAdd | OpKind::MatmulSiluMul => self.matmul(id, splits),
            OpKind::ScaledMatmul => self.scaled_matmul(id, &splits),
            OpKind::Gather if splits.is_empty() => Ok(self.gather(id)),
            _ if splits.is_empty() => Ok(self.whole(id)),
            OpKind::Attention | OpKind::SparseAttention => self.attention(id, &splits),
            _ => Ok(self.along(id, &splits)),
        }
    }

    /// Ops that work on each part alone.
    fn along(&mut self, id: NodeId, splits: &[(usize, Cut, BTreeSet<NodeId>)]) -> (Role, Held) {
        let seeds: BTreeSet<NodeId> = splits.iter().flat_map(|(_, _, s)| s.iter().copied()).collect();
        let parts = splits.iter().map(|(_, cut, _)| cut.parts).min().unwrap_or(1);
        if splits.iter().any(|(_, cut, _)| cut.parts != parts) {
            // The coarser split is there for a reason.
            self.findings.lower(&seeds, parts, id);
            return self.unknown(id);
        }
        let Some(axis) = self.result_axis(id, splits) else { return self.refuse(id) };
        let node = self.graph.node(id);
        let result = &node.types[0];
        if node.op.kind() == OpKind::Reshape
            && let Some(Dim::Const(size)) = result.shape.get(axis)
            && *size < parts
            && parts.is_multiple_of(*size)
        {
            // Fewer heads than ranks: several ranks hold the same.
            self.findings.lower(&seeds, *size, id);
            return self.unknown(id);
        }
        let cut = Cut { axis, parts };
        let mut wants = Vec::with_capacity(node.operands.len());
        for (i, v) in node.operands.iter().enumerate() {
            let want = self.operand_axis(id, i, axis).map(|axis| Cut { axis, parts });
            let held = splits.iter().find(|(at, _, _)| *at == i).map(|(_, cut, _)| *cut);
            // A value of the step that is whole cannot be cut: `shard` is for static ones.
            if want != held && !(held.is_none() && self.is_fixed(*v)) {
                return self.refuse(id);
            }
            wants.push(want);
        }
        self.split(wants, cut, seeds)
    }

    /// The axis of a result that the split of its operands becomes.
    fn result_axis(&self, id: NodeId, splits: &[(usize, Cut, BTreeSet<NodeId>)]) -> Option<usize> {
        use weldment_ir::Category::{Elementwise, Leaf};
        let node = self.graph.node(id);
        let (operand, cut, _) = splits.first()?;
        let from = self.ty(node.operands[*operand]);
        let to = &node.types[0];
        let last = from.rank().checked_sub(1)?;
        match &node.op {
            Op::Reshape { .. } => shapes::through_reshape(&from.shape, &to.shape, cut.axis),
            Op::Transpose { permutation } => permutation.iter().position(|p| usize::try_from(*p) == Ok(cut.axis)),
            Op::Slice { axis, .. } | Op::Concat { axis } => {
                (usize::try_from(*axis) != Ok(cut.axis)).then_some(cut.axis)
            }
            Op::Broadcast { .. } => Some(cut.axis + to.rank() - from.rank()),
            Op::ReduceSum { axis } | Op::ReduceMean { axis } | Op::ReduceMax { axis } => {
                let axis = usize::try_from(*axis).ok().filter(|a| *a != cut.axis)?;
                Some(cut.axis - usize::from(axis < cut.axis))
            }
            // A part of a row has scales of its own: as many groups or, where the row is one group, one for each part, which nothing
            // but a product of that part may see.
            Op::Quantise { group, .. } => {
                let one = cut.axis == last && from.last_constant() == Some(group.unsigned_abs());
                (!one || self.feeds_products(id)).then_some(cut.axis)
            }
            Op::Softmax {} | Op::RmsNorm { .. } | Op::AddRmsNorm { .. } => (cut.axis != last).then_some(cut.axis),
            Op::Rope { .. } => (*operand == 0 && cut.axis == 1).then_some(1),
            // Columns of a table that the step computes.
            Op::Gather { .. } => (*operand == 0 && cut.axis == last).then(|| to.rank() - 1),
            op if op.kind().info().category == Elementwise => Some(cut.axis + to.rank() - from.rank()),
            op => {
                debug_assert!(op.kind().info().category != Leaf);
                None
            }
        }
    }

    /// Are a node's results codes and scales of products, and nothing else?
    fn feeds_products(&self, id: NodeId) -> bool {
        let product = |id: NodeId| self.graph.node(id).op.kind() == OpKind::ScaledMatmul;
        let is_output = self.graph.outputs().iter().any(|o| o.value.node == id);
        !is_output && self.graph.users(id).all(|(user, used)| product(user) && used.operand < 2)
    }

    /// The axis along which operand `i` is cut where the result is cut along `axis`; none if it is read whole.
    fn operand_axis(&self, id: NodeId, i: usize, axis: usize) -> Option<usize> {
        use weldment_ir::Category::Elementwise;
        let node = self.graph.node(id);
        let from = self.ty(node.operands[i]);
        let to = &node.types[0];
        match &node.op {
            Op::Reshape { .. } => shapes::through_reshape(&to.shape, &from.shape, axis),
            Op::Transpose { permutation } => usize::try_from(*permutation.get(axis)?).ok(),
            Op::Slice { .. } | Op::Concat { .. } | Op::Softmax {} | Op::Quantise { .. } => Some(axis),
            Op::ReduceSum { axis: a } | Op::ReduceMean { axis: a } | Op::ReduceMax { axis: a } => {
                Some(axis + usize::from(usize::try_from(*a).is_ok_and(|a| a <= axis)))
            }
            Op::RmsNorm { .. } | Op::Rope { .. } => (i == 0).then_some(axis),
            Op::AddRmsNorm { .. } => (i < 2).then_some(axis),
            Op::Gather { .. } => (i == 0).then(|| from.rank() - 1),
            // Dims of 1, and dims that an operand does not have, repeat.
            op if op.kind().info().category == Elementwise || matches!(op, Op::Broadcast { .. }) => {
                let at = (axis + from.rank()).checked_sub(to.rank())?;
                (from.shape.get(at) == to.shape.get(axis)).then_some(at)
            }
            _ => None,
        }
    }

    /// Products by static weights begin and end splits.
    fn matmul(&mut self, id: NodeId, splits: Vec<(usize, Cut, BTreeSet<NodeId>)>) -> Decision {
        let node = self.graph.node(id);
        let last = self.ty(node.operands[0]).rank() - 1;
        let kind = node.op.kind();
        let weights = if kind == OpKind::MatmulSiluMul { 1..3 } else { 1..2 };
        let fixed = weights.clone().all(|i| self.is_fixed(node.operands[i]));
        let addend = (kind == OpKind::MatmulAdd).then(|| node.operands[2]);
        match splits.as_slice() {
            [] => {
                let (parts, _) = self.findings.parts.get(&id).copied().unwrap_or((self.world, id));
                let row = addend.is_none_or(|a| self.is_fixed(a));
                if parts <= 1 || !fixed || !row {
                    return Ok(self.whole(id));
                }
                let cut = Cut { axis: node.types[0].rank() - 1, parts };
                let mut wants = vec![None; node.operands.len()];
                weights.for_each(|i| wants[i] = Some(Cut { axis: 0, parts }));
                if let Some(a) = addend {
                    let (from, to) = (self.ty(a), &node.types[0]);
                    let at = from.rank().checked_sub(1).filter(|at| from.shape.get(*at) == to.shape.last());
                    wants[2] = at.map(|axis| Cut { axis, parts });
                }
                Ok(self.split(wants, cut, BTreeSet::from([id])))
            }
            // Each part of the rows alone.
            [(0, cut, seeds)] if cut.axis < last && addend.is_none() => {
                Ok(self.split(vec![None; node.operands.len()], *cut, seeds.clone()))
            }
            [(0, cut, seeds)] if cut.axis == last && fixed && kind == OpKind::Matmul => {
                if cut.parts != self.world {
                    return Err(self.too_few(seeds, id));
                }
                if !node.types[0].dtype.is_compute_float() {
                    return Ok(self.refuse(id));
                }
                Ok(self.reduced(id, vec![None, Some(Cut { axis: 1, parts: self.world })]))
            }
            _ => Ok(self.refuse(id)),
        }
    }

    /// A product of codes: as a matmul, with the scales of the weight's rows or columns.
    fn scaled_matmul(&mut self, id: NodeId, splits: &[(usize, Cut, BTreeSet<NodeId>)]) -> Decision {
        let node = self.graph.node(id);
        let last = self.ty(node.operands[0]).rank() - 1;
        let fixed = [2, 3].into_iter().all(|i| self.is_fixed(node.operands[i]));
        let scales = self.ty(node.operands[3]);
        // One scale for all rows, or all columns, is everybody's.
        let scales_cut = |axis: usize, parts| (scales.shape[axis] != Dim::Const(1)).then_some(Cut { axis, parts });
        match splits {
            [] => {
                let (parts, _) = self.findings.parts.get(&id).copied().unwrap_or((self.world, id));
                if parts <= 1 || !fixed {
                    return Ok(self.whole(id));
                }
                let wants = vec![None, None, Some(Cut { axis: 0, parts }), scales_cut(0, parts)];
                Ok(self.split(wants, Cut { axis: node.types[0].rank() - 1, parts }, BTreeSet::from([id])))
            }
            [(0, cut, seeds), (1, other, _)] if cut == other && cut.axis < last => {
                Ok(self.split(vec![None; 4], *cut, seeds.clone()))
            }
            [(0, cut, seeds), (1, other, _)] if cut == other && cut.axis == last && fixed => {
                if cut.parts != self.world {
                    return Err(self.too_few(seeds, id));
                }
                let operands = vec![None, None, Some(Cut { axis: 1, parts: self.world }), scales_cut(1, self.world)];
                Ok(self.reduced(id, operands))
            }
            _ => Ok(self.refuse(id)),
        }
    }

    /// A product of a part of its terms.
    fn reduced(&self, id: NodeId, operands: Vec<Option<Cut>>) -> (Role, Held) {
        let biased = self.takes_bias(id);
        let form = if biased { Form::Partial } else { Form::Reduced };
        let held = if biased { Held::Partial } else { Held::Whole };
        (Role { form, operands, results: None }, held)
    }

    /// A split into fewer parts than ranks, where every rank needs one of its own.
    fn too_few(&self, seeds: &BTreeSet<NodeId>, at: NodeId) -> PassError {
        let known = seeds.iter().find_map(|seed| self.findings.parts.get(seed));
        let (parts, because) = known.copied().unwrap_or((1, at));
        let message = format!("{parts} parts for {} ranks; at least one for each rank is expected", self.world);
        PassError::Shard { path: path(self.graph, because), message }
    }

    /// Is a matmul's result read only by the addition of a static row of its width?
    fn takes_bias(&self, id: NodeId) -> bool {
        let mut users = self.graph.users(id);
        let (Some((user, _)), None) = (users.next(), users.next()) else { return false };
        let (node, product) = (self.graph.node(user), &self.graph.node(id).types[0]);
        let is_output = self.graph.outputs().iter().any(|o| o.value.node == id);
        let row = |v: &Value| {
            let t = self.ty(*v);
            self.is_fixed(*v) && t.rank() == 1 && t.shape.last() == product.shape.last()
        };
        !is_output && node.op.kind() == OpKind::Add && node.types[0] == *product && node.operands.iter().any(row)
    }

    /// The addition of a bias to a partial value: [`Round::takes_bias`] said yes to it.
    fn bias(&mut self, id: NodeId) -> (Role, Held) {
        let node = self.graph.node(id);
        let at = node.operands.iter().position(|v| self.is_fixed(*v)).unwrap_or(1);
        let role = Role { form: Form::Bias(at), operands: vec![None; node.operands.len()], results: None };
        (role, Held::Whole)
    }

    /// Rows of a weight: each rank has some of them.
    fn gather(&self, id: NodeId) -> (Role, Held) {
        let node = self.graph.node(id);
        let table = node.operands[0];
        let (role, held) = self.whole(id);
        if !(self.is_fixed(table) && self.is_weight(table) && node.types[0].dtype.is_compute_float()) {
            return (role, held);
        }
        let operands = vec![Some(Cut { axis: 0, parts: self.world }), None];
        (Role { form: Form::GatherPart, operands, ..role }, held)
    }

    /// A weight, or a view or cast of one.
    fn is_weight(&self, mut v: Value) -> bool {
        loop {
            let node = self.graph.node(v.node);
            match (&node.op, node.operands.as_slice()) {
                (Op::Weight { .. }, _) => return true,
                (Op::Cast { .. } | Op::Reshape { .. }, [of]) => v = *of,
                _ => return false,
            }
        }
    }

    /// Heads of queries beside heads of K and V.
    fn attention(&mut self, id: NodeId, splits: &[(usize, Cut, BTreeSet<NodeId>)]) -> Decision {
        let node = self.graph.node(id);
        let kv_heads = self.ty(node.operands[1]).shape.get(1).and_then(Dim::constant).unwrap_or(0);
        let of = |i: usize| splits.iter().find(|(at, _, _)| *at == i).map(|(_, cut, _)| *cut);
        let (q, k, v) = (of(0), of(1), of(2));
        let by_heads = splits.iter().all(|(i, cut, _)| *i < 3 && cut.axis == 1);
        // One head of K and V is everybody's.
        let fits = by_heads && q.is_some() && k == v && (k.is_some() || kv_heads == 1);
        let Some(q) = q.filter(|_| fits) else { return Ok(self.refuse(id)) };
        let seeds: BTreeSet<NodeId> = splits.iter().flat_map(|(_, _, s)| s.iter().copied()).collect();
        if q.parts != self.world {
            return Err(self.too_few(&splits[0].2, id));
        }
        let mut wants = vec![None; node.operands.len()];
        splits.iter().for_each(|(i, cut, _)| wants[*i] = Some(*cut));
        Ok(self.split(wants, q, seeds))
    }

    /// A cache holds the heads that its rank writes.
    fn state_write(&mut self, id: NodeId) -> (Role, Held) {
        let node = self.graph.node(id);
        let (cache, x) = (node.operands[0], node.operands[1]);
        let written = match self.of(x) {
            Held::Unknown => return self.unknown(id),
            Held::Split(cut, seeds) => Some((*cut, seeds.clone())),
            Held::Whole | Held::Partial => None,
        };
        if written.as_ref().is_some_and(|(cut, _)| cut.axis != 1) {
            return self.refuse(id);
        }
        let held = match self.of(cache) {
            Held::Split(cut, _) => Some(Some(*cut)),
            Held::Unknown => None,
            Held::Whole | Held::Partial => Some(None),
        };
        let (wanted, parts) = (written.as_ref().map(|(cut, _)| *cut), written.as_ref().map_or(1, |(c, _)| c.parts));
        match held {
            Some(held) if held == wanted => match written {
                None => self.whole(id),
                Some((cut, seeds)) => {
                    let mut wants = vec![None; node.operands.len()];
                    (wants[0], wants[1]) = (Some(cut), Some(cut));
                    self.split(wants, cut, seeds)
                }
            },
            // What is written later is cut finer than the cache is.
            Some(held) if held.map_or(1, |cut| cut.parts) < parts => {
                let most = held.map_or(1, |cut| cut.parts);
                if let Some((_, seeds)) = &written {
                    self.findings.lower(seeds, most, id);
                }
                self.unknown(id)
            }
            // The cache is not decided, or finer than what is written now.
            _ => {
                if let Some(state) = self.state_of(cache) {
                    self.findings.states.insert(state, written);
                    self.findings.changed = true;
                }
                self.unknown(id)
            }
        }
    }

    /// The state that a value is a version of.
    fn state_of(&self, mut v: Value) -> Option<NodeId> {
        while !matches!(self.graph.node(v.node).op, Op::State { .. }) {
            v = *self.graph.node(v.node).operands.first()?;
        }
        Some(v.node)
    }

    /// Results that can be gathered may stay split until then.
    fn outputs(&mut self) {
        for output in self.graph.outputs() {
            if let (OutputKind::Result, Held::Split(cut, seeds)) = (&output.kind, self.of(output.value))
                && cut.parts != self.world
            {
                let seeds = seeds.clone();
                self.findings.lower(&seeds, 1, output.value.node);
            }
        }
    }
}
