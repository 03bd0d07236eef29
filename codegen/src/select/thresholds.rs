//! Where kernels change with the number of tokens: an entry's range is split there.

use crate::kernels::collective::all_reduce::form::{check_two, fixed, one_stage_bytes};
use crate::kernels::collective::world_of;
use crate::request::RowSpace;
use crate::setup::Setup;
use crate::target::Target;
use weldment_ir::{Category, Dim, Op, OpKind, TensorType};
use weldment_passes::specialise::Threshold;

/// One token, for which hosts have kernels of their own (gemv, attention by lanes).
const HOST: &[u64] = &[1];

/// Tiles and splits are chosen by the most tokens of a variant; grids cover them too, so the range bounds the programs that
/// find nothing to do.
const GPU: &[u64] = &[1, 16, 32, 64, 256];

/// Thresholds of the kernels of `op`, or those that the user fixed.
pub fn of(setup: &Setup, op: &Op, operands: &[TensorType], results: &[TensorType]) -> Vec<Threshold> {
    let category = op.kind().info().category;
    let tokens = |d: &Dim| setup.symbols.is_bounded(d.symbol());
    let ragged = operands.iter().chain(results).any(|t| t.shape.iter().any(tokens));
    let cuts = match (&setup.target, category, setup.choices.token_splits) {
        (_, Category::Leaf | Category::View, _) | (_, _, Some(0)) => &[],
        (_, _, Some(1)) => HOST,
        (_, _, Some(_)) => GPU,
        (Target::Host(_), Category::Contraction, None) => HOST,
        (Target::Host(_), _, None) => &[],
        (Target::Gpu(_), _, None) => GPU,
    };
    let cuts = cuts.iter().filter(|_| ragged);
    let Some(rows) = setup.symbols.rows() else { return Vec::new() };
    let threshold = |at: u64, why: String| Threshold { symbol: rows.into(), at, why };
    let mut out: Vec<Threshold> = cuts.map(|at| threshold(*at, format!("{} kernels", op.kind()))).collect();
    if let Some(at) = stages(setup, op, operands).filter(|_| setup.choices.token_splits != Some(0)) {
        out.push(threshold(at, format!("{}: one stage up to here", op.kind())));
    }
    out
}

/// Most tokens that an all-reduce exchanges in one stage, if there are more of which it does not.
fn stages(setup: &Setup, op: &Op, operands: &[TensorType]) -> Option<u64> {
    if matches!(op.kind(), OpKind::AllGather | OpKind::ReduceScatter | OpKind::GatherPart) {
        return None;
    }
    let x = operands.first()?;
    let world = u32::try_from(world_of(op)?).ok()?;
    let hidden = x.last_constant()?;
    let rows = RowSpace::of(x.shape.get(..x.rank().checked_sub(1)?)?)
        .ok()
        .filter(|r| setup.symbols.is_rows(r.symbol.as_deref()))?;
    let row = hidden.checked_mul(x.dtype.block_bytes() as u64)?.checked_mul(rows.mul)?;
    let limit = one_stage_bytes(&setup.target, world);
    let both = fixed(&setup.choices).is_none() && limit < u64::MAX && check_two(hidden, world).is_ok();
    both.then_some(limit / row.max(1)).filter(|at| *at > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choices::{Choices, Places};
    use crate::setup::Symbols;
    use weldment_ir::{DType, Real};

    #[test]
    fn variants_part_where_two_stages_begin() {
        let ty = |dims: Vec<Dim>| TensorType::new(DType::BF16, dims);
        let x = ty(vec![Dim::sym("T"), Dim::Const(7168)]);
        let of = |name: &str, world: i64, choice: Option<&str>| {
            let (target, symbols) = (Target::named(name).unwrap(), Symbols::plain(&["T"]));
            let mut setup = Setup { target, choices: Choices::default(), places: Places::default(), symbols };
            choice.into_iter().for_each(|c| setup.choices.set("all_reduce", c).unwrap());
            let op = Op::AllReduceAddRmsNorm { world, eps: Real(1e-6), dtype: DType::BF16 };
            let operands = [x.clone(), x.clone(), ty(vec![Dim::Const(7168)])];
            let all = super::of(&setup, &op, &operands, &[x.clone(), x.clone()]);
            all.into_iter().filter(|t| t.why.contains("one stage")).map(|t| t.at).collect::<Vec<_>>()
        };
        // 256 KiB for up to four ranks, 128 KiB for up to eight: 16 tokens of 14,336 bytes are 224 KiB.
        assert_eq!(of("gfx942", 4, None), [18]);
        assert_eq!(of("gfx942", 8, None), [9]);
        assert_eq!(of("sm_90a", 4, None), [6]);
        // A row of eight ranks is above the limit already: two stages from the first token on.
        assert!(of("sm_90a", 8, None).is_empty() && of("gfx942", 2, None).is_empty());
        // 7168 in packs of 8 cannot be shared out among six.
        assert!(of("gfx942", 6, None).is_empty());
        assert!(of("gfx942", 4, Some("1")).is_empty());
    }
}
