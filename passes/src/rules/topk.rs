//! Sparse attention whose window fits its top-k: the selection is the window, and the scores that fed it die. The attention
//! kernel, its splits and the indexer's key write stay (later steps need the keys), so results are the same bits.

use super::{Rule, rule};
use crate::specialise::Threshold;
use weldment_ir::{Dim, Op, TensorType};

pub(super) fn rules() -> Vec<Rule> {
    vec![
        rule! {
            /// Where every window holds at most k positions, the k best are the window.
            topk_of_short_windows [Bitwise, topk_window]:
                (topk ?scores ?positions ?k) => (window ?positions ?k) if window_fits(?scores, ?k)
        },
        rule! {
            /// Sparse attention passes over positions beyond its token's, so a token's window may be given as all positions:
            /// a constant.
            window_of_sparse_attention [Bitwise, topk_window]:
                (sparse_attention ?q ?keys ?values (window ?positions ?k) ?positions ?ids ?blocks ?scale ?dtype)
                => (sparse_attention ?q ?keys ?values (broadcast (iota ?k) ?shape) ?positions ?ids ?blocks ?scale ?dtype)
                where ?shape = index_rows(?positions, ?k)
        },
        rule! {
            /// topk does not look at the scores of a row whose window fits, so they need not be computed.
            scores_of_short_rows [Bitwise, topk_rows]:
                (topk (index_scores ?q ?weights ?keys ?positions ?ids ?blocks ?columns 0) ?positions ?k)
                => (topk (index_scores ?q ?weights ?keys ?positions ?ids ?blocks ?columns ?k) ?positions ?k)
        },
        rule! {
            /// Sparse attention over whole windows is dense attention; its sums run in the dense kernel's order.
            dense_attention_of_short_windows [Reassoc, dense_window]:
                (sparse_attention ?q ?keys ?values (topk ?scores ?positions ?k) ?positions ?ids ?blocks ?scale ?dtype)
                => (attention ?q ?keys ?values ?positions ?ids ?blocks ?scale ?dtype 0) if window_fits(?scores, ?k)
        },
    ]
}

/// A top-k over symbolic columns changes where they come to exceed k.
pub(super) fn thresholds(op: &Op, operands: &[TensorType]) -> Vec<Threshold> {
    let (Op::Topk { k }, Some(scores)) = (op, operands.first()) else { return Vec::new() };
    match (scores.shape.last(), u64::try_from(*k)) {
        (Some(Dim::Sym(symbol)), Ok(at)) => {
            vec![Threshold { symbol: symbol.clone(), at, why: format!("topk selects {k}") }]
        }
        _ => Vec::new(),
    }
}
