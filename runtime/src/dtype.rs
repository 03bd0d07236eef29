//! Element types as the artifact names them. The names equal those of `weldment-ir`; the runtime keeps its own table because it
//! depends on no compiler crate (a test of the workspace compares the two).

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! dtypes {
    ($($variant:ident $name:literal $block:literal $bytes:literal;)*) => {
        /// The type of a tensor's elements.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[allow(missing_docs, reason = "the names are the dtypes' own; weldment-ir documents each")]
        pub enum DType { $(#[serde(rename = $name)] $variant,)* }

        impl DType {
            /// Every dtype, in declaration order.
            pub const ALL: &'static [DType] = &[$(DType::$variant,)*];

            /// The name in manifests, text IR and on the command line.
            pub const fn name(self) -> &'static str { match self { $(DType::$variant => $name,)* } }

            /// Elements per block: 1 for plain scalars.
            pub const fn block_elements(self) -> usize { match self { $(DType::$variant => $block,)* } }

            /// Bytes per block of `block_elements` elements.
            pub const fn block_bytes(self) -> usize { match self { $(DType::$variant => $bytes,)* } }

            /// The dtype called `name`, if there is one.
            pub fn from_name(name: &str) -> Option<DType> { match name { $($name => Some(DType::$variant),)* _ => None } }
        }
    };
}

dtypes! {
    F32 "f32" 1 4;
    F16 "f16" 1 2;
    BF16 "bf16" 1 2;
    F8E4M3 "f8e4m3" 1 1;
    F8E4M3Fnuz "f8e4m3fnuz" 1 1;
    F8E5M2 "f8e5m2" 1 1;
    F8E5M2Fnuz "f8e5m2fnuz" 1 1;
    F8E8M0 "f8e8m0" 1 1;
    F4E2M1 "f4e2m1" 2 1;
    I8 "i8" 1 1;
    U8 "u8" 1 1;
    I32 "i32" 1 4;
    U32 "u32" 1 4;
    I64 "i64" 1 8;
    Bool "bool" 1 1;
    Q8_0 "q8_0" 32 34;
    Q4_0 "q4_0" 32 18;
    Q4_1 "q4_1" 32 20;
    Q5_0 "q5_0" 32 22;
    Q5_1 "q5_1" 32 24;
    Q4K "q4_k" 256 144;
    Q5K "q5_k" 256 176;
    Q6K "q6_k" 256 210;
    MxFp4 "mxfp4" 32 17;
}

impl DType {
    /// True for formats that store elements in blocks with shared scales.
    pub const fn is_block(self) -> bool {
        self.block_elements() > 2
    }

    /// Bytes of a tensor with the constant `shape`; `None` if the product overflows or the last dim is not whole blocks.
    pub fn byte_size(self, shape: &[u64]) -> Option<u64> {
        let block = self.block_elements() as u64;
        let last = shape.last().copied().unwrap_or(1);
        if !last.is_multiple_of(block) {
            return None;
        }
        let outer = shape.iter().rev().skip(1).try_fold(1u64, |n, d| n.checked_mul(*d))?;
        let row = (last / block).checked_mul(self.block_bytes() as u64)?;
        outer.checked_mul(row).filter(|n| *n <= i64::MAX as u64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
