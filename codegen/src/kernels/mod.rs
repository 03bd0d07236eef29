//! Kernel families: one file or folder each, behind [`crate::family::Family`].

pub mod attention;
pub mod collective;
pub mod gather;
pub mod general;
pub mod index_scores;
pub mod library;
pub mod matmul;
mod minifloat;
pub mod norm;
mod paged;
pub mod pointwise;
pub mod quantise;
pub mod reduce;
pub mod rope;
mod row;
pub mod scaled_matmul;
mod schedule;
pub mod topk;
mod weights;

use crate::family::Family;
use std::sync::LazyLock;
use weldment_ir::OpKind;

/// Every family; the first that runs an op is its own. What they refuse goes to [`general`].
pub static FAMILIES: &[&dyn Family] = &[
    &matmul::Matmul,
    &scaled_matmul::ScaledMatmul,
    &quantise::Quantise,
    &norm::Norm,
    &rope::Rope,
    &attention::Attention,
    &attention::sparse::SparseAttention,
    &index_scores::IndexScores,
    &topk::Topk,
    &gather::Gather,
    &reduce::Reduce,
    &collective::all_reduce::AllReduce,
    &collective::all_gather::AllGather,
    &collective::reduce_scatter::ReduceScatter,
    &pointwise::Pointwise,
];

/// The family of an op; `None` for leaves, which need no kernel.
pub fn family(kind: OpKind) -> Option<&'static dyn Family> {
    static TABLE: LazyLock<Vec<Option<&'static dyn Family>>> = LazyLock::new(|| {
        OpKind::ALL.iter().map(|kind| FAMILIES.iter().find(|family| family.runs(*kind)).copied()).collect()
    });
    TABLE[kind as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choices::Choices;
    use crate::request::{Request, Tensor};
    use crate::setup::{Setup, Symbols};
    use crate::target::Target;
    use weldment_ir::{Category, DType, Op, TensorType};

    #[test]
    fn every_op_that_computes_has_one_family() {
        for kind in OpKind::ALL {
            let runs = FAMILIES.iter().filter(|family| family.runs(*kind)).count();
            // A shard is taken of static values, before any step.
            let none = kind.info().category == Category::Leaf || *kind == OpKind::Shard;
            assert_eq!(runs, usize::from(!none), "{kind}");
        }
    }

    #[test]
    fn every_way_to_run_a_product_can_be_built() {
        let target = Target::named("gfx942").expect("a target");
        let setup =
            Setup { target, choices: Choices::default(), places: Default::default(), symbols: Symbols::default() };
        let tensor =
            |shape: &[u64]| Tensor { is_static: true, ..Tensor::contiguous(&TensorType::fixed(DType::BF16, shape)) };
        let op = Op::Matmul { dtype: DType::BF16 };
        let x = Tensor { is_static: false, ..tensor(&[40, 256]) };
        let (operands, results) = (
            vec![x.clone(), tensor(&[512, 256])],
            vec![Tensor::contiguous(&TensorType::fixed(DType::BF16, &[40, 512]))],
        );
        let request =
            Request { op: &op, operands, results, max_tokens: 40, setup: &setup, choices: Choices::default() };
        let family = family(OpKind::Matmul).expect("a family");
        let ways = family.configs(&request);
        assert!(ways.len() > 5 && ways[0] == Choices::default(), "{}", ways.len());
        let summaries: Vec<String> = ways
            .iter()
            .map(|choices| {
                family.build(&Request { choices: *choices, ..request.clone() }).expect("a kernel").kernel.to_string()
            })
            .collect();
        assert!(summaries.iter().any(|other| *other != summaries[0]), "choices that change nothing");
        // What a user fixed stays.
        let fixed = Choices { gemm_tile_rows: Some(32), ..Choices::default() };
        let ways = family.configs(&Request { choices: fixed, ..request });
        assert!(ways.iter().all(|way| way.gemm_tile_rows == Some(32)));
    }

    #[test]
    fn choices_of_kernels_are_those_that_families_heed() {
        let mut heeded: Vec<&str> = FAMILIES.iter().flat_map(|family| family.heeds()).copied().collect();
        heeded.sort_unstable();
        heeded.dedup();
        let mut known = Choices::OF_KERNELS.to_vec();
        known.sort_unstable();
        assert_eq!(heeded, known);
    }
}
