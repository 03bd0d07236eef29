//! Runs a graph's tile programs in [`tile_interpreter`], launch by launch.

use crate::cases::Outputs;
use crate::execute::{Planned, Values, collect, element_offsets, packed, plan, resolve, spread};
use crate::ranks::{comm_table, epochs, initial};
use crate::tile_interpreter::{self, Access, Memory};
use indexmap::IndexMap;
use std::collections::BTreeMap;
use weldment_codegen::tile::Kernel;
use weldment_ir::{Graph, OutputKind};
use weldment_runtime::artifact::{Arg, Region, Slab};

/// Outputs by the tile programs for `target`.
///
/// # Errors
/// Any stage's, as text; a program that breaks a rule of GPU lowerings.
pub fn interpret_programs(
    graph: &Graph,
    dims: &BTreeMap<String, u64>,
    values: &Values,
    target: &str,
) -> Result<IndexMap<String, Vec<f64>>, String> {
    interpret_counting(graph, dims, values, target).map(|(outputs, _)| outputs)
}

/// The same, and the bytes that the kernels of each family loaded.
///
/// # Errors
/// As [`interpret_programs`].
pub fn interpret_counting(
    graph: &Graph,
    dims: &BTreeMap<String, u64>,
    values: &Values,
    target: &str,
) -> Result<(Outputs, BTreeMap<&'static str, u64>), String> {
    let planned = plan(graph, values, target)?;
    let kernels: Vec<&Kernel> = planned.2.kernels().collect();
    let [variant] = planned.2.variants() else { return Err("one variant is expected".into()) };
    let mut memory = rank_memory(graph, &planned, values)?;
    let mut loaded = BTreeMap::new();
    for (i, launch) in variant.launches.iter().enumerate() {
        let arguments: Vec<(usize, usize)> = launch.args.iter().map(|arg| place(arg, &planned, 0, (0, 0))).collect();
        let kernel = kernels[launch.kernel as usize];
        let bytes = tile_interpreter::run(kernel, dims, &arguments, &mut memory, i as u64 + 1)
            .map_err(|e| format!("{e}\n{kernel}"))?;
        *loaded.entry(kernel.family).or_default() += bytes;
    }
    Ok((outputs(graph, dims, &planned, &memory)?, loaded))
}

/// The buffers of a rank: arena, weights, inputs, states, outputs. Stale bytes in the arena, in outputs and around what inputs and
/// states hold must not matter: NaN everywhere.
fn rank_memory(graph: &Graph, planned: &Planned<'_>, values: &Values) -> Result<Vec<Memory>, String> {
    let (target, plan, prepared, statics) = planned;
    let stale = |bytes: u64| vec![0xff; bytes as usize];
    let pack = packed(graph, &target.target, statics, prepared.pack())?;
    let mut memory = vec![Memory::new(stale(prepared.arena_bytes())), Memory::new(pack)];
    for e in plan.inputs.iter().chain(&plan.states) {
        let stored = values.get(&*e.name).ok_or_else(|| format!("no value for {}", e.name))?;
        let (held, mut bytes) = (spread(e, stored), stale(e.bytes));
        for at in element_offsets(e, &stored.shape) {
            let range = at..at + e.ty.dtype.block_bytes();
            bytes[range.clone()].copy_from_slice(&held[range]);
        }
        memory.push(Memory::new(bytes));
    }
    memory.extend(plan.outputs.iter().map(|e| Memory::new(stale(e.bytes))));
    Ok(memory)
}

/// Buffer and byte of an argument, for a rank whose buffers start at number `first`; `ranks`: the buffers of all slabs, which
/// starts at the rank's, and of its comm table.
fn place(arg: &Arg, (_, plan, ..): &Planned<'_>, first: usize, (slabs, rank): (usize, usize)) -> (usize, usize) {
    let (inputs, states) = (first + 2, first + 2 + plan.inputs.len());
    let buffer = match arg.region {
        Region::Arena => first,
        Region::Weights => first + 1,
        Region::Input(i) => inputs + i as usize,
        Region::State(i) => states + i as usize,
        Region::Output(i) => states + plan.states.len() + i as usize,
        Region::Slab => slabs,
        Region::Comm => slabs + 1 + rank,
    };
    (buffer, arg.offset as usize)
}

fn outputs(
    graph: &Graph,
    dims: &BTreeMap<String, u64>,
    (_, plan, ..): &Planned<'_>,
    memory: &[Memory],
) -> Result<Outputs, String> {
    let mut out = IndexMap::new();
    for o in graph.outputs() {
        let shape = resolve(graph.type_of(o.value), dims);
        let states = 2 + plan.inputs.len();
        let (list, first) = match o.kind {
            OutputKind::Result => (&plan.outputs, states + plan.states.len()),
            OutputKind::State => (&plan.states, states),
        };
        let i = list.iter().position(|e| e.name == o.name).ok_or_else(|| format!("no place for {}", o.name))?;
        out.insert(o.name.to_string(), collect(&list[i], &memory[first + i].bytes, &shape)?);
    }
    Ok(out)
}

/// Runs a launch: kernel, arguments of each rank, memory, number of the launch, buffer of the slabs.
type Launcher<'a> = &'a mut dyn FnMut(&Kernel, &[Vec<(usize, usize)>], &mut [Memory], u64, usize) -> Result<(), String>;

/// A graph's tile programs on several ranks, whose slabs stay from step to step.
pub struct RankPrograms<'g> {
    graph: &'g Graph,
    planned: Planned<'g>,
    world: usize,
    /// The slabs of all ranks, one after the other.
    slabs: Memory,
    slab: Slab,
}

impl<'g> RankPrograms<'g> {
    /// The programs of `graph` for `target`. Weights are the same on all ranks.
    ///
    /// # Errors
    /// Any stage's, as text.
    pub fn new(graph: &'g Graph, weights: &'g Values, target: &str, world: usize) -> Result<RankPrograms<'g>, String> {
        let planned = plan(graph, weights, target)?;
        let slab = planned.2.slab().cloned().ok_or("a graph without collectives")?;
        let slabs = Memory::new(initial(&slab).repeat(world));
        Ok(RankPrograms { graph, planned, world, slabs, slab })
    }

    /// Starts the epochs of all programs at `epoch`.
    pub fn start_epochs(&mut self, epoch: u32) {
        for rank in 0..self.world {
            let own = &mut self.slabs.bytes[rank * self.slab.bytes as usize..(rank + 1) * self.slab.bytes as usize];
            for range in epochs(&self.slab) {
                own[range].chunks_exact_mut(4).for_each(|word| word.copy_from_slice(&epoch.to_le_bytes()));
            }
        }
    }

    /// The slabs of all ranks, one after the other.
    pub fn slabs(&mut self) -> &mut Vec<u8> {
        &mut self.slabs.bytes
    }

    /// Runs one step of one rank, to whom all have pushed what it waits for. Gives its outputs.
    ///
    /// # Errors
    /// As [`RankPrograms::run`].
    pub fn run_alone(
        &mut self,
        rank: usize,
        dims: &BTreeMap<String, u64>,
        values: &[Values],
    ) -> Result<Outputs, String> {
        let mut outputs = self.launches(dims, values, &mut |kernel, arguments, memory, launch, _| {
            tile_interpreter::run_ranks(kernel, dims, &arguments[rank..=rank], memory, launch, launch)
                .map_err(|e| format!("{e}\n{kernel}"))
        })?;
        Ok(outputs.swap_remove(rank))
    }

    /// Bytes of a rank's slab, and its words before the first step.
    pub fn slab(&self) -> (usize, Vec<u8>) {
        (self.slab.bytes as usize, initial(&self.slab))
    }

    /// What the first program of each rank does to the slabs of all in one step, by launch; `change` is applied to every kernel
    /// before it runs.
    ///
    /// # Errors
    /// As [`RankPrograms::run`].
    pub fn trace(
        &mut self,
        dims: &BTreeMap<String, u64>,
        values: &[Values],
        change: &dyn Fn(&Kernel) -> Kernel,
    ) -> Result<Vec<Vec<Vec<Access>>>, String> {
        let mut traces = Vec::new();
        self.launches(dims, values, &mut |kernel, arguments, memory, launch, slabs| {
            traces.push(tile_interpreter::trace_ranks(&change(kernel), dims, arguments, memory, launch, slabs)?);
            Ok(())
        })?;
        Ok(traces)
    }

    /// Runs one step; `values` are each rank's, `seed` draws the order of everything. Gives each rank's outputs.
    ///
    /// # Errors
    /// As [`interpret_programs`]; that all programs wait.
    pub fn run(&mut self, dims: &BTreeMap<String, u64>, values: &[Values], seed: u64) -> Result<Vec<Outputs>, String> {
        self.launches(dims, values, &mut |kernel, arguments, memory, launch, _| {
            tile_interpreter::run_ranks(kernel, dims, arguments, memory, launch, seed + launch - 1)
                .map_err(|e| format!("{e}\n{kernel}"))
        })
    }

    /// Hands every launch of a step to `run`: kernel, arguments of each rank, memory, number of the launch from 1, and the buffer
    /// of the slabs. Gives each rank's outputs.
    fn launches(
        &mut self,
        dims: &BTreeMap<String, u64>,
        values: &[Values],
        run: Launcher<'_>,
    ) -> Result<Vec<Outputs>, String> {
        let mut memory = Vec::new();
        let mut first = Vec::new();
        for values in values {
            first.push(memory.len());
            memory.extend(rank_memory(self.graph, &self.planned, values)?);
        }
        let slabs = memory.len();
        memory.push(std::mem::take(&mut self.slabs));
        let distance = self.slab.bytes as usize;
        for rank in 0..self.world {
            memory.push(Memory::new(comm_table(rank, self.world, distance, 0, 0)));
        }
        let kernels: Vec<&Kernel> = self.planned.2.kernels().collect();
        let [variant] = self.planned.2.variants() else { return Err("one variant is expected".into()) };
        for (i, launch) in variant.launches.iter().enumerate() {
            let kernel = kernels[launch.kernel as usize];
            let arguments: Vec<Vec<(usize, usize)>> = (0..self.world)
                .map(|rank| {
                    let own = |arg: &Arg| {
                        let (buffer, at) = place(arg, &self.planned, first[rank], (slabs, rank));
                        (buffer, if buffer == slabs { at + rank * distance } else { at })
                    };
                    launch.args.iter().map(own).collect()
                })
                .collect();
            run(kernel, &arguments, &mut memory, i as u64 + 1, slabs)?;
        }
        self.slabs = std::mem::take(&mut memory[slabs]);
        first.iter().map(|first| outputs(self.graph, dims, &self.planned, &memory[*first..])).collect()
    }
}
