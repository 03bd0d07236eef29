//! The GPU lowering: tiles spread over the threads of a block, for AMD (AMDGPU) and NVIDIA (NVPTX).

mod contract;
mod dot;
mod emit;
mod exchange;
mod infer;
mod layout;
mod machine;
mod memory;
mod reduce;
#[cfg(test)]
mod tests;

pub use machine::{GpuObject, compile_gpu};
