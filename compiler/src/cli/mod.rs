//! The command line: data on stdout, progress and logs on stderr, errors on lines of their own; exit code 0 done, 1 a check failed,
//! 2 bad input or usage.

mod args;
mod compile;
mod diff;
mod doctor;
mod explain;
mod graphs;
mod ladder;
mod opt;
mod options;
mod page;
mod progress;
mod run;
mod verify;

use crate::driver::CompileError;
use args::{Cli, Command};
use clap::Parser;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

/// How to go on.
fn help_for(error: &CompileError) -> Option<&'static str> {
    Some(match error {
        CompileError::Option { .. } => "`weldment options` lists every option and what it accepts",
        CompileError::Buffer(_) => "narrower ranges (--dim, --max-seq) need less memory",
        _ => return None,
    })
}

/// Parses the command line, runs the command and reports its error.
pub fn main() -> ExitCode {
    logging();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let code = u8::from(e.use_stderr()) * 2;
            // A closed stdout or stderr leaves nothing to say it on.
            let _ = e.print();
            return ExitCode::from(code);
        }
    };
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            // As clap's own and the runtime's: a line that nothing wraps, so that it can be searched for.
            eprintln!("error: {error}");
            help_for(&error).iter().for_each(|help| eprintln!("help: {help}"));
            ExitCode::from(code)
        }
    }
}

fn dispatch(command: Command) -> Result<(), CompileError> {
    match command {
        Command::Compile(args) => compile::compile(&args),
        Command::Explain(args) => explain::explain(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Opt(args) => opt::opt(&args),
        Command::Diff(args) => diff::diff(&args),
        Command::Run(args) => run::run(&args),
        Command::Eval(args) => run::eval(&args),
        Command::Bench(args) => run::bench(&args),
        Command::Inspect(args) => run::inspect(&args),
        Command::Targets => doctor::targets(),
        Command::Doctor => doctor::doctor(),
        Command::Options { json } => options::list(json),
    }
}

/// WELDMENT_LOG has RUST_LOG's syntax; colours only where a person looks and NO_COLOR is not set.
fn logging() {
    let colour = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::io::stderr().is_terminal();
    let filter = tracing_subscriber::EnvFilter::try_from_env("WELDMENT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).init();
}

/// Writes text to stdout; a reader that went away is not an error.
fn put(text: &str) -> Result<(), CompileError> {
    Ok(weldment_runtime::cli::put(&mut std::io::stdout(), text)?)
}

/// Writes a file: to a temporary one beside it, then renamed.
fn write_file(path: &Path, bytes: &[u8]) -> Result<(), CompileError> {
    Ok(weldment_runtime::artifact::write_atomically(path, |out: &mut dyn Write| out.write_all(bytes))?)
}

/// Text to a file if one is named, else to stdout.
fn put_or_write(path: Option<&Path>, text: &str) -> Result<(), CompileError> {
    match path {
        Some(path) => write_file(path, text.as_bytes()),
        None => put(text),
    }
}
