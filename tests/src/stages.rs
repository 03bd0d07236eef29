//! What a filetest can do with a graph. A new stage is one function and one line in [`run`].

use crate::filetest::{Args, FileTest};
use std::collections::BTreeSet;
use std::fmt::Write;
use weldment_ir::generate::random_bindings;
use weldment_ir::interpret::{Binding, Domain, F64, Options, Ring, Tensor, interpret as evaluate};
use weldment_ir::verify::verify_all;
use weldment_ir::{DType, Graph, Op, text};

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
    let ideal = args.get("ideal").unwrap_or("").split(',').filter(|d| !d.is_empty());
    let options = Options {
        round_f32: args.get("round_f32").is_some(),
        ideal: ideal.map(|d| d.parse::<DType>().map_err(|e| e.to_string())).collect::<Result<BTreeSet<_>, _>>()?,
        ..Options::default()
    };
    let dims = args.dims()?;
    let mut bindings = random_bindings(graph, &dims, args.number("seed", 0)?).map_err(|e| e.to_string())?;
    for (name, numbers) in &args.binds {
        let shape = bindings.get(name).ok_or_else(|| format!("bind: no leaf is named {name}"))?.shape.clone();
        let integer = graph.ids().any(|id| match &graph.node(id).op {
            Op::Input { name: n, dtype, .. } | Op::Weight { name: n, dtype, .. } | Op::State { name: n, dtype, .. } => {
                **n == **name && !dtype.is_float()
            }
            _ => false,
        });
        let binding = if integer {
            Binding::ints(&shape, numbers.iter().map(|x| *x as i64).collect())
        } else {
            Binding::f64(&shape, numbers.clone())
        };
        bindings.insert(name, binding);
    }
    match args.get("domain").unwrap_or("f64") {
        "f64" => Ok(show::<F64>(evaluate::<F64>(graph, &dims, &bindings, &options), six_digits)),
        "ring" => Ok(show::<Ring>(evaluate::<Ring>(graph, &dims, &bindings, &options), |v| v.p().to_string())),
        other => Err(format!("domain={other}; f64 or ring is expected")),
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
