//! `weldment verify`: interprets the entry before and after fusion. Exact algebra (the ring) decides for rewrites up to
//! `reassoc`; f64 decides for the rest, within the class of the policy.

use super::args::VerifyArgs;
use super::progress::Bars;
use super::{graphs, put};
use crate::driver::{self, CompileError, FusionOptions, Progress, Timeline};
use crate::frontend::Checkpoint;
use std::collections::BTreeMap;
use weldment_ir::interpret::{Binding, Bindings, Domain, F64, Options, Outputs, Ring, interpret};
use weldment_ir::{Dim, Graph, Op};
use weldment_passes::rules::Numerics;
use weldment_runtime::cli::verify as hashes;

/// Largest difference over the largest value that each class may leave. Int8 activations have steps of amax / 127 and
/// errors of many terms that partly cancel.
fn bound(class: Numerics) -> f64 {
    match class {
        Numerics::Bitwise | Numerics::Reassoc => 1e-9,
        Numerics::Rounding => 1e-4,
        Numerics::Approx => 0.1,
    }
}

/// Sizes of the step that is interpreted: few tokens, all positions in one KV block.
fn small_dims(graph: &Graph) -> BTreeMap<String, u64> {
    let size = |(name, range): (&std::sync::Arc<str>, &weldment_ir::Range)| {
        let wanted = if matches!(&**name, "T" | "R") { 3 } else { 1 };
        (name.to_string(), wanted.clamp(range.min, range.max))
    };
    graph.symbols().iter().map(size).collect()
}

/// Values for every leaf: the model's weights, a short prompt, caches with something in them.
fn bind(graph: &Graph, checkpoint: &Checkpoint, dims: &BTreeMap<String, u64>) -> Result<Bindings, CompileError> {
    let mut bindings = Bindings::new();
    let size = |d: &Dim| match d {
        Dim::Const(n) => *n as usize,
        Dim::Sym(s) => dims.get(&**s).copied().unwrap_or(1) as usize,
    };
    for id in graph.ids() {
        match &graph.node(id).op {
            Op::Weight { name, dtype, shape } => {
                let bytes = checkpoint.shared_bytes(name);
                let missing = || CompileError::option(name.to_string(), "there is no tensor of this name");
                let shape: Vec<usize> = shape.iter().map(size).collect();
                bindings.insert(name, Binding::encoded(&shape, *dtype, bytes.ok_or_else(missing)?));
            }
            Op::Input { name, shape, .. } => {
                let shape: Vec<usize> = shape.iter().map(size).collect();
                let vocab = checkpoint.config.vocab as i64;
                let value = |i: i64| match &**name {
                    "tokens" => (i * 37 + 11) % vocab,
                    "positions" => i + 1,
                    "logit_rows" => i,
                    _ => 0,
                };
                let count = shape.iter().product::<usize>() as i64;
                bindings.insert(name, Binding::ints(&shape, (0..count).map(value).collect()));
            }
            Op::State { name, shape, .. } => {
                let shape: Vec<usize> = shape.iter().map(size).collect();
                let count = shape.iter().product::<usize>();
                let values = (0..count).map(|i| ((i * 7 + 3) % 32) as f64 / 16.0 - 1.0).collect();
                bindings.insert(name, Binding::f64(&shape, values));
            }
            _ => {}
        }
    }
    Ok(bindings)
}

fn values<D: Domain>(graph: &Graph, checkpoint: &Checkpoint) -> Result<Outputs<D::Value>, CompileError> {
    let dims = small_dims(graph);
    let bindings = bind(graph, checkpoint, &dims)?;
    Ok(interpret::<D>(graph, &dims, &bindings, &Options::default())?)
}

/// The first output that differs in exact algebra.
fn ring_difference(before: &Graph, after: &Graph, checkpoint: &Checkpoint) -> Result<Option<String>, CompileError> {
    let (a, b) = (values::<Ring>(before, checkpoint)?, values::<Ring>(after, checkpoint)?);
    let differs = a.iter().find(|(name, tensor)| {
        let other = b.get(*name);
        match (tensor.as_values(), other.and_then(|t| t.as_values())) {
            (Some(x), Some(y)) => x.len() != y.len() || !x.iter().zip(y).all(|(x, y)| Ring::same(*x, *y)),
            (None, None) => tensor.as_ints() != other.and_then(|t| t.as_ints()),
            _ => true,
        }
    });
    Ok(differs.map(|(name, _)| name.clone()))
}

/// The largest difference of any output over that output's largest value, and its name.
fn f64_difference(before: &Graph, after: &Graph, checkpoint: &Checkpoint) -> Result<(f64, String), CompileError> {
    let (a, b) = (values::<F64>(before, checkpoint)?, values::<F64>(after, checkpoint)?);
    let mut worst = (0.0, String::new());
    for (name, tensor) in &a {
        let (Some(x), Some(y)) = (tensor.as_values(), b.get(name).and_then(|t| t.as_values())) else { continue };
        let scale = x.iter().fold(0.0f64, |m, v| m.max(v.abs())).max(1e-30);
        let apart = x.iter().zip(y).map(|(x, y)| (x - y).abs() / scale).fold(0.0, |m: f64, d| {
            // A NaN must not look like agreement.
            if d.is_nan() { f64::INFINITY } else { m.max(d) }
        });
        if apart > worst.0 {
            worst = (apart, name.clone());
        }
    }
    Ok(worst)
}

/// `weldment verify`.
pub fn verify(args: &VerifyArgs) -> Result<(), CompileError> {
    if args.hashes {
        let options = hashes::VerifyOptions { artifact: args.model.clone(), weights_file: None };
        return Ok(hashes::verify(&options, &mut std::io::stdout())?);
    }
    if graphs::has_extension(&args.model, "weld") {
        let message =
            "an artifact holds no graph before fusion; give its model, or --hashes to check the artifact's bytes";
        return Err(CompileError::option("verify", message));
    }
    let mut bars = Bars::new();
    let checkpoint = graphs::checkpoint(&args.model, &args.build)?;
    let graph = graphs::graph(&args.model, &checkpoint, &args.build)?;
    let fusion = graphs::fusion_options(&args.build)?;
    let class = fusion.fp_policy.unwrap_or_else(|| Numerics::default_for(&graph));
    let exact = FusionOptions { fp_policy: Some(class.min(Numerics::Reassoc)), require: Vec::new(), ..fusion.clone() };
    let mut timeline = Timeline::default();
    let strict = driver::plan_targets(&graph, &args.build.target, &exact, &mut timeline, &mut bars)?;
    let full = driver::plan_targets(&graph, &args.build.target, &fusion, &mut timeline, &mut bars)?;
    let mut failed = Vec::new();
    for (strict, full) in strict.iter().zip(&full) {
        for (strict, full) in strict.variants.iter().zip(&full.variants) {
            bars.begin("interpret");
            let ring = ring_difference(&strict.before, &strict.graph, &checkpoint)?;
            let (apart, name) = f64_difference(&full.before, &full.graph, &checkpoint)?;
            bars.finish();
            let exact = ring.as_ref().map_or("equal".to_owned(), |name| format!("{name} differs"));
            put(&format!("{}: ring {exact}; f64 {apart:.2e} of {:.0e} ({class})\n", full.name, bound(class)))?;
            failed.extend(ring.map(|name| format!("{}: {name} differs in the ring", full.name)));
            if apart > bound(class) {
                failed.push(format!("{}: {name} differs by {apart:.2e} of its largest value", full.name));
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(CompileError::Check(failed.join("; "))) }
}
