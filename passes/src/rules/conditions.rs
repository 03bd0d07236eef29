//! Conditions: monotone facts about types, ranges, values and static-ness. Never about users: extraction prices those.

use super::{Answer, Condition, widens_to_f32};
use crate::egraph::{Data, Net};
use egg::{Id, Var};
use weldment_ir::{Attr, DType, Dim, TensorType};

fn condition(
    predicate: &'static str,
    vars: Vec<Var>,
    check: impl Fn(&Net, &[Id]) -> Answer + Send + Sync + 'static,
) -> Condition {
    Condition { predicate, change: None, vars, check: Box::new(check) }
}

fn answer(holds: bool, found: impl FnOnce() -> String, accepted: &str) -> Answer {
    if holds { Answer::Proven } else { Answer::Unknown { found: found(), accepted: accepted.to_owned() } }
}

fn data(net: &Net, ids: &[Id], i: usize) -> Option<Data> {
    ids.get(i).map(|id| net[*id].data.clone())
}

fn ty(net: &Net, ids: &[Id], i: usize) -> Option<TensorType> {
    data(net, ids, i).and_then(|d| d.ty().cloned())
}

fn attr(net: &Net, ids: &[Id], i: usize) -> Option<Attr> {
    data(net, ids, i).and_then(|d| d.attr().cloned())
}

fn show<T: std::fmt::Display>(x: Option<T>) -> String {
    x.map_or_else(|| "unknown".to_owned(), |x| x.to_string())
}

/// The value depends on weights and constants alone.
pub fn fixed(vars: Vec<Var>) -> Condition {
    condition("static", vars, |net, ids| {
        let known = data(net, ids, 0).is_some_and(|d| d.value().is_some_and(|v| v.fixed));
        answer(known, || "a value computed in the step".into(), "a value of weights and constants alone")
    })
    .advise("make it a weight of the model, or compute it from weights alone")
}

/// Two values have the same type.
pub fn same_type(vars: Vec<Var>) -> Condition {
    condition("same type", vars, |net, ids| {
        let (a, b) = (ty(net, ids, 0), ty(net, ids, 1));
        answer(a.is_some() && a == b, || format!("{} and {}", show(a), show(b)), "equal types")
    })
    .advise("give both one shape and one dtype")
}

/// The value has this dtype.
pub fn has_dtype(vars: Vec<Var>, dtype: DType) -> Condition {
    condition("dtype", vars, move |net, ids| {
        let t = ty(net, ids, 0);
        answer(t.as_ref().is_some_and(|t| t.dtype == dtype), || show(t), dtype.name())
    })
}

/// The value's dtype is f32, f16 or bf16.
pub fn compute_float(vars: Vec<Var>) -> Condition {
    condition("activation dtype", vars, |net, ids| {
        let t = ty(net, ids, 0);
        answer(t.as_ref().is_some_and(|t| t.dtype.is_compute_float()), || show(t), "f32, f16 or bf16")
    })
}

/// The value is stored in a block-quantised format.
pub fn block_format(vars: Vec<Var>) -> Condition {
    condition("weight dtype", vars, |net, ids| {
        let t = ty(net, ids, 0);
        let block = t.as_ref().is_some_and(|t| t.dtype.is_block() && t.dtype != DType::Q8A);
        answer(block, || show(t.map(|t| t.dtype)), "a block-quantised format")
    })
    .advise("quantise the weight to a block format")
}

/// The dtype attribute is a 16-bit float.
pub fn half(vars: Vec<Var>) -> Condition {
    condition("result dtype", vars, |net, ids| {
        let a = attr(net, ids, 0);
        answer(matches!(a, Some(Attr::DType(DType::F16 | DType::BF16))), || show(a), "f16 or bf16")
    })
}

/// The value is a 16-bit float.
pub fn half_value(vars: Vec<Var>) -> Condition {
    condition("dtype", vars, |net, ids| {
        let t = ty(net, ids, 0);
        answer(t.as_ref().is_some_and(|t| matches!(t.dtype, DType::F16 | DType::BF16)), || show(t), "f16 or bf16")
    })
}

/// The dtype attribute is a plain dtype or q8a over whole blocks; `Op::infer` decides, this only excludes non-floats.
pub fn float_result(vars: Vec<Var>) -> Condition {
    condition("result dtype", vars, |net, ids| {
        let a = attr(net, ids, 0);
        let ok = matches!(a, Some(Attr::DType(d)) if d.is_compute_float() || d == DType::Q8A);
        answer(ok, || show(a), "f32, f16, bf16 or q8a")
    })
}

/// The value's dtype is the dtype attribute.
pub fn dtype_is(vars: Vec<Var>) -> Condition {
    condition("dtype", vars, |net, ids| {
        let (t, a) = (ty(net, ids, 0), attr(net, ids, 1));
        let same = matches!((&t, &a), (Some(t), Some(Attr::DType(d))) if t.dtype == *d);
        answer(same, || format!("{} for {}", show(t), show(a)), "the same dtype")
    })
}

/// x: value, d: dtype attribute: a cast of x to d loses nothing.
pub fn widens(vars: Vec<Var>) -> Condition {
    condition("lossless cast", vars, |net, ids| {
        let (t, a) = (ty(net, ids, 0), attr(net, ids, 1));
        let lossless = match (&t, &a) {
            (Some(t), Some(Attr::DType(d))) => t.dtype == *d || (*d == DType::F32 && widens_to_f32(t.dtype)),
            _ => false,
        };
        answer(lossless, || format!("{} to {}", show(t), show(a)), "a widening to f32")
    })
}

/// The value's shape is the shape attribute.
pub fn shape_is(vars: Vec<Var>) -> Condition {
    condition("shape", vars, |net, ids| {
        let (t, a) = (ty(net, ids, 0), attr(net, ids, 1));
        let same = matches!((&t, &a), (Some(t), Some(Attr::Shape(s))) if t.shape == *s);
        answer(same, || format!("{} to {}", show(t), show(a)), "the same shape")
    })
}

/// The permutation attribute is the identity.
pub fn in_order(vars: Vec<Var>) -> Condition {
    condition("permutation", vars, |net, ids| {
        let a = attr(net, ids, 0);
        let identity = matches!(&a, Some(Attr::Ints(p)) if p.iter().copied().eq(0..p.len() as i64));
        answer(identity, || show(a), "the identity")
    })
}

/// x, axis, start, end: the slice takes all of the axis.
pub fn whole_axis(vars: Vec<Var>) -> Condition {
    condition("slice", vars, |net, ids| {
        let t = ty(net, ids, 0);
        let at = |i| match attr(net, ids, i) {
            Some(Attr::Int(n)) => u64::try_from(n).ok(),
            _ => None,
        };
        let size = at(1).and_then(|a| t.as_ref()?.shape.get(usize::try_from(a).ok()?)?.constant());
        let whole = at(2) == Some(0) && size.is_some() && at(3) == size;
        answer(whole, || format!("{:?}..{:?} of {}", at(2), at(3), show(t)), "the whole axis")
    })
}

/// x, axis: the attribute is x's last axis.
pub fn last_axis(vars: Vec<Var>) -> Condition {
    condition("axis", vars, |net, ids| {
        let (t, a) = (ty(net, ids, 0), attr(net, ids, 1));
        let last =
            matches!((&t, &a), (Some(t), Some(Attr::Int(n))) if usize::try_from(*n).is_ok_and(|n| n + 1 == t.rank()));
        answer(last, || format!("{} of {}", show(a), show(t)), "the last axis")
    })
    .advise("work along the last axis, or transpose before")
}

/// x, shape attribute: the last dim stays, so rows are the same rows.
pub fn keeps_last_dim(vars: Vec<Var>) -> Condition {
    condition("last dim", vars, |net, ids| {
        let (t, a) = (ty(net, ids, 0), attr(net, ids, 1));
        let same = matches!((&t, &a), (Some(t), Some(Attr::Shape(s))) if !s.is_empty() && t.shape.last() == s.last());
        answer(same, || format!("{} to {}", show(t), show(a)), "the same last dim")
    })
    .advise("reshape the leading dims alone")
}

/// Every element of the value is this number.
pub fn uniform(vars: Vec<Var>, value: f64) -> Condition {
    condition("value", vars, move |net, ids| {
        let found = data(net, ids, 0).and_then(|d| d.value().and_then(|v| v.uniform));
        answer(found.is_some_and(|r| r.0 == value), || show(found), &value.to_string())
    })
}

/// Every element of the value is one known number >= 0.
pub fn known_nonnegative(vars: Vec<Var>) -> Condition {
    condition("epsilon", vars, |net, ids| {
        let found = data(net, ids, 0).and_then(|d| d.value().and_then(|v| v.uniform));
        answer(found.is_some_and(|r| r.0 >= 0.0), || show(found), "a known number >= 0")
    })
    .advise("make the epsilon a constant of the graph, 0 or more")
}

/// a, b: b broadcasts to a's shape, so that an elementwise op of both has a's type.
pub fn broadcasts_into(vars: Vec<Var>) -> Condition {
    condition("broadcast", vars, |net, ids| {
        let (a, b) = (ty(net, ids, 0), ty(net, ids, 1));
        let fits = matches!((&a, &b), (Some(a), Some(b)) if fits(a, b));
        answer(fits, || format!("{} into {}", show(b), show(a)), "equal dims or 1")
    })
    .advise("give the addend the dims of the product, or dims of 1")
}

fn fits(a: &TensorType, b: &TensorType) -> bool {
    b.rank() <= a.rank() && a.shape.iter().rev().zip(b.shape.iter().rev()).all(|(x, y)| x == y || *y == Dim::Const(1))
}

/// a, b, shape: b without its broadcast to `shape` still gives the elementwise op of a and b the same result shape.
pub fn broadcast_is_implicit(vars: Vec<Var>) -> Condition {
    condition("broadcast", vars, |net, ids| {
        let (a, s) = (ty(net, ids, 0), attr(net, ids, 1));
        let same = matches!((&a, &s), (Some(a), Some(Attr::Shape(s))) if a.shape == *s);
        answer(same, || format!("{} beside {}", show(a), show(s)), "the other operand has the broadcast shape")
    })
}

/// The value has this rank.
pub fn has_rank(vars: Vec<Var>, rank: usize) -> Condition {
    condition("rank", vars, move |net, ids| {
        let t = ty(net, ids, 0);
        answer(t.as_ref().is_some_and(|t| t.rank() == rank), || show(t), &format!("rank {rank}"))
    })
    .advise(format!("reshape it to rank {rank}"))
}

/// scores, k: no window is longer than k, as the scores have at most k columns.
pub fn window_fits(vars: Vec<Var>) -> Condition {
    condition("window", vars, |net, ids| {
        let columns = ty(net, ids, 0).and_then(|t| net.analysis.most(t.shape.last()?));
        let k = attr(net, ids, 1).and_then(|k| if let Attr::Int(k) = k { u64::try_from(k).ok() } else { None });
        let fits = matches!((columns, k), (Some(columns), Some(k)) if columns <= k);
        let accepted = format!("at most {} positions", show(k));
        answer(fits, || format!("up to {} positions", show(columns)), &accepted)
    })
    .advise("bound the context by the top-k's k: --dim context=1..k")
}

/// b, x, shape attribute: b is one number, or one for each element of a row, and x's rows stay rows in the shape.
pub fn row_of_both(vars: Vec<Var>) -> Condition {
    condition("row", vars, |net, ids| {
        let (b, x, s) = (ty(net, ids, 0), ty(net, ids, 1), attr(net, ids, 2));
        let row = match (&b, &x, &s) {
            (Some(b), Some(x), Some(Attr::Shape(s))) => {
                b.rank() == 0 || (b.rank() == 1 && !s.is_empty() && x.shape.last() == s.last())
            }
            _ => false,
        };
        answer(row, || format!("{} beside {} to {}", show(b), show(x), show(s)), "a number or a row, and the same rows")
    })
}
