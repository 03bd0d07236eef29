//! A step of one sequence, as an entry's roles ask for it.

use super::CompileError;
use std::collections::BTreeMap;
use weldment_artifact::{InputRole, SymbolRole};
use weldment_ir::interpret::{Binding, Bindings};
use weldment_ir::{Graph, Op};

/// Sizes and numbers of a step that appends to one sequence whose blocks are the first of the pool.
#[derive(Clone, Copy, Debug)]
pub struct OneSequence {
    /// First position.
    pub first: usize,
    /// Tokens.
    pub count: usize,
    /// Blocks of the pool.
    pub blocks: usize,
    /// Positions of a block.
    pub block_positions: usize,
}

impl OneSequence {
    /// Blocks that the sequence has after the step.
    pub fn used(&self) -> usize {
        (self.first + self.count).div_ceil(self.block_positions.max(1)).max(1)
    }

    /// Values of a graph's symbols.
    ///
    /// # Errors
    /// If a symbol has neither a role nor one value.
    pub fn dims(&self, graph: &Graph) -> Result<BTreeMap<String, u64>, CompileError> {
        let value = |(name, range): (&std::sync::Arc<str>, &weldment_ir::Range)| {
            let value = match graph.role(name) {
                SymbolRole::Tokens | SymbolRole::LogitRows => self.count,
                SymbolRole::Sequences => 1,
                SymbolRole::Blocks(_) => self.used(),
                SymbolRole::Pool(_) => self.blocks,
                SymbolRole::Context => self.first + self.count,
                SymbolRole::Plain if range.min == range.max => range.min as usize,
                SymbolRole::Plain => {
                    let message = format!("{name}: no role says what it is in a step; declare one (docs/embedding.md)");
                    return Err(CompileError::option(graph.name.clone(), message));
                }
            };
            Ok((name.to_string(), value as u64))
        };
        graph.symbols().iter().map(value).collect()
    }

    /// Binds a graph's inputs to a step of `tokens`.
    ///
    /// # Errors
    /// If an input has no role.
    pub fn bind(&self, graph: &Graph, tokens: &[u32], bindings: &mut Bindings) -> Result<(), CompileError> {
        let row = |values: Vec<i64>| Binding::ints(&[values.len()], values);
        for id in graph.ids() {
            let Op::Input { name, role, .. } = &graph.node(id).op else { continue };
            let held = match role {
                InputRole::Tokens => row(tokens.iter().map(|t| i64::from(*t)).collect()),
                InputRole::Positions => row((self.first..self.first + self.count).map(|p| p as i64).collect()),
                InputRole::Sequences => row(vec![0; self.count]),
                InputRole::Blocks => Binding::ints(&[1, self.used()], (0..self.used() as i64).collect()),
                InputRole::LogitRows => row((0..self.count as i64).collect()),
                InputRole::Plain => {
                    let message = format!("input {name} has no role in a step; declare one (docs/embedding.md)");
                    return Err(CompileError::option(graph.name.clone(), message));
                }
            };
            bindings.insert(name, held);
        }
        Ok(())
    }
}

/// Positions of a block of a graph's pool; 1 without one.
pub fn block_positions(graph: &Graph) -> usize {
    match graph.symbol_of(&SymbolRole::POOL).map(|(name, _)| graph.role(name)) {
        Some(SymbolRole::Pool(positions)) => *positions as usize,
        _ => 1,
    }
}
