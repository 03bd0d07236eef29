//! `inspect`: what an artifact holds, after every section's hash was checked.

use super::put;
use crate::artifact::{Artifact, Entry, EntryPoint, GridDim, Kernel, Manifest, Program, Region, Shard, WeightMode};
use crate::error::{Error, Result};
use crate::graph::launched_copies;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;

/// What to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// One screen.
    Summary,
    /// The manifest as JSON.
    Manifest,
    /// Regions and where everything lies.
    Memory,
    /// Launches by variant.
    Graph,
    /// Kernels with how often each is launched.
    Kernels,
}

impl View {
    /// The view called `name`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] listing the names.
    pub fn parse(name: &str) -> Result<View> {
        Ok(match name {
            "manifest" => View::Manifest,
            "memory" => View::Memory,
            "graph" => View::Graph,
            "kernels" => View::Kernels,
            _ => return Err(Error::InvalidInput(format!("inspect {name}: one of manifest, memory, graph, kernels"))),
        })
    }
}

/// Options of `inspect`.
#[derive(Clone, Debug)]
pub struct InspectOptions {
    /// The artifact.
    pub artifact: PathBuf,
    /// What to show.
    pub view: View,
    /// As JSON; the manifest always is.
    pub json: bool,
}

/// Checks every section hash, then shows.
///
/// # Errors
/// If the artifact is not whole.
pub fn inspect(options: &InspectOptions, out: &mut dyn Write) -> Result<()> {
    let artifact = Artifact::open(&options.artifact)?;
    artifact.check_all_hashes()?;
    let manifest = artifact.manifest();
    if options.json && !matches!(options.view, View::Kernels | View::Manifest) {
        return Err(Error::InvalidInput("inspect --json: kernels and manifest have a JSON form".into()));
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = match options.view {
        View::Summary => summary(&mut text, &artifact),
        View::Manifest => {
            let json = serde_json::to_string_pretty(manifest)
                .map_err(|e| Error::InvalidInput(format!("the manifest cannot be shown: {e}")))?;
            writeln!(text, "{json}")
        }
        View::Memory => memory(&mut text, manifest),
        View::Graph => graph(&mut text, manifest),
        View::Kernels if options.json => {
            let json = serde_json::to_string_pretty(&kernels_json(manifest))
                .map_err(|e| Error::InvalidInput(format!("the kernels cannot be shown: {e}")))?;
            writeln!(text, "{json}")
        }
        View::Kernels => kernels(&mut text, manifest),
    };
    put(out, &text)
}

fn summary(t: &mut String, artifact: &Artifact) -> std::fmt::Result {
    let m = artifact.manifest();
    let model = &m.model;
    writeln!(t, "artifact  {} bytes, weldment {}, every hash checked", artifact.file_bytes(), m.weldment_version)?;
    writeln!(
        t,
        "model     {}{}, vocabulary {}, {} positions, KV blocks of {}",
        model.architecture,
        model.name.as_ref().map(|n| format!(" ({n})")).unwrap_or_default(),
        model.vocab_size,
        model.max_seq,
        m.block_positions()
    )?;
    if m.world > 1 {
        writeln!(t, "ranks     {}", m.world)?;
    }
    let dims: Vec<String> = m.symbols.iter().map(|s| format!("{} {}..={}", s.name, s.min, s.max)).collect();
    writeln!(t, "dims      {}", dims.join(", "))?;
    let mode = match m.weights.mode {
        WeightMode::External => "external".to_owned(),
        WeightMode::Embedded => "embedded".to_owned(),
        WeightMode::Random(seed) => format!("random, seed {seed}"),
    };
    writeln!(t, "weights   {mode}, {} tensors", m.weights.tensors.len())?;
    for file in &m.weights.files {
        writeln!(t, "          from {} ({} bytes, id {})", file.name, file.bytes, file.id)?;
    }
    for p in &m.programs {
        writeln!(t, "program   {} [{}]", p.target.name, p.target.features.join(" "))?;
        for (point, e) in m.entries.iter().zip(&p.entries) {
            let launches: Vec<String> = e.variants.iter().map(|v| v.launches.len().to_string()).collect();
            writeln!(t, "          {}: {} launches by variant", point.name, launches.join(", "))?;
        }
        writeln!(
            t,
            "          {} kernels, arena {} bytes, pack {} bytes (key {})",
            p.kernels.len(),
            p.arena_bytes,
            p.pack.bytes,
            p.pack.key
        )?;
    }
    for (p, slab) in m.programs.iter().filter_map(|p| Some((p, p.slab.as_ref()?))) {
        let filled: u64 = slab.fills.iter().map(|fill| fill.bytes).fold(0, u64::saturating_add);
        writeln!(t, "slab      {}: {} bytes on every rank, {filled} of them filled", p.target.name, slab.bytes)?;
    }
    for (key, value) in &m.options {
        writeln!(t, "option    {key} = {value}")?;
    }
    m.sections.iter().try_for_each(|s| writeln!(t, "section   {:<10} {:>12} bytes at {}", s.name, s.bytes, s.offset))
}

fn memory(t: &mut String, m: &Manifest) -> std::fmt::Result {
    for (what, list) in [("input", &m.inputs), ("output", &m.outputs)] {
        for b in list {
            writeln!(t, "{what:<8} {:<28} {:>14} bytes at most", b.name, m.max_bytes(b).unwrap_or(0))?;
        }
    }
    for s in &m.states {
        writeln!(t, "state    {:<28} {:>14} bytes a KV block", s.name, s.unit_bytes)?;
    }
    for p in &m.programs {
        writeln!(t, "arena    {:<28} {:>14} bytes", p.target.name, p.arena_bytes)?;
        if let Some(slab) = &p.slab {
            writeln!(t, "slab     {:<28} {:>14} bytes", p.target.name, slab.bytes)?;
            for fill in &slab.fills {
                writeln!(t, "fill     {:>12} + {:<12} {:#010x}", fill.offset, fill.bytes, fill.word)?;
            }
        }
        for item in &p.pack.items {
            let names = item.tensors.iter().enumerate().filter_map(|(at, index)| {
                let name = &m.weights.tensors.get(*index as usize)?.name;
                Some(match item.shard(at) {
                    Some(Shard { axis, parts, replicas: 1 }) => format!("{name}[axis {axis} / {parts}]"),
                    Some(Shard { axis, parts, replicas }) => {
                        format!("{name}[axis {axis} / {parts}, {replicas} ranks each]")
                    }
                    None => name.clone(),
                })
            });
            let names: Vec<String> = names.collect();
            writeln!(t, "weights  {:>12} + {:<12} {:?} <- {}", item.offset, item.bytes, item.layout, names.join(" "))?;
        }
    }
    Ok(())
}

fn graph(t: &mut String, m: &Manifest) -> std::fmt::Result {
    let symbol = |i: u32| m.symbols.get(i as usize).map_or("?", |s| s.name.as_str());
    for p in &m.programs {
        for (point, e) in m.entries.iter().zip(&p.entries) {
            ranges(t, m, p, (point, e))?;
            for (index, v) in e.variants.iter().enumerate() {
                writeln!(t, "{} {} variant {index} {}", p.target.name, point.name, v.name)?;
                for (at, l) in v.launches.iter().enumerate() {
                    let grid: Vec<String> = l
                        .grid
                        .iter()
                        .map(|g| match g {
                            GridDim::Const(n) => n.to_string(),
                            GridDim::Symbol { symbol: s, mul: 1, div: 1 } => symbol(*s).to_owned(),
                            GridDim::Symbol { symbol: s, mul, div } => format!("ceil({} * {mul} / {div})", symbol(*s)),
                        })
                        .collect();
                    let args: Vec<String> =
                        l.args.iter().map(|a| format!("{}+{}", region(m, a.region), a.offset)).collect();
                    let kernel = p.kernels.get(l.kernel as usize).map_or("?", |k| k.name.as_str());
                    let sources = m.sources.get(l.source as usize).map(|s| s.join(" ")).unwrap_or_default();
                    let barrier = if l.barrier { '|' } else { ' ' };
                    writeln!(t, "{at:>5} {barrier} {kernel}<{}>({})  {sources}", grid.join(", "), args.join(", "))?;
                }
                let copies = launched_copies(m, p, v);
                let bytes: u64 = copies.iter().map(|c| c.bytes).sum();
                writeln!(t, "copies: {}, {bytes} bytes", copies.len())?;
                for c in copies {
                    writeln!(t, "      {:>12} bytes  {}: {} ({})", c.bytes, c.source, c.reason, c.by)?;
                }
            }
        }
    }
    Ok(())
}

/// The table that dispatch goes by: a line for each variant, a column for each symbol that some variant narrows.
fn ranges(t: &mut String, m: &Manifest, p: &Program, (point, e): (&EntryPoint, &Entry)) -> std::fmt::Result {
    let guarded = |s: &usize| e.variants.iter().flat_map(|v| &v.guards).any(|g| g.symbol as usize == *s);
    let symbols: Vec<usize> = (0..m.symbols.len()).filter(guarded).collect();
    let count = e.variants.len();
    writeln!(
        t,
        "{} {}: {count} variants; the first whose ranges hold a step's dims is replayed",
        p.target.name, point.name
    )?;
    write!(t, "{:>5} {:<32}", "", "variant")?;
    symbols.iter().try_for_each(|s| write!(t, " {:>16}", m.symbols[*s].name))?;
    writeln!(t, " {:>9} {:>8}", "launches", "kernels")?;
    for (index, v) in e.variants.iter().enumerate() {
        write!(t, "{index:>5} {:<32}", v.name)?;
        for s in &symbols {
            let own = v.guards.iter().find(|g| g.symbol as usize == *s).map(|g| (g.min, g.max));
            let (min, max) = own.unwrap_or((m.symbols[*s].min, m.symbols[*s].max));
            write!(t, " {:>16}", format!("{min}..={max}"))?;
        }
        let kernels: BTreeSet<u32> = v.launches.iter().map(|l| l.kernel).collect();
        writeln!(t, " {:>9} {:>8}", v.launches.len(), kernels.len())?;
    }
    Ok(())
}

fn region(m: &Manifest, region: Region) -> String {
    let name = |list: &[crate::artifact::Binding], i: u32| list.get(i as usize).map_or("?".into(), |b| b.name.clone());
    match region {
        Region::Arena => "arena".into(),
        Region::Weights => "weights".into(),
        Region::State(i) => m.states.get(i as usize).map_or("?".into(), |s| s.name.clone()),
        Region::Input(i) => name(&m.inputs, i),
        Region::Output(i) => name(&m.outputs, i),
        Region::Slab => "slab".into(),
        Region::Comm => "comm table".into(),
    }
}

/// How often a program launches a kernel, over all variants.
fn uses(p: &Program, kernel: usize) -> usize {
    let launches = p.entries.iter().flat_map(|e| &e.variants).flat_map(|v| &v.launches);
    launches.filter(|l| l.kernel as usize == kernel).count()
}

/// Kernels of each program; of a GPU's with what their code needs.
fn kernels(t: &mut String, m: &Manifest) -> std::fmt::Result {
    for p in &m.programs {
        if !p.target.is_gpu() {
            for (index, k) in p.kernels.iter().enumerate() {
                writeln!(
                    t,
                    "{:>5} x {:<40} {:<12} at {:>8}  {}",
                    uses(p, index),
                    k.name,
                    k.family,
                    k.entry,
                    k.summary
                )?;
            }
            continue;
        }
        // Registers of NVIDIA kernels are known to the driver alone, after its JIT.
        let known = p.kernels.iter().any(|k| k.resources.is_some_and(|r| r.vgprs > 0));
        writeln!(t, "{}: resources by the {}", p.target.name, if known { "code object" } else { "PTX" })?;
        write!(t, "{:>5}   {:<28} {:<12} {:>7}", "uses", "kernel", "family", "threads")?;
        if known {
            write!(t, " {:>4} {:>4} {:>4} {:>11}", "VGPR", "AGPR", "SGPR", "SGPR spills")?;
        }
        writeln!(t, " {:>6} {:>7} {:>9}  shapes", "LDS", "scratch", "occupancy")?;
        for (index, k) in p.kernels.iter().enumerate() {
            let r = k.resources.unwrap_or_default();
            write!(t, "{:>5} x {:<28} {:<12} {:>7}", uses(p, index), k.name, k.family, k.threads)?;
            if known {
                write!(t, " {:>4} {:>4} {:>4} {:>11}", r.vgprs, r.agprs, r.sgprs, r.sgpr_spills)?;
            }
            let occupancy = if r.occupancy > 0 { r.occupancy.to_string() } else { "-".to_owned() };
            let (lds, scratch) = (r.lds_bytes, r.scratch_bytes);
            writeln!(t, " {lds:>6} {scratch:>7} {occupancy:>9}  {}", k.summary)?;
        }
    }
    Ok(())
}

fn kernels_json(m: &Manifest) -> serde_json::Value {
    let kernel = |p: &Program, index: usize, k: &Kernel| {
        serde_json::json!({
            "name": k.name,
            "family": k.family,
            "summary": k.summary,
            "launches": uses(p, index),
            "threads": k.threads,
            "resources": k.resources,
        })
    };
    let program = |p: &Program| {
        let kernels: Vec<_> = p.kernels.iter().enumerate().map(|(i, k)| kernel(p, i, k)).collect();
        serde_json::json!({ "target": p.target.name, "kernels": kernels })
    };
    serde_json::Value::Array(m.programs.iter().map(program).collect())
}
