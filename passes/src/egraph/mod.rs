//! Equality saturation: the language, the facts, and the loop that applies rules.

mod facts;
mod language;
mod saturate;
mod term;

pub use facts::{Data, Facts, LeafFacts, Net, ValueFacts, typed_op};
pub use language::{ENode, Head, PatternError};
pub use saturate::{Limits, Log, NearMiss, saturate};
pub use term::{Refused, Term};
