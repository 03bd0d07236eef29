//! Many cases in one module: optimised, planned, compiled together, run one by one.

use super::bounded::Bound;
use super::case::Case;
use crate::execute::{Static, Stored, Values};
use crate::host::Loaded;
use indexmap::IndexMap;
use weldment_codegen::llvm::Emit;
use weldment_codegen::select::KernelLibrary;
use weldment_codegen::setup::Setup;
use weldment_codegen::{Externals, Prepared, VariantPlan, generate, prepare};
use weldment_ir::{Graph, Op};
use weldment_passes::buffer::{BufferPlan, bufferise};
use weldment_passes::pipeline::optimise;

/// A case up to its plan.
pub struct Planned {
    /// What was drawn.
    pub case: Case,
    /// After the passes.
    pub graph: Graph,
    /// Rules that made a node of it.
    pub rules: Vec<String>,
    plan: BufferPlan,
}

/// Why a case was not compiled.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Invalid {
    /// Place in the run.
    pub index: u64,
    /// The stage's message.
    pub message: String,
}

/// How a case ended that was run.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Every element lies within its bound.
    Agrees,
    /// An element does not, or the code did not run.
    Differs(String),
}

/// Cases that ran, with how they ended, and those that have no kernels.
pub type Ran = (Vec<(Planned, Outcome)>, Vec<Invalid>);

/// Optimises and plans a case; `sabotage` may spoil the optimised graph.
///
/// # Errors
/// The stage's message.
pub fn plan(setup: &Setup, case: Case, sabotage: &dyn Fn(Graph) -> Graph) -> Result<Planned, Invalid> {
    let invalid = |message: String| Invalid { index: case.index, message };
    let library = KernelLibrary { setup: setup.clone(), max_tokens: case.max_tokens };
    let optimised = optimise(&case.graph, &library, &case.options).map_err(|e| invalid(format!("optimise: {e}")))?;
    let rules = optimised.report.units.iter().flat_map(|u| u.matches.keys().cloned()).collect();
    let graph = sabotage(optimised.graph);
    let plan = bufferise(&graph, &library).map_err(|e| invalid(format!("bufferise: {e}")))?;
    Ok(Planned { case, graph, rules, plan })
}

/// Plans a case and builds its kernels, without code.
///
/// # Errors
/// The stage's message.
pub fn kernels(setup: &Setup, case: Case) -> Result<(), String> {
    let planned = plan(setup, case, &|graph| graph).map_err(|e| e.message)?;
    let zeros = zeros(&planned.graph);
    prepared(setup, &[planned], &mut Static::new(&zeros)).map(drop)
}

/// Zeros for every weight: what is computed from them must be there, whatever it is.
fn zeros(graph: &Graph) -> Values {
    let mut weights = Values::new();
    for id in graph.ids() {
        if let (Op::Weight { name, dtype, .. }, Some(shape)) =
            (&graph.node(id).op, graph.node(id).types.first().and_then(|t| t.constant_shape()))
        {
            let bytes = vec![0; dtype.byte_size(&shape).unwrap_or(0) as usize];
            weights.insert(name.to_string(), Stored { dtype: *dtype, shape, bytes });
        }
    }
    weights
}

/// Compiles cases into one module and runs each; those without a kernel come back as invalid.
///
/// # Errors
/// What no single case is to blame for: LLVM, the linker, the driver.
pub fn run(setup: &Setup, planned: Vec<Planned>, threads: usize) -> Result<Ran, String> {
    let weights = weights(&planned);
    let (kept, invalid) = match prepared(setup, &planned, &mut Static::new(&weights)) {
        Ok(_) => (planned, Vec::new()),
        Err(_) => sieve(setup, planned, &weights),
    };
    let Some(first) = kept.first() else { return Ok((Vec::new(), invalid)) };
    let mut statics = Static::new(&weights);
    let prepared = prepared(setup, &kept, &mut statics)?;
    let compiled = generate(vec![prepared], Emit::default()).map_err(|e| e.to_string())?.pop();
    let compiled = compiled.ok_or("the program went missing")?;
    let loaded = Loaded::new(&first.graph, &setup.target, &compiled, &statics, threads)?;
    let mut done = Vec::with_capacity(kept.len());
    for (i, p) in kept.into_iter().enumerate() {
        let found = loaded.run((&compiled, i), (&p.graph, &p.plan), &p.case.dims, &p.case.values, None);
        let outcome = match found {
            Ok(found) => compare(&p.case, &found),
            Err(e) => Outcome::Differs(e),
        };
        done.push((p, outcome));
    }
    Ok((done, invalid))
}

/// Weights of all cases; each name has its case's prefix.
fn weights(planned: &[Planned]) -> Values {
    let mut weights = Values::new();
    for p in planned {
        for id in p.graph.ids() {
            if let Op::Weight { name, .. } = &p.graph.node(id).op
                && let Some(stored) = p.case.values.get(&**name)
            {
                weights.insert(name.to_string(), stored.clone());
            }
        }
    }
    weights
}

fn prepared(setup: &Setup, planned: &[Planned], statics: &mut Static<'_>) -> Result<Prepared, String> {
    let externals: Vec<Externals> = planned.iter().map(|p| Externals::alone(&p.plan)).collect();
    let variants: Vec<VariantPlan<'_>> = planned
        .iter()
        .zip(&externals)
        .map(|(p, externals)| VariantPlan {
            name: "all",
            graph: &p.graph,
            plan: &p.plan,
            setup,
            max_tokens: p.case.max_tokens,
            guards: Vec::new(),
            externals,
        })
        .collect();
    prepare(&variants, statics).map_err(|e| e.to_string())
}

/// Sorts out the cases that have no kernels.
fn sieve(setup: &Setup, planned: Vec<Planned>, weights: &Values) -> (Vec<Planned>, Vec<Invalid>) {
    let (mut kept, mut invalid) = (Vec::new(), Vec::new());
    for p in planned {
        match prepared(setup, std::slice::from_ref(&p), &mut Static::new(weights)) {
            Ok(_) => kept.push(p),
            Err(message) => invalid.push(Invalid { index: p.case.index, message }),
        }
    }
    (kept, invalid)
}

/// Every output against its bounds.
fn compare(case: &Case, found: &IndexMap<String, Vec<f64>>) -> Outcome {
    for (name, expected) in &case.expected {
        let Some(found) = found.get(name).filter(|f| f.len() == expected.len()) else {
            return Outcome::Differs(format!("output {name} is missing or has another size"));
        };
        let within = |(b, x): (&Bound, &f64)| (x - b.value).abs() <= b.error;
        let outside: Vec<usize> =
            expected.iter().zip(found).enumerate().filter(|(_, pair)| !within(*pair)).map(|(i, _)| i).collect();
        if let Some(first) = outside.first() {
            let Bound { value, error } = expected[*first];
            return Outcome::Differs(format!(
                "output {name}: {} of {} elements are wrong; element {first} is {:?}, {value:?} within {error:e} is right",
                outside.len(),
                found.len(),
                found[*first]
            ));
        }
    }
    Outcome::Agrees
}
