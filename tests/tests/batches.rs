//! Batches on a compiled model give each sequence what it gets alone, to the bit, with block tables of every width; nothing outside the
//! states is read or written.
#![cfg(target_arch = "x86_64")]

mod tiny_llama;

use weldment_ir::DType;
use weldment_runtime::conformance::check_batches;
use weldment_runtime::driver::ExternalMemory;
use weldment_runtime::{Device, Session, SessionOptions, StepInput};

/// Bytes before and behind a state, all ones: no float of any width, so that a value read from them shows in the logits.
const GUARD: usize = 1 << 16;

/// A state between two guards.
struct Guarded {
    bytes: Vec<u64>,
    len: usize,
}

impl Guarded {
    fn new(len: usize) -> Guarded {
        let mut bytes = vec![u64::MAX; (2 * GUARD + len.next_multiple_of(64) + 64) / 8];
        let start = Guarded::start(&bytes) / 8;
        // What a step has not computed may be anything, too: it must not show either.
        bytes[start..start + len / 8].fill(0x7fc0_7fc0_7fc0_7fc0);
        Guarded { bytes, len }
    }

    /// Byte of the state, which is 64-byte aligned.
    fn start(bytes: &[u64]) -> usize {
        let address = bytes.as_ptr() as usize;
        (address + GUARD).next_multiple_of(64) - address
    }

    fn memory(&mut self) -> ExternalMemory {
        let address = self.bytes.as_mut_ptr() as usize + Guarded::start(&self.bytes);
        // SAFETY: the test keeps the vector until its sessions are closed, and looks at the guards alone in between.
        unsafe { ExternalMemory::from_raw(address as u64, self.len) }
    }

    fn is_whole(&self) -> bool {
        let start = Guarded::start(&self.bytes) / 8;
        let end = start + self.len.div_ceil(8);
        self.bytes[..start].iter().chain(&self.bytes[end..]).all(|word| *word == u64::MAX)
    }
}

#[test]
fn batches_are_their_sequences_to_the_bit() {
    for (dtype, threads) in [(DType::F32, 1), (DType::BF16, 2)] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let model = tiny_llama::Model { dtype, max_tokens: 128, max_seqs: 16, max_seq: 512, ..Default::default() };
        let artifact = model.compiled(dir.path(), &["host"]);
        let blocks = 16 * 8;
        let mut states: Vec<Guarded> =
            artifact.manifest().states.iter().map(|s| Guarded::new(s.unit_bytes as usize * blocks)).collect();
        let options = SessionOptions {
            cache: None,
            kv_blocks: Some(blocks),
            weights_file: Some(tiny_llama::folder()),
            states: Some(states.iter_mut().map(Guarded::memory).collect()),
            ..SessionOptions::default()
        };
        let device = Device::host(threads).expect("a host");
        let mut session = Session::new(&artifact, &device, options).expect("a session");
        check_batches(&mut session).unwrap_or_else(|e| panic!("{dtype}: {e}"));
        session.close().expect("it closes");
        assert!(states.iter().all(Guarded::is_whole), "{dtype}: something wrote outside the states");
    }
}

#[test]
fn steps_that_would_read_what_is_not_theirs_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = tiny_llama::Model { max_tokens: 32, max_seqs: 4, max_seq: 512, ..Default::default() };
    let artifact = model.compiled(dir.path(), &["host"]);
    let device = Device::host(1).expect("a host");
    let options = |trusts_tables| SessionOptions {
        cache: None,
        weights_file: Some(tiny_llama::folder()),
        trusts_tables,
        ..SessionOptions::default()
    };
    let tokens: Vec<i32> = (0..20).collect();
    let positions: Vec<i32> = (0..20).collect();
    let prompt = StepInput {
        tokens: &tokens,
        positions: &positions,
        seq_starts: &[0, 20],
        block_tables: &[5, 6],
        logit_rows: &[19],
    };
    let next =
        StepInput { tokens: &[1], positions: &[20], seq_starts: &[0, 1], block_tables: &[5, 6], logit_rows: &[0] };
    let mut session = Session::new(&artifact, &device, options(false)).expect("a session");
    session.step(&prompt).expect("a prompt");
    let expected = session.step(&next).expect("a token").to_vec();
    let two = |tables: &'static [i32]| StepInput {
        tokens: &[1, 2],
        positions: &[20, 0],
        seq_starts: &[0, 1, 2],
        block_tables: tables,
        logit_rows: &[0, 1],
    };
    let refused = [
        (StepInput { positions: &[22], ..next }, "position 21 was not computed"),
        (StepInput { block_tables: &[6, 5], ..next }, "position 5 was not computed"),
        (StepInput { block_tables: &[5, 7], ..next }, "position 16 was not computed"),
        (StepInput { block_tables: &[5, 5], ..next }, "shares KV block 5"),
        (StepInput { block_tables: &[5], ..next }, "needs 2 KV blocks"),
        (StepInput { block_tables: &[5, -1], ..next }, "no KV block for position 16"),
        (StepInput { positions: &[-1], ..next }, "positions start at 0"),
        (two(&[5, 6, 6, -1]), "shares KV block 6"),
        (two(&[5, 6, 5, -1]), "shares KV block 5"),
        (StepInput { positions: &[20, 1], ..two(&[5, 6, 9, -1]) }, "position 0 was not computed"),
        (
            StepInput { tokens: &[1, 2], positions: &[20, 22], seq_starts: &[0, 2], ..next },
            "do not follow each other: 22 after 20",
        ),
    ];
    for (input, why) in refused {
        let error = session.step(&input).expect_err(why).to_string();
        assert!(error.contains(why), "{error}; not: {why}");
    }
    // Going back is no mistake: what lay behind is void.
    assert_eq!(session.step(&next).expect("the same token again"), expected);
    session.step(&StepInput { positions: &[7], block_tables: &[5], ..next }).expect("an earlier position");
    assert!(session.step(&next).is_err(), "a position behind one that was computed anew");
    session.step(&prompt).expect("a prompt");
    assert_eq!(session.step(&next).expect("a token"), expected);
    // Who shares on purpose says so.
    let mut session = Session::new(&artifact, &device, options(true)).expect("a session");
    session.step(&prompt).expect("a prompt");
    let both = StepInput {
        tokens: &[1, 1],
        positions: &[19, 20],
        seq_starts: &[0, 1, 2],
        block_tables: &[5, 6, 5, 6],
        logit_rows: &[1],
    };
    session.step(&both).expect("two sequences with one prefix");
}

#[test]
fn a_sequence_is_its_sessions_alone() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let artifact = tiny_llama::artifact(dir.path(), &["host"], 16);
    let device = Device::host(1).expect("a host");
    let open = || {
        let options = SessionOptions { cache: None, weights_file: Some(tiny_llama::folder()), ..Default::default() };
        Session::new(&artifact, &device, options).expect("a session")
    };
    let (mut ours, mut theirs) = (open(), open());
    let all = ours.block_pool().free_blocks();
    let mut sequence = ours.new_sequence();
    ours.extend(&mut sequence, &[1, 2, 3]).expect("a step");
    let error = theirs.extend(&mut sequence, &[4]).expect_err("another session's sequence").to_string();
    assert!(error.contains("another session's"), "{error}");
    assert_eq!(ours.block_pool().free_blocks(), all - 1);
    // A sequence that is dropped, wherever that happens, leaks nothing, and its blocks come home.
    drop(sequence);
    assert_eq!((ours.block_pool().free_blocks(), theirs.block_pool().free_blocks()), (all, all));
}
