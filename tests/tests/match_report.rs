//! What `weldment explain` says of a small llama, in full. `INSTA_UPDATE=always` rewrites the snapshots, to be read in the diff.

use std::path::Path;
use weldment_compiler::checkpoint::WeightSource;
use weldment_compiler::driver::{
    EntryOptions, FusionOptions, Quiet, Timeline, model_graph, open, plan_targets, reports,
};
use weldment_passes::report::Report;

/// Reports by variant, for a target that every machine can compile for.
fn llama() -> Vec<(String, Report)> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny/llama");
    let checkpoint = open(&model, WeightSource::Files).expect("a model directory");
    let graph = model_graph(&checkpoint, &EntryOptions::default()).expect("a graph");
    let (fusion, mut timeline) = (FusionOptions::default(), Timeline::default());
    let planned = plan_targets(&[graph], &["x86-64-v3".to_owned()], &fusion, &mut timeline, &mut Quiet);
    reports(&planned.expect("a plan")).into_iter().collect()
}

#[test]
fn report_and_explanation_of_a_layer() {
    let (mut coverage, mut layer) = (String::new(), String::new());
    for (variant, report) in llama() {
        coverage += &format!("{variant}: {report}\n");
        layer += &format!("{variant}:\n{}\n", report.explain("layers.1"));
    }
    insta::assert_snapshot!("llama_report", coverage);
    insta::assert_snapshot!("llama_layer_1", layer);
}

#[test]
fn json_of_a_small_graph() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/report.md")).expect("docs");
    let start = page.find("```wir\n").expect("the page's example") + 7;
    let end = start + page[start..].find("```").expect("its end");
    let graph = weldment_ir::text::parse(&page[start..end]).expect("a graph");
    let setup = weldment_tests::execute::setup(&graph, "x86-64-v3").expect("a target");
    let library = weldment_codegen::select::KernelLibrary { setup, max_tokens: 4 };
    let out = weldment_passes::optimise(&graph, &library, &weldment_passes::Options::default()).expect("fused");
    insta::assert_snapshot!("small_json", serde_json::to_string_pretty(&out.report).expect("JSON"));
}

#[test]
fn coverage_by_range() {
    let reports = llama();
    let columns: Vec<(&str, &Report)> = reports.iter().map(|(name, r)| (name.as_str(), r)).collect();
    insta::assert_snapshot!("llama_coverage", weldment_passes::report::coverage(&columns));
}
