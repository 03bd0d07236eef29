//! The vendor's collectives, RCCL on AMD and NCCL on NVIDIA: for what an artifact marks as theirs, if every rank has the library.

use super::group::Group;
use crate::DType;
use crate::error::{Error, Result};
use crate::log::{self, Level};
use rccl_sys::{Comm, DataType, Message, Rccl, UNIQUE_ID_BYTES, UniqueId};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks at what the library does by itself.
const LOOK: Duration = Duration::from_micros(200);
/// Deadlines of the group that joining may take: the library finds out how the devices are linked.
const JOIN_DEADLINES: u32 = 12;

/// A communicator of the library over all ranks.
pub struct Library {
    rccl: Rccl,
    comm: Comm,
    group: Arc<Group>,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Library({})", self.rccl.library())
    }
}

impl Library {
    /// Joins all ranks by the library, on the thread's current device; `None`, on all ranks alike, if one of them has none. All ranks
    /// call this together.
    ///
    /// # Errors
    /// [`Error::Rank`] if the library fails on a rank.
    pub fn join(group: &Arc<Group>) -> Result<Option<Arc<Library>>> {
        let ranks = group.ranks();
        let opened = Rccl::open();
        // One byte that says "here", then rank 0's name for the communicator.
        let said = match &opened {
            Ok(rccl) if ranks.rank == 0 => rccl.unique_id().map(|id| [&[1][..], &id.0].concat()),
            Ok(_) => Ok(vec![1]),
            Err(e) => Err(e.clone()),
        };
        let said = said.unwrap_or_else(|e| {
            log::write(Level::Info, format_args!("{e}"));
            Vec::new()
        });
        let all = group.exchange("exchange of the library's name", &said)?;
        let id = all.first().and_then(|first| first.get(1..)?.first_chunk::<UNIQUE_ID_BYTES>());
        let (Ok(rccl), Some(id), true) = (opened, id, all.iter().all(|said| !said.is_empty())) else {
            log::write(Level::Warn, format_args!("no RCCL or NCCL on every rank: collectives run on our own kernels"));
            return Ok(None);
        };
        let comm = rccl.join(UniqueId(*id), ranks.rank, ranks.world).map_err(|e| failed(&e));
        let library = Library { comm: group.share(comm)?, rccl, group: Arc::clone(group) };
        let ready = library.settle(group.deadline() * JOIN_DEADLINES);
        group.share(ready)?;
        Ok(Some(Arc::new(library)))
    }

    /// Waits until the library has taken what it was last asked for.
    fn settle(&self, limit: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            // SAFETY: the communicator is this object's.
            if unsafe { self.rccl.ready(self.comm) }.map_err(|e| failed(&e))? {
                return Ok(());
            }
            self.group.check()?;
            if began.elapsed() > limit {
                return Err(Error::Driver(format!("{} is not ready after {limit:?}", self.rccl.library())));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Enqueues the sum over all ranks of `count` elements; false if the library does not add this dtype.
    ///
    /// # Errors
    /// If the library fails.
    ///
    /// # Safety
    /// Both ranges are device memory that stays until `stream`, which is of this rank's device, has passed; all ranks make the same
    /// calls in the same order.
    pub unsafe fn all_reduce(&self, from: u64, to: u64, count: usize, dtype: DType, stream: usize) -> Result<bool> {
        let dtype = match dtype {
            DType::F32 => DataType::Float32,
            DType::F16 => DataType::Float16,
            DType::BF16 => DataType::Bfloat16,
            _ => return Ok(false),
        };
        let message = Message { from, to, count, dtype, comm: self.comm, stream };
        // SAFETY: by the promise of the caller.
        unsafe { self.rccl.all_reduce(&message) }.map_err(|e| failed(&e))?;
        self.settle(self.group.deadline())?;
        Ok(true)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: the communicator is this object's, and no graph that uses it is left, for each keeps this object.
        let done = unsafe {
            match self.group.failed() {
                true => self.rccl.abort(self.comm),
                false => self.rccl.destroy(self.comm),
            }
        };
        if let Err(e) = done {
            log::write(Level::Info, format_args!("leaving the library's communicator: {e}"));
        }
    }
}

fn failed(error: &rccl_sys::Error) -> Error {
    Error::Driver(error.to_string())
}
