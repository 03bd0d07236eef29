//! Element types: plain scalars and the block-quantised formats of GGUF and OCP MX.

use crate::error::{SizeError, UnknownDType};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! dtypes {
    ($($(#[doc = $doc:literal])+ $variant:ident $name:literal $block:literal $bytes:literal;)*) => {
        /// The type of a tensor's elements.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum DType { $($(#[doc = $doc])+ #[serde(rename = $name)] $variant,)* }

        impl DType {
            /// Every dtype, in declaration order.
            pub const ALL: &'static [DType] = &[$(DType::$variant,)*];

            /// The name in manifests, text IR and on the command line.
            pub const fn name(self) -> &'static str { match self { $(DType::$variant => $name,)* } }

            /// Elements per block: 1 for plain scalars.
            pub const fn block_elements(self) -> usize { match self { $(DType::$variant => $block,)* } }

            /// Bytes per block of `block_elements` elements.
            pub const fn block_bytes(self) -> usize { match self { $(DType::$variant => $bytes,)* } }
        }
    };
}

dtypes! {
    /// IEEE binary32.
    F32 "f32" 1 4;
    /// IEEE binary16.
    F16 "f16" 1 2;
    /// bfloat16.
    BF16 "bf16" 1 2;
    /// OCP FP8 E4M3 (finite + NaN, max 448).
    F8E4M3 "f8e4m3" 1 1;
    /// FP8 E4M3 FNUZ of gfx942 (no negative zero, max 240).
    F8E4M3Fnuz "f8e4m3fnuz" 1 1;
    /// OCP FP8 E5M2 (IEEE-like, max 57344).
    F8E5M2 "f8e5m2" 1 1;
    /// FP8 E5M2 FNUZ of gfx942.
    F8E5M2Fnuz "f8e5m2fnuz" 1 1;
    /// OCP MX scale: a power of two, 2^(x-127), 255 is NaN.
    F8E8M0 "f8e8m0" 1 1;
    /// OCP FP4 E2M1, stored two to a byte, low nibble first.
    F4E2M1 "f4e2m1" 2 1;
    /// Signed 8-bit integer.
    I8 "i8" 1 1;
    /// Unsigned 8-bit integer.
    U8 "u8" 1 1;
    /// Signed 32-bit integer.
    I32 "i32" 1 4;
    /// Unsigned 32-bit integer.
    U32 "u32" 1 4;
    /// Signed 64-bit integer.
    I64 "i64" 1 8;
    /// Boolean, one byte, 0 or 1.
    Bool "bool" 1 1;
    /// Quantised activations, 72 bytes a block: a high and a low plane of 32 x i8, f32 scale d = amax/127, f32 sum of
    /// the values; value (high + low / 254) * d. Made by `cast`.
    Q8A "q8a" 32 72;
    /// GGUF Q8_0: f16 scale, 32 x i8.
    Q8_0 "q8_0" 32 34;
    /// GGUF Q4_0: f16 scale, 32 x 4 bit, value (q - 8) * d.
    Q4_0 "q4_0" 32 18;
    /// GGUF Q4_1: f16 scale and minimum, 32 x 4 bit, value q * d + m.
    Q4_1 "q4_1" 32 20;
    /// GGUF Q5_0: f16 scale, 32 x 5 bit, value (q - 16) * d.
    Q5_0 "q5_0" 32 22;
    /// GGUF Q5_1: f16 scale and minimum, 32 x 5 bit, value q * d + m.
    Q5_1 "q5_1" 32 24;
    /// GGUF Q4_K: 256 elements in 8 groups of 32 with 6-bit scales and minima.
    Q4K "q4_k" 256 144;
    /// GGUF Q5_K: 256 elements in 8 groups of 32 with 6-bit scales and minima.
    Q5K "q5_k" 256 176;
    /// GGUF Q6_K: 256 elements in 16 groups of 16 with 8-bit scales.
    Q6K "q6_k" 256 210;
    /// OCP MXFP4 as GGUF stores it: one E8M0 scale byte, 32 x E2M1.
    MxFp4 "mxfp4" 32 17;
}

impl DType {
    /// True for formats that store elements in blocks with shared scales.
    pub const fn is_block(self) -> bool {
        self.block_elements() > 2
    }

    /// True for real-valued types, block formats included.
    pub const fn is_float(self) -> bool {
        !matches!(self, DType::I8 | DType::U8 | DType::I32 | DType::U32 | DType::I64 | DType::Bool)
    }

    /// True for integers (bool excluded).
    pub const fn is_integer(self) -> bool {
        matches!(self, DType::I8 | DType::U8 | DType::I32 | DType::U32 | DType::I64)
    }

    /// True for floats that arithmetic ops take and give: f32, f16, bf16.
    pub const fn is_compute_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }

    /// True for types that callers see; quantised activations stay inside, or are constants at most.
    pub const fn is_external(self) -> bool {
        !matches!(self, DType::Q8A)
    }

    /// Bytes of a tensor of this dtype with the constant `shape`: the one checked size function of the project.
    ///
    /// # Errors
    /// If the product overflows or the last dim is not a whole number of blocks.
    pub fn byte_size(self, shape: &[u64]) -> Result<u64, SizeError> {
        let block = self.block_elements() as u64;
        let overflow = || SizeError::Overflow { dtype: self, shape: shape.to_vec() };
        let last = shape.last().copied().unwrap_or(1);
        if block > 1 && !last.is_multiple_of(block) {
            return Err(SizeError::PartialBlock { dtype: self, last });
        }
        let outer = shape.iter().rev().skip(1).try_fold(1u64, |n, d| n.checked_mul(*d)).ok_or_else(overflow)?;
        let row = (last / block).checked_mul(self.block_bytes() as u64).ok_or_else(overflow)?;
        outer.checked_mul(row).filter(|n| *n <= i64::MAX as u64).ok_or_else(overflow)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = UnknownDType;

    fn from_str(text: &str) -> Result<Self, UnknownDType> {
        DType::ALL.iter().copied().find(|d| d.name() == text).ok_or_else(|| UnknownDType(text.to_owned()))
    }
}
