//! Random graphs compiled for the host beside the interpreter, and planted bugs that this must see. `make fuzz` runs more.

use std::path::Path;
use std::time::SystemTime;
use weldment_ir::{Category, OpKind};
use weldment_passes::rules;
use weldment_tests::fuzz::batch::{self, Outcome};
use weldment_tests::fuzz::case::{self, machine};
use weldment_tests::fuzz::run::{Settings, Tally, run};
use weldment_tests::fuzz::sabotage::Sabotage;

const SEED: u64 = 1;
const COUNT: u64 = 2000;
/// Cases that a planted bug is tried on, at most.
const TRIES: usize = 8;

/// Runs the first graphs of a seed; all must agree.
fn agree(seed: u64) -> Tally {
    let settings = Settings { seed, first: 0, count: COUNT, jobs: 2 };
    let tally = run(Path::new(env!("CARGO_BIN_EXE_fuzz")), &settings, &|_| {}).expect("a run");
    println!("{tally}");
    assert_eq!(tally.mismatches, [], "`make fuzz SEED={seed} FUZZ=\"--index I\"` shows the smallest graph");
    assert!(tally.invalid_rate() < 0.005, "seed {seed}: {:?} {:?}", tally.invalid, tally.slow);
    assert_eq!(tally.graphs, COUNT);
    tally
}

/// Other graphs every day, the same all day long: the seed is the day's number.
#[test]
fn random_graphs_of_today_agree_with_the_interpreter() {
    let today = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a day after 1970").as_secs() / 86_400;
    println!("seed of today: {today}");
    agree(today);
}

#[test]
fn random_graphs_agree_with_the_interpreter() {
    let tally = agree(SEED);
    // An op that graphs never have, or that no pass leaves for code, is not tested.
    // Graphs of one rank have no collectives.
    for kind in OpKind::ALL.iter().filter(|k| k.info().category != Category::Collective) {
        let name = kind.info().name;
        assert!(tally.ops.get(name).is_some_and(|n| *n >= 20), "{name} is hardly generated: {:?}", tally.ops.get(name));
        assert!(tally.compiled.contains_key(name), "{name} is never compiled");
    }
    let local = rules::all().into_iter().filter(|r| !r.text.contains("all_reduce"));
    let silent: Vec<&str> = local.map(|r| r.name).filter(|r| !tally.rules.contains_key(*r)).collect();
    assert_eq!(silent, Vec::<&str>::new(), "rules that never fire are not tested");
    // Bounds that say little, or draws that are mostly thrown away, would hide bugs.
    assert!(tally.exact_elements * 2 > tally.elements, "{} of {} exact", tally.exact_elements, tally.elements);
    assert!(tally.redrawn < COUNT / 2, "{} draws thrown away", tally.redrawn);
}

/// Every planted bug is seen in one of the first cases of the run that it reaches.
#[test]
fn planted_bugs_are_seen() {
    let target = machine().expect("a target");
    let mut batches = Vec::new();
    let mut missing: Vec<(Sabotage, usize)> = Sabotage::ALL.iter().map(|s| (*s, TRIES)).collect();
    for index in 0..COUNT {
        if missing.is_empty() {
            break;
        }
        let Ok(case) = case::draw(&target, SEED, index) else { continue };
        let Ok(plain) = batch::plan(&target, case.clone(), &|graph| graph) else { continue };
        for (sabotage, left) in &mut missing {
            let (spoilt, reached) = sabotage.plant(&plain.graph).expect("a well-typed graph");
            if reached == 0 {
                continue;
            }
            if let Ok(planned) = batch::plan(&target, case.clone(), &|_| spoilt.clone()) {
                batches.push((*sabotage, planned));
                *left -= 1;
            }
        }
        missing.retain(|(_, left)| *left > 0);
    }
    assert!(missing.iter().all(|(_, left)| *left < TRIES), "nothing to spoil: {missing:?}");
    for sabotage in Sabotage::ALL {
        let (mine, rest): (Vec<_>, Vec<_>) = batches.into_iter().partition(|(s, _)| s == sabotage);
        batches = rest;
        let tried = mine.len();
        let (done, _) = batch::run(&target, mine.into_iter().map(|(_, p)| p).collect(), 1).expect("a run");
        let seen = done.iter().filter(|(_, outcome)| *outcome != Outcome::Agrees).count();
        println!("{sabotage:?}: seen in {seen} of {tried}");
        assert!(seen > 0, "{sabotage:?} went unseen in {tried} cases");
    }
}
