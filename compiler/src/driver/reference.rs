//! One sequence of a model in the f64 reference interpreter: what an artifact's logits are compared with.

use super::one_sequence::{OneSequence, block_positions};
use super::{CompileError, shard_graph};
use crate::checkpoint::{Checkpoint, build_step};
use crate::models::{KV_BLOCK, StepOptions};
use weldment_artifact::SymbolRole;
use weldment_ir::interpret::{Binding, Bindings, F64, Options, interpret_ranks};
use weldment_ir::{DType, Dim, Graph, IrError, Op, OutputKind};

/// A graph, its weights, and the caches of one sequence.
#[derive(Debug)]
pub struct Reference {
    graph: Graph,
    bindings: Bindings,
    /// (state name, shape with the pool's size).
    states: Vec<(String, Vec<usize>)>,
    blocks: u64,
    position: usize,
}

impl Reference {
    /// A sequence of up to `max_tokens` positions of the model itself, unfused.
    ///
    /// # Errors
    /// As [`build_step`].
    pub fn of_model(checkpoint: &Checkpoint, dtype: DType, max_tokens: usize) -> Result<Reference, CompileError> {
        Reference::of_ranks(checkpoint, dtype, max_tokens, 1)
    }

    /// The same, computed by `tp` ranks.
    ///
    /// # Errors
    /// As [`build_step`] and [`shard_graph`].
    pub fn of_ranks(
        checkpoint: &Checkpoint,
        dtype: DType,
        max_tokens: usize,
        tp: u32,
    ) -> Result<Reference, CompileError> {
        let max = max_tokens.max(1) as u64;
        let options = StepOptions { dtype, max_tokens: max, max_seqs: 1, max_seq_len: max, kv_block: KV_BLOCK };
        Reference::of_graph(shard_graph(build_step(checkpoint, &options)?, tp)?, checkpoint)
    }

    /// The same for any graph of the entry `step`.
    ///
    /// # Errors
    /// If the graph needs a weight that the checkpoint lacks, or has an inner symbolic dim in a state.
    pub fn of_graph(graph: Graph, checkpoint: &Checkpoint) -> Result<Reference, CompileError> {
        let max = |role: &SymbolRole| graph.symbol_of(role).map_or(1, |(_, range)| range.max);
        let blocks = max(&SymbolRole::BLOCKS).min(max(&SymbolRole::POOL));
        let mut bindings = Bindings::new();
        let mut states = Vec::new();
        let broken = |path: &str, message: String| IrError::InvalidGraph { path: path.to_owned(), message };
        for id in graph.ids() {
            match &graph.node(id).op {
                Op::Weight { name, dtype, shape } => {
                    let shape: Option<Vec<usize>> =
                        shape.iter().map(|d| d.constant().and_then(|n| usize::try_from(n).ok())).collect();
                    let shape = shape.ok_or_else(|| broken(name, "a weight of symbolic shape".into()))?;
                    let bytes = checkpoint.shared_bytes(name);
                    let bytes = bytes.ok_or_else(|| broken(name, "there is no tensor of this name".into()))?;
                    bindings.insert(name, Binding::encoded(&shape, *dtype, bytes));
                }
                Op::State { name, shape, .. } => {
                    let size = |d: &Dim| match d {
                        Dim::Const(n) => usize::try_from(*n).ok(),
                        Dim::Sym(s) => graph.role(s).is_like(&SymbolRole::POOL).then_some(blocks as usize),
                    };
                    let shape: Option<Vec<usize>> = shape.iter().map(size).collect();
                    let shape =
                        shape.ok_or_else(|| broken(name, "a state with a symbolic dim that counts no pool".into()))?;
                    let count: Option<usize> = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
                    let count = count.ok_or_else(|| broken(name, "a state too large for memory".into()))?;
                    bindings.insert(name, Binding::f64(&shape, vec![0.0; count]));
                    states.push((name.to_string(), shape));
                }
                _ => {}
            }
        }
        Ok(Reference { graph, bindings, states, blocks, position: 0 })
    }

    /// Feeds `tokens`; the logits [tokens, vocab] of all of them, row-major.
    ///
    /// # Errors
    /// If a token is outside the vocabulary or the sequence is full; the error names the node.
    pub fn step(&mut self, tokens: &[u32]) -> Result<Vec<f64>, CompileError> {
        let count = tokens.len();
        let step = OneSequence {
            first: self.position,
            count,
            blocks: self.blocks as usize,
            block_positions: block_positions(&self.graph),
        };
        step.bind(&self.graph, tokens, &mut self.bindings)?;
        let dims = step.dims(&self.graph)?;
        let mut ranks = interpret_ranks::<F64>(&self.graph, &dims, &self.bindings, &Options::default())?;
        let world = ranks.len();
        for (name, shape) in &self.states {
            for (rank, outputs) in ranks.iter_mut().enumerate() {
                let Some(state) = outputs.swap_remove(name) else { continue };
                let state = Binding::f64(shape, state.as_values().unwrap_or(&[]).to_vec());
                match world {
                    1 => self.bindings.insert(name, state),
                    _ => self.bindings.insert_on_rank(name, rank, state),
                }
            }
        }
        let outputs = ranks.first_mut();
        self.position += count;
        let result = self.graph.outputs().iter().find(|o| o.kind == OutputKind::Result).map(|o| o.name.to_string());
        let logits = outputs.zip(result).and_then(|(outputs, name)| outputs.swap_remove(&name));
        let values = logits.as_ref().and_then(|t| t.as_values()).unwrap_or(&[]);
        Ok(values.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::WeightSource;
    use std::path::Path;

    #[test]
    fn a_prefill_and_single_steps_agree() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/llama");
        let checkpoint = Checkpoint::open(&path, WeightSource::Files).unwrap();
        let tokens: Vec<u32> = (0..20).map(|i| (i * 7) % 50).collect();
        let whole = Reference::of_model(&checkpoint, DType::F32, 32).unwrap().step(&tokens).unwrap();
        let mut sequence = Reference::of_model(&checkpoint, DType::F32, 32).unwrap();
        let single: Vec<f64> = tokens.iter().flat_map(|t| sequence.step(&[*t]).unwrap()).collect();
        assert_eq!(whole.len(), single.len());
        let apart = whole.iter().zip(&single).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < 1e-9, "{apart}");
    }
}
