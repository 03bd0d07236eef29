//! One file a family: what sets it apart from the plain decoder, what files call its tensors, what it refuses.

mod gemma3;
mod granite;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;

use super::family::Family;

/// Every family.
pub const ALL: [&Family; 8] = [
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &phi3::FAMILY,
    &granite::FAMILY,
    &olmo2::FAMILY,
    &gemma3::FAMILY,
];
