//! Sharded graphs are what they were made from, on every rank; what does not divide is named.

mod support;

use std::collections::BTreeSet;
use support::ranks::{assert_equal_on, assert_ranks_equal, steps_error};
use support::{Build, Decoder, TINY, count, listing, optimise};
use weldment_ir::interpret::Options as Interpret;
use weldment_ir::{DType, Dim, Graph, Op, Real, Value, generate};
use weldment_passes::buffer::{AnyStrides, bufferise};
use weldment_passes::shard::shard;
use weldment_passes::{Numerics, Options, PassError};

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
                assert_eq!(
                    count(&out.graph, "all_reduce") + count(&out.graph, "rms_norm"),
                    if config.qk_norm { 4 } else { 0 }
                );
                // Roundings that the policy lets move are left out.
                assert_ranks_equal(&whole, &out.graph, dtype == DType::BF16, 1);
            }
        }
    }
}

/// A gated MLP whose weights are FP8 codes with scales of `rows` x `columns` blocks, and activations in groups.
fn fp8_mlp(hidden: u64, inner: u64, [rows, columns]: [u64; 2], group: u64) -> Graph {
    let mut b = Build::new("fp8");
    b.graph.declare_symbol("T", 1, 8);
    let x = b.input("x", DType::F32, vec![Dim::sym("T"), Dim::Const(hidden)]);
    let product = |b: &mut Build, path: &str, x, [n, k]: [u64; 2]| {
        let (rows, columns, group) = (rows.min(n), columns.min(k), group.min(k));
        let w = b.weight(&format!("{path}.weight"), DType::F8E4M3, &[n, k]);
        let scales = b.weight(&format!("{path}.scales"), DType::F32, &[n.div_ceil(rows), k / columns]);
        let codes = b.push(path, Op::Quantise { dtype: DType::F8E4M3, group: group as i64 }, &[x]);
        let op = Op::ScaledMatmul { rows: rows as i64, columns: columns as i64, dtype: DType::F32 };
        b.push(path, op, &[codes, Value { result: 1, ..codes }, w, scales])
    };
    let gate = product(&mut b, "gate_proj", x, [inner, hidden]);
    let up = product(&mut b, "up_proj", x, [inner, hidden]);
    let active = b.push("act_fn", Op::Silu {}, &[gate]);
    let both = b.push("product", Op::Mul {}, &[active, up]);
    let down = product(&mut b, "down_proj", both, [hidden, inner]);
    let sum = b.push("residual", Op::Add {}, &[down, x]);
    b.result("out", sum);
    b.graph
}

#[test]
fn products_of_codes_are_cut_with_their_scales() {
    const ALL: u64 = u64::MAX;
    // A scale a tensor, a channel, a block; activations a token, a group.
    for (blocks, group) in [([ALL, ALL], ALL), ([1, ALL], ALL), ([16, 32], 32), ([16, 16], ALL)] {
        let whole = fp8_mlp(64, 128, blocks, group);
        for world in [2, 4] {
            let sharded = shard(&whole, world).unwrap_or_else(|e| panic!("{blocks:?} on {world}: {e}"));
            assert_eq!((count(&sharded, "all_reduce"), count(&sharded, "all_gather")), (1, 0), "{}", listing(&sharded));
            // Codes and scales of a part are those of the whole but where a row is one group.
            assert_ranks_equal(&whole, &sharded, true, 3);
            assert_eq!(
                count(&sharded, "shard"),
                3 + if blocks[0] == ALL { 0 } else { 2 } + usize::from(blocks[1] != ALL)
            );
        }
    }
    let error =
        |hidden, inner, blocks, group| shard(&fp8_mlp(hidden, inner, blocks, group), 4).unwrap_err().to_string();
    assert_eq!(
        error(64, 96, [16, ALL], ALL),
        "gate_proj: axis 0 of f8e4m3[96, 64] in 4 parts, with a scale for every 16; a multiple of 64 is accepted"
    );
    assert_eq!(
        error(64, 96, [ALL, ALL], 32),
        "down_proj: rows of 96 in 4 parts, quantised in groups of 32; a multiple of 128 is accepted"
    );
}

#[test]
fn what_does_not_divide_is_named() {
    let error = |config: Decoder, world| shard(&config.build(), world).unwrap_err().to_string();
    let cases = [
        (
            Decoder { heads: 9, kv_heads: 3, hidden: 72, ..HEADS8 },
            2,
            "layers.0.self_attn.q_proj: axis 1 of f32[T, 9, 8] in 2 parts",
        ),
        (Decoder { kv_heads: 2, ..HEADS8 }, 3, "embed_tokens: axis 0 of f32[40, 64] in 3 parts"),
        (Decoder { kv_heads: 2, vocab: 42, ..HEADS8 }, 3, "layers.0.self_attn.q_proj: axis 1 of f32[T, 64] in 3 parts"),
        (Decoder { heads: 4, kv_heads: 4, ..HEADS8 }, 8, "layers.0.self_attn.q_proj: 4 parts for 8 ranks"),
        (Decoder { inner: 100, ..HEADS8 }, 8, "layers.0.mlp.gate_proj: axis 1 of f32[T, 100] in 8 parts"),
        (Decoder { vocab: 42, ..HEADS8 }, 4, "embed_tokens: axis 0 of f32[42, 64] in 4 parts"),
        // Columns are cut between the blocks of a format.
        (
            Decoder { weights: DType::Q8_0, v_weights: DType::Q8_0, inner: 128, ..HEADS8 },
            8,
            "layers.0.self_attn.o_proj: axis 1 of q8_0[64, 64] in 8 parts at whole blocks of 32, for 8 ranks; a multiple of 256 is accepted",
        ),
        (HEADS8, 65, "step: 65 ranks; 1 to 64 are accepted"),
        (HEADS8, 0, "step: 0 ranks"),
    ];
    for (config, world, expected) in cases {
        let found = error(config, world);
        assert!(found.starts_with(expected), "{found}\n    {expected}");
    }
    let twice = shard(&shard(&HEADS8.build(), 2).unwrap(), 2).unwrap_err().to_string();
    assert!(twice.starts_with("embed_tokens: shard; a graph of one rank"), "{twice}");
    assert_eq!(listing(&shard(&HEADS8.build(), 1).unwrap()), listing(&HEADS8.build()));
}

/// What would only have to be gathered again is not split, and ops without a split form read whole operands.
#[test]
fn splits_that_do_not_pay_are_not_made() {
    let mut b = Build::new("g");
    b.graph.declare_symbol("T", 1, 8);
    let x = b.input("x", DType::F32, vec![Dim::sym("T"), Dim::Const(16)]);
    let matmul = |b: &mut Build, path: &str, x, [n, k]: [u64; 2]| {
        let w = b.weight(&format!("{path}.weight"), DType::F32, &[n, k]);
        b.push(path, Op::Matmul { dtype: DType::F32 }, &[x, w])
    };
    // Softmax over the split axis; a norm over it; a whole value of the step added to it.
    let router = matmul(&mut b, "router", x, [8, 16]);
    let shares = b.push("shares", Op::Softmax {}, &[router]);
    b.result("shares", shares);
    let wide = matmul(&mut b, "wide", x, [16, 16]);
    let sum = b.push("sum", Op::Add {}, &[wide, x]);
    b.result("sum", sum);
    let w = b.weight("norm", DType::F32, &[32]);
    let narrow = matmul(&mut b, "narrow", sum, [32, 16]);
    let normed = b.push("normed", Op::RmsNorm { eps: Real(1e-5), dtype: DType::F32 }, &[narrow, w]);
    let back = matmul(&mut b, "back", normed, [32, 32]);
    let out = b.push("tanh", Op::Tanh {}, &[back]);
    b.result("out", out);
    let sharded = shard(&b.graph, 4).unwrap();
    let gathers: Vec<String> = sharded
        .ids()
        .filter(|id| sharded.node(*id).op.kind().info().name == "all_gather")
        .map(|id| sharded.node(id).sources.iter().map(ToString::to_string).collect())
        .collect();
    assert_eq!(gathers, ["tanh"], "{}", listing(&sharded));
    assert_eq!((count(&sharded, "shard"), count(&sharded, "all_reduce")), (1, 0), "{}", listing(&sharded));
    assert_ranks_equal(&b.graph, &sharded, false, 3);
}

/// A bias after a row-parallel product is added by one rank, before the sum over ranks.
#[test]
fn a_bias_of_a_row_parallel_product_is_added_once() {
    let mut b = Build::new("g");
    b.graph.declare_symbol("T", 1, 8);
    let x = b.input("x", DType::F32, vec![Dim::sym("T"), Dim::Const(16)]);
    let up = b.weight("up", DType::F32, &[32, 16]);
    let (down, bias) = (b.weight("down", DType::F32, &[16, 32]), b.weight("bias", DType::F32, &[16]));
    let wide = b.push("wide", Op::Matmul { dtype: DType::F32 }, &[x, up]);
    let active = b.push("act_fn", Op::Silu {}, &[wide]);
    let narrow = b.push("narrow", Op::Matmul { dtype: DType::F32 }, &[active, down]);
    let sum = b.push("biased", Op::Add {}, &[bias, narrow]);
    let sum = b.push("residual", Op::Add {}, &[sum, x]);
    let w = b.weight("norm", DType::F32, &[16]);
    let out = b.push("normed", Op::RmsNorm { eps: Real(1e-5), dtype: DType::F32 }, &[sum, w]);
    b.result("out", out);
    for world in [2, 4] {
        let sharded = shard(&b.graph, world).unwrap();
        assert_ranks_equal(&b.graph, &sharded, false, 3);
        let fused = optimise(&sharded, &Options::default());
        fused.report.require("allreduce_rms_norm=1").unwrap_or_else(|e| panic!("{e}\n{}", listing(&fused.graph)));
        assert_eq!(count(&fused.graph, "matmul_add"), 1, "{}", listing(&fused.graph));
        assert_ranks_equal(&b.graph, &fused.graph, false, 3);
    }
}

/// Random graphs: most of their ops have no split form, and those have to stay whole.
#[test]
fn random_graphs_are_themselves_on_every_rank() {
    let (mut sharded_graphs, mut refused) = (0, 0);
    for seed in 0..600 {
        let whole = generate::random_graph(seed, 24).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let world = [2, 4][seed as usize % 2];
        let sharded = match shard(&whole, world) {
            Ok(sharded) => sharded,
            Err(PassError::Shard { .. }) => {
                refused += 1;
                continue;
            }
            Err(e) => panic!("seed {seed}: {e}"),
        };
        let parts = sharded.ids().filter(|id| sharded.node(*id).op.world().is_some()).count();
        if parts == 0 {
            continue;
        }
        sharded_graphs += 1;
        let dims = generate::random_dims(&whole, seed);
        let bind = generate::random_bindings(&whole, &dims, seed).unwrap();
        let ideal = Interpret::ideal();
        let drawn = assert_equal_on(&whole, &sharded, &dims, &bind, &ideal);
        // The ring knows silu by name alone.
        let options = Options { disabled: BTreeSet::from(["silu_mul".to_owned()]), ..Options::default() };
        let fused = optimise(&sharded, &options).graph;
        assert_eq!(assert_equal_on(&whole, &fused, &dims, &bind, &ideal), drawn, "seed {seed}");
        // The plan's own check sees to the order of collectives.
        bufferise(&fused, &AnyStrides).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    println!("{sharded_graphs} sharded, {refused} do not divide");
    assert!(sharded_graphs > 60, "{sharded_graphs}");
}
