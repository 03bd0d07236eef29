//! Every index, offset and count of a manifest, checked once: after this the runtime indexes without surprises.

use crate::comm_table;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::limits::*;
use crate::manifest::*;
use crate::role::{RoleInput, SymbolRole, check_roles};
use std::collections::BTreeSet;

/// Checks that `manifest` is consistent in itself.
///
/// # Errors
/// [`Error::Corrupt`] naming the first thing that is off, [`Error::Limit`] where a count passes `limits.rs`.
pub fn check_manifest(manifest: &Manifest) -> Result<()> {
    let c = Checker { manifest };
    if manifest.world == 0 || manifest.world > MAX_WORLD {
        let what = "manifest: number of ranks".to_owned();
        return Err(Error::Limit { what, found: manifest.world.into(), limit: MAX_WORLD.into() });
    }
    c.limit("symbols", manifest.symbols.len(), MAX_SYMBOLS)?;
    c.limit("sections", manifest.sections.len(), MAX_SECTIONS)?;
    c.limit("programs", manifest.programs.len(), MAX_PROGRAMS)?;
    c.limit("entries", manifest.entries.len(), MAX_ENTRIES)?;
    c.limit("tensors", manifest.weights.tensors.len(), MAX_TENSORS)?;
    for (what, n) in
        [("inputs", manifest.inputs.len()), ("outputs", manifest.outputs.len()), ("states", manifest.states.len())]
    {
        c.limit(what, n, MAX_BINDINGS)?;
    }
    c.model()?;
    c.entries()?;
    c.bindings()?;
    c.tensors()?;
    for program in &manifest.programs {
        c.program(program)?;
    }
    Ok(())
}

struct Checker<'a> {
    manifest: &'a Manifest,
}

impl Checker<'_> {
    fn limit(&self, what: &str, found: usize, limit: usize) -> Result<()> {
        let (found, limit) = (found as u64, limit as u64);
        let what = format!("manifest: number of {what}");
        if found > limit { Err(Error::Limit { what, found, limit }) } else { Ok(()) }
    }

    fn bad<T>(&self, place: &str, detail: impl Into<String>) -> Result<T> {
        Err(Error::corrupt(format!("manifest, {place}"), detail))
    }

    fn model(&self) -> Result<()> {
        let model = &self.manifest.model;
        if model.vocab_size == 0 || model.vocab_size > i32::MAX as u32 || model.max_seq == 0 {
            return self.bad("model", "vocab_size and max_seq must be positive");
        }
        let mut names = BTreeSet::new();
        for symbol in &self.manifest.symbols {
            if symbol.min > symbol.max || symbol.max > MAX_SYMBOL_VALUE {
                let detail = format!("range {}..={} is empty or passes {MAX_SYMBOL_VALUE}", symbol.min, symbol.max);
                return self.bad(&format!("symbol {}", symbol.name), detail);
            }
            if !names.insert(&symbol.name) {
                return self.bad(&format!("symbol {}", symbol.name), "declared twice");
            }
        }
        Ok(())
    }

    fn shape(&self, place: &str, shape: &[Dim]) -> Result<()> {
        if shape.len() > MAX_RANK {
            return self.bad(place, format!("rank {} passes {MAX_RANK}", shape.len()));
        }
        for dim in shape {
            if let Dim::Symbol(name) = dim
                && !self.manifest.symbols.iter().any(|s| s.name == *name)
            {
                return self.bad(place, format!("unknown symbol {name}"));
            }
        }
        if self.manifest.max_elements(shape).is_none() { self.bad(place, "its size overflows") } else { Ok(()) }
    }

    /// Refuses dtypes that never leave an entry.
    fn external(&self, place: &str, dtype: DType) -> Result<()> {
        if dtype.is_external() {
            Ok(())
        } else {
            self.bad(place, format!("dtype {dtype}, which never leaves an entry"))
        }
    }

    /// Every input and output belongs to one entry, names and roles are each used once in it.
    fn entries(&self) -> Result<()> {
        let m = self.manifest;
        let symbols: Vec<_> = m.symbols.iter().map(|s| (s.name.as_str(), &s.role)).collect();
        fn symbol(dim: &Dim) -> Option<&str> {
            if let Dim::Symbol(name) = dim { Some(name) } else { None }
        }
        let mut owned = [vec![false; m.inputs.len()], vec![false; m.outputs.len()]];
        let mut entries = BTreeSet::new();
        for entry in &m.entries {
            let place = format!("entry {}", entry.name);
            if !entries.insert(&entry.name) {
                return self.bad(&place, "declared twice");
            }
            if entry.symbols.iter().any(|i| *i as usize >= m.symbols.len()) {
                return self.bad(&place, "it names a symbol that does not exist");
            }
            let lists = [(&entry.inputs, &m.inputs), (&entry.outputs, &m.outputs)];
            for (owned, (indices, bindings)) in owned.iter_mut().zip(lists) {
                let mut names = BTreeSet::new();
                for index in indices {
                    let (Some(owner), Some(binding)) = (owned.get_mut(*index as usize), bindings.get(*index as usize))
                    else {
                        return self.bad(&place, format!("binding {index} does not exist"));
                    };
                    if std::mem::replace(owner, true) || !names.insert(&binding.name) {
                        return self.bad(&place, format!("{} is bound twice", binding.name));
                    }
                }
            }
            let inputs = m.inputs_of(entry).map(|input| RoleInput {
                name: &input.name,
                role: input.role,
                dtype: input.dtype,
                shape: input.shape.iter().map(symbol).collect(),
            });
            let inputs: Vec<_> = inputs.collect();
            check_roles(&symbols, &inputs).or_else(|(name, detail)| self.bad(&format!("{place}, {name}"), detail))?;
        }
        if owned.iter().flatten().any(|owned| !owned) {
            return self.bad("entries", "an input or output belongs to no entry");
        }
        Ok(())
    }

    fn bindings(&self) -> Result<()> {
        for binding in self.manifest.inputs.iter().chain(&self.manifest.outputs) {
            let place = format!("binding {}", binding.name);
            self.external(&place, binding.dtype)?;
            self.shape(&place, &binding.shape)?;
            if let Indices::Bounded(bounds) = &binding.indices {
                bounds.iter().try_for_each(|bound| self.shape(&place, std::slice::from_ref(&bound.below)))?;
            }
        }
        for state in &self.manifest.states {
            let place = format!("state {}", state.name);
            self.external(&place, state.dtype)?;
            self.shape(&place, &state.shape)?;
            let inner: Option<Vec<u64>> =
                state.shape.iter().skip(1).map(|d| if let Dim::Const(n) = d { Some(*n) } else { None }).collect();
            let size = inner.and_then(|inner| state.dtype.byte_size(&inner).ok());
            if size != Some(state.unit_bytes) || state.shape.is_empty() {
                return self.bad(&place, format!("unit_bytes {} disagrees with shape and dtype", state.unit_bytes));
            }
        }
        Ok(())
    }

    fn tensors(&self) -> Result<()> {
        let weights = &self.manifest.weights;
        for file in &weights.files {
            if file.name.contains(['/', '\\', '\0']) || file.name == ".." || file.name.is_empty() {
                return self.bad("weights", format!("file name {:?} is not a base name", file.name));
            }
        }
        for tensor in &weights.tensors {
            let place = format!("tensor {}", tensor.name);
            if tensor.shape.len() > MAX_RANK {
                return self.bad(&place, format!("rank {} passes {MAX_RANK}", tensor.shape.len()));
            }
            let Ok(bytes) = tensor.dtype.byte_size(&tensor.shape) else {
                return self.bad(&place, "its size overflows or its last dim is not whole blocks");
            };
            let available = match tensor.at {
                TensorPlace::File(file, offset) => {
                    let Some(file) = weights.files.get(file as usize) else {
                        return self.bad(&place, "names a file that is not listed");
                    };
                    Some((offset, file.bytes))
                }
                TensorPlace::Constant(offset) => {
                    Some((offset, self.manifest.section(CONSTANTS_SECTION).map_or(0, |s| s.bytes)))
                }
                TensorPlace::Random => None,
            };
            if let Some((offset, end)) = available
                && offset.checked_add(bytes).is_none_or(|n| n > end)
            {
                return self.bad(&place, format!("{bytes} bytes at {offset} pass the end {end}"));
            }
            let random = matches!(tensor.at, TensorPlace::Random);
            if random != tensor.blake3.is_empty() || (!random && tensor.blake3.len() != 64) {
                return self.bad(&place, "blake3 must be 64 hex digits, and empty for random tensors");
            }
            if random && !matches!(weights.mode, WeightMode::Random(_)) {
                return self.bad(&place, "random, but the weights are not");
            }
        }
        Ok(())
    }

    fn program(&self, program: &Program) -> Result<()> {
        let place = format!("program {}", program.target.name);
        let Some(code) = self.manifest.section(&program.code) else {
            return self.bad(&place, format!("its code section {:?} is missing", program.code));
        };
        self.limit("kernels", program.kernels.len(), MAX_KERNELS)?;
        if program.arena_bytes > i64::MAX as u64 / 2 {
            return self.bad(&place, "arena_bytes overflows");
        }
        self.kernels(program, code)?;
        self.pack(&place, &program.pack)?;
        if let Some(slab) = &program.slab {
            self.slab(&place, slab)?;
        }
        if program.entries.len() != self.manifest.entries.len() {
            let (found, wanted) = (program.entries.len(), self.manifest.entries.len());
            return self.bad(&place, format!("code of {found} entries; {wanted} are declared"));
        }
        for (entry, point) in program.entries.iter().zip(&self.manifest.entries) {
            self.limit("variants", entry.variants.len(), MAX_VARIANTS)?;
            for variant in &entry.variants {
                self.limit("launches", variant.launches.len(), MAX_LAUNCHES)?;
                for guard in &variant.guards {
                    if guard.symbol as usize >= self.manifest.symbols.len() || guard.min > guard.max {
                        return self.bad(&place, "a guard names no symbol or an empty range");
                    }
                }
                for (index, launch) in variant.launches.iter().enumerate() {
                    let place = format!("{place}, launch {index}");
                    self.launch(&place, program, launch)?;
                    let foreign = |arg: &&Arg| match arg.region {
                        Region::Input(i) => !point.inputs.contains(&i),
                        Region::Output(i) => !point.outputs.contains(&i),
                        _ => false,
                    };
                    if let Some(arg) = launch.args.iter().find(foreign) {
                        return self.bad(&place, format!("{:?} is not of entry {}", arg.region, point.name));
                    }
                    if program.target.is_gpu() {
                        self.gpu_grid(&place, variant, launch)?;
                    }
                    if let Some(sum) = &launch.all_reduce {
                        self.all_reduce(&place, program, variant, launch, sum)?;
                    }
                    if let Some(gemm) = &launch.gemm {
                        self.gemm(&place, program, variant, launch, gemm)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Fills ascend and lie in the slab.
    fn slab(&self, place: &str, slab: &Slab) -> Result<()> {
        if slab.bytes == 0 || !slab.bytes.is_multiple_of(SLAB_MULTIPLE) || slab.bytes > MAX_SLAB_BYTES {
            let detail = format!(
                "a slab of {} bytes; a multiple of {SLAB_MULTIPLE} up to {MAX_SLAB_BYTES} is accepted",
                slab.bytes
            );
            return self.bad(place, detail);
        }
        self.limit("fills of a slab", slab.fills.len(), MAX_SLAB_FILLS)?;
        let mut end = 0;
        for fill in &slab.fills {
            let next = fill.offset.checked_add(fill.bytes).filter(|next| *next <= slab.bytes);
            let aligned = fill.offset.is_multiple_of(4) && fill.bytes.is_multiple_of(4);
            match next {
                Some(next) if aligned && fill.offset >= end => end = next,
                _ => {
                    let detail = format!("a fill of {} bytes at {} of the slab", fill.bytes, fill.offset);
                    return self.bad(place, format!("{detail} is unaligned, overlaps or passes its end"));
                }
            }
        }
        Ok(())
    }

    /// A rank's part of each tensor is as large as every other's, and cut at whole blocks.
    fn shards(&self, place: &str, item: &PackItem) -> Result<()> {
        if item.shards.is_empty() {
            return Ok(());
        }
        if item.shards.len() != item.tensors.len() {
            return self.bad(place, format!("{} shards for {} tensors", item.shards.len(), item.tensors.len()));
        }
        for (tensor, shard) in item.tensors.iter().zip(&item.shards) {
            let Some(shard) = shard else { continue };
            let world = shard.parts.checked_mul(shard.replicas);
            if world != Some(self.manifest.world) {
                let detail = format!("{} parts for {} ranks each", shard.parts, shard.replicas);
                return self.bad(place, format!("{detail} are not the {} ranks", self.manifest.world));
            }
            let tensor = self.manifest.weights.tensors.get(*tensor as usize);
            if let Some(tensor) = tensor.filter(|tensor| tensor.part_shape(*shard).is_none()) {
                let detail = format!(
                    "{} {:?} is not cut into {} parts along axis {}",
                    tensor.name, tensor.shape, shard.parts, shard.axis
                );
                return self.bad(place, detail);
            }
        }
        Ok(())
    }

    /// Host kernels are entered by offset, GPU kernels by name.
    fn kernels(&self, program: &Program, code: &Section) -> Result<()> {
        let target = &program.target;
        let place = format!("program {}", target.name);
        if !["x86_64", "amdgcn", "nvptx64"].contains(&target.arch.as_str()) {
            return self.bad(&place, format!("arch {:?}; x86_64, amdgcn or nvptx64 is accepted", target.arch));
        }
        if target.is_gpu() && !target.features.is_empty() {
            return self.bad(&place, "a GPU target has no features beside its name");
        }
        let mut names = BTreeSet::new();
        for kernel in &program.kernels {
            let place = format!("kernel {}", kernel.name);
            if !names.insert(kernel.name.as_str()) {
                return self.bad(&place, "listed twice");
            }
            if !target.is_gpu() {
                if kernel.entry >= code.bytes {
                    return self.bad(&place, "its entry lies past the code section");
                }
                if kernel.threads != 0 || kernel.resources.is_some() {
                    return self.bad(&place, "a host kernel has neither threads nor GPU resources");
                }
                continue;
            }
            let symbol = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'.');
            if kernel.name.is_empty() || kernel.name.len() > MAX_KERNEL_NAME || !kernel.name.bytes().all(symbol) {
                return self.bad(&place, "its name is not a symbol");
            }
            if !kernel.threads.is_power_of_two() || kernel.threads > MAX_BLOCK_THREADS {
                let detail =
                    format!("{} threads; a power of two up to {MAX_BLOCK_THREADS} is accepted", kernel.threads);
                return self.bad(&place, detail);
            }
            if kernel.entry != 0 {
                return self.bad(&place, "a GPU kernel is entered by name, not by offset");
            }
        }
        Ok(())
    }

    /// A GPU's grid is that of the variant's largest dims.
    fn gpu_grid(&self, place: &str, variant: &Variant, launch: &Launch) -> Result<()> {
        for (axis, dim) in launch.grid.iter().enumerate() {
            let limit = if axis == 0 { MAX_GRID_X } else { MAX_GRID_YZ };
            let found = self.manifest.most_programs(variant, dim);
            if found.is_none_or(|n| n == 0 || n > limit) {
                return self.bad(place, format!("{found:?} programs along axis {axis}; 1 to {limit} are accepted"));
            }
        }
        Ok(())
    }

    /// A library is told sizes, not shown buffers: every operand must lie in its region with the variant's most rows.
    fn gemm(&self, place: &str, program: &Program, variant: &Variant, launch: &Launch, gemm: &Gemm) -> Result<()> {
        if !program.target.is_gpu() || !matches!(gemm.dtype, DType::BF16 | DType::F16) {
            return self.bad(place, "a library product is one of bf16 or f16 on a GPU");
        }
        let rows = self.manifest.most_programs(variant, &gemm.rows);
        let limit = i32::MAX as u64;
        let [Some(rows), Some(n), Some(k)] =
            [rows, Some(gemm.n), Some(gemm.k)].map(|d| d.filter(|d| (1..=limit).contains(d)))
        else {
            return self.bad(place, "a library product is empty or passes 2^31");
        };
        let addend = gemm.addend_stride.map(|stride| (rows, stride, n));
        let operands = [Some((rows, gemm.x_stride, k)), Some((n, k, k)), addend, Some((rows, gemm.out_stride, n))];
        let operands: Vec<(u64, u64, u64)> = operands.into_iter().flatten().collect();
        if operands.len() != launch.args.len() {
            return self.bad(place, "a library product has other arguments than its kernel");
        }
        for ((rows, stride, width), arg) in operands.into_iter().zip(&launch.args) {
            let elements = stride.checked_mul(rows - 1).and_then(|n| n.checked_add(width));
            let end = elements.and_then(|n| n.checked_mul(2)).and_then(|n| n.checked_add(arg.offset));
            let size = self.region_bytes(program, arg.region).filter(|_| !matches!(arg.region, Region::State(_)));
            if stride < width || stride > limit || end.zip(size).is_none_or(|(end, size)| end > size) {
                return self.bad(place, format!("{rows} rows of {width} at stride {stride} pass {:?}", arg.region));
            }
        }
        Ok(())
    }

    /// As [`Check::gemm`], for a sum over ranks.
    fn all_reduce(
        &self,
        place: &str,
        program: &Program,
        variant: &Variant,
        launch: &Launch,
        sum: &AllReduce,
    ) -> Result<()> {
        if !program.target.is_gpu() || !matches!(sum.dtype, DType::F32 | DType::BF16 | DType::F16) {
            return self.bad(place, "a library sum over ranks is one of f32, bf16 or f16 on a GPU");
        }
        let elements = self.manifest.most_programs(variant, &sum.elements);
        let bytes = elements.filter(|n| *n > 0).and_then(|n| sum.dtype.byte_size(&[n]).ok());
        let [x, out, ..] = &launch.args[..] else {
            return self.bad(place, "a library sum over ranks lacks arguments");
        };
        for arg in [x, out] {
            let end = bytes.and_then(|n| n.checked_add(arg.offset));
            let size = self.region_bytes(program, arg.region).filter(|_| !matches!(arg.region, Region::State(_)));
            if end.zip(size).is_none_or(|(end, size)| end > size) {
                return self.bad(place, format!("{elements:?} elements of a library sum pass {:?}", arg.region));
            }
        }
        Ok(())
    }

    /// Bytes of a region; a state's are not bounded here, since it grows with N and the session checks it against what it
    /// allocates. `None` if the region is not listed.
    fn region_bytes(&self, program: &Program, region: Region) -> Option<u64> {
        let m = self.manifest;
        match region {
            Region::Arena => Some(program.arena_bytes),
            Region::Weights => Some(program.pack.bytes),
            Region::State(i) => m.states.get(i as usize).map(|_| u64::MAX),
            Region::Input(i) => m.inputs.get(i as usize).and_then(|b| m.max_bytes(b)),
            Region::Output(i) => m.outputs.get(i as usize).and_then(|b| m.max_bytes(b)),
            Region::Slab => program.slab.as_ref().map(|s| s.bytes),
            Region::Comm => program.slab.as_ref().map(|_| comm_table::BYTES),
        }
    }

    fn pack(&self, place: &str, pack: &Pack) -> Result<()> {
        let mut end = 0u64;
        let hex = pack.key.bytes().all(|b| b.is_ascii_hexdigit());
        if pack.bytes > i64::MAX as u64 / 2 || pack.key.len() > 64 || !hex {
            return self.bad(place, "pack size overflows, or its key is not hex");
        }
        for (index, item) in pack.items.iter().enumerate() {
            let place = format!("{place}, pack item {index}");
            if !item.offset.is_multiple_of(64) || item.offset < end {
                return self.bad(&place, format!("offset {} is unaligned or overlaps", item.offset));
            }
            end = match item.offset.checked_add(item.bytes) {
                Some(end) if end <= pack.bytes => end,
                _ => return self.bad(&place, "passes the end of the pack"),
            };
            self.shards(&place, item)?;
            let expected = self.manifest.item_bytes(item);
            if expected != Some(item.bytes) {
                let detail = format!("{} bytes, but layout and tensors need {expected:?}", item.bytes);
                return self.bad(&place, detail);
            }
        }
        Ok(())
    }

    fn launch(&self, place: &str, program: &Program, launch: &Launch) -> Result<()> {
        let m = self.manifest;
        if launch.kernel as usize >= program.kernels.len() {
            return self.bad(place, format!("kernel {} is not listed", launch.kernel));
        }
        if launch.source as usize >= m.sources.len().max(1) {
            return self.bad(place, format!("source {} is not listed", launch.source));
        }
        if launch.grid.len() > 3 || launch.args.len() > MAX_ARGS {
            return self.bad(place, "more than 3 grid dims or too many arguments");
        }
        let mut programs = 1u64;
        for dim in &launch.grid {
            let n = match *dim {
                GridDim::Const(n) => Some(n),
                GridDim::Symbol { symbol, mul, div } => m
                    .symbols
                    .get(symbol as usize)
                    .and_then(|s| s.max.checked_mul(mul))
                    .filter(|_| div > 0)
                    .map(|n| n.div_ceil(div)),
            };
            let Some(total) = n.and_then(|n| programs.checked_mul(n)).filter(|n| *n <= i64::MAX as u64 / 2) else {
                return self.bad(place, "its grid overflows, divides by zero or names no symbol");
            };
            programs = total;
        }
        for arg in &launch.args {
            let size = self.region_bytes(program, arg.region);
            match size {
                Some(size) if arg.offset <= size => {}
                Some(size) => {
                    return self.bad(place, format!("offset {} passes {:?} ({size} bytes)", arg.offset, arg.region));
                }
                None => return self.bad(place, format!("{:?} is not listed", arg.region)),
            }
        }
        for result in &launch.results {
            let known = |d: &Dim| match d {
                Dim::Const(_) => true,
                Dim::Symbol(name) => m.symbol(name).is_some(),
            };
            let size = self.region_bytes(program, result.at.region);
            if result.shape.len() != result.strides.len()
                || !result.shape.iter().all(known)
                || size.is_none_or(|size| result.at.offset > size)
            {
                return self.bad(place, "a result with an unknown place or dim");
            }
        }
        Ok(())
    }
}

impl Manifest {
    /// The section called `name`.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|s| s.name == name)
    }

    /// Index and declaration of the symbol called `name`.
    pub fn symbol(&self, name: &str) -> Option<(usize, &Symbol)> {
        self.symbols.iter().enumerate().find(|(_, s)| s.name == name)
    }

    /// Most programs of a grid dim in `variant`: the symbol at the largest value its guards let pass. `None` if it names no
    /// symbol, divides by zero or overflows.
    pub fn most_programs(&self, variant: &Variant, dim: &GridDim) -> Option<u64> {
        match *dim {
            GridDim::Const(n) => Some(n),
            GridDim::Symbol { div: 0, .. } => None,
            GridDim::Symbol { symbol, mul, div } => {
                let declared = self.symbols.get(symbol as usize)?.max;
                let guards = variant.guards.iter().filter(|g| g.symbol == symbol);
                let most = guards.fold(declared, |most, guard| most.min(guard.max));
                Some(most.checked_mul(mul)?.div_ceil(div))
            }
        }
    }

    /// An entry's place, by name.
    pub fn entry(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|entry| entry.name == name)
    }

    /// The inputs of an entry, in order.
    pub fn inputs_of<'m>(&'m self, entry: &'m EntryPoint) -> impl Iterator<Item = &'m Binding> {
        entry.inputs.iter().filter_map(|i| self.inputs.get(*i as usize))
    }

    /// The outputs of an entry, in order.
    pub fn outputs_of<'m>(&'m self, entry: &'m EntryPoint) -> impl Iterator<Item = &'m Binding> {
        entry.outputs.iter().filter_map(|i| self.outputs.get(*i as usize))
    }

    /// The entry that takes a step of sequences: the first one whose inputs all have roles and that gives a row of f32 for each row asked
    /// for.
    pub fn step(&self) -> Option<usize> {
        let rows = self.symbol_of(&SymbolRole::LogitRows).map(|(_, symbol)| symbol.name.as_str());
        self.entries.iter().position(|entry| {
            let mut inputs = self.inputs_of(entry).peekable();
            let logits = self.outputs_of(entry).next().is_some_and(|output| {
                let [Dim::Symbol(first), Dim::Const(_)] = &output.shape[..] else { return false };
                output.dtype == DType::F32 && Some(first.as_str()) == rows
            });
            // A step says what symbols with roles are, and no others.
            let said = entry.symbols.iter().filter_map(|i| self.symbols.get(*i as usize));
            let said = said.into_iter().all(|symbol| !symbol.role.is_plain() || symbol.min == symbol.max);
            said && inputs.peek().is_some() && inputs.all(|input| !input.role.is_plain()) && logits
        })
    }

    /// The first symbol of a role like this one, with its place in the dims block.
    pub fn symbol_of(&self, role: &SymbolRole) -> Option<(usize, &Symbol)> {
        self.symbols.iter().enumerate().find(|(_, symbol)| symbol.role.is_like(role))
    }

    /// Positions of a sequence that a block of the pool holds; 1 without a pool.
    pub fn block_positions(&self) -> u32 {
        match self.symbol_of(&SymbolRole::POOL) {
            Some((_, Symbol { role: SymbolRole::Pool(positions), .. })) => *positions,
            _ => 1,
        }
    }

    /// Elements of `shape` with every symbol at its maximum; `None` on overflow.
    pub fn max_elements(&self, shape: &[Dim]) -> Option<u64> {
        shape.iter().try_fold(1u64, |n, dim| {
            let dim = match dim {
                Dim::Const(n) => *n,
                Dim::Symbol(name) => self.symbol(name)?.1.max,
            };
            n.checked_mul(dim)
        })
    }

    /// Bytes to allocate for an input or output: every symbol at its maximum, rounded up to [`ROW_MULTIPLE`], since tail
    /// programs of a kernel read and write whole row tiles. `None` on overflow.
    pub fn max_bytes(&self, binding: &Binding) -> Option<u64> {
        let elements = binding.shape.iter().try_fold(1u64, |n, dim| {
            let dim = match dim {
                Dim::Const(n) => *n,
                Dim::Symbol(name) => self.symbol(name)?.1.max.checked_next_multiple_of(ROW_MULTIPLE)?,
            };
            n.checked_mul(dim)
        })?;
        binding.dtype.byte_size(&[elements]).ok()
    }

    /// Bytes that `item` must have by its layout and the parts of tensors that a rank takes; `None` if they do not fit together.
    pub fn item_bytes(&self, item: &PackItem) -> Option<u64> {
        let mut rows = Vec::with_capacity(item.tensors.len());
        let mut columns = None;
        for (at, index) in item.tensors.iter().enumerate() {
            let tensor = self.weights.tensors.get(*index as usize)?;
            let shape = match item.shard(at) {
                Some(shard) => tensor.part_shape(shard)?,
                None => tensor.shape.clone(),
            };
            let k = shape.last().copied().unwrap_or(1);
            if *columns.get_or_insert(k) != k {
                return None;
            }
            rows.push(shape.iter().rev().skip(1).try_fold(1u64, |n, d| n.checked_mul(*d))?);
        }
        item.layout.packed_bytes(&rows, columns?)
    }
}

impl Pack {
    /// The key of a pack: blake3 over the content of its tensors, its layouts and the target. Two artifacts that want the
    /// same bytes share one cached pack.
    pub fn compute_key(&self, weights: &Weights, target: &str) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(b"weldment pack 1\0");
        hash.update(target.as_bytes());
        hash.update(&[0]);
        hash.update(&self.bytes.to_le_bytes());
        for item in &self.items {
            hash.update(&item.offset.to_le_bytes());
            // Layouts are plain data: their JSON is a stable spelling.
            hash.update(serde_json::to_string(&item.layout).unwrap_or_default().as_bytes());
            if !item.shards.is_empty() {
                hash.update(serde_json::to_string(&item.shards).unwrap_or_default().as_bytes());
            }
            for index in &item.tensors {
                if let Some(tensor) = weights.tensors.get(*index as usize) {
                    hash.update(format!("|{}|{:?}|", tensor.dtype, tensor.shape).as_bytes());
                    if let (WeightMode::Random(seed), TensorPlace::Random) = (weights.mode, tensor.at) {
                        hash.update(format!("random {seed} {}", tensor.name).as_bytes());
                    } else {
                        hash.update(tensor.blake3.as_bytes());
                    }
                }
            }
        }
        hash.finalize().to_hex().to_string()
    }
}
