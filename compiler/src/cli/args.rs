//! The command line, declared once: clap parses by it and `weldment options` lists it.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use weldment_ir::DType;
use weldment_passes::rules::Numerics;

/// A graph compiler for LLM inference.
#[derive(Debug, Parser)]
#[command(name = "weldment", version, max_term_width = 110, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compiles a model to an artifact.
    Compile(CompileArgs),
    /// Generates text with a model or artifact.
    Run(RunArgs),
    /// Writes the logits of every position of a token sequence.
    Eval(EvalArgs),
    /// Says what was fused, what was not and why.
    Explain(ExplainArgs),
    /// Checks an artifact's hashes and shows what is in it.
    Inspect(InspectArgs),
    /// Re-interprets every fused region before and after.
    Verify(VerifyArgs),
    /// Measures decode and prefill.
    Bench(BenchArgs),
    /// Runs passes over a text graph.
    Opt(OptArgs),
    /// Compares two artifacts.
    Diff(DiffArgs),
    /// Lists the targets that code can be made for.
    Targets,
    /// Checks that what the compiler needs is installed.
    Doctor,
    /// Lists every option, pass and automatic choice.
    Options {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// How a model is compiled; shared by all commands that take a MODEL.
#[derive(Debug, Clone, Args)]
pub struct BuildArgs {
    /// Targets, the preferred first, CPUs and GPUs as LLVM spells them: host, x86-64-v3, gfx942, sm_90a, ... (`weldment targets`).
    #[arg(long, default_value = "host", value_delimiter = ',')]
    pub target: Vec<String>,
    /// Tensor-parallel ranks.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub tp: u32,
    /// Arithmetic and cache dtype: f32, bf16 or f16 [default: the checkpoint's; f32 for block-quantised ones]
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<DType>,
    /// Range of a dim: `tokens=1..512` in a step, `seqs=1..16` in a step, `context=1..4096` positions of a sequence (as --max-seq). Each
    /// is split wherever a fusion or a kernel depends on it.
    #[arg(long = "dim", value_name = "NAME=MIN..MAX")]
    pub dims: Vec<DimRange>,
    /// Most positions of a sequence [default: 4096, or the model's own limit if lower]
    #[arg(long, value_name = "POSITIONS")]
    pub max_seq: Option<u64>,
    /// The model whose weights and tokenizer a .wir graph uses.
    #[arg(long, value_name = "MODEL")]
    pub checkpoint: Option<PathBuf>,
    /// Positions in a KV block.
    #[arg(long, default_value_t = 16, value_name = "POSITIONS")]
    pub kv_block: u64,
    /// Where weights come from: external, embed or random:SEED.
    #[arg(long, default_value = "external", value_name = "MODE")]
    pub weights: WeightsArg,
    /// Switches a pass or rule off, by name.
    #[arg(long, value_name = "PASS")]
    pub disable: Vec<String>,
    /// Fails the compile unless a fusion fired so often: `FUSION=N`, `FUSION>=N` or `FUSION=all`.
    #[arg(long, value_name = "FUSION=N")]
    pub require: Vec<String>,
    /// What rewrites may do to numerics [default: rounding, or approx for block-quantised weights]
    #[arg(long, value_name = "CLASS")]
    pub fp_policy: Option<FpPolicy>,
    /// Perturbs what must not matter (order of rewrites, ties between equal costs, schedule, places in memory). `verify` tries
    /// the seeds 1 to SEED.
    #[arg(long, value_name = "SEED")]
    pub chaos: Option<u64>,
    /// Stops after N rewrites of each variant; equal layers are rewritten once and count once.
    #[arg(long, value_name = "N")]
    pub fuel: Option<u64>,
    /// Overrides an automatic choice; KEY@PATTERN overrides one of kernels for the ops alone whose name or source path is PATTERN, in which
    /// `*` stands for any text.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<Setting>,
    /// Threads [default: physical cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// `weldment compile`.
#[derive(Debug, Args)]
pub struct CompileArgs {
    /// A GGUF file, a Hugging Face directory, or a .wir graph.
    pub model: PathBuf,
    /// The artifact [default: MODEL's name with .weld, in this directory]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// How.
    #[command(flatten)]
    pub build: BuildArgs,
    /// Writes intermediate forms to --dump-dir.
    #[arg(long, value_delimiter = ',', value_name = "FORM")]
    pub emit: Vec<Emit>,
    /// Where --emit and --print-after write.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub dump_dir: PathBuf,
    /// Writes the graph after a pass, or after all.
    #[arg(long, value_name = "PASS")]
    pub print_after: Vec<String>,
    /// Prints how long each stage took.
    #[arg(long)]
    pub time_passes: bool,
    /// Ends after a stage and writes no artifact.
    #[arg(long, value_name = "STAGE")]
    pub stop_after: Option<Stage>,
    /// A JSON summary on stdout.
    #[arg(long)]
    pub json: bool,
}

/// `weldment run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// A model, compiled and cached, or an artifact.
    pub model: PathBuf,
    /// How a model is compiled.
    #[command(flatten)]
    pub build: BuildArgs,
    /// The prompt; the model's chat template is applied unless --raw.
    #[arg(long, required_unless_present = "tokens", conflicts_with = "tokens")]
    pub prompt: Option<String>,
    /// Gives the prompt to the tokenizer as it is.
    #[arg(long)]
    pub raw: bool,
    /// A JSON array of token ids, or a .safetensors file whose tensor `prompt` holds them.
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// Most tokens to generate.
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Goes on past the end-of-sequence token.
    #[arg(long)]
    pub ignore_eos: bool,
    /// 0 is greedy.
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Samples among the likeliest tokens of this total probability.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Seed of the sampler.
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// Text, ids and timings as JSON.
    #[arg(long)]
    pub json: bool,
    /// The checkpoint that holds an artifact's external weights.
    #[arg(long, value_name = "PATH")]
    pub weights_file: Option<PathBuf>,
    /// Writes a histogram of the steps' shapes, and of the variants that ran them, when the session closes.
    #[arg(long, value_name = "FILE")]
    pub shapes: Option<PathBuf>,
    /// Writes statistics and a histogram of what each launch left behind, when the session closes: for the host, with
    /// --uncaptured and an artifact compiled without --set record_results=0.
    #[arg(long, value_name = "FILE")]
    pub values: Option<PathBuf>,
    /// Runs the launches of a step one by one instead of as one captured graph.
    #[arg(long)]
    pub uncaptured: bool,
    /// Runs the model definition in the f64 reference interpreter: slow, for debugging.
    #[arg(long, hide = true, requires = "tokens")]
    pub interpret: bool,
}

/// NAME=FILE.
fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    named(text).map(|(name, file)| (name, PathBuf::from(file)))
}

/// NAME=N.
fn named_size(text: &str) -> Result<(String, u64), String> {
    let (name, size) = named(text)?;
    Ok((name, size.parse().map_err(|e| format!("{size:?}: {e}"))?))
}

fn named(text: &str) -> Result<(String, &str), String> {
    let parts = text.split_once('=').filter(|(name, _)| !name.is_empty());
    parts.map(|(name, value)| (name.to_owned(), value)).ok_or_else(|| "NAME=VALUE is expected".to_owned())
}

/// `weldment eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// An artifact, or a model.
    pub model: PathBuf,
    /// How a model is compiled.
    #[command(flatten)]
    pub build: BuildArgs,
    /// A JSON array of token ids, or a .safetensors file whose tensor `prompt` holds them.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["input", "entry"])]
    pub tokens: Option<PathBuf>,
    /// Where the logits go: .safetensors, tensor `logits`, f32 [T, vocab].
    #[arg(long, value_name = "FILE", required_unless_present_any = ["input", "entry"])]
    pub logits: Option<PathBuf>,
    /// The entry to call with --input; the only one that takes the inputs given, if none is named.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["logits", "stepwise"])]
    pub entry: Option<String>,
    /// An input of the entry: a .safetensors file whose tensor of that name, or only tensor, it is.
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file, conflicts_with_all = ["logits", "stepwise"])]
    pub input: Vec<(String, PathBuf)>,
    /// Where an output of the entry goes; outputs without a file are described.
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file, conflicts_with_all = ["logits", "stepwise"])]
    pub output: Vec<(String, PathBuf)>,
    /// A size that no input says.
    #[arg(long, value_name = "NAME=N", value_parser = named_size)]
    pub size: Vec<(String, u64)>,
    /// One token a step instead of one prefill.
    #[arg(long)]
    pub stepwise: bool,
    /// Evaluates so often, and fails unless every time gives the same bits, on all ranks alike.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub repeat: u64,
    /// The checkpoint that holds an artifact's external weights.
    #[arg(long, value_name = "PATH")]
    pub weights_file: Option<PathBuf>,
    /// Writes a histogram of the steps' shapes, and of the variants that ran them, when the session closes.
    #[arg(long, value_name = "FILE")]
    pub shapes: Option<PathBuf>,
    /// Writes statistics and a histogram of what each launch left behind, when the session closes: for the host, with
    /// --uncaptured and an artifact compiled without --set record_results=0.
    #[arg(long, value_name = "FILE")]
    pub values: Option<PathBuf>,
    /// Runs the launches of a step one by one instead of as one captured graph.
    #[arg(long)]
    pub uncaptured: bool,
    /// Evaluates the model definition in the f64 reference interpreter: slow, for debugging.
    #[arg(long, hide = true)]
    pub interpret: bool,
}

/// `weldment explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A model or an artifact.
    pub model: PathBuf,
    /// Only nodes of this source path: layers.3.mlp.
    pub path: Option<String>,
    /// How a model is compiled.
    #[command(flatten)]
    pub build: BuildArgs,
    /// The form.
    #[arg(long, default_value = "text")]
    pub format: ReportFormat,
    /// Where to, instead of stdout.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What `bench --ladder --json` printed, to show in the page.
    #[arg(long, value_name = "FILE")]
    pub ladder: Option<PathBuf>,
}

/// `weldment inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// An artifact.
    pub artifact: PathBuf,
    /// What to show: manifest, memory, graph or kernels.
    pub section: Option<String>,
    /// Kernels or manifest as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `weldment verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// An artifact with its model beside it, or a model.
    pub model: PathBuf,
    /// How a model is compiled.
    #[command(flatten)]
    pub build: BuildArgs,
    /// Only checks hashes, weights included.
    #[arg(long)]
    pub hashes: bool,
    /// Runs an artifact on these tokens beside the interpreter and names the first launch that differs: a JSON array of token ids, or
    /// a .safetensors file whose tensor `prompt` holds them.
    #[arg(long, value_name = "FILE", conflicts_with = "hashes")]
    pub tokens: Option<PathBuf>,
    /// Checks every launch, also where the outputs agree.
    #[arg(long, requires = "tokens")]
    pub every_launch: bool,
    /// The model that an artifact was compiled from [default: where its weights were last seen]
    #[arg(long, value_name = "MODEL")]
    pub source: Option<PathBuf>,
    /// Finds the rewrite that breaks a region: the smallest --fuel at which one differs.
    #[arg(long)]
    pub bisect_fuel: bool,
    /// JSON on stdout.
    #[arg(long)]
    pub json: bool,
}

/// `weldment bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// An artifact, or a model.
    pub model: PathBuf,
    /// How a model is compiled.
    #[command(flatten)]
    pub build: BuildArgs,
    /// Sequences of one token each in a decode step; several are measured in turn.
    #[arg(long, default_value = "1", value_delimiter = ',', value_name = "N[,N...]")]
    pub batch: Vec<usize>,
    /// Time spent on each measurement, about.
    #[arg(long, default_value = "1.5", value_parser = weldment_runtime::cli::args::seconds, conflicts_with_all = ["ladder", "vs_disable"])]
    pub seconds: Duration,
    /// Positions that are in the cache while decoding.
    #[arg(long, default_value_t = 1024)]
    pub context: usize,
    /// Tokens of the measured prefill.
    #[arg(long, default_value_t = 512)]
    pub prefill: usize,
    /// Measures calls of this entry with made-up inputs instead of steps.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["ladder", "vs_disable"])]
    pub entry: Option<String>,
    /// A size of the entry's symbols; those that are not given are as large as they may be.
    #[arg(long, value_name = "NAME=N", value_parser = named_size, requires = "entry")]
    pub size: Vec<(String, u64)>,
    /// Switches passes on in turn, on one workload: what each of them brings.
    #[arg(long, conflicts_with = "vs_disable")]
    pub ladder: bool,
    /// Compares everything on with this pass off, on one workload.
    #[arg(long, value_name = "PASS")]
    pub vs_disable: Vec<String>,
    /// Turns that every build of a comparison takes.
    #[arg(long, default_value_t = 7, value_name = "N")]
    pub rounds: usize,
    /// Writes a comparison as a page, with the fusion report.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// JSON on stdout.
    #[arg(long)]
    pub json: bool,
    /// The checkpoint that holds an artifact's external weights.
    #[arg(long, value_name = "PATH")]
    pub weights_file: Option<PathBuf>,
    /// Writes a histogram of the steps' shapes, and of the variants that ran them, when the session closes.
    #[arg(long, value_name = "FILE")]
    pub shapes: Option<PathBuf>,
}

/// `weldment opt`.
#[derive(Debug, Args)]
pub struct OptArgs {
    /// A text graph.
    pub input: PathBuf,
    /// Passes to run, in order; all of the pipeline if none.
    #[arg(long, value_delimiter = ',')]
    pub passes: Vec<String>,
    /// Where to, instead of stdout.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What rewrites may do to numerics.
    #[arg(long, value_name = "CLASS", default_value = "rounding")]
    pub fp_policy: FpPolicy,
    /// Perturbs what must not matter (order of rewrites, ties between equal costs, schedule, places in memory).
    #[arg(long, value_name = "SEED")]
    pub chaos: Option<u64>,
    /// Stops after N rewrites; equal layers are rewritten once and count once.
    #[arg(long, value_name = "N")]
    pub fuel: Option<u64>,
}

/// `weldment diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// An artifact.
    pub a: PathBuf,
    /// Another.
    pub b: PathBuf,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// `NAME=MIN..MAX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DimRange {
    /// tokens, seqs or context.
    pub name: String,
    /// Smallest value.
    pub min: u64,
    /// Largest value.
    pub max: u64,
}

impl FromStr for DimRange {
    type Err = String;

    fn from_str(text: &str) -> Result<DimRange, String> {
        let accepted = || format!("`{text}`; tokens=1..512, seqs=1..16 or context=1..4096 is the form");
        let (name, range) = text.split_once('=').ok_or_else(accepted)?;
        let (min, max) = range.split_once("..").ok_or_else(accepted)?;
        let max = max.strip_prefix('=').unwrap_or(max);
        let (min, max) = (min.parse().map_err(|_| accepted())?, max.parse().map_err(|_| accepted())?);
        if !matches!(name, "tokens" | "seqs" | "context") {
            return Err(format!("no dim is called `{name}`; tokens, seqs and context are"));
        }
        if min != 1 || max < 1 {
            return Err(format!("{min}..{max}; a range that starts at 1 is accepted"));
        }
        Ok(DimRange { name: name.to_owned(), min, max })
    }
}

/// `external`, `embed` or `random:SEED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightsArg {
    /// Stay in the checkpoint's files.
    External,
    /// Packed into the artifact.
    Embed,
    /// Made from a seed.
    Random(u64),
}

impl FromStr for WeightsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<WeightsArg, String> {
        let seed = text.strip_prefix("random:").and_then(|s| s.parse().ok());
        match (text, seed) {
            ("external", _) => Ok(WeightsArg::External),
            ("embed", _) => Ok(WeightsArg::Embed),
            (_, Some(seed)) => Ok(WeightsArg::Random(seed)),
            _ => Err(format!("`{text}`; external, embed or random:SEED is accepted")),
        }
    }
}

/// `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Name, as `weldment options` lists it.
    pub key: String,
    /// Value.
    pub value: String,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Setting, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Setting { key: key.to_owned(), value: value.to_owned() }),
            _ => Err(format!("`{text}`; KEY=VALUE is accepted")),
        }
    }
}

/// What rewrites may do to numerics; each class includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum FpPolicy {
    /// The same bits.
    Bitwise,
    /// Equal in exact arithmetic.
    Reassoc,
    /// Rounding points may move.
    Rounding,
    /// Within a stated bound: int8 activations.
    Approx,
}

impl FpPolicy {
    /// The class as passes know it.
    pub fn numerics(self) -> Numerics {
        match self {
            FpPolicy::Bitwise => Numerics::Bitwise,
            FpPolicy::Reassoc => Numerics::Reassoc,
            FpPolicy::Rounding => Numerics::Rounding,
            FpPolicy::Approx => Numerics::Approx,
        }
    }
}

/// Intermediate forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Emit {
    /// The model's graph.
    Ir,
    /// The fused graph of each variant.
    Fused,
    /// Tile programs.
    Tile,
    /// LLVM IR.
    Llvm,
    /// Assembly.
    Asm,
    /// The linked object.
    Object,
}

/// Stages of a compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Stage {
    /// The model's graph is built.
    Ir,
    /// Fused and scheduled.
    Fused,
    /// Code is generated.
    Object,
}

/// Forms of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For browsers.
    Html,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_declaration_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn small_languages() {
        assert_eq!("tokens=1..512".parse(), Ok(DimRange { name: "tokens".into(), min: 1, max: 512 }));
        assert!("tokens=4".parse::<DimRange>().is_err());
        assert!("heads=1..4".parse::<DimRange>().is_err());
        assert_eq!("random:7".parse(), Ok(WeightsArg::Random(7)));
        assert!("random:x".parse::<WeightsArg>().is_err());
    }
}
