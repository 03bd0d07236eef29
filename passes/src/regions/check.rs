//! Are the two sides of a region the same function? The ring decides exactly where it relates their ops; f64 decides within
//! what the region's class allows.

use super::{Region, Regions};
use crate::error::PassError;
use crate::rules::Numerics;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use weldment_ir::generate::{Random, random_bindings};
use weldment_ir::interpret::{Bindings, Domain, F64, Options, Outputs, Ring, interpret_ranks};
use weldment_ir::{Category, DType, Dim, Graph, IrError, NodeId, Op, OpKind};

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Random instances in the ring, and as many in f64.
    pub draws: u64,
    /// The first instance's seed.
    pub seed: u64,
}

impl Default for Effort {
    fn default() -> Self {
        Effort { draws: 3, seed: 1 }
    }
}

/// What the ring says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RingVerdict {
    /// The same numbers, every rounding taken as a function of its own.
    Equal,
    /// The same numbers with roundings taken as identity.
    EqualIdeal,
    /// The sides use functions that the ring does not relate: these.
    Unrelated(String),
    /// Other numbers: the first output and element.
    Differs(String),
}

impl fmt::Display for RingVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingVerdict::Equal => f.write_str("equal"),
            RingVerdict::EqualIdeal => f.write_str("equal but for roundings"),
            RingVerdict::Unrelated(what) => write!(f, "does not relate {what}"),
            RingVerdict::Differs(place) => write!(f, "differs at {place}"),
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// In the ring.
    pub ring: RingVerdict,
    /// Largest difference in f64 over the largest value of the output, with every rounding; infinite for a NaN on one side.
    pub apart: f64,
    /// What the class allows.
    pub bound: f64,
    /// Why the region is wrong; none if it is not.
    pub failed: Option<String>,
}

/// Functions that the ring knows only by name, by what each side uses.
fn functions(graph: &Graph) -> BTreeSet<&'static str> {
    let named = |kind| match kind {
        OpKind::Silu | OpKind::SiluMul | OpKind::MatmulSiluMul => Some("silu"),
        OpKind::Sigmoid => Some("sigmoid"),
        OpKind::Gelu => Some("gelu"),
        OpKind::Tanh => Some("tanh"),
        _ => None,
    };
    graph.ids().filter_map(|id| named(graph.node(id).op.kind())).collect()
}

/// Float dtypes other than f32 that a side's values have: where it rounds.
fn roundings(graph: &Graph) -> BTreeSet<&'static str> {
    narrow(graph).map(|d| d.name()).collect()
}

/// False for what only moves elements and leaves them as they are.
fn rounds(kind: OpKind) -> bool {
    !matches!(kind.info().category, Category::Leaf | Category::View | Category::StateWrite)
        && !matches!(kind, OpKind::Gather | OpKind::GatherPart | OpKind::Shard)
}

/// Do the sides round to other dtypes, or one after more of its steps than the other?
pub(super) fn rounds_elsewhere(before: &Graph, after: &Graph) -> bool {
    roundings(before) != roundings(after) || rounding_depth(before) != rounding_depth(after)
}

/// The most steps on one way through a side that round.
fn rounding_depth(graph: &Graph) -> usize {
    let mut depth: Vec<usize> = Vec::with_capacity(graph.len());
    for id in graph.ids() {
        let node = graph.node(id);
        let rounds = rounds(node.op.kind()) && node.types.iter().any(|t| t.dtype.is_float() && t.dtype != DType::F32);
        let below = node.operands.iter().map(|v| depth[v.node.index()]).max().unwrap_or(0);
        depth.push(below + usize::from(rounds));
    }
    depth.into_iter().max().unwrap_or(0)
}

fn narrow(graph: &Graph) -> impl Iterator<Item = DType> {
    let computed = graph.ids().filter(|id| rounds(graph.node(*id).op.kind()));
    computed.flat_map(|id| graph.node(id).types.iter().map(|t| t.dtype)).filter(|d| d.is_float() && *d != DType::F32)
}

/// Spacing of a dtype's numbers over their size.
fn spacing(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1.0 / 1024.0,
        DType::BF16 => 1.0 / 128.0,
        // Two int8 planes a block.
        DType::Q8A => 1.0 / 16384.0,
        DType::F32 => 0.0,
        _ => 0.25,
    }
}

/// Largest difference in f64 that a class allows: none but that of f64 itself, or sixteen times the coarsest rounding that one
/// of the sides has (a rounding that moves is carried on by sums that partly cancel).
fn bound(class: Numerics, region: &Region) -> f64 {
    let coarsest = narrow(&region.before).chain(narrow(&region.after)).map(spacing).fold(0.0, f64::max);
    match class {
        Numerics::Bitwise | Numerics::Reassoc => 1e-9,
        Numerics::Rounding | Numerics::Approx => (16.0 * coarsest).clamp(1e-9, 0.25),
    }
}

/// Small sizes: most symbols a little above their least, which is 1 unless the region needs its own range.
fn dims(graph: &Graph, own_ranges: bool, seed: u64) -> BTreeMap<String, u64> {
    let mut random = Random::new(seed);
    let mut out = BTreeMap::new();
    for (name, range) in graph.symbols() {
        let least = if own_ranges { range.min } else { 1 };
        out.insert(name.to_string(), (least + random.below(4)).min(range.max));
    }
    // Every position of the tables, and a pool in which each of their blocks is another, where there may be so many.
    let at = |out: &BTreeMap<String, u64>, dim: Option<&Dim>| match dim {
        Some(Dim::Const(n)) => *n,
        Some(Dim::Sym(s)) => out.get(&**s).copied().unwrap_or(1),
        None => 1,
    };
    for id in graph.ids() {
        let node = graph.node(id);
        let Some(paged) = node.op.paged() else { continue };
        let dim = |operand: usize, axis: usize| graph.type_of(node.operands[operand]).shape.get(axis);
        let (cache, tables) = (paged.caches[0], paged.block_tables);
        let blocks = at(&out, dim(tables, 0)).saturating_mul(at(&out, dim(tables, 1)));
        let positions = at(&out, dim(tables, 1)).saturating_mul(at(&out, dim(cache, paged.slots)));
        let columns = if let Op::IndexScores { columns, .. } = &node.op { columns.first() } else { None };
        for (dim, wanted) in [(dim(cache, 0), blocks), (columns, positions)] {
            if let Some((name, range)) = dim.and_then(Dim::symbol).and_then(|s| Some((s, graph.symbols().get(s)?))) {
                out.insert(name.into(), wanted.clamp(if own_ranges { range.min } else { 1 }, range.max));
            }
        }
    }
    out
}

/// A graph whose symbols may be as small as 1.
fn relaxed(graph: &Graph) -> Graph {
    let mut out = graph.clone();
    for (name, range) in graph.symbols() {
        out.declare_symbol(name, 1, range.max);
    }
    out
}

/// One random instance.
struct Draw {
    dims: BTreeMap<String, u64>,
    bindings: Bindings,
}

/// Free reals are drawn for each rank: no rewrite may rest on ranks holding the same.
fn draw(before: &Graph, after: &Graph, own_ranges: bool, seed: u64) -> Result<Draw, PassError> {
    let dims = dims(before, own_ranges, seed);
    let mut bindings = random_bindings(after, &dims, seed)?;
    // Those of the side before count: it names what integers are for at every op.
    for (name, binding) in random_bindings(before, &dims, seed)?.iter() {
        bindings.insert(name, binding.clone());
    }
    for rank in 1..before.world().max(after.world()) {
        let own = Random::new(seed.wrapping_add(u64::from(rank) << 32)).bits();
        for graph in [after, before] {
            let free = |id: &NodeId| matches!(&graph.node(*id).op, Op::Input { dtype, .. } | Op::State { dtype, .. } if dtype.is_float());
            let drawn = random_bindings(graph, &dims, own)?;
            for id in graph.ids().filter(free) {
                if let Op::Input { name, .. } | Op::State { name, .. } = &graph.node(id).op
                    && let Some(binding) = drawn.get(name)
                {
                    bindings.insert_on_rank(name, rank as usize, binding.clone());
                }
            }
        }
    }
    Ok(Draw { dims, bindings })
}

/// The first element where two sides differ.
fn difference<D: Domain>(a: &Outputs<D::Value>, b: &Outputs<D::Value>) -> Option<String> {
    for (name, x) in a {
        let Some(y) = b.get(name) else { return Some(name.clone()) };
        if x.shape != y.shape {
            return Some(format!("{name}, shape {:?} for {:?}", y.shape, x.shape));
        }
        let at = match (x.as_values(), y.as_values()) {
            (Some(x), Some(y)) => x.iter().zip(y).position(|(x, y)| !D::same(*x, *y)),
            _ => {
                let (x, y) = (x.as_ints().unwrap_or(&[]), y.as_ints().unwrap_or(&[]));
                if x.len() == y.len() { x.iter().zip(y).position(|(x, y)| x != y) } else { Some(0) }
            }
        };
        if let Some(at) = at {
            return Some(format!("{name} element {at}"));
        }
    }
    None
}

/// The largest difference of an output over its largest value.
fn apart(a: &Outputs<f64>, b: &Outputs<f64>) -> f64 {
    let mut worst = 0.0f64;
    for (name, x) in a {
        let Some(y) = b.get(name).filter(|y| y.shape == x.shape) else { return f64::INFINITY };
        let (Some(x), Some(y)) = (x.as_values(), y.as_values()) else {
            if x.as_ints() != y.as_ints() {
                return f64::INFINITY;
            }
            continue;
        };
        let scale = x.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs())).max(1e-30);
        for (x, y) in x.iter().zip(y).filter(|(x, y)| !F64::same(**x, **y)) {
            let d = (x - y).abs() / scale;
            // A NaN must not look like agreement.
            worst = worst.max(if d.is_nan() { f64::INFINITY } else { d });
        }
    }
    worst
}

/// The sides on one instance; `None` for an instance that the ring cannot answer.
fn both<D: Domain>(
    sides: [&Graph; 2],
    draw: &Draw,
    options: &Options,
) -> Result<Option<[Outputs<D::Value>; 2]>, IrError> {
    let run = |graph| match interpret_ranks::<D>(graph, &draw.dims, &draw.bindings, options) {
        Err(IrError::ZeroDivisor { .. }) => Ok(None),
        other => other.map(Some),
    };
    Ok(match (run(sides[0])?, run(sides[1])?) {
        (Some(a), Some(b)) => {
            // A side that does not know of ranks stands for the first.
            let ranks = a.len().min(b.len());
            Some([a, b].map(|side| by_rank(side, ranks)))
        }
        _ => None,
    })
}

/// Outputs of the first `ranks` ranks as those of one, named apart.
fn by_rank<V>(side: Vec<Outputs<V>>, ranks: usize) -> Outputs<V> {
    let name = |rank: usize, name: String| if ranks == 1 { name } else { format!("{name} of rank {rank}") };
    let named = side.into_iter().take(ranks).enumerate();
    named.flat_map(|(rank, outputs)| outputs.into_iter().map(move |(n, t)| (name(rank, n), t))).collect()
}

/// Where the sides differ in the ring, on as many instances as `effort` wants.
fn ring(sides: [&Graph; 2], own_ranges: bool, options: &Options, effort: &Effort) -> Result<Option<String>, PassError> {
    let mut done = 0;
    // A zero divisor is as good as impossible in a ring of this size, so a few more draws are enough.
    for i in 0..effort.draws * 8 {
        if done == effort.draws {
            break;
        }
        let draw = draw(sides[0], sides[1], own_ranges, effort.seed.wrapping_add(i))?;
        let Some([a, b]) = both::<Ring>(sides, &draw, options)? else { continue };
        done += 1;
        if let Some(place) = difference::<Ring>(&a, &b) {
            return Ok(Some(place));
        }
    }
    Ok((done == 0).then(|| "no instance: every draw divides by zero".to_owned()))
}

/// Compares the two sides of a region as they stand, with free inputs.
///
/// # Errors
/// If a side cannot be interpreted.
pub fn check(region: &Region, own_ranges: bool, effort: &Effort) -> Result<Verdict, PassError> {
    let graphs = match own_ranges {
        true => [region.before.clone(), region.after.clone()],
        false => [relaxed(&region.before), relaxed(&region.after)],
    };
    let sides = [&graphs[0], &graphs[1]];
    let (real, ideal) = (Options::default(), Options::ideal());
    let exact = ring(sides, own_ranges, &real, effort)?;
    let verdict = match exact {
        None => RingVerdict::Equal,
        Some(place) => {
            let (a, b) = (functions(sides[0]), functions(sides[1]));
            let (rounds, rounded) = (roundings(sides[0]), roundings(sides[1]));
            let unrelated: Vec<&str> = a.symmetric_difference(&b).copied().collect();
            let casts: Vec<&str> = rounds.symmetric_difference(&rounded).copied().collect();
            let moves = region.class >= Numerics::Rounding;
            match (unrelated.is_empty(), moves) {
                (false, _) => RingVerdict::Unrelated(unrelated.join(" and ")),
                (true, true) => match ring(sides, own_ranges, &ideal, effort)? {
                    None => RingVerdict::EqualIdeal,
                    Some(place) => RingVerdict::Differs(place),
                },
                (true, false) if casts.is_empty() => RingVerdict::Differs(place),
                (true, false) => match ring(sides, own_ranges, &ideal, effort)? {
                    None => RingVerdict::Unrelated(format!("roundings to {}", casts.join(" and "))),
                    Some(place) => RingVerdict::Differs(place),
                },
            }
        }
    };
    let bound = bound(region.class, region);
    let (mut worst, mut worst_ideal) = (0.0f64, 0.0f64);
    for i in 0..effort.draws {
        let draw = draw(sides[0], sides[1], own_ranges, effort.seed.wrapping_add(i))?;
        let distance =
            |options| Ok::<_, IrError>(both::<F64>(sides, &draw, options)?.map_or(0.0, |[a, b]| apart(&a, &b)));
        worst = worst.max(distance(&real)?);
        // Where the ring says nothing, reals without roundings do.
        if matches!(verdict, RingVerdict::Unrelated(_)) {
            worst_ideal = worst_ideal.max(distance(&ideal)?);
        }
    }
    let failed = match &verdict {
        RingVerdict::Differs(place) => Some(format!("the ring differs at {place}")),
        _ if worst > bound => {
            Some(format!("f64 differs by {worst:.2e} of the largest value; {} allows {bound:.0e}", region.class))
        }
        _ if worst_ideal > 1e-9 => {
            Some(format!("without roundings f64 differs by {worst_ideal:.2e} of the largest value"))
        }
        _ => None,
    };
    Ok(Verdict { ring: verdict, apart: worst, bound, failed })
}

/// [`check`]; a region that cannot be interpreted does not hold.
fn attempt(region: &Region, own_ranges: bool, effort: &Effort) -> Verdict {
    check(region, own_ranges, effort).unwrap_or_else(|e| Verdict {
        ring: RingVerdict::Unrelated("a region that cannot be interpreted".into()),
        apart: f64::INFINITY,
        bound: bound(region.class, region),
        failed: Some(e.to_string()),
    })
}

/// Compares a region; one that differs is looked at again in the ranges of its own dims, then with what computes its inputs: a
/// rewrite may rest on either.
///
/// # Errors
/// As [`Regions::widened`].
pub fn judge(regions: &Regions<'_>, region: &Region, effort: &Effort) -> Result<Verdict, PassError> {
    let first = attempt(region, false, effort);
    let mut verdict = first.clone();
    let mut wider = Some(region.clone());
    for _ in 0..super::WIDENINGS {
        let (Some(at), true) = (&wider, verdict.failed.is_some()) else { break };
        verdict = attempt(at, true, effort);
        if verdict.failed.is_some() {
            wider = regions.widened(at)?;
        }
    }
    Ok(if verdict.failed.is_some() { first } else { verdict })
}
