//! A checkpoint's tensors as a builder asks for them.

use super::Checkpoint;
use super::open::scales_of;
use crate::frontend::{FrontendError, Place, is_code};
use crate::models::tensors::{Needed, Role, Tensors, check_dtype};
use std::path::Path;
use weldment_ir::DType;

/// Finds what is needed, and checks it.
pub(super) struct Stored<'c>(pub &'c Checkpoint);

impl Tensors for Stored<'_> {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn find(&mut self, needed: &Needed) -> Result<(DType, Vec<u64>), FrontendError> {
        let path = self.0.path();
        let wrong = |message| Err(FrontendError::invalid(path, Place::Tensor(needed.name.clone()), message));
        let Some(found) = self.0.tensor(&needed.name) else {
            return wrong(format!("missing; shape {:?} is expected of {}", needed.shape, self.0.config.architecture()));
        };
        let stored = Ok((found.dtype, found.shape.to_vec()));
        if needed.role == Role::Scales {
            // They were checked beside their weight.
            return stored;
        }
        if found.shape != needed.shape {
            return wrong(format!("shape {:?}; {:?} is expected from the config", found.shape, needed.shape));
        }
        let quantised = self.0.config.quantization.as_ref().filter(|_| is_code(found.dtype));
        match (quantised.zip(needed.module()), found.shape) {
            (Some((q, module)), &[n, k]) => {
                let scales = self.0.tensor(&scales_of(self.0, module));
                let scales = scales.as_ref().map(|s| (s.name, s.dtype, s.shape));
                q.check_scales(path, module, (found.dtype, [n, k]), scales)?;
            }
            _ => check_dtype(needed, found.dtype, path)?,
        }
        stored
    }

    fn scales_of(&self, module: &str) -> String {
        scales_of(self.0, module)
    }
}
