//! Gated activations.

use super::{Rule, rule};

pub(super) fn rules() -> Vec<Rule> {
    vec![
        rule! {
            /// g * sigmoid(g) is silu; moved: the rounding of the sigmoid.
            silu_from_sigmoid [Rounding, silu_mul]: (mul ?g (sigmoid ?g)) => (silu ?g)
        },
        rule! {
            /// g * (sigmoid(g) * u) is silu(g) * u; moved: the rounding of the inner product.
            silu_mul_from_sigmoid [Rounding, silu_mul]:
                (mul ?g (mul (sigmoid ?g) ?u)) => (mul (silu ?g) ?u)
        },
        rule! {
            /// silu and the product that reads it are one pass.
            silu_mul [Bitwise, silu_mul]:
                (mul (silu ?g) ?u) => (silu_mul ?g ?u f32)
                if has_dtype(?g; weldment_ir::DType::F32), same_type(?g, ?u)
        },
        rule! {
            /// silu and the product that reads it are one pass, in 16-bit floats; moved: the rounding of silu.
            silu_mul_half [Rounding, silu_mul]:
                (mul (silu ?g) ?u) => (silu_mul ?g ?u ?d)
                where ?d = dtype_of(?g)
                if half_value(?g), same_type(?g, ?u)
        },
    ]
}
