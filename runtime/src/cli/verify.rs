//! `verify --hashes`: every hash that concerns an artifact. (Re-interpreting fused regions needs the compiler.)

use super::put;
use crate::artifact::{Artifact, WeightMode};
use crate::cpu;
use crate::error::{Error, Result};
use crate::weights::{self, Source, WeightOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Options of `verify --hashes`.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// The artifact.
    pub artifact: PathBuf,
    /// The checkpoint's file or folder.
    pub weights_file: Option<PathBuf>,
}

/// Checks sections, the checkpoint's tensors and the cached pack.
///
/// # Errors
/// [`Error::CheckFailed`] if a hash differs; others if something cannot be read.
pub fn verify(options: &VerifyOptions, out: &mut dyn Write) -> Result<()> {
    let failed = |e: Error| match e {
        Error::Corrupt { .. } | Error::Weights(_) => Error::CheckFailed(e.to_string()),
        e => e,
    };
    let artifact = Artifact::open(&options.artifact).map_err(failed)?;
    artifact.check_all_hashes().map_err(failed)?;
    let manifest = artifact.manifest();
    put(out, &format!("ok  manifest and {} sections\n", manifest.sections.len()))?;
    if manifest.weights.mode != WeightMode::External {
        return Ok(());
    }
    let (cache, threads) = (weights::cache_dir(), cpu::default_threads());
    let weights_file = options.weights_file.clone();
    let weight_options = WeightOptions { weights_file, cache: cache.clone(), threads, rank: 0 };
    let source = Source::find(&artifact, &weight_options)?;
    source.verify(threads).map_err(failed)?;
    put(out, &format!("ok  {} tensors of the checkpoint\n", manifest.weights.tensors.len()))?;
    for program in &manifest.programs {
        for rank in 0..manifest.world {
            let mut name = program.target.name.clone();
            if manifest.world > 1 {
                name.push_str(&format!(", rank {rank} of {}", manifest.world));
            }
            let path = cache.as_deref().and_then(|cache| weights::pack_path(manifest, program, rank, cache));
            match path {
                Some(path) if Path::exists(&path) => {
                    weights::verify_pack(&path, program, rank, threads)?;
                    put(out, &format!("ok  pack for {name}\n"))?;
                }
                _ => put(out, &format!("--  no cached pack for {name}\n"))?,
            }
        }
    }
    Ok(())
}
