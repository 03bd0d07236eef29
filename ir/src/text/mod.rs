//! Text IR (`.wir`): print, read, edit and print again without loss.
//!
//! ```text
//! graph @step (T: 1..512 tokens) {
//!   %0 = input {name: "x", dtype: f32, shape: [T, 64]} : f32[T, 64] @ "embed"
//!   %1 = weight {name: "w", dtype: f32, shape: [64]} : f32[64]
//!   %2:2 = add_rms_norm(%0, %0, %1) {eps: 1e-6, dtype: f32} : f32[T, 64], f32[T, 64] @ "layers.0.norm", "layers.0.add"
//!   output result "y" = %2.1
//! }
//! ```
//!
//! * A symbol's range is inclusive. What it counts may follow ([`weldment_artifact::SymbolRole`]): `N: 1..64 pool(16), P: 1..8 blocks(N)`;
//!   what an input holds is its attribute `role` ([`weldment_artifact::InputRole`]). A file may hold several graphs: entries of one artifact.
//! * A value is a number or a word after `%`; `.1` picks a result of a node that has several.
//! * Types after `:` may be left out; where present they are checked. `%2:2`, the number of results, likewise.
//! * Source paths follow `@`. A graph name that is not a word is quoted.
//! * `#` and `;` start a comment that ends with the line. Line breaks are spaces.
//! * Operand, attribute and result names are those of the op table (docs/ops.md); every attribute but `role` is required, in any order.

mod lexer;
mod parser;
mod printer;
#[cfg(test)]
mod tests;

pub use parser::{MAX_NODES, MAX_TEXT, parse, parse_all};
pub use printer::print;

/// True if `name` can stand unquoted: a letter or `_`, then letters, digits and `_`.
pub fn is_word(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(is_word_char)
}

fn is_word_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}
