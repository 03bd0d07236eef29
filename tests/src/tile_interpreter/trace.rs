//! What programs do to memory that ranks share, in the order of the program: for checkers of protocols.

use super::{Machine, Memory, Progress, check_tiles, programs};
use std::cell::RefCell;
use std::collections::BTreeMap;
use weldment_codegen::tile::{Address, Inst, Kernel, Stmt, V};

/// What an access is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// A plain or pushing store.
    Store,
    /// Words stored for others to wait for.
    Signal {
        /// They release what was stored before.
        release: bool,
    },
    /// A plain load.
    Load,
    /// A load of what others push, waited for.
    Arrive,
    /// A wait for words.
    Await,
}

/// One instruction's access to a buffer that is traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// What it is.
    pub kind: AccessKind,
    /// Bytes of an element.
    pub size: usize,
    /// First byte of each element that is masked in, and the bits stored or waited for (0 for loads).
    pub elements: Vec<(usize, u64)>,
}

/// Runs a launch on all ranks in turn, every store landing at once, and gives what the first program of each rank does to `buffer`.
///
/// # Errors
/// As [`super::run_ranks`].
pub fn trace_ranks(
    kernel: &Kernel,
    dims: &BTreeMap<String, u64>,
    arguments: &[Vec<(usize, usize)>],
    memory: &mut [Memory],
    launch: u64,
    buffer: usize,
) -> Result<Vec<Vec<Access>>, String> {
    check_tiles(kernel)?;
    let memory = RefCell::new(memory);
    let grid = programs(kernel, dims)?;
    let mut machines: Vec<(usize, bool, Machine<'_>)> = Vec::new();
    for (rank, arguments) in arguments.iter().enumerate() {
        for (index, program) in grid.iter().enumerate() {
            let stamp = (launch << 32) + (rank * grid.len() + index) as u64 + 1;
            machines.push((rank, index == 0, Machine::new(kernel, dims, arguments, &memory, (*program, stamp))));
        }
    }
    let mut traces: Vec<Vec<Access>> = vec![Vec::new(); arguments.len()];
    while !machines.is_empty() {
        let mut moved = false;
        let mut over = Vec::new();
        for (at, (rank, first, machine)) in machines.iter_mut().enumerate() {
            loop {
                let next = if *first { machine.next_access(buffer)? } else { None };
                let step = machine.step()?;
                super::ranks::land_all(&mut machine.flights, &memory);
                match step {
                    Progress::Waits => break,
                    Progress::Over => {
                        over.push(at);
                        break;
                    }
                    Progress::Ran => traces[*rank].extend(next),
                }
                moved = true;
            }
        }
        if !moved && over.is_empty() {
            return Err(format!("{}: all programs wait", kernel.name));
        }
        over.into_iter().rev().for_each(|at| drop(machines.remove(at)));
    }
    Ok(traces)
}

impl Machine<'_> {
    /// What the next instruction does to `buffer`, if it is one that does anything.
    fn next_access(&self, buffer: usize) -> Result<Option<Access>, String> {
        let Some(super::Frame::Block { stmts, at }) = self.frames.last() else { return Ok(None) };
        let Some(Stmt { inst, value: defined }) = stmts.get(*at) else { return Ok(None) };
        let access = |kind, address: &Address, of: V, mask: Option<V>, values: Option<Vec<u64>>| {
            let ty = self.ty(of);
            let (found, places) = self.places(address, &ty.shape, mask)?;
            let values = values.unwrap_or_else(|| vec![0; places.len()]);
            let elements =
                places.into_iter().zip(values).filter_map(|(at, bits)| Some((usize::try_from(at?).ok()?, bits)));
            let access = Access { kind, size: ty.elem.bytes() as usize, elements: elements.collect() };
            Ok::<_, String>((found == buffer).then_some(access))
        };
        match (inst, defined) {
            (Inst::Store { address, value, mask } | Inst::Push { address, value, mask }, _) => {
                access(AccessKind::Store, address, *value, *mask, Some(self.stored(*value)?))
            }
            (Inst::Signal { address, value, release }, _) => {
                access(AccessKind::Signal { release: *release }, address, *value, None, Some(self.stored(*value)?))
            }
            (Inst::Await { address, value, .. }, _) => {
                access(AccessKind::Await, address, *value, None, Some(self.stored(*value)?))
            }
            (Inst::Arrive { address, mask, .. }, Some(v)) => access(AccessKind::Arrive, address, *v, *mask, None),
            (Inst::Load { address, mask }, Some(v)) => access(AccessKind::Load, address, *v, *mask, None),
            _ => Ok(None),
        }
    }
}
