//! Where kernels change with the number of tokens: an entry's range is split there.

use crate::target::Target;
use weldment_ir::{Category, Dim, Op, TensorType};
use weldment_passes::specialise::Threshold;

/// One token, for which hosts have kernels of their own (gemv, attention by lanes).
const HOST: &[u64] = &[1];

/// Tiles and splits are chosen by the most tokens of a variant; grids cover them too, so the range bounds the programs that
/// find nothing to do.
const GPU: &[u64] = &[1, 16, 32, 64, 256];

/// Thresholds of the kernels of `op`, or those that the user fixed.
pub fn of(target: &Target, op: &Op, operands: &[TensorType], results: &[TensorType]) -> Vec<Threshold> {
    let category = op.kind().info().category;
    let tokens = |d: &Dim| matches!(d, Dim::Sym(s) if matches!(&**s, "T" | "R"));
    let ragged = operands.iter().chain(results).any(|t| t.shape.iter().any(tokens));
    let cuts = match (target, category, target.choices().token_splits) {
        (_, Category::Leaf | Category::View, _) | (_, _, Some(0)) => &[],
        (_, _, Some(1)) => HOST,
        (_, _, Some(_)) => GPU,
        (Target::Host(_), Category::Contraction, None) => HOST,
        (Target::Host(_), _, None) => &[],
        (Target::Gpu(_), _, None) => GPU,
    };
    let cuts = cuts.iter().filter(|_| ragged);
    cuts.map(|at| Threshold { symbol: "T".into(), at: *at, why: format!("{} kernels", op.kind()) }).collect()
}
