//! Extraction: one e-node for every class that the roots need, acyclic, by DAG cost (a shared node is paid once).
//!
//! Costs are integers (units of 2^-10 ns), so sums do not depend on order. Greedy bottom-up first: each class keeps the
//! set of nodes that its best form needs. Then local search with the exact cost: single switches, and for each class
//! that several values could share (a merged matmul, a quantised activation, a node with two results) the switch of
//! all of them at once. Ties go to nodes of the graph before any rule, then by structural hash; never by class id.

use crate::egraph::{ENode, Log, Net, typed_op};
use crate::target::TargetModel;
use egg::{Id, Language};
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
    /// Beside its price, what a node of the graph before any rule costs, and what a rule's node does. Above 0, so that
    /// fewer nodes are better; a rule's node more, so that ties keep the graph.
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
    total: Cost,
    hash: u64,
    /// (class, cost) of every node needed, sorted by class.
    needs: Vec<(usize, Cost)>,
}

/// A chosen form for every class.
#[derive(Debug)]
pub struct Extraction {
    index: BTreeMap<Id, usize>,
    ids: Vec<Id>,
    forms: Vec<Vec<Form>>,
    choice: Vec<Option<usize>>,
    /// Structural hash of each class's best form.
    terms: Vec<u64>,
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
        let best = greedy(&forms);
        let terms: Vec<u64> = best.iter().map(|b| b.as_ref().map_or(0, |b| b.hash)).collect();
        let mut forms = forms;
        let choice =
            forms.iter_mut().zip(&best).map(|(list, b)| in_order(list, b.as_ref().map(|b| b.form), &terms)).collect();
        let roots: Option<Vec<usize>> = roots.iter().map(|r| index.get(&net.find(*r)).copied()).collect();
        let mut out = Extraction { index, ids, forms, choice, terms, roots: roots?, cost: 0 };
        out.cost = out.dag_cost()?;
        out.improve();
        Some(out)
    }

    /// The chosen node of a class.
    pub fn chosen(&self, class: Id) -> Option<&ENode> {
        let at = *self.index.get(&class)?;
        self.forms.get(at)?.get((*self.choice.get(at)?)?).map(|f| &f.node)
    }

    /// Classes that the roots need, operands first, in the order of a walk from the roots.
    pub fn order(&self) -> Vec<Id> {
        self.walk().map(|(order, _)| order.into_iter().map(|c| self.ids[c]).collect()).unwrap_or_default()
    }

    /// The roots' cost if `class` had to take a form that `accept` likes; `None` if it has none.
    pub fn cost_with(&self, class: Id, accept: &dyn Fn(&ENode) -> bool) -> Option<Cost> {
        let at = *self.index.get(&class)?;
        let forms = self.forms.get(at)?;
        let mut trial = self.trial();
        (0..forms.len())
            .filter(|i| accept(&forms[*i].node))
            .filter_map(|i| {
                trial.choice[at] = Some(i);
                trial.walk().map(|(_, cost)| cost)
            })
            .min()
    }

    fn trial(&self) -> Trial<'_> {
        Trial { choice: self.choice.clone(), forms: &self.forms, roots: &self.roots }
    }

    fn walk(&self) -> Option<(Vec<usize>, Cost)> {
        self.trial().walk()
    }

    fn dag_cost(&self) -> Option<Cost> {
        self.walk().map(|w| w.1)
    }

    /// Switches while the exact cost falls.
    fn improve(&mut self) {
        let (forms, roots) = (std::mem::take(&mut self.forms), std::mem::take(&mut self.roots));
        let mut trial = Trial { choice: self.choice.clone(), forms: &forms, roots: &roots };
        // Which (class, form) read a class.
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
            .map(|c| (self.terms[c], c))
            .collect();
        providers.sort_unstable();
        const SWEEPS: usize = 24;
        for _ in 0..SWEEPS {
            let start = self.cost;
            let Some((order, _)) = trial.walk() else { break };
            for class in order {
                self.try_forms(&mut trial, &forms, class);
            }
            for (_, provider) in &providers {
                self.try_provider(&mut trial, &readers, *provider);
            }
            if self.cost == start {
                break;
            }
        }
        self.choice = trial.choice;
        self.forms = forms;
        self.roots = roots;
    }

    fn try_forms(&mut self, trial: &mut Trial<'_>, forms: &[Vec<Form>], class: usize) {
        for i in 0..forms[class].len() {
            let before = trial.choice[class];
            if before == Some(i) {
                continue;
            }
            trial.choice[class] = Some(i);
            match trial.walk() {
                Some((_, cost)) if cost < self.cost => self.cost = cost,
                _ => trial.choice[class] = before,
            }
        }
    }

    /// Switches every needed class that can read `provider`, itself or as a view of a value that does, and keeps that if
    /// it is cheaper.
    fn try_provider(&mut self, trial: &mut Trial<'_>, readers: &[Vec<(usize, usize)>], provider: usize) {
        let Some((order, _)) = trial.walk() else { return };
        let mut needed = vec![false; trial.choice.len()];
        for c in order {
            needed[c] = true;
        }
        let mut before: Vec<(usize, Option<usize>)> = Vec::new();
        let mut last = None;
        for (class, form) in &readers[provider] {
            if *class == provider || last == Some(*class) {
                continue;
            }
            // A value that nothing needs may still be what a needed one is a view of.
            let views = |(outer, at): &&(usize, usize)| needed[*outer] && trial.forms[*outer][*at].view;
            let shown: Vec<(usize, usize)> = match needed[*class] {
                true => Vec::new(),
                false => readers[*class].iter().filter(views).copied().collect(),
            };
            if !needed[*class] && shown.is_empty() {
                continue;
            }
            last = Some(*class);
            for (class, form) in shown.into_iter().chain([(*class, *form)]) {
                if class != provider && trial.choice[class] != Some(form) {
                    before.push((class, trial.choice[class]));
                    trial.choice[class] = Some(form);
                }
            }
        }
        if before.is_empty() {
            return;
        }
        match trial.walk() {
            Some((_, cost)) if cost < self.cost => self.cost = cost,
            _ if self.try_operands(trial, provider) => {}
            _ => {
                for (class, choice) in before.into_iter().rev() {
                    trial.choice[class] = choice;
                }
            }
        }
    }

    /// A collective is dear enough to look one step further: with `provider` in use, switches one of its operands, and keeps both if
    /// that is cheaper. A sum of two all-reduced values may be joined with either, and the other then comes beside the norm before.
    fn try_operands(&mut self, trial: &mut Trial<'_>, provider: usize) -> bool {
        let Some(form) = trial.choice[provider].map(|i| &trial.forms[provider][i]) else { return false };
        if !matches!(&form.node, ENode::Op(kind, _) if kind.info().category == Category::Collective) {
            return false;
        }
        for child in &form.children {
            let before = trial.choice[*child];
            for i in 0..trial.forms[*child].len() {
                trial.choice[*child] = Some(i);
                if let Some((_, cost)) = trial.walk()
                    && cost < self.cost
                {
                    self.cost = cost;
                    return true;
                }
            }
            trial.choice[*child] = before;
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

/// A set of choices that can be priced.
struct Trial<'a> {
    choice: Vec<Option<usize>>,
    forms: &'a [Vec<Form>],
    roots: &'a [usize],
}

impl Trial<'_> {
    /// Classes needed, operands first, and their cost; `None` if the choices are cyclic.
    fn walk(&self) -> Option<(Vec<usize>, Cost)> {
        // 0 unseen, 1 open, 2 done.
        let mut state = vec![0u8; self.forms.len()];
        let (mut order, mut cost) = (Vec::new(), 0u64);
        let mut stack: Vec<(usize, usize)> = Vec::new();
        for root in self.roots {
            if state[*root] == 0 {
                state[*root] = 1;
                stack.push((*root, 0));
            }
            while let Some((class, next)) = stack.last_mut() {
                let form = &self.forms[*class][self.choice[*class]?];
                match form.children.get(*next) {
                    Some(child) => {
                        *next += 1;
                        match state[*child] {
                            0 => {
                                state[*child] = 1;
                                stack.push((*child, 0));
                            }
                            1 => return None,
                            _ => {}
                        }
                    }
                    None => {
                        state[*class] = 2;
                        order.push(*class);
                        cost = cost.saturating_add(form.cost);
                        stack.pop();
                    }
                }
            }
        }
        Some((order, cost))
    }
}

fn forms_of(net: &Net, id: Id, index: &BTreeMap<Id, usize>, log: &Log, prices: &Prices<'_>) -> Vec<Form> {
    let mut forms: Vec<Form> = Vec::new();
    for node in net[id].iter() {
        let node = node.clone().map_children(|c| net.find(c));
        let (operands, attrs) = node.split();
        let children: Option<Vec<usize>> = operands.iter().map(|o| index.get(o).copied()).collect();
        let Some(children) = children else { continue };
        let base = prices.base[usize::from(log.made.contains_key(&node))].max(1);
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
                    (base + step, hash_of((prices.salt, &op)))
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
fn greedy(forms: &[Vec<Form>]) -> Vec<Option<Best>> {
    let mut best: Vec<Option<Best>> = vec![None; forms.len()];
    // Costs only fall; the bound guards against ties that chase each other's hashes.
    const SWEEPS: usize = 200;
    for _ in 0..SWEEPS {
        let mut changed = false;
        for (class, list) in forms.iter().enumerate() {
            for (i, form) in list.iter().enumerate() {
                let Some(found) = candidate(&best, class, i, form) else { continue };
                let better = match &best[class] {
                    None => true,
                    Some(b) => (found.total, found.hash) < (b.total, b.hash),
                };
                if better {
                    best[class] = Some(found);
                    changed = true;
                }
            }
        }
        if !changed {
            break;
        }
    }
    best
}

fn candidate(best: &[Option<Best>], class: usize, i: usize, form: &Form) -> Option<Best> {
    let mut needs: Vec<(usize, Cost)> = Vec::new();
    let mut hash = form.hash;
    for child in &form.children {
        let b = best[*child].as_ref()?;
        hash = hash_of((hash, b.hash));
        needs = union(&needs, &b.needs);
    }
    let at = match needs.binary_search_by_key(&class, |n| n.0) {
        // The class would need itself.
        Ok(_) => return None,
        Err(at) => at,
    };
    needs.insert(at, (class, form.cost));
    let total = needs.iter().fold(0u64, |sum, n| sum.saturating_add(n.1));
    Some(Best { form: i, total, hash, needs })
}

fn union(a: &[(usize, Cost)], b: &[(usize, Cost)]) -> Vec<(usize, Cost)> {
    let mut out = Vec::with_capacity(a.len() + b.len());
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        match a[i].0.cmp(&b[j].0) {
            std::cmp::Ordering::Less => {
                out.push(a[i]);
                i += 1;
            }
            std::cmp::Ordering::Greater => {
                out.push(b[j]);
                j += 1;
            }
            std::cmp::Ordering::Equal => {
                out.push(a[i]);
                i += 1;
                j += 1;
            }
        }
    }
    out.extend_from_slice(&a[i..]);
    out.extend_from_slice(&b[j..]);
    out
}
