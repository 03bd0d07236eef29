//! `weldmentc`: the compiler's command line. `weldment` starts it when an artifact alone will not do.

use std::process::ExitCode;

fn main() -> ExitCode {
    weldment_compiler::cli::main()
}
