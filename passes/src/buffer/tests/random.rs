//! Random graphs: chains of views, concats and slices of anything, several versions of states, outputs that share values, block
//! formats, ops of two results, and every op of the table. Their plans are executed and must give what the graphs mean.

use super::super::*;
use super::machine::{Pure, execute, extreme};
use super::{Picky, input, op, paged, shape, state};
use std::collections::BTreeMap;
use weldment_ir::generate::{Random, random_dims, random_graph};
use weldment_ir::{DType, Dim, OutputKind, Real};

/// Shapes that reshapes aim at; all of 32 elements a token.
const SHAPES: [&str; 7] = ["T 32", "T 2 16", "T 4 8", "T 4 2 4", "2 T 16", "T 1 32", "1 T 2 16"];

/// A graph of one of the two kinds.
pub fn any(seed: u64) -> Graph {
    let mut random = Random::new(seed);
    if random.one_in(3) {
        return random_graph(seed, 2 + random.below(14) as usize).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    let steps = 3 + random.below(25);
    views(&mut random, steps)
}

/// A graph of some hundred nodes.
fn large(seed: u64) -> Graph {
    let mut random = Random::new(seed);
    let steps = 50 + random.below(250);
    if random.one_in(2) {
        return random_graph(seed, steps as usize).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    views(&mut random, steps)
}

/// Views, concats, kernels and state writes in any order.
fn views(dice: &mut Random, steps: u64) -> Graph {
    let mut g = super::graph();
    let [p, s, b] = paged(&mut g);
    let weight = |dims: &str| Op::Weight { name: dims.into(), dtype: DType::F32, shape: shape(dims) };
    let norm = op(&mut g, weight("32"), &[]);
    let square = op(&mut g, weight("32 32"), &[]);
    let mut caches = vec![state(&mut g, "s0", "N 2 16 4"), state(&mut g, "s1", "N 2 16 4")];
    let again = op(&mut g, Op::State { name: "s0".into(), dtype: DType::F32, shape: shape("N 2 16 4") }, &[]);
    caches.extend(Some(again).filter(|_| dice.one_in(4)));
    let half = if dice.one_in(4) { DType::BF16 } else { DType::F32 };
    let mut pool: Vec<Value> = ["T 32", "T 2 16", "2 T 16", "T 4 8"]
        .iter()
        .enumerate()
        .map(|(i, dims)| input(&mut g, &format!("x{i}"), if i == 3 { half } else { DType::F32 }, dims))
        .collect();
    for _ in 0..steps {
        let v = *dice.pick(&pool).unwrap();
        let ty = g.type_of(v).clone();
        let same: Vec<Value> = pool.iter().copied().filter(|o| *g.type_of(*o) == ty).collect();
        let other = *dice.pick(&same).unwrap();
        let axis = dice.below(ty.rank() as u64) as usize;
        let size = ty.shape[axis].constant();
        let made = match dice.below(20) {
            0 | 1 => g.push("r", Op::Reshape { shape: shape(dice.pick(&SHAPES).unwrap()) }, &[v]),
            2 => {
                let mut permutation: Vec<i64> = (0..ty.rank() as i64).collect();
                permutation.rotate_left(axis);
                g.push("t", Op::Transpose { permutation }, &[v])
            }
            3 | 4 => {
                let end = size.unwrap_or(0);
                let start = if dice.one_in(2) { end / 2 } else { 0 };
                let end = if start == 0 && dice.one_in(2) { end / 2 } else { end };
                g.push("s", Op::Slice { axis: axis as i64, start: start as i64, end: end as i64 }, &[v])
            }
            5 | 6 => g.push("c", Op::Concat { axis: axis as i64 }, &[v, other]),
            7 => {
                let mut shape = ty.shape.clone();
                if shape[0] == Dim::Const(1) {
                    shape[0] = Dim::Const(3)
                } else {
                    shape.insert(0, Dim::Const(2))
                }
                g.push("b", Op::Broadcast { shape }, &[v])
            }
            8 => g.push("e", Op::Tanh {}, &[v]),
            9 => g.push("n", Op::Neg {}, &[v]),
            10 => g.push("e", Op::Exp {}, &[v]),
            11 | 12 => g.push("a", Op::Add {}, &[v, other]),
            13 => g.push("ar", Op::AddRmsNorm { eps: Real(1e-5), dtype: DType::F32 }, &[v, other, norm]),
            14 => g.push("m", Op::Matmul { dtype: DType::F32 }, &[v, square]),
            15 | 19 => {
                // The latest version more often than an earlier one.
                let latest = caches[caches.len() - 1];
                let cache = if dice.one_in(3) { *dice.pick(&caches).unwrap() } else { latest };
                let wide: Vec<Value> =
                    pool.iter().copied().filter(|v| g.type_of(*v).shape == shape("T 2 16")).collect();
                let v = *dice.pick(&wide).unwrap();
                let made = g.push("w", Op::CacheWrite { transposed: true }, &[cache, v, p, s, b]);
                caches.extend(made.as_ref().ok());
                continue;
            }
            16 => {
                let (k, c) = (*dice.pick(&caches).unwrap(), *dice.pick(&caches).unwrap());
                let sum = g.push("sum", Op::Add {}, &[k, c]);
                caches.extend(sum.as_ref().ok().filter(|_| dice.one_in(3)));
                let Ok(sum) = sum else { continue };
                g.output(&format!("sum{}", g.len()), OutputKind::Result, sum);
                continue;
            }
            17 => {
                let scalar = op(&mut g, Op::Constant { value: Real(0.5), dtype: ty.dtype }, &[]);
                g.push("k", Op::Mul {}, &[v, scalar])
            }
            _ => {
                let Ok(q) = g.push("q", Op::Cast { dtype: DType::Q8A }, &[v]) else { continue };
                let twice = g
                    .push("qc", Op::Concat { axis: 0 }, &[q, q])
                    .or_else(|_| g.push("qc", Op::Concat { axis: 1 }, &[q, q]));
                let Ok(twice) = twice else { continue };
                g.output(&format!("q{}", g.len()), OutputKind::Result, twice);
                continue;
            }
        };
        // A draw that the shape rules refuse is skipped.
        let Ok(made) = made else { continue };
        if g.type_of(made).rank() > 5 {
            continue;
        }
        pool.push(made);
        if g.node(made.node).types.len() > 1 {
            pool.push(Value { result: 1, ..made });
        }
    }
    for i in 0..1 + dice.below(4) {
        // Late values more often than early ones, and now and then the same twice.
        let late = pool.len() as u64 / 2;
        let at =
            if dice.one_in(3) { dice.below(pool.len() as u64) } else { late + dice.below(pool.len() as u64 - late) };
        g.output(&format!("y{i}"), OutputKind::Result, pool[at as usize]);
    }
    for name in ["s0", "s1"] {
        if !dice.one_in(4) {
            // Mostly a version of the state itself.
            let own = |v: &&Value| super::state_of(&g, **v).as_deref() == Some(name);
            let versions: Vec<Value> = caches.iter().filter(own).copied().collect();
            let from = if dice.one_in(5) { &caches } else { &versions };
            let v = *dice.pick(from).unwrap();
            g.output(name, OutputKind::State, v);
        }
    }
    g
}

/// What the plans of many graphs have in common.
#[derive(Debug, Default)]
struct Totals {
    graphs: u64,
    steps: usize,
    copies: usize,
    in_states: usize,
    shared: usize,
    /// Copies by reason, names left out.
    reasons: BTreeMap<String, usize>,
    /// Arena over its bound, in steps of 0.01 over 1: how many plans.
    over: BTreeMap<u64, u64>,
}

impl Totals {
    fn add(&mut self, plan: &BufferPlan) {
        self.steps += plan.steps.len();
        self.copies += plan.copies.len();
        for copy in &plan.copies {
            *self.reasons.entry(copy.reason.rsplit(": ").next().unwrap_or_default().to_owned()).or_default() += 1;
        }
        for step in &plan.steps {
            self.in_states += step.writes.iter().filter(|w| matches!(w.region, Region::State(_))).count();
            let shares = |w: &&View| w.region == Region::Arena && step.reads.contains(w);
            self.shared += step.writes.iter().filter(shares).count();
        }
        let over = (plan.arena_bytes - plan.arena_lower_bound) * 100;
        *self.over.entry(over.div_ceil(plan.arena_lower_bound.max(1))).or_default() += 1;
    }
}

/// `WELDMENT_RANDOM_GRAPHS` (3000 by default) graphs, each planned for kernels that take everything and for picky ones.
#[test]
fn random_plans_compute_what_the_graph_means() {
    let count = std::env::var("WELDMENT_RANDOM_GRAPHS").map_or(3000, |n| n.parse().expect("a number of graphs"));
    let first = std::env::var("WELDMENT_RANDOM_SEED").map_or(0, |n| n.parse().expect("a seed"));
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get() as u64).min(4);
    let totals: Vec<Totals> = std::thread::scope(|scope| {
        let part = |thread: u64| {
            scope.spawn(move || {
                let mut totals = Totals::default();
                for seed in (first..first + count).filter(|seed| seed % threads == thread) {
                    one(seed, &mut totals);
                }
                totals
            })
        };
        let running: Vec<_> = (0..threads).map(part).collect();
        running.into_iter().map(|t| t.join().expect("a thread's share")).collect()
    });
    let mut sum = Totals::default();
    for t in totals {
        sum.graphs += t.graphs;
        sum.steps += t.steps;
        sum.copies += t.copies;
        sum.in_states += t.in_states;
        sum.shared += t.shared;
        t.reasons.into_iter().for_each(|(reason, n)| *sum.reasons.entry(reason).or_default() += n);
        t.over.into_iter().for_each(|(over, n)| *sum.over.entry(over).or_default() += n);
    }
    println!("{sum:#?}");
    assert_eq!(sum.graphs, count);
    let enough = count as usize / 4;
    assert!(
        sum.steps > 4 * enough && sum.copies > enough && sum.in_states > enough && sum.shared > enough / 2,
        "{sum:?}"
    );
}

/// `WELDMENT_LARGE_GRAPHS` (60 by default) graphs of hundreds of nodes: planned, checked, and no arena over 1.1 times its bound.
#[test]
fn arenas_of_large_graphs_are_near_the_bound() {
    let count: u64 = std::env::var("WELDMENT_LARGE_GRAPHS").map_or(60, |n| n.parse().expect("a number of graphs"));
    let mut totals = Totals::default();
    for seed in 0..count {
        let g = large(seed);
        let plan = bufferise(&g, &AnyStrides).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(plan.arena_bytes * 10 <= plan.arena_lower_bound * 11, "seed {seed}: {} bytes", plan.arena_bytes);
        totals.add(&plan);
    }
    println!("percent over the bound: {:?}, {} steps", totals.over, totals.steps);
    assert!(totals.steps as u64 > 20 * count);
}

/// Schedules and places that a seed perturbs are others, of as many steps and epochs, and compute the same.
#[test]
fn chaos_gives_other_plans_that_compute_the_same() {
    let mut others = 0;
    for seed in 0..200 {
        let g = any(seed);
        let plan = bufferise(&g, &AnyStrides).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let chaotic = bufferise_with(&g, &AnyStrides, Some(seed)).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!((chaotic.steps.len(), chaotic.epochs()), (plan.steps.len(), plan.epochs()), "seed {seed}");
        let pure = Pure::new(&g, random_dims(&g, seed), seed);
        execute(&pure, &chaotic, &AnyStrides, true).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        others += u64::from(chaotic != plan);
    }
    assert!(others > 80, "{others} of 200 plans are others");
}

fn one(seed: u64, totals: &mut Totals) {
    let g = any(seed);
    let dims = match seed % 8 {
        0 => extreme(&g, true),
        1 => extreme(&g, false),
        _ => random_dims(&g, seed),
    };
    let pure = Pure::new(&g, dims, seed);
    let needs: &dyn KernelNeeds = if seed.is_multiple_of(2) { &AnyStrides } else { &Picky };
    let plan = bufferise(&g, needs).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{g}"));
    if let Err(e) = execute(&pure, &plan, needs, true) {
        panic!("seed {seed}: {e}\n{g}\n{plan:#?}");
    }
    assert!(plan.arena_bytes >= plan.arena_lower_bound, "seed {seed}");
    totals.graphs += 1;
    totals.add(&plan);
}
