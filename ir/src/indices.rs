//! Which inputs are indices, and what they may be: a caller's numbers must not lead a kernel out of its tensors.

use crate::graph::{Graph, NodeId};
use crate::op::{Category, Op};
use crate::types::Dim;
use std::collections::BTreeSet;

/// Values from `least` to less than `below * times`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bound {
    /// Smallest value.
    pub least: i64,
    /// A dim of the step.
    pub below: Dim,
    /// Its multiplier.
    pub times: u64,
}

/// What the ops that read `input` as indices accept, all of it; none where it is read as mere numbers. `None` if indices are computed
/// from it, so that nothing can be said of its own values.
pub fn bounds(graph: &Graph, input: NodeId) -> Option<Vec<Bound>> {
    let mut found = BTreeSet::new();
    // Nodes whose values come from the input, and whether they are it, renamed at most. Floats count: a cast makes integers of them.
    let mut open = vec![(input, true)];
    let mut seen = BTreeSet::from([(input, true)]);
    while let Some((id, itself)) = open.pop() {
        for (user, using) in graph.users(id) {
            let node = graph.node(user);
            match uses(graph, user, using.operand as usize) {
                Some(_) if !itself => return None,
                Some(bounds) => found.extend(bounds),
                // What these give are columns of what they were given, whatever that was.
                None if matches!(node.op, Op::Topk { .. } | Op::Window { .. }) => {}
                None => {
                    let next = (user, itself && node.op.kind().info().category == Category::View);
                    if seen.insert(next) {
                        open.push(next);
                    }
                }
            }
        }
    }
    Some(found.into_iter().collect())
}

/// The bounds of operand `operand` of a node; `None` if it is no index.
fn uses(graph: &Graph, id: NodeId, operand: usize) -> Option<Vec<Bound>> {
    let node = graph.node(id);
    let dim = |operand: usize, axis: usize| -> Dim {
        let shape = node.operands.get(operand).map(|v| &graph.type_of(*v).shape);
        shape.and_then(|shape| shape.get(axis)).cloned().unwrap_or(Dim::Const(0))
    };
    let below = |below: Dim| Bound { least: 0, below, times: 1 };
    if let Some(paged) = node.op.paged() {
        return match operand {
            at if at == paged.positions => {
                let slots = dim(paged.caches[0], paged.slots).constant().unwrap_or(1);
                let mut all = vec![Bound { times: slots, ..below(dim(paged.block_tables, 1)) }];
                all.extend(node.op.kind().points_into(at).map(|(of, axis)| below(dim(of, axis))));
                Some(all)
            }
            at if at == paged.sequence_ids => Some(vec![below(dim(paged.block_tables, 0))]),
            at if at == paged.block_tables => Some(vec![Bound { least: -1, ..below(dim(paged.caches[0], 0)) }]),
            _ => None,
        };
    }
    let (of, axis) = node.op.kind().points_into(operand)?;
    // A table of which each rank holds a part is as long as all parts.
    let times = node.op.world().map_or(1, i64::unsigned_abs);
    Some(vec![Bound { times, ..below(dim(of, axis)) }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse;

    fn of(text: &str) -> Option<Vec<Bound>> {
        let graph = parse(text).expect("a graph");
        bounds(&graph, NodeId::new(0))
    }

    #[test]
    fn indices_are_bounded_by_what_they_pick_from() {
        let gather = "graph @g (T: 1..8, M: 1..4) { %i = input {name: \"i\", dtype: i32, shape: [T]}
            %w = weight {name: \"w\", dtype: f32, shape: [50, 8]} %x = input {name: \"x\", dtype: f32, shape: [M, 8]}";
        let tail = "output result \"y\" = %y }";
        let bound = |below| Bound { least: 0, below, times: 1 };
        let direct = of(&format!("{gather} %y = gather(%w, %i) {{dtype: f32}} {tail}"));
        assert_eq!(direct, Some(vec![bound(Dim::Const(50))]));
        let symbolic = of(&format!("{gather} %y = gather(%x, %i) {{dtype: f32}} {tail}"));
        assert_eq!(symbolic, Some(vec![bound(Dim::sym("M"))]));
        let computed = format!("{gather} %j = add(%i, %i) %y = gather(%w, %j) {{dtype: f32}} {tail}");
        assert_eq!(of(&computed), None);
        let partly = format!(
            "{gather} %j = add(%i, %i) %k = concat(%i, %j) {{axis: 0}} %y = gather(%w, %k) {{dtype: f32}} {tail}"
        );
        assert_eq!(of(&partly.replace("shape: [T]", "shape: [4]")), None);
        let cast = format!(
            "{gather} %f = cast(%i) {{dtype: f32}} %g = mul(%f, %f) %j = cast(%g) {{dtype: i32}} %y = gather(%w, %j) {{dtype: f32}} {tail}"
        );
        assert_eq!(of(&cast), None);
        assert_eq!(of(&format!("{gather} %y = add(%i, %i) {tail}")), Some(Vec::new()));
    }
}
