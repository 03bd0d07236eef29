//! The order of passes, in one function.

use crate::egraph::Limits;
use crate::error::PassError;
use crate::report::{NodeReport, Report, UnitReport};
use crate::rules::{self, GROUPS, Numerics, Rule};
use crate::solve::{Recipe, Solver, Source};
use crate::target::TargetModel;
use crate::units::{Carried, Instance, Unit, cut, describe, is_shared_leaf};
use indexmap::IndexMap;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use weldment_ir::{Attr, Category, DType, Graph, IrError, NodeId, Op, OpKind, Value};

/// What a user can choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rules up to this class may fire. `None`: [`Numerics::default_for`] the graph.
    pub fp_policy: Option<Numerics>,
    /// Rules and fusions switched off, by name.
    pub disabled: BTreeSet<String>,
    /// Values of symbols at which forms are priced; a symbol not given stands at the least of its range.
    pub dims: BTreeMap<String, u64>,
    /// Optimise equal layers once.
    pub unit_stamping: bool,
    /// Where saturation gives up.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            fp_policy: None,
            disabled: BTreeSet::new(),
            dims: BTreeMap::new(),
            unit_stamping: true,
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
}

/// Canonicalises and fuses `graph` for `target`: dead nodes dropped, cut into units, each distinct unit saturated and
/// extracted, stamped, compacted, verified.
///
/// # Errors
/// Unknown names in `options.disabled`; a saturation limit; graph errors, which would be bugs.
pub fn optimise(graph: &Graph, target: &dyn TargetModel, options: &Options) -> Result<Optimised, PassError> {
    let graph = graph.compact()?;
    let policy = options.fp_policy.unwrap_or_else(|| Numerics::default_for(&graph));
    let all = rules::all();
    check_names(&all, &options.disabled)?;
    let (allowed, barred) = select(&all, policy, &options.disabled);
    let dims = |symbol: &str| {
        let range = graph.symbols().get(symbol);
        let given = options.dims.get(symbol).copied();
        match (given, range) {
            (Some(n), Some(r)) => n.clamp(r.min, r.max),
            (Some(n), None) => n,
            (None, r) => r.map_or(1, |r| r.min),
        }
    };
    let solver = Solver { rules: allowed, barred, target, limits: options.limits, dims: &dims, favour_made: false };
    let units = solve_units(&graph, &solver, options.unit_stamping)?;
    let (out, nodes) = rebuild(&graph, &units)?;
    weldment_ir::verify(&out)?;
    let report = report(&graph, &out, policy, &options.disabled, &units, nodes);
    Ok(Optimised { graph: out, report })
}

/// Stamps every unit.
pub(crate) fn rebuild(graph: &Graph, units: &Units) -> Result<(Graph, Vec<NodeReport>), PassError> {
    let mut builder = Builder::new(graph);
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
    disabled: &BTreeSet<String>,
) -> (Vec<&'a Rule>, Vec<(&'a Rule, String)>) {
    let (mut allowed, mut barred) = (Vec::new(), Vec::new());
    for rule in all {
        let off = [Some(rule.name), rule.group].into_iter().flatten().find(|n| disabled.contains(*n));
        match off {
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
}

/// Solves the units last to first, so that each knows in which form its values are wanted.
pub(crate) fn solve_units(graph: &Graph, solver: &Solver<'_>, stamping: bool) -> Result<Units, PassError> {
    let fixed = graph.statics();
    let mut demands: BTreeMap<Value, BTreeSet<Carried>> = BTreeMap::new();
    for output in graph.outputs() {
        demands.entry(output.value).or_default().insert(Carried::Plain);
    }
    let mut known: IndexMap<Unit, Recipe> = IndexMap::new();
    let mut placed = Vec::new();
    for nodes in cut(graph, stamping).iter().rev() {
        let instance = describe(graph, nodes, &fixed, &|v| rounds(graph, solver.target, v), &demands);
        let index = match known.get_index_of(&instance.unit) {
            Some(i) => i,
            None => {
                let recipe = solver.solve(&instance.unit)?;
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
    Ok(Units { recipes: known.into_iter().collect(), placed })
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
    rules: BTreeSet<&'static str>,
}

/// Collects the new graph; equal nodes are one node.
struct Builder<'a> {
    graph: &'a Graph,
    drafts: Vec<Draft>,
    known: HashMap<(Op, Vec<Value>), u32>,
    values: BTreeMap<(Value, Carried), Value>,
}

impl<'a> Builder<'a> {
    fn new(graph: &'a Graph) -> Builder<'a> {
        let mut out = Builder { graph, drafts: Vec::new(), known: HashMap::new(), values: BTreeMap::new() };
        for id in graph.ids().filter(|id| is_shared_leaf(&graph.node(*id).op)) {
            let node = graph.node(id);
            let value = out.draft(node.op.clone(), Vec::new(), node.sources.clone(), BTreeSet::new());
            out.values.insert((Value { node: id, result: 0 }, Carried::Plain), value);
        }
        out
    }

    fn draft(
        &mut self,
        op: Op,
        operands: Vec<Value>,
        sources: BTreeSet<Arc<str>>,
        rules: BTreeSet<&'static str>,
    ) -> Value {
        let key = (op.clone(), operands.clone());
        let at = match self.known.get(&key) {
            Some(at) => {
                let draft = &mut self.drafts[*at as usize];
                draft.sources.extend(sources);
                draft.rules.extend(rules);
                *at
            }
            None => {
                let at = self.drafts.len() as u32;
                self.known.insert(key, at);
                self.drafts.push(Draft { op, operands, sources, rules });
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
            let origins = step.origins.iter().filter_map(|i| instance.nodes.get(*i as usize));
            let sources = origins.flat_map(|id| self.graph.node(*id).sources.iter().cloned()).collect();
            placed.push(self.draft(step.op.clone(), operands?, sources, step.rules.clone()));
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
    fn finish(self) -> Result<(Graph, Vec<NodeReport>), PassError> {
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
        let mut out = Graph::new(&self.graph.name);
        for (name, range) in self.graph.symbols() {
            out.declare_symbol(name, range.min, range.max);
        }
        let mut map: Vec<Option<NodeId>> = vec![None; self.drafts.len()];
        let mut nodes = Vec::new();
        for (i, draft) in self.drafts.iter().enumerate().filter(|(i, _)| live[*i]) {
            let moved = |v: &Value| map[v.node.index()].map(|node| Value { node, ..*v });
            let operands: Vec<Value> = draft.operands.iter().filter_map(moved).collect();
            let id = out.add(draft.op.clone(), &operands, draft.sources.clone())?;
            map[i] = Some(id);
            if !is_shared_leaf(&draft.op) {
                nodes.push(NodeReport::new(id, draft.op.kind(), &draft.sources, &draft.rules));
            }
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
        Ok((out, nodes))
    }
}

fn lost(name: &str) -> PassError {
    PassError::Ir(IrError::InvalidGraph { path: name.to_owned(), message: "the output was lost".into() })
}

pub(crate) fn report(
    before: &Graph,
    after: &Graph,
    policy: Numerics,
    disabled: &BTreeSet<String>,
    units: &Units,
    nodes: Vec<NodeReport>,
) -> Report {
    let mut report = Report::new(policy, disabled, before, after, nodes);
    for (i, (unit, recipe)) in units.recipes.iter().enumerate() {
        let instances = units.placed.iter().filter(|(_, r)| *r == i).count();
        report.units.push(UnitReport {
            instances,
            nodes_before: unit.nodes.len(),
            nodes_after: recipe.steps.len(),
            e_nodes: recipe.e_nodes,
            iterations: recipe.iterations,
            matches: recipe.matches.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect(),
        });
    }
    for (instance, recipe) in &units.placed {
        for (site, outcome) in &units.recipes[*recipe].1.sites {
            let paths: BTreeSet<String> = site
                .nodes
                .iter()
                .filter_map(|i| instance.nodes.get(*i as usize))
                .flat_map(|id| before.node(*id).sources.iter().map(|s| s.to_string()))
                .collect();
            report.place(site.group, paths, outcome.clone());
        }
    }
    report
}
