//! Plans of small graphs, executed.

mod machine;
mod mutants;
mod random;

use super::*;
use machine::{Pure, execute};
use std::collections::BTreeMap;
use weldment_ir::{DType, Dim, OutputKind, Real};

const SCRATCH: u64 = 100;

/// Kernels that refuse some views, to exercise copies, and ask for scratch.
struct Picky;

impl KernelNeeds for Picky {
    fn read(&self, op: &Op, _: usize, _: &TensorType, strides: &[u64]) -> Result<(), String> {
        let bad = matches!(op, Op::Neg { .. }) && strides.last().is_some_and(|s| *s != 1);
        if bad { Err("last stride is not 1".into()) } else { Ok(()) }
    }

    fn write(&self, op: &Op, _: usize, _: &TensorType, strides: &[u64]) -> Result<(), String> {
        let bad = matches!(op, Op::Exp { .. }) && strides.last().is_some_and(|s| *s != 1);
        if bad { Err("last stride is not 1".into()) } else { Ok(()) }
    }

    fn scratch(&self, graph: &Graph, node: NodeId) -> u64 {
        if graph.node(node).op.kind().info().category == Category::Contraction { SCRATCH } else { 0 }
    }
}

fn graph() -> Graph {
    let mut g = Graph::new("test");
    for (symbol, max) in [("T", 20), ("B", 4), ("P", 5), ("N", 3), ("R", 4)] {
        g.declare_symbol(symbol, 1, max);
    }
    g
}

fn shape(text: &str) -> Vec<Dim> {
    text.split_whitespace().map(|d| d.parse().map_or_else(|_| Dim::sym(d), Dim::Const)).collect()
}

fn input(g: &mut Graph, name: &str, dtype: DType, dims: &str) -> Value {
    g.push(name, Op::input(name, dtype, shape(dims)), &[]).unwrap()
}

fn state(g: &mut Graph, name: &str, dims: &str) -> Value {
    g.push(name, Op::State { name: name.into(), dtype: DType::F32, shape: shape(dims) }, &[]).unwrap()
}

/// The state that a value is a version of, by leaf and writes.
fn state_of(g: &Graph, v: Value) -> Option<Arc<str>> {
    match &g.node(v.node).op {
        Op::State { name, .. } => Some(name.clone()),
        op if op.kind().info().category == Category::StateWrite => state_of(g, g.node(v.node).operands[0]),
        _ => None,
    }
}

fn op(g: &mut Graph, op: Op, operands: &[Value]) -> Value {
    let name = op.kind().to_string();
    g.push(&name, op, operands).unwrap()
}

fn reshape(g: &mut Graph, v: Value, dims: &str) -> Value {
    op(g, Op::Reshape { shape: shape(dims) }, &[v])
}

/// Plans, simulates with T below its maximum, and gives the plan.
#[track_caller]
fn plan(g: &Graph) -> BufferPlan {
    let plan = bufferise(g, &AnyStrides).unwrap();
    let dims = [("T", 5), ("B", 2), ("P", 3), ("N", 3), ("R", 1)].map(|(name, n)| (name.to_owned(), n));
    let pure = Pure::new(g, BTreeMap::from(dims), 1);
    assert_eq!(execute(&pure, &plan, &AnyStrides, true), Ok(()));
    assert_eq!(plan, bufferise(g, &AnyStrides).unwrap());
    plan
}

#[test]
fn a_slot_that_splits_rows_is_filled_by_a_copy() {
    let mut g = graph();
    let x = input(&mut g, "x", DType::F32, "T 6");
    let a = op(&mut g, Op::Exp {}, &[x]);
    let a = reshape(&mut g, a, "T 2 3");
    let joined = op(&mut g, Op::Concat { axis: 2 }, &[a, a]);
    g.output("y", OutputKind::Result, joined);
    let plan = plan(&g);
    assert_eq!(plan.copies.len(), 2);
    assert_eq!(plan.copies[0].source, "concat");
    assert!(plan.copies[0].reason.contains("cannot be expressed by strides"), "{:?}", plan.copies);
}

#[test]
fn heads_are_views_and_the_producer_fills_the_slot() {
    let mut g = graph();
    let x = input(&mut g, "x", DType::F32, "T 6");
    let a = op(&mut g, Op::Exp {}, &[x]);
    let b = op(&mut g, Op::Neg {}, &[x]);
    let joined = op(&mut g, Op::Concat { axis: 1 }, &[a, b]);
    let head = op(&mut g, Op::Slice { axis: 1, start: 6, end: 12 }, &[joined]);
    let head = reshape(&mut g, head, "T 3 2");
    let turned = op(&mut g, Op::Transpose { permutation: vec![1, 0, 2] }, &[head]);
    let y = op(&mut g, Op::Tanh {}, &[turned]);
    let y = op(&mut g, Op::Transpose { permutation: vec![1, 0, 2] }, &[y]);
    g.output("y", OutputKind::Result, y);
    let plan = plan(&g);
    assert!(plan.copies.is_empty(), "{:?}", plan.copies);
    assert_eq!(plan.steps.len(), 3);
    assert_eq!(plan.epochs(), 2);
    assert_eq!(plan.place(turned).unwrap().strides, [2, 12, 1]);
    assert_eq!(plan.place(turned).unwrap().offset, 24);
    assert_eq!(plan.outputs[0].bytes, 32 * 6 * 4);
}

#[test]
fn a_value_wanted_twice_is_copied_once() {
    let mut g = graph();
    let x = input(&mut g, "x", DType::F32, "T 4");
    let a = op(&mut g, Op::Exp {}, &[x]);
    g.output("a", OutputKind::Result, a);
    g.output("b", OutputKind::Result, a);
    g.output("c", OutputKind::Result, x);
    let plan = plan(&g);
    assert_eq!(plan.copies.len(), 2);
    assert_eq!(plan.copies[1].bytes, 20 * 4 * 4);
    assert!(plan.copies.iter().any(|c| c.reason.contains("a step input")));
}

#[test]
fn inputs_have_the_row_stride_of_the_maximum() {
    let mut g = graph();
    let tables = input(&mut g, "block_tables", DType::I32, "B P");
    g.output("same", OutputKind::Result, tables);
    let plan = plan(&g);
    assert_eq!((plan.inputs[0].strides.as_slice(), plan.inputs[0].bytes), ([5, 1].as_slice(), 16 * 5 * 4));
}

#[test]
fn static_values_are_hoisted_and_broadcast_by_strides() {
    let mut g = graph();
    let x = input(&mut g, "x", DType::F32, "T 4");
    let one = op(&mut g, Op::Constant { value: Real(1.0), dtype: DType::F32 }, &[]);
    let w = op(&mut g, Op::Weight { name: "w".into(), dtype: DType::F32, shape: shape("4") }, &[]);
    let sum = op(&mut g, Op::Add {}, &[w, one]);
    let wide = op(&mut g, Op::Broadcast { shape: shape("T 4") }, &[sum]);
    let y = op(&mut g, Op::Mul {}, &[x, wide]);
    g.output("y", OutputKind::Result, y);
    let plan = plan(&g);
    assert_eq!(plan.hoisted, [sum]);
    assert_eq!(plan.steps.len(), 1);
    assert_eq!(plan.place(wide).unwrap().strides, [0, 1]);
}

/// Inputs that address a paged cache.
fn paged(g: &mut Graph) -> [Value; 3] {
    let positions = input(g, "positions", DType::I32, "T");
    let ids = input(g, "sequence_ids", DType::I32, "T");
    [positions, ids, input(g, "block_tables", DType::I32, "B P")]
}

#[test]
fn cache_writes_are_in_place_after_the_old_version_is_read() {
    let mut g = graph();
    let x = input(&mut g, "x", DType::F32, "T 2 4");
    let [p, s, b] = paged(&mut g);
    let cache = state(&mut g, "k", "N 2 16 4");
    let written = op(&mut g, Op::CacheWrite { transposed: false }, &[cache, x, p, s, b]);
    let before = op(&mut g, Op::Neg {}, &[cache]);
    g.output("before", OutputKind::Result, before);
    g.output("k", OutputKind::State, written);
    let plan = plan(&g);
    assert!(plan.copies.is_empty(), "{:?}", plan.copies);
    assert_eq!(plan.place(written), plan.place(cache));
    assert_eq!(plan.steps[0].kind, StepKind::Kernel(before.node));
    assert!(plan.steps[1].barrier);
}

/// A target that wants the last two dims of every state the other way round.
struct Turned(Vec<usize>);

impl KernelNeeds for Turned {
    fn state_order(&self, _: &Graph, _: &str) -> Option<Vec<usize>> {
        Some(self.0.clone())
    }
}

#[test]
fn a_state_lies_in_the_order_its_kernels_want() {
    let mut g = graph();
    let x = input(&mut g, "x", DType::F32, "T 2 4");
    let [p, s, b] = paged(&mut g);
    let cache = state(&mut g, "k", "N 2 16 4");
    let written = op(&mut g, Op::CacheWrite { transposed: false }, &[cache, x, p, s, b]);
    g.output("k", OutputKind::State, written);
    let plan = bufferise(&g, &Turned(vec![0, 1, 3, 2])).unwrap();
    assert_eq!(plan.states[0].strides, [128, 64, 1, 16]);
    assert_eq!(plan.place(written).unwrap().strides, [128, 64, 1, 16]);
    assert!(plan.copies.is_empty());
    for order in [vec![0, 1, 2], vec![0, 1, 1, 2], vec![1, 0, 2, 3]] {
        let e = bufferise(&g, &Turned(order.clone())).unwrap_err();
        assert_eq!(e, BufferError::StateOrder("k".into(), order));
    }
}

#[test]
fn a_late_reader_of_the_old_version_gets_a_snapshot() {
    let mut g = graph();
    let x = input(&mut g, "x", DType::F32, "T 2 4");
    let [p, s, b] = paged(&mut g);
    let cache = state(&mut g, "k", "N 2 16 4");
    let written = op(&mut g, Op::CacheWrite { transposed: false }, &[cache, x, p, s, b]);
    let both = op(&mut g, Op::Add {}, &[cache, written]);
    g.output("both", OutputKind::Result, both);
    g.output("k", OutputKind::State, written);
    let plan = plan(&g);
    assert_eq!(plan.copies.len(), 1);
    assert!(plan.copies[0].reason.contains("after a write"));
}

#[test]
fn a_second_writer_and_an_unnamed_final_version_are_copies() {
    let mut g = graph();
    let x = input(&mut g, "x", DType::F32, "T 2 4");
    let [p, s, b] = paged(&mut g);
    let cache = state(&mut g, "k", "N 2 16 4");
    let write = Op::CacheWrite { transposed: false };
    let one = op(&mut g, write.clone(), &[cache, x, p, s, b]);
    let y = op(&mut g, Op::Exp {}, &[x]);
    let two = op(&mut g, write, &[cache, y, p, s, b]);
    g.output("k", OutputKind::State, one);
    g.output("other", OutputKind::Result, two);
    let plan = plan(&g);
    assert_eq!(plan.copies.len(), 2, "{:?}", plan.copies);
}

#[test]
fn two_states_may_trade_places() {
    let mut g = graph();
    let (a, b) = (state(&mut g, "a", "N 2"), state(&mut g, "b", "N 2"));
    g.output("a", OutputKind::State, b);
    g.output("b", OutputKind::State, a);
    assert_eq!(plan(&g).copies.len(), 4);
}

#[test]
fn a_symbol_that_moves_needs_its_own_kernel() {
    let mut g = graph();
    let x = input(&mut g, "x", DType::F32, "6 T 4");
    let a = op(&mut g, Op::Exp {}, &[x]);
    let flat = reshape(&mut g, a, "T 24");
    let y = op(&mut g, Op::Neg {}, &[flat]);
    g.output("y", OutputKind::Result, y);
    let plan = plan(&g);
    assert_eq!(plan.copies.len(), 1);
    assert!(plan.steps.iter().any(|s| s.kind == StepKind::Kernel(flat.node)));
}

#[test]
fn two_chains_share_epochs_and_memory() {
    let mut g = graph();
    let x = input(&mut g, "x", DType::F32, "T 4");
    let chain = |g: &mut Graph| (0..8).fold(x, |v, _| op(g, Op::Exp {}, &[v]));
    let (a, b) = (chain(&mut g), chain(&mut g));
    let y = op(&mut g, Op::Add {}, &[a, b]);
    g.output("y", OutputKind::Result, y);
    let plan = plan(&g);
    assert_eq!((plan.steps.len(), plan.epochs()), (17, 9));
    assert_eq!(plan.arena_bytes, plan.arena_lower_bound);
    // Each link takes the bytes of the one before.
    assert_eq!(plan.arena_bytes, 2 * 32 * 4 * 4);
}

#[test]
fn a_residual_add_takes_the_bytes_of_the_residual() {
    let mut g = graph();
    let x = input(&mut g, "x", DType::F32, "T 32");
    let w = op(&mut g, Op::Weight { name: "w".into(), dtype: DType::F32, shape: shape("32 32") }, &[]);
    let mut residual = op(&mut g, Op::Tanh {}, &[x]);
    for _ in 0..3 {
        let branch = op(&mut g, Op::Matmul { dtype: DType::F32 }, &[residual, w]);
        let branch = op(&mut g, Op::Matmul { dtype: DType::F32 }, &[branch, w]);
        residual = op(&mut g, Op::Add {}, &[residual, branch]);
    }
    let y = op(&mut g, Op::Matmul { dtype: DType::F32 }, &[residual, w]);
    g.output("y", OutputKind::Result, y);
    let plan = plan(&g);
    let adds: Vec<&Step> = plan.steps.iter().filter(|s| s.reads.len() == 2 && s.writes[0] == s.reads[0]).collect();
    assert_eq!(adds.len(), 3, "{plan:#?}");
    // The residual and two branches; without sharing an add has three buffers of its own too, but the residual moves.
    assert_eq!(plan.arena_bytes, 3 * 32 * 32 * 4);
}

#[test]
fn an_operand_that_is_read_later_keeps_its_bytes() {
    let mut g = graph();
    let x = input(&mut g, "x", DType::F32, "T 32");
    let a = op(&mut g, Op::Tanh {}, &[x]);
    let b = op(&mut g, Op::Exp {}, &[a]);
    let c = op(&mut g, Op::Mul {}, &[b, a]);
    let d = op(&mut g, Op::Neg {}, &[c]);
    g.output("y", OutputKind::Result, d);
    let plan = plan(&g);
    assert_ne!(plan.place(b), plan.place(a));
    // The product may take either.
    assert!([plan.place(a), plan.place(b)].contains(&plan.place(c)));
    assert_eq!(plan.arena_bytes, plan.arena_lower_bound);
}

#[test]
fn wrong_graphs_are_refused() {
    let mut g = Graph::new("bad");
    let x = g.push("x", Op::input("x", DType::F32, shape("Q 4")), &[]).unwrap();
    g.output("y", OutputKind::Result, x);
    assert_eq!(bufferise(&g, &AnyStrides), Err(BufferError::UndeclaredSymbol("Q".into())));
    g.declare_symbol("Q", 1, u64::MAX / 2);
    assert!(matches!(bufferise(&g, &AnyStrides), Err(BufferError::TooLarge(_))));
    let mut g = graph();
    let x = input(&mut g, "x", DType::F32, "T");
    g.output("y", OutputKind::Result, x);
    g.output("y", OutputKind::Result, x);
    assert!(matches!(bufferise(&g, &AnyStrides), Err(BufferError::DuplicateOutput(_))));
}

/// Two sums over ranks that do not depend on each other.
#[test]
fn ranks_meet_in_one_collective_after_the_other() {
    let mut g = graph();
    let sums = ["a", "b", "c"].map(|name| {
        let x = input(&mut g, name, DType::F32, "T 4");
        op(&mut g, Op::AllReduce { world: 2 }, &[x])
    });
    for (i, sum) in sums.iter().enumerate() {
        g.output(&format!("y{i}"), OutputKind::Result, *sum);
    }
    let meets = |plan: &BufferPlan| -> Vec<NodeId> {
        let kernel = |s: &Step| if let StepKind::Kernel(id) = s.kind { Some(id) } else { None };
        plan.steps.iter().filter_map(kernel).filter(|id| g.node(*id).op.communicates()).collect()
    };
    let expected: Vec<NodeId> = sums.iter().map(|v| v.node).collect();
    for chaos in (0..20).map(Some).chain([None]) {
        let plan = bufferise_with(&g, &AnyStrides, chaos).unwrap();
        assert_eq!(meets(&plan), expected, "{chaos:?}");
    }
    let mut wrong = plan(&g);
    // In the epoch of the first, which touches other bytes.
    let second = wrong.steps.iter_mut().find(|s| s.kind == StepKind::Kernel(expected[1])).unwrap();
    assert!(second.barrier);
    second.barrier = false;
    let fault = check(&g, &wrong, &AnyStrides).unwrap_err().fault;
    assert_eq!(fault, Fault::Collectives { other: "all_reduce".into() });
}

/// Chains in which every result takes the bytes of the value before, some of which are read beside the chain: what takes a
/// step's time by its neighbours takes seconds for all.
#[test]
fn long_chains_are_placed_soon() {
    const LINKS: usize = 4000;
    for beside in [0, 7] {
        let mut g = graph();
        let x = input(&mut g, "x", DType::F32, "T 64");
        let y = input(&mut g, "y", DType::F32, "T 64");
        let mut at = op(&mut g, Op::Neg {}, &[x]);
        let mut other = at;
        for i in 1..LINKS {
            at = match i.checked_rem(beside) {
                Some(0) => op(&mut g, Op::Add {}, &[at, other]),
                _ if i % 2 == 0 => op(&mut g, Op::Neg {}, &[at]),
                _ => op(&mut g, Op::Add {}, &[at, y]),
            };
            if i.checked_rem(beside) == Some(3) {
                other = at;
            }
        }
        g.output("out", OutputKind::Result, at);
        let start = std::time::Instant::now();
        let plan = bufferise(&g, &AnyStrides).unwrap();
        assert!(start.elapsed().as_secs() < 100, "{:?}", start.elapsed());
        assert_eq!((plan.steps.len(), plan.copies.len()), (LINKS, 0));
        // One value, and the one read beside it.
        assert!(plan.arena_bytes <= 3 * 32 * 64 * 4, "{}", plan.arena_bytes);
    }
}
