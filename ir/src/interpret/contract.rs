//! Contractions over weights.

use super::domain::{Domain, Fault, Options};
use super::tensor::{Data, Tensor};

/// x [.., K] times w [N, K] transposed, row-major [.., N], not rounded. Each weight row is decoded once, whatever the number of x rows.
pub(super) fn matmul<D: Domain>(
    x: &Tensor<D::Value>,
    w: &Tensor<D::Value>,
    options: &Options,
) -> Result<Vec<D::Value>, Fault> {
    let &[features, depth] = w.shape.as_slice() else { return Err("w is not a matrix".into()) };
    let rows: usize = x.shape.iter().rev().skip(1).product();
    let x = x.reals::<D>()?;
    let count = rows.checked_mul(features).filter(|n| *n <= options.max_elements).ok_or("the result is too large")?;
    let mut out = vec![D::ZERO; count];
    if depth == 0 || count == 0 {
        return Ok(out);
    }
    let mut buffer = vec![D::ZERO; depth];
    let mut scratch = Vec::new();
    for n in 0..features {
        let row: &[D::Value] = match &w.data {
            Data::Values(v) => v.get(n * depth..(n + 1) * depth).ok_or("w is short")?,
            _ => {
                w.read::<D>(n * depth, &mut buffer, &mut scratch)?;
                &buffer
            }
        };
        for (t, line) in x.chunks_exact(depth).enumerate() {
            out[t * features + n] = D::dot(line, row);
        }
    }
    Ok(out)
}
