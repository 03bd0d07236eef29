//! The road from a file to tokens, on the tiny artifact.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

#[allow(dead_code, reason = "each test binary uses its own part")]
mod common;

use std::ops::ControlFlow;
use weldment_runtime::{Artifact, Device, GenerateOptions, Sampling, Session, SessionOptions, StepInput, Stop, Stream};

fn session(threads: usize) -> Session {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.weld");
    common::write_tiny(&path);
    let artifact = Artifact::open(&path).unwrap();
    Session::new(&artifact, &Device::host(threads).unwrap(), SessionOptions::default()).unwrap()
}

#[test]
fn generates_and_stops() {
    for threads in [1, 2, 5] {
        let mut session = session(threads);
        let mut seen = Vec::new();
        let mut options = GenerateOptions::default();
        let out = session
            .generate(&[2, 3], &options, |id| {
                seen.push(id);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!((out.tokens.as_slice(), out.stop), (&[4, 5, 6][..], Stop::Eos));
        assert_eq!(seen, out.tokens);
        options.ignore_eos = true;
        let out = session.generate(&[6], &options, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((out.tokens.len(), out.stop), (64, Stop::MaxSeq));
        assert!(out.tokens.iter().enumerate().all(|(i, id)| *id == (7 + i as u32) % 8));
        options.max_tokens = 3;
        let out = session.generate(&[6], &options, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((out.tokens.as_slice(), out.stop), (&[7, 0, 1][..], Stop::MaxTokens));
        options.sampling = Sampling { temperature: 0.01, top_p: 0.9, seed: 1 };
        let out = session.generate(&[6], &options, |_| ControlFlow::Break(())).unwrap();
        assert_eq!((out.tokens.as_slice(), out.stop), (&[7][..], Stop::Callback));
        assert_eq!(session.block_pool().free_blocks(), 16);
    }
}

#[test]
fn prefill_and_stepwise_agree() {
    let mut session = session(2);
    let tokens: Vec<i32> = (0..10).map(|i| i * 5 % 8).collect();
    let prefill = session.eval(&tokens, false).unwrap();
    assert_eq!(prefill.len(), tokens.len() * 8);
    assert_eq!(prefill, session.eval(&tokens, true).unwrap());
    for (row, token) in prefill.chunks(8).zip(&tokens) {
        assert_eq!(row.iter().position(|x| *x == 1.0), Some((*token as usize + 1) % 8));
    }
}

#[test]
fn a_ragged_step() {
    let mut session = session(2);
    // The second sequence has come as far as position 16.
    for (first, count) in [(0, 12), (12, 5)] {
        let positions: Vec<i32> = (first..first + count).collect();
        let input = StepInput {
            tokens: &vec![1; count as usize],
            positions: &positions,
            seq_starts: &[0, count],
            block_tables: &[1, 2],
            logit_rows: &[0],
        };
        session.step(&input).unwrap();
    }
    let input = StepInput {
        tokens: &[1, 2, 3, 4],
        positions: &[0, 1, 2, 17],
        seq_starts: &[0, 3, 4],
        block_tables: &[0, -1, 1, 2],
        logit_rows: &[3, 2],
    };
    let logits = session.step(&input).unwrap();
    assert_eq!(logits.iter().enumerate().filter(|(_, x)| **x == 1.0).map(|(i, _)| i).collect::<Vec<_>>(), [5, 12]);
}

#[test]
fn bad_steps_are_refused_with_the_accepted_range() {
    let mut session = session(1);
    let good =
        StepInput { tokens: &[1, 2], positions: &[0, 1], seq_starts: &[0, 2], block_tables: &[0], logit_rows: &[1] };
    session.step(&good).unwrap();
    let many = vec![1i32; 17];
    let ascending: Vec<i32> = (0..17).collect();
    let cases: [(StepInput, &str); 17] = [
        (StepInput { tokens: &[1, 8], ..good }, "vocabulary 0..8"),
        (StepInput { tokens: &[1, -1], ..good }, "vocabulary 0..8"),
        (StepInput { tokens: &[], positions: &[], seq_starts: &[0, 0], ..good }, "1..=16"),
        (StepInput { tokens: &many, positions: &ascending, seq_starts: &[0, 17], ..good }, "1..=16"),
        (
            StepInput { tokens: &many[..13], positions: &ascending[..13], seq_starts: &[0, 13], ..good },
            "accepted: 1..=12",
        ),
        (StepInput { positions: &[0], ..good }, "1 positions for 2 tokens"),
        (StepInput { positions: &[1, 1], ..good }, "do not follow each other: 1 after 1"),
        (StepInput { positions: &[-1, 0], ..good }, "start at 0"),
        (StepInput { positions: &[15, 16], ..good }, "needs 2 KV blocks"),
        (StepInput { positions: &[i32::MAX - 1, i32::MAX], ..good }, "compiled for positions 0..64"),
        // The 13 tokens above were refused, so nothing of them counts as computed.
        (StepInput { positions: &[12, 13], ..good }, "position 2 was not computed"),
        (StepInput { seq_starts: &[0, 1], ..good }, "run from 0 to 2"),
        (StepInput { seq_starts: &[0, 3, 2], block_tables: &[0, 1], ..good }, "descends"),
        (StepInput { block_tables: &[-1], ..good }, "no KV block"),
        (StepInput { block_tables: &[16], ..good }, "pool 0..16"),
        (StepInput { logit_rows: &[2], ..good }, "0..2"),
        (StepInput { logit_rows: &[], ..good }, "1..=16"),
    ];
    for (input, expected) in cases {
        let error = session.step(&input).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
    let error = session.generate(&[1; 65], &GenerateOptions::default(), |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("1..=64"), "{error}");
    assert!(session.generate(&[], &GenerateOptions::default(), |_| ControlFlow::Continue(())).is_err());
    session.step(&good).unwrap();
}

#[test]
fn streams_keep_time() {
    let device = Device::host(1).unwrap();
    let mut stream = Stream::new(&device).unwrap();
    let first = stream.record().unwrap();
    stream.synchronize().unwrap();
    let second = stream.record().unwrap();
    assert!(second.since(&first).unwrap() >= first.since(&second).unwrap());
}
