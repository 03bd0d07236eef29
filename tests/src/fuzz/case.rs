//! One random graph with its values, what it must compute, and how it is optimised.

use super::bounded::{Bound, Bounded, take_undecided};
use super::values::{draw_dims, draw_values};
use crate::execute::Values;
use indexmap::IndexMap;
use std::collections::{BTreeMap, BTreeSet};
use weldment_codegen::choices::{Choices, Places};
use weldment_codegen::select::KernelLibrary;
use weldment_codegen::setup::{Setup, Symbols};
use weldment_codegen::target::Target;
use weldment_ir::generate::{Motif, Palette, Random, Wanted, random_dims, random_graph_of};
use weldment_ir::interpret::{Bindings, Options, Tensor, interpret};
use weldment_ir::{DType, Graph, IrError, Op, OpKind, Value};
use weldment_passes::target::TargetModel;
use weldment_passes::{Numerics, pipeline, rules};

/// The CPU that cases are drawn for: the same on every machine, whatever its own offers beyond.
pub const TARGET: &str = "x86-64-v3";
/// Symbols of every generated graph: the slots of the dims block.
const SYMBOLS: [&str; 4] = ["T", "B", "P", "N"];
/// Graphs in a module.
pub const BATCH: u64 = 100;
/// Draws of values for one graph before another is drawn.
const DRAWS: u64 = 8;
/// Graphs drawn for one index before it counts as undecidable.
const GRAPHS: u64 = 5;

/// Outputs with their bounds, by name.
pub type Expected = IndexMap<String, Vec<Bound>>;

/// A random graph and everything that was drawn for it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The run's seed and the place in the run: what draws the case again.
    pub seed: u64,
    /// See `seed`.
    pub index: u64,
    /// Before any pass.
    pub graph: Graph,
    /// How it is optimised.
    pub options: pipeline::Options,
    /// Most tokens that its code is for.
    pub max_tokens: u64,
    /// Sizes of the symbols.
    pub dims: BTreeMap<String, u64>,
    /// Inputs, weights and states.
    pub values: Values,
    /// What it must compute.
    pub expected: Expected,
    /// Draws that were thrown away: a decision hung on less than the error, or a bound said nothing.
    pub redrawn: u64,
}

/// Why there is no case for an index.
#[derive(Clone, Debug)]
pub enum Lost {
    /// No draw could be decided.
    Undecided {
        /// Draws made.
        draws: u64,
    },
    /// The generator or the interpreter failed: a bug.
    Broken(String),
}

/// The machine that cases are drawn for.
///
/// # Errors
/// If the code generator does not know it.
pub fn machine() -> Result<Setup, String> {
    setup(TARGET)
}

/// The machine that case `index` of the run with `seed` is compiled for: batches alternate between [`TARGET`] and what this CPU
/// offers beyond it.
///
/// # Errors
/// If the code generator does not know it.
pub fn compiled(seed: u64, index: u64) -> Result<Setup, String> {
    let own = (seed ^ (index / BATCH / 2)) & 1 == 0;
    setup(if own { "host" } else { TARGET })
}

fn setup(target: &str) -> Result<Setup, String> {
    Ok(Setup {
        target: Target::named(target)?,
        choices: Choices::default(),
        places: Places::default(),
        symbols: Symbols::plain(&SYMBOLS),
    })
}

/// Draws case `index` of the run with `seed`: graphs until one has values for which everything is decided.
///
/// # Errors
/// See [`Lost`].
pub fn draw(setup: &Setup, seed: u64, index: u64) -> Result<Case, Lost> {
    let mut random = Random::new(Random::new(seed).bits() ^ Random::new(!index).bits());
    let mut redrawn = 0;
    for _ in 0..GRAPHS {
        match draw_graph(setup, seed, index, &mut random) {
            Ok(case) => return Ok(Case { redrawn: case.redrawn + redrawn, ..case }),
            Err(Lost::Undecided { draws }) => redrawn += draws,
            Err(broken) => return Err(broken),
        }
    }
    Err(Lost::Undecided { draws: redrawn })
}

fn draw_graph(setup: &Setup, seed: u64, index: u64, random: &mut Random) -> Result<Case, Lost> {
    let max_tokens = *random.pick(&[1, 6, 6, 19]).unwrap_or(&6);
    let library = KernelLibrary { setup: setup.clone(), max_tokens };
    let prefix = format!("g{index}.");
    // The cases of a batch share sizes and dtypes, and so kernels: compiling is most of the time.
    let palette = Palette::random(Random::new(seed).bits() ^ Random::new(index / BATCH).bits());
    let deepest = if random.one_in(8) { 24 } else { 8 };
    let nodes = 2 + random.below(deepest) as usize;
    // One graph in four has ops in forms that only the general kernels take.
    let everything = random.one_in(4);
    let wanted = Wanted {
        nodes,
        tokens: max_tokens,
        name: format!("fuzz_{seed}_{index}"),
        prefix: &prefix,
        palette: &palette,
        accepts: &|op, operands, results| everything || library.supports(op, operands, results).is_ok(),
    };
    let broken = |e: IrError| Lost::Broken(e.to_string());
    let graph = random_graph_of(random.bits(), &wanted, Motif::ALL).map_err(broken)?;
    let options = random_options(&graph, random);
    let mut case = Case {
        seed,
        index,
        graph,
        options,
        max_tokens,
        dims: BTreeMap::new(),
        values: Values::new(),
        expected: Expected::new(),
        redrawn: 0,
    };
    while case.redrawn < DRAWS {
        // What a looser policy leaves open, a stricter one may decide.
        if case.redrawn == DRAWS / 2 && case.policy() > Numerics::Reassoc {
            case.options.fp_policy = Some(Numerics::Reassoc);
        }
        if case.draw_values(random.bits()).map_err(Lost::Broken)? {
            return Ok(case);
        }
        case.redrawn += 1;
    }
    Err(Lost::Undecided { draws: case.redrawn })
}

/// A policy, and rules and fusions switched off: none, a few, or all.
fn random_options(graph: &Graph, random: &mut Random) -> pipeline::Options {
    let policies = [Numerics::Bitwise, Numerics::Reassoc, Numerics::Reassoc, Numerics::Rounding, Numerics::Approx];
    let fp_policy = random.pick(&policies).copied();
    let mut disabled = BTreeSet::new();
    let names: Vec<&str> = rules::GROUPS.iter().copied().chain(rules::all().iter().map(|r| r.name)).collect();
    match random.below(12) {
        0 => disabled.extend(names.iter().map(|n| (*n).to_owned())),
        1..4 => {
            for _ in 0..1 + random.below(4) {
                disabled.extend(random.pick(&names).map(|n| (*n).to_owned()));
            }
        }
        _ => {}
    }
    let enabled = rules::OPT_IN.iter().filter(|_| random.one_in(2)).map(|(name, _)| (*name).to_owned()).collect();
    let dims = if random.one_in(2) { random_dims(graph, random.bits()) } else { BTreeMap::new() };
    pipeline::Options {
        fp_policy,
        disabled,
        enabled,
        dims,
        unit_stamping: !random.one_in(4),
        ..pipeline::Options::default()
    }
}

impl Case {
    /// A case of a given graph, of which no rule changes a bit. Its values are still to be drawn.
    pub fn of(graph: Graph, index: u64, max_tokens: u64, seed: u64) -> Case {
        let options = pipeline::Options { fp_policy: Some(Numerics::Bitwise), ..pipeline::Options::default() };
        let (dims, values, expected) = (BTreeMap::new(), Values::new(), Expected::new());
        Case { seed, index, graph, options, max_tokens, dims, values, expected, redrawn: 0 }
    }

    /// The case with sizes and values; `None` if what they give is undecided or nothing.
    pub fn drawn(mut self, seed: u64) -> Option<Case> {
        self.draw_values(seed).is_ok_and(|decided| decided).then_some(self)
    }

    /// The largest class of rules that may fire.
    pub fn policy(&self) -> Numerics {
        self.options.fp_policy.unwrap_or(Numerics::Approx)
    }

    /// Draws sizes and values; false if what they give is undecided.
    ///
    /// # Errors
    /// The interpreter's.
    fn draw_values(&mut self, seed: u64) -> Result<bool, String> {
        self.dims = draw_dims(&self.graph, seed);
        self.values = draw_values(&self.graph, &self.dims, seed)?;
        match expect(&self.graph, &self.dims, &self.values, self.policy())? {
            Some(expected) => self.expected = expected,
            None => return Ok(false),
        }
        Ok(true)
    }
}

/// What code for `graph`, optimised under `policy`, must compute; `None` where a decision hangs on less than the error, or a
/// bound says nothing.
///
/// # Errors
/// The interpreter's, as text.
pub fn expect(
    graph: &Graph,
    dims: &BTreeMap<String, u64>,
    values: &Values,
    policy: Numerics,
) -> Result<Option<Expected>, String> {
    let mut options = Options::default();
    let quantised;
    let mut graph = graph;
    if policy >= Numerics::Rounding {
        options.ideal = BTreeSet::from([DType::F16, DType::BF16, DType::Q8A]);
    }
    if policy >= Numerics::Approx {
        quantised = quantise_activations(graph).map_err(|e| e.to_string())?;
        graph = &quantised;
    }
    let mut bindings = Bindings::new();
    for (name, stored) in values {
        bindings.insert(name, stored.binding());
    }
    take_undecided();
    let outputs = match interpret::<Bounded>(graph, dims, &bindings, &options) {
        Ok(outputs) => outputs,
        Err(IrError::ZeroDivisor { .. }) => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    let flat = |t: &Tensor<Bound>| -> Vec<Bound> {
        let reals = t.as_values().map(<[Bound]>::to_vec);
        let exact = |n: &i64| Bound { value: *n as f64, error: 0.0 };
        reals.or_else(|| t.as_ints().map(|ints| ints.iter().map(exact).collect())).unwrap_or_default()
    };
    let expected: Expected = outputs.iter().map(|(name, t)| (name.clone(), flat(t))).collect();
    let says = |list: &Vec<Bound>| {
        let scale = list.iter().fold(0.0f64, |m, b| m.max(b.value.abs()));
        list.iter().all(|b| b.value.is_finite() && b.error.is_finite() && b.error <= 0.5 * scale + 1e-30)
    };
    Ok((!take_undecided() && expected.values().all(says)).then_some(expected))
}

/// The graph with activations quantised before every product by a block format: what rules of class `Approx` may do, wherever
/// they may.
fn quantise_activations(graph: &Graph) -> Result<Graph, IrError> {
    let mut out = graph.emptied();
    let mut map = Vec::with_capacity(graph.len());
    for id in graph.ids() {
        let node = graph.node(id);
        let mut operands: Vec<Value> =
            node.operands.iter().map(|v| Value { node: map[v.node.index()], ..*v }).collect();
        let product = matches!(node.op.kind(), OpKind::Matmul | OpKind::MatmulAdd | OpKind::MatmulSiluMul);
        if product && out.type_of(operands[1]).dtype.is_block() && out.type_of(operands[0]).dtype != DType::Q8A {
            let whole = out.type_of(operands[0]).last_constant().is_some_and(|n| n.is_multiple_of(32));
            if whole {
                operands[0] = out.push("cast", Op::Cast { dtype: DType::Q8A }, &operands[..1])?;
            }
        }
        map.push(out.add(node.op.clone(), &operands, node.sources.clone())?);
    }
    for output in graph.outputs() {
        let value = Value { node: map[output.value.node.index()], ..output.value };
        out.output(&output.name, output.kind.clone(), value);
    }
    Ok(out)
}
