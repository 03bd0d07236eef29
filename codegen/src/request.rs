//! What kernels are made from and what comes of it: a [`Request`] is one op with everything its kernel is specialised on, a [`Built`] a
//! kernel with its bindings.

use crate::channel::Channel;
use crate::choices::Choices;
use crate::setup::Setup;
use crate::target::Target;
use crate::tile::{Builder, Kernel, V};
use weldment_artifact::Layout;
use weldment_ir::{DType, Dim, Op, TensorType};
use weldment_passes::buffer::ROW_MULTIPLE;
use weldment_passes::target::Refusal;

/// An operand or result of a kernel: its type and how it lies in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tensor {
    /// dtype and shape.
    pub ty: TensorType,
    /// Elements from one index of a dim to the next.
    pub strides: Vec<u64>,
    /// Depends on weights alone: packed ahead of time into the layout that the kernel asks for.
    pub is_static: bool,
    /// No launch of a step writes it: weights, and what the caller passes in.
    pub is_constant: bool,
    /// A result that no node and no caller reads: a kernel that gives several need not write it.
    pub is_unread: bool,
    /// Bytes that its address is a multiple of, at most 64.
    pub align: u32,
    /// It lies row-major at the step's own dims ([`weldment_passes::buffer::External::dense`]): only
    /// [`row_offset`](Tensor::row_offset) finds its rows.
    pub is_dense: bool,
}

impl Tensor {
    /// A tensor in row-major order, symbolic dims counted as 1 (strides of outer dims are then only relative).
    pub fn contiguous(ty: &TensorType) -> Tensor {
        let mut strides = vec![1u64; ty.rank()];
        for i in (1..ty.rank()).rev() {
            strides[i - 1] = strides[i].saturating_mul(ty.shape[i].constant().unwrap_or(1));
        }
        let (is_static, is_constant, is_unread, is_dense) = (false, false, false, false);
        Tensor { ty: ty.clone(), strides, is_static, is_constant, is_unread, align: 64, is_dense }
    }

    /// Byte offset of index `row` (i64) of the leading dim.
    pub fn row_offset(&self, b: &mut Builder, row: V) -> V {
        if !self.is_dense {
            return b.scale(row, self.byte_stride(0));
        }
        let inner = &self.ty.shape[1..];
        let constant: u64 = inner.iter().filter_map(Dim::constant).product();
        inner.iter().fold(b.scale(row, bytes_of(self.ty.dtype, constant)), |at, dim| match dim {
            Dim::Sym(s) => {
                let n = b.dim(s);
                b.mul(at, n)
            }
            Dim::Const(_) => at,
        })
    }

    /// Each element as a row of its own.
    pub fn points(&self) -> Tensor {
        let mut points = self.clone();
        points.ty.shape.push(Dim::Const(1));
        points.strides.push(1);
        points
    }

    /// Byte stride of a dim.
    pub fn byte_stride(&self, axis: usize) -> i64 {
        bytes_of(self.ty.dtype, self.strides[axis])
    }
}

/// Bytes of `elements` along a row of `dtype`.
pub fn bytes_of(dtype: DType, elements: u64) -> i64 {
    (elements / dtype.block_elements() as u64 * dtype.block_bytes() as u64) as i64
}

/// One op to be run, with everything its kernel is specialised on: kernels are built from a request and nothing else, so that equal
/// requests, and no others, share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request<'a> {
    /// The op.
    pub op: &'a Op,
    /// Operands in table order.
    pub operands: Vec<Tensor>,
    /// Results in table order.
    pub results: Vec<Tensor>,
    /// Largest number of tokens of the variant: 1 picks the decode form.
    pub max_tokens: u64,
    /// Machine and symbols, and what is fixed for the whole program.
    pub setup: &'a Setup,
    /// What is fixed for this request.
    pub choices: Choices,
}

impl<'a> Request<'a> {
    /// The machine.
    pub fn target(&self) -> &'a Target {
        &self.setup.target
    }

    /// Does the space count rows of [`Symbols::rows`](crate::setup::Symbols::rows)?
    pub fn counts_tokens(&self, space: &RowSpace) -> bool {
        self.setup.symbols.is_rows(space.symbol.as_deref())
    }

    /// Most rows of the space; `None` where no variant bounds its symbol, or there are too many to count.
    pub fn most_rows(&self, space: &RowSpace) -> Option<u64> {
        match space.symbol.as_deref() {
            None => Some(space.mul),
            symbol if self.setup.symbols.is_bounded(symbol) => space.mul.checked_mul(self.max_tokens),
            Some(_) => None,
        }
    }
}

/// What a kernel parameter is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// An operand where bufferisation put it; if static, packed as plain rows of its own dtype.
    Operand(usize),
    /// A result where bufferisation put it.
    Result(usize),
    /// Arena bytes of the step itself, as many as [`crate::select::KernelLibrary`] asked bufferisation for.
    Scratch {
        /// Bytes from their start.
        offset: u64,
    },
    /// A part of this rank's slab, laid out when all channels are known.
    Channel(Channel),
    /// This rank's slab, from its start.
    Slab,
    /// The comm table.
    Comm,
    /// Static operands packed together in a layout.
    Packed {
        /// Operand positions, in packing order.
        operands: Vec<usize>,
        /// Layout.
        layout: Layout,
    },
}

/// A kernel and its bindings, in parameter order.
#[derive(Clone, Debug)]
pub struct Built {
    /// The tile program, without a name yet.
    pub kernel: Kernel,
    /// One per parameter.
    pub arguments: Vec<Argument>,
    /// Shapes and dtypes for people.
    pub summary: String,
    /// What is launched after it is over, where one launch does not do.
    pub then: Option<Box<Built>>,
}

/// Builds a [`Refusal`].
pub fn refuse<T>(precondition: &'static str, found: impl ToString, accepted: impl ToString) -> Result<T, Refusal> {
    Err(Refusal { precondition, found: found.to_string(), accepted: accepted.to_string() })
}

/// Holds or refuses.
pub fn require(
    condition: bool,
    precondition: &'static str,
    found: impl ToString,
    accepted: impl ToString,
) -> Result<(), Refusal> {
    if condition { Ok(()) } else { refuse(precondition, found, accepted) }
}

/// Leading dims folded into one row index: `count = symbol * mul` rows of constant byte stride.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowSpace {
    /// The symbolic factor.
    pub symbol: Option<String>,
    /// Further ones: no grid counts them, so that their rows are walked in a loop.
    pub others: Vec<String>,
    /// The constant factor.
    pub mul: u64,
}

impl RowSpace {
    /// Of a tensor's dims but the last.
    ///
    /// # Errors
    /// If more than one is symbolic.
    pub fn of(shape: &[Dim]) -> Result<RowSpace, Refusal> {
        let rows = RowSpace::every(shape);
        require(rows.others.is_empty(), "symbolic dims", format!("{shape:?}"), "at most one among the leading dims")?;
        Ok(rows)
    }

    /// Of dims of which any number may be symbolic.
    pub fn every(shape: &[Dim]) -> RowSpace {
        let mut rows = RowSpace { symbol: None, others: Vec::new(), mul: 1 };
        for dim in shape {
            match dim {
                Dim::Const(n) => rows.mul = rows.mul.saturating_mul(*n),
                Dim::Sym(s) if rows.symbol.is_none() => rows.symbol = Some(s.to_string()),
                Dim::Sym(s) => rows.others.push(s.to_string()),
            }
        }
        rows
    }

    /// The number of rows, i64.
    pub fn count(&self, b: &mut Builder) -> V {
        let Some(s) = &self.symbol else { return b.int(self.mul as i64) };
        let n = b.dim(s);
        let count = b.scale(n, self.mul as i64);
        self.others.iter().fold(count, |count, s| {
            let n = b.dim(s);
            b.mul(count, n)
        })
    }

    /// Sets a grid axis to ceil(rows / tile).
    pub fn grid(&self, b: &mut Builder, axis: usize, tile: u64) {
        match &self.symbol {
            Some(s) => b.grid_symbol(axis, s, self.mul, tile),
            None => b.grid_constant(axis, self.mul.div_ceil(tile)),
        }
    }
}

/// Do `most` rows of tokens, in whole tiles, lie in what bufferisation leaves room for?
pub(crate) fn has_room(space: &RowSpace, max_tokens: u64, most: u64, tile: u32) -> bool {
    let room = max_tokens.checked_next_multiple_of(ROW_MULTIPLE).and_then(|n| n.checked_mul(space.mul));
    most.checked_next_multiple_of(u64::from(tile)).zip(room).is_some_and(|(rows, room)| rows <= room)
}

/// Byte stride of the folded row index of `t`, if its leading dims fold.
///
/// # Errors
/// If they do not lie at one constant stride.
pub fn row_stride(t: &Tensor) -> Result<i64, Refusal> {
    let lead = t.ty.rank().saturating_sub(1);
    // A dim of 1 is never stepped along: what lies on both sides of it must fold as if it were not there.
    let stepped: Vec<usize> = (0..lead).filter(|i| t.ty.shape[*i] != Dim::Const(1)).collect();
    for pair in stepped.windows(2) {
        let inner = t.ty.shape[pair[1]].constant();
        require(
            inner.is_some_and(|n| t.strides[pair[1]].checked_mul(n) == Some(t.strides[pair[0]])),
            "row stride",
            format!("strides {:?} of {}", t.strides, t.ty),
            "leading dims at one constant stride",
        )?;
    }
    Ok(stepped.last().or(lead.checked_sub(1).as_ref()).map_or(0, |axis| t.byte_stride(*axis)))
}

/// The last dim must be contiguous.
///
/// # Errors
/// If its stride is not 1.
pub fn contiguous_last(t: &Tensor) -> Result<(), Refusal> {
    let ok = t.ty.rank() == 0 || t.strides[t.ty.rank() - 1] == 1 || t.ty.last_constant() == Some(1);
    require(ok, "last stride", format!("{:?} of {}", t.strides, t.ty), "1")
}

/// The constant last dim.
///
/// # Errors
/// If it is symbolic or missing.
pub fn last_dim(t: &Tensor) -> Result<u64, Refusal> {
    t.ty.last_constant().map_or_else(|| refuse("last dim", &t.ty, "a constant"), Ok)
}
