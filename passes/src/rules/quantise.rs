//! Quantised activations: int8 ones for block-quantised weights, FP8 and MXFP4 codes made by the norm they are of, and casts done by the op
//! that computes the value.

use super::{Rule, rule};

pub(super) fn rules() -> Vec<Rule> {
    vec![
        rule! {
            /// A matmul with a block-quantised weight takes activations quantised in blocks of 32.
            /// Bound: |error| <= sum over blocks b of K of (amax_b / 64000) * sum of |w| in b, for each output element,
            /// with amax_b the largest |x| of the block: rounding of the low plane moves each x by at most half of
            /// d / 254 = amax_b / (127 * 254), and x / d in f32 is off by up to 127 * 2^-23, 0.8 % of that.
            int8_activations [Approx, int8_activations]:
                (matmul ?x ?w ?d) => (matmul (cast ?x q8a) ?w ?d) if compute_float(?x), block_format(?w)
        },
        rule! {
            /// A norm's codes are made where the norm is computed; the norm stays available.
            rms_norm_quantise [Bitwise, norm_quantise]:
                ?c = (result0 (quantise ?n ?f ?g)), ?s = (result1 (quantise ?n ?f ?g)), ?n = (rms_norm ?x ?w ?eps f32)
                => ?c = (result0 (rms_norm_quantise ?x ?w ?eps f32 ?f ?g)),
                   ?s = (result1 (rms_norm_quantise ?x ?w ?eps f32 ?f ?g)),
                   ?n = (result2 (rms_norm_quantise ?x ?w ?eps f32 ?f ?g))
        },
        rule! {
            /// A 16-bit norm's codes are made where the norm is computed; moved: the rounding of the norm before it is quantised (for
            /// other readers it is rounded as it was).
            rms_norm_quantise_half [Rounding, norm_quantise]:
                ?c = (result0 (quantise ?n ?f ?g)), ?s = (result1 (quantise ?n ?f ?g)), ?n = (rms_norm ?x ?w ?eps ?d)
                => ?c = (result0 (rms_norm_quantise ?x ?w ?eps ?d ?f ?g)),
                   ?s = (result1 (rms_norm_quantise ?x ?w ?eps ?d ?f ?g)),
                   ?n = (result2 (rms_norm_quantise ?x ?w ?eps ?d ?f ?g))
                if half(?d)
        },
        rule! {
            /// The residual add, the norm that reads it and the norm's codes are one pass over the row; sum and norm stay available.
            add_rms_norm_quantise [Bitwise, norm_quantise]:
                ?c = (result0 (rms_norm_quantise ?t ?w ?eps ?d ?f ?g)), ?s = (result1 (rms_norm_quantise ?t ?w ?eps ?d ?f ?g)),
                ?n = (result2 (rms_norm_quantise ?t ?w ?eps ?d ?f ?g)), ?t = (add ?x ?r)
                => ?c = (result0 (add_rms_norm_quantise ?x ?r ?w ?eps ?d ?f ?g)),
                   ?s = (result1 (add_rms_norm_quantise ?x ?r ?w ?eps ?d ?f ?g)),
                   ?n = (result2 (add_rms_norm_quantise ?x ?r ?w ?eps ?d ?f ?g)),
                   ?t = (result3 (add_rms_norm_quantise ?x ?r ?w ?eps ?d ?f ?g))
                if same_type(?x, ?r)
        },
        rule! {
            /// A norm rounds once, to the dtype its reader wants.
            cast_into_rms_norm [Bitwise, cast_into_producer]:
                (cast (rms_norm ?x ?w ?eps f32) ?d) => (rms_norm ?x ?w ?eps ?d) if float_result(?d)
        },
        rule! {
            /// A gate rounds once, to the dtype its reader wants.
            cast_into_silu_mul [Bitwise, cast_into_producer]:
                (cast (silu_mul ?g ?u f32) ?d) => (silu_mul ?g ?u ?d) if float_result(?d)
        },
        rule! {
            /// A matmul rounds once, to the dtype its reader wants.
            cast_into_matmul [Bitwise, cast_into_producer]:
                (cast (matmul ?x ?w f32) ?d) => (matmul ?x ?w ?d) if float_result(?d)
        },
        rule! {
            /// A matmul with an epilogue rounds once, to the dtype its reader wants.
            cast_into_matmul_add [Bitwise, cast_into_producer]:
                (cast (matmul_add ?x ?w ?r f32) ?d) => (matmul_add ?x ?w ?r ?d) if float_result(?d)
        },
        rule! {
            /// A gated matmul rounds once, to the dtype its reader wants.
            cast_into_matmul_silu_mul [Bitwise, cast_into_producer]:
                (cast (matmul_silu_mul ?x ?g ?u f32) ?d) => (matmul_silu_mul ?x ?g ?u ?d) if float_result(?d)
        },
        rule! {
            /// Attention rounds once, to the dtype its reader wants.
            cast_into_attention [Bitwise, cast_into_producer]:
                (cast (attention ?q ?k ?v ?positions ?ids ?blocks ?scale f32 ?window) ?d)
                => (attention ?q ?k ?v ?positions ?ids ?blocks ?scale ?d ?window) if float_result(?d)
        },
    ]
}
