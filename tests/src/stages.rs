//! What a filetest can do with a graph. A new stage is one function and one line in [`run`].

use crate::execute::{self, Stored, Values};
use crate::filetest::{Args, FileTest};
use std::collections::BTreeSet;
use std::fmt::Write;
use weldment_ir::generate::random_bindings;
use weldment_ir::interpret::{Binding, Domain, F64, Options, Ring, Tensor, interpret as evaluate};
use weldment_ir::verify::verify_all;
use weldment_ir::{DType, Graph, Op, TensorType, text};
use weldment_passes::pipeline::{self, Optimised, optimise};
use weldment_passes::target::{ReferenceTarget, TargetModel};
use weldment_passes::{Numerics, rules};

/// The target of stages that generate code: the same on every machine, whatever its CPU offers beyond.
const TARGET: &str = "x86-64-v3";

/// Output of a test's stage.
///
/// # Errors
/// If the test itself is malformed: an unknown stage, a bad option, a text that does not parse where that is not the point.
pub fn run(test: &FileTest) -> Result<String, String> {
    let stage: fn(&Graph, &Args) -> Result<String, String> = match test.stage.as_str() {
        "parse" => return Ok(parse(&test.text)),
        "print" => print,
        "verify" => verify,
        "interpret" => interpret,
        "rules" => apply_rules,
        "shard" => shard,
        "fuse" => fuse,
        "lower" => lower,
        "run" => run_code,
        other => return Err(format!("unknown stage {other}; tests/src/stages.rs lists them")),
    };
    let graph = text::parse(&test.text).map_err(|e| e.to_string())?;
    stage(&graph, &test.args)
}

/// `parse`: the error, or the number of nodes.
fn parse(text: &str) -> String {
    match text::parse(text) {
        Ok(graph) => format!("ok, {} nodes", graph.len()),
        Err(e) => format!("error: {e}"),
    }
}

/// `print`: the graph as printed, which must read back to the same.
fn print(graph: &Graph, _: &Args) -> Result<String, String> {
    let printed = text::print(graph);
    let again = text::parse(&printed).map_err(|e| format!("does not read back: {e}"))?;
    if text::print(&again) == printed { Ok(printed) } else { Err("does not read back to the same".to_owned()) }
}

/// `verify`: every error, or `ok`.
fn verify(graph: &Graph, _: &Args) -> Result<String, String> {
    let errors = verify_all(graph);
    if errors.is_empty() {
        return Ok("ok".to_owned());
    }
    Ok(errors.iter().map(|e| format!("error: {e}\n")).collect())
}

/// `interpret [domain=ring] [seed=N] [round_f32] [ideal=DTYPE,..] T=4 ..`: outputs by name, or the error. Leaves without a
/// `; bind:` line take random values.
fn interpret(graph: &Graph, args: &Args) -> Result<String, String> {
    let options = Options {
        round_f32: args.get("round_f32").is_some(),
        ideal: args
            .list("ideal")
            .map(|d| d.parse::<DType>().map_err(|e| e.to_string()))
            .collect::<Result<BTreeSet<_>, _>>()?,
        ..Options::default()
    };
    let dims = args.dims()?;
    let mut bindings = random_bindings(graph, &dims, args.number("seed", 0)?).map_err(|e| e.to_string())?;
    for (name, numbers) in &args.binds {
        let ty = leaf_type(graph, name)?;
        let shape: Vec<usize> = execute::resolve(ty, &dims).into_iter().map(|d| d as usize).collect();
        let binding = if ty.dtype.is_float() {
            Binding::f64(&shape, numbers.clone())
        } else {
            Binding::ints(&shape, numbers.iter().map(|x| *x as i64).collect())
        };
        bindings.insert(name, binding);
    }
    match args.get("domain").unwrap_or("f64") {
        "f64" => Ok(show::<F64>(evaluate::<F64>(graph, &dims, &bindings, &options), six_digits)),
        "ring" => Ok(show::<Ring>(evaluate::<Ring>(graph, &dims, &bindings, &options), |v| v.p().to_string())),
        other => Err(format!("domain={other}; f64 or ring is expected")),
    }
}

/// Type of the leaf that a `; bind:` line names.
fn leaf_type<'g>(graph: &'g Graph, name: &str) -> Result<&'g TensorType, String> {
    let named = graph.ids().map(|id| graph.node(id)).find(|node| match &node.op {
        Op::Input { name: n, .. } | Op::Weight { name: n, .. } | Op::State { name: n, .. } => **n == *name,
        _ => false,
    });
    named.and_then(|node| node.types.first()).ok_or_else(|| format!("bind: no leaf is named {name}"))
}

/// `only=RULE,..`: every other rule is off. `disable=RULE,..`: these rules and fusions are off. `policy=CLASS`: up to this
/// class rules may fire. `T=4`: the sizes at which forms are priced.
fn pass_options(args: &Args) -> Result<pipeline::Options, String> {
    let mut disabled: BTreeSet<String> = args.list("disable").map(str::to_owned).collect();
    let kept: Vec<&str> = args.list("only").collect();
    let mut enabled = BTreeSet::new();
    if !kept.is_empty() {
        let all = rules::all();
        if let Some(unknown) = kept.iter().find(|k| all.iter().all(|r| r.name != **k)) {
            return Err(format!("only={unknown}: there is no such rule"));
        }
        // A fusion may have the name of one of its rules; switching that off would switch off the rule to be kept.
        let groups: BTreeSet<&str> = all.iter().filter(|r| kept.contains(&r.name)).filter_map(|r| r.group).collect();
        let others = all.iter().map(|r| r.name).filter(|name| !kept.contains(name) && !groups.contains(name));
        disabled.extend(others.map(str::to_owned));
        enabled.extend(groups.into_iter().map(str::to_owned));
    }
    let fp_policy = args.get("policy").map(str::parse::<Numerics>).transpose()?;
    Ok(pipeline::Options { fp_policy, disabled, enabled, dims: args.dims()?, ..pipeline::Options::default() })
}

fn optimised(graph: &Graph, target: &dyn TargetModel, options: &pipeline::Options) -> Result<Optimised, String> {
    optimise(graph, target, options).map_err(|e| e.to_string())
}

/// The graph fused for [`TARGET`].
fn fused(graph: &Graph, args: &Args) -> Result<Optimised, String> {
    let setup = execute::setup(graph, TARGET)?;
    optimised(graph, &execute::library(graph, &setup), &pass_options(args)?)
}

/// `rules [only=RULE,..] [disable=NAME,..] [fires=RULE,..] [refrains=RULE,..] [policy=CLASS] [T=4 ..]`: rules that fired and
/// the graph that is cheapest on the reference target. `fires` and `refrains` hold even where expectations are rewritten.
fn apply_rules(graph: &Graph, args: &Args) -> Result<String, String> {
    let mut options = pass_options(args)?;
    options.fp_policy = options.fp_policy.or(Some(Numerics::Approx));
    let out = optimised(graph, &ReferenceTarget::default(), &options)?;
    let fired: BTreeSet<&str> = out.report.units.iter().flat_map(|u| u.matches.keys()).map(String::as_str).collect();
    if let Some(rule) = args.list("fires").find(|r| !fired.contains(r)) {
        return Err(format!("{rule} does not fire; {fired:?} do"));
    }
    if let Some(rule) = args.list("refrains").find(|r| fired.contains(r)) {
        return Err(format!("{rule} fires"));
    }
    let list = if fired.is_empty() { "nothing".to_owned() } else { Vec::from_iter(fired).join(", ") };
    Ok(format!("fired: {list}\n\n{}", text::print(&out.graph)))
}

/// `shard [world=2]`: the graph of each rank, or the error.
fn shard(graph: &Graph, args: &Args) -> Result<String, String> {
    Ok(match weldment_passes::shard::shard(graph, args.number("world", 2)?) {
        Ok(sharded) => text::print(&sharded),
        Err(e) => format!("error: {e}"),
    })
}

/// `fuse [policy=CLASS] [disable=NAME,..] [T=4 ..]`: the fused graph and the match report.
fn fuse(graph: &Graph, args: &Args) -> Result<String, String> {
    let out = fused(graph, args)?;
    Ok(format!("{}\n{}", text::print(&out.graph), out.report))
}

/// `lower [fuse]`: the tile program of each kernel, in the order of first use.
fn lower(graph: &Graph, args: &Args) -> Result<String, String> {
    match args.get("fuse") {
        Some(_) => execute::tile_programs(&fused(graph, args)?.graph, TARGET),
        None => execute::tile_programs(graph, TARGET),
    }
}

/// `run [fuse] [seed=N] [tolerance=1e-5] [of_scale] T=4 ..`: whether compiled code agrees with the interpreter. `fuse`: the code
/// is of the fused graph, the interpreter still takes the graph as it stands. `of_scale`: errors are relative to the largest
/// element of an output, for sums that cancel and for quantised arithmetic. Leaves without a `; bind:` line take random values.
fn run_code(graph: &Graph, args: &Args) -> Result<String, String> {
    let dims = args.dims()?;
    let mut values = execute::random_values(graph, &dims, Values::new(), args.number("seed", 0)?)?;
    for (name, numbers) in &args.binds {
        let ty = leaf_type(graph, name)?;
        let shape = execute::resolve(ty, &dims);
        let stored = if ty.dtype.is_float() {
            Stored::floats(ty.dtype, &shape, &numbers.iter().map(|x| *x as f32).collect::<Vec<_>>())
        } else {
            Stored::ints(&shape, &numbers.iter().map(|x| *x as i32).collect::<Vec<_>>())
        };
        values.insert(name.clone(), stored);
    }
    let expected = execute::reference(graph, &dims, &values)?;
    let found = match args.get("fuse") {
        Some(_) => execute::execute(&fused(graph, args)?.graph, &dims, &values, TARGET, 2)?,
        None => execute::execute(graph, &dims, &values, TARGET, 2)?,
    };
    let measure = if args.get("of_scale").is_some() { execute::difference_of_scale } else { execute::difference };
    let (difference, tolerance) = (measure(&expected, &found), args.number("tolerance", 1e-5)?);
    // The difference itself has other digits on other machines, so an agreement does not print it.
    match difference <= tolerance {
        true => Ok(format!("agrees within {tolerance:e}")),
        false => Err(format!("differs by {difference:e}, more than {tolerance:e}")),
    }
}

/// Six significant digits: what every libm agrees on.
fn six_digits(x: f64) -> String {
    let short: f64 = format!("{x:.5e}").parse().unwrap_or(x);
    format!("{short}")
}

fn show<D: Domain>(
    outputs: Result<weldment_ir::interpret::Outputs<D::Value>, weldment_ir::IrError>,
    number: impl Fn(D::Value) -> String,
) -> String {
    let outputs = match outputs {
        Ok(outputs) => outputs,
        Err(e) => return format!("error: {e}"),
    };
    let mut out = String::new();
    for (name, tensor) in &outputs {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name}: {}{:?} = {}", tensor.dtype, tensor.shape, elements::<D>(tensor, &number));
    }
    out
}

fn elements<D: Domain>(tensor: &Tensor<D::Value>, number: impl Fn(D::Value) -> String) -> String {
    let words: Vec<String> = match (tensor.as_ints(), tensor.as_values()) {
        (Some(ints), _) => ints.iter().map(i64::to_string).collect(),
        (_, Some(values)) => values.iter().map(|v| number(*v)).collect(),
        _ => Vec::new(),
    };
    words.join(" ")
}
