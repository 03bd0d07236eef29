//! The kernel IR: a grid of programs over statically shaped tiles (Triton's model), in SSA with structured loops.
//!
//! One tile program is written per kernel family; `llvm/` lowers it for each target. A value is a tile of 0..4 dims;
//! rank 0 is a scalar, and scalars broadcast. Addresses are a parameter plus a byte offset plus constant byte strides.

mod build;
mod join;
mod math;
mod print;
mod verify;

pub use build::Builder;
pub use join::{join, joinable};
pub use verify::verify;

use std::fmt;

/// Element type of a tile. Signedness belongs to the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// Predicate.
    I1,
    /// 8-bit integer.
    I8,
    /// 16-bit integer.
    I16,
    /// 32-bit integer.
    I32,
    /// 64-bit integer: offsets, dims, program ids.
    I64,
    /// binary16.
    F16,
    /// bfloat16.
    BF16,
    /// binary32.
    F32,
}

impl Elem {
    /// Size in memory.
    pub fn bytes(self) -> u64 {
        match self {
            Elem::I1 | Elem::I8 => 1,
            Elem::I16 | Elem::F16 | Elem::BF16 => 2,
            Elem::I32 | Elem::F32 => 4,
            Elem::I64 => 8,
        }
    }

    /// True for f16, bf16, f32.
    pub fn is_float(self) -> bool {
        matches!(self, Elem::F16 | Elem::BF16 | Elem::F32)
    }
}

/// Type of a tile value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TileType {
    /// Element type.
    pub elem: Elem,
    /// Constant shape, outermost first.
    pub shape: Vec<u32>,
}

impl TileType {
    /// Number of rows: the product of all dims but the last.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product::<u32>() as usize
    }

    /// The last dim (1 for scalars): lanes of a row.
    pub fn lanes(&self) -> u32 {
        self.shape.last().copied().unwrap_or(1)
    }
}

impl fmt::Display for TileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let elem = format!("{:?}", self.elem).to_lowercase();
        let dims: Vec<String> = self.shape.iter().map(u32::to_string).collect();
        if dims.is_empty() { f.write_str(&elem) } else { write!(f, "{}x{elem}", dims.join("x")) }
    }
}

/// A value of the kernel being built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct V(pub u32);

/// A pointer parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Param(pub u32);

/// Unary operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// -a.
    Neg,
    /// |a|, floats.
    Abs,
    /// Square root, correctly rounded.
    Sqrt,
    /// Nearest integer, ties to even, as a float.
    Round,
    /// 2^a of an f32 by the GPU's own instruction: 2 ulp, subnormal results may be 0. Not for hosts.
    Exp2,
    /// 1 / x by the GPU's own unit, within 1 ulp; f32 only, GPUs only.
    Reciprocal,
}

/// Binary operations; integers wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// a + b.
    Add,
    /// a - b.
    Sub,
    /// a * b.
    Mul,
    /// a / b; integers unsigned.
    Div,
    /// a % b, unsigned integers.
    Rem,
    /// Larger; for floats b where either is NaN (as x86 maxps).
    Max,
    /// Smaller.
    Min,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
    /// Shift left.
    Shl,
    /// Logical shift right.
    Shr,
}

/// Comparisons; integers signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compare {
    /// a < b.
    Less,
    /// a <= b.
    LessEqual,
    /// a == b.
    Equal,
}

/// Reductions along one axis, which keeps size 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Sum, as a balanced tree of halves.
    Sum,
    /// Maximum.
    Max,
}

/// How an element type changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Conversion {
    /// Float to float, nearest even.
    Float,
    /// Signed integer to float.
    SignedToFloat,
    /// Float to signed integer, towards zero; the value must be in range.
    FloatToSigned,
    /// Sign extension or truncation.
    Signed,
    /// Zero extension or truncation.
    Unsigned,
}

/// Where a load or store goes: `param + offset + gather[index] + sum(index[i] * strides[i])`, all in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Address {
    /// The pointer parameter.
    pub param: Param,
    /// Scalar i64 byte offset.
    pub offset: V,
    /// i64 byte offsets by index of the leading dims: of the tile's rank, each dim 1 or the tile's, the last dim 1.
    pub gather: Option<V>,
    /// Byte stride per tile dim.
    pub strides: Vec<i64>,
    /// Alignment in bytes that every row start has.
    pub align: u32,
}

/// Where a program that waits for other ranks learns that the job is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The comm table (`weldment_artifact::comm_table`).
    pub comm: Param,
    /// Start of this rank's slab.
    pub slab: Param,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq)]
pub enum Inst {
    /// Integer constant.
    Int(i64),
    /// Float constant.
    Float(f64),
    /// Index of the program along a grid axis, i64.
    ProgramId(u32),
    /// Value of a symbolic dim in this step, i64; the index is the kernel's own symbol list.
    Dim(u32),
    /// 0, 1, 2, ... along the last dim.
    Iota,
    /// Elementwise.
    Unary(Unary, V),
    /// Elementwise.
    Binary(Binary, V, V),
    /// a * b + c with one rounding.
    Fma(V, V, V),
    /// Elementwise, gives i1.
    Compare(Compare, V, V),
    /// condition ? a : b.
    Select(V, V, V),
    /// Changes the element type.
    Convert(Conversion, V),
    /// Same bits; the last dim scales by the ratio of sizes.
    Bitcast(V),
    /// Repeats size-1 and missing leading dims.
    Broadcast(V),
    /// Same elements, same last dim.
    Reshape(V),
    /// Joins along the first dim.
    Stack(Vec<V>),
    /// One index of the first dim, which keeps size 1.
    Row(V, u32),
    /// Reduces one axis.
    Reduce(Reduction, V, u32),
    /// Loads a tile. `mask` (i1, broadcastable) guards lanes; masked lanes are zero.
    Load {
        /// Where.
        address: Address,
        /// Lanes to read.
        mask: Option<V>,
    },
    /// Stores a tile; masked lanes are left alone.
    Store {
        /// Where.
        address: Address,
        /// What.
        value: V,
        /// Lanes to write.
        mask: Option<V>,
    },
    /// Stores a tile where other ranks look for it: relaxed, at system scope, whole vectors where they lie so.
    Push {
        /// Where, in the slab of some rank.
        address: Address,
        /// What.
        value: V,
        /// Lanes to write.
        mask: Option<V>,
    },
    /// Loads a tile that other ranks push: relaxed, at system scope, again and again until no element is `empty`. Each thread
    /// waits for its own elements alone. Masked lanes are zero and not waited for.
    Arrive {
        /// Where, in this rank's slab.
        address: Address,
        /// Lanes to read.
        mask: Option<V>,
        /// Bits of the element that stands where nothing has arrived: 2 or 4 bytes.
        empty: u32,
        /// What is looked at between two looks.
        waiting: Waiting,
    },
    /// Once all threads of the program are here: stores an i32 word at system scope. With `release`, whoever acquires it sees all
    /// that the program wrote before.
    Signal {
        /// Where.
        address: Address,
        /// The word.
        value: V,
        /// Release, else relaxed.
        release: bool,
    },
    /// Waits until an i32 word has come as far as `value`, `(word - value) as i32 >= 0`, by acquiring loads at system scope;
    /// then all threads of the program go on.
    Await {
        /// Where.
        address: Address,
        /// The word that is waited for.
        value: V,
        /// What is looked at between two looks.
        waiting: Waiting,
    },
    /// acc [M, N] f32 + a [M, K] b [K, N]. On the host f32 inputs, k ascending, fused multiply-adds. On GPUs also bf16 and
    /// f16 through matrix instructions (M a multiple of 16, N of 16, K of 16), and with a leading batch dim on all three.
    Dot {
        /// Accumulator.
        acc: V,
        /// Left, [M, K].
        a: V,
        /// Right, [K, N].
        b: V,
    },
    /// acc [M, N] f32 + a [M, K] b, bf16 inputs; b is [K/2, 2N] with the two elements of a k pair adjacent.
    DotBf16 {
        /// Accumulator.
        acc: V,
        /// Left, [M, K].
        a: V,
        /// Right, [K/2, 2N].
        b: V,
    },
    /// [M, N] i32 = a [M, K] b, exact; a is i8 in -127..=127; b is [K/4, 4N] bytes with the four elements of a k group adjacent.
    DotI8 {
        /// Left, i8 [M, K].
        a: V,
        /// Right, [K/4, 4N].
        b: V,
        /// True: b is i8 in -127..=127 or -128; false: b is u8.
        signed: bool,
        /// Largest magnitude in b; lets a target use narrow accumulators.
        max: u32,
    },
    /// Counted loop: `results` take the carried values after the last trip.
    For {
        /// i64 scalar.
        start: V,
        /// i64 scalar, exclusive.
        end: V,
        /// Constant step.
        step: i64,
        /// Initial carried values.
        init: Vec<V>,
        /// Induction variable inside the body.
        index: V,
        /// Carried values inside the body.
        carried: Vec<V>,
        /// Body.
        body: Vec<Stmt>,
        /// Values for the next trip.
        next: Vec<V>,
        /// Values after the loop.
        results: Vec<V>,
    },
    /// Runs the body where a scalar i1 holds.
    If {
        /// i1 scalar.
        condition: V,
        /// Body, stores only.
        body: Vec<Stmt>,
    },
}

/// An instruction and the value it defines (none for stores, loops and ifs).
#[derive(Clone, Debug, PartialEq)]
pub struct Stmt {
    /// Defined value.
    pub value: Option<V>,
    /// What it does.
    pub inst: Inst,
}

/// Number of programs along a grid axis: `ceil(symbol * mul / div)`, or the constant `mul` without a symbol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GridAxis {
    /// Index into [`Kernel::symbols`].
    pub symbol: Option<u32>,
    /// Multiplier, or the constant.
    pub mul: u64,
    /// Divisor, at least 1.
    pub div: u64,
}

impl GridAxis {
    /// A constant number of programs.
    pub fn constant(n: u64) -> GridAxis {
        GridAxis { symbol: None, mul: n, div: 1 }
    }
}

/// How a kernel uses a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Loads only.
    Read,
    /// Stores only, or loads and stores.
    Write,
}

/// A pointer parameter as the kernel sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamInfo {
    /// For people.
    pub name: String,
    /// Loads or stores.
    pub access: Access,
    /// Bytes that the pointer is a multiple of: 1 where nothing is known.
    pub align: u32,
    /// Weights: no kernel of the step writes them, so loads may run ahead of earlier launches.
    pub constant: bool,
}

/// A finished tile program.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Symbol name in the object.
    pub name: String,
    /// Kernel family, for reports.
    pub family: &'static str,
    /// True if it only moves data from one place to another: a copy that no destination could avoid.
    pub moves_only: bool,
    /// Parameters in argument order.
    pub params: Vec<ParamInfo>,
    /// Symbolic dims used.
    pub symbols: Vec<String>,
    /// Grid, x fastest.
    pub grid: [GridAxis; 3],
    /// Threads of a block on a GPU, a power of two; the host runs a program on one thread.
    pub threads: u32,
    /// Types of all values.
    pub types: Vec<TileType>,
    /// The body.
    pub body: Vec<Stmt>,
}

impl Kernel {
    /// True if programs wait for other ranks.
    pub fn waits(&self) -> bool {
        fn any(block: &[Stmt]) -> bool {
            block.iter().any(|stmt| match &stmt.inst {
                Inst::Arrive { .. } | Inst::Await { .. } => true,
                Inst::For { body, .. } | Inst::If { body, .. } => any(body),
                _ => false,
            })
        }
        any(&self.body)
    }
}
