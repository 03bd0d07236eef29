//! Code of the collectives on GPUs: which instructions carry what ranks exchange, and at which scope.

use weldment_ir::{DType, Dim, Graph, Op, OutputKind, Real, Value};
use weldment_tests::execute::gpu_text;

/// A graph of one collective on rows of `h` elements.
fn graph(op: Op, operands: &[(DType, bool)], h: u64, most: u64) -> Graph {
    let mut graph = Graph::new("one");
    graph.declare_symbol("T", 1, most);
    let inputs: Vec<Value> = operands
        .iter()
        .enumerate()
        .map(|(i, (dtype, weight))| {
            let name = format!("i{i}");
            let op = if *weight {
                Op::Weight { name: name.as_str().into(), dtype: *dtype, shape: vec![Dim::Const(h)] }
            } else {
                Op::Input { name: name.as_str().into(), dtype: *dtype, shape: vec![Dim::sym("T"), Dim::Const(h)] }
            };
            graph.push("node", op, &[]).expect("a leaf")
        })
        .collect();
    let first = graph.push("node", op, &inputs).expect("a well-typed node");
    for result in 0..graph.node(first.node).types.len() {
        let value = Value { node: first.node, result: result as _ };
        graph.output(&format!("out{result}"), OutputKind::Result, value);
    }
    graph
}

fn add_norm(world: i64, h: u64, most: u64) -> Graph {
    let op = Op::AllReduceAddRmsNorm { world, eps: Real(1e-6), dtype: DType::BF16 };
    graph(op, &[(DType::BF16, false), (DType::BF16, false), (DType::BF16, true)], h, most)
}

#[test]
fn show() {
    let target = std::env::var("T").unwrap_or("sm_90a".into());
    println!(
        "{}",
        gpu_text(&add_norm(std::env::var("W").map_or(2, |w| w.parse().unwrap()), 7168, 8), &target).unwrap()
    );
}
