//! The gate of a rule: random instances of its left side ([`super::draw`]), its right side as the engine would make it,
//! and both sides computed on values of their class: bits of f32 arithmetic with every special number for `Bitwise`, the
//! ring for `Reassoc`, the ring with casts as identity for `Rounding` and `Approx`.

use super::bounds;
use super::customs;
use super::draw::{Instance, MAX_SYMBOL, draw};
use super::numbers::{Algebra, Single};
use super::support::Random;
use crate::egraph::Term;
use crate::rules::{Answer, Body, Numerics, Rule, all};
use crate::target::ReferenceTarget;
use egg::Id;
use std::collections::BTreeMap;
use weldment_ir::graph::OutputKind;
use weldment_ir::interpret::{Binding, Bindings, Domain, F64, Options, Outputs, interpret_ranks};
use weldment_ir::{DType, Dim, Graph, IrError, Op, generate};

/// What one instance says of a rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No instance came out of the draw, or a zero divisor.
    Redraw,
    /// A condition, a derivation or the op table refused.
    Refused,
    /// Both sides are equal on this many elements.
    Equal(u64),
    /// They are not.
    Wrong(String),
}

/// What a rule says should be equal, on one instance.
pub(super) type Equal = Vec<(Id, Term)>;

/// Draws an instance of a rule's left side.
fn instance(rule: &Rule, random: &mut Random) -> Option<Instance> {
    match &rule.body {
        Body::Rewrite { sources, .. } => draw(sources, random),
        Body::Custom { .. } => customs::draw(rule.name, random),
    }
}

/// What the rule proposes there, before the op table is asked; several proposals of a custom rule in turn.
fn proposals(rule: &Rule, instance: &mut Instance) -> Vec<Equal> {
    match &rule.body {
        Body::Rewrite { conditions, .. } => {
            let holds = |c: &crate::rules::Condition| c.holds(&instance.net, &instance.subst) == Answer::Proven;
            if conditions.iter().all(holds) { rewritten(rule, instance).into_iter().collect() } else { Vec::new() }
        }
        Body::Custom { find, .. } => {
            instance.net.rebuild();
            find(&instance.net, &Default::default()).proposals.into_iter().map(|p| p.equal).collect()
        }
    }
}

/// The right side of a pattern rule, whatever its conditions say.
pub(super) fn rewritten(rule: &Rule, instance: &mut Instance) -> Option<Equal> {
    let Body::Rewrite { right, derived, .. } = &rule.body else { return None };
    let bound = derived.iter().all(|d| d.bind(&mut instance.net, &mut instance.subst));
    if !bound {
        return None;
    }
    let class = |v: &Option<egg::Var>| v.map_or(Some(instance.root), |v| instance.subst.get(v).copied());
    right.iter().map(|(v, p)| Some((class(v)?, Term::instantiate(p, &instance.subst)?))).collect()
}

/// Computes both sides.
pub(super) fn compare(instance: &Instance, equal: &Equal, rule: &Rule, random: &mut Random) -> Verdict {
    for (id, term) in equal {
        match term.check(&instance.net, &ReferenceTarget::default()) {
            Err(_) => return Verdict::Refused,
            Ok(facts) => match instance.net[*id].data.value() {
                Some(v) if v.types == facts.types => {}
                _ => return Verdict::Wrong(format!("type {:?} for {:?}", facts.types, instance.ty(*id))),
            },
        }
    }
    let compared = both_sides(instance, equal).map(|graph| values_agree(instance, &graph, equal.len(), rule, random));
    compared.unwrap_or_else(|e| Verdict::Wrong(e.to_string()))
}

/// A graph with outputs `l0`, `r0`, `l1`, `r1` and so on.
pub(super) fn both_sides(instance: &Instance, equal: &Equal) -> Result<Graph, IrError> {
    let (mut graph, values) = instance.graph()?;
    for (i, (id, term)) in equal.iter().enumerate() {
        let right = instance.emit(&mut graph, &values, term)?;
        graph.output(&format!("l{i}"), OutputKind::Result, values[id]);
        graph.output(&format!("r{i}"), OutputKind::Result, right);
    }
    Ok(graph)
}

fn values_agree(instance: &Instance, graph: &Graph, pairs: usize, rule: &Rule, random: &mut Random) -> Verdict {
    let dims: BTreeMap<String, u64> = graph
        .symbols()
        .keys()
        .map(|s| (s.to_string(), if **s == *"N" { MAX_SYMBOL } else { 1 + random.below(MAX_SYMBOL) }))
        .collect();
    let numbers = if rule.class == Numerics::Bitwise { Numbers::Single } else { Numbers::Dyadic };
    let world = graph.world();
    let mut bind = |numbers| bindings(instance, &dims, numbers, world, random);
    let bindings = match bind(numbers) {
        Ok(bindings) => bindings,
        Err(e) => return Verdict::Wrong(e.to_string()),
    };
    match rule.class {
        Numerics::Bitwise => sides_agree::<Single>(graph, pairs, &dims, &bindings, &Options::default()),
        Numerics::Reassoc => sides_agree::<Algebra>(graph, pairs, &dims, &bindings, &Options::default()),
        Numerics::Rounding => sides_agree::<Algebra>(graph, pairs, &dims, &bindings, &Options::ideal()),
        Numerics::Approx => match sides_agree::<Algebra>(graph, pairs, &dims, &bindings, &Options::ideal()) {
            Verdict::Equal(n) => {
                match bind(Numbers::Uniform).and_then(|b| bounds::exceeded(rule, instance, graph, &dims, &b)) {
                    Ok(None) => Verdict::Equal(n),
                    Ok(Some(why)) => Verdict::Wrong(why),
                    Err(e) => Verdict::Wrong(e.to_string()),
                }
            }
            other => other,
        },
    }
}

fn sides_agree<D: Domain>(
    graph: &Graph,
    pairs: usize,
    dims: &BTreeMap<String, u64>,
    bindings: &Bindings,
    options: &Options,
) -> Verdict {
    match interpret_ranks::<D>(graph, dims, bindings, options) {
        Ok(ranks) => {
            ranks.iter().fold(Verdict::Equal(0), |verdict, out| match (verdict, outputs_agree::<D>(out, pairs)) {
                (Verdict::Equal(a), Verdict::Equal(b)) => Verdict::Equal(a + b),
                (Verdict::Equal(_), other) | (other, _) => other,
            })
        }
        Err(IrError::ZeroDivisor { .. }) => Verdict::Redraw,
        Err(e) => Verdict::Wrong(e.to_string()),
    }
}

/// One rank's outputs.
fn outputs_agree<D: Domain>(out: &Outputs<D::Value>, pairs: usize) -> Verdict {
    let mut count = 0;
    for i in 0..pairs {
        let (l, r) = (&out[&format!("l{i}")], &out[&format!("r{i}")]);
        let equal = match (l.as_values(), r.as_values(), l.as_ints(), r.as_ints()) {
            (Some(l), Some(r), ..) => l.len() == r.len() && l.iter().zip(r).all(|(a, b)| D::same(*a, *b)),
            (_, _, Some(l), Some(r)) => l == r,
            _ => false,
        };
        if !equal || l.shape != r.shape {
            return Verdict::Wrong(format!("{l:?} is not {r:?}"));
        }
        count += l.len() as u64;
    }
    Verdict::Equal(count)
}

/// Numbers at which arithmetic is special, beside those that are special to 16 and 8 bits.
const SPECIAL: &[f64] = &[
    0.0,
    -0.0,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
    1.0,
    -1.0,
    // Subnormals of f32, f16 and the least normals.
    1.401298464324817e-45,
    -1e-40,
    1.1754943508222875e-38,
    5.960464477539063e-8,
    6.103515625e-5,
    // The largest of each, and what rounds past them.
    3.4028234663852886e38,
    -3.4028234663852886e38,
    3.3961775292304957e38,
    65504.0,
    65520.0,
    448.0,
    464.0,
    // Ties of bf16 and f16.
    1.00390625,
    1.01171875,
    1.00048828125,
    -1.00146484375,
];

/// What leaves are bound to.
#[derive(Clone, Copy, PartialEq)]
enum Numbers {
    /// f32 numbers of all kinds.
    Single,
    /// Multiples of 1/64 in -2..2, which the ring holds as well.
    Dyadic,
    /// Any number in -4..4, in some leaves mostly 0, so that an error stands alone.
    Uniform,
}

/// Values for every leaf, reals of their own on each rank. Integers are valid for what reads them on the left side, whatever
/// the right side does.
fn bindings(
    instance: &Instance,
    dims: &BTreeMap<String, u64>,
    numbers: Numbers,
    world: u32,
    random: &mut Random,
) -> Result<Bindings, IrError> {
    let (graph, _) = instance.graph()?;
    let integers = graph.ids().any(
        |id| matches!(&graph.node(id).op, Op::Input { dtype, .. } | Op::Weight { dtype, .. } if !dtype.is_float()),
    );
    let mut out = if integers { generate::random_bindings(&graph, dims, random.next())? } else { Bindings::new() };
    for id in graph.ids() {
        let (Op::Input { name, dtype, shape, .. }
        | Op::Weight { name, dtype, shape }
        | Op::State { name, dtype, shape }) = &graph.node(id).op
        else {
            continue;
        };
        if !dtype.is_float() {
            continue;
        }
        let size = |d: &Dim| d.constant().unwrap_or_else(|| dims.get(&d.to_string()).copied().unwrap_or(1)) as usize;
        let shape: Vec<usize> = shape.iter().map(size).collect();
        // From no special number to nothing else, so that a sum of many is not always NaN.
        let one_in = [1, 4, 64, u64::MAX][random.below(4) as usize];
        let number = |random: &mut Random| match numbers {
            Numbers::Single if one_in < u64::MAX && random.below(one_in) == 0 => match random.below(2) {
                0 => f64::from(f32::from_bits(random.next() as u32)),
                _ => SPECIAL[random.below(SPECIAL.len() as u64) as usize],
            },
            Numbers::Single | Numbers::Dyadic => random.real(),
            Numbers::Uniform if one_in < u64::MAX && random.below(one_in) > 0 => 0.0,
            Numbers::Uniform => f64::from((random.next() >> 40) as f32 / (1u32 << 21) as f32 - 4.0),
        };
        for rank in 0..world as usize {
            let mut values: Vec<f64> = (0..shape.iter().product()).map(|_| number(random)).collect();
            if numbers != Numbers::Dyadic && (!dtype.is_block() || *dtype == DType::Q8A) {
                F64::round(&mut values, *dtype, &Options::default());
            }
            match world {
                1 => out.insert(name, Binding::f64(&shape, values)),
                _ => out.insert_on_rank(name, rank, Binding::f64(&shape, values)),
            }
        }
    }
    Ok(out)
}

/// Where a run over many instances ended.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub fired: u64,
    pub refused: u64,
    pub redrawn: u64,
    pub elements: u64,
}

/// Instances that fire, until there are `instances` of `elements` elements in all.
fn hold(rule: &Rule, instances: u64, elements: u64) -> Result<Run, String> {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut run = Run::default();
    while run.fired < instances || run.elements < elements {
        if run.redrawn + run.refused > 20_000 + 400 * run.fired {
            return Err(format!("hardly ever fires on drawn instances: {run:?}; does `draw.rs` know its ops?"));
        }
        let Some(mut instance) = instance(rule, &mut random) else {
            run.redrawn += 1;
            continue;
        };
        let proposals = proposals(rule, &mut instance);
        run.refused += u64::from(proposals.is_empty());
        for equal in proposals {
            match compare(&instance, &equal, rule, &mut random) {
                Verdict::Redraw => run.redrawn += 1,
                Verdict::Refused => run.refused += 1,
                Verdict::Equal(n) => {
                    run.fired += 1;
                    run.elements += n;
                }
                Verdict::Wrong(why) => {
                    let graph = both_sides(&instance, &equal).map(|g| weldment_ir::text::print(&g));
                    return Err(format!("does not hold as {}: {why}\n{}", rule.class, graph.unwrap_or_default()));
                }
            }
        }
    }
    Ok(run)
}

/// Runs `work` over the rules on every core; results in table order.
pub(super) fn over_rules<T: Send>(work: impl Fn(&Rule) -> T + Sync) -> Vec<(&'static str, T)> {
    let rules = all();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let done = std::sync::Mutex::new(BTreeMap::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(rule) = rules.get(i) else { return };
                    let result = work(rule);
                    done.lock().expect("no worker panics while it holds the lock").insert(i, (rule.name, result));
                }
            });
        }
    });
    done.into_inner().expect("workers have ended").into_values().collect()
}

/// Instances of each rule, and for bits a hundred times as many elements: `WELDMENT_RULE_INSTANCES`. The law's number is
/// 10,000; a fifth of it takes as long as a test may.
fn instances() -> u64 {
    std::env::var("WELDMENT_RULE_INSTANCES").ok().and_then(|n| n.parse().ok()).unwrap_or(2000)
}

#[test]
fn every_rule_holds_in_its_class() {
    let only = std::env::var("WELDMENT_RULE").ok();
    let runs = over_rules(|rule| {
        if only.as_ref().is_some_and(|name| name != rule.name) {
            return Ok(Run::default());
        }
        let start = std::time::Instant::now();
        let elements = if rule.class == Numerics::Bitwise { 100 * instances() } else { 0 };
        let run = hold(rule, instances(), elements);
        println!("{}: {run:?} in {:.2} s", rule.name, start.elapsed().as_secs_f64());
        run
    });
    let failed: Vec<String> =
        runs.into_iter().filter_map(|(name, run)| run.err().map(|why| format!("{name} {why}"))).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
