//! Runs, benches and inspects artifacts. No compiler inside: this is the binary that is copied to a machine that serves models.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = std::env::args_os().skip(1).collect();
    ExitCode::from(weldment_runtime::cli::args::main(arguments, &weldment_runtime::codec::open))
}
