//! The slab of a session: allocated once, filled, made known to all ranks and described by the comm table, before any capture.

use super::control::Phase;
use super::group::{AbortWord, Group};
use super::inner::Waits;
use super::relax;
use crate::artifact::{Slab, comm_table};
use crate::driver::{Buffer, Driver, PeerMapping, Placement};
use crate::error::{Error, Result};
use std::sync::Arc;

/// Bytes of a fill that are written at once.
const FILL_BYTES: usize = 1 << 20;
/// Looks before a waiting program of the host yields, where every thread of every rank has a core.
const SPINS: u64 = 256;
/// The same where they have not.
const SPINS_OVERSUBSCRIBED: u64 = 16;

/// The slab and the comm table of one rank, and what keeps them.
#[derive(Debug)]
pub struct Attached {
    /// This rank's slab.
    pub slab: Buffer,
    /// Its comm table.
    pub comm: Buffer,
    imports: Vec<PeerMapping>,
    word: Option<Arc<dyn AbortWord>>,
    group: Arc<Group>,
}

impl Attached {
    /// Makes a slab as `spec` says on every rank; all ranks call this together. `threads` run kernels on the host.
    ///
    /// # Errors
    /// If there is no memory or the machine cannot share it, and [`Error::Rank`] if that happens to another rank.
    pub fn new(group: &Arc<Group>, driver: &dyn Driver, spec: &Slab, threads: usize) -> Result<Attached> {
        group.phase(Phase::Exchange);
        let attached = match driver.peer_memory() {
            None => group.share(Attached::by_mapping(group, driver, spec, threads)),
            Some(_) => group.share(Attached::by_export(group, driver, spec)),
        }?;
        // No kernel of any rank runs before every slab is filled.
        group.barrier("exchange of slabs")?;
        Ok(attached)
    }

    fn by_mapping(group: &Arc<Group>, driver: &dyn Driver, spec: &Slab, threads: usize) -> Result<Attached> {
        group.set_waits(Waits::Host);
        let (slab, stride) = group.host_slab(spec.bytes)?;
        fill(&slab, spec)?;
        let (rank, world) = (i64::from(group.ranks().rank), i64::from(group.ranks().world));
        let stride = i64::try_from(stride).map_err(|_| Error::Driver("a slab's size overflows".into()))?;
        let base = slab.address(0).ok_or_else(|| Error::Driver("the slab is not in the host's memory".into()))?;
        let (abort, [backoffs, waits]) = group.host_words();
        let deltas: Vec<i64> = (0..world).map(|other| (other - rank) * stride).collect();
        let to_abort = (abort.expose_provenance() as i64).wrapping_sub(base.expose_provenance() as i64);
        let mut table = table(group, &deltas, to_abort, relax::relax as *const () as u64);
        table.resize(relax::BYTES, 0);
        let busy = threads.saturating_mul(group.ranks().local_world as usize);
        let spins = if busy > crate::cpu::available_threads() { SPINS_OVERSUBSCRIBED } else { SPINS };
        let [backoffs, waits] = [backoffs, waits].map(|counter| counter.expose_provenance() as u64);
        let words = [abort.expose_provenance() as u64, backoffs, waits, spins];
        for (to, word) in table[relax::PRIVATE..].chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        let comm = driver.allocate(table.len(), Placement::Pinned, None)?;
        comm.put(0, &table)?;
        Ok(Attached { slab, comm, imports: Vec::new(), word: None, group: Arc::clone(group) })
    }

    fn by_export(group: &Arc<Group>, driver: &dyn Driver, spec: &Slab) -> Result<Attached> {
        let peers = driver.peer_memory().ok_or_else(|| Error::Unsupported("the device shares no memory".into()))?;
        group.set_waits(Waits::Device);
        let bytes = usize::try_from(spec.bytes).map_err(|_| Error::Driver("a slab's size overflows".into()))?;
        let (slab, message) = peers.export(bytes)?;
        fill(&slab, spec)?;
        let base = slab.device_address(0).ok_or_else(|| Error::Driver("the slab is not on the device".into()))?;
        let messages = group.exchange("exchange of slabs", &message)?;
        let mut imports = Vec::new();
        let mut deltas = Vec::with_capacity(messages.len());
        for (rank, message) in (0..).zip(&messages) {
            if rank == group.ranks().rank {
                deltas.push(0);
                continue;
            }
            let mapping = peers.import(message).map_err(|e| Error::Driver(format!("the slab of rank {rank}: {e}")))?;
            deltas.push((mapping.address as i64).wrapping_sub(base as i64));
            imports.push(mapping);
        }
        let (word, address) = peers.abort_word()?;
        group.add_abort_word(Arc::clone(&word));
        let table = table(group, &deltas, (address as i64).wrapping_sub(base as i64), 0);
        let comm = driver.allocate(table.len(), Placement::Arena, None)?;
        comm.put(0, &table)?;
        Ok(Attached { slab, comm, imports, word: Some(word), group: Arc::clone(group) })
    }

    /// Lets go of the other ranks' slabs, then, once all have, of the own one; no graph that uses them is left. After a failure
    /// nobody is waited for longer than the deadline.
    ///
    /// # Errors
    /// [`Error::Rank`] if the job has failed or fails meanwhile.
    pub fn detach(mut self) -> Result<()> {
        self.imports.clear();
        if let Some(word) = self.word.take() {
            self.group.remove_abort_word(&word);
        }
        // Exported memory stays until nobody maps it.
        self.group.release()
    }
}

/// The comm table's bytes.
fn table(group: &Group, deltas: &[i64], to_abort: i64, relax: u64) -> Vec<u8> {
    let mut table = vec![0u8; comm_table::BYTES as usize];
    let mut put = |at: u64, word: u64| {
        let at = at as usize;
        if let Some(to) = table.get_mut(at..at + 8) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    };
    put(comm_table::RANK, group.ranks().rank.into());
    put(comm_table::WORLD, group.ranks().world.into());
    put(comm_table::ABORT, to_abort as u64);
    put(comm_table::RELAX, relax);
    for (at, delta) in (comm_table::DELTAS..).step_by(8).zip(deltas) {
        put(at, *delta as u64);
    }
    table
}

/// Writes what the slab holds before the first step. What no fill covers are counters, which start at 0, or where
/// `WELDMENT_FIRST_EPOCH` says: a test of what happens when they wrap need not wait for it.
fn fill(slab: &Buffer, spec: &Slab) -> Result<()> {
    let first = first_epoch()?;
    let mut end = 0;
    for fill in &spec.fills {
        write(slab, (end, fill.offset), first)?;
        end = fill.offset.saturating_add(fill.bytes);
        write(slab, (fill.offset, end), fill.word)?;
    }
    write(slab, (end, spec.bytes), first)
}

fn first_epoch() -> Result<u32> {
    match std::env::var("WELDMENT_FIRST_EPOCH") {
        Ok(text) if !text.is_empty() => {
            let refused =
                || Error::InvalidInput(format!("WELDMENT_FIRST_EPOCH={text}: a number below 2^32 is accepted"));
            text.parse().map_err(|_| refused())
        }
        _ => Ok(0),
    }
}

/// Writes `word` again and again from byte `start` to byte `end`; a 0 is there already.
fn write(slab: &Buffer, (start, end): (u64, u64), word: u32) -> Result<()> {
    let [Ok(mut at), Ok(end)] = [start, end].map(usize::try_from) else {
        return Err(Error::Driver("a fill of the slab overflows".into()));
    };
    if word == 0 || at >= end {
        return Ok(());
    }
    let words = word.to_le_bytes().repeat((end - at).min(FILL_BYTES) / 4);
    while at < end {
        let part = (end - at).min(words.len());
        slab.put(at, words.get(..part).unwrap_or_default())?;
        at += part.max(1);
    }
    Ok(())
}
