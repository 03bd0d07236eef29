//! Sharded graphs are what they were made from, on every rank; what does not divide is named.

mod support;

use support::ranks::{assert_ranks_equal, steps_error};
use support::{Build, Decoder, TINY, count, listing};
use weldment_ir::{DType, Dim, Op, Real};
use weldment_passes::shard::shard;

const HEADS8: Decoder = Decoder { heads: 8, kv_heads: 8, hidden: 64, inner: 96, layers: 2, ..TINY };

fn decoders() -> Vec<(&'static str, Decoder)> {
    let grouped = Decoder { kv_heads: 2, ..HEADS8 };
    vec![
        ("llama", HEADS8),
        ("llama, 2 KV heads", grouped),
        ("qwen2", Decoder { qkv_bias: true, ..grouped }),
        ("qwen3", Decoder { qk_norm: true, ..grouped }),
        ("qwen3, 8 KV heads", Decoder { qk_norm: true, ..HEADS8 }),
        ("one KV head", Decoder { kv_heads: 1, ..HEADS8 }),
    ]
}

#[test]
fn decoders_are_themselves_on_2_4_and_8_ranks() {
    for (name, config) in decoders() {
        let whole = config.build();
        for world in [2, 4, 8] {
            let sharded = shard(&whole, world).unwrap_or_else(|e| panic!("{name} on {world}: {e}"));
            println!("{name} on {world}\n{}", listing(&sharded));
            let layers = config.layers as usize;
            assert_eq!(count(&sharded, "all_reduce"), 2 * layers + 1, "{name} on {world}");
            assert_eq!((count(&sharded, "gather_part"), count(&sharded, "all_gather")), (1, 1), "{name} on {world}");
            // Seven weights a layer, three biases, one table for the embedding and the head.
            let weights = if config.qkv_bias { 10 } else { 7 } - if config.kv_heads == 1 { 2 } else { 0 };
            assert_eq!(count(&sharded, "shard"), weights * layers + 1, "{name} on {world}");
            assert_ranks_equal(&whole, &sharded, false, 2);
            let apart = steps_error(&whole, &sharded, 4);
            assert!(apart < 1e-12, "{name} on {world}: {apart}");
        }
    }
}
