//! `run`: a prompt in, tokens or text out as they come.

use super::{SessionArgs, files, put, put_json};
use crate::artifact::Artifact;
use crate::codec::{EncodedPrompt, OpenCodec};
use crate::error::{Error, Result};
use crate::generate::GenerateOptions;
use serde_json::json;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

/// Where the prompt comes from.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Text; through the chat template unless `raw`.
    Text {
        /// The user's words.
        text: String,
        /// Leaves the chat template out.
        raw: bool,
    },
    /// A file of token ids (see [`files::read_tokens`]).
    Tokens(PathBuf),
}

/// Options of `run`.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// What to run.
    pub session: SessionArgs,
    /// The prompt.
    pub prompt: Prompt,
    /// How to generate.
    pub generate: GenerateOptions,
    /// One JSON object at the end instead of a stream.
    pub json: bool,
}

/// Runs the artifact. Without a tokenizer (`codec` is `None`) ids are printed, separated by spaces.
///
/// # Errors
/// Bad input of any kind.
pub fn run(options: &RunOptions, open_codec: OpenCodec<'_>, out: &mut dyn Write) -> Result<()> {
    let started = Instant::now();
    let artifact = Artifact::open(&options.session.artifact)?;
    if options.session.launched(&artifact)? {
        return Ok(());
    }
    // With token ids the tokenizer is not needed before the end, if at all: building it would cost most of the start.
    let codec = match &options.prompt {
        Prompt::Tokens(_) => None,
        Prompt::Text { .. } => open_codec(&artifact)?,
    };
    let prompt = match (&options.prompt, &codec) {
        (Prompt::Tokens(path), _) => EncodedPrompt { ids: files::read_tokens(path)?, is_turn: false },
        (Prompt::Text { text, raw }, Some(codec)) => codec.encode_prompt(text, *raw)?,
        (Prompt::Text { .. }, None) => {
            return Err(Error::InvalidInput(
                "--prompt needs a tokenizer: this binary or this artifact has none; give --tokens ids.json".into(),
            ));
        }
    };
    let EncodedPrompt { ids: prompt, is_turn } = prompt;
    // An answer starts a text of its own.
    let continued = if is_turn { &[][..] } else { prompt.as_slice() };
    let positions = prompt.len().saturating_add(options.generate.max_tokens);
    let mut session = options.session.session(&artifact, 1, Some(positions))?;
    let load = started.elapsed();
    // One rank speaks for all.
    let mut silent = std::io::sink();
    let reports = session.reports();
    let out: &mut dyn Write = if reports { out } else { &mut silent };
    let mut decoder = codec.as_ref().map(|codec| codec.decoder(continued));
    let (mut text, mut failure, mut first) = (String::new(), None, true);
    let mut emit = |piece: &str, failure: &mut Option<Error>| {
        text.push_str(piece);
        if !options.json
            && let Err(e) = put(out, piece)
        {
            *failure = Some(e);
        }
    };
    let generation = session.generate(&prompt, &options.generate, |id| {
        let piece = match &mut decoder {
            Some(decoder) => decoder.push(id),
            None => Ok(format!("{}{id}", if first { "" } else { " " })),
        };
        first = false;
        match piece {
            Ok(piece) => emit(&piece, &mut failure),
            Err(e) => failure = Some(e),
        }
        if failure.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if let Some(decoder) = decoder {
        emit(&decoder.finish()?, &mut failure);
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    let speed = generation.decode_tokens_per_second();
    let first_token = load + generation.first_token;
    if options.json {
        let mut report = json!({
            "ids": generation.tokens,
            "prompt_tokens": prompt.len(),
            "stop": generation.stop.name(),
            "load_ms": load.as_secs_f64() * 1e3,
            "first_token_ms": first_token.as_secs_f64() * 1e3,
            "prefill_ms": generation.first_token.as_secs_f64() * 1e3,
            "decode_tokens_per_second": speed,
        });
        if codec.is_none() {
            text = match open_codec(&artifact)? {
                Some(late) => {
                    let mut decoder = late.decoder(continued);
                    let pieces: Result<String> = generation.tokens.iter().map(|id| decoder.push(*id)).collect();
                    pieces? + &decoder.finish()?
                }
                None => String::new(),
            };
        }
        if let Some(object) = report.as_object_mut() {
            object.insert("text".into(), text.into());
        }
        put_json(out, &report)?;
        return session.close();
    }
    put(out, "\n")?;
    session.close()?;
    if !reports {
        return Ok(());
    }
    eprintln!(
        "{} prompt tokens, {} generated ({}), first token after {:.1} ms, {speed:.1} tokens/s",
        prompt.len(),
        generation.tokens.len(),
        generation.stop.name(),
        first_token.as_secs_f64() * 1e3,
    );
    Ok(())
}
