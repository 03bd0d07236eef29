//! Commands that run something: the runtime does the work; a model is compiled into the cache first.

use super::args::{BenchArgs, BuildArgs, EvalArgs, InspectArgs, RunArgs};
use super::progress::Bars;
use super::{graphs, ladder, put};
use crate::driver::{self, CompileError, Progress, Reference};
use std::io::stdout;
use std::path::Path;
use weldment_ir::{Graph, Op};
use weldment_runtime::cli;
use weldment_runtime::generate::GenerateOptions;

/// The tokenizer of an artifact, as the runtime reads it.
const CODEC: weldment_runtime::codec::OpenCodec<'static> = &weldment_runtime::codec::open;

/// Logits are written as f32.
fn as_f32(logits: &[f64]) -> Vec<f32> {
    logits.iter().map(|x| *x as f32).collect()
}

/// `weldment run`.
pub fn run(args: &RunArgs) -> Result<(), CompileError> {
    if args.interpret {
        return run_reference(args);
    }
    let mut session = graphs::session(&args.model, &args.build, args.weights_file.as_deref())?;
    session.shapes.clone_from(&args.shapes);
    session.values.clone_from(&args.values);
    session.uncaptured = args.uncaptured;
    let prompt = match (&args.tokens, &args.prompt) {
        (Some(path), _) => cli::run::Prompt::Tokens(path.clone()),
        (None, Some(text)) => cli::run::Prompt::Text { text: text.clone(), raw: args.raw },
        (None, None) => return Err(CompileError::option("run", "--prompt TEXT or --tokens FILE is expected")),
    };
    let mut generate = GenerateOptions { ignore_eos: args.ignore_eos, ..GenerateOptions::default() };
    generate.max_tokens = args.max_tokens.unwrap_or(generate.max_tokens);
    generate.sampling.temperature = args.temperature.map_or(generate.sampling.temperature, |t| t as _);
    generate.sampling.top_p = args.top_p.map_or(generate.sampling.top_p, |p| p as _);
    generate.sampling.seed = args.seed.unwrap_or(generate.sampling.seed);
    let options = cli::run::RunOptions { session, prompt, generate, json: args.json };
    Ok(cli::run::run(&options, CODEC, &mut stdout())?)
}

/// `weldment eval`.
pub fn eval(args: &EvalArgs) -> Result<(), CompileError> {
    if args.interpret {
        return eval_reference(args);
    }
    let by_name = !args.input.is_empty() || args.entry.is_some();
    let build = if by_name { made_up_weights(&args.model, &args.build)? } else { args.build.clone() };
    let mut session = graphs::session(&args.model, &build, args.weights_file.as_deref())?;
    session.shapes.clone_from(&args.shapes);
    session.values.clone_from(&args.values);
    session.uncaptured = args.uncaptured;
    let (Some(tokens), Some(logits)) = (args.tokens.clone(), args.logits.clone()) else {
        let call = cli::call::CallOptions {
            session,
            entry: args.entry.clone(),
            tokens: args.tokens.clone(),
            inputs: args.input.clone(),
            outputs: args.output.clone(),
            sizes: args.size.clone(),
            repeat: args.repeat,
        };
        return Ok(cli::call::eval(&call, &mut stdout())?);
    };
    Ok(cli::eval::eval(&cli::eval::EvalOptions {
        session,
        tokens,
        logits,
        stepwise: args.stepwise,
        repeat: args.repeat,
    })?)
}

/// The options of a command that calls an entry by its inputs; says so where a text graph's weights are made up.
fn made_up_weights(model: &Path, build: &BuildArgs) -> Result<BuildArgs, CompileError> {
    let (build, made_up) = graphs::with_weights(model, build);
    let reads = |graph: &Graph| graph.ids().any(|id| matches!(graph.node(id).op, Op::Weight { .. }));
    if made_up && graphs::read_wir(model)?.iter().any(reads) {
        eprintln!("weights are made up from seed 0; --checkpoint MODEL or --weights random:SEED says otherwise");
    }
    Ok(build)
}

/// `weldment bench`.
pub fn bench(args: &BenchArgs) -> Result<(), CompileError> {
    if args.ladder || !args.vs_disable.is_empty() {
        return ladder::bench(args);
    }
    if args.html.is_some() {
        return Err(CompileError::option(
            "--html",
            "it shows a comparison: --ladder or --vs-disable is expected with it",
        ));
    }
    let build = if args.entry.is_some() { made_up_weights(&args.model, &args.build)? } else { args.build.clone() };
    let mut session = graphs::session(&args.model, &build, args.weights_file.as_deref())?;
    session.shapes.clone_from(&args.shapes);
    if let Some(entry) = args.entry.clone() {
        let (sizes, budget) = (args.size.clone(), args.seconds);
        let options = cli::call::EntryBench { session, entry, sizes, budget, json: args.json };
        return Ok(cli::call::bench(&options, &mut stdout())?);
    }
    let (context, prefill) = (Some(args.context), Some(args.prefill));
    let (batches, budget) = (args.batch.clone(), args.seconds);
    let options = cli::bench::BenchOptions { session, batches, context, prefill, budget, json: args.json };
    cli::bench::bench(&options, &mut stdout())?;
    Ok(())
}

/// `weldment inspect`.
pub fn inspect(args: &InspectArgs) -> Result<(), CompileError> {
    let view = match &args.section {
        Some(name) => cli::inspect::View::parse(name)?,
        None => cli::inspect::View::Summary,
    };
    let options = cli::inspect::InspectOptions { artifact: args.artifact.clone(), view, json: args.json };
    Ok(cli::inspect::inspect(&options, &mut stdout())?)
}

/// The token of the largest logit, ties to the lower index.
fn greedy(row: &[f64]) -> u32 {
    let best =
        row.iter().enumerate().fold((0, f64::NEG_INFINITY), |best, (i, x)| if *x > best.1 { (i, *x) } else { best });
    best.0 as u32
}

fn reference(
    model: &Path,
    build: &super::args::BuildArgs,
    positions: usize,
) -> Result<(Reference, usize), CompileError> {
    driver::check_limits(build.tp, build.kv_block)?;
    let checkpoint = graphs::checkpoint(model, build)?;
    let dtype = build.dtype.unwrap_or(checkpoint.config.dtype);
    let vocab = checkpoint.config.vocab as usize;
    Ok((Reference::of_ranks(&checkpoint, dtype, positions, build.tp)?, vocab))
}

fn run_reference(args: &RunArgs) -> Result<(), CompileError> {
    let path = args.tokens.as_deref().ok_or_else(|| CompileError::option("--interpret", "needs --tokens"))?;
    let mut next = cli::files::read_tokens(path)?;
    let count = args.max_tokens.unwrap_or(GenerateOptions::default().max_tokens);
    let (mut reference, vocab) = reference(&args.model, &args.build, next.len().saturating_add(count))?;
    let mut bars = Bars::new();
    bars.begin("interpret");
    let mut text = String::new();
    for done in 0..count {
        let logits = reference.step(&next)?;
        let row = logits.len().checked_sub(vocab).and_then(|start| logits.get(start..));
        let id = greedy(row.unwrap_or(&[]));
        text += &format!("{}{id}", if done == 0 { "" } else { " " });
        next = vec![id];
        bars.advance(done as u64 + 1, count as u64);
    }
    bars.finish();
    put(&format!("{text}\n"))
}

fn eval_reference(args: &EvalArgs) -> Result<(), CompileError> {
    let (Some(tokens), Some(path)) = (&args.tokens, &args.logits) else {
        return Err(CompileError::option("--interpret", "needs --tokens and --logits"));
    };
    let tokens = cli::files::read_tokens(tokens)?;
    let (mut reference, vocab) = reference(&args.model, &args.build, tokens.len())?;
    let mut logits = Vec::new();
    for part in tokens.chunks(if args.stepwise { 1 } else { tokens.len().max(1) }) {
        logits.extend(as_f32(&reference.step(part)?));
    }
    cli::files::write_logits(path, &logits, vocab)?;
    match logits.iter().filter(|x| x.is_nan()).count() {
        0 => Ok(()),
        count => {
            let message = format!("{count} logits are NaN, interpreted; they are in {}", path.display());
            Err(weldment_runtime::Error::CheckFailed(message).into())
        }
    }
}
