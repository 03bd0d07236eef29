//! Which values of the graph before a value of the optimised graph equals: read off the classes of the e-graphs.

use crate::egraph::{ENode, Net};
use crate::solve::Source;
use crate::units::{Carried, Instance, Operand, Unit};
use egg::{Id, Language};
use std::collections::{BTreeMap, BTreeSet};
use weldment_ir::{Attr, OpKind, Value};

/// For each value of the optimised graph: the values before that it equals, plain or once they are cast.
pub type Correspondence = BTreeMap<Value, BTreeSet<(Value, Carried)>>;

/// An equality within a unit.
#[derive(Clone, Debug)]
pub(crate) struct Equal {
    /// A value of the recipe.
    pub source: Source,
    /// A value of the unit.
    pub before: Operand,
    /// The form in which it equals the recipe's.
    pub form: Carried,
}

/// The equalities of the classes that the recipe computes or is given. `classes`: those of each node's results; `source`:
/// where the recipe has a class.
pub(crate) fn equalities(
    unit: &Unit,
    net: &Net,
    classes: &[Vec<Id>],
    computed: &[Id],
    source: &dyn Fn(Id) -> Option<Source>,
) -> Vec<Equal> {
    let mut known: BTreeMap<Id, Vec<Operand>> = BTreeMap::new();
    for slot in 0..unit.slots.len() as u32 {
        if let Some(id) = net.lookup(ENode::Leaf(slot)) {
            known.entry(net.find(id)).or_default().push(Operand::Slot(slot));
        }
    }
    for (node, results) in classes.iter().enumerate() {
        for (result, id) in results.iter().enumerate() {
            known.entry(net.find(*id)).or_default().push(Operand::Local(node as u32, result as u32));
        }
    }
    let mut out = Vec::new();
    for class in computed {
        let Some(source) = source(*class) else { continue };
        let mut add = |class: Id, form| {
            let equal = |before: &Operand| Equal { source, before: *before, form };
            out.extend(known.get(&net.find(class)).into_iter().flatten().map(equal));
        };
        add(*class, Carried::Plain);
        for node in net[*class].iter().filter(|n| matches!(n, ENode::Op(OpKind::Cast, _))) {
            let [x, dtype] = node.children() else { continue };
            if let Some(Attr::DType(dtype)) = net[*dtype].data.attr() {
                add(*x, Carried::Cast(*dtype));
            }
        }
    }
    out
}

impl Equal {
    /// The value before, for a unit in its place.
    pub fn before(&self, instance: &Instance) -> Option<Value> {
        match self.before {
            Operand::Slot(i) => instance.slots.get(i as usize).copied(),
            Operand::Local(i, result) => instance.nodes.get(i as usize).map(|node| Value { node: *node, result }),
        }
    }
}
