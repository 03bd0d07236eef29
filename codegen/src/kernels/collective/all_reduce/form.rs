//! Which form of an all-reduce runs: by machine, ranks and bytes, from one table.

use crate::choices::Choices;
use crate::request::require;
use crate::setup::Setup;
use crate::target::{GpuArch, Target};
use weldment_passes::target::Refusal;

/// Forms of an all-reduce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stages {
    /// An all-reduce by itself, and a norm by itself.
    Unfused,
    /// Whole rows to all ranks.
    One,
    /// Slices to their ranks, sums to all.
    Two,
    /// A sum by the vendor's library where every rank has it, and a norm by itself.
    Library,
}

/// A row of the table: on `machine`, up to `world` ranks exchange in one stage what has at most `one_stage` bytes.
struct Limit {
    machine: Machine,
    world: u32,
    one_stage: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Machine {
    Host,
    Amd,
    Nvidia,
}

/// The first row that fits counts; more ranks than any row has take two stages. Bytes: tokens x hidden x element size.
const TABLE: &[Limit] = &[
    // Two ranks send as much in one stage as in two.
    Limit { machine: Machine::Nvidia, world: 2, one_stage: u64::MAX },
    // Measured on four H200 (docs/collectives.md): between 6 and 8 tokens of 7168 bf16, 12 and 16 of 4096.
    Limit { machine: Machine::Nvidia, world: 4, one_stage: 96 << 10 },
    // Estimated: a rank more costs one stage 0.42 us at one token of 4096 bf16, and two stages next to nothing.
    Limit { machine: Machine::Nvidia, world: 8, one_stage: 4 << 10 },
    // Published for MI300 with 4 ranks and 7168 bf16, of kernels with flags: between 16 and 32 tokens.
    Limit { machine: Machine::Amd, world: 2, one_stage: u64::MAX },
    Limit { machine: Machine::Amd, world: 4, one_stage: 256 << 10 },
    Limit { machine: Machine::Amd, world: 8, one_stage: 128 << 10 },
    // Ranks share the caches: what is saved on the way is spent on waiting twice.
    Limit { machine: Machine::Host, world: 8, one_stage: u64::MAX },
];

fn machine(target: &Target) -> Machine {
    match target.gpu() {
        None => Machine::Host,
        Some(GpuArch::Sm90a) => Machine::Nvidia,
        Some(_) => Machine::Amd,
    }
}

/// The form that the user fixed.
pub fn fixed(choices: &Choices) -> Option<Stages> {
    Some(match choices.all_reduce? {
        0 => Stages::Unfused,
        1 => Stages::One,
        2 => Stages::Two,
        _ => Stages::Library,
    })
}

/// Two stages share a row out among the ranks, in whole packs of 8 elements.
///
/// # Errors
/// If the ranks' parts are not equal.
pub fn check_two(hidden: u64, world: u32) -> Result<(), Refusal> {
    let fits = hidden.is_multiple_of(8 * u64::from(world));
    require(fits, "hidden size in two stages", hidden, format!("a multiple of {}, 8 for each rank", 8 * world))
}

/// Most bytes that `world` ranks exchange in one stage.
pub fn one_stage_bytes(target: &Target, world: u32) -> u64 {
    let machine = machine(target);
    TABLE.iter().find(|row| row.machine == machine && world <= row.world).map_or(0, |row| row.one_stage)
}

/// The form for rows of `hidden` elements and `bytes` in all.
pub fn choose(setup: &Setup, world: u32, hidden: u64, bytes: u64) -> Stages {
    match fixed(&setup.choices) {
        Some(Stages::Two) => Stages::Two,
        Some(_) => Stages::One,
        None if bytes <= one_stage_bytes(&setup.target, world) || check_two(hidden, world).is_err() => Stages::One,
        None => Stages::Two,
    }
}
