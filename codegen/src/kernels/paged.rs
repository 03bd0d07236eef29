//! Ids of block tables. The runtime refuses tables with wrong ids; a kernel nevertheless reads and writes no block that a cache
//! does not have, since an engine may keep its tables where no host looks at them.

use crate::request::Tensor;
use crate::tile::{Binary, Builder, Compare, Conversion, Elem, V};
use weldment_ir::Dim;

/// Blocks of a cache, i32.
fn blocks(b: &mut Builder, cache: &Tensor) -> V {
    match &cache.ty.shape[0] {
        Dim::Const(n) => b.int_of(Elem::I32, &[], i64::try_from(*n).unwrap_or(i64::MAX)),
        Dim::Sym(s) => {
            let n = b.dim(s);
            b.convert(Conversion::Signed, n, Elem::I32)
        }
    }
}

/// i64: the i32 `ids` as read of a table, each the nearest that `cache` has.
pub fn readable(b: &mut Builder, ids: V, cache: &Tensor) -> V {
    let (count, one, zero) = (blocks(b, cache), b.int_of(Elem::I32, &[], 1), b.int_of(Elem::I32, &[], 0));
    let last = b.sub(count, one);
    let ids = b.min(ids, last);
    let ids = b.max(ids, zero);
    b.convert(Conversion::Signed, ids, Elem::I64)
}

/// i1: does `cache` have the block of the i32 `id`?
pub fn exists(b: &mut Builder, id: V, cache: &Tensor) -> V {
    let (count, none) = (blocks(b, cache), b.int_of(Elem::I32, &[], -1));
    let named = b.compare(Compare::Less, none, id);
    let there = b.compare(Compare::Less, id, count);
    b.binary(Binary::And, named, there)
}
