//! Matrix products that a vendor's library may do in place of the generated kernel, which always exists beside them.

use crate::choices::Choices;
use crate::request::{Request, RowSpace, contiguous_last, last_dim, row_stride};
use crate::target::GpuArch;
use weldment_ir::{DType, Op};

/// Most tokens of a variant from which on the library is asked. Below, weights bound the time, not arithmetic, and a library
/// call computes all rows that the variant may have.
const FROM_TOKENS: u64 = 512;

/// The same, as the user fixed it: from one token on, or never.
pub fn from_tokens(choices: &Choices) -> u64 {
    match choices.library_gemm {
        Some(0) => u64::MAX,
        Some(_) => 1,
        None => FROM_TOKENS,
    }
}

/// `out [rows, n] = x [rows, k] w [n, k]^T (+ addend)`; strides in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibraryGemm {
    /// Rows: a symbol, if there is one, times a constant.
    pub rows: (Option<String>, u64),
    /// Columns of the result.
    pub n: u64,
    /// Length of the sums.
    pub k: u64,
    /// Of every matrix.
    pub dtype: DType,
    /// Row stride of x.
    pub x_stride: u64,
    /// Row stride of the result.
    pub out_stride: u64,
    /// Row stride of the addend.
    pub addend_stride: Option<u64>,
}

/// True for products of a variant and of dtypes that go to a library.
pub fn takes(r: &Request<'_>) -> bool {
    let dtype = r.operands[0].ty.dtype;
    r.target().gpu() == Some(GpuArch::Sm90a)
        && r.max_tokens >= from_tokens(&r.choices)
        && matches!(dtype, DType::BF16 | DType::F16)
        && r.operands[1].ty.dtype == dtype
}

/// The request as a library call, if it is one: bf16 or f16 throughout, weights in plain rows, an addend of the result's shape.
pub fn gemm(r: &Request<'_>) -> Option<LibraryGemm> {
    if !matches!(r.op, Op::Matmul { .. } | Op::MatmulAdd { .. }) || !takes(r) {
        return None;
    }
    let (x, w, out) = (&r.operands[0], &r.operands[1], &r.results[0]);
    let dtype = x.ty.dtype;
    let plain = |t: &crate::request::Tensor| t.ty.dtype == dtype && contiguous_last(t).is_ok() && t.align >= 16;
    let rows = RowSpace::of(&x.ty.shape[..x.ty.rank() - 1]).ok()?;
    // Rows of logits are few whatever the tokens are.
    let fits = w.is_static && w.ty.rank() == 2 && r.counts_tokens(&rows) && plain(x) && plain(out);
    if !fits {
        return None;
    }
    let elements =
        |t: &crate::request::Tensor| row_stride(t).ok().map(|bytes| bytes as u64 / dtype.block_bytes() as u64);
    let addend_stride = match r.op {
        Op::MatmulAdd { .. } => {
            let addend = &r.operands[2];
            // A bias, one row for all, is not this.
            if !plain(addend) || addend.ty.shape != out.ty.shape {
                return None;
            }
            Some(elements(addend)?)
        }
        _ => None,
    };
    Some(LibraryGemm {
        rows: (rows.symbol, rows.mul),
        n: last_dim(out).ok()?,
        k: last_dim(x).ok()?,
        dtype,
        x_stride: elements(x)?,
        out_stride: elements(out)?,
        addend_stride,
    })
}
