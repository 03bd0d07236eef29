//! Mutants that are no worse than the rule they came from, each with its proof. Nothing else may live.

/// Rule, mutant, proof.
pub(super) const EQUIVALENT: &[(&str, &str, &str)] = &[
    (
        "rms_norm_past_reshape",
        "condition 0 `last dim` dropped",
        "rms_norm's w has one number for each element of the last dim on both sides, so the op table refuses another one",
    ),
    (
        "matmul_past_reshape",
        "condition 0 `last dim` dropped",
        "w's depth is the last dim on both sides, so the op table refuses another one",
    ),
    (
        "slice_of_concat",
        "premise `the slice ends inside the part` dropped",
        "the op table refuses a slice that ends past its operand",
    ),
    (
        "slice_of_concat",
        "premise `the slice starts inside the part` dropped",
        "the op table refuses a slice that starts below 0",
    ),
    (
        "rms_norm_from_parts",
        "condition 2 `epsilon` dropped",
        "an unknown number gives no attribute, and the op table refuses a negative one",
    ),
    ("rms_norm_from_parts", "condition 4 `rank` dropped", "the op table refuses a norm's weight of another rank"),
    (
        "rms_norm_weight_first",
        "condition 2 `epsilon` dropped",
        "an unknown number gives no attribute, and the op table refuses a negative one",
    ),
    ("rms_norm_weight_first", "condition 4 `rank` dropped", "the op table refuses a norm's weight of another rank"),
    (
        "rms_norm_between_casts",
        "condition 2 `epsilon` dropped",
        "an unknown number gives no attribute, and the op table refuses a negative one",
    ),
    ("rms_norm_between_casts", "condition 4 `rank` dropped", "the op table refuses a norm's weight of another rank"),
    (
        "rms_norm_between_casts",
        "condition 0 `result dtype` dropped",
        "in f32 it is rms_norm_from_parts between casts that do nothing",
    ),
    (
        "rms_norm_between_casts",
        "condition 0 `result dtype` inverted",
        "in f32 it is rms_norm_from_parts between casts that do nothing",
    ),
    (
        "rms_norm_between_casts",
        "attribute 0 on the left, `f32`, widened",
        "a product's operands have one dtype, so it is f32 all the same",
    ),
    ("add_rms_norm", "condition 0 `same type` dropped", "the op table refuses operands of different types"),
    ("all_reduce_add_rms_norm", "condition 1 `same type` dropped", "the op table refuses operands of different types"),
    (
        "all_reduce_add_rms_norm_half",
        "condition 1 `same type` dropped",
        "the op table refuses operands of different types",
    ),
    ("all_reduce_add_rms_norm_half", "condition 0 `dtype` dropped", "in f32 it is all_reduce_add_rms_norm"),
    ("all_reduce_add_rms_norm_half", "condition 0 `dtype` inverted", "in f32 it is all_reduce_add_rms_norm"),
    ("add_rms_norm", "node 1: operands 0 and 1 swapped", "addition commutes"),
    ("rms_norm_quantise_half", "condition 0 `result dtype` dropped", "in f32 it is rms_norm_quantise"),
    ("rms_norm_quantise_half", "condition 0 `result dtype` inverted", "in f32 it is rms_norm_quantise"),
    ("add_rms_norm_quantise", "condition 0 `same type` dropped", "the op table refuses operands of different types"),
    ("add_rms_norm_quantise", "node 1: operands 0 and 1 swapped", "addition commutes"),
    (
        "add_rms_norm_quantise",
        "occurrence 3 of ?d told apart",
        "scales do not depend on the dtype of the norm beside them",
    ),
    (
        "add_rms_norm_quantise",
        "occurrence 10 of ?f told apart",
        "the norm does not depend on the format of the codes beside it",
    ),
    (
        "add_rms_norm_quantise",
        "occurrence 11 of ?g told apart",
        "the norm does not depend on the groups of the codes beside it",
    ),
<<<<<<< HEAD
=======
    (
        "all_reduce_rms_norm_quantise",
        "occurrence 3 of ?d told apart",
        "scales do not depend on the dtype of the norm beside them",
    ),
    (
        "all_reduce_rms_norm_quantise",
        "occurrence 10 of ?f told apart",
        "the norm does not depend on the format of the codes beside it",
    ),
    (
        "all_reduce_rms_norm_quantise",
        "occurrence 11 of ?g told apart",
        "the norm does not depend on the groups of the codes beside it",
    ),
    (
        "all_reduce_add_rms_norm_quantise",
        "occurrence 3 of ?d told apart",
        "scales do not depend on the dtype of the norm beside them",
    ),
    (
        "all_reduce_add_rms_norm_quantise",
        "occurrence 10 of ?f told apart",
        "the norm does not depend on the format of the codes beside it",
    ),
    (
        "all_reduce_add_rms_norm_quantise",
        "occurrence 11 of ?g told apart",
        "the norm does not depend on the groups of the codes beside it",
    ),
    (
        "all_reduce_add_rms_norm_quantise",
        "condition 1 `same type` dropped",
        "the op table refuses operands of different types",
    ),
    (
        "all_reduce_add_rms_norm_quantise_half",
        "occurrence 3 of ?d told apart",
        "scales do not depend on the dtype of the norm beside them",
    ),
    (
        "all_reduce_add_rms_norm_quantise_half",
        "occurrence 10 of ?f told apart",
        "the norm does not depend on the format of the codes beside it",
    ),
    (
        "all_reduce_add_rms_norm_quantise_half",
        "occurrence 11 of ?g told apart",
        "the norm does not depend on the groups of the codes beside it",
    ),
    (
        "all_reduce_add_rms_norm_quantise_half",
        "condition 1 `same type` dropped",
        "the op table refuses operands of different types",
    ),
    (
        "all_reduce_add_rms_norm_quantise_half",
        "condition 0 `dtype` dropped",
        "in f32 it is all_reduce_add_rms_norm_quantise",
    ),
    (
        "all_reduce_add_rms_norm_quantise_half",
        "condition 0 `dtype` inverted",
        "in f32 it is all_reduce_add_rms_norm_quantise",
    ),
>>>>>>> fp8
    ("silu_mul", "condition 1 `same type` dropped", "the op table refuses a gate and an up of different types"),
    ("silu_mul_half", "condition 1 `same type` dropped", "the op table refuses a gate and an up of different types"),
    ("silu_mul_half", "condition 0 `dtype` dropped", "in f32 it is silu_mul"),
    ("silu_mul_half", "condition 0 `dtype` inverted", "in f32 it is silu_mul"),
    ("matmul_add", "condition 0 `dtype` dropped", "a sum's operands have one dtype, so it is f32 all the same"),
    (
        "matmul_add",
        "attribute 0 on the left, `f32`, widened",
        "a sum's operands have one dtype, so it is f32 all the same",
    ),
    (
        "matmul_add",
        "condition 1 `broadcast` dropped",
        "the op table refuses an addend that does not broadcast into the product",
    ),
    (
        "matmul_add_half",
        "condition 1 `broadcast` dropped",
        "the op table refuses an addend that does not broadcast into the product",
    ),
    ("matmul_add_half", "condition 0 `result dtype` dropped", "in f32 it is matmul_add"),
    ("matmul_add_half", "condition 0 `result dtype` inverted", "in f32 it is matmul_add"),
    ("matmul_silu_mul", "condition 0 `same type` dropped", "the op table refuses weights of different types"),
    ("matmul_silu_mul_half", "condition 1 `same type` dropped", "the op table refuses weights of different types"),
    ("matmul_silu_mul_half", "condition 0 `result dtype` dropped", "in f32 it is matmul_silu_mul"),
    ("matmul_silu_mul_half", "condition 0 `result dtype` inverted", "in f32 it is matmul_silu_mul"),
    (
        "merge_qkv",
        "premise `one bias for each row of the weight` dropped",
        "joined biases that are fewer than the joined rows do not broadcast to them: the op table refuses",
    ),
    (
        "merge_qkv",
        "premise `same weight dtype and depth` dropped",
        "the op table refuses to join weights of different dtype or depth",
    ),
    (
        "merge_qkv",
        "premise `the bias is static` dropped",
        "the same numbers: that the joined bias is computed once is a matter of cost",
    ),
    (
        "merge_qkv",
        "premise `the weight is static` dropped",
        "the same numbers: that the joined weight is computed once is a matter of cost",
    ),
    (
        "merge_gate_up",
        "premise `one bias for each row of the weight` dropped",
        "joined biases that are fewer than the joined rows do not broadcast to them: the op table refuses",
    ),
    (
        "merge_gate_up",
        "premise `same weight dtype and depth` dropped",
        "the op table refuses to join weights of different dtype or depth",
    ),
    (
        "merge_gate_up",
        "premise `the bias is static` dropped",
        "the same numbers: that the joined bias is computed once is a matter of cost",
    ),
    (
        "merge_gate_up",
        "premise `the weight is static` dropped",
        "the same numbers: that the joined weight is computed once is a matter of cost",
    ),
    (
        "merge_scaled_qkv",
        "premise `the weight is static` dropped",
        "the same numbers: that the joined weight is computed once is a matter of cost",
    ),
    (
        "merge_scaled_qkv",
        "premise `its scales are static` dropped",
        "the same numbers: that the joined weight is computed once is a matter of cost",
    ),
    (
        "merge_scaled_gate_up",
        "premise `the weight is static` dropped",
        "the same numbers: that the joined weight is computed once is a matter of cost",
    ),
    (
        "merge_scaled_gate_up",
        "premise `its scales are static` dropped",
        "the same numbers: that the joined weight is computed once is a matter of cost",
    ),
    (
        "int8_activations",
        "condition 0 `activation dtype` dropped",
        "the op table quantises nothing but f32, f16 and bf16",
    ),
    (
        "int8_activations",
        "condition 1 `weight dtype` dropped",
        "the bound holds for any weight: the condition is about what pays",
    ),
    (
        "int8_activations",
        "condition 1 `weight dtype` inverted",
        "the bound holds for any weight: the condition is about what pays",
    ),
    ("int8_activations", "node 1: attribute 1 up", "a cast to f32 moves nothing"),
    ("int8_activations", "node 1: operand 0 put through", "the matmul as it is"),
    ("cast_into_rms_norm", "condition 0 `result dtype` dropped", "the op table refuses other result dtypes"),
    ("cast_into_silu_mul", "condition 0 `result dtype` dropped", "the op table refuses other result dtypes"),
    ("cast_into_matmul", "condition 0 `result dtype` dropped", "the op table refuses other result dtypes"),
    ("cast_into_matmul_add", "condition 0 `result dtype` dropped", "the op table refuses other result dtypes"),
    ("cast_into_matmul_silu_mul", "condition 0 `result dtype` dropped", "the op table refuses other result dtypes"),
    ("cast_into_attention", "condition 0 `result dtype` dropped", "the op table refuses other result dtypes"),
    (
        "scores_of_short_rows",
        "node 1: attribute 6 up",
        "topk looks at the columns up to a row's position, which lies within the columns before",
    ),
    ("scores_of_short_rows", "node 1: attribute 7 down", "a row more is scored, and topk does not look at it"),
    (
        "scores_of_short_rows",
        "node 6: other value 1",
        "a row at position 0 has a window of one, which fits every k, so its scores are not looked at either",
    ),
    (
        "matmul_silu_mul",
        "condition 1 `static` dropped",
        "the same function: the condition keeps weights that the step computes from kernels that read packed ones",
    ),
    (
        "matmul_silu_mul",
        "condition 1 `static` inverted",
        "the same function: the condition keeps weights that the step computes from kernels that read packed ones",
    ),
    (
        "matmul_silu_mul",
        "condition 2 `static` dropped",
        "the same function: the condition keeps weights that the step computes from kernels that read packed ones",
    ),
    (
        "matmul_silu_mul",
        "condition 2 `static` inverted",
        "the same function: the condition keeps weights that the step computes from kernels that read packed ones",
    ),
    (
        "matmul_silu_mul_half",
        "condition 2 `static` dropped",
        "the same function: the condition keeps weights that the step computes from kernels that read packed ones",
    ),
    (
        "matmul_silu_mul_half",
        "condition 2 `static` inverted",
        "the same function: the condition keeps weights that the step computes from kernels that read packed ones",
    ),
    (
        "matmul_silu_mul_half",
        "condition 3 `static` dropped",
        "the same function: the condition keeps weights that the step computes from kernels that read packed ones",
    ),
    (
        "matmul_silu_mul_half",
        "condition 3 `static` inverted",
        "the same function: the condition keeps weights that the step computes from kernels that read packed ones",
    ),
];
