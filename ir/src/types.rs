//! Dims and tensor types.

use crate::DType;
use std::fmt;
use std::sync::Arc;

/// A tensor dim: a constant or a symbol whose range the graph declares.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dim {
    /// A known size.
    Const(u64),
    /// A symbol such as `T`, by name.
    Sym(Arc<str>),
}

impl Dim {
    /// A symbolic dim.
    pub fn sym(name: &str) -> Dim {
        Dim::Sym(name.into())
    }

    /// The size, if constant.
    pub fn constant(&self) -> Option<u64> {
        match self {
            Dim::Const(n) => Some(*n),
            Dim::Sym(_) => None,
        }
    }

    /// The symbol's name, if it is one.
    pub fn symbol(&self) -> Option<&str> {
        match self {
            Dim::Const(_) => None,
            Dim::Sym(name) => Some(name),
        }
    }
}

impl From<u64> for Dim {
    fn from(n: u64) -> Dim {
        Dim::Const(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Const(n) => write!(f, "{n}"),
            Dim::Sym(s) => f.write_str(s),
        }
    }
}

/// A tensor's shape, outermost dim first.
pub type Shape = Vec<Dim>;

/// The most dims that the verifier and the parser accept: no model comes near, and it keeps hostile text from growing types.
pub const MAX_RANK: usize = 8;

/// dtype and shape of one value. Displayed as `f32[T, 576]`; rank 0 as `f32[]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Dims, outermost first.
    pub shape: Shape,
}

impl TensorType {
    /// A type from parts.
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> TensorType {
        TensorType { dtype, shape: shape.into() }
    }

    /// A rank-0 type.
    pub fn scalar(dtype: DType) -> TensorType {
        TensorType { dtype, shape: Vec::new() }
    }

    /// A type whose dims are all constant.
    pub fn fixed(dtype: DType, shape: &[u64]) -> TensorType {
        TensorType { dtype, shape: shape.iter().map(|n| Dim::Const(*n)).collect() }
    }

    /// Number of dims.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The dims, if all are constant.
    pub fn constant_shape(&self) -> Option<Vec<u64>> {
        self.shape.iter().map(Dim::constant).collect()
    }

    /// The last dim, if constant.
    pub fn last_constant(&self) -> Option<u64> {
        self.shape.last().and_then(Dim::constant)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, dim) in self.shape.iter().enumerate() {
            write!(f, "{}{dim}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}
