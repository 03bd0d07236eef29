//! Qwen3: each head of q and k is RMS-normed before rope.

use super::Family;
use crate::frontend::Architecture;

pub(super) const FAMILY: Family = Family { architecture: Architecture::Qwen3, qk_norm: true, qkv_bias: None };
