//! RMS norms: recognised from their parts, joined with the residual add that feeds them.
//!
//! Gemma's form, norm times (1 + w), needs no rule of its own: `(add w 1)` is a static value and stands as the weight.

use super::{Rule, rule};

pub(super) fn rules() -> Vec<Rule> {
    vec![
        rule! {
            /// x * rsqrt(mean(x * x) + eps) * w over the last dim is a norm.
            rms_norm_from_parts [Reassoc, rms_norm]:
                (mul (mul ?x (rsqrt (add (reduce_mean (mul ?x ?x) ?axis) ?e))) ?w) => (rms_norm ?x ?w ?eps f32)
                where ?eps = uniform_value(?e)
                if has_dtype(?x; weldment_ir::DType::F32), last_axis(?x, ?axis), known_nonnegative(?e),
                    broadcasts_into(?x, ?e), has_rank(?w; 1)
        },
        rule! {
            /// x * w * rsqrt(mean(x * x) + eps) over the last dim is a norm: products associate up to rounding.
            rms_norm_weight_first [Reassoc, rms_norm]:
                (mul (mul ?x ?w) (rsqrt (add (reduce_mean (mul ?x ?x) ?axis) ?e))) => (rms_norm ?x ?w ?eps f32)
                where ?eps = uniform_value(?e)
                if has_dtype(?x; weldment_ir::DType::F32), last_axis(?x, ?axis), known_nonnegative(?e),
                    broadcasts_into(?x, ?e), has_rank(?w; 1)
        },
        rule! {
            /// A norm computed in f32 and cast to 16 bits before its weight is a norm; moved: the rounding between the
            /// normed row and the weight (one rounding is left, at the end).
            rms_norm_between_casts [Rounding, rms_norm]:
                (mul (cast (mul (cast ?x f32) (rsqrt (add (reduce_mean (mul (cast ?x f32) (cast ?x f32)) ?axis) ?e))) ?d) ?w)
                => (rms_norm ?x ?w ?eps ?d)
                where ?eps = uniform_value(?e)
                if half(?d), last_axis(?x, ?axis), known_nonnegative(?e),
                    broadcasts_into(?x, ?e), has_rank(?w; 1)
        },
        rule! {
            /// The residual add and the norm that reads it are one pass over the row; the sum stays available.
            add_rms_norm [Bitwise, add_rms_norm]:
                ?n = (rms_norm ?s ?w ?eps ?dtype), ?s = (add ?x ?r)
                => ?n = (result0 (add_rms_norm ?x ?r ?w ?eps ?dtype)), ?s = (result1 (add_rms_norm ?x ?r ?w ?eps ?dtype))
                if same_type(?x, ?r)
        },
    ]
}
