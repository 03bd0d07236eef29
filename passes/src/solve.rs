//! One unit: into the e-graph, saturated, extracted, and described as a recipe that can be stamped.

use crate::correspondence::{Equal, equalities};
use crate::egraph::{ENode, Facts, LeafFacts, Limits, Log, Net, saturate, typed_op};
use crate::error::PassError;
use crate::extract::{Extraction, Prices};
use crate::probe::Probe;
use crate::report::{Anchor, Ground, Outcome, Site, anchors, outcome};
use crate::rules::Rule;
use crate::target::TargetModel;
use crate::units::{Carried, Operand, Unit, mark};
use egg::Id;
use std::collections::{BTreeMap, BTreeSet};
use weldment_ir::{Attr, Category, Op, OpKind};

/// An operand of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Source {
    /// A slot, in a form.
    Slot(u32, Carried),
    /// A result of a recipe node.
    Node(u32, u32),
}

/// A node of a recipe.
#[derive(Clone, Debug)]
pub(crate) struct Computed {
    pub op: Op,
    pub operands: Vec<Source>,
    /// Nodes of the unit that it stands for.
    pub origins: BTreeSet<u32>,
    /// Rewrites that led to it, in the order in which one built on the other.
    pub chain: Vec<&'static str>,
}

/// How to build the optimised form of a unit.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub steps: Vec<Computed>,
    /// One for each output of the unit.
    pub outputs: Vec<Source>,
    /// Which values of the unit its values equal.
    pub equal: Vec<Equal>,
    /// Every anchor of the unit and what became of it.
    pub sites: Vec<(Site, Outcome)>,
    pub e_nodes: usize,
    pub iterations: usize,
    /// The limit that saturation reached.
    pub limit: Option<String>,
    pub matches: BTreeMap<&'static str, usize>,
}

/// What solving needs beside the unit.
pub(crate) struct Solver<'a> {
    /// Rules that may fire.
    pub rules: Vec<&'a Rule>,
    /// Rules that may not, and why.
    pub barred: Vec<(&'a Rule, String)>,
    pub target: &'a dyn TargetModel,
    pub limits: Limits,
    pub probe: &'a Probe,
    pub dims: &'a dyn Fn(&str) -> u64,
    /// Forms that rules made are free, so that a rule's right side is what comes out: how rules are tested alone.
    pub favour_made: bool,
}

/// A saturated and extracted unit, for reporting.
pub(crate) struct Solved<'a> {
    pub unit: &'a Unit,
    pub net: Net,
    pub log: Log,
    pub extraction: Extraction,
    /// Class of each result of each node of the unit.
    pub classes: Vec<Vec<Id>>,
    /// Recipe node that computes a class.
    pub owner: BTreeMap<Id, u32>,
    pub steps: Vec<Computed>,
}

impl Solved<'_> {
    /// The class of a node's first result.
    pub fn class(&self, node: u32) -> Option<Id> {
        self.classes.get(node as usize)?.first().map(|id| self.net.find(*id))
    }
}

/// Puts a unit into an e-graph: classes of each node's results, and the roots.
fn ingest(unit: &Unit) -> (Net, Vec<Vec<Id>>, Vec<Id>) {
    let leaves = unit.slots.iter().map(|s| LeafFacts { ty: s.ty.clone(), fixed: s.fixed }).collect();
    let mut net = Net::new(Facts { leaves, ranges: unit.ranges.clone(), scoring: unit.scoring(), conflict: None });
    let slots: Vec<Id> = (0..unit.slots.len() as u32).map(|i| net.add(ENode::Leaf(i))).collect();
    let mut classes: Vec<Vec<Id>> = Vec::with_capacity(unit.nodes.len());
    let gates = gates(unit);
    let resolve = |classes: &[Vec<Id>], o: &Operand| match o {
        Operand::Slot(i) => slots[*i as usize],
        Operand::Local(i, result) => classes[*i as usize][*result as usize],
    };
    for (i, node) in unit.nodes.iter().enumerate() {
        let mut children: Vec<Id> = node.operands.iter().map(|o| resolve(&classes, o)).collect();
        children.extend(node.op.attrs().into_iter().map(|a| net.add(ENode::Attr(a))));
        let kind = node.op.kind();
        let id = net.add(ENode::Op(kind, children.into()));
        let results = match kind.info().results.len() {
            1 => vec![id],
            n => (0..n as u32).map(|r| net.add(ENode::Result(r, [id]))).collect(),
        };
        for id in &results {
            if let crate::egraph::Data::Value(v) = &mut net[*id].data {
                v.order.get_or_insert(i as u32);
                v.gate |= gates[i];
            }
        }
        classes.push(results);
    }
    let mut roots = Vec::with_capacity(unit.outputs.len());
    for (operand, form) in &unit.outputs {
        let id = resolve(&classes, operand);
        roots.push(match form {
            Carried::Plain => id,
            Carried::Cast(dtype) => {
                let attr = net.add(ENode::Attr(Attr::DType(*dtype)));
                net.add(ENode::Op(OpKind::Cast, [id, attr].into()))
            }
        });
    }
    (net, classes, roots)
}

/// Which nodes feed a gate, through views, casts and biases.
pub(crate) fn gates(unit: &Unit) -> Vec<bool> {
    let mut gates = vec![false; unit.nodes.len()];
    for (i, node) in unit.nodes.iter().enumerate().rev() {
        let kind = node.op.kind();
        let gate = matches!(kind, OpKind::Silu | OpKind::Sigmoid | OpKind::Gelu | OpKind::SiluMul);
        // A bias may stand on either side of its sum.
        let passes = kind.info().category == Category::View || matches!(kind, OpKind::Add | OpKind::Cast);
        let read = if kind == OpKind::Add { node.operands.len() } else { 1 };
        if gate || (gates[i] && passes) {
            for operand in node.operands.iter().take(read) {
                if let Operand::Local(fed, _) = operand {
                    gates[*fed as usize] = true;
                }
            }
        }
    }
    gates
}

impl Solver<'_> {
    /// Optimises one unit.
    ///
    /// # Errors
    /// If a rule is unsound.
    pub fn solve(&self, unit: &Unit) -> Result<Recipe, PassError> {
        let (mut net, classes, roots) = ingest(unit);
        let log = saturate(&mut net, &self.rules, self.target, &self.limits, self.probe, unit.nodes.len())?;
        let missing = || PassError::NoForm { path: "a unit's outputs".into() };
        let free = |node: &ENode| border_cast(unit, &net, node) || (self.favour_made && log.made.contains_key(node));
        let base = if self.favour_made { [1 << 30, 1] } else { [16, 17] };
        let prices = Prices { target: self.target, dims: self.dims, free: &free, base, salt: self.probe.salt() };
        let extraction = Extraction::run(&net, &roots, &log, &prices).ok_or_else(missing)?;
        let (steps, owner) = self.steps(unit, &net, &log, &extraction).ok_or_else(missing)?;
        let outputs: Option<Vec<Source>> =
            roots.iter().map(|r| source_of(&net, &extraction, &owner, unit, net.find(*r))).collect();
        let source = |class| source_of(&net, &extraction, &owner, unit, class);
        let equal = equalities(unit, &net, &classes, &extraction.order(), &source);
        let mut solved = Solved { unit, net, log, extraction, classes, owner, steps };
        let unneeded = dead_nodes(&solved);
        let owners = attribute(&mut solved, &unneeded);
        let rules = self.rules.iter().copied().chain(self.barred.iter().map(|(r, _)| *r));
        let ground = Ground::new(&solved.net, unit, &solved.classes, rules);
        let told = |a: Anchor| (a.site(), outcome(self, &solved, &ground, &owners, &a));
        let sites = anchors(unit).into_iter().map(told).collect();
        let matches = solved.log.matches.iter().filter_map(|(i, n)| Some((self.rules.get(*i)?.name, *n))).collect();
        Ok(Recipe {
            steps: solved.steps,
            outputs: outputs.ok_or_else(missing)?,
            equal,
            sites,
            e_nodes: solved.net.total_number_of_nodes(),
            iterations: solved.log.iterations,
            limit: solved.log.limit,
            matches,
        })
    }

    /// The chosen nodes in order; casts of borders become demands on other units.
    fn steps(
        &self,
        unit: &Unit,
        net: &Net,
        log: &Log,
        extraction: &Extraction,
    ) -> Option<(Vec<Computed>, BTreeMap<Id, u32>)> {
        let mut steps: Vec<Computed> = Vec::new();
        let mut owner: BTreeMap<Id, u32> = BTreeMap::new();
        for class in extraction.order() {
            let node = extraction.chosen(class)?;
            match node {
                ENode::Leaf(_) | ENode::Attr(_) => {}
                ENode::Result(_, [tuple]) => {
                    let at = *owner.get(&net.find(*tuple))?;
                    owner.insert(class, at);
                }
                ENode::Op(kind, _) => {
                    let (operands, attrs) = node.split();
                    if carried(unit, extraction, net, node).is_some() {
                        continue;
                    }
                    let (op, _) = typed_op(net, *kind, operands, attrs).ok()?;
                    let operands: Option<Vec<Source>> =
                        operands.iter().map(|o| source_of(net, extraction, &owner, unit, net.find(*o))).collect();
                    let made = log.made.get(node).into_iter().flatten();
                    let chain = made.filter_map(|i| self.rules.get(*i)).map(|r| r.name).collect();
                    owner.insert(class, steps.len() as u32);
                    steps.push(Computed { op, operands: operands?, origins: BTreeSet::new(), chain });
                }
            }
        }
        Some((steps, owner))
    }
}

/// A cast of a value that another unit can round as it computes it: nothing is left to pay here.
fn border_cast(unit: &Unit, net: &Net, node: &ENode) -> bool {
    let (ENode::Op(OpKind::Cast, _), ([x], [_])) = (node, node.split()) else { return false };
    net[*x].iter().any(|n| matches!(n, ENode::Leaf(i) if unit.slots.get(*i as usize).is_some_and(|s| s.rounds)))
}

/// A cast of another unit's value: that unit may carry it cast.
fn carried(unit: &Unit, extraction: &Extraction, net: &Net, node: &ENode) -> Option<Source> {
    let ENode::Op(OpKind::Cast, _) = node else { return None };
    let ([x], [dtype]) = node.split() else { return None };
    let ENode::Leaf(slot) = extraction.chosen(net.find(*x))? else { return None };
    let foreign = unit.slots.get(*slot as usize).is_some_and(|s| s.leaf.is_none() && !s.fixed);
    match net[*dtype].data.attr() {
        Some(Attr::DType(d)) if foreign => Some(Source::Slot(*slot, Carried::Cast(*d))),
        _ => None,
    }
}

fn source_of(net: &Net, extraction: &Extraction, owner: &BTreeMap<Id, u32>, unit: &Unit, class: Id) -> Option<Source> {
    match extraction.chosen(class)? {
        ENode::Leaf(i) => Some(Source::Slot(*i, Carried::Plain)),
        ENode::Result(i, _) => Some(Source::Node(*owner.get(&class)?, *i)),
        ENode::Attr(_) => None,
        node => carried(unit, extraction, net, node).or_else(|| Some(Source::Node(*owner.get(&class)?, 0))),
    }
}

/// Nodes that no output needs any more: a rule had no use for what they computed. (A node that a fused step absorbed is needed.)
fn dead_nodes(solved: &Solved<'_>) -> BTreeSet<u32> {
    let unit = solved.unit;
    if solved.log.dropped.is_empty() {
        return BTreeSet::new();
    }
    let class_of =
        |node: u32, result: u32| solved.classes.get(node as usize)?.get(result as usize).map(|id| solved.net.find(*id));
    // Does the form that was chosen for a node's value still read that operand?
    let unused = |i: u32, operand: &Operand| {
        let (Some(class), Operand::Local(j, result)) = (class_of(i, 0), operand) else { return false };
        let stands = solved
            .owner
            .get(&class)
            .is_some_and(|s| solved.steps[*s as usize].op.kind() == unit.nodes[i as usize].op.kind());
        let dropped = solved.log.dropped.get(&class);
        !stands && dropped.is_some_and(|d| class_of(*j, *result).is_some_and(|c| d.contains(&c)))
    };
    let mut needed = vec![false; unit.nodes.len()];
    unit.outputs.iter().for_each(|(operand, _)| mark(&mut needed, operand));
    for i in (0..unit.nodes.len() as u32).rev() {
        if !needed[i as usize] {
            continue;
        }
        let operands = &unit.nodes[i as usize].operands;
        let standing = class_of(i, 0).is_some_and(|c| solved.owner.contains_key(&c));
        needed[i as usize] = standing || !operands.iter().any(|o| unused(i, o));
        operands.iter().filter(|o| !unused(i, o)).for_each(|o| mark(&mut needed, o));
    }
    (0..unit.nodes.len() as u32).filter(|i| !needed[*i as usize]).collect()
}

/// Says for each node of the unit which steps stand for it, and records it in the steps: those that compute its value,
/// else those that compute it rounded or reshaped, else whatever stands for its readers. A step for which no node stands (a merged
/// matmul, a cast) takes the nodes of its readers. For dead nodes none stands.
fn attribute(solved: &mut Solved<'_>, dead: &BTreeSet<u32>) -> Vec<BTreeSet<u32>> {
    let unit = solved.unit;
    let users = unit.users();
    // Steps that compute a value rounded to another dtype or under another shape.
    let mut rounded: BTreeMap<Id, BTreeSet<u32>> = BTreeMap::new();
    let mut reshaped: BTreeMap<Id, BTreeSet<u32>> = BTreeMap::new();
    for class in solved.net.classes() {
        for node in class.iter() {
            let into = match node {
                ENode::Op(OpKind::Cast, _) => &mut rounded,
                ENode::Op(OpKind::Reshape, _) => &mut reshaped,
                _ => continue,
            };
            let ([x], _) = node.split() else { continue };
            let x = solved.net.find(*x);
            if let Some(step) = solved.owner.get(&class.id) {
                into.entry(x).or_default().insert(*step);
            } else if let (ENode::Op(OpKind::Reshape, _), Some(step)) = (node, solved.owner.get(&x)) {
                reshaped.entry(class.id).or_default().insert(*step);
            }
        }
    }
    let mut owners: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); unit.nodes.len()];
    for i in (0..unit.nodes.len()).rev() {
        let results: Vec<Id> = solved.classes.get(i).into_iter().flatten().map(|id| solved.net.find(*id)).collect();
        let mut own: BTreeSet<u32> = results.iter().filter_map(|id| solved.owner.get(id).copied()).collect();
        if own.is_empty() && dead.contains(&(i as u32)) {
            continue;
        }
        if own.is_empty() {
            own = results.iter().filter_map(|id| rounded.get(id)).flatten().copied().collect();
        }
        if own.is_empty() {
            own = results.iter().filter_map(|id| reshaped.get(id)).flatten().copied().collect();
        }
        if own.is_empty() {
            own = users[i].iter().flat_map(|(u, _)| owners[*u as usize].iter().copied()).collect();
        }
        owners[i] = own;
        for step in &owners[i] {
            solved.steps[*step as usize].origins.insert(i as u32);
        }
    }
    let mut readers: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); solved.steps.len()];
    for (i, step) in solved.steps.iter().enumerate() {
        for operand in &step.operands {
            if let Source::Node(j, _) = operand {
                readers[*j as usize].insert(i as u32);
            }
        }
    }
    for i in (0..solved.steps.len()).rev() {
        if solved.steps[i].origins.is_empty() {
            let origins = readers[i].iter().flat_map(|r| solved.steps[*r as usize].origins.clone()).collect();
            solved.steps[i].origins = origins;
        }
    }
    owners
}
