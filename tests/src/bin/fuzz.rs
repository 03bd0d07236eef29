//! temporary
use weldment_tests::fuzz::{batch, case};
fn main() {
    let target = case::machine().unwrap();
    let t0 = std::time::Instant::now();
    let start: u64 = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(0);
    let n: u64 = std::env::args().nth(2).and_then(|a| a.parse().ok()).unwrap_or(100);
    if n == 1 {
        let c = case::draw(&target, 1, start).unwrap();
        let f = weldment_tests::fuzz::minimise::failure(&target, &c, &|g| g);
        println!("{f:?}");
        let m = weldment_tests::fuzz::minimise::minimise(&target, &c, &|g| g);
        println!("{}", weldment_tests::fuzz::minimise::filetest(&m, &weldment_tests::fuzz::minimise::failure(&target, &m, &|g| g).unwrap_or_default()));
        println!("{}", batch::plan(&target, m, &|g| g).map(|p| p.graph.to_string()).unwrap_or_default());
        return;
    }
    let mut planned = Vec::new();
    for i in start..start + n {
        match case::draw(&target, 1, i) {
            Ok(c) => match batch::plan(&target, c, &|g| g) {
                Ok(p) => planned.push(p),
                Err(e) => println!("INVALID {e:?}"),
            },
            Err(e) => println!("LOST {i} {e:?}"),
        }
    }
    println!("drawn and planned {} in {:?}", planned.len(), t0.elapsed());
    let exact: usize = planned.iter().filter(|p| p.case.expected.values().all(|v| v.iter().all(|b| b.error == 0.0))).count();
    let redrawn: u64 = planned.iter().map(|p| p.case.redrawn).sum();
    println!("exact {exact} redrawn {redrawn}");
    let (done, invalid) = batch::run(&target, planned, 1).unwrap();
    for i in invalid { println!("INVALID {i:?}"); }
    for (p, o) in &done { if *o != batch::Outcome::Agrees { println!("{} {:?} {o:?}", p.case.index, p.case.policy()); } }
    println!("{:?}", t0.elapsed());
}
