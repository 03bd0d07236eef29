//! The arena and the paged KV cache.

mod paged;

pub use paged::{BlockPool, Sequence};
