//! How a checkpoint's projections are quantised to FP8: which elements of a weight share a scale, and which of an activation.

use super::error::{FrontendError, Place};
use std::path::Path;
use weldment_ir::DType;

/// Elements of a weight [N, K] under one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightScales {
    /// All.
    Tensor,
    /// Those of an output channel.
    Channel,
    /// Those of a block of so many rows and columns.
    Block {
        /// Output channels.
        rows: u64,
        /// Input channels; a divisor of K.
        columns: u64,
    },
}

/// Elements of an activation [T, K] under one scale, which is found as they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationScales {
    /// Those of a token.
    Token,
    /// So many neighbours of a token; a divisor of K.
    Group(u64),
}

/// FP8 weights and activations. A projection whose weight is stored in another float dtype is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantization {
    /// Scales of weights.
    pub weights: WeightScales,
    /// Scales of activations.
    pub activations: ActivationScales,
    /// Modules that the config says are not quantised, by their full names.
    pub kept: Vec<String>,
}

/// True for the dtypes that quantised weights have.
pub fn is_code(dtype: DType) -> bool {
    matches!(dtype, DType::F8E4M3 | DType::F8E4M3Fnuz)
}

impl Quantization {
    /// Names under which formats store a weight's scales; they multiply codes, whatever the names say.
    pub const SCALES: [&str; 2] = ["weight_scale_inv", "weight_scale"];

    /// Shape of the scales of a weight [N, K], one dim each a column where there is one scale a row or fewer.
    pub fn scale_shape(&self, [n, k]: [u64; 2]) -> [u64; 2] {
        match self.weights {
            WeightScales::Tensor => [1, 1],
            WeightScales::Channel => [n, 1],
            WeightScales::Block { rows, columns } => [n.div_ceil(rows.max(1)), k.div_ceil(columns.max(1))],
        }
    }

    /// True if `module` is quantised where there are no files to say so: the output projection never is.
    pub fn converts(&self, module: &str) -> bool {
        module != "lm_head" && !self.kept.iter().any(|k| k == module)
    }

    /// Elements of a row of K under one activation scale.
    pub fn group(&self, k: u64) -> u64 {
        match self.activations {
            ActivationScales::Token => k,
            ActivationScales::Group(n) => n,
        }
    }

    /// Checks that the weight `name`, of K columns, has whole groups and blocks of them.
    ///
    /// # Errors
    /// If it has not.
    pub fn check_widths(&self, path: &Path, name: &str, k: u64) -> Result<(), FrontendError> {
        let widths = [
            ("activation group", self.group(k)),
            ("weight block", if let WeightScales::Block { columns, .. } = self.weights { columns } else { k }),
        ];
        for (what, width) in widths {
            if width == 0 || !k.is_multiple_of(width) {
                let message = format!("{k} columns in {what}s of {width}; a multiple is expected");
                return Err(FrontendError::invalid(path, Place::Tensor(name.to_owned()), message));
            }
        }
        Ok(())
    }

    /// Checks `scales` (name, dtype and shape, if there are any) of the weight [N, K] of `module` in the model at `path`.
    ///
    /// # Errors
    /// If there are none, or their shape or dtype is not what the config says.
    pub fn check_scales(
        &self,
        path: &Path,
        module: &str,
        (dtype, [n, k]): (DType, [u64; 2]),
        scales: Option<(&str, DType, &[u64])>,
    ) -> Result<(), FrontendError> {
        let wrong = |name: &str, message: String| FrontendError::invalid(path, Place::Tensor(name.to_owned()), message);
        let weight = format!("{module}.weight");
        if self.kept.iter().any(|k| k == module) {
            let message = format!("dtype {dtype} of a module that quantization_config leaves as it is");
            return Err(wrong(&weight, format!("{message}; f32, f16 or bf16 is expected")));
        }
        let (name, scale_dtype, shape) = scales.ok_or_else(|| {
            let names = Self::SCALES.map(|part| format!("`{module}.{part}`")).join(" or ");
            wrong(&weight, format!("dtype {dtype} without scales; {names} is expected"))
        })?;
        self.check_widths(path, &weight, k)?;
        let expected = self.scale_shape([n, k]);
        // A scale a row or a tensor may come without its dims of 1.
        let plain = |shape: &[u64]| shape.iter().copied().filter(|d| *d != 1).collect::<Vec<_>>();
        let fits = match self.weights {
            WeightScales::Block { .. } => shape == expected,
            _ => plain(shape) == plain(&expected),
        };
        if !fits {
            return Err(wrong(name, format!("shape {shape:?}; {expected:?} is expected for {n} x {k}")));
        }
        if !scale_dtype.is_compute_float() {
            return Err(wrong(name, format!("dtype {scale_dtype}; f32, f16 or bf16 is expected")));
        }
        Ok(())
    }
}
