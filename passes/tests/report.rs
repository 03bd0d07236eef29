//! The match report: coverage, reasons, switches, requirements, source-path lookup.

mod support;

use support::{Build, Decoder, TINY, assert_ring_equal, count, optimise, policy};
use weldment_ir::{DType, Dim, Graph, Op, OpKind, Real, TensorType};
use weldment_passes::egraph::Limits;
use weldment_passes::report::{Outcome, Reason, Report};
use weldment_passes::{Numerics, Options, PassError, ReferenceTarget, Refusal, TargetModel};

fn disabled(names: &[&str], p: Numerics) -> Options {
    Options { disabled: names.iter().map(|n| (*n).to_owned()).collect(), ..policy(p) }
}

fn reasons<'a>(report: &'a Report, group: &str) -> Vec<&'a Reason> {
    let anchors = &report.group(group).expect("a known group").anchors;
    anchors
        .iter()
        .filter_map(|a| match &a.outcome {
            Outcome::Kept { reason } => Some(reason),
            _ => None,
        })
        .collect()
}

#[test]
fn without_the_epilogue_the_add_joins_the_norm() {
    let graph = TINY.build();
    let out = optimise(&graph, &disabled(&["matmul_epilogue"], Numerics::Reassoc));
    // Each residual add but none of layer 0's first norm: it reads the embedding.
    assert_eq!(count(&out.graph, "add_rms_norm"), 2 * TINY.layers as usize);
    let group = out.report.group("add_rms_norm").expect("a known group");
    assert_eq!((group.fused(), group.anchors.len()), (6, 6));
    let why = reasons(&out.report, "matmul_epilogue");
    assert!(why.is_empty(), "the adds went elsewhere: {why:?}");
    assert_ring_equal(&graph, &out.graph, false, 2);
}

#[test]
fn policy_and_switches_are_reasons() {
    let graph = Decoder { weights: DType::Q4_1, v_weights: DType::Q4_1, ..TINY }.build();
    let out = optimise(&graph, &policy(Numerics::Reassoc));
    let why = reasons(&out.report, "int8_activations");
    assert_eq!(why.len(), 22);
    let text = "int8_activations is approx, the policy allows reassoc";
    assert_eq!(why.first(), Some(&&Reason::Barred { text: text.into() }));

    let out = optimise(&TINY.build(), &disabled(&["silu_mul", "merged_gate_up", "rope_cache_write"], Numerics::Approx));
    let why = reasons(&out.report, "silu_mul");
    assert_eq!(why.first(), Some(&&Reason::Barred { text: "switched off by --disable silu_mul".into() }));
    assert_eq!(count(&out.graph, "silu"), 3);
    assert!(out.report.to_string().contains("rope_cache_write: 3 places: 3 kept"), "{}", out.report);
    assert!(out.report.require("rope_cache_write=0").is_ok());
    assert!(matches!(out.report.require("silu_mul=all"), Err(PassError::Required { .. })));
    assert!(matches!(out.report.require("silu_mul"), Err(PassError::BadRequirement(_))));
    assert!(matches!(out.report.require("no_such=1"), Err(PassError::UnknownName { .. })));
}

#[test]
fn unknown_names_are_errors() {
    let target = ReferenceTarget::default();
    let found = weldment_passes::optimise(&TINY.build(), &target, &disabled(&["ad_rms_norm"], Numerics::Approx));
    assert!(matches!(found, Err(PassError::UnknownName { name, .. }) if name == "ad_rms_norm"));
}

#[test]
fn a_limit_leaves_the_best_form_so_far_and_a_line() {
    let graph = TINY.build();
    let full = optimise(&graph, &Options::default());
    assert!(full.report.limits().is_empty(), "{}", full.report);
    for (limits, text) in [
        (Limits { nodes_per_node: 0, nodes: 40, iterations: 40 }, "its limit of 40 e-nodes; "),
        (Limits { iterations: 1, ..Limits::default() }, "its limit of 1 iterations; "),
        (Limits { nodes_per_node: 0, nodes: 0, iterations: 0 }, "its limit of 0 e-nodes"),
    ] {
        let out = optimise(&graph, &Options { limits, ..Options::default() });
        assert!(out.report.to_string().contains(text), "{}", out.report);
        let lines = out.report.limits();
        assert!(lines.iter().all(|l| l.starts_with("saturation at ") && !l.contains("at  ")), "{lines:?}");
        assert!(weldment_passes::report::coverage(&[("step", &out.report)]).contains(&lines[0]));
        assert!(out.report.launches_after >= full.report.launches_after);
        assert_ring_equal(&graph, &out.graph, false, 2);
    }
}

#[test]
fn requirements_ask_for_places() {
    let report = optimise(&TINY.build(), &Options::default()).report;
    // A decoder has no all-reduce.
    assert_eq!(report.group("allreduce_rms_norm").map(|g| g.anchors.len()), Some(0));
    let unmet = report.require("allreduce_rms_norm=all").map_err(|e| e.to_string());
    assert_eq!(unmet, Err("required allreduce_rms_norm=all, found allreduce_rms_norm: no places".into()));
    report.require("allreduce_rms_norm=none").unwrap_or_else(|e| panic!("{e}"));
    report.require("allreduce_rms_norm=0").unwrap_or_else(|e| panic!("{e}"));
    report.require("merged_qkv=all").unwrap_or_else(|e| panic!("{e}"));
    assert!(matches!(report.require("merged_qkv=none"), Err(PassError::Required { .. })));
    assert!(matches!(report.require("merged_qkv>=none"), Err(PassError::BadRequirement(_))));
}

/// Residual adds that end a matmul are not fused with the norm behind them, which runs by itself.
#[test]
fn what_another_op_absorbed_is_not_called_fused() {
    let out = optimise(&TINY.build(), &policy(Numerics::Reassoc));
    let group = out.report.group("add_rms_norm").expect("a known group");
    assert_eq!((group.fused(), group.gone(), group.anchors.len()), (0, 6, 6));
    assert_eq!(group.to_string(), "add_rms_norm: 6 places: 6 absorbed (6 by matmul_add)");
    assert!(count(&out.graph, "rms_norm") >= 6);
    let table = weldment_passes::report::coverage(&[("step", &out.report)]);
    assert!(table.contains("add_rms_norm absorbed by matmul_add: 6\n"), "{table}");
    let row = table.lines().find(|l| l.starts_with("add_rms_norm")).expect("a row");
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["add_rms_norm", "6", "absorbed"]);
    let json = serde_json::to_value(&group.anchors[0]).expect("JSON");
    assert_eq!((&json["outcome"], &json["by"]), (&"absorbed".into(), &"matmul_add".into()));
}

/// The reference target without a fused norm whose hidden size is no multiple of 128.
struct Picky(ReferenceTarget);

impl TargetModel for Picky {
    fn supports(&self, op: &Op, operands: &[TensorType], _: &[TensorType]) -> Result<(), Refusal> {
        let hidden = operands.first().and_then(TensorType::last_constant).unwrap_or(0);
        match op.kind() {
            OpKind::AddRmsNorm if !hidden.is_multiple_of(128) => Err(Refusal {
                precondition: "hidden size",
                found: hidden.to_string(),
                accepted: "a multiple of 128".into(),
            }),
            _ => Ok(()),
        }
    }

    fn cost(&self, op: &Op, a: &[TensorType], r: &[TensorType], dims: &dyn Fn(&str) -> u64) -> f64 {
        self.0.cost(op, a, r, dims)
    }
}

#[test]
fn a_kernel_refusal_is_a_near_miss() {
    let options = disabled(&["matmul_epilogue"], Numerics::Reassoc);
    let out = weldment_passes::optimise(&TINY.build(), &Picky(ReferenceTarget::default()), &options)
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(count(&out.graph, "add_rms_norm"), 0);
    let why = reasons(&out.report, "add_rms_norm");
    assert_eq!(why.len(), 6);
    for reason in why {
        assert_eq!(
            reason.to_string(),
            "add_rms_norm: add_rms_norm kernel: hidden size is 64, a multiple of 128 is accepted; \
             make the hidden size a multiple of 128 (64 -> 128)"
        );
        assert!(matches!(reason, Reason::NearMiss { at, .. } if !at.is_empty()), "{reason:?}");
    }
}

/// A residual block whose norm is written out, with no-op views and a commuted add in the way.
fn obscured() -> Graph {
    let mut b = Build::new("obscured");
    b.graph.declare_symbol("T", 1, 6);
    let shape = || vec![Dim::sym("T"), Dim::Const(64)];
    let (x, r) = (b.input("x", DType::F32, shape()), b.input("r", DType::F32, shape()));
    let w = b.weight("w", DType::F32, &[64]);
    let one = b.constant(1.0);
    let scale = b.push("norm", Op::Add {}, &[w, one]);
    let sum = b.push("residual", Op::Add {}, &[r, x]);
    let view = b.push("view", Op::Reshape { shape: shape() }, &[sum]);
    let view = b.push("cast", Op::Cast { dtype: DType::F32 }, &[view]);
    let square = b.push("norm", Op::Mul {}, &[view, view]);
    let mean = b.push("norm", Op::ReduceMean { axis: 1 }, &[square]);
    let eps = b.constant(0.03125);
    let shifted = b.push("norm", Op::Add {}, &[eps, mean]);
    let root = b.push("norm", Op::Rsqrt {}, &[shifted]);
    let normed = b.push("norm", Op::Mul {}, &[root, view]);
    let normed = b.push("norm", Op::Mul {}, &[scale, normed]);
    b.result("normed", normed);
    b.result("sum", sum);
    b.graph
}

#[test]
fn a_written_out_norm_behind_views_is_found() {
    let graph = obscured();
    let out = optimise(&graph, &policy(Numerics::Reassoc));
    assert_eq!(count(&out.graph, "add_rms_norm"), 1);
    assert_eq!(out.report.launches_after, 1);
    out.report.require("rms_norm=all").unwrap_or_else(|e| panic!("{e}"));
    assert_ring_equal(&graph, &out.graph, false, 10);
    let node = out.report.at("norm").into_iter().find(|n| n.op == "add_rms_norm").expect("the fused node");
    assert!(node.rules.contains("rms_norm_from_parts") && node.rules.contains("add_rms_norm"), "{node:?}");
    assert!(node.sources.contains("residual"), "{node:?}");
}

#[test]
fn the_report_answers_for_a_place_and_survives_json() {
    let graph =
        Decoder { weights: DType::Q4_1, v_weights: DType::Q4_1, hidden: 256, heads: 4, inner: 256, ..TINY }.build();
    let out = optimise(&graph, &Options::default());
    let text = out.report.explain("layers.1.mlp");
    assert!(text.contains("matmul_silu_mul by"), "{text}");
    assert!(text.contains("int8_activations at layers.1.mlp.down_proj: fused into matmul_add"), "{text}");
    let json = serde_json::to_string(&out.report).unwrap_or_else(|e| panic!("{e}"));
    let back: Report = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(back, out.report);
    // What the nodes save adds up to what the step saves.
    let report = &out.report;
    let saved: i64 = report.nodes.iter().map(|n| n.launches_saved).sum();
    assert_eq!(saved, report.launches_before as i64 - report.launches_after as i64);
    let saved: i64 = report.nodes.iter().map(|n| n.bytes_saved).sum();
    assert_eq!(saved, report.bytes_before as i64 - report.bytes_after as i64);
    assert!(saved > 0, "{saved}");
    for node in report.nodes.iter().filter(|n| n.launch) {
        assert!(!node.stands_for.is_empty(), "{node:?}");
        assert_eq!(node.chain.len(), node.rules.len(), "{node:?}");
    }
}

#[test]
fn eps_is_kept_to_the_bit() {
    let mut b = Build::new("eps");
    b.graph.declare_symbol("T", 1, 6);
    let shape = vec![Dim::sym("T"), Dim::Const(64)];
    let (x, r) = (b.input("x", DType::F32, shape.clone()), b.input("r", DType::F32, shape));
    let w = b.weight("w", DType::F32, &[64]);
    let sum = b.push("sum", Op::Add {}, &[x, r]);
    let eps = Real(3.0e-7);
    let out = b.push("norm", Op::RmsNorm { eps, dtype: DType::F32 }, &[sum, w]);
    b.result("out", out);
    let fused = optimise(&b.graph, &policy(Numerics::Bitwise)).graph;
    assert!(fused.ids().any(|id| fused.node(id).op == Op::AddRmsNorm { eps, dtype: DType::F32 }));
}
