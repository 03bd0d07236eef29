//! The dims block: the value of every symbol for one step.

use crate::artifact::limits::MAX_SYMBOLS;
use crate::artifact::{Manifest, Symbol, SymbolRole};
use crate::error::{Error, Result};

/// Values of the manifest's symbols, in its order.
#[derive(Clone, Copy, Debug)]
pub struct Dims {
    values: [i64; MAX_SYMBOLS],
    count: usize,
}

impl Dims {
    /// Every symbol at its smallest value.
    pub fn new(symbols: &[Symbol]) -> Dims {
        let mut values = [0; MAX_SYMBOLS];
        for (value, symbol) in values.iter_mut().zip(symbols) {
            *value = symbol.min as i64;
        }
        Dims { values, count: symbols.len().min(MAX_SYMBOLS) }
    }

    /// Sets the symbol of a role like this one, if the manifest has it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming symbol, value and compiled range if it is outside.
    pub fn set(&mut self, manifest: &Manifest, role: &SymbolRole, value: usize) -> Result<()> {
        let Some((index, _)) = manifest.symbol_of(role) else { return Ok(()) };
        self.set_index(manifest, index, value as u64)
    }

    /// Sets symbol `index` of the manifest.
    ///
    /// # Errors
    /// As [`Dims::set`].
    pub fn set_index(&mut self, manifest: &Manifest, index: usize, value: u64) -> Result<()> {
        let (Some(symbol), Some(slot)) = (manifest.symbols.get(index), self.values.get_mut(index)) else {
            return Ok(());
        };
        if value < symbol.min || value > symbol.max {
            return Err(outside(symbol, value));
        }
        *slot = value as i64;
        Ok(())
    }

    /// The values.
    pub fn values(&self) -> &[i64] {
        &self.values[..self.count]
    }

    /// The value of symbol `index`; 0 if there is none.
    pub fn get(&self, index: usize) -> i64 {
        self.values().get(index).copied().unwrap_or(0)
    }
}

fn outside(symbol: &Symbol, value: u64) -> Error {
    let (name, meaning) = (&symbol.name, symbol.role.meaning());
    let range = format!("{}..={}", symbol.min, symbol.max);
    Error::InvalidInput(format!("{name} = {value} is outside the compiled range {range} ({meaning})"))
}
