//! Attribute values: what an op carries besides operands. In the e-graph each is a leaf child, so a pattern can bind it.

use crate::DType;
use crate::types::{Dim, Shape};
use std::fmt;
use std::sync::Arc;
use weldment_artifact::InputRole;

/// A finite f64 compared and hashed by its bits, so that ops are `Eq` and output is deterministic.
#[derive(Clone, Copy, Debug)]
pub struct Real(pub f64);

impl Real {
    /// Bits with -0 folded onto +0.
    fn key(self) -> u64 {
        if self.0 == 0.0 { 0 } else { self.0.to_bits() }
    }
}

impl PartialEq for Real {
    fn eq(&self, other: &Real) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Real {}
impl std::hash::Hash for Real {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}
impl PartialOrd for Real {
    fn partial_cmp(&self, other: &Real) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Real {
    fn cmp(&self, other: &Real) -> std::cmp::Ordering {
        f64::from_bits(self.key()).total_cmp(&f64::from_bits(other.key()))
    }
}
impl fmt::Display for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// One attribute value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Attr {
    /// Printed `7`.
    Int(i64),
    /// Printed `1e-6`; always with a `.` or an exponent.
    Real(Real),
    /// Printed `true`.
    Flag(bool),
    /// Printed `f32`.
    DType(DType),
    /// Printed `[0, 2, 1]`.
    Ints(Vec<i64>),
    /// Printed `[1.0, 2.5]`.
    Reals(Vec<Real>),
    /// Printed `[T, 64]`.
    Shape(Shape),
    /// Printed `"text"`.
    Text(Arc<str>),
    /// Printed `tokens`.
    Role(InputRole),
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
            f.write_str("[")?;
            for (i, item) in items.iter().enumerate() {
                write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
            }
            f.write_str("]")
        }
        match self {
            Attr::Int(n) => write!(f, "{n}"),
            Attr::Real(r) => write!(f, "{r}"),
            Attr::Flag(b) => write!(f, "{b}"),
            Attr::DType(d) => write!(f, "{d}"),
            Attr::Ints(v) => list(f, v),
            Attr::Reals(v) => list(f, v),
            Attr::Shape(s) => list(f, s),
            Attr::Text(t) => write!(f, "{t:?}"),
            Attr::Role(r) => write!(f, "{r}"),
        }
    }
}

/// What kind of attribute an op's table row declares; the parser is driven by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttrKind {
    /// [`Attr::Int`]
    Int,
    /// [`Attr::Real`]
    Real,
    /// [`Attr::Flag`]
    Flag,
    /// [`Attr::DType`]
    DType,
    /// [`Attr::Ints`]
    Ints,
    /// [`Attr::Reals`]
    Reals,
    /// [`Attr::Shape`]
    Shape,
    /// [`Attr::Text`]
    Text,
    /// [`Attr::Role`]
    Role,
}

/// Rust types that can stand as an attribute field in the op table.
pub trait AttrValue: Sized + Clone {
    /// The kind declared in the table.
    const KIND: AttrKind;
    /// Into the dynamic form.
    fn to_attr(&self) -> Attr;
    /// From the dynamic form; `None` if of another kind.
    fn from_attr(attr: &Attr) -> Option<Self>;
}

macro_rules! attr_value {
    ($($rust:ty => $variant:ident;)*) => {$(
        impl AttrValue for $rust {
            const KIND: AttrKind = AttrKind::$variant;
            fn to_attr(&self) -> Attr { Attr::$variant(self.clone()) }
            fn from_attr(attr: &Attr) -> Option<Self> {
                match attr { Attr::$variant(v) => Some(v.clone()), _ => None }
            }
        }
    )*};
}
attr_value! { i64 => Int; Real => Real; bool => Flag; DType => DType; Vec<i64> => Ints; Vec<Real> => Reals; Vec<Dim> => Shape; Arc<str> => Text; InputRole => Role; }
