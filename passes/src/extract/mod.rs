//! Extraction: one e-node for every class that the roots need, acyclic, by DAG cost (a shared node is paid once).
//!
//! Costs are integers (units of 2^-10 ns), so sums do not depend on order. Greedy bottom-up first: each class keeps the
//! set of nodes that its best form needs. Then local search with the exact cost: single switches, and for each class
//! that several values could share (a merged matmul, a quantised activation, a node with two results) the switch of
//! all of them at once. Ties go to nodes of the graph before any rule, then by structural hash; never by class id.

mod choices;
mod needs;

use crate::egraph::{ENode, Log, Net, typed_op};
use crate::target::TargetModel;
use choices::{Choices, Joined};
use egg::{Id, Language};
use needs::Needs;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use weldment_ir::{Category, Op, TensorType};

/// Cost in units of 2^-10 ns.
pub type Cost = u64;

/// Where prices come from.
pub struct Prices<'a> {
    /// Kernels and their costs.
    pub target: &'a dyn TargetModel,
    /// Values of the symbols.
    pub dims: &'a dyn Fn(&str) -> u64,
    /// Nodes that cost nothing here, as another unit does their work.
    pub free: &'a dyn Fn(&ENode) -> bool,
    /// Beside its price, what a node of the graph before any rule costs, and what a rule's node does. Far above 0, so that
    /// fewer nodes are better; a rule's node a little more, so that as many keep the graph.
    pub base: [Cost; 2],
    /// Where hashes that break ties start from.
    pub salt: u64,
}

/// What an op without a kernel costs: more than any form with one, still finite.
const REFUSED: Cost = 1 << 52;

/// FNV-1a: the same on every machine and in every process.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

fn hash_of(parts: impl Hash) -> u64 {
    let mut h = Fnv(0xcbf2_9ce4_8422_2325);
    parts.hash(&mut h);
    h.finish()
}

/// One form of a class.
#[derive(Clone, Debug)]
struct Form {
    node: ENode,
    children: Vec<usize>,
    cost: Cost,
    /// Hash of the op and its attributes.
    hash: u64,
    /// A view: what it shows can be shared under other shapes.
    view: bool,
}

/// The best known form of a class while costs settle.
#[derive(Clone, Debug)]
struct Best {
    form: usize,
    hash: u64,
    /// Every node needed.
    needs: Needs,
}

/// A chosen form for every class.
#[derive(Debug)]
pub struct Extraction {
    index: BTreeMap<Id, usize>,
    ids: Vec<Id>,
    forms: Vec<Vec<Form>>,
    choice: Vec<Option<usize>>,
    roots: Vec<usize>,
    /// DAG cost of the roots.
    pub cost: Cost,
}

impl Extraction {
    /// Chooses forms for `roots`; `None` if a root has no acyclic form (an e-graph built from a graph always has).
    pub fn run(net: &Net, roots: &[Id], log: &Log, prices: &Prices<'_>) -> Option<Extraction> {
        let mut index = BTreeMap::new();
        let mut ids = Vec::new();
        for class in net.classes().filter(|c| c.data.value().is_some()) {
            index.insert(class.id, ids.len());
            ids.push(class.id);
        }
        let forms: Vec<Vec<Form>> = ids.iter().map(|id| forms_of(net, *id, &index, log, prices)).collect();
        let roots: Vec<usize> = roots.iter().map(|r| index.get(&net.find(*r)).copied()).collect::<Option<_>>()?;
        // Which of several good forms a class takes first decides where the search for better ones can lead.
        let starts = [operands_first(&forms), (0..forms.len()).collect()];
        let found = starts.iter().filter_map(|order| search(forms.clone(), &roots, order));
        let Found { forms, choice, cost } = found.min_by_key(|f| f.cost)?;
        Some(Extraction { index, ids, forms, choice, roots, cost })
    }

    /// The chosen node of a class.
    pub fn chosen(&self, class: Id) -> Option<&ENode> {
        let at = *self.index.get(&class)?;
        self.forms.get(at)?.get((*self.choice.get(at)?)?).map(|f| &f.node)
    }

    fn choices(&self) -> Option<Choices<'_>> {
        Choices::new(&self.forms, &self.roots, self.choice.clone())
    }

    /// Classes that the roots need, operands first, in the order of a walk from the roots.
    pub fn order(&self) -> Vec<Id> {
        let order = self.choices().and_then(|c| c.order()).unwrap_or_default();
        order.into_iter().map(|c| self.ids[c]).collect()
    }

    /// The roots' cost if one of `classes` had to take a form that `accept` likes: the least; `None` if there is no such form.
    pub fn cost_with(&self, classes: impl Iterator<Item = Id>, accept: &dyn Fn(&ENode) -> bool) -> Option<Cost> {
        let mut choices = self.choices()?;
        let mut least: Option<Cost> = None;
        for at in classes.filter_map(|class| self.index.get(&class).copied()) {
            for (i, _) in self.forms[at].iter().enumerate().filter(|(_, form)| accept(&form.node)) {
                choices.switch(at, Some(i));
                least = [least, choices.trial_cost(Joined::Chain)].into_iter().flatten().min();
                choices.revert(0);
            }
        }
        least
    }
}

/// Where a search ended.
struct Found {
    forms: Vec<Vec<Form>>,
    choice: Vec<Option<usize>>,
    cost: Cost,
}

/// The choices that a search comes to if classes find their first good form in `order`.
fn search(mut forms: Vec<Vec<Form>>, roots: &[usize], order: &[usize]) -> Option<Found> {
    let best = greedy(&forms, order);
    let terms: Vec<u64> = best.iter().map(|b| b.as_ref().map_or(0, |b| b.hash)).collect();
    let chosen =
        forms.iter_mut().zip(&best).map(|(list, b)| in_order(list, b.as_ref().map(|b| b.form), &terms)).collect();
    let mut choices = Choices::new(&forms, roots, chosen)?;
    improve(&mut choices, &forms, &terms);
    let (cost, choice) = (choices.cost(), choices.into_choice());
    Some(Found { forms, choice, cost })
}

/// What the search for better choices looks at.
struct Improver<'c, 'a> {
    choices: &'c mut Choices<'a>,
    forms: &'a [Vec<Form>],
    /// Which (class, form) read a class.
    readers: Vec<Vec<(usize, usize)>>,
}

/// Switches while the exact cost falls.
fn improve<'a>(choices: &mut Choices<'a>, forms: &'a [Vec<Form>], terms: &[u64]) {
    let mut readers: Vec<Vec<(usize, usize)>> = vec![Vec::new(); forms.len()];
    for (class, list) in forms.iter().enumerate() {
        for (i, form) in list.iter().enumerate() {
            for child in &form.children {
                if readers[*child].last() != Some(&(class, i)) {
                    readers[*child].push((class, i));
                }
            }
        }
    }
    // Providers in an order that does not depend on class ids.
    let mut providers: Vec<(u64, usize)> = (0..forms.len())
        .filter(|c| {
            let first = readers[*c].first().map(|r| r.0);
            readers[*c].iter().any(|r| Some(r.0) != first)
        })
        .map(|c| (terms[c], c))
        .collect();
    providers.sort_unstable();
    let mut improver = Improver { choices, forms, readers };
    const SWEEPS: usize = 24;
    for _ in 0..SWEEPS {
        let start = improver.choices.cost();
        for class in improver.choices.order().unwrap_or_default() {
            improver.try_forms(class);
        }
        for (_, provider) in &providers {
            improver.try_provider(*provider);
        }
        if improver.choices.cost() == start {
            break;
        }
    }
}

impl Improver<'_, '_> {
    /// Switches a needed class to each of its forms, alone or with one of the form's operands.
    fn try_forms(&mut self, class: usize) {
        for i in 0..self.forms[class].len() {
            let cost = self.choices.cost();
            if self.choices.chosen(class) != Some(i) {
                self.choices.switch(class, Some(i));
                if !self.choices.commit_below(cost, Joined::Chain) && !self.try_operands(class, cost, Joined::Chain) {
                    self.choices.revert(0);
                }
            }
        }
    }

    /// Switches every needed class that can read `provider`, itself or as a view of a value that does, and keeps that if
    /// it is cheaper.
    fn try_provider(&mut self, provider: usize) {
        let cost = self.choices.cost();
        let mut switches: Vec<(usize, usize)> = Vec::new();
        let mut last = None;
        for (class, form) in &self.readers[provider] {
            if *class == provider || last == Some(*class) {
                continue;
            }
            // A value that nothing needs may still be what a needed one is a view of.
            let needed = self.choices.is_needed(*class);
            let views = |(outer, at): &&(usize, usize)| self.choices.is_needed(*outer) && self.forms[*outer][*at].view;
            let shown: Vec<(usize, usize)> = match needed {
                true => Vec::new(),
                false => self.readers[*class].iter().filter(views).copied().collect(),
            };
            if !needed && shown.is_empty() {
                continue;
            }
            last = Some(*class);
            switches.extend(shown.into_iter().chain([(*class, *form)]).filter(|(class, _)| *class != provider));
        }
        let mut changed = false;
        for (class, form) in switches {
            if self.choices.chosen(class) != Some(form) {
                self.choices.switch(class, Some(form));
                changed = true;
            }
        }
        if changed
            && !self.choices.commit_below(cost, Joined::Apart)
            && !self.try_operands(provider, cost, Joined::Apart)
        {
            self.choices.revert(0);
        }
    }

    /// One step further: with `class` in use as it is on trial, switches one of its operands, and keeps both if that is cheaper. A
    /// residual sum and the norm that reads it, say, may each pay only with the other, and of two all-reduced values that a sum
    /// joins, the second comes beside the norm before only once the first is taken.
    fn try_operands(&mut self, class: usize, cost: Cost, joined: Joined) -> bool {
        let Some(form) = self.choices.chosen(class).map(|i| &self.forms[class][i]) else { return false };
        let mark = self.choices.mark();
        for child in &form.children {
            for i in 0..self.forms[*child].len() {
                if self.choices.chosen(*child) != Some(i) {
                    self.choices.switch(*child, Some(i));
                    if self.choices.commit_below(cost, joined) {
                        return true;
                    }
                    self.choices.revert(mark);
                }
            }
        }
        false
    }
}

/// Puts the forms of a class in an order that does not depend on class ids; gives the place of the chosen one.
fn in_order(list: &mut Vec<Form>, chosen: Option<usize>, terms: &[u64]) -> Option<usize> {
    let key = |f: &Form| (f.cost, f.hash, f.children.iter().map(|c| terms[*c]).collect::<Vec<u64>>());
    let mut places: Vec<usize> = (0..list.len()).collect();
    places.sort_by_cached_key(|i| key(&list[*i]));
    let moved = places.iter().map(|i| list[*i].clone()).collect();
    *list = moved;
    chosen.and_then(|c| places.iter().position(|p| *p == c))
}

fn forms_of(net: &Net, id: Id, index: &BTreeMap<Id, usize>, log: &Log, prices: &Prices<'_>) -> Vec<Form> {
    let mut forms: Vec<Form> = Vec::new();
    for node in net[id].iter() {
        let node = node.clone().map_children(|c| net.find(c));
        let (operands, attrs) = node.split();
        let children: Option<Vec<usize>> = operands.iter().map(|o| index.get(o).copied()).collect();
        let Some(children) = children else { continue };
        // A longer chain of rules to as good a node is one that nobody needs to read.
        let base = match log.made.get(&node) {
            None => prices.base[0],
            Some(chain) => prices.base[1] + (chain.len() as Cost).saturating_sub(1).min(8),
        };
        let (cost, hash) = match &node {
            ENode::Op(kind, _) => match typed_op(net, *kind, operands, attrs) {
                Ok((op, types)) => {
                    let facts = net[id].data.value();
                    let results = facts.map(|f| f.types.to_vec()).unwrap_or_default();
                    // Static values are computed once, before the first step.
                    let step = match facts.is_some_and(|f| f.fixed) || (prices.free)(&node) {
                        true => 0,
                        false => price(prices, &op, &types, &results),
                    };
                    // By name, so that ties do not depend on where the op stands in its table.
                    (base + step, hash_of((prices.salt, kind.info().name, op.attrs())))
                }
                Err(_) => continue,
            },
            ENode::Leaf(i) => (0, hash_of((prices.salt, "leaf", i))),
            ENode::Result(i, _) => (1, hash_of((prices.salt, "result", i))),
            ENode::Attr(_) => continue,
        };
        let view = matches!(&node, ENode::Op(kind, _) if kind.info().category == Category::View);
        forms.push(Form { node, children, cost, hash, view });
    }
    forms
}

fn price(prices: &Prices<'_>, op: &Op, operands: &[TensorType], results: &[TensorType]) -> Cost {
    let view = matches!(op.kind().info().category, Category::View | Category::Leaf);
    if !view && prices.target.supports(op, operands, results).is_err() {
        return REFUSED;
    }
    let ns = prices.target.cost(op, operands, results, prices.dims);
    // A float to int cast saturates; NaN gives 0, which the refusal price replaces.
    if ns.is_nan() { REFUSED } else { ((ns.max(0.0) * 1024.0) as u64).min(REFUSED) }
}

/// Bottom-up: each class's best form by the cost of the set of nodes it needs, until nothing changes.
fn greedy(forms: &[Vec<Form>], order: &[usize]) -> Vec<Option<Best>> {
    let mut best: Vec<Option<Best>> = vec![None; forms.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); forms.len()];
    for (class, list) in forms.iter().enumerate() {
        list.iter().flat_map(|f| &f.children).for_each(|child| readers[*child].push(class));
    }
    let mut open = vec![true; forms.len()];
    // Costs only fall; the bound guards against ties that chase each other's hashes.
    const SWEEPS: usize = 200;
    for _ in 0..SWEEPS {
        let mut changed = false;
        for class in order {
            if !std::mem::take(&mut open[*class]) {
                continue;
            }
            let mut better = false;
            for (i, form) in forms[*class].iter().enumerate() {
                let Some(found) = candidate(&best, *class, i, form) else { continue };
                if best[*class].as_ref().is_none_or(|b| (found.needs.total(), found.hash) < (b.needs.total(), b.hash)) {
                    best[*class] = Some(found);
                    better = true;
                }
            }
            if better {
                readers[*class].iter().for_each(|reader| open[*reader] = true);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    best
}

/// All classes, each after those that its forms read, as far as they do not read each other.
fn operands_first(forms: &[Vec<Form>]) -> Vec<usize> {
    let mut seen = vec![false; forms.len()];
    let mut order = Vec::with_capacity(forms.len());
    let mut stack: Vec<(usize, usize, usize)> = Vec::new();
    for class in 0..forms.len() {
        if !std::mem::replace(&mut seen[class], true) {
            stack.push((class, 0, 0));
        }
        while let Some((class, form, next)) = stack.last_mut() {
            match forms[*class].get(*form).map(|f| f.children.get(*next)) {
                Some(Some(child)) => {
                    *next += 1;
                    if !std::mem::replace(&mut seen[*child], true) {
                        stack.push((*child, 0, 0));
                    }
                }
                Some(None) => (*form, *next) = (*form + 1, 0),
                None => {
                    order.push(*class);
                    stack.pop();
                }
            }
        }
    }
    order
}

fn candidate(best: &[Option<Best>], class: usize, i: usize, form: &Form) -> Option<Best> {
    let mut needs = Needs::default();
    let mut hash = form.hash;
    for child in &form.children {
        let b = best[*child].as_ref()?;
        hash = hash_of((hash, b.hash));
        needs = needs.join(&b.needs);
    }
    // The class would need itself.
    if needs.contains(class) {
        return None;
    }
    Some(Best { form: i, hash, needs: needs.join(&Needs::one(class, form.cost)) })
}
