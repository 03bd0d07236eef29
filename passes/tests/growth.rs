//! Work grows with the graph: round trips, chains and stacks of layers that once took exponential time or ended at a limit.

mod support;

use std::fmt::Write;
use std::time::{Duration, Instant};
use support::{TINY, assert_ring_equal, optimise};
use weldment_ir::{Graph, text};
use weldment_passes::report::{Outcome, Reason, Report};
use weldment_passes::{Numerics, Options};

const HEAD: &str = "graph @g (T: 1..64) {
  %tokens = input {name: \"tokens\", dtype: i32, shape: [T]}
  %embed = weight {name: \"embed\", dtype: bf16, shape: [128, 64]}
  %w = weight {name: \"w\", dtype: bf16, shape: [64, 64]}
  %h = gather(%embed, %tokens) {dtype: bf16} @ \"h\"
";

/// A graph of the lines between [`HEAD`] and the result `%y`.
fn graph(lines: &str) -> Graph {
    let whole = format!("{HEAD}{lines}  output result \"y\" = %y\n}}\n");
    text::parse(&whole).unwrap_or_else(|e| panic!("{e}\n{whole}"))
}

/// Optimised, in a time that no exponential growth of these sizes has: a thousand times what it takes.
fn soon(graph: &Graph) -> Report {
    let start = Instant::now();
    let out = optimise(graph, &Options::default());
    assert!(start.elapsed() < Duration::from_secs(100), "{:?}", start.elapsed());
    out.report
}

fn kept<'r>(report: &'r Report, group: &str) -> Vec<&'r Reason> {
    let anchors = report.group(group).map(|g| g.anchors.as_slice()).unwrap_or_default();
    let reason = |outcome: &'r Outcome| match outcome {
        Outcome::Kept { reason } => Some(reason),
        _ => None,
    };
    anchors.iter().filter_map(|a| reason(&a.outcome)).collect()
}

/// A value that goes there and back is read beside itself: its class is reached again by stepping over what stands between.
#[test]
fn round_trips_do_not_turn_near_misses_in_circles() {
    let trips = [
        "  %a = cast(%g) {dtype: f32}\n  %b = cast(%a) {dtype: bf16}\n",
        "  %a = reshape(%g) {shape: [1, T, 64]}\n  %b = reshape(%a) {shape: [T, 64]}\n",
        "  %a = reshape(%g) {shape: [T, 4, 16]}\n  %b = reshape(%a) {shape: [T, 64]}\n",
        "  %a = transpose(%g) {permutation: [1, 0]}\n  %b = transpose(%a) {permutation: [1, 0]}\n",
        "  %a = cast(%g) {dtype: f32}\n  %c = reshape(%a) {shape: [T, 8, 8]}\n  %d = cast(%c) {dtype: bf16}\n  %b = reshape(%d) {shape: [T, 64]}\n",
    ];
    for trip in trips {
        let report = soon(&graph(&format!(
            "  %g = matmul(%h, %w) {{dtype: bf16}} @ \"g\"\n{trip}  %e = tanh(%g) @ \"e\"\n  %f = add(%e, %b) @ \"f\"\n  %y = add(%g, %f) @ \"y\"\n"
        )));
        let why = kept(&report, "matmul_epilogue");
        assert!(!why.is_empty(), "{report}");
        assert!(
            why.iter().all(|r| matches!(r, Reason::NearMiss { .. } | Reason::AlsoRead { .. } | Reason::Dearer { .. }))
        );
    }
}

/// A norm written out over a sum of a value with itself, with views that go there and back.
#[test]
fn doubled_values_and_written_norms() {
    for doublings in [1, 4, 12] {
        let mut lines = String::new();
        let mut at = "h".to_owned();
        for i in 0..doublings {
            let _ = writeln!(lines, "  %s{i} = add(%{at}, %{at})");
            let _ = writeln!(lines, "  %u{i} = reshape(%s{i}) {{shape: [T, 8, 8]}}");
            let _ = writeln!(lines, "  %d{i} = reshape(%u{i}) {{shape: [T, 64]}}");
            at = format!("d{i}");
        }
        let _ = writeln!(
            lines,
            "  %wide = cast(%{at}) {{dtype: f32}}\n  %sq = mul(%wide, %wide)\n  %mean = reduce_mean(%sq) {{axis: 1}}\n  \
             %eps = constant {{value: 1e-5, dtype: f32}}\n  %ve = add(%mean, %eps)\n  %root = rsqrt(%ve) @ \"root\"\n  \
             %n = mul(%wide, %root)\n  %half = cast(%n) {{dtype: bf16}}\n  %y = add(%half, %{at})"
        );
        let report = soon(&graph(&lines));
        assert_eq!(kept(&report, "rms_norm").len(), 1, "{report}");
    }
}

#[test]
fn casts_there_and_back() {
    for (first, second) in [("f32", "bf16"), ("bf16", "bf16"), ("f16", "bf16")] {
        let mut lines = format!("  %c0 = cast(%h) {{dtype: {second}}}\n");
        for i in 1..=400 {
            let _ =
                writeln!(lines, "  %c{i} = cast(%c{}) {{dtype: {}}}", i - 1, if i % 2 == 1 { first } else { second });
        }
        lines += "  %y = add(%c400, %h) @ \"y\"\n";
        let report = soon(&graph(&lines));
        let casts = report.group("cast_into_producer").map_or(0, |g| g.anchors.len());
        assert!(report.launches_after <= report.launches_before && casts <= 400, "{report}");
    }
}

/// The source path of a part of a layer.
type Path<'a> = &'a dyn Fn(usize, &str) -> String;

/// Slices of slices: each is known as a slice of the first value, and of few of those between.
#[test]
fn slices_of_slices() {
    const SLICES: usize = 120;
    let mut lines = "  %wide = concat(%h, %h, %h, %h, %h) {axis: 1}\n  %s0 = tanh(%wide)\n".to_owned();
    for i in 1..=SLICES {
        let size = 320 - 2 * i;
        let _ = writeln!(lines, "  %s{i} = slice(%s{}) {{axis: 1, start: 1, end: {}}}", i - 1, size + 1);
    }
    let _ = writeln!(lines, "  %y = tanh(%s{SLICES})");
    let report = soon(&graph(&lines));
    assert!(report.limits().is_empty() && report.units[0].e_nodes < 40 * SLICES, "{:?}", report.units);
    assert_eq!(report.nodes.iter().filter(|n| n.op == "slice").count(), 1, "{report}");
}

/// Layers of a norm, a product and a residual add, with a batch dim of 1 in front.
fn layers(count: usize, path: Path<'_>) -> Graph {
    let mut lines = "  %v0 = reshape(%h) {shape: [1, T, 64]} @ \"batch\"\n".to_owned();
    for i in 0..count {
        let _ = writeln!(
            lines,
            "  %nw{i} = weight {{name: \"n{i}\", dtype: bf16, shape: [64]}}\n  \
             %ow{i} = weight {{name: \"o{i}\", dtype: bf16, shape: [64, 64]}}\n  \
             %n{i} = rms_norm(%v{i}, %nw{i}) {{eps: 1e-5, dtype: bf16}} @ \"{}\"\n  \
             %o{i} = matmul(%n{i}, %ow{i}) {{dtype: bf16}} @ \"{}\"\n  %v{} = add(%o{i}, %v{i}) @ \"{}\"",
            path(i, "norm"),
            path(i, "o"),
            i + 1,
            path(i, "residual"),
        );
    }
    let _ = writeln!(lines, "  %y = reshape(%v{count}) {{shape: [T, 64]}} @ \"out\"");
    graph(&lines)
}

#[test]
fn names_do_not_matter() {
    let named = |i: usize, part: &str| format!("layers.{i}.{part}");
    let others: [Path<'_>; 4] = [
        &|i, part| format!("model.layers.{i}.{part}"),
        &|i, part| format!("transformer.h.{i}.{part}"),
        &|_, part| part.to_owned(),
        &|_, _| "block".to_owned(),
    ];
    let sizes = |report: &Report| {
        let units = report.units.iter().map(|u| (u.instances, u.nodes_before, u.nodes_after, u.iterations));
        (units.collect::<Vec<_>>(), report.launches_after, report.bytes_after)
    };
    let expected = soon(&layers(40, &named));
    // First, last, and those between: their number makes no new ones.
    assert!(expected.units.len() <= 4, "{:?}", expected.units);
    assert_eq!(expected.group("matmul_epilogue").map(|g| (g.gone(), g.anchors.len())), Some((40, 40)), "{expected}");
    for path in others {
        assert_eq!(sizes(&soon(&layers(40, path))), sizes(&expected));
    }
    let few = layers(5, &named);
    assert_ring_equal(&few, &optimise(&few, &support::policy(Numerics::Reassoc)).graph, false, 2);
}

/// Every unit of a decoder but the first and the last is stamped, and the stamps are as many as there are layers.
#[test]
fn units_of_a_decoder_are_found_by_its_shape() {
    let decoder = support::Decoder { layers: 12, ..TINY };
    let graph = decoder.build();
    let renamed =
        text::parse(&text::print(&graph).replace("layers.", "stack.blocks.")).unwrap_or_else(|e| panic!("{e}"));
    let (a, b) = (optimise(&graph, &Options::default()).report, optimise(&renamed, &Options::default()).report);
    assert_eq!(a.units, b.units);
    assert_eq!(a.launches_after, b.launches_after);
    assert!(a.units.len() <= 5 && a.units.iter().filter(|u| u.instances >= 10).count() >= 1, "{:?}", a.units);
}
