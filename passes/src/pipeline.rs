//! The order of passes, in one function.

use crate::correspondence::Correspondence;
use crate::cut::cut;
use crate::egraph::Limits;
use crate::error::PassError;
use crate::probe::{Probe, Rewrite};
use crate::report::{AnchorReport, LimitReport, Origin, Outcome, Place, Report, UnitReport, graph_nodes, node_reports};
use crate::rules::{self, GROUPS, Numerics, Rule};
use crate::solve::{Recipe, Solver, Source};
use crate::target::TargetModel;
use crate::units::{Carried, Instance, Unit, describe, is_shared_leaf};
use indexmap::IndexMap;
use rustc_hash::{FxBuildHasher, FxHashMap};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weldment_ir::{Attr, Category, DType, Graph, IrError, NodeId, Op, OpKind, Value};

/// What a user can choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rules up to this class may fire. `None`: [`Numerics::default_for`] the graph.
    pub fp_policy: Option<Numerics>,
    /// Rules and fusions switched off, by name.
    pub disabled: BTreeSet<String>,
    /// Fusions of [`rules::OPT_IN`] that may fire.
    pub enabled: BTreeSet<String>,
    /// Values of symbols at which forms are priced; a symbol not given stands at the least of its range.
    pub dims: BTreeMap<String, u64>,
    /// Optimise equal layers once.
    pub unit_stamping: bool,
    /// A seed that perturbs the order of rewrites and the ties of extraction; the result is equal and covers as much.
    pub chaos: Option<u64>,
    /// Rewrites that may happen, counted over the distinct units in the order in which they are solved.
    pub fuel: Option<u64>,
    /// Where saturation stops, with the best form found by then.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            fp_policy: None,
            disabled: BTreeSet::new(),
            enabled: BTreeSet::new(),
            dims: BTreeMap::new(),
            unit_stamping: true,
            chaos: None,
            fuel: None,
            limits: Limits::default(),
        }
    }
}

/// An optimised graph and the account of it.
#[derive(Clone, Debug)]
pub struct Optimised {
    /// The graph: the same inputs, states, symbols and outputs.
    pub graph: Graph,
    /// What matched, what did not and why.
    pub report: Report,
    /// Which values of the graph before each value equals.
    pub correspondence: Correspondence,
    /// Rewrites that changed an e-graph: what [`Options::fuel`] counts.
    pub rewrites: u64,
    /// The last of them.
    pub last_rewrite: Option<Rewrite>,
}

/// Canonicalises and fuses `graph` for `target`: dead nodes dropped, cut into units, each distinct unit saturated and
/// extracted, stamped, compacted, verified.
///
/// # Errors
/// Unknown names in `options.disabled`; graph errors, which would be bugs.
pub fn optimise(graph: &Graph, target: &dyn TargetModel, options: &Options) -> Result<Optimised, PassError> {
    optimise_by(graph, target, options, &rules::all())
}

/// [`optimise`] by other rules than those of the compiler.
///
/// # Errors
/// As [`optimise`].
pub fn optimise_by(
    graph: &Graph,
    target: &dyn TargetModel,
    options: &Options,
    all: &[Rule],
) -> Result<Optimised, PassError> {
    // Compaction keeps the order of nodes.
    let live = graph.live();
    let kept = |id: &NodeId| live[id.index()] || matches!(graph.node(*id).op, Op::Input { .. } | Op::State { .. });
    let given: Vec<NodeId> = graph.ids().filter(kept).collect();
    let graph = graph.compact()?;
    let policy = options.fp_policy.unwrap_or_else(|| Numerics::default_for(&graph));
    check_names(all, &options.disabled)?;
    let (allowed, barred) = select(all, policy, options);
    let dims = |symbol: &str| {
        let range = graph.symbols().get(symbol);
        let given = options.dims.get(symbol).copied();
        match (given, range) {
            (Some(n), Some(r)) => n.clamp(r.min, r.max),
            (Some(n), None) => n,
            (None, r) => r.map_or(1, |r| r.min),
        }
    };
    let (limits, probe) = (options.limits, &Probe::new(options.chaos, options.fuel));
    let solver = Solver { rules: allowed, barred, target, limits, probe, dims: &dims, favour_made: false };
    let units = solve_units(&graph, &solver, options.unit_stamping)?;
    let Stamped { graph: out, origins, mut correspondence } = stamp(&graph, &units)?;
    weldment_ir::verify(&out)?;
    let before = graph_nodes(&graph, &dims);
    let nodes = node_reports(&before, graph_nodes(&out, &dims), origins, all);
    let values = graph.symbols().keys().map(|s| (s.to_string(), dims(s))).collect();
    let ranges = graph.symbols().iter().map(|(s, r)| (s.to_string(), (r.min, r.max))).collect();
    let mut report = Report::new((policy, &options.disabled), (ranges, values), before, nodes);
    account(&mut report, &graph, &units);
    for equal in correspondence.values_mut() {
        *equal = equal.iter().map(|(v, form)| (Value { node: given[v.node.index()], ..*v }, *form)).collect();
    }
    let (rewrites, last_rewrite) = (probe.used(), units.last_rewrite);
    Ok(Optimised { graph: out, report, correspondence, rewrites, last_rewrite })
}

/// A graph put together from recipes.
pub(crate) struct Stamped {
    pub graph: Graph,
    pub origins: Vec<Origin>,
    pub correspondence: Correspondence,
}

/// [`stamp`] without the correspondence.
#[cfg(test)]
pub(crate) fn rebuild(graph: &Graph, units: &Units) -> Result<(Graph, Vec<Origin>), PassError> {
    stamp(graph, units).map(|s| (s.graph, s.origins))
}

/// Stamps every unit.
pub(crate) fn stamp(graph: &Graph, units: &Units) -> Result<Stamped, PassError> {
    let mut builder = Stamper::new(graph);
    for (instance, recipe) in &units.placed {
        builder.stamp(instance, &units.recipes[*recipe].1)?;
    }
    builder.finish()
}

fn check_names(all: &[Rule], disabled: &BTreeSet<String>) -> Result<(), PassError> {
    let known = |name: &str| GROUPS.contains(&name) || all.iter().any(|r| r.name == name);
    match disabled.iter().find(|name| !known(name)) {
        Some(name) => {
            let mut accepted: Vec<&str> = GROUPS.to_vec();
            accepted.extend(all.iter().map(|r| r.name).filter(|n| !GROUPS.contains(n)));
            Err(PassError::UnknownName { name: name.clone(), accepted: accepted.join(", ") })
        }
        None => Ok(()),
    }
}

/// Rules that may fire, and the others with the reason.
pub(crate) fn select<'a>(
    all: &'a [Rule],
    policy: Numerics,
    options: &Options,
) -> (Vec<&'a Rule>, Vec<(&'a Rule, String)>) {
    let (mut allowed, mut barred) = (Vec::new(), Vec::new());
    for rule in all {
        let off = [Some(rule.name), rule.group].into_iter().flatten().find(|n| options.disabled.contains(*n));
        let opt_in = rules::OPT_IN.iter().find(|(group, _)| rule.group == Some(group));
        match off {
            None if opt_in.is_some_and(|(group, _)| !options.enabled.contains(*group)) => {
                barred.push((rule, opt_in.map_or(String::new(), |(_, why)| (*why).to_owned())));
            }
            Some(name) => barred.push((rule, format!("switched off by --disable {name}"))),
            None if rule.class > policy => {
                barred.push((rule, format!("{} is {}, the policy allows {policy}", rule.name, rule.class)));
            }
            None => allowed.push(rule),
        }
    }
    (allowed, barred)
}

/// Every unit of the graph, first to last, with the recipe it uses.
pub(crate) struct Units {
    pub recipes: Vec<(Unit, Recipe)>,
    pub placed: Vec<(Instance, usize)>,
    /// The last rewrite that changed an e-graph.
    pub last_rewrite: Option<Rewrite>,
}

/// Solves the units last to first, so that each knows in which form its values are wanted.
pub(crate) fn solve_units(graph: &Graph, solver: &Solver<'_>, stamping: bool) -> Result<Units, PassError> {
    let fixed = graph.statics();
    let mut demands: BTreeMap<Value, BTreeSet<Carried>> = BTreeMap::new();
    for output in graph.outputs() {
        demands.entry(output.value).or_default().insert(Carried::Plain);
    }
    let mut known: IndexMap<Unit, Recipe, FxBuildHasher> = IndexMap::default();
    let mut placed = Vec::new();
    let mut last_rewrite = None;
    for nodes in cut(graph, stamping).iter().rev() {
        let instance = describe(graph, nodes, &fixed, &|v| rounds(graph, solver.target, v), &demands);
        let index = match known.get_index_of(&instance.unit) {
            Some(i) => i,
            None => {
                let before = solver.probe.used();
                let recipe = solver.solve(&instance.unit)?;
                if let Some((rule, node)) = solver.probe.last().filter(|_| solver.probe.used() > before) {
                    let id = node.and_then(|i| instance.nodes.get(i as usize));
                    let paths = id.map(|id| graph.node(*id).sources.iter().map(ToString::to_string).collect());
                    last_rewrite = Some(Rewrite { rule, paths: paths.unwrap_or_default() });
                }
                known.insert_full(instance.unit.clone(), recipe).0
            }
        };
        let recipe = &known[index];
        for source in recipe.steps.iter().flat_map(|s| &s.operands).chain(&recipe.outputs) {
            if let Source::Slot(slot, form) = source {
                demands.entry(instance.slots[*slot as usize]).or_default().insert(*form);
            }
        }
        placed.push((instance, index));
    }
    placed.reverse();
    Ok(Units { recipes: known.into_iter().collect(), placed, last_rewrite })
}

/// Can the op that computes a value round it to q8a as it does? A product may turn out to be a norm or a gate.
fn rounds(graph: &Graph, target: &dyn TargetModel, value: Value) -> bool {
    let mut node = graph.node(value.node);
    while let (Category::View, [of]) = (node.op.kind().info().category, node.operands.as_slice()) {
        node = graph.node(of.node);
    }
    let kind = node.op.kind();
    if kind == OpKind::Mul {
        return true;
    }
    if is_shared_leaf(&node.op) || matches!(kind, OpKind::Cast | OpKind::Gather) {
        return false;
    }
    let mut attrs = node.op.attrs();
    let dtypes = attrs.iter_mut().filter(|a| matches!(a, Attr::DType(_)));
    if dtypes.map(|a| *a = Attr::DType(DType::Q8A)).count() != 1 {
        return false;
    }
    let types: Vec<_> = node.operands.iter().map(|v| graph.type_of(*v).clone()).collect();
    let Ok(op) = Op::from_attrs(kind, &attrs) else { return false };
    op.infer(&types).is_ok_and(|results| target.supports(&op, &types, &results).is_ok())
}

/// A node to emit.
struct Draft {
    op: Op,
    operands: Vec<Value>,
    sources: BTreeSet<Arc<str>>,
    stands_for: BTreeSet<NodeId>,
    chain: Vec<&'static str>,
}

impl Draft {
    fn new(op: Op, operands: Vec<Value>, sources: BTreeSet<Arc<str>>) -> Draft {
        Draft { op, operands, sources, stands_for: BTreeSet::new(), chain: Vec::new() }
    }
}

/// Collects the new graph; equal nodes are one node.
struct Stamper<'a> {
    graph: &'a Graph,
    drafts: Vec<Draft>,
    known: FxHashMap<(Op, Vec<Value>), u32>,
    values: BTreeMap<(Value, Carried), Value>,
    /// By draft.
    equal: Correspondence,
}

impl<'a> Stamper<'a> {
    fn new(graph: &'a Graph) -> Stamper<'a> {
        let mut out = Stamper {
            graph,
            drafts: Vec::new(),
            known: FxHashMap::default(),
            values: BTreeMap::new(),
            equal: BTreeMap::new(),
        };
        for id in graph.ids().filter(|id| is_shared_leaf(&graph.node(*id).op)) {
            let node = graph.node(id);
            let value = out.draft(Draft::new(node.op.clone(), Vec::new(), node.sources.clone()));
            let leaf = (Value { node: id, result: 0 }, Carried::Plain);
            out.values.insert(leaf, value);
            out.equal.entry(value).or_default().insert(leaf);
        }
        out
    }

    fn draft(&mut self, draft: Draft) -> Value {
        let key = (draft.op.clone(), draft.operands.clone());
        let at = match self.known.get(&key) {
            Some(at) => {
                let known = &mut self.drafts[*at as usize];
                known.sources.extend(draft.sources);
                known.stands_for.extend(draft.stands_for);
                let more: Vec<_> = draft.chain.into_iter().filter(|r| !known.chain.contains(r)).collect();
                known.chain.extend(more);
                *at
            }
            None => {
                let at = self.drafts.len() as u32;
                self.known.insert(key, at);
                self.drafts.push(draft);
                at
            }
        };
        Value { node: NodeId::new(at as usize), result: 0 }
    }

    fn lookup(&self, value: Value, form: Carried) -> Result<Value, PassError> {
        self.values.get(&(value, form)).copied().ok_or_else(|| {
            let node = self.graph.node(value.node);
            PassError::NoForm { path: node.sources.iter().next().map_or_else(String::new, |s| s.to_string()) }
        })
    }

    fn stamp(&mut self, instance: &Instance, recipe: &Recipe) -> Result<(), PassError> {
        let mut placed: Vec<Value> = Vec::with_capacity(recipe.steps.len());
        for step in &recipe.steps {
            let operands: Result<Vec<Value>, PassError> =
                step.operands.iter().map(|s| self.place(instance, &placed, *s)).collect();
            let stands_for: BTreeSet<NodeId> =
                step.origins.iter().filter_map(|i| instance.nodes.get(*i as usize)).copied().collect();
            let sources = stands_for.iter().flat_map(|id| self.graph.node(*id).sources.iter().cloned()).collect();
            let draft = Draft::new(step.op.clone(), operands?, sources);
            placed.push(self.draft(Draft { stands_for, chain: step.chain.clone(), ..draft }));
        }
        for equal in &recipe.equal {
            // A slot that is only read cast has no plain value here.
            if let (Ok(value), Some(before)) = (self.place(instance, &placed, equal.source), equal.before(instance)) {
                self.equal.entry(value).or_default().insert((before, equal.form));
            }
        }
        for (at, source) in instance.outputs.iter().zip(&recipe.outputs) {
            let value = self.place(instance, &placed, *source)?;
            self.values.insert(*at, value);
        }
        Ok(())
    }

    fn place(&self, instance: &Instance, placed: &[Value], source: Source) -> Result<Value, PassError> {
        match source {
            Source::Node(i, result) => Ok(Value { result, ..placed[i as usize] }),
            Source::Slot(i, form) => self.lookup(instance.slots[i as usize], form),
        }
    }

    /// The graph without nodes that ended up unread, and each node's rules.
    fn finish(self) -> Result<Stamped, PassError> {
        let mut outputs = Vec::new();
        let mut live = vec![false; self.drafts.len()];
        for output in self.graph.outputs() {
            let value = self.lookup(output.value, Carried::Plain)?;
            live[value.node.index()] = true;
            outputs.push((output, value));
        }
        for i in (0..self.drafts.len()).rev() {
            live[i] |= matches!(self.drafts[i].op, Op::Input { .. } | Op::State { .. });
            if live[i] {
                self.drafts[i].operands.iter().for_each(|v| live[v.node.index()] = true);
            }
        }
        let mut out = self.graph.emptied();
        let mut map: Vec<Option<NodeId>> = vec![None; self.drafts.len()];
        let mut origins = Vec::new();
        for (i, draft) in self.drafts.into_iter().enumerate().filter(|(i, _)| live[*i]) {
            let moved = |v: &Value| map[v.node.index()].map(|node| Value { node, ..*v });
            let operands: Vec<Value> = draft.operands.iter().filter_map(moved).collect();
            let node = out.add(draft.op, &operands, draft.sources)?;
            map[i] = Some(node);
            origins.push(Origin { node, stands_for: draft.stands_for, chain: draft.chain });
        }
        for (output, value) in outputs {
            let node = map[value.node.index()].ok_or_else(|| lost(&output.name))?;
            let value = Value { node, ..value };
            if out.type_of(value) != self.graph.type_of(output.value) {
                return Err(PassError::Unsound {
                    message: format!("output {} changed its type to {}", output.name, out.type_of(value)),
                });
            }
            out.output(&output.name, output.kind.clone(), value);
        }
        let value = |v: Value| map.get(v.node.index()).copied().flatten().map(|node| Value { node, ..v });
        let correspondence = self.equal.into_iter().filter_map(|(v, equal)| Some((value(v)?, equal))).collect();
        Ok(Stamped { graph: out, origins, correspondence })
    }
}

fn lost(name: &str) -> PassError {
    PassError::Ir(IrError::InvalidGraph { path: name.to_owned(), message: "the output was lost".into() })
}

/// Units and anchors, as the report has them.
fn account(report: &mut Report, before: &Graph, units: &Units) {
    for (i, (unit, recipe)) in units.recipes.iter().enumerate() {
        let mut instances = units.placed.iter().filter(|(_, r)| *r == i).map(|(instance, _)| instance);
        let first = instances.next();
        report.units.push(UnitReport {
            instances: usize::from(first.is_some()) + instances.count(),
            limit: recipe.limit.clone().map(|reached| LimitReport {
                reached,
                at: first
                    .and_then(|f| f.nodes.iter().find_map(|id| before.node(*id).sources.iter().next()))
                    .map_or_else(String::new, ToString::to_string),
            }),
            nodes_before: unit.nodes.len(),
            nodes_after: recipe.steps.len(),
            e_nodes: recipe.e_nodes,
            iterations: recipe.iterations,
            matches: recipe.matches.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect(),
        });
    }
    for (instance, recipe) in &units.placed {
        for (site, outcome) in &units.recipes[*recipe].1.sites {
            let ids = site.nodes.iter().filter_map(|i| instance.nodes.get(*i as usize));
            let paths = ids.clone().flat_map(|id| before.node(*id).sources.iter().map(|s| s.to_string())).collect();
            let nodes = ids.map(|id| id.index() as u32).collect();
            report.add_place(site.group, AnchorReport { nodes, paths, outcome: located(outcome, before, instance) });
        }
    }
}

/// A unit's outcome at one of its places.
fn located(outcome: &Outcome, graph: &Graph, instance: &Instance) -> Outcome {
    let Outcome::Kept { reason } = outcome else { return outcome.clone() };
    let path = |id: NodeId| graph.node(id).sources.iter().next().map_or_else(String::new, |s| s.to_string());
    let name = |place: Place| match place {
        Place::Slot(i) => instance.slots.get(i as usize).map(|v| path(v.node)).unwrap_or_default(),
        Place::Node(i) => instance.nodes.get(i as usize).map(|id| path(*id)).unwrap_or_default(),
        Place::Output(i) => {
            let value = instance.outputs.get(i as usize).map(|(value, _)| *value);
            let output = graph.outputs().iter().find(|o| Some(o.value) == value);
            output.map_or_else(|| "another layer".to_owned(), |o| format!("output {}", o.name))
        }
    };
    let node = |i: u32| instance.nodes.get(i as usize).map(|id| id.index() as u32);
    Outcome::Kept { reason: reason.located(&node, &name) }
}
