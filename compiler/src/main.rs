//! `weldment`: runs artifacts itself and hands everything else to `weldmentc` beside it, so that running an artifact never
//! loads LLVM. Nothing here may use the `weldment_compiler` library.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Commands that the runtime answers when they are given an artifact.
const RUNTIME_COMMANDS: [&str; 4] = ["run", "eval", "bench", "inspect"];

/// True if no compiler is needed: a runtime command on a `.weld`, or a check of hashes.
fn needs_no_compiler(arguments: &[OsString]) -> bool {
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let artifact = arguments.iter().skip(1).any(|a| Path::new(a).extension() == Some(OsStr::new("weld")));
    let command = arguments.first().and_then(|c| c.to_str()).unwrap_or_default();
    let help = has("--help") || has("-h");
    let ladder = has("--vs-disable") || has("--ladder");
    artifact && !help && !ladder && (RUNTIME_COMMANDS.contains(&command) || (command == "verify" && has("--hashes")))
}

/// The compiler's path: beside this binary, else on PATH.
fn compiler() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| exe.canonicalize().ok());
    let beside = beside.map(|exe| exe.with_file_name("weldmentc")).filter(|path| path.is_file());
    beside.unwrap_or_else(|| PathBuf::from("weldmentc"))
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if needs_no_compiler(&arguments) {
        return ExitCode::from(weldment_runtime::cli::args::main(arguments, &weldment_runtime::codec::open));
    }
    let compiler = compiler();
    // Replaces this process; only a failure comes back.
    let error = Command::new(&compiler).arg0("weldment").args(&arguments).exec();
    eprintln!("error: cannot start the compiler {}: {error}", compiler.display());
    eprintln!("  help: install weldmentc beside weldment, or on PATH; artifacts (.weld) run without it");
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expect: bool) {
        let arguments: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        assert_eq!(needs_no_compiler(&arguments), expect, "{line}");
    }

    #[test]
    fn artifacts_run_without_the_compiler() {
        check("run m.weld --prompt hi", true);
        check("run --threads 2 m.weld --tokens ids.json", true);
        check("inspect m.weld kernels", true);
        check("verify m.weld --hashes", true);
        check("verify m.weld", false);
        check("run model.gguf --prompt hi", false);
        check("compile model.gguf -o m.weld", false);
        check("bench m.weld --ladder", false);
        check("run m.weld --help", false);
        check("", false);
    }
}
