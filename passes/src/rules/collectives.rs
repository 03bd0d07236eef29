//! All-reduces: joined with the norm that reads them, and with the residual add between.
//!
//! The fused ops add the ranks' parts in f32 in the order of ranks, then the residual, and round once; the norm reads the rounded sum. They offer
//! that sum beside the norm, so a second reader of it needs no second collective. A reader of the all-reduced value *before* the residual would:
//! extraction prices that, and keeps the ops apart.

use super::{Rule, rule};

pub(super) fn rules() -> Vec<Rule> {
    vec![
        rule! {
            /// A norm of an all-reduced value reads it as it is reduced; the sum stays available.
            all_reduce_rms_norm [Bitwise, allreduce_rms_norm]:
                ?n = (rms_norm ?s ?w ?eps ?dtype), ?s = (all_reduce ?x ?world)
                => ?n = (result0 (all_reduce_rms_norm ?x ?w ?world ?eps ?dtype)),
                   ?s = (result1 (all_reduce_rms_norm ?x ?w ?world ?eps ?dtype))
        },
        rule! {
            /// The residual is added where the sum over ranks ends, and the norm reads the new residual there: all in f32, as it was.
            all_reduce_add_rms_norm [Bitwise, allreduce_rms_norm]:
                ?n = (rms_norm ?a ?w ?eps ?dtype), ?a = (add (all_reduce ?x ?world) ?r)
                => ?n = (result0 (all_reduce_add_rms_norm ?x ?r ?w ?world ?eps ?dtype)),
                   ?a = (result1 (all_reduce_add_rms_norm ?x ?r ?w ?world ?eps ?dtype))
                if has_dtype(?x; weldment_ir::DType::F32), same_type(?x, ?r)
        },
        rule! {
            /// The residual is added where the sum over ranks ends, in 16-bit floats; moved: the rounding of the sum before the
            /// residual (one rounding is left, after it).
            all_reduce_add_rms_norm_half [Rounding, allreduce_rms_norm]:
                ?n = (rms_norm ?a ?w ?eps ?dtype), ?a = (add (all_reduce ?x ?world) ?r)
                => ?n = (result0 (all_reduce_add_rms_norm ?x ?r ?w ?world ?eps ?dtype)),
                   ?a = (result1 (all_reduce_add_rms_norm ?x ?r ?w ?world ?eps ?dtype))
                if half_value(?x), same_type(?x, ?r)
        },
        rule! {
            /// A norm of a widened all-reduced value is the norm of that value: f32 holds it.
            rms_norm_of_widened_all_reduce [Bitwise]:
                (rms_norm (cast (all_reduce ?x ?world) f32) ?w ?eps ?dtype)
                => (rms_norm (all_reduce ?x ?world) ?w ?eps ?dtype)
        },
        rule! {
            /// A quantised norm of an all-reduced value reads it as it is reduced; norm and sum stay available.
            all_reduce_rms_norm_quantise [Bitwise, allreduce_rms_norm]:
                ?c = (result0 (rms_norm_quantise ?a ?w ?eps ?d ?f ?g)), ?k = (result1 (rms_norm_quantise ?a ?w ?eps ?d ?f ?g)),
                ?n = (result2 (rms_norm_quantise ?a ?w ?eps ?d ?f ?g)), ?a = (all_reduce ?x ?world)
                => ?c = (result0 (all_reduce_rms_norm_quantise ?x ?w ?world ?eps ?d ?f ?g)),
                   ?k = (result1 (all_reduce_rms_norm_quantise ?x ?w ?world ?eps ?d ?f ?g)),
                   ?n = (result2 (all_reduce_rms_norm_quantise ?x ?w ?world ?eps ?d ?f ?g)),
                   ?a = (result3 (all_reduce_rms_norm_quantise ?x ?w ?world ?eps ?d ?f ?g))
        },
        rule! {
            /// The residual is added where the sum over ranks ends, and the quantised norm reads the new residual there: all in f32.
            all_reduce_add_rms_norm_quantise [Bitwise, allreduce_rms_norm]:
                ?c = (result0 (rms_norm_quantise ?a ?w ?eps ?d ?f ?g)), ?k = (result1 (rms_norm_quantise ?a ?w ?eps ?d ?f ?g)),
                ?n = (result2 (rms_norm_quantise ?a ?w ?eps ?d ?f ?g)), ?a = (add (all_reduce ?x ?world) ?r)
                => ?c = (result0 (all_reduce_add_rms_norm_quantise ?x ?r ?w ?world ?eps ?d ?f ?g)),
                   ?k = (result1 (all_reduce_add_rms_norm_quantise ?x ?r ?w ?world ?eps ?d ?f ?g)),
                   ?n = (result2 (all_reduce_add_rms_norm_quantise ?x ?r ?w ?world ?eps ?d ?f ?g)),
                   ?a = (result3 (all_reduce_add_rms_norm_quantise ?x ?r ?w ?world ?eps ?d ?f ?g))
                if has_dtype(?x; weldment_ir::DType::F32), same_type(?x, ?r)
        },
        rule! {
            /// As all_reduce_add_rms_norm_quantise, in 16-bit floats; moved: the rounding of the sum before the residual (one rounding is left,
            /// after it).
            all_reduce_add_rms_norm_quantise_half [Rounding, allreduce_rms_norm]:
                ?c = (result0 (rms_norm_quantise ?a ?w ?eps ?d ?f ?g)), ?k = (result1 (rms_norm_quantise ?a ?w ?eps ?d ?f ?g)),
                ?n = (result2 (rms_norm_quantise ?a ?w ?eps ?d ?f ?g)), ?a = (add (all_reduce ?x ?world) ?r)
                => ?c = (result0 (all_reduce_add_rms_norm_quantise ?x ?r ?w ?world ?eps ?d ?f ?g)),
                   ?k = (result1 (all_reduce_add_rms_norm_quantise ?x ?r ?w ?world ?eps ?d ?f ?g)),
                   ?n = (result2 (all_reduce_add_rms_norm_quantise ?x ?r ?w ?world ?eps ?d ?f ?g)),
                   ?a = (result3 (all_reduce_add_rms_norm_quantise ?x ?r ?w ?world ?eps ?d ?f ?g))
                if half_value(?x), same_type(?x, ?r)
        },
        rule! {
            /// A norm of a widened sum of an all-reduced value and a residual is the norm of that sum: f32 holds it.
            rms_norm_of_widened_sum [Bitwise]:
                (rms_norm (cast (add (all_reduce ?x ?world) ?r) f32) ?w ?eps ?dtype)
                => (rms_norm (add (all_reduce ?x ?world) ?r) ?w ?eps ?dtype)
        },
        rule! {
            /// An add_rms_norm that the model wrote as one op holds the sum.
            sum_of_add_rms_norm [Bitwise]: (result1 (add_rms_norm ?x ?r ?w ?eps ?dtype)) => (add ?x ?r)
        },
        rule! {
            /// An add_rms_norm that the model wrote as one op holds the norm of the sum.
            norm_of_add_rms_norm [Bitwise]:
                (result0 (add_rms_norm ?x ?r ?w ?eps ?dtype)) => (rms_norm (add ?x ?r) ?w ?eps ?dtype)
        },
        rule! {
            /// The sum over one rank is what that rank has.
            all_reduce_of_one [Bitwise]: (all_reduce ?x 1) => (?x)
        },
        rule! {
            /// Ranks add element by element: a reshaped sum is the sum of reshaped parts.
            reshape_into_all_reduce [Bitwise]:
                (reshape (all_reduce ?x ?world) ?s) => (all_reduce (reshape ?x ?s) ?world)
        },
        rule! {
            /// Ranks add element by element: the sum of reshaped parts is a reshaped sum.
            all_reduce_past_reshape [Bitwise]:
                (all_reduce (reshape ?x ?s) ?world) => (reshape (all_reduce ?x ?world) ?s)
        },
        rule! {
            /// Ranks add element by element: a transposed sum is the sum of transposed parts.
            transpose_into_all_reduce [Bitwise]:
                (transpose (all_reduce ?x ?world) ?p) => (all_reduce (transpose ?x ?p) ?world)
        },
        rule! {
            /// Ranks add element by element: the sum of transposed parts is a transposed sum.
            all_reduce_past_transpose [Bitwise]:
                (all_reduce (transpose ?x ?p) ?world) => (transpose (all_reduce ?x ?world) ?p)
        },
    ]
}
