//! What the kernels of text images do. As on a GPU, one program (block) makes one element, grids cover the largest dims, and
//! surplus programs end at once; the last parameter is the dims block (i64 a symbol).

use crate::memory::Memory;
use crate::state::{Answer, ILLEGAL_ADDRESS};

/// An operation; `symbol` is an index into the dims block, the number of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Any parameters, all of which must be addresses.
    Nothing,
    /// `(out i64, in i64)`: `out[i] = in[i] + 1`.
    Add1 { symbol: usize },
    /// `(out i32, history i32, table i32, rows i32)`: `history = history * 31 + table[rows[i]]`, `out[i] = history`, with
    /// wrapping arithmetic: what comes out depends on every step before. Programs run in order here.
    Mix { symbol: usize },
    /// `(logits f32, ids i32, bias f32)`: `logits[i][v] = bias[v] + (v == ids[i] % width)`.
    OneHot { symbol: usize, width: usize },
}

impl Operation {
    /// `(operation, number of parameters)`.
    pub fn parse(name: &str, numbers: &[usize]) -> Option<(Operation, usize)> {
        match (name, numbers) {
            ("nothing", [params]) => Some((Operation::Nothing, *params)),
            ("add1", [symbol]) => Some((Operation::Add1 { symbol: *symbol }, 3)),
            ("mix", [symbol]) => Some((Operation::Mix { symbol: *symbol }, 5)),
            ("one_hot", [symbol, width]) => Some((Operation::OneHot { symbol: *symbol, width: *width }, 4)),
            _ => None,
        }
    }

    /// Runs `programs` programs on these arguments.
    pub fn run(self, memory: &mut Memory, args: &[u64], programs: u64) -> Answer {
        let symbol = match self {
            Operation::Nothing => return Ok(()),
            Operation::Add1 { symbol } | Operation::Mix { symbol } | Operation::OneHot { symbol, .. } => symbol,
        };
        let mut device = Device { memory };
        let arg = |index: usize| args.get(index).map(|a| *a as usize).ok_or(ILLEGAL_ADDRESS);
        let last = arg(args.len().wrapping_sub(1))?;
        let elements = i64::from_le_bytes(device.load(last, symbol)?);
        for i in 0..programs.min(u64::try_from(elements).unwrap_or(0)) as usize {
            match self {
                Operation::Nothing => {}
                Operation::Add1 { .. } => {
                    let value = i64::from_le_bytes(device.load(arg(1)?, i)?);
                    device.store(arg(0)?, i, value.wrapping_add(1).to_le_bytes())?;
                }
                Operation::Mix { .. } => {
                    let row = i32::from_le_bytes(device.load(arg(3)?, i)?);
                    let row = usize::try_from(row).map_err(|_| ILLEGAL_ADDRESS)?;
                    let value = i32::from_le_bytes(device.load(arg(2)?, row)?);
                    let history = i32::from_le_bytes(device.load(arg(1)?, 0)?);
                    let mixed = history.wrapping_mul(31).wrapping_add(value);
                    device.store(arg(1)?, 0, mixed.to_le_bytes())?;
                    device.store(arg(0)?, i, mixed.to_le_bytes())?;
                }
                Operation::OneHot { width, .. } => {
                    let id = i32::from_le_bytes(device.load(arg(1)?, i)?);
                    for v in 0..width {
                        let bias = f32::from_le_bytes(device.load(arg(2)?, v)?);
                        let hot = if id.rem_euclid(width as i32) as usize == v { 1.0 } else { 0.0 };
                        device.store(arg(0)?, i * width + v, (bias + hot).to_le_bytes())?;
                    }
                }
            }
        }
        Ok(())
    }
}

struct Device<'a> {
    memory: &'a mut Memory,
}

impl Device<'_> {
    fn load<const N: usize>(&mut self, base: usize, index: usize) -> Answer<[u8; N]> {
        let (at, _) = self.memory.resolve(base + index * N, N).ok_or(ILLEGAL_ADDRESS)?;
        // SAFETY: the range lies in a live allocation.
        Ok(unsafe { at.cast::<[u8; N]>().read_unaligned() })
    }

    fn store<const N: usize>(&mut self, base: usize, index: usize, value: [u8; N]) -> Answer {
        let (at, _) = self.memory.resolve(base + index * N, N).ok_or(ILLEGAL_ADDRESS)?;
        // SAFETY: the range lies in a live allocation, and nothing else touches it while the state is locked.
        unsafe { at.cast::<[u8; N]>().write_unaligned(value) };
        Ok(())
    }
}
