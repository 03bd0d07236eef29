//! Runs a graph's tile programs in [`tile_interpreter`], launch by launch.

use crate::cases::Outputs;
use crate::execute::{Values, collect, element_offsets, packed, plan, resolve, spread};
use crate::tile_interpreter::{self, Memory};
use indexmap::IndexMap;
use std::collections::BTreeMap;
use weldment_codegen::tile::Kernel;
use weldment_ir::{Graph, OutputKind};
use weldment_runtime::artifact::{Arg, Region};

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
    let (target, plan, prepared, statics) = plan(graph, values, target)?;
    let missing = |name: &str| format!("no value for {name}");
    let kernels: Vec<&Kernel> = prepared.kernels().collect();
    let [variant] = prepared.variants() else { return Err("one variant is expected".into()) };
    // Stale bytes in the arena, in outputs and around what inputs and states hold must not matter: NaN everywhere.
    let stale = |bytes: u64| vec![0xff; bytes as usize];
    let pack = packed(graph, &target, &statics, prepared.pack())?;
    let mut memory = vec![Memory::new(stale(prepared.arena_bytes())), Memory::new(pack)];
    for e in plan.inputs.iter().chain(&plan.states) {
        let stored = values.get(&*e.name).ok_or_else(|| missing(&e.name))?;
        let (held, mut bytes) = (spread(e, stored), stale(e.bytes));
        for at in element_offsets(e, &stored.shape) {
            let range = at..at + e.ty.dtype.block_bytes();
            bytes[range.clone()].copy_from_slice(&held[range]);
        }
        memory.push(Memory::new(bytes));
    }
    memory.extend(plan.outputs.iter().map(|e| Memory::new(stale(e.bytes))));
    let inputs = 2;
    let states = inputs + plan.inputs.len();
    let outputs = states + plan.states.len();
    let place = |arg: &Arg| {
        let buffer = match arg.region {
            Region::Arena => 0,
            Region::Weights => 1,
            Region::Input(i) => inputs + i as usize,
            Region::State(i) => states + i as usize,
            Region::Output(i) => outputs + i as usize,
            Region::Slab | Region::Comm => unreachable!("one rank has no collectives"),
        };
        (buffer, arg.offset as usize)
    };
    let mut loaded = BTreeMap::new();
    for (i, launch) in variant.launches.iter().enumerate() {
        let arguments: Vec<(usize, usize)> = launch.args.iter().map(place).collect();
        let kernel = kernels[launch.kernel as usize];
        let bytes = tile_interpreter::run(kernel, dims, &arguments, &mut memory, i as u64 + 1)
            .map_err(|e| format!("{e}\n{kernel}"))?;
        *loaded.entry(kernel.family).or_default() += bytes;
    }
    let mut out = IndexMap::new();
    for o in graph.outputs() {
        let shape = resolve(graph.type_of(o.value), dims);
        let (list, first) = match o.kind {
            OutputKind::Result => (&plan.outputs, outputs),
            OutputKind::State => (&plan.states, states),
        };
        let i = list.iter().position(|e| e.name == o.name).ok_or_else(|| missing(&o.name))?;
        out.insert(o.name.to_string(), collect(&list[i], &memory[first + i].bytes, &shape)?);
    }
    Ok((out, loaded))
}
