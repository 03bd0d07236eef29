//! Calling any entry with tensors by name.

use super::check::{index_range, size};
use super::layout::{Layout, Side};
use super::step::Running;
use super::{Session, StepInput};
use crate::DType;
use crate::artifact::{Binding, Dim, EntryPoint, Manifest, SymbolRole};
use crate::comm::group::step_signature;
use crate::error::{Error, Result};
use crate::graph::Dims;

/// A tensor in a caller's memory, row-major.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: DType,
    /// Dims, outermost first.
    pub shape: &'a [u64],
    /// Little-endian elements.
    pub bytes: &'a [u8],
}

/// A tensor, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorBuf {
    /// Element type.
    pub dtype: DType,
    /// Dims, outermost first.
    pub shape: Vec<u64>,
    /// Little-endian elements.
    pub bytes: Vec<u8>,
}

impl TensorBuf {
    /// The tensor, borrowed.
    pub fn view(&self) -> TensorView<'_> {
        TensorView { dtype: self.dtype, shape: &self.shape, bytes: &self.bytes }
    }
}

/// What an entry is called with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Call<'a> {
    /// For inputs that have roles in a step of sequences.
    pub step: Option<StepInput<'a>>,
    /// All other inputs, by name.
    pub inputs: &'a [(&'a str, TensorView<'a>)],
    /// Sizes that no input says, by the symbol's name.
    pub dims: &'a [(&'a str, u64)],
}

impl Session {
    /// Calls entry `name`, waits for it, and gives its outputs with their names, in order.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the input or the size that is missing, has another type, or is out of its range; nothing was run
    /// then. [`Error::Driver`] if the device failed.
    pub fn call(&mut self, name: &str, call: &Call<'_>) -> Result<Vec<(String, TensorBuf)>> {
        let manifest = std::sync::Arc::clone(&self.manifest);
        let (entry, point) = entry_of(&manifest, name)?;
        self.begin_call(&manifest, point, call)?;
        let dims = *self.checked.dims();
        let mut laid = Vec::with_capacity(point.inputs.len());
        for binding in manifest.inputs_of(point) {
            laid.push(match (&call.step, binding.role.is_plain()) {
                (Some(step), false) => self.checked.of_role(binding.role, step).to_vec(),
                (None, false) => {
                    let message =
                        format!("input {} has the role {}: the call needs a step", binding.name, binding.role);
                    return Err(Error::InvalidInput(message));
                }
                (_, true) => lay(&manifest, &dims, binding, given(call, binding)?)?,
            });
        }
        if let Some(member) = &self.member {
            // A hash of all that is read, in words.
            let words: Vec<i32> = laid.iter().flat_map(|bytes| words(bytes)).collect();
            member.group().enter(step_signature(entry, dims.values(), &[&words]))?;
        }
        let inputs: Vec<&[u8]> = laid.iter().map(Vec::as_slice).collect();
        let running = Running {
            entries: &mut self.entries,
            stream: &mut self.stream,
            manifest: &manifest,
            regions: &self.regions,
            values: &mut self.values,
            member: self.member.as_ref(),
        };
        let variant = running.replay(entry, &dims, &inputs)?;
        self.last = (entry, variant);
        if let Some(step) = &call.step {
            self.checked.begun(point, step);
        }
        self.wait()?;
        let outputs = manifest.outputs_of(point).zip(&point.outputs).map(|(binding, index)| {
            let shape = sizes(&manifest, &dims, binding);
            let layout = Layout::new(&manifest, binding, &shape, Side::Output)?;
            let buffer = self.regions.outputs.get(*index as usize);
            let buffer = buffer.ok_or_else(|| Error::Driver(format!("there is no output {}", binding.name)))?;
            let mut bytes = vec![0u8; layout.bytes().unwrap_or(0)];
            let mut filled = 0;
            layout.runs(&mut |at, run| {
                if run > 0 {
                    buffer.read(at, &mut bytes[filled..filled + run])?;
                }
                filled += run;
                Ok(())
            })?;
            Ok((binding.name.clone(), TensorBuf { dtype: binding.dtype, shape, bytes }))
        });
        outputs.collect()
    }

    /// Checks a call and sets the dims block.
    fn begin_call(&mut self, manifest: &Manifest, point: &EntryPoint, call: &Call<'_>) -> Result<()> {
        let known = |name: &str| manifest.inputs_of(point).any(|b| b.name == name && b.role.is_plain());
        if let Some((name, _)) = call.inputs.iter().find(|(name, _)| !known(name)) {
            let names: Vec<&str> =
                manifest.inputs_of(point).filter(|b| b.role.is_plain()).map(|b| b.name.as_str()).collect();
            let message =
                format!("entry {} takes no input {name} by name; it takes [{}]", point.name, names.join(", "));
            return Err(Error::InvalidInput(message));
        }
        let twice =
            call.inputs.iter().enumerate().find(|(at, (name, _))| call.inputs[..*at].iter().any(|(n, _)| n == name));
        if let Some((_, (name, _))) = twice {
            return Err(Error::InvalidInput(format!("input {name} is given twice")));
        }
        match &call.step {
            Some(step) => self.checked.check(manifest, point, step)?,
            None => self.checked.clear(manifest)?,
        }
        let mut said: Vec<Option<&str>> = vec![None; manifest.symbols.len()];
        for (index, symbol) in manifest.symbols.iter().enumerate() {
            let by_step = call.step.is_some() && !symbol.role.is_plain();
            if by_step || symbol.role.is_like(&SymbolRole::POOL) || symbol.min == symbol.max {
                said[index] = Some("the step");
            }
        }
        let dims = self.checked.dims_mut();
        for (name, value) in call.dims {
            let (index, _) = manifest.symbol(name).ok_or_else(|| {
                Error::InvalidInput(format!("the artifact has no symbol {name} whose size could be given"))
            })?;
            if let Some(who) = said[index]
                && dims.get(index) as u64 != *value
            {
                let before = dims.get(index);
                return Err(Error::InvalidInput(format!("{name} is {value} by what was given, {before} by {who}")));
            }
            dims.set_index(manifest, index, *value)?;
            said[index] = Some("what was given");
        }
        for binding in manifest.inputs_of(point).filter(|binding| binding.role.is_plain()) {
            let tensor = given(call, binding)?;
            if tensor.dtype != binding.dtype || tensor.shape.len() != binding.shape.len() {
                return Err(wrong_type(binding, tensor));
            }
            for (dim, found) in binding.shape.iter().zip(tensor.shape) {
                match dim {
                    Dim::Const(n) if n == found => {}
                    Dim::Const(_) => return Err(wrong_type(binding, tensor)),
                    Dim::Symbol(symbol) => {
                        let Some((index, _)) = manifest.symbol(symbol) else { continue };
                        if let Some(who) = said[index]
                            && dims.get(index) as u64 != *found
                        {
                            let (name, before) = (&binding.name, dims.get(index));
                            let message = format!("{symbol} is {found} by input {name}, {before} by {who}");
                            return Err(Error::InvalidInput(message));
                        }
                        dims.set_index(manifest, index, *found)?;
                        said[index] = Some("another input");
                    }
                }
            }
        }
        let counted =
            |role: &SymbolRole| manifest.symbol_of(role).map(|(index, symbol)| (dims.get(index), &symbol.name));
        if let (Some((rows, name)), Some((tokens, of))) =
            (counted(&SymbolRole::LogitRows), counted(&SymbolRole::Tokens))
            && rows > tokens
            && point.symbols.iter().any(|i| manifest.symbols.get(*i as usize).is_some_and(|s| s.name == *name))
        {
            return Err(Error::InvalidInput(format!("{name} = {rows} is more than {of} = {tokens}")));
        }
        let silent = point.symbols.iter().find(|index| said.get(**index as usize).is_none_or(Option::is_none));
        if let Some(symbol) = silent.and_then(|index| manifest.symbols.get(*index as usize)) {
            let message = format!("no input of entry {} says {} ({}): give it", point.name, symbol.name, symbol.role);
            return Err(Error::InvalidInput(message));
        }
        Ok(())
    }
}

fn entry_of<'m>(manifest: &'m Manifest, name: &str) -> Result<(usize, &'m EntryPoint)> {
    let found = manifest.entry(name).and_then(|at| Some((at, manifest.entries.get(at)?)));
    found.ok_or_else(|| {
        let names: Vec<&str> = manifest.entries.iter().map(|entry| entry.name.as_str()).collect();
        Error::InvalidInput(format!("the artifact has no entry {name}; it has [{}]", names.join(", ")))
    })
}

fn given<'c>(call: &Call<'c>, binding: &Binding) -> Result<TensorView<'c>> {
    let found = call.inputs.iter().find(|(name, _)| *name == binding.name);
    let missing = || Error::InvalidInput(format!("input {} is missing: {}", binding.name, shown(binding)));
    found.map(|(_, tensor)| *tensor).ok_or_else(missing)
}

fn shown(binding: &Binding) -> String {
    let dim = |dim: &Dim| match dim {
        Dim::Const(n) => n.to_string(),
        Dim::Symbol(name) => name.clone(),
    };
    format!("{}[{}]", binding.dtype, binding.shape.iter().map(dim).collect::<Vec<_>>().join(", "))
}

fn wrong_type(binding: &Binding, found: TensorView<'_>) -> Error {
    let TensorView { dtype, shape, .. } = found;
    Error::InvalidInput(format!("input {} is {dtype}{shape:?}; {} is accepted", binding.name, shown(binding)))
}

fn sizes(manifest: &Manifest, dims: &Dims, binding: &Binding) -> Vec<u64> {
    binding.shape.iter().map(|dim| size(manifest, dims, dim)).collect()
}

/// A caller's tensor as the kernels want it to lie, its indices checked.
fn lay(manifest: &Manifest, dims: &Dims, binding: &Binding, tensor: TensorView<'_>) -> Result<Vec<u8>> {
    check_indices(manifest, dims, binding, tensor)?;
    let layout = Layout::new(manifest, binding, tensor.shape, Side::Input)?;
    let (bytes, extent) = layout.bytes().zip(layout.extent()).unwrap_or_default();
    if tensor.bytes.len() != bytes {
        let (name, found) = (&binding.name, tensor.bytes.len());
        return Err(Error::InvalidInput(format!("input {name} has {found} bytes; its shape asks for {bytes}")));
    }
    let mut out = vec![0u8; extent];
    let mut read = 0;
    layout.runs(&mut |at, run| {
        out[at..at + run].copy_from_slice(&tensor.bytes[read..read + run]);
        read += run;
        Ok(())
    })?;
    Ok(out)
}

/// Numbers that kernels find elements by lead nowhere else.
fn check_indices(manifest: &Manifest, dims: &Dims, binding: &Binding, tensor: TensorView<'_>) -> Result<()> {
    let Some(range) = index_range(manifest, dims, binding)? else { return Ok(()) };
    let width = tensor.dtype.block_bytes().max(1);
    let value = |raw: &[u8]| match (tensor.dtype, raw) {
        (DType::I64, raw) => raw.try_into().map(i64::from_le_bytes).ok(),
        (DType::I32, raw) => raw.try_into().map(|raw| i64::from(i32::from_le_bytes(raw))).ok(),
        (DType::U32, raw) => raw.try_into().map(|raw| i64::from(u32::from_le_bytes(raw))).ok(),
        (DType::I8, [byte]) => Some(i64::from(*byte as i8)),
        (DType::U8, [byte]) => Some(i64::from(*byte)),
        _ => None,
    };
    let outside = |raw: &[u8]| value(raw).is_none_or(|value| !range.contains(&value));
    match tensor.bytes.chunks(width).find(|raw| outside(raw)) {
        None => Ok(()),
        Some(raw) => {
            let (name, found) = (&binding.name, value(raw).map_or("no index".to_owned(), |n| n.to_string()));
            let range = format!("{}..{}", range.start, range.end);
            Err(Error::InvalidInput(format!("input {name} holds the index {found}; {range} are accepted")))
        }
    }
}

/// Bytes as words; the last is filled up with zeros.
fn words(bytes: &[u8]) -> impl Iterator<Item = i32> + '_ {
    bytes.chunks(4).map(|chunk| {
        let mut word = [0u8; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        i32::from_le_bytes(word)
    })
}
