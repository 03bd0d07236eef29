//! Attributes of a right side that are computed from the left.

use crate::egraph::Net;
use egg::Id;
use weldment_ir::{Attr, Dim, Shape};

fn attr(net: &Net, ids: &[Id], i: usize) -> Option<Attr> {
    ids.get(i).and_then(|id| net[*id].data.attr().cloned())
}

fn int(net: &Net, ids: &[Id], i: usize) -> Option<i64> {
    match attr(net, ids, i)? {
        Attr::Int(n) => Some(n),
        _ => None,
    }
}

fn shape_of(net: &Net, ids: &[Id], i: usize) -> Option<Shape> {
    net[*ids.get(i)?].data.ty().map(|t| t.shape.clone())
}

/// inner, outer: the permutation of transposing by `inner`, then by `outer`.
pub fn compose(net: &Net, ids: &[Id]) -> Option<Attr> {
    let (Attr::Ints(inner), Attr::Ints(outer)) = (attr(net, ids, 0)?, attr(net, ids, 1)?) else { return None };
    let picked: Option<Vec<i64>> =
        outer.iter().map(|i| usize::try_from(*i).ok().and_then(|i| inner.get(i).copied())).collect();
    picked.map(Attr::Ints)
}

/// The one number that every element of the value is.
pub fn uniform_value(net: &Net, ids: &[Id]) -> Option<Attr> {
    net[*ids.first()?].data.value()?.uniform.map(Attr::Real)
}

/// The dtype of a value.
pub fn dtype_of(net: &Net, ids: &[Id]) -> Option<Attr> {
    net[*ids.first()?].data.ty().map(|t| Attr::DType(t.dtype))
}

/// w [N, K], shape [.., K]: the shape with K replaced by N.
pub fn rows_of(net: &Net, ids: &[Id]) -> Option<Attr> {
    let w = shape_of(net, ids, 0)?;
    let Attr::Shape(mut s) = attr(net, ids, 1)? else { return None };
    *s.last_mut()? = w.first()?.clone();
    Some(Attr::Shape(s))
}

/// positions [T], k: the shape [T, k].
pub fn index_rows(net: &Net, ids: &[Id]) -> Option<Attr> {
    let (tokens, k) = (shape_of(net, ids, 0)?.first()?.clone(), int(net, ids, 1)?);
    Some(Attr::Shape(vec![tokens, Dim::Const(u64::try_from(k).ok()?)]))
}
