//! Runs an artifact inside another program: `cargo run --example embed -- model.weld`.

use std::ops::ControlFlow;
use weldment_runtime::{Artifact, Device, GenerateOptions, Session, SessionOptions};

fn main() -> weldment_runtime::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "model.weld".to_owned());
    generate(path.as_ref())
}

/// Generates from three token ids and prints what comes.
pub fn generate(path: &std::path::Path) -> weldment_runtime::Result<()> {
    let artifact = Artifact::open(path)?;
    let device = Device::host(0)?;
    let mut session = Session::new(&artifact, &device, SessionOptions::default())?;
    let prompt = [1, 2, 3];
    let done = session.generate(&prompt, &GenerateOptions::default(), |id| {
        print!("{id} ");
        ControlFlow::Continue(())
    })?;
    println!("\n{:.0} tokens/s", done.decode_tokens_per_second());
    Ok(())
}
