//! Sharded graphs are what they were made from, on every rank; what does not divide is named.

mod support;

use support::ranks::{assert_ranks_equal, steps_error};
use support::{Decoder, TINY, count, listing, optimise};
use weldment_ir::DType;
use weldment_passes::Numerics;
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

#[test]
fn every_all_reduce_of_a_decoder_is_fused() {
    for (name, config) in decoders() {
        for (dtype, policy) in [(DType::F32, Numerics::Bitwise), (DType::BF16, Numerics::Rounding)] {
            let config = Decoder { dtype, ..config };
            let whole = config.build();
            for world in [2, 4, 8] {
                let sharded = shard(&whole, world).unwrap_or_else(|e| panic!("{name} on {world}: {e}"));
                let out = optimise(&sharded, &support::policy(policy));
                println!("{name} on {world}\n{}\n{}", out.report, listing(&out.graph));
                let all = 2 * config.layers + 1;
                let line = format!("allreduce_rms_norm={all}");
                out.report.require(&line).unwrap_or_else(|e| panic!("{name} on {world}: {e}"));
                out.report.require("allreduce_rms_norm=all").unwrap_or_else(|e| panic!("{name} on {world}: {e}"));
                assert_eq!(count(&out.graph, "all_reduce_add_rms_norm") as u64, all - 1);
                assert_eq!(count(&out.graph, "all_reduce_rms_norm"), 1, "the embedding's");
                assert_eq!(count(&out.graph, "all_reduce") + count(&out.graph, "rms_norm"), if config.qk_norm { 4 } else { 0 });
                // Roundings that the policy lets move are left out.
                assert_ranks_equal(&whole, &out.graph, dtype == DType::BF16, 1);
            }
        }
    }
}
