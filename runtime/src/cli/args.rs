//! The command line of `weldment-rt`.

use super::bench::{BUDGET, BenchOptions, bench};
use super::call::{self, CallOptions, EntryBench};
use super::doctor::{DoctorOptions, doctor_with};
use super::eval::{EvalOptions, eval};
use super::inspect::{InspectOptions, View, inspect};
use super::launch;
use super::run::{Prompt, RunOptions, run};
use super::verify::{VerifyOptions, verify};
use super::{SessionArgs, put};
use crate::codec::OpenCodec;
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::generate::GenerateOptions;
use lexopt::{Arg, Parser, ValueExt};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// What `--help` prints.
pub const USAGE: &str = "\
weldment-rt: runs Weldment artifacts

  weldment-rt run     M.weld --tokens IDS.json|GOLDEN.safetensors | --prompt TEXT [--raw]
                      [--max-tokens 128] [--ignore-eos] [--temperature 0] [--top-p 1] [--seed 0] [--json]
  weldment-rt eval    M.weld --tokens FILE --logits OUT.safetensors [--stepwise] [--repeat N]
  weldment-rt eval    M.weld [--entry NAME] --input NAME=FILE.. [--output NAME=FILE..] [--size NAME=N..] [--tokens FILE]
  weldment-rt bench   M.weld --entry NAME [--size NAME=N..] [--seconds 1.5] [--json]
  weldment-rt bench   M.weld [--batch 1[,8,...]] [--seconds 1.5] [--context 1024] [--prefill 512] [--json]
  weldment-rt inspect M.weld [manifest|memory|graph|kernels] [--json]
  weldment-rt verify  M.weld --hashes
  weldment-rt doctor  [--json]
  weldment-rt doctor  --conformance M.weld [--device ...] [--weights-file FILE|FOLDER]

eval --input calls any entry with tensors of safetensors files (the tensor of that name, or the file's only one); --size says what no
input does. run, eval and bench take --device auto|host|cuda[:I]|hip[:I] (default auto: the first program of the artifact that a device here
can run, GPUs first), --threads N (default: physical cores), --weights-file FILE|FOLDER and --shapes FILE (or WELDMENT_SHAPES):
a histogram of the steps' shapes and of the variants that ran them, written when the session closes. An artifact of several ranks
runs as the rank that RANK, WORLD_SIZE and LOCAL_RANK (or mpirun's or srun's variables) name; without them its ranks are started here.
--collective-timeout SECONDS (default 5): a rank that is missing, silent or behind for so long ends all. run and eval take
--values FILE --uncaptured: statistics of what each launch left, of launches that run one by one on the host.
Data goes to stdout, messages to stderr (WELDMENT_LOG). Exit code 0: done, 1: a check failed, 2: bad input.
";

/// Everything that may follow a command; which of it a command takes is checked there.
#[derive(Debug, Default)]
struct Given {
    positional: Vec<OsString>,
    device: DeviceChoice,
    threads: Option<usize>,
    weights_file: Option<PathBuf>,
    tokens: Option<PathBuf>,
    entry: Option<String>,
    inputs: Vec<(String, PathBuf)>,
    outputs: Vec<(String, PathBuf)>,
    sizes: Vec<(String, u64)>,
    prompt: Option<String>,
    logits: Option<PathBuf>,
    conformance: Option<PathBuf>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<u64>,
    batches: Option<Vec<usize>>,
    seconds: Option<Duration>,
    context: Option<usize>,
    prefill: Option<usize>,
    repeat: Option<u64>,
    shapes: Option<PathBuf>,
    values: Option<PathBuf>,
    collective_timeout: Option<Duration>,
    flags: Vec<String>,
    names: Vec<String>,
}

/// Runs the command line `arguments` (without the program's name) and returns the exit code.
pub fn main(arguments: Vec<OsString>, open_codec: OpenCodec<'_>) -> u8 {
    let mut out = std::io::stdout();
    match launch::follow_launcher().and_then(|()| dispatch(arguments, open_codec, &mut out)) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("error: {e}");
            e.exit_code()
        }
    }
}

fn usage(detail: impl std::fmt::Display) -> Error {
    Error::InvalidInput(format!("{detail} (see weldment-rt --help)"))
}

fn dispatch(arguments: Vec<OsString>, open_codec: OpenCodec<'_>, out: &mut dyn Write) -> Result<()> {
    let mut parser = Parser::from_args(arguments.clone());
    let command = match parser.next().map_err(usage)? {
        Some(Arg::Value(command)) => command.string().map_err(usage)?,
        Some(Arg::Long("help") | Arg::Short('h')) => return put(out, USAGE),
        Some(Arg::Long("version") | Arg::Short('V')) => {
            return put(out, concat!("weldment-rt ", env!("CARGO_PKG_VERSION"), "\n"));
        }
        Some(other) => return Err(usage(other.unexpected())),
        None => return Err(usage("a command is missing: run, eval, bench, inspect, verify, doctor")),
    };
    let Some(given) = parse(&mut parser)? else { return put(out, USAGE) };
    let only = |names: &[&str], positional: usize| -> Result<()> {
        if let Some(name) = given.names.iter().find(|n| !names.contains(&n.as_str())) {
            return Err(usage(format_args!("{command} does not take --{name}")));
        }
        match given.positional.get(positional) {
            Some(extra) => Err(usage(format_args!("{command}: unexpected argument {}", extra.display()))),
            None => Ok(()),
        }
    };
    let artifact = || {
        let path = given.positional.first().map(PathBuf::from);
        path.ok_or_else(|| usage(format_args!("{command}: the artifact is missing")))
    };
    let session = || -> Result<SessionArgs> {
        let (threads, weights_file) = (given.threads.unwrap_or(0), given.weights_file.clone());
        let shapes = given.shapes.clone();
        Ok(SessionArgs {
            artifact: artifact()?,
            device: given.device,
            threads,
            weights_file,
            shapes,
            values: given.values.clone(),
            uncaptured: given.flags.iter().any(|f| f == "uncaptured"),
            cache: None,
            collective_timeout: given.collective_timeout,
            relaunch: Some(arguments.clone()),
        })
    };
    let flag = |name: &str| given.flags.iter().any(|f| f == name);
    match command.as_str() {
        "run" => {
            only(
                &[
                    "device",
                    "threads",
                    "weights-file",
                    "shapes",
                    "values",
                    "uncaptured",
                    "collective-timeout",
                    "tokens",
                    "prompt",
                    "raw",
                    "max-tokens",
                    "ignore-eos",
                    "temperature",
                    "top-p",
                    "seed",
                    "json",
                ],
                1,
            )?;
            let prompt = match (&given.tokens, &given.prompt) {
                (Some(path), None) => Prompt::Tokens(path.clone()),
                (None, Some(text)) => Prompt::Text { text: text.clone(), raw: flag("raw") },
                _ => return Err(usage("run takes either --tokens or --prompt")),
            };
            let mut generate = GenerateOptions { ignore_eos: flag("ignore-eos"), ..GenerateOptions::default() };
            generate.max_tokens = given.max_tokens.unwrap_or(generate.max_tokens);
            generate.sampling.temperature = given.temperature.unwrap_or(generate.sampling.temperature);
            generate.sampling.top_p = given.top_p.unwrap_or(generate.sampling.top_p);
            generate.sampling.seed = given.seed.unwrap_or(generate.sampling.seed);
            run(&RunOptions { session: session()?, prompt, generate, json: flag("json") }, open_codec, out)
        }
        "eval" => {
            only(
                &[
                    "device",
                    "threads",
                    "weights-file",
                    "shapes",
                    "values",
                    "uncaptured",
                    "collective-timeout",
                    "tokens",
                    "logits",
                    "stepwise",
                    "repeat",
                    "entry",
                    "input",
                    "output",
                    "size",
                ],
                1,
            )?;
            if !given.inputs.is_empty() || given.entry.is_some() {
                if given.logits.is_some() || flag("stepwise") {
                    return Err(usage("eval of an entry by its inputs takes no --logits or --stepwise"));
                }
                let call = CallOptions {
                    session: session()?,
                    entry: given.entry.clone(),
                    tokens: given.tokens.clone(),
                    inputs: given.inputs.clone(),
                    outputs: given.outputs.clone(),
                    sizes: given.sizes.clone(),
                    repeat: given.repeat.unwrap_or(1),
                };
                return call::eval(&call, out);
            }
            let missing = |name| usage(format_args!("eval needs --{name}"));
            let tokens = given.tokens.clone().ok_or_else(|| missing("tokens"))?;
            let logits = given.logits.clone().ok_or_else(|| missing("logits"))?;
            let repeat = given.repeat.unwrap_or(1);
            eval(&EvalOptions { session: session()?, tokens, logits, stepwise: flag("stepwise"), repeat })
        }
        "bench" => {
            only(
                &[
                    "device",
                    "threads",
                    "weights-file",
                    "shapes",
                    "collective-timeout",
                    "batch",
                    "seconds",
                    "context",
                    "prefill",
                    "json",
                    "entry",
                    "size",
                ],
                1,
            )?;
            if let Some(entry) = &given.entry {
                let (entry, sizes) = (entry.clone(), given.sizes.clone());
                let budget = given.seconds.unwrap_or(BUDGET);
                return call::bench(&EntryBench { session: session()?, entry, sizes, budget, json: flag("json") }, out);
            }
            let (batches, context, prefill) =
                (given.batches.clone().unwrap_or_else(|| vec![1]), given.context, given.prefill);
            let budget = given.seconds.unwrap_or(BUDGET);
            bench(&BenchOptions { session: session()?, batches, context, prefill, budget, json: flag("json") }, out)
        }
        "inspect" => {
            only(&["json"], 2)?;
            let view = match given.positional.get(1) {
                Some(name) => View::parse(&name.to_string_lossy())?,
                None => View::Summary,
            };
            inspect(&InspectOptions { artifact: artifact()?, view, json: flag("json") }, out)
        }
        "verify" => {
            only(&["hashes", "weights-file"], 1)?;
            if !flag("hashes") {
                return Err(usage("this binary has no compiler: verify needs --hashes"));
            }
            verify(&VerifyOptions { artifact: artifact()?, weights_file: given.weights_file.clone() }, out)
        }
        "doctor" => {
            only(&["json", "conformance", "device", "threads", "weights-file"], 0)?;
            let conformance = given.conformance.clone().map(|artifact| {
                let (threads, weights_file) = (given.threads.unwrap_or(0), given.weights_file.clone());
                SessionArgs { artifact, device: given.device, threads, weights_file, ..SessionArgs::default() }
            });
            doctor_with(&DoctorOptions { json: flag("json"), conformance }, out)
        }
        other => Err(usage(format_args!("unknown command {other}"))),
    }
}

/// Reads options; `None` if help was asked for.
fn parse(parser: &mut Parser) -> Result<Option<Given>> {
    let mut given = Given::default();
    while let Some(argument) = parser.next().map_err(usage)? {
        let name = match argument {
            Arg::Value(value) => {
                given.positional.push(value);
                continue;
            }
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            Arg::Long(name) => name.to_owned(),
            Arg::Short(_) => return Err(usage(argument.unexpected())),
        };
        match name.as_str() {
            "device" => given.device = value(parser)?,
            "threads" => given.threads = Some(value(parser)?),
            "weights-file" => given.weights_file = Some(path(parser)?),
            "shapes" => given.shapes = Some(path(parser)?),
            "values" => given.values = Some(path(parser)?),
            "tokens" => given.tokens = Some(path(parser)?),
            "entry" => given.entry = Some(value(parser)?),
            "input" => given.inputs.push(pair(parser, &name, |file| Ok(PathBuf::from(file)))?),
            "output" => given.outputs.push(pair(parser, &name, |file| Ok(PathBuf::from(file)))?),
            "size" => given.sizes.push(pair(parser, &name, |n| n.parse().map_err(|e| format!("{n:?}: {e}")))?),
            "prompt" => given.prompt = Some(value(parser)?),
            "collective-timeout" => given.collective_timeout = Some(time(parser, &name)?),
            "conformance" => given.conformance = Some(path(parser)?),
            "logits" => given.logits = Some(path(parser)?),
            "max-tokens" => given.max_tokens = Some(value(parser)?),
            "temperature" => given.temperature = Some(value(parser)?),
            "top-p" => given.top_p = Some(value(parser)?),
            "seed" => given.seed = Some(value(parser)?),
            "batch" => given.batches = Some(list(parser)?),
            "seconds" => given.seconds = Some(time(parser, &name)?),
            "context" => given.context = Some(value(parser)?),
            "prefill" => given.prefill = Some(value(parser)?),
            "repeat" => given.repeat = Some(value(parser)?),
            "raw" | "ignore-eos" | "json" | "stepwise" | "uncaptured" | "hashes" => given.flags.push(name.clone()),
            _ => return Err(usage(format_args!("unknown option --{name}"))),
        }
        given.names.push(name);
    }
    Ok(Some(given))
}

fn time(parser: &mut Parser, name: &str) -> Result<Duration> {
    let text: String = value(parser)?;
    seconds(&text).map_err(|e| usage(format_args!("--{name} {e}")))
}

/// NAME=VALUE.
fn pair<T>(
    parser: &mut Parser,
    option: &str,
    read: impl Fn(&str) -> std::result::Result<T, String>,
) -> Result<(String, T)> {
    let text: String = value(parser)?;
    let (name, value) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| usage(format_args!("--{option} {text}: NAME=VALUE is expected")))?;
    Ok((name.to_owned(), read(value).map_err(|e| usage(format_args!("--{option} {text}: {e}")))?))
}

/// Numbers with commas between them.
fn list(parser: &mut Parser) -> Result<Vec<usize>> {
    let text: String = value(parser)?;
    text.split(',').map(|n| n.parse().map_err(|e| usage(format_args!("{n:?} in {text:?}: {e}")))).collect()
}

/// A time in seconds.
///
/// # Errors
/// If it is not a positive number.
pub fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let time = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|t| !t.is_zero()).ok_or_else(|| format!("{text:?}: a positive number of seconds is expected"))
}

fn value<T: std::str::FromStr>(parser: &mut Parser) -> Result<T>
where
    T::Err: Into<Box<dyn std::error::Error + Send + Sync + 'static>>,
{
    parser.value().map_err(usage)?.parse::<T>().map_err(usage)
}

fn path(parser: &mut Parser) -> Result<PathBuf> {
    Ok(PathBuf::from(parser.value().map_err(usage)?))
}
