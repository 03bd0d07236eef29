//! GGML tensor type ids: those with a [`DType`], and the names of the others so that a refusal can say what was found.

use weldment_ir::DType;

/// The dtype of a GGML type id, if supported.
pub(super) fn dtype_of(id: u32) -> Option<DType> {
    Some(match id {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        6 => DType::Q5_0,
        7 => DType::Q5_1,
        8 => DType::Q8_0,
        12 => DType::Q4K,
        13 => DType::Q5K,
        14 => DType::Q6K,
        24 => DType::I8,
        26 => DType::I32,
        27 => DType::I64,
        30 => DType::BF16,
        39 => DType::MxFp4,
        _ => return None,
    })
}

/// GGML's name of a type id that [`dtype_of`] does not know.
pub(super) fn name_of(id: u32) -> &'static str {
    match id {
        4 => "Q4_2 (removed from GGML)",
        5 => "Q4_3 (removed from GGML)",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        25 => "I16",
        28 => "F64",
        29 => "IQ1_M",
        31..=33 => "Q4_0 repacked (removed from GGML)",
        34 => "TQ1_0",
        35 => "TQ2_0",
        36..=38 => "IQ4_NL repacked (removed from GGML)",
        40 => "NVFP4",
        _ => "unknown to GGML",
    }
}

/// The accepted names, for error messages.
pub(super) const ACCEPTED: &str =
    "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, MXFP4, I8, I32 and I64 are accepted";
