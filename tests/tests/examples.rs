//! Every text graph of examples/: it parses, verifies, and compiled code agrees with the interpreter, before and after fusion.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use weldment_artifact::SymbolRole;
use weldment_ir::generate::random_dims;
use weldment_ir::{text, verify};
use weldment_passes::pipeline::{Options, optimise};
use weldment_tests::execute::{Values, difference, execute, library, random_values, reference, setup};
use weldment_tests::filetest;

const TARGET: &str = "x86-64-v3";

fn check(path: &Path) -> Result<(), String> {
    let graph = text::parse(&fs::read_to_string(path).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    verify(&graph).map_err(|e| e.to_string())?;
    let fused = optimise(&graph, &library(&graph, &setup(&graph, TARGET)?), &Options::default())
        .map_err(|e| e.to_string())?
        .graph;
    let least: BTreeMap<String, u64> = graph.symbols().iter().map(|(name, r)| (name.to_string(), r.min)).collect();
    for (seed, mut dims) in [least, random_dims(&graph, 1), random_dims(&graph, 2)].into_iter().enumerate() {
        // Sequences that shared a block would write it in any order.
        if let Some(blocks) = graph.symbol_of(&SymbolRole::POOL) {
            dims.insert(blocks.0.to_string(), blocks.1.max);
        }
        let values = random_values(&graph, &dims, Values::new(), seed as u64)?;
        let expected = reference(&graph, &dims, &values)?;
        for (what, form) in [("as it stands", &graph), ("fused", &fused)] {
            let d = difference(&expected, &execute(form, &dims, &values, TARGET, 2)?);
            if d > 1e-4 {
                return Err(format!("{what}, dims {dims:?}: the interpreter differs by {d:e}"));
            }
        }
    }
    Ok(())
}

#[test]
fn text_examples_compile_and_agree() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let files = filetest::collect(&folder).unwrap();
    assert!(!files.is_empty(), "no .wir files in {}", folder.display());
    for path in files {
        check(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}
