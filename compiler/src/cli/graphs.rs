//! What commands share: a model's checkpoint, its graph, and the artifact it compiles to.

use super::args::{BuildArgs, Setting, WeightsArg};
use super::compile;
use super::progress::Bars;
use crate::cache;
use crate::checkpoint::graph::random;
use crate::checkpoint::{Checkpoint, WeightSource};
use crate::driver::{self, CompileError, EntryOptions, FusionOptions};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use weldment_artifact::SymbolRole;
use weldment_codegen::choices::{Choices, Places};
use weldment_ir::Graph;
use weldment_passes::specialise::narrow;
use weldment_runtime::cli::{SessionArgs, launch};

/// True for a path with that extension.
pub fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension() == Some(OsStr::new(extension))
}

/// Ranges and dtype as given.
///
/// # Errors
/// If a value is one that this build does not take.
pub fn entry_options(build: &BuildArgs) -> Result<EntryOptions, CompileError> {
    driver::check_limits(build.tp, build.kv_block)?;
    let (dtype, max_seq, kv_block) = (build.dtype, build.max_seq, build.kv_block);
    let mut options = EntryOptions { dtype, max_seq, kv_block, ..EntryOptions::default() };
    if let Some(dtype) = build.dtype.filter(|d| !d.is_compute_float()) {
        return Err(CompileError::option("--dtype", format!("{dtype}; f32, bf16 or f16 is accepted")));
    }
    for dim in &build.dims {
        match dim.name.as_str() {
            "tokens" => options.max_tokens = dim.max,
            "seqs" => options.max_seqs = dim.max,
            _ => match options.max_seq.replace(dim.max) {
                Some(given) if given != dim.max => {
                    let message = format!("context=1..{}, and --max-seq {given}; they say the same thing", dim.max);
                    return Err(CompileError::option("--dim", message));
                }
                _ => {}
            },
        }
    }
    Ok(options)
}

/// Fusion as asked for.
///
/// # Errors
/// If `--set` names no choice, or a value that it does not take.
pub fn fusion_options(build: &BuildArgs) -> Result<FusionOptions, CompileError> {
    let (mut choices, mut places) = (Choices::default(), Places::default());
    for Setting { key, value } in &build.set {
        let set = match key.split_once('@') {
            Some((key, pattern)) => places.set(key, pattern, value),
            None => choices.set(key, value),
        };
        set.map_err(|e| CompileError::option("--set", e))?;
    }
    Ok(FusionOptions {
        fp_policy: build.fp_policy.map(|p| p.numerics()),
        disabled: build.disable.iter().cloned().collect(),
        require: build.require.clone(),
        chaos: build.chaos,
        fuel: build.fuel,
        choices,
        places,
    })
}

/// Where weights come from.
pub fn weight_source(build: &BuildArgs) -> WeightSource {
    match build.weights {
        WeightsArg::Random(seed) => WeightSource::Random { seed },
        WeightsArg::External | WeightsArg::Embed => WeightSource::Files,
    }
}

/// The options as given, but for a .wir graph of which nothing says where its weights come from: those are made up, from seed 0. The
/// second value says whether they are.
pub fn with_weights(model: &Path, build: &BuildArgs) -> (BuildArgs, bool) {
    let named = build.checkpoint.is_some() || matches!(build.weights, WeightsArg::Random(_));
    let made_up = has_extension(model, "wir") && !named;
    let weights = if made_up { WeightsArg::Random(0) } else { build.weights };
    (BuildArgs { weights, ..build.clone() }, made_up)
}

/// The checkpoint of a model; that of a .wir graph is named by --checkpoint, or made from a seed.
///
/// # Errors
/// If it cannot be read, or a graph has none.
pub fn checkpoint(model: &Path, build: &BuildArgs) -> Result<Checkpoint, CompileError> {
    let path = match (has_extension(model, "wir"), &build.checkpoint) {
        (true, Some(path)) => path,
        (true, None) => {
            let WeightsArg::Random(seed) = build.weights else {
                let message =
                    "a .wir graph needs the model whose weights and tokenizer it uses, or --weights random:SEED";
                return Err(CompileError::option("--checkpoint", message));
            };
            return Ok(random(&read_wir(model)?, model, seed)?);
        }
        (false, _) => model,
    };
    driver::open(path, weight_source(build))
}

/// Reads and checks the graphs of a text file.
///
/// # Errors
/// Names the file, the line and what is accepted.
pub fn read_wir(path: &Path) -> Result<Vec<Graph>, CompileError> {
    let bytes = std::fs::read(path).map_err(|source| CompileError::Io { path: path.to_owned(), source })?;
    let place = |message: String| CompileError::option(path.display().to_string(), message);
    let text = String::from_utf8(bytes).map_err(|e| place(format!("{e}; a .wir file is UTF-8 text")))?;
    let graphs = weldment_ir::text::parse_all(&text).map_err(|e| place(e.to_string()))?;
    graphs.iter().try_for_each(weldment_ir::verify).map_err(|e| place(e.to_string()))?;
    Ok(graphs.into_iter().map(weldment_ir::inferred_roles::inferred).collect())
}

/// The graphs of the entries: built from the model's definition, or read; then those of each rank.
///
/// # Errors
/// See [`driver::model_graph`], [`read_wir`] and [`driver::shard_graph`].
pub fn entries(model: &Path, checkpoint: &Checkpoint, build: &BuildArgs) -> Result<Vec<Graph>, CompileError> {
    match has_extension(model, "wir") {
        true => ranged_wir(model, build),
        false => Ok(vec![driver::shard_graph(driver::model_graph(checkpoint, &entry_options(build)?)?, build.tp)?]),
    }
}

/// Reads the graphs of a text file, gives them the ranges asked for, and shards them.
///
/// # Errors
/// As [`read_wir`] and [`driver::shard_graph`]; a range outside the declared one.
pub fn ranged_wir(path: &Path, build: &BuildArgs) -> Result<Vec<Graph>, CompileError> {
    driver::check_limits(build.tp, build.kv_block)?;
    let graphs = ranged(read_wir(path)?, build)?;
    let place = |e: CompileError| match e {
        CompileError::Option { message, .. } => CompileError::option(path.display().to_string(), message),
        other => CompileError::option(path.display().to_string(), other.to_string()),
    };
    driver::check_signature(&graphs).map_err(place)?;
    graphs.into_iter().map(|graph| driver::shard_graph(graph, build.tp)).collect()
}

/// Text graphs with the ranges given: inside those that they declare.
fn ranged(mut graphs: Vec<Graph>, build: &BuildArgs) -> Result<Vec<Graph>, CompileError> {
    let context = build.max_seq.map(|n| ("--max-seq", "context", n));
    let dims = build.dims.iter().map(|d| ("--dim", d.name.as_str(), d.max));
    for (option, name, most) in dims.chain(context) {
        let role = match name {
            "tokens" => SymbolRole::Tokens,
            "seqs" => SymbolRole::Sequences,
            _ => SymbolRole::Context,
        };
        let declared = graphs.iter().find_map(|graph| graph.symbol_of(&role));
        let declared = declared.map(|(symbol, range)| (symbol.clone(), range));
        let fits = declared.clone().filter(|(_, r)| (r.min..=r.max).contains(&most));
        let (symbol, range) = fits.ok_or_else(|| {
            let shown = |(symbol, r): (_, weldment_ir::Range)| format!("{symbol}: {}..{} {role}", r.min, r.max);
            let found = declared.map_or(format!("no symbol in the role {role}"), shown);
            CompileError::option(
                option,
                format!("{name} up to {most}; the graph declares {found}, a part of it is accepted"),
            )
        })?;
        for graph in graphs.iter_mut().filter(|graph| graph.symbols().contains_key(&symbol)) {
            *graph = narrow(graph, &symbol, range.min, most);
        }
    }
    Ok(graphs)
}

/// An artifact to run: the one given, or the model's, compiled into the cache if it is not there yet.
///
/// # Errors
/// See [`compile::compile_to`].
pub fn session(model: &Path, build: &BuildArgs, weights_file: Option<&Path>) -> Result<SessionArgs, CompileError> {
    launch::follow_launcher()?;
    let threads = build.threads.unwrap_or(0);
    let given = weights_file.map(Path::to_owned);
    let (artifact, weights) = match has_extension(model, "weld") {
        true => (model.to_owned(), None),
        false => cached(model, build)?,
    };
    // Ranks are this command again, which finds the artifact in the cache.
    let relaunch = Some(std::env::args_os().skip(1).collect());
    Ok(SessionArgs { artifact, threads, weights_file: given.or(weights), relaunch, ..SessionArgs::default() })
}

/// Where the weights of a model's artifact are, if they are outside of it.
pub fn weights_of(model: &Path, build: &BuildArgs) -> Option<PathBuf> {
    match (build.weights, has_extension(model, "wir")) {
        (WeightsArg::External, true) => build.checkpoint.clone(),
        (WeightsArg::External, false) => Some(model.to_owned()),
        _ => None,
    }
}

/// The cached artifact of a model, and where its weights are.
fn cached(model: &Path, build: &BuildArgs) -> Result<(PathBuf, Option<PathBuf>), CompileError> {
    let weights = weights_of(model, build);
    let folder = weldment_runtime::weights::cache_dir().ok_or_else(|| {
        let message = "neither it nor HOME is set, so there is no cache; compile to a file and run that";
        CompileError::option("XDG_CACHE_HOME", message)
    })?;
    let mut options = compile::option_list(build);
    // The host's CPU is part of what `host` means.
    options.push(("cpu".to_owned(), weldment_runtime::cpu::detected_features().join(" ")));
    if let Some(path) = build.checkpoint.as_deref() {
        options.push(("checkpoint".to_owned(), cache::key(path, "")?));
    }
    let text: Vec<String> = options.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let artifact = cache::artifact_path(&folder, &cache::key(model, &text.join("\n"))?);
    let known = weldment_runtime::Artifact::open(&artifact).is_ok();
    if !known {
        if let Some(parent) = artifact.parent() {
            std::fs::create_dir_all(parent).map_err(|source| CompileError::Io { path: parent.to_owned(), source })?;
        }
        let mut bars = Bars::new();
        compile::compile_to(model, build, &artifact, &mut bars)?;
    }
    Ok((artifact, weights))
}
