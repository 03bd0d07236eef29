//! Attention's neighbours: rope and cache writes.

use super::{Rule, rule};

pub(super) fn rules() -> Vec<Rule> {
    vec![rule! {
        /// Rotated keys go straight into the cache.
        rope_cache_write [Bitwise, rope_cache_write]:
            (cache_write ?cache (rope ?x ?positions ?table ?interleaved) ?positions ?ids ?blocks ?transposed)
            => (rope_cache_write ?cache ?x ?positions ?table ?ids ?blocks ?interleaved ?transposed)
    }]
}
