//! A session's part in its group, from joining to leaving.

use super::control::Phase;
use super::fault::Point;
use super::group::{Group, GroupOptions};
use super::inner::Waits;
use super::library::Library;
use super::ranks::{self, Ranks};
use super::slab::Attached;
use crate::artifact::{Artifact, Manifest, Program};
use crate::device::Device;
use crate::driver::host::HostOptions;
use crate::driver::{Buffer, Driver, StreamBackend};
use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::session::SessionOptions;
use std::sync::Arc;

/// A session's membership. Dropping it leaves as [`Member::close`] does, with failures in the log.
#[derive(Debug)]
pub struct Member {
    attached: Option<Attached>,
    closed: bool,
    group: Arc<Group>,
}

impl Member {
    /// The membership that an artifact needs: with the group given, else with the ranks that the environment names; none for an
    /// artifact of one rank without collectives.
    ///
    /// # Errors
    /// If there is no group of that size, saying how to launch one, or [`Error::Rank`] if a rank does not come.
    pub fn of(manifest: &Manifest, options: &SessionOptions) -> Result<Option<Member>> {
        let world = manifest.world;
        if world == 1 && manifest.programs.iter().all(|program| program.slab.is_none()) {
            return Ok(None);
        }
        let group = match &options.group {
            Some(group) => Arc::clone(group),
            None => {
                let options = GroupOptions { deadline: options.collective_timeout };
                Group::join(Ranks::for_world(world)?, options)?
            }
        };
        if group.ranks().world != world {
            return Err(ranks::wrong_world(world, group.ranks().world));
        }
        Ok(Some(Member { attached: None, closed: false, group }))
    }

    /// The group.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// Where the session runs. On the host it owns its threads: ranks of one process that shared them would wait for each other.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn device(&self, device: &Device) -> Result<Device> {
        if device.driver().name() != "host" {
            return Ok(device.clone());
        }
        let ranks = self.group.ranks();
        let local_rank = Some((ranks.local_rank as usize, ranks.local_world as usize));
        Device::host_with(HostOptions { local_rank, ..device.host_options() })
    }

    /// Checks that all ranks opened the same program of the same artifact with as many KV blocks.
    ///
    /// # Errors
    /// [`Error::Rank`] naming a rank that did not.
    pub fn agree(&self, artifact: &Artifact, program: usize, blocks: usize) -> Result<()> {
        let said = format!("{} {program} {blocks}", artifact.identity());
        self.group.agree("artifact or number of KV blocks", said.as_bytes())?;
        self.group.phase(Phase::Weights);
        self.group.fault(Point::Weights)
    }

    /// The slab and the comm table of a program, if it has collectives; all ranks call this together, once weights are in.
    ///
    /// # Errors
    /// If there is no memory, and [`Error::Rank`] if another rank fails.
    pub fn attach(
        &mut self,
        driver: &dyn Driver,
        program: &Program,
        threads: usize,
    ) -> Result<(Option<Buffer>, Option<Buffer>)> {
        if let Some(workers) = driver.workers() {
            self.group.watch(workers);
        }
        self.group.patient_barrier("end of loading weights")?;
        let mut buffers = (None, None);
        if let Some(slab) = &program.slab {
            let attached = Attached::new(&self.group, driver, slab, threads)?;
            buffers = (Some(attached.slab.clone()), Some(attached.comm.clone()));
            self.attached = Some(attached);
        }
        self.group.phase(Phase::Capture);
        self.group.fault(Point::Capture)?;
        Ok(buffers)
    }

    /// The vendor's collectives, if a launch of `program` may use them; all ranks call this together, the rank's device current.
    ///
    /// # Errors
    /// [`Error::Rank`] if one fails.
    pub fn library(&self, program: &Program) -> Result<Option<Arc<Library>>> {
        let launches = program.entries.iter().flat_map(|e| &e.variants).flat_map(|v| &v.launches);
        match program.target.is_gpu() && launches.into_iter().any(|launch| launch.all_reduce.is_some()) {
            true => {
                let library = Library::join(&self.group)?;
                if library.is_some() {
                    self.group.set_waits(Waits::Library);
                }
                Ok(library)
            }
            false => Ok(None),
        }
    }

    /// Waits until all ranks have captured.
    ///
    /// # Errors
    /// [`Error::Rank`] if one fails.
    pub fn ready(&self) -> Result<()> {
        self.group.barrier("end of capture")?;
        self.group.phase(Phase::Steps);
        Ok(())
    }

    /// What came of enqueueing a step, the same on all ranks. A step that no variant accepts was refused by all of them.
    ///
    /// # Errors
    /// The step's own, or [`Error::Rank`].
    pub fn replayed<T>(&self, result: Result<T>) -> Result<T> {
        let result = match result {
            Err(error @ Error::InvalidInput(_)) => Err(error),
            other => self.group.share(other),
        };
        if result.is_ok() {
            self.group.given();
        }
        let left = self.group.leave();
        left.and(result)
    }

    /// Waits for all steps.
    ///
    /// # Errors
    /// [`Error::Rank`].
    pub fn wait(&self, stream: &mut dyn StreamBackend) -> Result<()> {
        self.group.wait();
        let done = stream.synchronize_unless(&|| self.group.failed());
        if done.is_ok() {
            self.group.done();
        }
        // A failure of the job comes before what became of this rank's work after it.
        let left = self.group.leave();
        left.and(self.group.share(done))
    }

    /// Leaves in order: after this no other rank maps this one's slab. No graph that uses it is left.
    ///
    /// # Errors
    /// [`Error::Rank`] if the job fails meanwhile.
    pub fn close(mut self) -> Result<()> {
        self.leave()
    }

    fn leave(&mut self) -> Result<()> {
        self.closed = true;
        self.group.phase(Phase::Closing);
        let fault = self.group.share(self.group.fault(Point::Teardown));
        let detached = self.attached.take().map_or(Ok(()), Attached::detach);
        fault.and(detached)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if !self.closed
            && let Err(e) = self.leave()
        {
            log::write(Level::Info, format_args!("leaving a group: {e}"));
        }
    }
}
