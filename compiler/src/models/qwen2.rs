//! Qwen2 and Qwen2.5: biases on the q, k and v projections.

use super::Family;
use crate::frontend::Architecture;

pub(super) const FAMILY: Family = Family { architecture: Architecture::Qwen2, qk_norm: false, qkv_bias: Some(true) };
