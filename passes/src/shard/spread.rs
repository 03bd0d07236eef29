//! How each value is held: decided forwards, and again from the start with fewer splits wherever one met an op without a form for it.

use super::path;
use crate::error::PassError;
use std::collections::{BTreeMap, BTreeSet};
use weldment_ir::signature::{Axis, Index, Mark, Signature, axis_of};
use weldment_ir::{Category, Dim, Graph, NodeId, Op, OpKind, OutputKind, TensorType, Value};

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
        if node.op.kind().info().category == Category::StateWrite {
            return Ok(self.state_write(id));
        }
        if node.operands.iter().any(|v| matches!(self.of(*v), Held::Unknown)) {
            return Ok(self.unknown(id));
        }
        if node.operands.iter().any(|v| matches!(self.of(*v), Held::Partial)) {
            return Ok(self.bias(id));
        }
        let splits = self.splits(id);
        match (node.op.kind(), node.op.kind().info().category, splits.is_empty()) {
            (OpKind::Gather, _, true) => Ok(self.gather(id)),
            (_, Category::Contraction, true) => Ok(self.begin(id)),
            (_, _, true) => Ok(self.whole(id)),
            _ => self.along(id, &splits),
        }
    }

    /// The axes of a node.
    fn axes(&self, id: NodeId) -> Signature {
        let node = self.graph.node(id);
        let operands: Vec<TensorType> = node.operands.iter().map(|v| self.ty(*v).clone()).collect();
        node.op.signature(&operands, &node.types)
    }

    /// The axis of a node's operand that carries `index`; none where its one element repeats.
    fn carries(&self, id: NodeId, axes: &Signature, operand: usize, index: Index) -> Option<usize> {
        let axis = axis_of(&axes.operands[operand], index)?;
        let dim = self.ty(self.graph.node(id).operands[operand]).shape.get(axis);
        (dim != Some(&Dim::Const(1))).then_some(axis)
    }

    /// A contraction whose operands are whole is split along an index that static operands alone carry.
    fn begin(&self, id: NodeId) -> (Role, Held) {
        let node = self.graph.node(id);
        let (parts, _) = self.findings.parts.get(&id).copied().unwrap_or((self.world, id));
        if parts <= 1 {
            return self.whole(id);
        }
        let axes = self.axes(id);
        let owned = |axis: &Axis| {
            let index = axis.cut()?;
            let carry = |(axes, _): &(&Vec<Axis>, &Value)| axis_of(axes, index).is_some();
            let mut carriers = axes.operands.iter().zip(&node.operands).filter(carry).peekable();
            carriers.peek()?;
            carriers.all(|(_, v)| self.is_fixed(*v)).then_some(index)
        };
        let found = axes.results[0].iter().enumerate().find_map(|(axis, a)| Some((axis, owned(a)?)));
        let Some((axis, index)) = found else { return self.whole(id) };
        let want = |i: usize| Some(Cut { axis: self.carries(id, &axes, i, index)?, parts });
        self.split((0..node.operands.len()).map(want).collect(), Cut { axis, parts }, BTreeSet::from([id]))
    }

    /// Ops that go on with the parts they are given: each by itself, or, along an index that is summed, as parts of a sum.
    fn along(&mut self, id: NodeId, splits: &[(usize, Cut, BTreeSet<NodeId>)]) -> Decision {
        let seeds: BTreeSet<NodeId> = splits.iter().flat_map(|(_, _, s)| s.iter().copied()).collect();
        let (node, axes) = (self.graph.node(id), self.axes(id));
        let parts = splits.iter().map(|(_, cut, _)| cut.parts).max().unwrap_or(1);
        // What is cut down to one element repeats for all ranks that share it: heads of K and V.
        let size =
            |operand: usize, cut: &Cut| self.ty(node.operands[operand]).shape.get(cut.axis).and_then(Dim::constant);
        let coarser = splits.iter().filter(|(i, cut, _)| cut.parts < parts && size(*i, cut) != Some(cut.parts));
        if let Some(least) = coarser.map(|(_, cut, _)| cut.parts).min() {
            // The coarser split is there for a reason.
            self.findings.lower(&seeds, least, id);
            return Ok(self.unknown(id));
        }
        let of =
            |operand: usize, cut: &Cut| axes.operands[operand].get(cut.axis).and_then(|a| Some((a.cut()?, a.mark)));
        let mut indices = splits.iter().map(|(i, cut, _)| of(*i, cut));
        let first = indices.next().flatten();
        let Some((index, mark)) = first.filter(|first| indices.all(|other| other == Some(*first))) else {
            return Ok(self.refuse(id));
        };
        let mut wants = Vec::with_capacity(node.operands.len());
        for (i, v) in node.operands.iter().enumerate() {
            let want = self.carries(id, &axes, i, index).map(|axis| Cut { axis, parts });
            let held = splits.iter().any(|(at, _, _)| *at == i);
            // A value of the step that is whole cannot be cut: `shard` is for static ones.
            if want.is_some() && !held && !self.is_fixed(*v) {
                return Ok(self.refuse(id));
            }
            wants.push(want);
        }
        if mark == Mark::Summed {
            return match node.types[0].dtype.is_compute_float() {
                true if parts != self.world => Err(self.too_few(&seeds, id)),
                true => Ok(self.reduced(id, wants)),
                false => Ok(self.refuse(id)),
            };
        }
        let Some(axis) = axis_of(&axes.results[0], index) else { return Ok(self.refuse(id)) };
        if let Some(Dim::Const(size)) = node.types[0].shape.get(axis)
            && *size < parts
            && parts.is_multiple_of(*size)
        {
            // Fewer heads than ranks: several ranks hold the same.
            self.findings.lower(&seeds, *size, id);
            return Ok(self.unknown(id));
        }
        if self.loses_scales(id, axis) {
            return Ok(self.refuse(id));
        }
        Ok(self.split(wants, Cut { axis, parts }, seeds))
    }

    /// A part of a row has scales of its own: as many groups or, where the row is one group, one for each part, which nothing but a
    /// product of that part may see.
    fn loses_scales(&self, id: NodeId, axis: usize) -> bool {
        let node = self.graph.node(id);
        let Op::Quantise { group, .. } = node.op else { return false };
        let ty = &node.types[0];
        let one = axis + 1 == ty.rank() && ty.last_constant() == Some(group.unsigned_abs());
        one && !self.feeds_products(id)
    }

    /// Are a node's results codes and scales of products, and nothing else?
    fn feeds_products(&self, id: NodeId) -> bool {
        let product = |id: NodeId| self.graph.node(id).op.kind() == OpKind::ScaledMatmul;
        let is_output = self.graph.outputs().iter().any(|o| o.value.node == id);
        !is_output && self.graph.users(id).all(|(user, used)| product(user) && used.operand < 2)
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

    /// A cache holds the heads that its rank writes.
    fn state_write(&mut self, id: NodeId) -> (Role, Held) {
        let node = self.graph.node(id);
        let (cache, x) = (node.operands[0], node.operands[1]);
        let axes = self.axes(id);
        let shared = |cut: &Cut| {
            let index = axes.operands[1].get(cut.axis).and_then(Axis::cut)?;
            axis_of(&axes.operands[0], index).map(|axis| Cut { axis, ..*cut })
        };
        let written = match self.of(x) {
            Held::Unknown => return self.unknown(id),
            Held::Split(cut, seeds) => match shared(cut) {
                Some(cut) => Some((cut, seeds.clone())),
                None => return self.refuse(id),
            },
            Held::Whole | Held::Partial => None,
        };
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
                    // What is computed in the step is held as it is read.
                    self.split(vec![None; node.operands.len()], cut, seeds)
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
            let gathered = !self.ty(output.value).dtype.is_block();
            if let (OutputKind::Result, Held::Split(cut, seeds)) = (&output.kind, self.of(output.value))
                && !(gathered && cut.parts == self.world)
            {
                let seeds = seeds.clone();
                self.findings.lower(&seeds, 1, output.value.node);
            }
        }
    }
}
