//! A launch on several ranks at once: their programs take turns by chance, and what they push arrives late and out of order.

use super::{Flight, Machine, Memory, Progress, check_tiles, programs};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use weldment_codegen::tile::{Address, Inst, Kernel, Stmt, V};
use weldment_ir::generate::Random;

/// Most programs of a rank that run at a time.
const RESIDENT: u64 = 3;

/// Runs every program of `kernel`'s grid on every rank; `arguments` are those of each rank, on memory that all share. The order is
/// drawn from `seed`: only a few programs of a rank run at a time, in the order of the grid.
///
/// # Errors
/// As [`super::run`]; that all programs wait.
pub fn run_ranks(
    kernel: &Kernel,
    dims: &BTreeMap<String, u64>,
    arguments: &[Vec<(usize, usize)>],
    memory: &mut [Memory],
    launch: u64,
    seed: u64,
) -> Result<(), String> {
    check_tiles(kernel)?;
    let mut random = Random::new(seed);
    let memory = RefCell::new(memory);
    let grid = programs(kernel, dims)?;
    // Programs to come, and those that run, by rank.
    let mut left: Vec<_> = arguments.iter().map(|_| grid.iter().enumerate()).collect();
    let mut running: Vec<Vec<Machine<'_>>> = arguments.iter().map(|_| Vec::new()).collect();
    let resident: Vec<usize> = arguments.iter().map(|_| 1 + random.below(RESIDENT) as usize).collect();
    // Stores of programs that are over.
    let mut late: Vec<Vec<Flight>> = arguments.iter().map(|_| Vec::new()).collect();
    let mut idle = 0;
    loop {
        let mut total = 0;
        for (rank, arguments) in arguments.iter().enumerate() {
            while running[rank].len() < resident[rank]
                && let Some((index, program)) = left[rank].next()
            {
                // Ranks write different buffers, but for the slabs, whose accesses are not checked.
                let stamp = (launch << 32) + (rank * grid.len() + index) as u64 + 1;
                running[rank].push(Machine::new(kernel, dims, arguments, &memory, (*program, stamp)));
            }
            total += running[rank].len();
        }
        if total == 0 {
            late.iter_mut().for_each(|flights| land_all(flights, &memory));
            return Ok(());
        }
        if idle > 1000 * total {
            return Err(format!("{}: all {total} programs wait", kernel.name));
        }
        let busy: Vec<usize> = (0..running.len()).filter(|rank| !running[*rank].is_empty()).collect();
        let Some(rank) = random.pick(&busy).copied() else { continue };
        let at = random.below(running[rank].len() as u64) as usize;
        let machine = &mut running[rank][at];
        land(&mut machine.flights, &memory, &mut random);
        late.iter_mut().for_each(|flights| land(flights, &memory, &mut random));
        // A few instructions in a row.
        for _ in 0..1 + random.below(8) {
            let step = machine.step().map_err(|e| format!("{} rank {rank} {:?}: {e}", kernel.name, machine.program))?;
            idle = if step == Progress::Waits { idle + 1 } else { 0 };
            match step {
                Progress::Ran => {}
                Progress::Waits => break,
                Progress::Over => {
                    // The end of a launch waits for its stores, that of a program does not.
                    late[rank].append(&mut machine.flights);
                    running[rank].remove(at);
                    break;
                }
            }
        }
    }
}

/// Lets some of the stores under way arrive: in any order, but for those to the same place.
fn land(flights: &mut Vec<Flight>, memory: &RefCell<&mut [Memory]>, random: &mut Random) {
    let one_in = 1 + random.below(4);
    let mut held = BTreeSet::new();
    flights.retain(|(buffer, at, bytes)| {
        let stays = held.contains(&(*buffer, *at)) || !random.one_in(one_in);
        if stays {
            held.insert((*buffer, *at));
        } else {
            memory.borrow_mut()[*buffer].bytes[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        stays
    });
}

pub(super) fn land_all(flights: &mut Vec<Flight>, memory: &RefCell<&mut [Memory]>) {
    for (buffer, at, bytes) in flights.drain(..) {
        memory.borrow_mut()[buffer].bytes[at..at + bytes.len()].copy_from_slice(&bytes);
    }
}

impl Machine<'_> {
    /// True if the statement can be done: what it waits for is there.
    pub(super) fn ready(&self, stmt: &Stmt) -> Result<bool, String> {
        Ok(match (&stmt.inst, stmt.value) {
            (Inst::Arrive { address, mask, empty, .. }, Some(v)) => {
                let found = self.bits(address, self.ty(v), *mask)?;
                found.iter().flatten().all(|x| *x != u64::from(*empty))
            }
            (Inst::Await { address, value, .. }, _) => {
                let (found, wanted) = (self.bits(address, self.ty(*value), None)?, self.ints(*value)?);
                // By distance: the count may wrap.
                let come = |found: u64, wanted: i64| (found as u32).wrapping_sub(wanted as u32) as i32 >= 0;
                found.iter().zip(wanted).all(|(f, w)| f.is_none_or(|f| come(f, w)))
            }
            _ => true,
        })
    }

    /// Sends stores on their way.
    pub(super) fn push(&mut self, address: &Address, value: V, mask: Option<V>) -> Result<(), String> {
        let ty = self.ty(value).clone();
        let size = ty.elem.bytes() as usize;
        let (buffer, places) = self.places(address, &ty.shape, mask)?;
        let param = self.kernel.params[address.param.0 as usize].name.clone();
        for (bits, at) in self.stored(value)?.into_iter().zip(places) {
            let Some(at) = at else { continue };
            let range = self.range(buffer, at, size, &param)?;
            self.flights.push((buffer, range.start, bits.to_le_bytes()[..size].to_vec()));
        }
        Ok(())
    }

    /// Sends a word, after everything before has arrived if it releases that.
    pub(super) fn signal(&mut self, address: &Address, value: V, release: bool) -> Result<(), String> {
        if release {
            land_all(&mut self.flights, self.memory);
        }
        self.push(address, value, None)
    }
}
