//! Mutated text gives a graph or an error with a place, never a panic; and what parses can be printed, verified and run.

use std::collections::BTreeSet;
use weldment_ir::generate::{Random, random_bindings, random_dims, random_graph};
use weldment_ir::interpret::{F64, Options, interpret};
use weldment_ir::text::{parse, print};
use weldment_ir::verify::verify_all;
use weldment_ir::{Dim, Graph, IrError};

const CASES: u64 = 20_000;

/// Pieces that mean something to the parser.
const PIECES: &[&str] = &[
    "%0",
    "%1.1",
    "%",
    "\"",
    "\\",
    "\\u{41}",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ":",
    ",",
    "=",
    "@",
    "..",
    "-",
    "-1",
    "0",
    "1e999",
    "18446744073709551615",
    "9223372036854775807",
    "graph",
    "output",
    "state",
    "result",
    "T",
    "f32",
    "q8a",
    "q4_k",
    "bool",
    "add",
    "rope_table",
    "attention",
    "concat",
    "é",
    "\u{0}",
    "#",
    ";",
    "\n",
];

fn boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn mutate(text: &str, random: &mut Random) -> String {
    let mut text = text.to_owned();
    for _ in 0..=random.below(3) {
        let at = boundary(&text, random.below(text.len() as u64 + 1) as usize);
        let length = random.below(12) as usize;
        let end = boundary(&text, (at + length).min(text.len()));
        let piece = random.pick(PIECES).copied().unwrap_or_default();
        match random.below(6) {
            0 => text.truncate(at),
            1 => text.replace_range(at..end, ""),
            2 => text.insert_str(at, piece),
            3 => text.replace_range(at..end, piece),
            // A word elsewhere in the text, so that names and attributes change places.
            4 => {
                let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
                let word = random.pick(&words).cloned().unwrap_or_default();
                text.insert_str(at, &word);
            }
            _ => {
                let number = random.bits().to_string();
                let digit = text[at..].find(|c: char| c.is_ascii_digit()).map(|i| at + i);
                if let Some(digit) = digit {
                    text.replace_range(digit..=digit, &number[..1 + random.below(3) as usize]);
                }
            }
        }
    }
    text
}

/// Small enough to bind and run.
fn small(graph: &Graph) -> bool {
    let size = |d: &Dim| match d {
        Dim::Const(n) => *n,
        Dim::Sym(s) => graph.symbols().get(s).map_or(u64::MAX, |r| r.max),
    };
    graph
        .ids()
        .flat_map(|id| &graph.node(id).types)
        .all(|t| t.shape.iter().map(size).try_fold(1u64, u64::checked_mul).is_some_and(|n| n <= 100_000))
}

#[test]
fn mutated_text_never_panics() {
    let seeds: Vec<String> = (0..40).map(|seed| print(&random_graph(seed, 10).unwrap())).collect();
    let mut messages = BTreeSet::new();
    let (mut parsed, mut ran) = (0, 0);
    for case in 0..CASES {
        let mut random = Random::new(case);
        let text = mutate(&seeds[random.below(seeds.len() as u64) as usize], &mut random);
        match parse(&text) {
            Err(IrError::Parse { line, column, message }) => {
                assert!(line >= 1 && column >= 1 && line <= text.lines().count() + 1, "{message}");
                assert!(message.len() < 1000, "a message of {} bytes", message.len());
                messages.insert(message);
            }
            Err(other) => panic!("an error without a place: {other}"),
            Ok(graph) => {
                parsed += 1;
                let printed = print(&graph);
                assert_eq!(print(&parse(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"))), printed);
                if !verify_all(&graph).is_empty() || !small(&graph) {
                    continue;
                }
                let dims = random_dims(&graph, case);
                let options = Options { max_elements: 1 << 20, ..Options::default() };
                if let Ok(bindings) = random_bindings(&graph, &dims, case) {
                    ran += 1;
                    let _ = interpret::<F64>(&graph, &dims, &bindings, &options);
                }
            }
        }
    }
    // The mutations reach past the lexer.
    assert!(messages.len() > 500 && parsed > CASES / 20 && ran > 100, "{} {parsed} {ran}", messages.len());
}
