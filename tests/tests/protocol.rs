//! The protocols of collectives hold in every interleaving of the tile programs' memory events, on two and three ranks over several
//! steps with epochs across the wrap; and each mistake of the field, put back, is found.

use std::collections::BTreeMap;
use weldment_codegen::tile::{Binary, Inst, Kernel, Stmt, V};
use weldment_ir::{DType, Dim, Op, Real};
use weldment_tests::draft::Draft;
use weldment_tests::execute::{Stored, Values};
use weldment_tests::programs::RankPrograms;
use weldment_tests::protocol::{Content, Event, Programs, Slabs, Violation, explore};

/// What stands where nothing has arrived: -0.0, and in the second stage a NaN.
const EMPTY: &[u32] = &[0x8000_0000, 0xffff_ffff];
/// The first of the epochs that wrap within a few steps.
const NEAR_WRAP: u32 = u32::MAX - 1;
/// Programs of a grid whose programs walk rows.
const GRID: u64 = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    OneStage,
    TwoStages,
}

impl Form {
    fn target(self) -> &'static str {
        match self {
            Form::OneStage => "sm_90a all_reduce=1",
            Form::TwoStages => "sm_90a all_reduce=2",
        }
    }
}

/// A case: its programs over `steps` steps.
struct Case {
    form: Form,
    world: u64,
    steps: u64,
    /// Rows that the program walks in each.
    rows: u64,
    epoch: u32,
    /// Words that stand for each 8 of a row.
    words: usize,
}

/// The events of a case whose kernels are changed by `change`.
fn programs(case: &Case, change: &dyn Fn(&Kernel) -> Kernel) -> Programs {
    // Two stages share a row out in whole packs.
    let (world, h) = (case.world, if case.form == Form::OneStage { 8 } else { 8 * case.world });
    // A program has each row that comes a grid after its last one, of a GPU's at most.
    let tokens = GRID * (case.rows - 1) + 1;
    let mut draft = Draft::new(tokens, 1..=tokens);
    let shape = || vec![Dim::sym("T"), Dim::Const(h)];
    let (x, residual) = (draft.input("x", DType::F32, shape()), draft.input("residual", DType::F32, shape()));
    let w = draft.weight("w", DType::F32, &[h]);
    let op = Op::AllReduceAddRmsNorm { world: world as i64, eps: Real(1e-5), dtype: DType::F32 };
    let norm = draft.push(op, &[x, residual, w]);
    draft.results(&[norm, weldment_ir::Value { result: 1, ..norm }]);
    let floats = |n: u64, of: u64| -> Vec<f32> { (0..n).map(|i| 1.0 + (i * 7 + of) as f32).collect() };
    let weights = Values::from([("w".to_owned(), Stored::floats(DType::F32, &[h], &floats(h, 3)))]);
    let mut ranks = RankPrograms::new(&draft.graph, &weights, case.form.target(), world as usize).expect("it compiles");
    ranks.start_epochs(case.epoch);
    let (stride, mut initial) = ranks.slab();
    let dims = BTreeMap::from([("T".to_owned(), tokens)]);
    let mut traces = Vec::new();
    for step in 0..case.steps {
        let values = |rank: u64| {
            let mut own = weights.clone();
            for (name, of) in [("x", rank), ("residual", 50)] {
                own.insert(name.into(), Stored::floats(DType::F32, &[tokens, h], &floats(tokens * h, of + step)));
            }
            own
        };
        let values: Vec<Values> = (0..world).map(values).collect();
        traces.extend(ranks.trace(&dims, &values, change).expect("all ranks run in turn"));
    }
    // As `start_epochs` left it, but for what is filled.
    for word in initial.chunks_exact_mut(4).filter(|word| **word == [0; 4]) {
        word.copy_from_slice(&case.epoch.to_le_bytes());
    }
    Slabs { stride, initial, empty: EMPTY, words: case.words }.programs(&traces)
}

fn as_it_is(kernel: &Kernel) -> Kernel {
    kernel.clone()
}

/// The kernel with `change` applied to its instructions, innermost first; `None` takes one out.
fn with(kernel: &Kernel, change: &dyn Fn(&Kernel, &Stmt) -> Option<Inst>) -> Kernel {
    fn walk(kernel: &Kernel, body: &[Stmt], change: &dyn Fn(&Kernel, &Stmt) -> Option<Inst>) -> Vec<Stmt> {
        let each = |stmt: &Stmt| {
            let mut stmt = stmt.clone();
            if let Inst::For { body, .. } | Inst::If { body, .. } = &mut stmt.inst {
                *body = walk(kernel, body, change);
            }
            change(kernel, &stmt).map(|inst| Stmt { inst, ..stmt })
        };
        body.iter().filter_map(each).collect()
    }
    let mut out = kernel.clone();
    out.body = walk(kernel, &kernel.body, change);
    // As text: a NaN in it is not equal to itself.
    assert_ne!(format!("{:?}", out.body), format!("{:?}", kernel.body), "nothing to change");
    out
}

/// The instruction that defines a value at the top of the kernel.
fn definition(kernel: &Kernel, v: V) -> Option<&Inst> {
    kernel.body.iter().find(|s| s.value == Some(v)).map(|s| &s.inst)
}

/// Areas are taken in turn by one bit of the epoch less.
fn fewer_areas(kernel: &Kernel) -> Kernel {
    let mask = |stmt: &Stmt| match stmt.inst {
        Inst::Binary(Binary::And, _, b) if matches!(definition(kernel, b), Some(Inst::Int(1 | 3))) => Some(b),
        _ => None,
    };
    let masks: Vec<V> = kernel.body.iter().filter_map(mask).collect();
    with(kernel, &|_, stmt| {
        Some(match stmt.inst {
            Inst::Int(n) if stmt.value.is_some_and(|v| masks.contains(&v)) => Inst::Int(n >> 1),
            ref other => other.clone(),
        })
    })
}

fn found(programs: &Programs) -> Violation {
    explore(&programs.events, &programs.start).expect_err("the mistake is found")
}

const CASES: [Case; 8] = [
    Case { form: Form::OneStage, world: 2, steps: 7, rows: 1, epoch: NEAR_WRAP, words: 2 },
    Case { form: Form::OneStage, world: 3, steps: 5, rows: 1, epoch: NEAR_WRAP, words: 1 },
    Case { form: Form::OneStage, world: 2, steps: 2, rows: 5, epoch: NEAR_WRAP, words: 2 },
    Case { form: Form::OneStage, world: 3, steps: 1, rows: 5, epoch: 0, words: 1 },
    Case { form: Form::TwoStages, world: 2, steps: 6, rows: 1, epoch: NEAR_WRAP, words: 1 },
    Case { form: Form::TwoStages, world: 3, steps: 3, rows: 1, epoch: NEAR_WRAP, words: 1 },
    Case { form: Form::TwoStages, world: 2, steps: 2, rows: 5, epoch: NEAR_WRAP, words: 1 },
    Case { form: Form::TwoStages, world: 3, steps: 1, rows: 3, epoch: 0, words: 1 },
];

#[test]
fn every_interleaving_is_right() {
    for case in &CASES {
        let programs = programs(case, &as_it_is);
        let explored = explore(&programs.events, &programs.start);
        let what = format!("{:?}, {} ranks, {} steps, {} rows", case.form, case.world, case.steps, case.rows);
        let explored = explored.unwrap_or_else(|e| panic!("{what}: {e}"));
        println!("{what}: {} states", explored.states);
        // A trace without choices would prove nothing.
        assert!(explored.states > 50, "{what}: {} states", explored.states);
    }
}

fn two_ranks(form: Form, epoch: u32) -> Case {
    Case { form, world: 2, steps: 5, rows: 1, epoch, words: 1 }
}

/// What was made empty in a row must be in place before the program pushes the next: no end of a launch stands between.
#[test]
fn a_relaxed_epoch_between_rows_is_found() {
    let relaxed = |kernel: &Kernel| {
        with(kernel, &|_, stmt| {
            Some(match &stmt.inst {
                Inst::Signal { address, value, .. } => {
                    Inst::Signal { address: address.clone(), value: *value, release: false }
                }
                other => other.clone(),
            })
        })
    };
    for form in [Form::OneStage, Form::TwoStages] {
        let case = Case { steps: 1, rows: 5, ..two_ranks(form, 0) };
        let violation = found(&programs(&case, &relaxed));
        assert!(matches!(violation, Violation::Overwritten { .. } | Violation::WrongRead { .. }), "{violation}");
    }
}

/// What a last barrier would keep from happening: a rank that is ahead writes what a slow one has not made empty or read.
#[test]
fn half_as_many_areas_are_found() {
    for form in [Form::OneStage, Form::TwoStages] {
        let violation = found(&programs(&Case { steps: 3, ..two_ranks(form, 0) }, &fewer_areas));
        assert!(matches!(violation, Violation::Overwritten { .. } | Violation::WrongRead { .. }), "{violation}");
    }
}

/// Slices and sums of one epoch in the same areas.
#[test]
fn stages_that_share_a_channel_are_found() {
    let shared = |kernel: &Kernel| {
        let is_channel = |at: &usize| kernel.params[*at].name.starts_with("channel");
        let channels: Vec<usize> = (0..kernel.params.len()).filter(is_channel).collect();
        let [first, second] = channels[..] else { panic!("two channels are expected in {kernel}") };
        with(kernel, &|_, stmt| {
            let mut inst = stmt.inst.clone();
            if let Inst::Push { address, .. }
            | Inst::Arrive { address, .. }
            | Inst::Load { address, .. }
            | Inst::Signal { address, .. } = &mut inst
                && address.param.0 as usize == second
            {
                address.param.0 = first as _;
            }
            Some(inst)
        })
    };
    let violation = found(&programs(&Case { steps: 2, ..two_ranks(Form::TwoStages, 0) }, &shared));
    assert!(!matches!(violation, Violation::Hang { .. }), "{violation}");
}

#[test]
fn a_flag_baked_by_the_host_is_found() {
    // The epoch that a replay reads is the one of the capture.
    let baked = |kernel: &Kernel| {
        let first = kernel.body.iter().position(|s| {
            matches!(s.inst, Inst::Load { .. })
                && s.value.is_some_and(|v| kernel.types[v.0 as usize].to_string() == "i32")
        });
        let epoch = kernel.body[first.expect("an epoch is read")].value;
        with(kernel, &|_, stmt| Some(if stmt.value == epoch { Inst::Int(0) } else { stmt.inst.clone() }))
    };
    for form in [Form::OneStage, Form::TwoStages] {
        let violation = found(&programs(&Case { steps: 2, ..two_ranks(form, 0) }, &baked));
        assert!(matches!(violation, Violation::Overwritten { .. } | Violation::WrongRead { .. }), "{violation}");
    }
}

#[test]
fn another_grid_on_one_rank_is_found() {
    for form in [Form::OneStage, Form::TwoStages] {
        let mut programs = programs(&Case { steps: 2, ..two_ranks(form, 0) }, &as_it_is);
        // The program has no row in the second step of rank 1.
        let first = programs.events[1].iter().position(|e| *e == Event::End).expect("a step");
        programs.events[1].truncate(first + 1);
        assert!(matches!(found(&programs), Violation::Hang { .. }), "{form:?}");
    }
}

#[test]
fn areas_that_are_not_filled_before_the_first_replay_are_found() {
    let mut programs = programs(&Case { steps: 1, ..two_ranks(Form::OneStage, 0) }, &as_it_is);
    programs.start.retain(|(_, content)| *content != Content::Empty);
    assert!(matches!(found(&programs), Violation::WrongRead { found: Content::Stale, .. }));
}

#[test]
fn areas_that_are_not_made_empty_again_are_found() {
    let forgets = |kernel: &Kernel| {
        with(kernel, &|kernel, stmt| match &stmt.inst {
            Inst::Push { value, .. } if matches!(definition(kernel, *value), Some(Inst::Int(_))) => None,
            other => Some(other.clone()),
        })
    };
    found(&programs(&two_ranks(Form::OneStage, 0), &forgets));
}
