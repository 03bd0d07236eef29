//! The graph verifier: what every graph satisfies between passes.

use crate::attr::Attr;
use crate::error::IrError;
use crate::graph::{Graph, NodeId, OutputKind, Value};
use crate::op::{Category, Op, OpKind};
use crate::text::is_word;
use crate::types::{Dim, MAX_RANK, TensorType};
use std::collections::{BTreeMap, BTreeSet};
use weldment_artifact::SymbolRole;
use weldment_artifact::role::{RoleInput, check_roles};

/// Checks a graph.
///
/// # Errors
/// The first of [`verify_all`]'s.
pub fn verify(graph: &Graph) -> Result<(), IrError> {
    verify_all(graph).into_iter().next().map_or(Ok(()), Err)
}

/// Everything that is wrong with a graph, in node order; each error names the node's source path, what was found and what
/// is accepted. Checked:
/// * symbols are words with min <= max, and every symbol used is declared;
/// * types are those the op table infers, of rank <= [`MAX_RANK`], and fit in 63 bits at the symbols' maximum;
/// * reals are finite;
/// * inputs, weights and states have distinct names; a weight may be read by several nodes of one type; weights are constant in shape;
/// * a state write's operand 0 is a state or an earlier write of it, and each version is written at most once;
/// * roles of symbols and inputs fit together ([`check_roles`]), and blocks of a pool are as large as the caches in it say;
/// * all ops that name a number of ranks name one number;
/// * outputs exist and have distinct names; an output of kind State names a state, is a version of it, and is the last one:
///   no write is lost.
pub fn verify_all(graph: &Graph) -> Vec<IrError> {
    let mut check = Check { graph, errors: Vec::new(), versions: BTreeMap::new() };
    check.symbols();
    for id in graph.ids() {
        check.node(id);
    }
    check.leaf_names();
    check.roles();
    check.worlds();
    check.outputs();
    check.errors
}

struct Check<'a> {
    graph: &'a Graph,
    errors: Vec<IrError>,
    /// For each version of a state: the state's node, and the write that replaces the version.
    versions: BTreeMap<NodeId, (NodeId, Option<NodeId>)>,
}

impl Check<'_> {
    fn fail(&mut self, path: String, message: String) {
        self.errors.push(IrError::InvalidGraph { path, message });
    }

    fn path(&self, id: NodeId) -> String {
        self.graph.node(id).sources.first().map_or_else(|| format!("%{}", id.index()), |s| s.to_string())
    }

    fn fail_node(&mut self, id: NodeId, message: String) {
        let message = format!("{}: {message}", self.graph.node(id).op.kind());
        self.fail(self.path(id), message);
    }

    fn symbols(&mut self) {
        for (name, range) in self.graph.symbols() {
            if !is_word(name) {
                self.fail(self.graph.name.clone(), format!("symbol {name:?}; a word is expected"));
            }
            if range.min > range.max {
                let message =
                    format!("symbol {name} has the range {}..{}; min <= max is expected", range.min, range.max);
                self.fail(self.graph.name.clone(), message);
            }
        }
    }

    fn roles(&mut self) {
        let graph = self.graph;
        let symbols: Vec<_> = graph.symbols().keys().map(|name| (&**name, graph.role(name))).collect();
        let inputs = graph.ids().filter_map(|id| match &graph.node(id).op {
            Op::Input { name, dtype, shape, role } => {
                let shape = shape.iter().map(Dim::symbol).collect();
                Some(RoleInput { name, role: *role, dtype: *dtype, shape })
            }
            _ => None,
        });
        if let Err((name, message)) = check_roles(&symbols, &inputs.collect::<Vec<_>>()) {
            self.fail(name.to_owned(), message);
        }
    }

    fn node(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        // `Graph::add` holds this too; a graph built another way must not make the next line panic.
        let known = |v: &Value| v.node < id && (v.result as usize) < self.graph.node(v.node).types.len();
        if let Some(v) = node.operands.iter().find(|v| !known(v)) {
            let message = format!("operand %{}.{} is not an earlier result", v.node.index(), v.result);
            return self.fail_node(id, message);
        }
        let operands: Vec<TensorType> = node.operands.iter().map(|v| self.graph.type_of(*v).clone()).collect();
        match node.op.infer(&operands) {
            Err(e) => self.fail(self.path(id), e.to_string()),
            Ok(types) if types != node.types => {
                let list = |t: &[TensorType]| t.iter().map(TensorType::to_string).collect::<Vec<_>>().join(", ");
                self.fail_node(id, format!("has type {}; {} is inferred", list(&node.types), list(&types)));
            }
            Ok(_) => {}
        }
        for t in &node.types {
            self.result_type(id, t);
        }
        for (attr, (name, _)) in node.op.attrs().iter().zip(node.op.kind().info().attrs) {
            match attr {
                Attr::Real(r) if !r.0.is_finite() => {
                    self.fail_node(id, format!("attribute {name} is {r}; a finite number is expected"));
                }
                Attr::Shape(shape) => self.declared(id, shape),
                _ => {}
            }
        }
        self.block_size(id);
        self.state_chain(id);
    }

    /// Blocks of a pool have as many positions as the caches in it have room for.
    fn block_size(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        let Some(paged) = node.op.paged() else { return };
        let Some(cache) = node.operands.get(paged.caches[0]).map(|v| self.graph.type_of(*v)) else { return };
        let pool = cache.shape.first().and_then(Dim::symbol).map(|name| (name, self.graph.role(name)));
        let slots = cache.shape.get(paged.slots).and_then(Dim::constant);
        if let (Some((name, SymbolRole::Pool(positions))), Some(slots)) = (pool, slots)
            && u64::from(*positions) != slots
        {
            let message = format!("{cache} has {slots} positions a block; pool {name} declares {positions}");
            self.fail_node(id, message);
        }
    }

    fn declared(&mut self, id: NodeId, shape: &[Dim]) {
        for dim in shape {
            if let Dim::Sym(name) = dim
                && !self.graph.symbols().contains_key(name)
            {
                let names: Vec<&str> = self.graph.symbols().keys().map(|s| &**s).collect();
                self.fail_node(id, format!("symbol {name} is not declared; [{}] are", names.join(", ")));
            }
        }
    }

    fn result_type(&mut self, id: NodeId, t: &TensorType) {
        if t.rank() > MAX_RANK {
            return self.fail_node(id, format!("{t} has rank {}; at most {MAX_RANK} is accepted", t.rank()));
        }
        self.declared(id, &t.shape);
        let largest = |dim: &Dim| match dim {
            Dim::Const(n) => *n,
            Dim::Sym(s) => self.graph.symbols().get(s).map_or(1, |range| range.max),
        };
        let shape: Vec<u64> = t.shape.iter().map(largest).collect();
        if let Err(e) = t.dtype.byte_size(&shape) {
            self.fail_node(id, format!("{t} at its largest: {e}"));
        }
    }

    fn state_chain(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        if matches!(node.op, Op::State { .. }) {
            self.versions.insert(id, (id, None));
        }
        if node.op.kind().info().category != Category::StateWrite {
            return;
        }
        let Some(target) = node.operands.first() else { return };
        match self.versions.get_mut(&target.node) {
            None => {
                let found = self.graph.node(target.node).op.kind();
                self.fail_node(id, format!("writes to the result of {found}; a state or a write of one is expected"));
            }
            Some((_, Some(writer))) => {
                let writer = *writer;
                let message = format!(
                    "writes a version that {} replaced; each version of a state has one writer",
                    self.path(writer)
                );
                self.fail_node(id, message);
            }
            Some((state, writer)) => {
                let state = *state;
                *writer = Some(id);
                self.versions.insert(id, (state, None));
            }
        }
    }

    fn leaf_names(&mut self) {
        let mut seen: BTreeMap<&str, (OpKind, NodeId)> = BTreeMap::new();
        for id in self.graph.ids() {
            let node = self.graph.node(id);
            let kind = node.op.kind();
            let (Op::Input { name, shape, .. } | Op::Weight { name, shape, .. } | Op::State { name, shape, .. }) =
                &node.op
            else {
                continue;
            };
            if name.is_empty() {
                self.fail_node(id, "has an empty name".to_owned());
            }
            if kind == OpKind::Weight && shape.iter().any(|d| d.constant().is_none()) {
                let message = format!("`{name}` is {}; constant dims are expected of a weight", node.types[0]);
                self.fail_node(id, message);
            }
            let Some((first_kind, first)) = seen.get(&**name).copied() else {
                seen.insert(name, (kind, id));
                continue;
            };
            if kind != first_kind || kind != OpKind::Weight {
                self.fail_node(id, format!("the name `{name}` is taken by an earlier {first_kind}"));
            } else if node.types != self.graph.node(first).types {
                let message = format!(
                    "`{name}` is {} here and {} before; one type is expected",
                    node.types[0],
                    self.graph.node(first).types[0]
                );
                self.fail_node(id, message);
            }
        }
    }

    fn worlds(&mut self) {
        let graph = self.graph;
        let Some((first, world)) = graph.named_world() else { return };
        let other = |id: &NodeId| graph.node(*id).op.world().is_some_and(|w| w != i64::from(world));
        for id in graph.ids().filter(other) {
            let found = graph.node(id).op.world().unwrap_or(1);
            self.fail_node(id, format!("is for {found} ranks; {world} are expected, as of {}", self.path(first)));
        }
    }

    fn outputs(&mut self) {
        let graph = self.graph;
        if graph.outputs().is_empty() {
            self.fail(graph.name.clone(), "no outputs; at least one is expected".to_owned());
        }
        let mut names = BTreeSet::new();
        let mut final_versions = BTreeSet::new();
        for output in graph.outputs() {
            let path = format!("output \"{}\"", output.name);
            if !names.insert(output.name.clone()) {
                self.fail(path.clone(), "the name is used twice; distinct names are expected".to_owned());
            }
            if output.value.node.index() >= graph.len()
                || output.value.result as usize >= graph.node(output.value.node).types.len()
            {
                self.fail(path, format!("value {:?} does not exist", output.value));
                continue;
            }
            if output.kind != OutputKind::State {
                continue;
            }
            final_versions.insert(output.value.node);
            let version = self.versions.get(&output.value.node).copied();
            let state = version.map(|(state, _)| (state, &graph.node(state).op));
            match (state, version) {
                (Some((_, Op::State { name, .. })), _) if *name != output.name => {
                    self.fail(path, format!("is a version of state `{name}`; one of `{}` is expected", output.name));
                }
                (Some(_), Some((_, Some(writer)))) => {
                    let message = format!("is replaced by {}; the last version is expected", self.path(writer));
                    self.fail(path, message);
                }
                (Some(_), _) => {}
                (None, _) => {
                    let found = graph.node(output.value.node).op.kind();
                    let message = format!("is the result of {found}; a state or a write of one is expected");
                    self.fail(path, message);
                }
            }
        }
        let last: Vec<NodeId> = self
            .versions
            .iter()
            .filter(|(id, (state, writer))| writer.is_none() && *id != state)
            .map(|(id, _)| *id)
            .collect();
        for id in last.into_iter().filter(|id| !final_versions.contains(id)) {
            self.fail_node(id, "is the last write of its state, but no output of kind state names it".to_owned());
        }
    }
}
