//! Generation: a prompt in, tokens out, one callback per token.

use crate::error::{Error, Result};
use crate::sampler::{Sampler, Sampling};
use crate::session::Session;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Goes on past the end-of-sequence token.
    pub ignore_eos: bool,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions { max_tokens: 128, ignore_eos: false, sampling: Sampling::default() }
    }
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The end-of-sequence token came (it is not among the tokens).
    Eos,
    /// As many tokens as asked for.
    MaxTokens,
    /// The sequence reached the compiled number of positions.
    MaxSeq,
    /// The callback said so.
    Callback,
}

impl Stop {
    /// Short name for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Stop::Eos => "eos",
            Stop::MaxTokens => "max_tokens",
            Stop::MaxSeq => "max_seq",
            Stop::Callback => "callback",
        }
    }
}

/// What was generated and how long it took.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Generated ids.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: Stop,
    /// From the call to the first token.
    pub first_token: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

impl Generation {
    /// Tokens per second after the first; 0 if there was but one.
    pub fn decode_tokens_per_second(&self) -> f64 {
        let seconds = self.decode.as_secs_f64();
        if self.tokens.len() < 2 || seconds == 0.0 { 0.0 } else { (self.tokens.len() - 1) as f64 / seconds }
    }
}

impl Session {
    /// Generates from `prompt`, calling `token` with each id as it is known.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the prompt is empty, longer than the compiled range (which is named), or holds an id outside
    /// the vocabulary.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        mut token: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let started = Instant::now();
        let limit = self.max_positions();
        if prompt.is_empty() || prompt.len() > limit {
            return Err(Error::InvalidInput(format!(
                "the prompt has {} tokens; the artifact was compiled for sequences of 1..={limit} (--max-seq)",
                prompt.len()
            )));
        }
        let mut sampler = Sampler::new(options.sampling)?;
        let ids = prompt
            .iter()
            .map(|id| {
                i32::try_from(*id).map_err(|_| Error::InvalidInput(format!("token id {id} is outside the vocabulary")))
            })
            .collect::<Result<Vec<i32>>>()?;
        let mut sequence = self.new_sequence();
        let mut out = Generation {
            tokens: Vec::with_capacity(options.max_tokens.min(limit)),
            stop: Stop::MaxTokens,
            first_token: Duration::ZERO,
            decode: Duration::ZERO,
        };
        let run = || -> Result<()> {
            let mut next = if options.max_tokens == 0 { return Ok(()) } else { ids };
            loop {
                let id = sampler.next(self.extend(&mut sequence, &next)?)?;
                if out.tokens.is_empty() {
                    out.first_token = started.elapsed();
                }
                if !options.ignore_eos && self.model().eos_ids.contains(&id) {
                    out.stop = Stop::Eos;
                    return Ok(());
                }
                out.tokens.push(id);
                if token(id).is_break() {
                    out.stop = Stop::Callback;
                    return Ok(());
                }
                if out.tokens.len() >= options.max_tokens {
                    return Ok(());
                }
                if sequence.positions() >= limit {
                    out.stop = Stop::MaxSeq;
                    return Ok(());
                }
                next.clear();
                next.push(id as i32);
            }
        };
        let result = run();
        out.decode = started.elapsed().saturating_sub(out.first_token);
        drop(sequence);
        result.map(|()| out)
    }
}
