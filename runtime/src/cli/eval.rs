//! `eval`: the logits of every position, as a file.

use super::{SessionArgs, files, nan};
use crate::artifact::Artifact;
use crate::error::{Error, Result};
use crate::session::Session;
use std::path::PathBuf;

/// Options of `eval`.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    /// What to run.
    pub session: SessionArgs,
    /// Token ids (see [`files::read_tokens`]).
    pub tokens: PathBuf,
    /// Output: safetensors with `logits`, f32 `[T, vocab]`.
    pub logits: PathBuf,
    /// One token a step instead of one prefill.
    pub stepwise: bool,
    /// How often the tokens are evaluated: each time must give the same bits, on all ranks alike.
    pub repeat: u64,
}

/// Evaluates the tokens as often again as was asked for, from the first position each time.
fn repeat(session: &mut Session, ids: &[i32], options: &EvalOptions, first: &[f32]) -> Result<()> {
    let hash = |logits: &[f32]| {
        let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
        crate::blake3_hex(&bytes)
    };
    let expected = hash(first);
    for time in 1..options.repeat {
        let found = hash(&session.eval(ids, options.stepwise)?);
        if found != expected {
            return Err(Error::CheckFailed(format!("evaluation {} gave other logits than the first", time + 1)));
        }
    }
    match session.group() {
        Some(group) if options.repeat > 1 => group.agree("hash of logits", expected.as_bytes()),
        _ => Ok(()),
    }
}

/// Evaluates the tokens and writes their logits.
///
/// # Errors
/// Bad input of any kind; [`Error::CheckFailed`] if a logit is NaN, with the first launch that made one, once the file is written.
pub fn eval(options: &EvalOptions) -> Result<()> {
    let tokens = files::read_tokens(&options.tokens)?;
    let ids = tokens
        .iter()
        .map(|id| {
            i32::try_from(*id).map_err(|_| Error::InvalidInput(format!("token id {id} is outside the vocabulary")))
        })
        .collect::<Result<Vec<i32>>>()?;
    let artifact = Artifact::open(&options.session.artifact)?;
    if options.session.launched(&artifact)? {
        return Ok(());
    }
    let mut session = options.session.session(&artifact, 1, Some(ids.len()))?;
    let logits = session.eval(&ids, options.stepwise)?;
    repeat(&mut session, &ids, options, &logits)?;
    let reports = session.reports();
    if reports {
        files::write_logits(&options.logits, &logits, session.model().vocab_size as usize)?;
    }
    session.close()?;
    if reports && let Some(count) = nan::count(&logits) {
        return Err(nan::failure(options, &artifact, &ids, count));
    }
    if reports {
        eprintln!("{} tokens evaluated, logits in {}", ids.len(), options.logits.display());
    }
    Ok(())
}
