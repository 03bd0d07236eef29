//! Roles of a graph whose author declared none, by what ops do with its inputs and states: text graphs of a model's step need not say what
//! they plainly show.

use crate::graph::{Graph, NodeId};
use crate::op::Op;
use crate::types::Dim;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weldment_artifact::role::{RoleInput, check_roles};
use weldment_artifact::{InputRole, SymbolRole};

/// The graph with the roles that its ops give its inputs and symbols; as it is if any is declared. Where what they give does not fit
/// together, only the first dims of states get theirs: pools.
pub fn inferred(graph: Graph) -> Graph {
    let declared = graph.symbols().keys().any(|name| !graph.role(name).is_plain())
        || graph.ids().any(|id| matches!(&graph.node(id).op, Op::Input { role, .. } if !role.is_plain()));
    if declared {
        return graph;
    }
    let found = Found::of(&graph);
    match found.fits(&graph) {
        true => found.applied(&graph),
        false => Found { symbols: found.pools(), ..Found::default() }.applied(&graph),
    }
}

#[derive(Default)]
struct Found {
    symbols: BTreeMap<Arc<str>, SymbolRole>,
    inputs: BTreeMap<NodeId, InputRole>,
    /// Something would have two roles.
    torn: bool,
}

impl Found {
    fn of(graph: &Graph) -> Found {
        let mut found = Found::default();
        for id in graph.ids() {
            if let Op::State { shape, .. } = &graph.node(id).op
                && let Some(Dim::Sym(pool)) = shape.first()
            {
                found.symbols.entry(Arc::clone(pool)).or_insert(SymbolRole::Pool(1));
            }
        }
        // Without paged states nothing says that a graph is a step of sequences.
        let steps = graph.ids().any(|id| graph.node(id).op.paged().is_some());
        for id in graph.ids() {
            found.paged(graph, id);
            let (node, names) = (graph.node(id), graph.node(id).op.kind().info().operands);
            let positions = names.iter().zip(&node.operands).find(|(name, _)| **name == "positions");
            if let (Some((_, positions)), true) = (positions, steps) {
                found.input(graph, positions.node, InputRole::Positions, &[SymbolRole::Tokens]);
            }
        }
        for id in graph.ids() {
            let node = graph.node(id);
            let (Op::Gather { .. } | Op::GatherPart { .. }, [table, index]) = (&node.op, &node.operands[..]) else {
                continue;
            };
            if found.inputs.contains_key(&index.node) {
                continue;
            }
            let rows = graph.type_of(*table).shape.first().and_then(Dim::symbol);
            let own = graph.type_of(*index).shape.first().and_then(Dim::symbol);
            let tokens = |name: Option<&str>| name.is_some_and(|n| found.symbols.get(n) == Some(&SymbolRole::Tokens));
            if rows.is_none() && tokens(own) {
                found.input(graph, index.node, InputRole::Tokens, &[SymbolRole::Tokens]);
            } else if tokens(rows) && own.is_some() && own != rows {
                found.input(graph, index.node, InputRole::LogitRows, &[SymbolRole::LogitRows]);
            }
        }
        found.context(graph);
        found
    }

    fn paged(&mut self, graph: &Graph, id: NodeId) {
        let node = graph.node(id);
        let Some(paged) = node.op.paged() else { return };
        let cache = &graph.type_of(node.operands[paged.caches[0]]).shape;
        let Some(Dim::Sym(pool)) = cache.first() else { return };
        let slots = cache.get(paged.slots).and_then(Dim::constant).and_then(|n| u32::try_from(n).ok());
        let size = SymbolRole::Pool(slots.unwrap_or(1));
        let before = self.symbols.insert(Arc::clone(pool), size.clone());
        self.torn |= before.is_some_and(|before| before != SymbolRole::Pool(1) && before != size);
        self.input(graph, node.operands[paged.positions].node, InputRole::Positions, &[SymbolRole::Tokens]);
        self.input(graph, node.operands[paged.sequence_ids].node, InputRole::Sequences, &[SymbolRole::Tokens]);
        let tables = [SymbolRole::Sequences, SymbolRole::Blocks(pool.to_string())];
        self.input(graph, node.operands[paged.block_tables].node, InputRole::Blocks, &tables);
        if let Op::IndexScores { columns, .. } = &node.op
            && let Some(Dim::Sym(columns)) = columns.first()
        {
            self.symbols.insert(Arc::clone(columns), SymbolRole::Context);
        }
    }

    /// Notes an input's role and its symbols'.
    fn input(&mut self, graph: &Graph, id: NodeId, role: InputRole, symbols: &[SymbolRole]) {
        let Op::Input { shape, .. } = &graph.node(id).op else { return };
        self.torn |= self.inputs.insert(id, role).is_some_and(|before| before != role);
        for (dim, role) in shape.iter().zip(symbols) {
            if let Dim::Sym(name) = dim {
                self.torn |= self.symbols.insert(Arc::clone(name), role.clone()).is_some_and(|before| before != *role);
            }
        }
    }

    /// A symbol that no tensor has says how long contexts are: there is nothing else to say.
    fn context(&mut self, graph: &Graph) {
        let types = graph.ids().flat_map(|id| graph.node(id).types.iter());
        let used: BTreeSet<&str> = types.flat_map(|t| t.shape.iter().filter_map(Dim::symbol)).collect();
        let mut unused = graph.symbols().keys().filter(|name| !used.contains(&***name));
        let known = self.symbols.values().any(|role| *role == SymbolRole::Context);
        let paged = self.inputs.values().any(|role| *role == InputRole::Blocks);
        if let (Some(name), None, false, true) = (unused.next(), unused.next(), known, paged) {
            self.symbols.insert(Arc::clone(name), SymbolRole::Context);
        }
    }

    fn pools(&self) -> BTreeMap<Arc<str>, SymbolRole> {
        let pools = self.symbols.iter().filter(|(_, role)| role.is_like(&SymbolRole::POOL));
        pools.map(|(name, role)| (Arc::clone(name), role.clone())).collect()
    }

    fn fits(&self, graph: &Graph) -> bool {
        let plain = SymbolRole::Plain;
        let symbols = graph.symbols().keys().map(|name| (&**name, self.symbols.get(name).unwrap_or(&plain)));
        let inputs = graph.ids().filter_map(|id| match &graph.node(id).op {
            Op::Input { name, dtype, shape, .. } => {
                let role = self.inputs.get(&id).copied().unwrap_or_default();
                Some(RoleInput { name, role, dtype: *dtype, shape: shape.iter().map(Dim::symbol).collect() })
            }
            _ => None,
        });
        !self.torn && check_roles(&symbols.collect::<Vec<_>>(), &inputs.collect::<Vec<_>>()).is_ok()
    }

    fn applied(&self, graph: &Graph) -> Graph {
        let mut out = graph.clone();
        for (name, role) in &self.symbols {
            if let Some(range) = graph.symbols().get(name) {
                out.declare(name, range.min, range.max, role.clone());
            }
        }
        for (id, role) in &self.inputs {
            out.give_input_role(*id, *role);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse;
    use crate::verify::verify;

    const STEP: &str = r#"graph @step (T: 1..8, B: 1..2, P: 1..4, R: 1..8, N: 1..8, C: 1..64) {
  %ids = input {name: "a", dtype: i32, shape: [T]}
  %at = input {name: "b", dtype: i32, shape: [T]}
  %of = input {name: "c", dtype: i32, shape: [T]}
  %tables = input {name: "d", dtype: i32, shape: [B, P]}
  %rows = input {name: "e", dtype: i32, shape: [R]}
  %w = weight {name: "w", dtype: f32, shape: [50, 16]}
  %h = gather(%w, %ids) {dtype: f32}
  %heads = reshape(%h) {shape: [T, 1, 16]}
  %before = state {name: "k", dtype: f32, shape: [N, 1, 32, 16]}
  %after = cache_write(%before, %heads, %at, %of, %tables) {transposed: false}
  %picked = gather(%h, %rows) {dtype: f32}
  output result "y" = %picked
  output state "k" = %after
}"#;

    #[test]
    fn a_step_shows_its_roles() {
        let graph = inferred(parse(STEP).expect("a graph"));
        verify(&graph).expect("roles that fit");
        let roles: Vec<String> = graph.symbols().keys().map(|name| graph.role(name).to_string()).collect();
        assert_eq!(roles, ["tokens", "sequences", "blocks(N)", "logit_rows", "pool(32)", "context"]);
        let inputs = graph.ids().filter_map(|id| match &graph.node(id).op {
            Op::Input { role, .. } => Some(role.word()),
            _ => None,
        });
        assert_eq!(inputs.collect::<Vec<_>>(), ["tokens", "positions", "sequences", "blocks", "logit_rows"]);
        // What is declared counts, all of it.
        let declared = STEP.replace("T: 1..8,", "T: 1..8 tokens,");
        let graph = inferred(parse(&declared).expect("a graph"));
        assert!(graph.role("N").is_plain() && *graph.role("T") == SymbolRole::Tokens);
        // An input that would be positions and sequences: only the pool is certain.
        let twice = STEP.replace("%at, %of, %tables", "%at, %at, %tables");
        let graph = inferred(parse(&twice).expect("a graph"));
        assert!(verify(&graph).is_ok() && *graph.role("N") == SymbolRole::Pool(32) && graph.role("T").is_plain());
    }
}
