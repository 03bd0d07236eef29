//! Matmul epilogues.

use super::{Rule, rule};

pub(super) fn rules() -> Vec<Rule> {
    vec![
        rule! {
            /// A bias or residual is added where the matmul's sums end.
            matmul_add [Reassoc, matmul_epilogue]:
                ?y = (add ?p ?r), ?p = (matmul ?x ?w f32) => ?y = (matmul_add ?x ?w ?r f32)
                if has_dtype(?r; weldment_ir::DType::F32), broadcasts_into(?p, ?r)
        },
        rule! {
            /// A bias or residual is added where the matmul's sums end, in 16-bit floats; moved: the rounding of the product.
            matmul_add_half [Rounding, matmul_epilogue]:
                ?y = (add ?p ?r), ?p = (matmul ?x ?w ?d) => ?y = (matmul_add ?x ?w ?r ?d)
                if half(?d), broadcasts_into(?p, ?r)
        },
        rule! {
            /// A gated unit's two matmuls share their operand and end in the gate; their weights are packed together,
            /// ahead of time.
            matmul_silu_mul [Reassoc, merged_gate_up]:
                (silu_mul (matmul ?x ?g f32) (matmul ?x ?u f32) ?d) => (matmul_silu_mul ?x ?g ?u ?d)
                if same_type(?g, ?u), fixed(?g), fixed(?u)
        },
        rule! {
            /// A gated unit's two matmuls share their operand and end in the gate, in 16-bit floats; moved: the
            /// rounding of both products.
            matmul_silu_mul_half [Rounding, merged_gate_up]:
                (silu_mul (matmul ?x ?g ?h) (matmul ?x ?u ?h) ?d) => (matmul_silu_mul ?x ?g ?u ?d)
                if half(?h), same_type(?g, ?u), fixed(?g), fixed(?u)
        },
    ]
}
