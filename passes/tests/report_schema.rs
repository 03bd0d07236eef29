//! docs/report.md describes every field of the report, and its example is what the passes say. `WELDMENT_BLESS=1` rewrites
//! the example.

mod support;

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;
use support::{Decoder, TINY};
use weldment_ir::DType;
use weldment_passes::report::Report;
use weldment_passes::{Numerics, Options, ReferenceTarget, optimise};

fn page() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/report.md")
}

/// The text between "```name" and the next fence.
fn block<'a>(page: &'a str, name: &str) -> &'a str {
    let start = page.find(&format!("```{name}\n")).expect("the page has the block") + name.len() + 4;
    &page[start..start + page[start..].find("```").expect("the block ends")]
}

fn report(graph: &weldment_ir::Graph, options: &Options) -> Report {
    optimise(graph, &ReferenceTarget::default(), options).unwrap_or_else(|e| panic!("{e}")).report
}

#[test]
fn the_example_is_what_the_passes_say() {
    let text = std::fs::read_to_string(page()).expect("docs/report.md");
    let graph = weldment_ir::text::parse(block(&text, "wir")).unwrap_or_else(|e| panic!("{e}"));
    let report = report(&graph, &Options::default());
    let found = serde_json::to_string_pretty(&report).expect("JSON") + "\n";
    let shown = block(&text, "json");
    if std::env::var_os("WELDMENT_BLESS").is_some() && shown != found {
        let text = text.replacen(&format!("```json\n{shown}```"), &format!("```json\n{found}```"), 1);
        std::fs::write(page(), text).expect("docs/report.md can be written");
        return;
    }
    assert!(shown == found, "docs/report.md is behind; WELDMENT_BLESS=1 rewrites its example\n{found}");
    let parsed: Report = serde_json::from_str(shown).expect("the example is a report");
    assert_eq!(parsed, report);
}

fn keys(value: &Value, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                out.insert(key.clone());
                // Keys of these are names of symbols and rules.
                if !["ranges", "dims", "matches"].contains(&key.as_str()) {
                    keys(value, out);
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|v| keys(v, out)),
        _ => {}
    }
}

#[test]
fn every_field_is_described() {
    let text = std::fs::read_to_string(page()).expect("docs/report.md");
    let mixed = Decoder { weights: DType::Q4_1, v_weights: DType::Q8_0, qkv_bias: true, qk_norm: true, ..TINY };
    let off = Options { disabled: ["silu_mul".to_owned()].into(), ..Options::default() };
    let policy = Options { fp_policy: Some(Numerics::Bitwise), ..Options::default() };
    let mut found = BTreeSet::new();
    for (graph, options) in [(TINY.build(), Options::default()), (mixed.build(), off), (mixed.build(), policy)] {
        let report = report(&graph, &options);
        keys(&serde_json::to_value(&report).expect("JSON"), &mut found);
        keys(&serde_json::to_value(report.place("layers.1")).expect("JSON"), &mut found);
    }
    assert!(found.len() > 40, "{found:?}");
    let missing: Vec<&String> = found.iter().filter(|key| !text.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "not described in docs/report.md: {missing:?}");
}
