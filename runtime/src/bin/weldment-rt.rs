//! Runs, benches and inspects artifacts. No compiler inside: this is the binary that is copied to a machine that serves models.

fn main() {}
