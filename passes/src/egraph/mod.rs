//! Equality saturation: the language, the facts, and the loop that applies rules.

mod facts;
mod language;
mod provenance;
mod saturate;
mod term;

pub use facts::{Data, Facts, LeafFacts, Net, ValueFacts, typed_op};
pub use language::{ENode, Head, PatternError};
pub(crate) use saturate::sides;
pub use saturate::{Limits, Log, saturate};
pub use term::{Refused, Term};
