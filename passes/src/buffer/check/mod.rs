//! The law of plans, checked on a plan alone: every step reads what the graph says, from bytes that hold exactly that value at
//! that moment, and the caller finds every output and state complete. Nothing that made the plan is trusted or reused.
//!
//! The walk keeps, for each region, which values its bytes hold ([`Holding`]). A read of a view op's result is traced back
//! to values that are held ([`pieces`]); a write ends whatever it may touch, surplus rows included ([`bytes`]). Steps of one
//! epoch run in any order, so none sees what another writes, and none writes where another reads or writes.

mod bytes;
mod externals;
mod pieces;

use super::{BufferPlan, KernelNeeds, ROW_MULTIPLE, Region, Step, StepKind, View};
use bytes::Footprint;
use pieces::Piece;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use thiserror::Error;
use weldment_ir::{Category, Dim, Graph, NodeId, Op, OutputKind, TensorType, Value};

/// The first thing that is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{path}{}: {fault}", self.place())]
pub struct Violation {
    /// Source path of the node whose step or value it is.
    pub path: String,
    /// Index of the step; `None` for what the caller sees.
    pub step: Option<usize>,
    /// What is wrong.
    pub fault: Fault,
}

impl Violation {
    fn place(&self) -> String {
        self.step.map_or_else(String::new, |step| format!(" (step {step})"))
    }
}

/// Kinds of wrong plans.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// A step that is none of its graph's, or is there twice, or has too few or too many views.
    #[error("{0}")]
    Malformed(String),
    /// A view with the wrong number of strides, through a block, or at an address that no element may have.
    #[error("{access} at {view} is not addressable")]
    Address {
        /// `operand 1`, `result 0`, ...
        access: String,
        /// The view.
        view: String,
    },
    /// Bytes outside the region.
    #[error("{access} at {view} ends at byte {end}, the region has {bytes}")]
    Bounds {
        /// As in [`Fault::Address`].
        access: String,
        /// The view.
        view: String,
        /// One past the last byte, surplus rows included.
        end: u64,
        /// Size of the region; 0 where there is none.
        bytes: u64,
    },
    /// A kernel cannot address the strides.
    #[error("{access} at {view}: {reason}")]
    Refused {
        /// As in [`Fault::Address`].
        access: String,
        /// The view.
        view: String,
        /// The kernel's words.
        reason: String,
    },
    /// A read of bytes that hold something else, or nothing.
    #[error("{access} at {view} does not hold `{value}`")]
    Stale {
        /// As in [`Fault::Address`], or `output y`, `state k`.
        access: String,
        /// The view.
        view: String,
        /// Source path of what should be there.
        value: String,
    },
    /// A step writes where another of its epoch reads or writes.
    #[error("writes to bytes that `{other}` uses in the same epoch")]
    Race {
        /// Source path of the other step.
        other: String,
    },
    /// Ranks may meet in either of two collectives of one epoch first.
    #[error("a collective in the epoch of another, `{other}`; ranks must meet in one after the other")]
    Collectives {
        /// Source path of the other.
        other: String,
    },
    /// A step writes over its own operands, results or scratch bytes.
    #[error("{access} at {view} shares bytes with the step's own {other}")]
    Overlap {
        /// As in [`Fault::Address`].
        access: String,
        /// The view.
        view: String,
        /// The other access.
        other: String,
    },
    /// An input, output or state is not laid out as the caller expects, or missing.
    #[error("{0}")]
    External(String),
    /// The list of copies is not that of the steps.
    #[error("{0}")]
    Copies(String),
}

/// A value that bytes hold.
#[derive(Clone, Debug)]
struct Holding {
    value: Value,
    view: View,
    footprint: Footprint,
}

/// One access of a step.
struct Access<'v> {
    value: Value,
    view: &'v View,
    /// Every element at the dims' maximum.
    exact: Footprint,
    /// With the surplus rows that a tail kernel may touch.
    surplus: Footprint,
}

struct StepAccess<'v> {
    index: usize,
    path: String,
    reads: Vec<Access<'v>>,
    writes: Vec<Access<'v>>,
    scratch: Option<Footprint>,
}

struct Checker<'a> {
    graph: &'a Graph,
    plan: &'a BufferPlan,
    needs: &'a dyn KernelNeeds,
    live: Vec<bool>,
    statics: Vec<bool>,
    /// First leaf of each state: all leaves of a name are one value.
    leaves: BTreeMap<Arc<str>, Value>,
    hoisted: BTreeSet<Value>,
    /// Bytes of each input, output and state.
    sizes: BTreeMap<Region, u64>,
    held: BTreeMap<Region, Vec<Holding>>,
}

/// Checks `plan` against its graph.
///
/// # Errors
/// The first violation in the order of the schedule.
pub fn check(graph: &Graph, plan: &BufferPlan, needs: &dyn KernelNeeds) -> Result<(), Violation> {
    let mut checker = Checker {
        graph,
        plan,
        needs,
        live: graph.live(),
        statics: graph.statics(),
        leaves: BTreeMap::new(),
        hoisted: plan.hoisted.iter().copied().collect(),
        sizes: BTreeMap::new(),
        held: BTreeMap::new(),
    };
    checker.externals()?;
    checker.copies()?;
    let mut done = BTreeSet::new();
    let mut at = 0;
    while at < plan.steps.len() {
        let end = (at + 1..plan.steps.len()).find(|s| plan.steps[*s].barrier).unwrap_or(plan.steps.len());
        let epoch = (at..end).map(|s| checker.step(s, &mut done)).collect::<Result<Vec<_>, _>>()?;
        checker.epoch(&epoch)?;
        at = end;
    }
    checker.finals()
}

impl<'a> Checker<'a> {
    fn path(&self, node: NodeId) -> String {
        let node = self.graph.node(node);
        node.sources.first().map_or_else(|| node.op.kind().to_string(), ToString::to_string)
    }

    fn dims(&self, ty: &TensorType, surplus: impl Fn(usize) -> bool) -> Vec<u64> {
        let size = |(axis, dim): (usize, &Dim)| match dim {
            Dim::Sym(_) if surplus(axis) => {
                self.most(dim).saturating_add(ROW_MULTIPLE - 1) / ROW_MULTIPLE * ROW_MULTIPLE
            }
            _ => self.most(dim),
        };
        ty.shape.iter().enumerate().map(size).collect()
    }

    fn most(&self, dim: &Dim) -> u64 {
        match dim {
            Dim::Const(n) => *n,
            Dim::Sym(s) => self.graph.symbols().get(s).map_or(u64::MAX, |r| r.max),
        }
    }

    /// Gives the views of a step their footprints; the step must be one of the graph's, once.
    fn step(&self, index: usize, done: &mut BTreeSet<NodeId>) -> Result<StepAccess<'a>, Violation> {
        let step: &'a Step = &self.plan.steps[index];
        let (node, operands, results) = match &step.kind {
            StepKind::Kernel(id) if id.index() < self.graph.len() => {
                let node = self.graph.node(*id);
                let results = (0..node.types.len() as u32).map(|result| Value { node: *id, result });
                (*id, node.operands.clone(), results.collect::<Vec<_>>())
            }
            StepKind::Copy { value, .. } if self.exists(*value) => (value.node, vec![*value], vec![*value]),
            kind => {
                let fault = Fault::Malformed(format!("{kind:?} is not in the graph"));
                return Err(Violation { path: self.graph.name.clone(), step: Some(index), fault });
            }
        };
        let wrong = |fault| Violation { path: self.path(node), step: Some(index), fault };
        let malformed = |text: &str| Err(wrong(Fault::Malformed(text.to_owned())));
        match &step.kind {
            StepKind::Kernel(id) => {
                if self.graph.node(*id).operands.is_empty() || !self.live[id.index()] {
                    return malformed("a step for a leaf or a value that nobody wants");
                }
                if !done.insert(*id) {
                    return malformed("a second step of this node");
                }
            }
            StepKind::Copy { value, ty } => {
                if self.graph.type_of(*value) != ty {
                    return malformed("a copy of a value as another type");
                }
            }
        }
        if (operands.len(), results.len()) != (step.reads.len(), step.writes.len()) {
            return malformed("a step with another number of views than operands and results");
        }
        let side = |values: &[Value], views: &'a [View], what: &str| {
            let access = |(i, (value, view)): (usize, (&Value, &'a View))| {
                self.access(*value, view, || format!("{what} {i}")).map_err(wrong)
            };
            values.iter().zip(views).enumerate().map(access).collect::<Result<Vec<_>, _>>()
        };
        let (reads, writes) = (side(&operands, &step.reads, "operand")?, side(&results, &step.writes, "result")?);
        let scratch = match (&step.kind, step.scratch) {
            (StepKind::Kernel(id), offset) => {
                let bytes = self.needs.scratch(self.graph, *id);
                match offset {
                    None if bytes > 0 => return malformed("a step without its scratch bytes"),
                    Some(at) if at.checked_add(bytes).is_none_or(|end| end > self.plan.arena_bytes) => {
                        return malformed("scratch bytes outside the arena");
                    }
                    offset => offset.map(|at| Footprint::run(at, bytes)),
                }
            }
            (StepKind::Copy { .. }, Some(_)) => return malformed("a copy with scratch bytes"),
            (StepKind::Copy { .. }, None) => None,
        };
        let access = StepAccess { index, path: self.path(node), reads, writes, scratch };
        self.accepted(&access, step).map_err(wrong)?;
        self.own_bytes(&access, step).map_err(wrong)?;
        Ok(access)
    }

    fn exists(&self, v: Value) -> bool {
        v.node.index() < self.graph.len() && (v.result as usize) < self.graph.node(v.node).types.len()
    }

    /// The footprints of a view of `value`, inside its region.
    fn access<'v>(&self, value: Value, view: &'v View, name: impl Fn() -> String) -> Result<Access<'v>, Fault> {
        let ty = self.graph.type_of(value);
        let address = || Fault::Address { access: name(), view: show(view) };
        // Natural alignment; the largest power of two in a block of a block format.
        let unit = 1u64 << ty.dtype.block_bytes().trailing_zeros().min(3);
        if view.strides.len() != ty.rank() || !view.offset.is_multiple_of(unit) {
            return Err(address());
        }
        let padded = matches!(view.region, Region::Arena | Region::Output(_));
        let exact = Footprint::new(ty, view, &self.dims(ty, |_| false));
        let surplus = Footprint::new(ty, view, &self.dims(ty, |_| padded));
        let (Some(exact), Some(surplus)) = (exact, surplus) else { return Err(address()) };
        let bytes = match &view.region {
            Region::Arena => self.plan.arena_bytes,
            Region::Weights(root) => self.static_bytes(*root),
            other => self.sizes.get(other).copied().unwrap_or(0),
        };
        let end = surplus.end();
        if end > bytes {
            return Err(Fault::Bounds { access: name(), view: show(view), end, bytes });
        }
        Ok(Access { value, view, exact, surplus })
    }

    /// Kernels can address what they are given. Static operands are packed by the kernel's own choice.
    fn accepted(&self, access: &StepAccess<'_>, step: &Step) -> Result<(), Fault> {
        let StepKind::Kernel(id) = &step.kind else { return Ok(()) };
        let op = &self.graph.node(*id).op;
        for (i, read) in access.reads.iter().enumerate() {
            let packed = matches!(read.view.region, Region::Weights(root) if root == read.value);
            let answer = self.needs.read(op, i, self.graph.type_of(read.value), &read.view.strides);
            if let (false, Err(reason)) = (packed, answer) {
                return Err(Fault::Refused { access: format!("operand {i}"), view: show(read.view), reason });
            }
        }
        for (i, write) in access.writes.iter().enumerate() {
            let answer = self.needs.write(op, i, self.graph.type_of(write.value), &write.view.strides);
            if let Err(reason) = answer {
                return Err(Fault::Refused { access: format!("result {i}"), view: show(write.view), reason });
            }
        }
        Ok(())
    }

    /// A step writes each byte once and none that it also reads, unless its kernel is made for that.
    fn own_bytes(&self, access: &StepAccess<'_>, step: &Step) -> Result<(), Fault> {
        let overlap = |r: usize, other: String| Fault::Overlap {
            access: format!("result {r}"),
            view: show(access.writes[r].view),
            other,
        };
        for (r, write) in access.writes.iter().enumerate() {
            if matches!(write.view.region, Region::Weights(_) | Region::Input(_)) {
                return Err(Fault::Malformed(format!("result {r} in memory that is only read")));
            }
            if !write.surplus.is_injective() {
                return Err(overlap(r, format!("result {r}")));
            }
            for (i, read) in access.reads.iter().enumerate() {
                if read.view.region != write.view.region || !write.surplus.meets(&read.exact) {
                    continue;
                }
                let same = self.same_place(read, write);
                if !same || !self.may_share(step, i, r) {
                    return Err(overlap(r, format!("operand {i}")));
                }
            }
            for (other, second) in access.writes.iter().enumerate().skip(r + 1) {
                if second.view.region == write.view.region && second.surplus.meets(&write.surplus) {
                    return Err(overlap(r, format!("result {other}")));
                }
            }
            if let (Some(scratch), Region::Arena) = (&access.scratch, &write.view.region)
                && scratch.meets(&write.surplus)
            {
                return Err(overlap(r, "scratch bytes".into()));
            }
        }
        // A state's new version is the old one with some elements replaced.
        if let StepKind::Kernel(id) = &step.kind
            && self.graph.node(*id).op.kind().info().category == Category::StateWrite
            && !access.reads.first().zip(access.writes.first()).is_some_and(|(r, w)| self.same_place(r, w))
        {
            return Err(Fault::Malformed("a state write that is not in place".into()));
        }
        if let Some(scratch) = &access.scratch {
            let operand = |r: &Access<'_>| r.view.region == Region::Arena && scratch.meets(&r.exact);
            if let Some(i) = access.reads.iter().position(operand) {
                return Err(Fault::Malformed(format!("scratch bytes over operand {i}")));
            }
        }
        Ok(())
    }

    /// Element for element in the same bytes.
    fn same_place(&self, a: &Access<'_>, b: &Access<'_>) -> bool {
        let (x, y) = (self.graph.type_of(a.value), self.graph.type_of(b.value));
        let strides = x.shape.iter().zip(a.view.strides.iter().zip(&b.view.strides));
        x.shape == y.shape
            && (x.dtype.block_bytes(), x.dtype.block_elements()) == (y.dtype.block_bytes(), y.dtype.block_elements())
            && (&a.view.region, a.view.offset) == (&b.view.region, b.view.offset)
            && strides.into_iter().all(|(dim, (s, t))| s == t || self.most(dim) == 1)
    }

    fn may_share(&self, step: &Step, operand: usize, result: usize) -> bool {
        let StepKind::Kernel(id) = &step.kind else { return false };
        match self.graph.node(*id).op.kind().info().category {
            Category::StateWrite => (operand, result) == (0, 0),
            _ => self.needs.shares(self.graph, *id, operand, result),
        }
    }

    /// Steps of an epoch: what they read was there before it, and no other step of it writes there.
    fn epoch(&mut self, epoch: &[StepAccess<'_>]) -> Result<(), Violation> {
        for step in epoch {
            for (i, read) in step.reads.iter().enumerate() {
                if !self.holds(read.value, read.view) {
                    let value = self.path(read.value.node);
                    let fault = Fault::Stale { access: format!("operand {i}"), view: show(read.view), value };
                    return Err(Violation { path: step.path.clone(), step: Some(step.index), fault });
                }
            }
        }
        let meets = |step: &&StepAccess<'_>| match self.plan.steps[step.index].kind {
            StepKind::Kernel(id) => self.graph.node(id).op.communicates(),
            StepKind::Copy { .. } => false,
        };
        if let [a, b, ..] = epoch.iter().filter(meets).collect::<Vec<_>>().as_slice() {
            let fault = Fault::Collectives { other: a.path.clone() };
            return Err(Violation { path: b.path.clone(), step: Some(b.index), fault });
        }
        if let Some((a, b)) = race(epoch) {
            let fault = Fault::Race { other: b.path.clone() };
            return Err(Violation { path: a.path.clone(), step: Some(a.index), fault });
        }
        for step in epoch {
            if let (Some(scratch), Some(held)) = (&step.scratch, self.held.get_mut(&Region::Arena)) {
                held.retain(|h| !h.footprint.meets(scratch));
            }
            for write in &step.writes {
                let held = self.held.entry(write.view.region.clone()).or_default();
                held.retain(|h| !h.footprint.meets(&write.surplus));
            }
        }
        for write in epoch.iter().flat_map(|step| &step.writes) {
            let holding =
                Holding { value: self.version(write.value), view: write.view.clone(), footprint: write.exact.clone() };
            self.held.entry(write.view.region.clone()).or_default().push(holding);
        }
        Ok(())
    }

    /// Do the bytes at `view` hold `value`?
    fn holds(&self, value: Value, view: &View) -> bool {
        if matches!(view.region, Region::Weights(root) if !self.hoisted.contains(&root)) {
            return false;
        }
        if self.dims(self.graph.type_of(value), |_| false).contains(&0) {
            return true;
        }
        let whole = Piece::whole(self.graph, value, view.offset, &view.strides, &|d| self.most(d));
        let mut open = vec![whole];
        let mut pieces = 0;
        while let Some(mut piece) = open.pop() {
            pieces += 1;
            piece.value = self.version(piece.value);
            if self.is_held(&piece, &view.region) {
                continue;
            }
            let is_view = self.graph.node(piece.value.node).op.kind().info().category == Category::View;
            match is_view.then(|| piece.back(self.graph, piece.value.node)).flatten() {
                Some(pieces) => open.extend(pieces),
                None => return false,
            }
            if pieces > 1 << 16 {
                return false;
            }
        }
        true
    }

    /// All leaves of one state are one value.
    fn version(&self, value: Value) -> Value {
        match &self.graph.node(value.node).op {
            Op::State { name, .. } => self.leaves.get(name).copied().unwrap_or(value),
            _ => value,
        }
    }

    fn is_held(&self, piece: &Piece, region: &Region) -> bool {
        let ty = self.graph.type_of(piece.value);
        if let Region::Weights(root) = region {
            let Some(shape) = ty.constant_shape() else { return false };
            return *root == piece.value
                && self.statics[root.node.index()]
                && piece.lies_in(ty, 0, &externals::row_major(&shape));
        }
        let held = self.held.get(region).map(Vec::as_slice).unwrap_or_default();
        held.iter().any(|h| h.value == piece.value && piece.lies_in(ty, h.view.offset, &h.view.strides))
    }

    /// What the caller finds after the last step.
    fn finals(&self) -> Result<(), Violation> {
        let complete = |value: Value, region: Region, strides: &[u64], access: String| {
            let view = View { region, offset: 0, strides: strides.to_vec() };
            let fault = Fault::Stale { access: access.clone(), view: show(&view), value: self.path(value.node) };
            let path = self.path(value.node);
            if self.holds(value, &view) { Ok(()) } else { Err(Violation { path, step: None, fault }) }
        };
        let outputs = self.graph.outputs();
        for (output, external) in outputs.iter().filter(|o| o.kind == OutputKind::Result).zip(&self.plan.outputs) {
            let region = Region::Output(external.name.clone());
            complete(output.value, region, &external.strides, format!("output {}", external.name))?;
        }
        for external in &self.plan.states {
            let last = outputs.iter().find(|o| o.kind == OutputKind::State && o.name == external.name);
            let leaf = self.leaves.get(&external.name).copied();
            let Some(value) = last.map(|o| o.value).or(leaf) else { continue };
            let region = Region::State(external.name.clone());
            complete(value, region, &external.strides, format!("state {}", external.name))?;
        }
        Ok(())
    }

    /// The list of copies is that of the steps that only move data.
    fn copies(&self) -> Result<(), Violation> {
        let mut listed: BTreeMap<usize, &super::CopyRecord> = BTreeMap::new();
        for record in &self.plan.copies {
            let wrong = |text: &str| Violation {
                path: record.source.clone(),
                step: Some(record.step),
                fault: Fault::Copies(text.to_owned()),
            };
            if listed.insert(record.step, record).is_some() {
                return Err(wrong("listed twice among the copies"));
            }
            if record.reason.is_empty() {
                return Err(wrong("a copy without a reason"));
            }
        }
        for (index, step) in self.plan.steps.iter().enumerate() {
            let moved = match &step.kind {
                StepKind::Copy { value, ty } => Some((value.node, ty)),
                StepKind::Kernel(id) if id.index() < self.graph.len() => {
                    let node = self.graph.node(*id);
                    (node.op.kind().info().category == Category::View).then(|| (*id, &node.types[0]))
                }
                StepKind::Kernel(_) => None,
            };
            let bytes = moved.and_then(|(_, ty)| ty.dtype.byte_size(&self.dims(ty, |_| false)).ok());
            let found = listed.remove(&index).map(|record| record.bytes);
            if found != bytes {
                let path = moved.map_or_else(|| self.graph.name.clone(), |(node, _)| self.path(node));
                let fault = Fault::Copies(format!("moves {bytes:?} bytes, listed with {found:?}"));
                return Err(Violation { path, step: Some(index), fault });
            }
        }
        match listed.into_values().next() {
            Some(record) => Err(Violation {
                path: record.source.clone(),
                step: Some(record.step),
                fault: Fault::Copies("listed as a copy, and no step".into()),
            }),
            None => Ok(()),
        }
    }
}

/// Bytes that a step of an epoch touches.
struct Touch<'s> {
    step: usize,
    writes: bool,
    bytes: &'s Footprint,
}

/// The first step of an epoch that writes where another reads or writes, and the other.
fn race<'e, 'v>(epoch: &'e [StepAccess<'v>]) -> Option<(&'e StepAccess<'v>, &'e StepAccess<'v>)> {
    let mut touched: BTreeMap<&Region, Vec<Touch<'_>>> = BTreeMap::new();
    for (step, access) in epoch.iter().enumerate() {
        let reads = access.reads.iter().map(|r| (&r.view.region, false, &r.exact));
        let writes = access.writes.iter().map(|w| (&w.view.region, true, &w.surplus));
        let scratch = access.scratch.iter().map(|f| (&Region::Arena, true, f));
        for (region, writes, bytes) in reads.chain(writes).chain(scratch) {
            touched.entry(region).or_default().push(Touch { step, writes, bytes });
        }
    }
    let mut first: Option<(usize, usize)> = None;
    for list in touched.values_mut() {
        list.sort_by_key(|t| t.bytes.start());
        for (i, a) in list.iter().enumerate() {
            let end = a.bytes.end();
            // Those further on start behind this one's end.
            for b in list[i + 1..].iter().take_while(|b| b.bytes.start() < end) {
                if a.step != b.step && (a.writes || b.writes) && a.bytes.meets(b.bytes) {
                    let by_writes = [(a, b), (b, a)].into_iter().filter(|(x, _)| x.writes);
                    let pair = by_writes.map(|(x, y)| (x.step, y.step)).min();
                    first = [first, pair].into_iter().flatten().min();
                }
            }
        }
    }
    first.map(|(a, b)| (&epoch[a], &epoch[b]))
}

fn show(view: &View) -> String {
    struct Shown<'v>(&'v View);
    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match &self.0.region {
                Region::Arena => write!(f, "arena")?,
                Region::Weights(v) => write!(f, "weights of %{}.{}", v.node.index(), v.result)?,
                Region::State(name) => write!(f, "state {name}")?,
                Region::Input(name) => write!(f, "input {name}")?,
                Region::Output(name) => write!(f, "output {name}")?,
            }
            write!(f, "+{} {:?}", self.0.offset, self.0.strides)
        }
    }
    Shown(view).to_string()
}
