//! Round trips and messages.

use super::{parse, print};
use crate::DType;
use crate::attr::Real;
use crate::graph::{Graph, OutputKind};
use crate::op::Op;
use crate::verify::verify_all;

const SAMPLE: &str = r#"graph @step (T: 1..512, B: 1..16) {
  %0 = input {name: "x", dtype: f32, shape: [T, 64]} : f32[T, 64] @ "embed"
  %1 = weight {name: "w", dtype: f32, shape: [64]} : f32[64]
  %2:2 = add_rms_norm(%0, %0, %1) {eps: 1e-6, dtype: q8a} : q8a[T, 64], f32[T, 64] @ "layers.0.add", "layers.0.norm"
  %3 = transpose(%2.1) {permutation: [1, 0]} : f32[64, T]
  %4 = constant {value: 10000.0, dtype: f32} : f32[]
  %5 = mul(%3, %4) : f32[64, T] @ "odd \"path\" \\ \n\u{7f}é"
  output result "y" = %5
  output result "norm" = %2.0
}
"#;

#[test]
fn printed_text_is_a_fixed_point() {
    let graph = parse(SAMPLE).unwrap();
    assert_eq!(print(&graph), SAMPLE);
    assert_eq!(graph.to_string(), SAMPLE);
    assert_eq!(verify_all(&graph), []);
}

#[test]
fn what_a_user_may_leave_out_or_write_otherwise() {
    let loose = r#"
        # comment
        graph @"step" (T: 1 .. 512, B: 1..16) { ; another
          %x = input {shape: [T, 64], name: "x", dtype: f32} @ "embed"
          %w = weight() {name: "w", dtype: f32, shape: [64]}
          %norm = add_rms_norm(%x, %x.0, %w) {dtype: q8a, eps: 0.000001} @ "layers.0.norm", "layers.0.add"
          %3 = transpose(%norm.1)
               {permutation: [1, 0]}
          %one = constant {value: 10000, dtype: f32}
          %5 = mul(%3, %one) @ "odd \"path\" \\ \n\u{7f}\u{e9}"
          output result "y" = %5 output result "norm" = %norm
        }"#;
    assert_eq!(print(&parse(loose).unwrap()), SAMPLE);
}

#[test]
fn names_that_are_not_words_are_quoted() {
    let mut graph = Graph::new("a \"b\"\n");
    let c = graph.push("c", Op::Constant { value: Real(-2.5e-300), dtype: DType::F32 }, &[]).unwrap();
    graph.output("out\\", OutputKind::Result, c);
    let text = print(&graph);
    let again = parse(&text).unwrap();
    assert_eq!((again.name.as_str(), &*again.outputs()[0].name), ("a \"b\"\n", "out\\"));
    assert_eq!(print(&again), text);
}

/// Each line of the body, put into a graph with `%0` f32[T, 64], and the message it gives.
#[test]
fn messages_name_the_place_what_was_found_and_what_is_accepted() {
    let cases: &[(&str, &str)] = &[
        ("%1 = ad(%0, %0)", "2, 6: unknown op `ad`; docs/ops.md lists every op"),
        ("%1 = add(%0, %9)", "2, 14: %9 is not defined; a value must be defined before it is used"),
        ("%1 = add(%0)", "2, 6: add: 1 operands given, 2 expected"),
        ("%1 = add(%0 %0)", "2, 13: found `%0`; `,` or `)` is expected"),
        ("%0 = neg(%0)", "2, 1: %0 is defined twice"),
        ("%1 = neg(%0.1)", "2, 10: %0 has 1 results; .1 is not one"),
        ("%1:2 = neg(%0)", "2, 3: neg has 1 results"),
        ("%1 = neg(%0) : f32[T, 65]", "2, 16: type f32[T, 65] is stated; neg gives f32[T, 64]"),
        ("%1 = neg(%0) : f33[T]", "2, 16: unknown dtype `f33`; one of f32"),
        ("%1 = neg(%0) : f32[U, 64]", "2, 20: symbol U is not declared; [T] are"),
        ("%1 = softmax(%0) {axis: 1}", "2, 19: softmax has no attribute axis; it has []"),
        ("%1 = reduce_sum(%0)", "2, 6: reduce_sum needs the attribute axis (Int)"),
        ("%1 = reduce_sum(%0) {axis: 1, axis: 1}", "2, 31: attribute axis is given twice"),
        ("%1 = reduce_sum(%0) {axis: 1.5}", "2, 28: found `1.5`; a 64-bit integer is expected"),
        ("%1 = reduce_sum(%0) {axis: 2}", "2, 6: reduce_sum: axis 2 of f32[T, 64]; 0..2 is accepted"),
        ("%1 = cast(%0) {dtype: \"f16\"}", "2, 23: found \"f16\"; a dtype is expected"),
        ("%1 = constant {value: 1e999, dtype: f32}", "2, 23: the number is too large for f64"),
        ("%1 = reshape(%0) {shape: [1, 1, 1, 1, 1, 1, 1, T, 64]}", "2, 51: more than 8 entries; at most 8 dims"),
        ("%1 = rope_table {positions: 99999999999999999999}", "2, 29: found `99999999999999999999`; a 64-bit"),
        ("output \"y\" = %0", "2, 8: found \"y\"; `result` or `state` is expected"),
        ("output result y = %0", "2, 15: found `y`; the output's quoted name is expected"),
        ("neg(%0)", "2, 1: found `neg`; a node (`%0 = op(...)`), `output` or `}` is expected"),
        ("% = neg(%0)", "2, 1: `%` without a name"),
        ("%1 = neg(%0) @ \"open", "2, 16: a string without its closing"),
        ("%1 = neg(%0) @ \"\\q\"", "2, 17: unknown escape"),
        ("%1 = neg(%0) @ \"\\u{110000}\"", "2, 17: unknown escape"),
        ("%1 = neg(%0) !", "2, 14: unexpected character '!'"),
        ("} }", "2, 3: found `}`; the end of the file is expected"),
    ];
    for (line, expected) in cases {
        let text = format!(
            "graph @g (T: 1..4) {{ %0 = input {{name: \"x\", dtype: f32, shape: [T, 64]}}\n{line}\noutput result \"y\" = %0 }}"
        );
        let found = parse(&text).map(|_| ()).unwrap_err().to_string();
        let expected = format!("line {}", expected.replacen(", ", ", column ", 1));
        assert!(found.starts_with(&expected), "{line}\nfound    {found}\nexpected {expected}");
    }
}

#[test]
fn heads_that_do_not_parse() {
    let message = |text: &str| parse(text).map(|_| ()).unwrap_err().to_string();
    assert_eq!(message(""), "line 1, column 1: found the end of the file; `graph` is expected");
    assert_eq!(message("graph step {}"), "line 1, column 7: found `step`; `@` is expected");
    assert_eq!(
        message("graph @g (T: 1.5..2) {}"),
        "line 1, column 14: found `1.5`; the smallest size (an integer) is expected"
    );
    assert_eq!(
        message("graph @g (T: 5..2) {}"),
        "line 1, column 11: symbol T has the range 5..2; min <= max is expected"
    );
    assert_eq!(message("graph @g (T: 1..2, T: 1..2) {}"), "line 1, column 20: symbol T is declared twice");
    assert_eq!(
        message("graph @g {"),
        "line 1, column 11: found the end of the file; a node (`%0 = op(...)`), `output` or `}` is expected"
    );
}

/// A chain of gathers grows the rank by one each; types may not grow with the text's length.
#[test]
fn ranks_cannot_grow_without_end() {
    let mut text = "graph @g {\n%t = weight {name: \"t\", dtype: f32, shape: [2, 2]}\n%0 = input {name: \"i\", dtype: i32, shape: [1]}\n".to_owned();
    for i in 0..10 {
        text += &format!("%g{i} = gather(%t, %{i}) {{dtype: f32}}\n%{} = cast(%g{i}) {{dtype: i32}}\n", i + 1);
    }
    let message = parse(&(text + "}")).map(|_| ()).unwrap_err().to_string();
    assert!(message.ends_with("gather gives rank 9; at most 8 is accepted"), "{message}");
}
