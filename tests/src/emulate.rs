//! Cases compiled for AMD GPUs, as jobs for the emulator, and the lock file that says which code objects it has witnessed.
//!
//! `tests/emulated.lock` names every code object of every case by its hash. Whoever changes a kernel changes hashes, and
//! must run `make emulate` again; `make test` compares.

use crate::cases::{Case, Outputs, Ranks};
use crate::execute::{Build, Values, build, collect, fill, reference, resolve, spread};
use crate::programs::RankPrograms;
use crate::ranks::comm_table;
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use weldment_ir::{Op, OutputKind};
use weldment_passes::buffer::External;
use weldment_runtime::artifact::{Arg, GridDim, Kernel, Region};

/// Targets that the emulator knows.
pub const TARGETS: [&str; 2] = ["gfx942", "gfx950"];

/// Where the lock file is.
pub fn lock_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("emulated.lock")
}

/// A case compiled for a target.
pub struct Object {
    /// The linked code object.
    pub code: Vec<u8>,
    /// Its blake3, in hex.
    pub hash: String,
    /// Its kernels.
    pub kernels: Vec<Kernel>,
}

impl Object {
    /// Kernel families of the object.
    pub fn families(&self) -> BTreeSet<&str> {
        self.kernels.iter().map(|k| k.family.as_str()).collect()
    }
}

/// The code object of a case.
///
/// # Errors
/// Any stage's, as text.
pub fn object(case: &Case, target: &str) -> Result<Object, String> {
    let values = fill(&case.graph, &case.dims, case.given.clone(), 1);
    let built = build(&case.graph, &values, &case.target(target))?;
    Ok(Object {
        hash: weldment_runtime::blake3_hex(&built.compiled.code),
        code: built.compiled.code,
        kernels: built.compiled.kernels,
    })
}

/// LLVM's version by its linker, which is built from the same sources as the library.
///
/// # Errors
/// If the linker does not run.
pub fn llvm_version() -> Result<String, String> {
    let out = Command::new(weldment_codegen::object::LINKER).arg("--version").output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let number = |w: &&str| w.split('.').count() == 3 && w.starts_with(|c: char| c.is_ascii_digit());
    text.split_whitespace().find(number).map(str::to_owned).ok_or(format!("no version in {text:?}"))
}

/// A case on disk, ready for the emulator.
pub struct Job {
    /// The job file.
    pub path: PathBuf,
    /// The object that runs.
    pub object: Object,
    expected: Outputs,
    /// Output name, its buffer's file, its place, its shape.
    outputs: Vec<(String, PathBuf, External, Vec<u64>)>,
    /// The slabs' file, and what they must hold afterwards.
    slabs: Option<(PathBuf, Vec<u8>)>,
}

/// What one of several ranks begins a step with and what it must leave.
struct Exchange {
    /// The slabs of all ranks before and after.
    slabs: [Vec<u8>; 2],
    /// Where the rank's own starts, and its comm table.
    own: usize,
    comm: Vec<u8>,
    expected: Outputs,
}

/// The second step of the case's rank, by the tile programs: so some areas hold what they held in the first, and are made empty.
fn second_step(case: &Case, target: &str, Ranks { world, rank, .. }: Ranks) -> Result<(Values, Exchange), String> {
    let is_weight = |name: &String| {
        case.graph.ids().any(|id| matches!(&case.graph.node(id).op, Op::Weight { name: n, .. } if **n == **name))
    };
    let weights = fill(&case.graph, &case.dims, case.given.clone(), 1);
    let weights: Values = weights.into_iter().filter(|(name, _)| is_weight(name)).collect();
    let of = |step: u64, rank: usize| fill(&case.graph, &case.dims, weights.clone(), 10 * step + rank as u64);
    let steps = [1, 2].map(|step| (0..world).map(|rank| of(step, rank)).collect::<Vec<_>>());
    let mut programs = RankPrograms::new(&case.graph, &steps[1][rank], &case.target(target), world)?;
    let (distance, initial) = programs.slab();
    programs.run(&case.dims, &steps[0], 1)?;
    let mut before = programs.slabs().clone();
    programs.run(&case.dims, &steps[1], 2)?;
    let own = rank * distance..(rank + 1) * distance;
    let words = before[own.clone()].chunks_exact_mut(4).zip(initial.chunks_exact(4));
    for ((word, initial), arrived) in words.zip(programs.slabs()[own.clone()].chunks_exact(4)) {
        // The epochs stay as they were.
        if word == initial && initial != [0; 4] {
            word.copy_from_slice(arrived);
        }
    }
    let mut alone = |before: &[u8], values: &[Values]| {
        *programs.slabs() = before.to_vec();
        let outputs = programs.run_alone(rank, &case.dims, values)?;
        Ok::<_, String>((outputs, programs.slabs().clone()))
    };
    // What the rank itself sends to its own slab, it must send: with other inputs other words arrive there, which are made empty.
    let (_, other) = alone(&before, &(0..world).map(|rank| of(3, rank)).collect::<Vec<_>>())?;
    let (at, comm) = (own.start, comm_table(rank, world, distance, 0, 0));
    let words = before[own].chunks_exact_mut(4).zip(initial.chunks_exact(4)).zip(other[at..].chunks_exact(4));
    for ((word, initial), other) in words.filter(|((_, initial), _)| *initial != [0; 4]) {
        if word != other && other != initial {
            word.copy_from_slice(initial);
        }
    }
    let (expected, after) = alone(&before, &steps[1])?;
    let [_, mut values] = steps;
    Ok((values.swap_remove(rank), Exchange { slabs: [before, after], own: at, comm, expected }))
}

/// Writes a case as a job into `dir`.
///
/// # Errors
/// Any stage's, as text.
pub fn write_job(case: &Case, target: &str, dir: &Path) -> Result<Job, String> {
    std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
    let (values, step) = match case.ranks {
        Some(ranks) => second_step(case, target, ranks).map(|(values, step)| (values, Some(step)))?,
        None => (fill(&case.graph, &case.dims, case.given.clone(), 1), None),
    };
    let expected = match &step {
        Some(step) => step.expected.clone(),
        None => reference(&case.graph, &case.dims, &values)?,
    };
    let built = build(&case.graph, &values, &case.target(target))?;
    let pack = built.pack(&case.graph)?;
    let Build { plan, compiled, .. } = built;
    let dims: Vec<u64> = case.graph.symbols().keys().map(|s| case.dims[&**s]).collect();

    let mut buffers = Vec::new();
    let mut add = |name: &str, bytes: &[u8]| -> Result<usize, String> {
        let path = dir.join(format!("{}.{name}", buffers.len()));
        std::fs::write(&path, bytes).map_err(|e| e.to_string())?;
        buffers.push((path, bytes.len()));
        Ok(buffers.len() - 1)
    };
    let stored = |e: &External| -> Result<Vec<u8>, String> {
        Ok(spread(e, values.get(&*e.name).ok_or_else(|| format!("no value for {}", e.name))?))
    };
    let block: Vec<u8> = dims.iter().flat_map(|n| n.to_le_bytes()).collect();
    let block = add("dims", &block)?;
    // Stale bytes in the arena and in outputs must not matter: NaN everywhere.
    let arena = add("arena", &vec![0xff; compiled.arena_bytes as usize])?;
    let weights = add("weights", &pack)?;
    let mut inputs = Vec::new();
    for e in &plan.inputs {
        inputs.push(add(&e.name, &stored(e)?)?);
    }
    let mut states = Vec::new();
    for e in &plan.states {
        states.push(add(&e.name, &stored(e)?)?);
    }
    let mut results = Vec::new();
    for e in &plan.outputs {
        results.push(add(&e.name, &vec![0xff; e.bytes as usize])?);
    }
    let shared = match &step {
        Some(step) => Some((add("slabs", &step.slabs[0])?, add("comm", &step.comm)?, step.own)),
        None => None,
    };
    // A GPU's grid is that of the largest dims; programs past the step's own leave at once.
    let most: Vec<u64> = case.graph.symbols().values().map(|r| r.max).collect();
    let mut launches = Vec::new();
    for launch in &compiled.variants[0].launches {
        let kernel = &compiled.kernels[launch.kernel as usize];
        let grid: Vec<u64> = launch
            .grid
            .iter()
            .map(|g| match *g {
                GridDim::Const(n) => n,
                GridDim::Symbol { symbol, mul, div } => (most[symbol as usize] * mul).div_ceil(div),
            })
            .collect();
        let place = |Arg { region, offset }: &Arg| -> Result<(usize, u64), String> {
            let (slabs, comm, own) = shared.unwrap_or_default();
            Ok(match region {
                Region::Arena => (arena, *offset),
                Region::Weights => (weights, *offset),
                Region::State(i) => (states[*i as usize], *offset),
                Region::Input(i) => (inputs[*i as usize], *offset),
                Region::Output(i) => (results[*i as usize], *offset),
                Region::Slab | Region::Comm if shared.is_none() => return Err("one rank has no collectives".into()),
                Region::Slab => (slabs, own as u64 + offset),
                Region::Comm => (comm, *offset),
            })
        };
        let mut args = launch.args.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        args.push((block, 0));
        launches.push(json!({ "kernel": kernel.name, "grid": grid, "block": [kernel.threads], "args": args }));
    }
    let code = dir.join("object.hsaco");
    std::fs::write(&code, &compiled.code).map_err(|e| e.to_string())?;
    let list: Vec<Json> = buffers.iter().map(|(path, bytes)| json!({ "path": path, "bytes": bytes })).collect();
    let job = json!({ "object": code, "target": target, "buffers": list, "launches": launches });
    let path = dir.join("job.json");
    std::fs::write(&path, job.to_string()).map_err(|e| e.to_string())?;

    let mut outputs = Vec::new();
    for o in case.graph.outputs() {
        let (list, places) = match o.kind {
            OutputKind::Result => (&plan.outputs, &results),
            OutputKind::State => (&plan.states, &states),
        };
        let i = list.iter().position(|e| e.name == o.name).ok_or_else(|| format!("no place for {}", o.name))?;
        let shape = resolve(case.graph.type_of(o.value), &case.dims);
        outputs.push((o.name.to_string(), buffers[places[i]].0.clone(), list[i].clone(), shape));
    }
    let hash = weldment_runtime::blake3_hex(&compiled.code);
    let object = Object { hash, code: compiled.code, kernels: compiled.kernels };
    let slabs = step.zip(shared).map(|(step, (slabs, ..))| {
        let [_, after] = step.slabs;
        (buffers[slabs].0.clone(), after)
    });
    Ok(Job { path, object, expected, outputs, slabs })
}

impl Job {
    /// The largest difference from the interpreter, after the job ran, and the outputs' first elements that show it.
    ///
    /// # Errors
    /// If a buffer cannot be read back.
    pub fn difference(&self, case: &Case) -> Result<(f64, String), String> {
        let mut found = Outputs::new();
        for (name, path, external, shape) in &self.outputs {
            let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
            found.insert(name.clone(), collect(external, &bytes, shape)?);
        }
        let mut shown = String::new();
        for (name, expected) in &self.expected {
            let pairs = expected.iter().zip(found.get(name).into_iter().flatten()).enumerate();
            let apart = |(x, y): (&f64, &f64)| y.is_nan() || (x - y).abs() > case.tolerance * x.abs().max(1.0);
            let wrong: Vec<_> = pairs.filter(|(_, pair)| apart(*pair)).collect();
            if !wrong.is_empty() {
                shown += &format!("; {name}: {} of {} elements differ:", wrong.len(), expected.len());
                for (at, (x, y)) in wrong.iter().take(6) {
                    shown += &format!(" [{at}] {y} for {x}");
                }
            }
        }
        let mut apart = (case.difference)(&self.expected, &found);
        if let Some((path, after)) = &self.slabs {
            let found = std::fs::read(path).map_err(|e| e.to_string())?;
            let wrong = after.iter().zip(&found).filter(|(a, b)| a != b).count();
            if wrong > 0 || after.len() != found.len() {
                shown += &format!("; slabs: {wrong} bytes differ");
                apart = f64::INFINITY;
            }
        }
        Ok((apart, shown))
    }
}

/// What LLVM itself says of an object that cannot be emulated: instructions by class, and the largest need of any kernel.
///
/// # Errors
/// If the disassembler does not run.
pub fn static_evidence(code: &Path, object: &Object) -> Result<Json, String> {
    let out = Command::new("llvm-objdump-22").arg("-d").arg(code).output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for word in text.lines().filter_map(|l| l.split_whitespace().next()) {
        let class = ["v_mfma", "global_load_dwordx4", "global_store_dwordx4", "scratch_", "s_barrier"];
        if let Some(class) = class.into_iter().find(|c| word.starts_with(c)) {
            *counts.entry(class).or_default() += 1;
        }
    }
    let most = |of: fn(&weldment_runtime::artifact::Resources) -> u32| {
        object.kernels.iter().filter_map(|k| k.resources.as_ref().map(of)).max()
    };
    Ok(json!({
        "instructions": counts,
        "vgprs": most(|r| r.vgprs),
        "lds_bytes": most(|r| r.lds_bytes),
        "scratch_bytes": most(|r| r.scratch_bytes),
    }))
}
