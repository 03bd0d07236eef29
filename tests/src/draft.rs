//! A graph under construction, with the sizes it runs at: what tests of kernels draw their cases on.

use crate::execute::Values;
use std::collections::BTreeMap;
use weldment_ir::{DType, Dim, Graph, Op, OutputKind, Shape, Value};

/// A graph over T tokens.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The graph so far.
    pub graph: Graph,
    /// Sizes of the symbols in the run.
    pub dims: BTreeMap<String, u64>,
    /// Values that matter; the others are random.
    pub given: Values,
}

impl Draft {
    /// An empty graph that runs with `tokens` tokens, of `range`.
    pub fn new(tokens: u64, range: std::ops::RangeInclusive<u64>) -> Draft {
        let mut graph = Graph::new("case");
        graph.declare_symbol("T", *range.start(), *range.end());
        Draft { graph, dims: BTreeMap::from([("T".to_owned(), tokens)]), given: Values::new() }
    }

    /// Adds a node.
    pub fn push(&mut self, op: Op, operands: &[Value]) -> Value {
        self.graph.push("node", op, operands).expect("a well-typed node")
    }

    /// Adds an input.
    pub fn input(&mut self, name: &str, dtype: DType, shape: Shape) -> Value {
        self.push(Op::input(name, dtype, shape), &[])
    }

    /// Adds a weight.
    pub fn weight(&mut self, name: &str, dtype: DType, shape: &[u64]) -> Value {
        self.push(Op::Weight { name: name.into(), dtype, shape: shape.iter().map(|n| Dim::Const(*n)).collect() }, &[])
    }

    /// Makes results `out0`, `out1` and so on of values.
    pub fn results(&mut self, outputs: &[Value]) {
        for (i, v) in outputs.iter().enumerate() {
            self.graph.output(&format!("out{i}"), OutputKind::Result, *v);
        }
    }
}
