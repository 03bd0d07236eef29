//! The law of rules (passes/rules/README.md), held: what a rule must be as written, that each is shown by filetests, that
//! each holds in its class ([`gate`]), that wrong siblings of it do not ([`mutants`]), and that their order is free.

mod bounds;
mod customs;
mod draw;
mod equivalent;
mod gate;
mod mutants;
mod mutate;
mod numbers;
mod orders;
#[path = "../../../tests/support/mod.rs"]
pub(crate) mod support;

use super::{GROUPS, Numerics, all};
use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn every_rule_parses_and_names_are_unique() {
    let rules = all();
    let names: BTreeSet<&str> = rules.iter().map(|r| r.name).collect();
    assert_eq!(names.len(), rules.len());
    for rule in &rules {
        assert!(!rule.doc.trim().is_empty(), "{} has a statement", rule.name);
        assert!(rule.group.is_none_or(|g| GROUPS.contains(&g)), "{}: group {:?}", rule.name, rule.group);
        assert!(rule.class != Numerics::Approx || rule.doc.contains("Bound:"), "{} states a bound", rule.name);
        let moved = rule.doc.contains("moved:");
        assert!((rule.class == Numerics::Rounding) == moved, "{} says which rounding moves", rule.name);
    }
}

/// The filetests themselves run in the crate `weldment-tests`.
#[test]
fn every_rule_fires_in_a_filetest_and_refrains_in_another() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/filetests/rules");
    let (mut fires, mut refrains) = (BTreeSet::new(), BTreeSet::new());
    for file in std::fs::read_dir(folder).expect("the folder of filetests") {
        let text = std::fs::read_to_string(file.expect("a folder entry").path()).expect("a filetest");
        for word in text.lines().next().unwrap_or_default().split_whitespace() {
            match word.split_once('=') {
                Some(("fires", list)) => fires.extend(list.split(',').map(str::to_owned)),
                Some(("refrains", list)) => refrains.extend(list.split(',').map(str::to_owned)),
                _ => {}
            }
        }
    }
    let names: BTreeSet<String> = all().iter().map(|r| r.name.to_owned()).collect();
    let missing = |covered: &BTreeSet<String>| names.difference(covered).cloned().collect::<Vec<_>>();
    assert_eq!(
        (missing(&fires), missing(&refrains)),
        (vec![], vec![]),
        "rules that no filetest shows firing, refraining"
    );
}
