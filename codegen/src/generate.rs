//! From built kernels to code: modules of all programs are compiled side by side, linked, and what the linked code says of
//! each kernel is checked.

use crate::compile::{CodegenError, Compiled, Prepared, Unit};
use crate::llvm::{Emit, LlvmError, compile_gpu, compile_host};
use crate::object::{amdgpu, link, link_relocatable, ptx};
use crate::setup::Setup;
use crate::target::{GpuArch, Target};
use crate::tile::Kernel;
use indexmap::IndexMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use weldment_artifact as format;
use weldment_artifact::Resources;

/// Threads that compile modules. Modules do not depend on it.
const THREADS: usize = 2;

/// Emitted texts, for `--emit`.
#[derive(Debug, Default)]
pub struct Kernels {
    /// Tile programs.
    pub tile: String,
    /// LLVM IR, where asked for.
    pub llvm: Option<String>,
    /// Assembly, where asked for.
    pub asm: Option<String>,
    /// Relocatable objects of a host program; empty for GPUs.
    objects: Vec<Vec<u8>>,
    /// Linked code of a GPU program.
    code: Vec<u8>,
    /// What the file of [`Kernels::object`] is called after its dot.
    pub extension: &'static str,
}

impl Kernels {
    /// One file for people: a relocatable object for the host, a code object for AMD, PTX for NVIDIA.
    ///
    /// # Errors
    /// The linker's.
    pub fn object(&self) -> Result<Vec<u8>, CodegenError> {
        if self.objects.is_empty() { Ok(self.code.clone()) } else { link_relocatable(&self.objects) }
    }
}

/// A module to be compiled: kernels of one program.
struct Job<'a> {
    program: usize,
    setup: &'a Setup,
    kernels: Vec<&'a Kernel>,
    /// How long it takes, beside the others.
    weight: usize,
}

/// A compiled module.
struct Module {
    code: Vec<u8>,
    llvm: Option<String>,
    asm: Option<String>,
}

/// Generates the code of all programs, in the order given.
///
/// # Errors
/// LLVM's and the linker's; a kernel that needs scratch which `--set allow_scratch=1` did not allow.
pub fn generate(programs: Vec<Prepared>, emit: Emit) -> Result<Vec<Compiled>, CodegenError> {
    let jobs: Vec<Job<'_>> = programs.iter().enumerate().flat_map(|(i, p)| jobs(i, p)).collect();
    let mut modules: Vec<Vec<Module>> = programs.iter().map(|_| Vec::new()).collect();
    for (job, module) in jobs.iter().zip(compile_modules(&jobs, emit)) {
        modules[job.program].push(module?);
    }
    drop(jobs);
    programs.into_iter().zip(modules).map(|(program, modules)| assemble(program, modules)).collect()
}

/// The modules of a program: their content depends on the program alone.
fn jobs(program: usize, prepared: &Prepared) -> Vec<Job<'_>> {
    let setup = &prepared.setup;
    // PTX texts cannot be joined, so a program for NVIDIA is one module. LLVM takes about three times as long for AMD.
    let (parts, pace) = match setup.target.gpu() {
        Some(arch) if arch.is_amd() => (4, 3),
        Some(_) => (1, 1),
        None => (2, 1),
    };
    // The longest programs first, each to the module that has least.
    let weights: Vec<usize> = prepared.units.iter().map(|u| u.kernel.to_string().len()).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(weights[*i]));
    let mut parts: Vec<(usize, Vec<usize>)> = vec![(0, Vec::new()); parts];
    for i in order {
        if let Some((weight, part)) = parts.iter_mut().min_by_key(|(weight, _)| *weight) {
            *weight += weights[i];
            part.push(i);
        }
    }
    let parts = parts.into_iter().filter(|(_, part)| !part.is_empty());
    parts
        .map(|(weight, mut part)| {
            part.sort_unstable();
            let kernels = part.into_iter().map(|i| &prepared.units[i].kernel).collect();
            Job { program, setup, kernels, weight: weight * pace }
        })
        .collect()
}

/// Compiles modules on a few threads, the longest ones first; results are in the order of the jobs.
fn compile_modules(jobs: &[Job<'_>], emit: Emit) -> Vec<Result<Module, LlvmError>> {
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(jobs[*i].weight));
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Result<Module, LlvmError>>>> = Mutex::new(jobs.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(jobs.len()) {
            scope.spawn(|| {
                while let Some(job) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let module = compile_module(&jobs[*job], emit);
                    done.lock().unwrap_or_else(PoisonError::into_inner)[*job] = Some(module);
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let lost = || Err(LlvmError::Llvm("a module was not compiled".into()));
    done.into_iter().map(|module| module.unwrap_or_else(lost)).collect()
}

fn compile_module(job: &Job<'_>, emit: Emit) -> Result<Module, LlvmError> {
    match &job.setup.target {
        Target::Host(host) => {
            let compiled = compile_host(&job.kernels, (host, &job.setup.symbols), emit)?;
            Ok(Module { code: compiled.object, llvm: compiled.llvm, asm: compiled.asm })
        }
        Target::Gpu(arch) => {
            let compiled = compile_gpu(&job.kernels, (*arch, &job.setup.symbols), emit)?;
            Ok(Module { code: compiled.code, llvm: compiled.llvm, asm: compiled.asm })
        }
    }
}

/// Where a kernel is found in the linked code, and what it needs.
struct Found {
    entry: u64,
    resources: Option<Resources>,
}

fn assemble(program: Prepared, modules: Vec<Module>) -> Result<Compiled, CodegenError> {
    let join = |text: fn(&Module) -> Option<&String>| modules.iter().map(text).collect::<Option<Vec<_>>>();
    let join = |text| join(text).map(|parts| parts.into_iter().map(String::as_str).collect::<String>());
    let (llvm, asm) = (join(|m| m.llvm.as_ref()), join(|m| m.asm.as_ref()));
    let tile = program.units.iter().map(|u| u.kernel.to_string()).collect::<Vec<_>>().join("\n");
    let objects: Vec<Vec<u8>> = modules.into_iter().map(|m| m.code).collect();
    let mut emitted = Kernels { tile, llvm, asm, extension: "o", ..Kernels::default() };
    let (code, found) = match &program.setup.target {
        Target::Host(_) => {
            let image = link(&objects)?;
            emitted.objects = objects;
            let entries = image.entries.into_iter();
            (image.bytes, entries.map(|(name, entry)| (name, Found { entry, resources: None })).collect())
        }
        Target::Gpu(arch) if arch.is_amd() => {
            emitted.extension = "hsaco";
            link_amd(&program.units, &program.setup, *arch, &objects)?
        }
        Target::Gpu(arch) => {
            emitted.extension = "ptx";
            let text = objects.into_iter().next().unwrap_or_default();
            let found = check_ptx(&program.units, *arch, &text)?;
            (text, found)
        }
    };
    if program.setup.target.gpu().is_some() {
        emitted.code = code.clone();
    }
    let mut kernels = Vec::new();
    for unit in &program.units {
        let place = found.get(&unit.kernel.name);
        let place = place.ok_or_else(|| CodegenError::Internal(format!("no code for {}", unit.kernel.name)))?;
        kernels.push(format::Kernel {
            name: unit.kernel.name.clone(),
            entry: place.entry,
            family: unit.kernel.family.to_owned(),
            moves_only: unit.kernel.moves_only,
            summary: unit.summary.clone(),
            threads: if program.setup.target.gpu().is_some() { unit.kernel.threads } else { 0 },
            resources: place.resources,
        });
    }
    Ok(Compiled {
        code,
        kernels,
        variants: program.variants,
        pack: program.pack,
        pack_bytes: program.pack_bytes,
        sources: program.sources,
        arena_bytes: program.arena_bytes,
        slab: program.slab,
        emitted,
    })
}

type Linked = (Vec<u8>, IndexMap<String, Found>);

/// Links a code object and checks each kernel's metadata against its tile program.
fn link_amd(units: &[Unit], setup: &Setup, arch: GpuArch, objects: &[Vec<u8>]) -> Result<Linked, CodegenError> {
    let object = amdgpu::link(objects, arch)?;
    let mut found = IndexMap::new();
    for unit in units {
        let kernel = &unit.kernel;
        let Some(metadata) = object.kernels.get(&kernel.name) else { continue };
        let refuse = |message: String| Err(refused(unit, arch, message));
        // One pointer a parameter, then the dims block.
        let expected = 8 * (kernel.params.len() as u32 + 1);
        if metadata.kernarg_bytes != expected {
            return refuse(format!("{} bytes of arguments; {expected} are accepted", metadata.kernarg_bytes));
        }
        if metadata.max_threads < kernel.threads {
            return refuse(format!("made for {} threads; {} are launched", metadata.max_threads, kernel.threads));
        }
        let resources = metadata.resources(arch, kernel.threads);
        if resources.lds_bytes > arch.shared_bytes() {
            return refuse(format!("{} bytes of LDS; {} are there", resources.lds_bytes, arch.shared_bytes()));
        }
        // Scalar registers spill to lanes of vector registers; where those run out, scratch bytes say so.
        let (bytes, spills) = (resources.scratch_bytes, resources.vgpr_spills);
        if (bytes > 0 || spills > 0) && setup.choices.allow_scratch != Some(1) {
            let message = format!(
                "{bytes} bytes of scratch a thread and {spills} spilled vector registers; none is accepted without --set allow_scratch=1"
            );
            return refuse(message);
        }
        found.insert(kernel.name.clone(), Found { entry: 0, resources: Some(resources) });
    }
    Ok((object.bytes, found))
}

/// Checks the entries of a PTX module. Registers are the driver's to give; it is asked after its JIT.
fn check_ptx(units: &[Unit], arch: GpuArch, text: &[u8]) -> Result<IndexMap<String, Found>, CodegenError> {
    let entries = ptx::read(text, arch.cpu()).map_err(CodegenError::Link)?;
    let mut found = IndexMap::new();
    for unit in units {
        let kernel = &unit.kernel;
        let Some(entry) = entries.get(&kernel.name) else { continue };
        let refuse = |message: String| Err(refused(unit, arch, message));
        let expected = kernel.params.len() as u32 + 1;
        if entry.params != expected {
            return refuse(format!("{} parameters; {expected} are accepted", entry.params));
        }
        if entry.threads != 0 && entry.threads < kernel.threads {
            return refuse(format!("made for {} threads; {} are launched", entry.threads, kernel.threads));
        }
        if entry.shared_bytes > arch.shared_bytes() {
            let most = arch.shared_bytes();
            return refuse(format!("{} bytes of shared memory; {most} are accepted", entry.shared_bytes));
        }
        let resources = Resources { lds_bytes: entry.shared_bytes, ..Resources::default() };
        found.insert(kernel.name.clone(), Found { entry: 0, resources: Some(resources) });
    }
    Ok(found)
}

fn refused(unit: &Unit, arch: GpuArch, message: String) -> CodegenError {
    CodegenError::Resources {
        kernel: unit.kernel.name.clone(),
        family: unit.kernel.family.to_owned(),
        summary: unit.summary.clone(),
        target: arch.cpu().to_owned(),
        message,
    }
}
