//! Every limit on what a file may claim, in one place. Counts are checked before anything is allocated for them.

/// Bytes of the JSON manifest.
pub const MAX_MANIFEST_BYTES: u64 = 64 << 20;
/// Sections of one artifact.
pub const MAX_SECTIONS: usize = 64;
/// Programs (one per target) of one artifact.
pub const MAX_PROGRAMS: usize = 16;
/// Symbolic dims; the dims block has a fixed size.
pub const MAX_SYMBOLS: usize = 16;
/// The largest value of a symbolic dim.
pub const MAX_SYMBOL_VALUE: u64 = 1 << 31;
/// Kernels of one program.
pub const MAX_KERNELS: usize = 1 << 16;
/// Launches of one variant.
pub const MAX_LAUNCHES: usize = 1 << 20;
/// Arguments of one launch.
pub const MAX_ARGS: usize = 64;
/// Variants of one entry.
pub const MAX_VARIANTS: usize = 256;
/// Entries of one artifact.
pub const MAX_ENTRIES: usize = 64;
/// Inputs, outputs or states of the model.
pub const MAX_BINDINGS: usize = 1 << 14;
/// Weight tensors.
pub const MAX_TENSORS: usize = 1 << 20;
/// Dimensions of one tensor.
pub const MAX_RANK: usize = 8;
/// Threads of a host device.
pub const MAX_THREADS: usize = 1024;
/// Threads of a GPU thread block.
pub const MAX_BLOCK_THREADS: u32 = 1024;
/// Programs along x of a GPU grid; along y and z [`MAX_GRID_YZ`].
pub const MAX_GRID_X: u64 = (1 << 31) - 1;
/// Programs along y or z of a GPU grid.
pub const MAX_GRID_YZ: u64 = 65_535;
/// Bytes of a kernel's name.
pub const MAX_KERNEL_NAME: usize = 256;
/// Bytes of a tokens file.
pub const MAX_TOKENS_FILE_BYTES: u64 = 256 << 20;

/// Bytes of the slab that a rank shares with the others.
pub const MAX_SLAB_BYTES: u64 = 1 << 36;
/// Slabs are of whole pages of this size, which AMD exports.
pub const SLAB_MULTIPLE: u64 = 4096;
/// Parts of a slab that start as a word.
pub const MAX_SLAB_FILLS: usize = 1 << 12;

/// Rows of a symbolic dim are allocated up to this multiple: kernels work on tiles of at most this many rows.
pub const ROW_MULTIPLE: u64 = 16;

/// Ranks that run a model together: what a comm table holds.
pub const MAX_WORLD: u32 = 64;
