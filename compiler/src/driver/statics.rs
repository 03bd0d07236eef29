//! Static values of a compile: which checkpoint tensors are read, and what is computed from them once, here.

use super::CompileError;
use super::manifest::ModelWeights;
use crate::checkpoint::Checkpoint;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weldment_codegen::{Statics, by_rank};
use weldment_ir::codec::{Overflow, encode};
use weldment_ir::interpret::{self, Binding, Bindings, F64, Options, interpret_ranks};
use weldment_ir::{DType, Dim, Graph, Op, OutputKind, Value, text};
use weldment_runtime::artifact::{Tensor, TensorPlace};
use weldment_runtime::pack::TensorSource;

/// Constants start at multiples of this in their section.
const ALIGN: usize = 64;

/// A static value that a kernel reads.
#[derive(Clone, Debug)]
enum Entry {
    Weight(String),
    Computed { name: String, dtype: DType, shape: Vec<u64>, bytes: Arc<Vec<u8>> },
}

/// Collects static values in the order code generation asks for them.
pub struct Collector<'a> {
    checkpoint: &'a Checkpoint,
    entries: Vec<Entry>,
    weights: BTreeMap<String, u32>,
    /// By the text of what computes them.
    computed: BTreeMap<String, u32>,
}

impl<'a> Collector<'a> {
    /// Statics over `checkpoint`.
    pub fn new(checkpoint: &'a Checkpoint) -> Collector<'a> {
        Collector { checkpoint, entries: Vec::new(), weights: BTreeMap::new(), computed: BTreeMap::new() }
    }

    fn evaluate(&self, graph: &Graph, name: &str) -> Result<Vec<u8>, String> {
        // Blocks that only move are not decoded: not every format has an encoder.
        let moved = in_bytes(graph);
        let graph = moved.as_ref().unwrap_or(graph);
        let mut bindings = Bindings::new();
        for id in graph.ids() {
            if let Op::Weight { name, dtype, .. } = &graph.node(id).op {
                let shape = graph.node(id).types.first().and_then(|t| t.constant_shape()).unwrap_or_default();
                let shape: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
                let bytes = self.checkpoint.shared_bytes(name).ok_or_else(|| format!("there is no tensor `{name}`"))?;
                bindings.insert(name, Binding::encoded(&shape, *dtype, bytes));
            }
        }
        // f32 steps round as they would at run time; rope tables are made in f64 and rounded once.
        let options = Options { round_f32: true, ..Options::default() };
        let ranks = interpret_ranks::<F64>(graph, &BTreeMap::new(), &bindings, &options).map_err(|e| e.to_string())?;
        let mut stored = Vec::new();
        for outputs in &ranks {
            stored.extend(encoded(outputs.get(name).ok_or("it has no value")?)?);
        }
        Ok(stored)
    }

    /// The manifest's tensors, the section of constants, and where the checkpoint's files are.
    ///
    /// # Errors
    /// If a tensor is missing.
    pub fn finish(self, embed: bool) -> Result<Collected<'a>, CompileError> {
        let names: Vec<&str> = self.weights_in_order();
        let ModelWeights { mut weights, paths } = ModelWeights::new(self.checkpoint, &names, embed)?;
        let mut described = std::mem::take(&mut weights.tensors).into_iter();
        let mut constants = Vec::new();
        let mut bytes = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            match entry {
                Entry::Weight(name) => {
                    weights.tensors.extend(described.next());
                    // Only packing reads them, and random ones would be made for nothing.
                    let tensor = self.checkpoint.tensor(name).filter(|_| embed);
                    bytes.push(tensor.map(|t| t.bytes()).unwrap_or_default());
                }
                Entry::Computed { name, dtype, shape, bytes: stored } => {
                    constants.resize(constants.len().next_multiple_of(ALIGN), 0u8);
                    weights.tensors.push(Tensor {
                        name: name.clone(),
                        dtype: *dtype,
                        shape: shape.clone(),
                        at: TensorPlace::Constant(constants.len() as u64),
                        blake3: blake3::hash(stored).to_hex().to_string(),
                    });
                    constants.extend_from_slice(stored);
                    bytes.push(Cow::Owned(stored.to_vec()));
                }
            }
        }
        Ok(Collected { model: ModelWeights { weights, paths }, constants, bytes })
    }

    fn weights_in_order(&self) -> Vec<&str> {
        let name = |e: &'_ Entry| match e {
            Entry::Weight(name) => Some(name.as_str().to_owned()),
            Entry::Computed { .. } => None,
        };
        let order: Vec<String> = self.entries.iter().filter_map(name).collect();
        order.iter().filter_map(|n| self.weights.get_key_value(n).map(|(k, _)| k.as_str())).collect()
    }

    fn push(&mut self, entry: Entry) -> Result<u32, String> {
        let index = u32::try_from(self.entries.len()).map_err(|_| "more than 2^32 static values")?;
        self.entries.push(entry);
        Ok(index)
    }
}

/// A value in its stored form.
fn encoded(tensor: &interpret::Tensor<f64>) -> Result<Vec<u8>, String> {
    if let Some(ints) = tensor.as_ints() {
        return encode_ints(tensor.dtype, ints);
    }
    let values = tensor.as_values().ok_or_else(|| format!("{} values cannot be stored", tensor.dtype))?;
    let single: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    encode(tensor.dtype, &single, Overflow::Saturate).map_err(|e| e.to_string())
}

/// Little-endian integers.
fn encode_ints(dtype: DType, ints: &[i64]) -> Result<Vec<u8>, String> {
    let width = dtype.block_bytes();
    if !(dtype.is_integer() || dtype == DType::Bool) {
        return Err(format!("integers as {dtype}"));
    }
    Ok(ints.iter().flat_map(|n| n.to_le_bytes().into_iter().take(width)).collect())
}

/// A graph that only moves whole blocks of weights as one that moves their bytes.
fn in_bytes(graph: &Graph) -> Option<Graph> {
    let result = graph.type_of(graph.outputs().first()?.value).dtype;
    let (elements, bytes) = (result.block_elements() as u64, result.block_bytes() as u64);
    let scaled = |n: u64| n.is_multiple_of(elements).then(|| n / elements * bytes);
    let in_bytes = |shape: &[Dim]| -> Option<Vec<Dim>> {
        let mut shape = shape.to_vec();
        let last = shape.last_mut()?;
        *last = Dim::Const(scaled(last.constant()?)?);
        Some(shape)
    };
    if elements == 1 {
        return None;
    }
    let mut out = Graph::new(&graph.name);
    let mut map = Vec::with_capacity(graph.len());
    for id in graph.ids() {
        let node = graph.node(id);
        let operands: Vec<Value> = node.operands.iter().map(|v| Value { node: map[v.node.index()], ..*v }).collect();
        let op = match &node.op {
            Op::Weight { name, dtype, shape } if *dtype == result => {
                Op::Weight { name: Arc::clone(name), dtype: DType::U8, shape: in_bytes(shape)? }
            }
            Op::Reshape { shape } => Op::Reshape { shape: in_bytes(shape)? },
            Op::Slice { axis, start, end } if *axis + 1 == node.types.first()?.rank() as i64 => {
                let byte = |n: i64| i64::try_from(scaled(u64::try_from(n).ok()?)?).ok();
                Op::Slice { axis: *axis, start: byte(*start)?, end: byte(*end)? }
            }
            op @ (Op::Slice { .. } | Op::Concat { .. } | Op::Transpose { .. } | Op::Shard { .. }) => op.clone(),
            _ => return None,
        };
        map.push(out.add(op, &operands, BTreeSet::new()).ok()?);
    }
    for output in graph.outputs() {
        out.output(&output.name, output.kind.clone(), Value { node: map[output.value.node.index()], ..output.value });
    }
    Some(out)
}

/// The part of `graph` that `value` depends on, with `value` as its one result `name`.
fn slice(graph: &Graph, value: Value, name: &str) -> Result<Graph, String> {
    let mut wanted = BTreeSet::new();
    let mut stack = vec![value.node];
    while let Some(id) = stack.pop() {
        if wanted.insert(id) {
            stack.extend(graph.node(id).operands.iter().map(|v| v.node));
        }
    }
    let mut out = Graph::new("static");
    let mut map = BTreeMap::new();
    for id in wanted {
        let node = graph.node(id);
        let operand = |v: &Value| Some(Value { node: *map.get(&v.node)?, ..*v });
        let operands: Vec<Value> = node.operands.iter().filter_map(operand).collect();
        map.insert(id, out.add(node.op.clone(), &operands, BTreeSet::new()).map_err(|e| e.to_string())?);
    }
    let node = map.get(&value.node).copied().ok_or("it depends on itself")?;
    out.output(name, OutputKind::Result, Value { node, ..value });
    Ok(out)
}

impl Statics for Collector<'_> {
    fn weight(&mut self, name: &str) -> Result<u32, String> {
        if let Some(index) = self.weights.get(name) {
            return Ok(*index);
        }
        self.checkpoint.tensor(name).ok_or_else(|| format!("there is no tensor `{name}`"))?;
        let index = self.push(Entry::Weight(name.to_owned()))?;
        self.weights.insert(name.to_owned(), index);
        Ok(index)
    }

    fn computed(&mut self, graph: &Graph, value: Value) -> Result<u32, String> {
        let part = slice(graph, value, "value")?;
        let key = text::print(&part);
        if let Some(index) = self.computed.get(&key) {
            return Ok(*index);
        }
        let ty = graph.type_of(value);
        let mut shape = ty.constant_shape().ok_or_else(|| format!("{ty} has a symbolic shape"))?;
        if by_rank(graph, value) {
            // All ranks' values, one after the other.
            let first =
                shape.first_mut().ok_or_else(|| format!("{ty} differs from rank to rank; a dim is expected"))?;
            *first *= u64::from(graph.world());
        }
        let bytes = Arc::new(self.evaluate(&part, "value")?);
        let path = graph.node(value.node).sources.first().map_or("constant", |s| s);
        let name = format!("{path}#{}", self.computed.len());
        let index = self.push(Entry::Computed { name, dtype: ty.dtype, shape, bytes })?;
        self.computed.insert(key, index);
        Ok(index)
    }
}

/// What [`Collector::finish`] gives.
pub struct Collected<'a> {
    /// For the manifest and the registry.
    pub model: ModelWeights,
    /// The artifact's section of constants.
    pub constants: Vec<u8>,
    bytes: Vec<Cow<'a, [u8]>>,
}

impl TensorSource for Collected<'_> {
    fn tensor(&self, index: u32) -> weldment_runtime::Result<&[u8]> {
        let missing = || weldment_runtime::Error::Weights(format!("tensor {index} is not listed"));
        self.bytes.get(index as usize).map(|b| &**b).ok_or_else(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::graph::random;
    use std::path::Path;

    #[test]
    fn parts_of_blocks_keep_their_bytes() {
        // Of q4_k there is no encoder.
        let graph = "graph @g () {
            %0 = weight {name: \"a\", dtype: q4_k, shape: [4, 512]} @ \"a\"
            %1 = slice(%0) {axis: 1, start: 256, end: 512} @ \"columns\"
            %2 = slice(%1) {axis: 0, start: 1, end: 3} @ \"rows\"
            output result \"y\" = %2
        }";
        let graph = text::parse(graph).unwrap();
        let checkpoint = random(std::slice::from_ref(&graph), Path::new("g.wir"), 1).unwrap();
        let mut collector = Collector::new(&checkpoint);
        let index = collector.computed(&graph, graph.outputs()[0].value).unwrap();
        let whole = checkpoint.tensor("a").unwrap().bytes().into_owned();
        let blocks: Vec<&[u8]> = whole.chunks(DType::Q4K.block_bytes()).collect();
        match &collector.entries[index as usize] {
            Entry::Computed { bytes, .. } => assert_eq!(**bytes, [blocks[3], blocks[5]].concat()),
            Entry::Weight(name) => panic!("{name} as it is"),
        }
    }
}
