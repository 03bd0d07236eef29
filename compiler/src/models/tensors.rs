//! The tensors that a model needs: the builder asks for each, with its shape and role, and is told the dtype. What a checkpoint
//! must hold is what the builder asks for.

use crate::frontend::{FrontendError, Place, Quantization, is_code};
use std::path::Path;
use weldment_ir::DType;

/// What a tensor is to the model, which decides the dtypes it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The embedding table.
    Embedding,
    /// A projection, [out, in].
    Projection,
    /// A norm's weight.
    Norm,
    /// A projection's bias.
    Bias,
    /// Scales of a quantised projection.
    Scales,
}

/// A tensor that a model needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// Our name.
    pub name: String,
    /// Shape, outermost first.
    pub shape: Vec<u64>,
    /// What it is for.
    pub role: Role,
}

impl Needed {
    /// The module that this is the projection weight of.
    pub fn module(&self) -> Option<&str> {
        self.name.strip_suffix(".weight").filter(|_| self.role == Role::Projection)
    }
}

/// Where a builder learns of tensors.
pub trait Tensors {
    /// For errors.
    fn path(&self) -> &Path;

    /// The dtype of a tensor, which is as needed, and the shape that it is stored in: scales may come without their dims of 1.
    ///
    /// # Errors
    /// If it is missing, misshapen or of a dtype that its role does not accept.
    fn find(&mut self, needed: &Needed) -> Result<(DType, Vec<u64>), FrontendError>;

    /// The name under which a weight's scales are stored.
    fn scales_of(&self, module: &str) -> String;
}

/// Keeps a list of what is asked for, as a checkpoint of generated tensors would hold it.
#[derive(Debug)]
pub struct Declared<'a> {
    /// The model's files, for errors.
    pub path: &'a Path,
    /// Dtype of what is not quantised.
    pub dtype: DType,
    /// How projections are.
    pub quantization: Option<&'a Quantization>,
    /// What was asked for, in the order of use.
    pub list: Vec<(Needed, DType)>,
}

impl Tensors for Declared<'_> {
    fn path(&self) -> &Path {
        self.path
    }

    fn find(&mut self, needed: &Needed) -> Result<(DType, Vec<u64>), FrontendError> {
        let quantised = self.quantization.zip(needed.module()).filter(|(q, module)| q.converts(module));
        let dtype = match (quantised, &needed.shape[..]) {
            (Some((q, _)), [_, k]) => {
                q.check_widths(self.path, &needed.name, *k)?;
                DType::F8E4M3
            }
            _ if needed.role == Role::Scales => DType::F32,
            _ => self.dtype,
        };
        self.list.push((needed.clone(), dtype));
        Ok((dtype, needed.shape.clone()))
    }

    fn scales_of(&self, module: &str) -> String {
        format!("{module}.{}", Quantization::SCALES[0])
    }
}

/// Refuses a dtype that `needed`'s role does not accept.
///
/// # Errors
/// Names the tensor of the file at `path`.
pub fn check_dtype(needed: &Needed, dtype: DType, path: &Path) -> Result<(), FrontendError> {
    let (sound, accepted) = match needed.role {
        Role::Embedding | Role::Projection if is_code(dtype) => {
            (false, "f32, f16 or bf16, or a projection of a checkpoint with a quantization_config")
        }
        Role::Embedding | Role::Projection => (dtype.is_float(), "a float or block-quantised dtype"),
        Role::Norm | Role::Bias | Role::Scales => (dtype.is_compute_float(), "f32, f16 or bf16"),
    };
    match sound {
        true => Ok(()),
        false => {
            let message = format!("dtype {dtype}; {accepted} is expected");
            Err(FrontendError::invalid(path, Place::Tensor(needed.name.clone()), message))
        }
    }
}
