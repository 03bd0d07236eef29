//! `eval`: the logits of every position, as a file.

use super::{SessionArgs, files};
use crate::artifact::Artifact;
use crate::error::{Error, Result};
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
}

/// Evaluates the tokens and writes their logits.
///
/// # Errors
/// Bad input of any kind.
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
    let reports = session.reports();
    if reports {
        files::write_logits(&options.logits, &logits, session.model().vocab_size as usize)?;
    }
    session.close()?;
    if reports {
        eprintln!("{} tokens evaluated, logits in {}", ids.len(), options.logits.display());
    }
    Ok(())
}
