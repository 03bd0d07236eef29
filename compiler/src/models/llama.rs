//! Llama 1 to 3 and models of that shape: the plain decoder, with biases where the config asks for them.

use super::Family;
use crate::frontend::Architecture;

pub(super) const FAMILY: Family = Family { architecture: Architecture::Llama, qk_norm: false, qkv_bias: None };
