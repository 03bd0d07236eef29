//! Several ranks of one graph as threads of one process, on compiled host code: their slabs lie in one mapping, and every rank
//! has a driver, an arena and weights of its own.

use crate::execute::{Build, Values, build};
use crate::host::Loaded;
use indexmap::IndexMap;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use weldment_ir::Graph;
use weldment_runtime::artifact::{Slab, comm_table};
use weldment_runtime::driver::{Buffer, Driver, Placement, host};

/// Looks after which a test gives a rank up: more than a minute of rests.
const GIVE_UP: u64 = 2_000_000;

/// Where a rank's slab lies, and what it knows of the others.
pub(crate) struct Place<'a> {
    /// The mapping of all slabs.
    pub(crate) slabs: &'a Buffer,
    /// This rank's start in it.
    pub(crate) start: usize,
    /// The rank's comm table.
    pub(crate) comm: &'a Buffer,
}

/// Rests between looks, the longer the more there were; ends a rank that waits in vain.
extern "C" fn relax(_: *const u8, looks: u64) -> u32 {
    if looks < 64 {
        std::hint::spin_loop();
    } else if looks < 4096 {
        thread::yield_now();
    } else if looks < GIVE_UP {
        thread::sleep(Duration::from_micros(50));
    } else {
        return 1;
    }
    0
}

/// The bytes of a slab before the first step.
pub fn initial(slab: &Slab) -> Vec<u8> {
    let mut bytes = vec![0; slab.bytes as usize];
    for fill in &slab.fills {
        let range = fill.offset as usize..(fill.offset + fill.bytes) as usize;
        for word in bytes[range].chunks_exact_mut(4) {
            word.copy_from_slice(&fill.word.to_le_bytes());
        }
    }
    bytes
}

/// Bytes that may hold epochs: all that are not filled.
pub(crate) fn epochs(slab: &Slab) -> Vec<std::ops::Range<usize>> {
    let mut start = 0;
    let mut out = Vec::new();
    for fill in &slab.fills {
        out.push(start..fill.offset as usize);
        start = (fill.offset + fill.bytes) as usize;
    }
    out.push(start..slab.bytes as usize);
    out
}

/// The comm table of `rank` whose slab starts `rank * distance` bytes into a mapping; the abort word is the last of the mapping's
/// slabs' first.
pub fn comm_table(rank: usize, world: usize, distance: usize, abort: i64, relax: u64) -> Vec<u8> {
    let mut table = vec![0; comm_table::BYTES as usize];
    let mut set = |at: u64, n: i64| table[at as usize..at as usize + 8].copy_from_slice(&n.to_le_bytes());
    set(comm_table::RANK, rank as i64);
    set(comm_table::WORLD, world as i64);
    set(comm_table::ABORT, abort);
    set(comm_table::RELAX, relax as i64);
    for peer in 0..world {
        set(comm_table::DELTAS + 8 * peer as u64, (peer as i64 - rank as i64) * distance as i64);
    }
    table
}

/// One graph, compiled once and loaded by every rank.
pub struct Ranks<'g> {
    graph: &'g Graph,
    built: Build<'g>,
    loaded: Vec<Loaded>,
    slabs: Buffer,
    slab_bytes: usize,
    comm: Vec<Buffer>,
}

/// Writes while no rank runs.
fn write(buffer: &Buffer, offset: usize, bytes: &[u8]) -> Result<(), String> {
    // SAFETY: ranks run inside `run`, which has returned.
    unsafe { buffer.write(offset, bytes) }.map_err(|e| e.to_string())
}

impl<'g> Ranks<'g> {
    /// Compiles `graph` for `target`, to be run by `world` ranks of `threads` threads each. Weights are the same on all ranks.
    ///
    /// # Errors
    /// Any stage's, as text.
    pub fn new(
        graph: &'g Graph,
        weights: &'g Values,
        target: &str,
        world: usize,
        threads: usize,
    ) -> Result<Ranks<'g>, String> {
        let built = build(graph, weights, target)?;
        let slab = built.compiled.slab.clone().unwrap_or(Slab { bytes: 0, fills: Vec::new() });
        let slab_bytes = slab.bytes as usize;
        // SAFETY: it only allocates.
        let driver = unsafe { host::HostDriver::new(host::HostOptions { threads: 1, ..host::HostOptions::default() }) };
        let driver = driver.map_err(|e| e.to_string())?;
        let allocate = |bytes: usize| driver.allocate(bytes.max(64), Placement::Arena, None).map_err(|e| e.to_string());
        // One page more holds the abort word.
        let slabs = allocate(world * slab_bytes + 4096)?;
        write(&slabs, 0, &vec![0; world * slab_bytes + 4096])?;
        let (mut loaded, mut comm) = (Vec::new(), Vec::new());
        for rank in 0..world {
            write(&slabs, rank * slab_bytes, &initial(&slab))?;
            let abort = ((world - rank) * slab_bytes) as i64;
            let buffer = allocate(comm_table::BYTES as usize)?;
            let entry = relax as extern "C" fn(*const u8, u64) -> u32;
            let table = comm_table(rank, world, slab_bytes, abort, entry as usize as u64);
            write(&buffer, 0, &table)?;
            comm.push(buffer);
            loaded.push(Loaded::new(graph, &built.setup.target, &built.compiled, &built.statics, threads)?);
        }
        Ok(Ranks { graph, built, loaded, slabs, slab_bytes, comm })
    }

    /// Starts the epochs of all programs at `epoch`. Areas are found by the epoch's last bits, and all are empty.
    ///
    /// # Errors
    /// The driver's, as text.
    pub fn start_epochs(&self, epoch: u32) -> Result<(), String> {
        let slab = self.built.compiled.slab.as_ref().ok_or("a graph without collectives")?;
        for range in epochs(slab) {
            let bytes: Vec<u8> = std::iter::repeat_n(epoch.to_le_bytes(), range.len() / 4).flatten().collect();
            for rank in 0..self.loaded.len() {
                write(&self.slabs, rank * self.slab_bytes + range.start, &bytes)?;
            }
        }
        Ok(())
    }

    /// Runs one step on all ranks at once; `values` are each rank's. Gives each rank's outputs.
    ///
    /// # Errors
    /// Any rank's, as text.
    pub fn run(
        &self,
        dims: &BTreeMap<String, u64>,
        values: &[Values],
    ) -> Result<Vec<IndexMap<String, Vec<f64>>>, String> {
        let step = |rank: usize| {
            let place = Place { slabs: &self.slabs, start: rank * self.slab_bytes, comm: &self.comm[rank] };
            let compiled = (&self.built.compiled, 0);
            self.loaded[rank].run(compiled, (self.graph, &self.built.plan), dims, &values[rank], Some(&place))
        };
        thread::scope(|scope| {
            let step = Arc::new(step);
            let ranks: Vec<_> = (0..self.loaded.len())
                .map(|rank| {
                    let step = Arc::clone(&step);
                    scope.spawn(move || step(rank))
                })
                .collect();
            ranks.into_iter().map(|r| r.join().map_err(|_| "a rank panicked".to_owned())?).collect()
        })
    }
}
