//! The commands of `weldment-rt`, as functions that the compiler's `weldment` calls too. Data goes to `out` (stdout), messages
//! to stderr; errors carry the exit code.

pub mod args;
pub mod bench;
pub mod call;
pub mod doctor;
pub mod eval;
pub mod files;
pub mod gpu_bench;
pub mod inspect;
pub mod launch;
mod nan;
pub mod run;
pub mod tensors;
pub mod verify;
pub mod workload;

use crate::artifact::{Artifact, SymbolRole};
use crate::comm::{DEFAULT_DEADLINE, Group, GroupOptions, Ranks};
use crate::device::{Device, DeviceChoice};
use crate::driver::host::HostOptions;
use crate::error::{Error, Result};
use crate::session::{Session, SessionOptions};
use crate::weights;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What every command that runs a model needs.
#[derive(Clone, Debug, Default)]
pub struct SessionArgs {
    /// The artifact.
    pub artifact: PathBuf,
    /// What to run it on.
    pub device: DeviceChoice,
    /// Threads; 0 means one per physical core.
    pub threads: usize,
    /// The checkpoint's file or folder.
    pub weights_file: Option<PathBuf>,
    /// Folder for packs and compiled code instead of the user's cache.
    pub cache: Option<PathBuf>,
    /// Where the shapes of all steps are written when the session closes; [`SessionOptions::shapes`].
    pub shapes: Option<PathBuf>,
    /// Where statistics of every launch's results are written; [`SessionOptions::values`].
    pub values: Option<PathBuf>,
    /// Runs launches one by one; [`SessionOptions::captured`].
    pub uncaptured: bool,
    /// How long a rank may be missing, silent or behind; [`SessionOptions::collective_timeout`].
    pub collective_timeout: Option<Duration>,
    /// The command line, without the program's name, that is repeated to start ranks; `None` starts none.
    pub relaunch: Option<Vec<OsString>>,
}

impl SessionArgs {
    /// Starts the ranks that `artifact` needs, if it needs several, this process is none and may start some, and waits for them:
    /// true if they have done everything there was to do.
    ///
    /// # Errors
    /// [`Error::Ranks`] if one of them failed, others if the environment's variables make no sense.
    pub fn launched(&self, artifact: &Artifact) -> Result<bool> {
        let world = artifact.manifest().world;
        match &self.relaunch {
            Some(arguments) if world > 1 && Ranks::from_env()?.is_none() => {
                launch::launch(arguments, &[], world, self.collective_timeout.unwrap_or(DEFAULT_DEADLINE))?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Opens the artifact and sets up a session whose KV cache has room for `sequences` of `positions` each.
    ///
    /// # Errors
    /// Whatever opening, finding weights or capturing refuses.
    pub fn open(&self, sequences: usize, positions: Option<usize>) -> Result<(Artifact, Session)> {
        let artifact = Artifact::open(&self.artifact)?;
        let session = self.session(&artifact, sequences, positions)?;
        Ok((artifact, session))
    }

    /// A session on an artifact that is open already; see [`SessionArgs::open`].
    ///
    /// # Errors
    /// As [`SessionArgs::open`].
    pub fn session(&self, artifact: &Artifact, sequences: usize, positions: Option<usize>) -> Result<Session> {
        let manifest = artifact.manifest();
        let defaults = SessionOptions::default();
        let collective_timeout = self.collective_timeout.unwrap_or(defaults.collective_timeout);
        // Ranks meet first: what follows takes some longer than others.
        let ranks = if manifest.world > 1 { Some(Ranks::for_world(manifest.world)?) } else { None };
        let join = |ranks| Group::join(ranks, GroupOptions { deadline: collective_timeout });
        let group = ranks.map(join).transpose()?;
        let local = |group: &Arc<Group>| (group.ranks().local_rank as usize, group.ranks().local_world as usize);
        let local_rank = group.as_ref().map(local);
        let host = HostOptions { threads: self.threads, pin_caller: local_rank.is_none(), local_rank };
        let device = Device::open(self.device, artifact, host);
        let device = match &group {
            Some(group) => group.share(device)?,
            None => device?,
        };
        let kv_blocks = manifest.symbol_of(&SymbolRole::POOL).map(|(_, n)| {
            let width = manifest.symbol_of(&SymbolRole::BLOCKS).map_or(1, |(_, p)| p.max);
            let asked =
                positions.map_or(width, |p| (p as u64).div_ceil(u64::from(manifest.block_positions())).min(width));
            asked.saturating_mul(sequences as u64).clamp(n.min, n.max) as usize
        });
        let weights_file = self.weights_file.clone();
        let cache = self.cache.clone().or_else(weights::cache_dir);
        let shapes = self.shapes.clone().or_else(|| defaults.shapes.clone());
        let (values, captured) = (self.values.clone(), !self.uncaptured);
        let options = SessionOptions {
            kv_blocks,
            weights_file,
            cache,
            shapes,
            values,
            captured,
            group,
            collective_timeout,
            ..defaults
        };
        Session::new(artifact, &device, options)
    }
}

/// Writes data to stdout. A reader that went away (`| head`) is not an error.
///
/// # Errors
/// If stdout cannot be written.
pub fn put(out: &mut dyn Write, text: &str) -> Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("stdout".as_ref(), "cannot write", e)),
        _ => Ok(()),
    }
}

/// One JSON value and a line end.
///
/// # Errors
/// If stdout cannot be written.
pub fn put_json(out: &mut dyn Write, value: &serde_json::Value) -> Result<()> {
    put(out, &format!("{value:#}\n"))
}
