//! The manifest: everything the runtime knows about a model, as JSON. Field names of what occurs by the hundred are short.

use crate::dtype::DType;
use crate::layout::Layout;
use crate::role::{InputRole, SymbolRole};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The root of the manifest. Holds no path, time or machine name: the same input gives the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the compiler that wrote the artifact.
    pub weldment_version: String,
    /// The model.
    pub model: Model,
    /// Ranks that run the model together, one process each.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub world: u32,
    /// Symbolic dims in the order of the dims block.
    pub symbols: Vec<Symbol>,
    /// What can be called.
    pub entries: Vec<EntryPoint>,
    /// Inputs of all entries; launches address them by index.
    pub inputs: Vec<Binding>,
    /// Outputs of all entries; launches address them by index.
    pub outputs: Vec<Binding>,
    /// State that outlives a call (KV caches), which all entries share; launches address it by index.
    pub states: Vec<State>,
    /// Where the weights come from.
    pub weights: Weights,
    /// Source paths (`layers.3.mlp.down_proj`) of launches: each entry is the sorted set that one launch stands for.
    #[serde(default)]
    pub sources: Vec<Vec<String>>,
    /// One program per target, the preferred first.
    pub programs: Vec<Program>,
    /// How the artifact was compiled (policy, dims, disabled passes, ...), for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<(String, String)>,
    /// Chat template (Jinja), if the checkpoint has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// What the template prints by name: `bos_token`, `eos_token`, ... and their texts, those that the checkpoint's tokenizer has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub special_tokens: BTreeMap<String, String>,
    /// The sections that follow. Filled by the writer.
    #[serde(default)]
    pub sections: Vec<Section>,
}

/// Facts about the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// Architecture family, as the front end names it.
    pub architecture: String,
    /// Display name, if the checkpoint has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Token ids are `0..vocab_size`.
    pub vocab_size: u32,
    /// Beginning of sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_id: Option<u32>,
    /// Generation ends at any of these.
    #[serde(default)]
    pub eos_ids: Vec<u32>,
    /// Positions a sequence may have.
    pub max_seq: u32,
}

/// A symbolic dim and its compiled range, both ends included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbol {
    /// Its name in the graph.
    pub name: String,
    /// Smallest value.
    pub min: u64,
    /// Largest value.
    pub max: u64,
    /// What it counts.
    #[serde(default, skip_serializing_if = "SymbolRole::is_plain")]
    pub role: SymbolRole,
}

/// A dim of a shape: a number, or a symbol by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// A constant.
    Const(u64),
    /// The value of a symbol.
    Symbol(String),
}

/// An entry: its name, and which of the artifact's inputs and outputs are its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntryPoint {
    /// `step`, or whatever the graph is called.
    pub name: String,
    /// Indices into [`Manifest::symbols`] of those that the entry's sizes depend on.
    pub symbols: Vec<u32>,
    /// Indices into [`Manifest::inputs`], in order.
    pub inputs: Vec<u32>,
    /// Indices into [`Manifest::outputs`], in order.
    pub outputs: Vec<u32>,
    /// It leaves new versions of states: what a step computes is there for those after it.
    #[serde(default, skip_serializing_if = "crate::layout::is_false")]
    pub writes_states: bool,
}

/// An input or output of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// Name in the entry's signature.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dims, outermost first.
    pub shape: Vec<Dim>,
    /// What an input holds; plain for an output.
    #[serde(default, skip_serializing_if = "InputRole::is_plain")]
    pub role: InputRole,
    /// How rows lie in memory where inner dims are symbolic: one after the other at the step's own dims, or (not dense) each as far
    /// from the next as in the largest step.
    #[serde(default, skip_serializing_if = "crate::layout::is_false")]
    pub dense: bool,
    /// What the values of an input of indices may be.
    #[serde(default, skip_serializing_if = "Indices::is_free")]
    pub indices: Indices,
}

/// What the values of an input may be, where kernels find elements by them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Indices {
    /// Anything: nothing is found by them.
    #[default]
    Free,
    /// What all of these allow.
    Bounded(Vec<IndexBound>),
    /// Indices are computed from them, so that nothing can be said.
    Computed,
}

impl Indices {
    /// True if values may be anything.
    pub fn is_free(&self) -> bool {
        *self == Indices::Free
    }
}

/// Values from `least` to less than `below * times`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexBound {
    /// Smallest value.
    pub least: i64,
    /// A dim of the call.
    pub below: Dim,
    /// Its multiplier.
    pub times: u64,
}

/// State that outlives a step, allocated by the session unit by unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `layers.{i}.k_cache`, ...
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dims; the first is a symbol of the role pool.
    pub shape: Vec<Dim>,
    /// Bytes of one unit of the first dim (one KV block).
    pub unit_bytes: u64,
}

/// The machine a program is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// `x86-64-v3`, or the CPU's LLVM name where compiled for `host`; `gfx942`, `sm_90a`.
    pub name: String,
    /// `x86_64`, `amdgcn`, `nvptx64`.
    pub arch: String,
    /// CPU features the code uses, as LLVM spells them (`avx2`, `fma`, `avx512vnni`), sorted. All are checked at load.
    #[serde(default)]
    pub features: Vec<String>,
}

impl Target {
    /// True if its code runs on a GPU: kernels are entered by name, with threads of their own.
    pub fn is_gpu(&self) -> bool {
        self.arch != "x86_64"
    }
}

/// Everything that depends on the target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The machine it is for.
    pub target: Target,
    /// Name of the section that holds the code: a flat image for the host, a linked code object for AMD, PTX for NVIDIA.
    pub code: String,
    /// Kernels of the image.
    pub kernels: Vec<Kernel>,
    /// Bytes of the arena, one allocation, at the maximum of every symbol.
    pub arena_bytes: u64,
    /// What collectives exchange data through; none without collectives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slab: Option<Slab>,
    /// How the weights lie for this program.
    pub pack: Pack,
    /// The code of each of [`Manifest::entries`].
    pub entries: Vec<Entry>,
}

/// One kernel of a code image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Symbol in the object, unique.
    pub name: String,
    /// Byte offset of the entry point in the code section; 0 on GPUs, which find it by name.
    pub entry: u64,
    /// Kernel family (`gemv`, `attention`, ...).
    pub family: String,
    /// Only moves data from one place to another. Gathers and cache writes are ops of the model and do not count.
    #[serde(default, skip_serializing_if = "is_default")]
    pub moves_only: bool,
    /// One line for people: shapes, dtypes, tile.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// Threads of a block on a GPU; 0 on the host.
    #[serde(default, skip_serializing_if = "is_default")]
    pub threads: u32,
    /// What the code object says the kernel needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// Resources of a GPU kernel, read back from its code object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Vector registers of a thread, accumulation registers excluded (NVIDIA: unknown before the driver's JIT, 0).
    pub vgprs: u32,
    /// Accumulation vector registers (AMD).
    #[serde(default, skip_serializing_if = "is_default")]
    pub agprs: u32,
    /// Scalar registers (AMD).
    #[serde(default, skip_serializing_if = "is_default")]
    pub sgprs: u32,
    /// Bytes of shared memory (LDS) of a block.
    pub lds_bytes: u32,
    /// Bytes of scratch of a thread.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scratch_bytes: u32,
    /// Vector registers spilled (AMD).
    #[serde(default, skip_serializing_if = "is_default")]
    pub vgpr_spills: u32,
    /// Scalar registers spilled, to lanes of vector registers where there is no scratch (AMD).
    #[serde(default, skip_serializing_if = "is_default")]
    pub sgpr_spills: u32,
    /// Waves that a SIMD unit can hold at once, by registers and LDS; 0 where unknown.
    #[serde(default, skip_serializing_if = "is_default")]
    pub occupancy: u32,
}

/// The code of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Tried in order; the first whose guards all accept is replayed.
    pub variants: Vec<Variant>,
}

/// A specialisation of an entry with what it assumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// For people: `decode`, `prefill.context_over_2048`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Assumptions, checked on every launch. Symbols without one accept their whole range.
    #[serde(default)]
    pub guards: Vec<Guard>,
    /// Launches in order.
    pub launches: Vec<Launch>,
}

/// `min <= symbol <= max`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// Index into [`Manifest::symbols`].
    pub symbol: u32,
    /// Smallest accepted value.
    pub min: u64,
    /// Largest accepted value.
    pub max: u64,
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// Index into [`Program::kernels`].
    #[serde(rename = "k")]
    pub kernel: u32,
    /// Programs per grid dim, x (fastest) first; missing dims are 1.
    #[serde(rename = "g")]
    pub grid: Vec<GridDim>,
    /// Pointers handed to the kernel, in order.
    #[serde(rename = "a")]
    pub args: Vec<Arg>,
    /// Waits for all earlier launches.
    #[serde(rename = "b", default, skip_serializing_if = "is_default")]
    pub barrier: bool,
    /// Index into [`Manifest::sources`].
    #[serde(rename = "s", default, skip_serializing_if = "is_default")]
    pub source: u32,
    /// What it moves and computes, for reports.
    #[serde(rename = "c", default, skip_serializing_if = "is_default")]
    pub cost: Cost,
    /// The launch is this matrix product, which a vendor's library may do instead of the kernel.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub gemm: Option<Gemm>,
    /// The launch is this sum over ranks, which the vendor's library may do instead of the kernel.
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    pub all_reduce: Option<AllReduce>,
    /// What the launch leaves behind, for those who want to look at it; written only if the compiler was asked to.
    #[serde(rename = "r", default, skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<LaunchResult>,
    /// The launch is a copy that the compiler could not avoid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<LaunchCopy>,
}

/// A tensor that a launch writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchResult {
    /// Its first element.
    pub at: Arg,
    /// f32, f16, bf16 or i32.
    pub dtype: DType,
    /// Dims, outermost first.
    pub shape: Vec<Dim>,
    /// Elements from one index of a dim to the next.
    pub strides: Vec<u64>,
}

/// A copy that was left, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchCopy {
    /// Source path of what caused it, or the name of an output.
    pub source: String,
    /// Bytes moved at the largest dims.
    pub bytes: u64,
    /// Why the value could not be written in place.
    pub reason: String,
}

/// `out [rows, n] = x [rows, k] w [n, k]^T (+ addend [rows, n])`, sums in f32. The launch's arguments are x, w, (addend,) out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gemm {
    /// Rows of x; the library computes as many as the variant has at most.
    pub rows: GridDim,
    /// Rows of w, columns of the result.
    pub n: u64,
    /// Length of the sums.
    pub k: u64,
    /// bf16 or f16, of all operands and the result.
    pub dtype: DType,
    /// Elements from one row of x to the next.
    pub x_stride: u64,
    /// Elements from one row of the result to the next.
    pub out_stride: u64,
    /// Elements from one row of the addend to the next, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addend_stride: Option<u64>,
}

/// `out = sum over ranks of x`, both contiguous. The launch's first two arguments are x and out. The library sums as it sees fit:
/// not in the order of ranks, and rounding more than once where there are more than two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllReduce {
    /// Elements; the library adds as many as the variant has at most.
    pub elements: GridDim,
    /// f32, f16 or bf16.
    pub dtype: DType,
}

/// Work estimate of a launch: `fixed + T * per_token`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u64; 3]", into = "[u64; 3]")]
pub struct Cost {
    /// Bytes moved whatever the dims are (weights).
    pub bytes: u64,
    /// Bytes moved per token.
    pub bytes_per_token: u64,
    /// Floating-point operations per token.
    pub flops_per_token: u64,
}

impl From<[u64; 3]> for Cost {
    fn from([bytes, bytes_per_token, flops_per_token]: [u64; 3]) -> Self {
        Cost { bytes, bytes_per_token, flops_per_token }
    }
}

impl From<Cost> for [u64; 3] {
    fn from(c: Cost) -> Self {
        [c.bytes, c.bytes_per_token, c.flops_per_token]
    }
}

fn one() -> u32 {
    1
}

fn is_one(n: &u32) -> bool {
    *n == 1
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Programs of one grid dim: `ceil(dim * mul / div)`. JSON: `n` for a constant, `[symbol, mul, div]` otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GridDim {
    /// A constant count.
    Const(u64),
    /// `ceil(value(symbol) * mul / div)`, `div` is not 0.
    Symbol {
        /// Index into [`Manifest::symbols`].
        symbol: u32,
        /// Multiplier.
        mul: u64,
        /// Divisor.
        div: u64,
    },
}

/// Memory that every rank has alike and all ranks address. Offsets are of [`Region::Slab`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slab {
    /// Size in bytes, a multiple of 4096 (AMD exports whole pages).
    pub bytes: u64,
    /// What it holds before the first step; the rest is 0.
    pub fills: Vec<SlabFill>,
}

/// A part of the slab that starts as one 32-bit word, repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlabFill {
    /// First byte, a multiple of 4.
    pub offset: u64,
    /// Bytes, a multiple of 4.
    pub bytes: u64,
    /// The word.
    pub word: u32,
}

/// A pointer argument: a byte offset into a region. JSON: `[region code, offset]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Arg {
    /// The allocation.
    pub region: Region,
    /// Byte offset in it.
    pub offset: u64,
}

/// An allocation that launches address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Region {
    /// Intermediates.
    Arena,
    /// The pack.
    Weights,
    /// State by index.
    State(u32),
    /// Input by index.
    Input(u32),
    /// Output by index.
    Output(u32),
    /// The symmetric slab: memory of the same layout on every rank, which the others address too.
    Slab,
    /// The rank's table of [`crate::comm_table`]: its number, where the others' slabs lie.
    Comm,
}

/// Codes far over those of any index.
const SLAB: u64 = 1 << 40;
const COMM: u64 = (1 << 40) + 1;

impl Region {
    /// The number that stands for the region in JSON: 0 arena, 1 weights, `2 + 3 i` state, `3 + 3 i` input, `4 + 3 i` output;
    /// the two regions of collectives at the end of the range that indices leave free.
    pub const fn code(self) -> u64 {
        match self {
            Region::Arena => 0,
            Region::Weights => 1,
            Region::State(i) => 2 + 3 * i as u64,
            Region::Input(i) => 3 + 3 * i as u64,
            Region::Output(i) => 4 + 3 * i as u64,
            Region::Slab => SLAB,
            Region::Comm => COMM,
        }
    }

    /// Inverse of [`Region::code`]; `None` if the index does not fit.
    pub fn from_code(code: u64) -> Option<Region> {
        Some(match code {
            0 => Region::Arena,
            1 => Region::Weights,
            SLAB => Region::Slab,
            COMM => Region::Comm,
            _ => {
                let index = u32::try_from((code - 2) / 3).ok()?;
                match (code - 2) % 3 {
                    0 => Region::State(index),
                    1 => Region::Input(index),
                    _ => Region::Output(index),
                }
            }
        })
    }
}

/// Where the weights come from and what they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    /// How they are found.
    pub mode: WeightMode,
    /// The checkpoint's files, by base name. Empty for random weights.
    #[serde(default)]
    pub files: Vec<SourceFile>,
    /// Logical tensors that pack items name by index.
    pub tensors: Vec<Tensor>,
}

/// How the weights are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightMode {
    /// In the checkpoint's own files; packed at load, the pack is cached.
    External,
    /// Packed, in section `weights` of the artifact (of the first program).
    Embedded,
    /// Made at load from this seed.
    Random(u64),
}

/// A file of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Base name, no folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Hex content hash that names the file in the cache's registry (see `weights::content_id`).
    pub id: String,
}

/// A logical weight tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Name in the checkpoint, or of the hoisted constant.
    pub name: String,
    /// Element type of the logical bytes.
    pub dtype: DType,
    /// Dims, outermost first (a GGUF's dims reversed).
    pub shape: Vec<u64>,
    /// Where its bytes are.
    pub at: TensorPlace,
    /// Hex blake3 of its logical bytes; empty for random ones.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub blake3: String,
}

/// Where a tensor's logical bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorPlace {
    /// In the checkpoint: `(index into Weights::files, byte offset)`.
    File(u32, u64),
    /// In the section `constants` of the artifact (computed by the compiler: rope tables, hoisted values), at this offset.
    Constant(u64),
    /// Made from the seed and the name.
    Random,
}

/// How the weights lie in the one region that launches address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// Size of the region.
    pub bytes: u64,
    /// Hex key of (content, layout, target); see `Pack::compute_key`. Empty means not cacheable.
    pub key: String,
    /// Items in ascending offset, not overlapping, each 64-byte aligned.
    pub items: Vec<PackItem>,
}

/// One packed weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackItem {
    /// Byte offset in the pack, a multiple of 64.
    #[serde(rename = "o")]
    pub offset: u64,
    /// Bytes, `layout.packed_bytes(...)`.
    #[serde(rename = "n")]
    pub bytes: u64,
    /// How they lie.
    #[serde(rename = "l")]
    pub layout: Layout,
    /// Indices into [`Weights::tensors`], concatenated along N (the first dim).
    #[serde(rename = "t")]
    pub tensors: Vec<u32>,
    /// The part of each tensor that a rank takes, where it does not take the whole; empty if every rank takes all.
    #[serde(rename = "s", default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<Option<Shard>>,
}

/// The part of a logical tensor that a rank holds: dim `axis` is cut into `parts` equal ones, of which rank r takes part `r / replicas`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// The dim that is cut, outermost first: in a matrix 0 cuts rows, 1 columns. The last dim is cut at whole blocks of the dtype.
    pub axis: u32,
    /// How many.
    pub parts: u32,
    /// Ranks that share one.
    pub replicas: u32,
}

/// A section of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// `code.<n>`, `report`, `tokenizer`, `constants`, `weights`.
    pub name: String,
    /// Byte offset in the file: a multiple of 64, of 4096 for `weights`.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// Hex blake3.
    pub blake3: String,
}

/// The section that holds packed weights; hashed when a session is created and by `inspect` and `verify`, not on opening.
pub const WEIGHTS_SECTION: &str = "weights";
/// The section that holds constants computed by the compiler.
pub const CONSTANTS_SECTION: &str = "constants";
/// The section that holds the match report (JSON).
pub const REPORT_SECTION: &str = "report";
/// The section that holds the ready-built tokenizer.
pub const TOKENIZER_SECTION: &str = "tokenizer";
