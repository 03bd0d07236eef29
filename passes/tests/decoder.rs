//! The whole pipeline on a decoder: what must fuse, equality with the graph before, stamping against saturating whole.

mod support;

use support::{Decoder, TINY, assert_ring_equal, count, f64_error, listing, optimise, policy};
use weldment_ir::DType;
use weldment_ir::interpret::Options as Interpret;
use weldment_passes::{Numerics, Options};

#[test]
fn f32_decoder_fuses_everything() {
    let graph = TINY.build();
    let out = optimise(&graph, &policy(Numerics::Reassoc));
    println!("{}\n{}", out.report, listing(&out.graph));
    let (g, layers) = (&out.graph, TINY.layers as usize);
    assert_eq!(count(g, "matmul"), layers + 1, "one qkv a layer, and lm_head");
    assert_eq!(count(g, "matmul_add"), 2 * layers);
    assert_eq!(count(g, "matmul_silu_mul"), layers);
    assert_eq!(count(g, "rope_cache_write"), layers);
    assert_eq!(count(g, "add") + count(g, "silu") + count(g, "mul"), 0);
    for fusion in ["add_rms_norm", "merged_qkv", "merged_gate_up", "silu_mul", "rope_cache_write", "matmul_epilogue"] {
        out.report.require(&format!("{fusion}=all")).unwrap_or_else(|e| panic!("{e}"));
    }
    assert!(out.report.require("merged_qkv=4").is_err());
    assert_ring_equal(&graph, &out.graph, false, 3);
    assert!(f64_error(&graph, &out.graph, &Interpret::default(), 2) < 1e-12);
}

#[test]
fn quantised_decoder_uses_int8_through_every_border() {
    let graph =
        Decoder { weights: DType::Q4_1, v_weights: DType::Q4_1, hidden: 256, heads: 4, inner: 256, vocab: 512, ..TINY }
            .build();
    let out = optimise(&graph, &Options::default());
    println!("{}\n{}", out.report, listing(&out.graph));
    assert_eq!(out.report.policy, "approx");
    out.report.require("int8_activations=all").unwrap_or_else(|e| panic!("{e}"));
    out.report.require("merged_qkv=all").unwrap_or_else(|e| panic!("{e}"));
    // With q8a rounding as identity the graphs are the same function.
    assert_ring_equal(&graph, &out.graph, true, 2);
}

#[test]
fn stamping_equals_the_whole_graph() {
    for config in [
        TINY,
        Decoder {
            weights: DType::Q4_1,
            v_weights: DType::Q6K,
            hidden: 256,
            heads: 4,
            inner: 256,
            qkv_bias: true,
            ..TINY
        },
    ] {
        let graph = config.build();
        let stamped = optimise(&graph, &Options::default());
        let whole = optimise(&graph, &Options { unit_stamping: false, ..Options::default() });
        let (a, b) = (listing_sorted(&stamped.graph), listing_sorted(&whole.graph));
        let only =
            |x: &[String], y: &[String]| x.iter().filter(|l| !y.contains(l)).cloned().collect::<Vec<_>>().join("\n");
        assert!(a == b, "stamped:\n{}\nwhole:\n{}", only(&a, &b), only(&b, &a));
        assert_eq!(stamped.report.groups, whole.report.groups);
    }
}

/// Ops with operands named by content, so that node order does not matter.
fn listing_sorted(graph: &weldment_ir::Graph) -> Vec<String> {
    let mut text: Vec<String> = Vec::new();
    for id in graph.ids() {
        let n = graph.node(id);
        let operands: Vec<String> =
            n.operands.iter().map(|v| format!("{}.{}", name(graph, v.node), v.result)).collect();
        text.push(format!("{:?} {operands:?} {:?}", n.op, n.sources));
    }
    text.sort();
    text
}

fn name(graph: &weldment_ir::Graph, id: weldment_ir::NodeId) -> String {
    let n = graph.node(id);
    format!("{} {:?}", n.op.kind(), n.sources)
}

#[test]
fn the_same_input_gives_the_same_output() {
    let graph = TINY.build();
    let (a, b) = (optimise(&graph, &Options::default()), optimise(&graph, &Options::default()));
    assert_eq!(listing(&a.graph), listing(&b.graph));
    assert_eq!(a.report, b.report);
}

#[test]
fn biases_and_head_norms_and_mixed_weights() {
    let graph = Decoder { qkv_bias: true, qk_norm: true, weights: DType::Q4_1, v_weights: DType::Q8_0, ..TINY }.build();
    let out = optimise(&graph, &policy(Numerics::Approx));
    println!("{}\n{}", out.report, listing(&out.graph));
    let group = out.report.group("merged_qkv").expect("a known group");
    assert_eq!(group.fused(), 0);
    assert!(group.to_string().contains("same weight dtype and depth"), "{group}");
    assert_ring_equal(&graph, &out.graph, true, 2);
}
